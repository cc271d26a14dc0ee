"""What the modules of a wing import, read from their source and drawn: `draw('evidence')`, for the wing's index page."""
import ast
from graphlib import TopologicalSorter
from pathlib import Path

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
METHOD = "the method"


def imported(file:Path # of a module
            ) -> set: # names of lmac's modules, 'explain' or 'evidence.record'
    "What a module imports from this package, at its head or inside a function"
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.relative_to(ROOT).parts[:-node.level] if node.level else ()
            base = ".".join([*base, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else: continue
        found |= {name.removeprefix("lmac.") for name in names if name.startswith("lmac.") and (ROOT/name.replace(".", "/")).with_suffix(".py").is_file()}
    return found


def arrows(wing:str # its folder
          ) -> dict: # module of the wing → the modules that it imports
    "The wing's modules, each behind those of the wing that it imports"
    modules = {f"{wing}.{file.stem}": imported(file) for file in sorted((ROOT/"lmac"/wing).glob("[a-z]*.py"))}
    order = TopologicalSorter({name: sorted(found & set(modules)) for name, found in modules.items()}).static_order()
    return {name: sorted(modules[name]) for name in order}


def needed(modules:dict # module → the modules that it imports
          ) -> dict: # the same, without what an imported module imports itself
    "The arrows that are drawn: those that do not follow from others"
    def reached(name): return set(modules.get(name, ())).union(*(reached(x) for x in modules.get(name, ())))
    return {name: [x for x in found if not any(x in reached(y) for y in found)] for name, found in modules.items()}


def draw(wing:str # its folder
        ): # a figure; all imports are printed
    "A box for each module of the wing, arrows to modules of the wing on the left, to the method and other wings on the right"
    modules = arrows(wing)
    rows = {name: -k for k, name in enumerate(modules)}
    def group(name): return name.split(".")[0] if "." in name else METHOD
    groups = sorted({group(name) for found in modules.values() for name in found} - {wing}, key=lambda name: (name == METHOD, name))
    heights = {name: -(len(modules) - 1) * (k + .5) / len(groups) for k, name in enumerate(groups)}
    fig, ax = plt.subplots(figsize=(7, .5 * len(modules) + .3), dpi=80, layout="constrained")
    box = dict(boxstyle="round,pad=.35", facecolor="#eef4fc", edgecolor="#0b62c4")
    for name, y in rows.items(): ax.text(0, y, name.split(".")[1], ha="center", va="center", color="black", bbox=box)
    for name, y in heights.items(): ax.text(3, y, name, ha="center", va="center", color="black", bbox=box | dict(facecolor="#f4f4f4", edgecolor="#555555"))
    inside = needed({name: [x for x in found if x in rows] for name, found in modules.items()})
    for name, found in modules.items():
        for x in inside[name]: ax.annotate("", (-.55, rows[x]), (-.55, rows[name]), arrowprops=dict(arrowstyle="-|>", color="#0b62c4", connectionstyle="arc3,rad=-.4"))
        for x in {group(x) for x in found} - {wing}: ax.annotate("", (2.45, heights[x]), (.55, rows[name]), arrowprops=dict(arrowstyle="-|>", color="#777777"))
        own, others = [[x.split(".")[1] for x in found if x in rows], [x for x in found if x not in rows]]
        print(f"{name.split('.')[1]}: {'; '.join(', '.join(names) for names in (own, others) if names)}")
    ax.set(xlim=(-2, 3.7), ylim=(-len(modules) + .4, .6))
    ax.axis("off")
    return fig
