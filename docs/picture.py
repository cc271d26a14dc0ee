"""Make the README's pictures, the demonstration scene and a gallery out of the notebooks' outputs: `python docs/picture.py`."""
import base64
import json
from pathlib import Path

from lmac.audio import make_scene
from lmac.cli import DEMO
from lmac.explain import LMAC

GALLERY = {  # file: notebook, a text in the source of the cell, which of the cell's pictures
    "right": ("11_explain", "for name, among in (('right', right), ('wrong', ~right))", 0),
    "wrong": ("11_explain", "for name, among in (('right', right), ('wrong', ~right))", 1),
    "methods": ("evidence/baselines", "shown['L-MAC'] = ", 0),
    "random": ("evidence/sanity", "depths = [0, 1, 3, 5, 8]", 0),
    "shortcuts": ("results/shortcuts", "plot_found()", 0),
    "contaminated": ("results/benchmark", "Path('ratios.json')", 0)}


def picture_of(nbs:Path, # folder of the notebooks
               notebook:str, # its name, without the ending
               text:str, # in the source of the cell
               n:int, # which of the cell's pictures
               ) -> bytes: # PNG
    "A picture that a notebook holds; raises `LookupError` if it does not"
    cells = json.loads((nbs/f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = [o["data"]["image/png"] for c in cells if text in "".join(c["source"]) for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    if n >= len(found): raise LookupError(f"{notebook}: no picture {n} in a cell with {text!r}. Found: {len(found)}. Run the notebook first.")
    return base64.b64decode("".join(found[n]))


if __name__ == "__main__":
    scene, nbs = make_scene(DEMO), Path(__file__).resolve().parent.parent/"nbs"
    out = nbs/"images"
    out.mkdir(exist_ok=True)
    LMAC.from_pretrained().explain(scene.waveform, scene.sample_rate).figure().savefig(out/"readme.png")
    for name, where in GALLERY.items(): (out/f"gallery-{name}.png").write_bytes(picture_of(nbs, *where))
