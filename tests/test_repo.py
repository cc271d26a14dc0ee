"""The rules of the repository that can be checked by reading it: order of imports, shape of notebooks, metadata.

Modules have three kinds: the method (`lmac/*.py`, from the numbered notebooks), the wings (`lmac/models/` ...) and the
command line. Each may import what stands before it: the method its lower numbers; a wing the method, the wings before it
and, of its own modules, those before it in the sidebar; the command line all.
"""
import ast
import functools
import json
import re
import runpy
import statistics
import subprocess
import sys
import types
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/"nbs"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))
WINGS = ["models", "scale", "evidence", "listen"]   # each imports from the method and from those before it
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted((ROOT/"lmac").rglob("*.py")) if p.stem != "_modidx"}
MODULES = [name for name, p in FILES.items() if p.stem != "__init__"]   # by dotted name, "lmac.evidence.sanity"


def named(paths): return pytest.mark.parametrize("path", paths, ids=lambda p: p.relative_to(NBS).as_posix())
modules = pytest.mark.parametrize("module", MODULES)
@functools.cache
def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])
def directives(cell): return set(re.findall(r"^#\|\s*(\w+)", source(cell), re.MULTILINE))
def code_cells(path): return [cell for cell in cells(path) if cell["cell_type"] == "code"]
def is_exported(cell): return bool(directives(cell) & {"export", "exports", "exporti"})
def export_lines(cell): return [line for line in source(cell).splitlines() if not line.startswith("#|")]
@functools.cache
def tree_of(module): return ast.parse(FILES[module].read_text(encoding="utf-8"))


def settings():
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT/"settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def module_of(path):
    "Dotted name of the module that the notebook `path` exports to, if any"
    found = [re.search(r"^#\|\s*default_exp\s+(\S+)", source(cell), re.MULTILINE) for cell in code_cells(path)]
    return next((f"lmac.{match[1]}" for match in found if match), None)


NOTEBOOK_OF = {module_of(p): p for p in NOTEBOOKS if module_of(p)}


@functools.cache
def sidebar():
    "Notebooks in the order of the site's sidebar"
    def walk(x):
        if isinstance(x, str): yield x
        elif isinstance(x, dict): yield from walk([x.get("section"), x.get("href"), x.get("file"), x.get("contents")])
        elif isinstance(x, list): yield from (name for item in x for name in walk(item))
    side = yaml.safe_load((ROOT/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]
    return [name for name in walk(side["contents"]) if name.endswith(".ipynb")]


def wing_of(module):
    "The wing that `module` belongs to; None for the method and the command line"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in WINGS else None


def rank(module):
    "Where `module` stands in the order in which modules may import each other"
    if module in ("lmac", "lmac.__init__"): return (-1,)   # the version
    if module == "lmac.cli": return (len(WINGS) + 1,)
    path = NOTEBOOK_OF.get(module)
    assert path, f"{module} has no notebook"
    if wing := wing_of(module): return (WINGS.index(wing) + 1, sidebar().index(path.relative_to(ROOT).as_posix()))
    return (0, int(path.name[:2]))


def imports(tree, module=""):
    "(dotted module, name or None) of all that `tree` imports, at its head or inside a function; relative names are resolved for `module`"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [*(module.split(".")[:-node.level] if node.level else []), node.module]))
            for alias in node.names:
                if f"{base}.{alias.name}" in FILES: yield f"{base}.{alias.name}", None   # from lmac.evidence import sanity
                else: yield base, alias.name
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and isinstance(node.args[0], ast.Constant):
            yield node.args[0].value, None


@functools.cache
def arrows(module):
    "Modules of lmac that `module` imports"
    return {name for name, _ in imports(tree_of(module), module) if name.split(".")[0] == "lmac"}


def notebook_code(path):
    "The notebook's code as one tree, without magics"
    lines = "\n".join(source(cell) for cell in code_cells(path)).splitlines()
    return ast.parse("\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in lines))


def tracked():
    "Files that git tracks, and new ones that it does not ignore"
    command = ["git", "ls-files", "-z", "-co", "--exclude-standard"]
    res = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return [ROOT/name for name in res.stdout.decode().split("\0") if name and (ROOT/name).is_file()]


@modules
def test_arrows_point_to_what_stands_before(module):
    wrong = [name for name in arrows(module) if name in FILES and rank(name) >= rank(module)]
    unknown = [name for name in arrows(module) if name not in FILES and name != "lmac"]
    assert not unknown, f"{module} imports {unknown}, which do not exist"
    assert not wrong, f"{module} imports {', '.join(sorted(wrong))}, which do not stand before it"


def test_arrows_from_the_method_into_a_wing():
    wrong = [f"{module} -> {name}" for module in MODULES if not wing_of(module) and module != "lmac.cli" for name in arrows(module) if wing_of(name)]
    assert not wrong, f"the method imports from a wing: {wrong}"


def test_arrows_make_no_circle():
    "Whatever the ranks say: depth first, along all imports, from each module"
    done = set()
    def visit(module, trail):
        assert module not in trail, f"a circle: {' -> '.join([*trail[trail.index(module):], module])}"
        if module in done: return
        for name in sorted(arrows(module) & set(FILES)): visit(name, [*trail, module])
        done.add(module)
    for module in MODULES: visit(module, [])


@modules
def test_no_private_name_crosses_modules(module):
    tree = tree_of(module)
    taken = [f"{name}.{attribute}" for name, attribute in imports(tree, module) if name in FILES and (attribute or "").startswith("_") and attribute != "__version__"]
    aliases = {}   # what a module of lmac is called here
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [*(module.split(".")[:-node.level] if node.level else []), node.module]))
            aliases |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not re.match(r"_(?!_)", node.attr): continue
        owner = aliases.get(ast.unparse(node.value))
        if owner in FILES: taken.append(f"{owner}.{node.attr}")
    assert not taken, f"{module} uses private names of other modules: {taken}"


@named(NOTEBOOKS)
def test_no_private_name_in_another_notebook(path):
    own = module_of(path)
    taken = [f"{name}.{attribute}" for name, attribute in imports(notebook_code(path), own or "") if name in FILES and name != own and re.match("_(?!_)", attribute or "")]
    assert not taken, f"{path.name} imports private names of other modules: {taken}"


def public_names(module):
    lists = [node.value for node in tree_of(module).body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    return ast.literal_eval(lists[0]) if lists else []


def test_no_public_names_clash():
    "One word for one thing: no two modules define the same public name"
    where = {}
    for module in MODULES:
        for name in public_names(module): where.setdefault(name, []).append(module)
    clashes = {name: found for name, found in where.items() if len(found) > 1}
    assert not clashes, "defined by more than one module: " + "; ".join(f"{name} by {' and '.join(found)}" for name, found in sorted(clashes.items()))


def test_public_names_used_nowhere_else_are_few():
    "What only its own module, notebook and tests know is private, but for what is a user's to call (`pytest -s` lists it)"
    words = {p: set(re.findall(r"\w+", p.read_text(encoding="utf-8"))) for name, p in FILES.items()}
    words |= {p: {w for cell in cells(p) for w in re.findall(r"\w+", source(cell))} for p in NOTEBOOKS}
    words |= {p: set(re.findall(r"\w+", p.read_text(encoding="utf-8"))) for p in [*(ROOT/"docs").glob("*.py"), *(ROOT/"lmac"/"configs").glob("*"), ROOT/"settings.ini"]}
    alone = {}
    for module in MODULES:
        others = set().union(*(found for p, found in words.items() if p not in (FILES[module], NOTEBOOK_OF.get(module))))
        if left := [name for name in public_names(module) if name not in others]: alone[module] = left
    count, total = sum(map(len, alone.values())), sum(len(public_names(module)) for module in MODULES)
    print(f"\n{count} of {total} public names are used nowhere outside their module, notebook and tests")
    for module, left in alone.items(): print(f"{module} ({len(left)}): {' '.join(left)}")


def test_strings_name_modules_that_exist():
    "nbdev rewrites imports, not text: a module of a wing in a string, a configuration or a test would go on naming what has moved"
    found = []
    for path in tracked():
        if path.suffix not in {".py", ".yaml", ".yml", ".ini", ".in", ".ipynb", ".md"} or path.name in ("_modidx.py", "CHANGELOG.md"): continue
        text = "\n".join(source(cell) for cell in cells(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        for match in re.finditer(r"(?<![\w.\[{/-])lmac\.([a-z_]+)(?:\.([a-z_]+))?", text):
            first, second = match.groups()
            wing = first in WINGS and second and f"lmac.{first}.{second}" not in FILES
            if wing or (f"lmac.{first}" not in FILES and first not in WINGS and first in MOVED): found.append(f"{path.relative_to(ROOT)}: {match[0]}")
    assert not found, f"there are no such modules: {found}"


MOVED = {name.split(".")[2] for name in MODULES if wing_of(name)} | {"parallel", "provenance", "record", "recipes"}   # no longer, or never, at the top


@modules
def test_module_is_exported_from_a_notebook(module):
    assert "AUTOGENERATED! DO NOT EDIT!" in FILES[module].read_text(encoding="utf-8"), f"{module} was not made by nbdev_export"
    path = NOTEBOOK_OF.get(module)
    assert path, f"no notebook has `#| default_exp {module.removeprefix('lmac.')}`"
    where, stem = path.relative_to(NBS).parent.parts, re.sub(r"^\d\d_", "", path.stem)
    assert [*where, stem] == module.split(".")[1:], f"{path.relative_to(ROOT)} exports to {module}, not to a module of its own name and folder"


def test_notebooks_of_the_method_are_numbered_once():
    top = [p.name for p in NBS.glob("*.ipynb") if p.stem != "index"]
    numbers = [name[:2] for name in top]
    assert all(re.match(r"\d\d_", name) for name in top) and len(numbers) == len(set(numbers)), sorted(top)
    assert len(top) <= 14, f"{len(top)} notebooks at the top of nbs/; 14 is the most"


def test_sidebar_has_every_notebook_once():
    found, there = sidebar(), {p.relative_to(ROOT).as_posix() for p in NOTEBOOKS}
    assert len(found) == len(set(found)) and set(found) == there, f"in the sidebar only: {sorted(set(found) - there)}; not in it: {sorted(there - set(found))}"
    numbered = [name for name in found if re.match(r"nbs/\d\d_", name)]
    assert numbered == sorted(numbered), "the sidebar has the method in another order than its numbers"


def requirements(key): return {re.split(r"[<>=~!\[]", req)[0] for req in settings()[key].split()}


def heads(tree):
    "Top-level packages that are imported when the module is: not inside a function"
    inside = {sub for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for sub in ast.walk(node)}
    nodes = [node for node in ast.walk(tree) if node not in inside and isinstance(node, (ast.Import, ast.ImportFrom))]
    return {name.split(".")[0] for node in nodes for name, _ in imports(node) if not (isinstance(node, ast.ImportFrom) and node.level)}


EXTRAS = [key.removesuffix("_requirements") for key in settings() if key.endswith("_requirements")]
DISTRIBUTION = {"yaml": "pyyaml", "PIL": "pillow", "IPython": "ipython", "sklearn": "scikit-learn", "skimage": "scikit-image", "pytorch_grad_cam": "grad-cam", "silero_vad": "silero-vad", "resemblyzer": "Resemblyzer"}


@modules
def test_third_party_imports_are_required(module):
    "At its head a module imports what the package or its own wing's extra brings; inside functions, what any extra brings, with an error that says how to install it"
    def third(tops): return {DISTRIBUTION.get(top, top) for top in tops - sys.stdlib_module_names - {"lmac", ""}}
    base, wing = requirements("requirements"), wing_of(module)
    at_head = base | (requirements(f"{wing}_requirements") if wing in EXTRAS else set())
    if wing == "listen": at_head |= requirements("evidence_requirements")
    anywhere = set().union(base, *(requirements(f"{name}_requirements") for name in EXTRAS))
    missing = third(heads(tree_of(module))) - at_head
    assert not missing, f"{module} imports {sorted(missing)}, which the package{f' and its extra {wing}' if wing else ''} do not bring"
    tops = {name.split(".")[0] for node in ast.walk(tree_of(module)) if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0) for name, _ in imports(node)}
    assert not third(tops) - anywhere, f"{module} imports {sorted(third(tops) - anywhere)}, which settings.ini does not name"


@modules
def test_public_definitions_have_docstrings(module):
    defs = [n for n in tree_of(module).body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    bare = [n.name for n in defs if not n.name.startswith("_") and not ast.get_docstring(n)]
    assert not bare, f"no docstring in {module}: {', '.join(bare)}"


def test_the_package_is_small():
    lines = {name: len(p.read_text(encoding="utf-8").splitlines()) for name, p in FILES.items()}
    parts = {part: sum(n for name, n in lines.items() if (wing_of(name) or "method and command line") == part) for part in ["method and command line", *WINGS]}
    print(f"\n{sum(lines.values())} lines: {parts}")
    assert sum(lines.values()) <= 18_700, f"{sum(lines.values())} lines without _modidx.py, 18,700 are the most: {parts}"  # 10,500, 900 for networks that others trained, and 1,000 for speeds, several classes, regions, what is heard besides a clip, packages, embeddings and an end when nothing improves; 150 for answers of listeners that are never lost, 356 for lengths that are counted, PyAV and channels, 290 for explainers of strangers, 150 for places, options and one writer at a time, 110 for a start with the loudest bins, domains that are tried and detectors of sources, 30 for weights that are averaged and a guide that is saved; 2,450 for folders: explanations in batches, reports, gallery, overview, clusters; 2,000 for the family: explanations in the time domain, of prompts, of functions; relevance, quality; 800 for ONNX files and the page


def test_export_cells_are_short_as_a_rule():
    counts = [len(export_lines(cell)) for path in NOTEBOOKS for cell in code_cells(path) if is_exported(cell)]
    print(f"\n{len(counts)} export cells, median {statistics.median(counts)}, longest {max(counts)} lines")
    assert statistics.median(counts) <= 18, f"half of the export cells have more than 18 lines: median {statistics.median(counts)}"


@named(NOTEBOOKS)
def test_notebook_opens_with_title_subtitle_and_purpose(path):
    text = ""
    for cell in cells(path):
        if cell["cell_type"] != "markdown": break
        text += source(cell) + "\n\n"
    blocks = [block.strip() for block in re.split(r"\n\s*\n", text) if block.strip()]
    assert len(blocks) >= 3, f"{path.name} opens with {len(blocks)} blocks, not with title, subtitle and purpose"
    title, subtitle, purpose = blocks[:3]
    assert re.match(r"# \S", title), f"{path.name} does not open with an H1 but with {title[:60]!r}"
    assert re.match(r"> \S", subtitle), f"{path.name}: no `>` subtitle below the H1 but {subtitle[:60]!r}"
    assert re.match(r"(?!#|> |- |\||!|```)", purpose), f"{path.name}: no paragraph after that but {purpose[:60]!r}"


@named(NOTEBOOKS)
def test_imports_stand_in_cells_of_their_own(path):
    # nbdev's rule: its tools take a cell that imports as one that may be run on its own, and so whatever else it holds
    for cell in code_cells(path):
        if re.match(r"\s*[%!]", re.sub(r"^#.*\n", "", source(cell), flags=re.MULTILINE)): continue
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source(cell)).body}
        assert len(kinds) <= 1, f"{path.name} mixes imports with other code:\n{source(cell)[:400]}"


@named(NOTEBOOKS)
def test_export_cells_are_short(path):
    for cell in code_cells(path):
        if is_exported(cell): assert len(source(cell).splitlines()) <= 40, f"{path.name}: an export cell of {len(export_lines(cell))} lines, beginning with {export_lines(cell)[0]!r}"


@named(NOTEBOOKS)
def test_notebook_is_small(path):
    assert path.stat().st_size <= 1.5e6, f"{path.name} has {path.stat().st_size / 1e6:.2f} MB; 1.5 MB is the most"


@named(NOTEBOOKS)
def test_notebook_shows_no_error(path):
    for cell in code_cells(path):
        errors = [output for output in cell["outputs"] if output["output_type"] == "error"]
        assert not errors, f"{path.name} was committed with {errors[0]['ename']}: {errors[0]['evalue'][:200]}"


@named(NOTEBOOKS)
def test_notebook_leaves_the_process_as_it_was(path):
    # nbdev_test runs several notebooks in one process, so a switch that one throws is thrown for the next
    switch = re.compile(r"^torch\.(set_grad_enabled|set_default_\w+|use_deterministic_algorithms)\(.*", re.MULTILINE)
    for cell in code_cells(path):
        found = switch.search(source(cell))
        assert not found, f"{path.name}: {found[0]!r} holds for the notebooks after it too; use a `with` block"


def test_no_pickled_weights():
    bad = [p for p in tracked() if p.suffix in {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy", ".npz"}]
    assert not bad, f"weights are safetensors, results are text: {bad}"


def test_no_recordings():
    bad = [p for p in tracked() if p.suffix in {".wav", ".flac", ".ogg", ".mp3"}]
    assert not bad, f"recordings are never committed: {bad}"


def test_bundled_weights_are_small():
    size = sum(p.stat().st_size for p in tracked() if ROOT/"lmac"/"weights" in p.parents)
    assert size <= 12.5e6, f"lmac/weights has {size / 1e6:.1f} MB; 12.5 MB is the most"   # one classifier, and five explainers for it, of which two are of other kinds


def test_no_path_of_one_machine():
    roots = "|".join(["home", "root", "Users", "work", "mnt", "farm", "opt"])
    pattern = re.compile(rf"(?<![\w+/=.:\-}}\]*])/(?:{roots})/[\w.\-]+")
    found = []
    for path in tracked():
        try: text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError: continue
        if path.parts[-3:-1] == (".github", "workflows"): continue   # the runner's own folders
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in pattern.finditer(text)]
    assert not found, found


def setup_arguments(monkeypatch):
    "What setup.py hands to setuptools"
    seen = {}
    fake = types.ModuleType("setuptools")
    fake.setup, fake.find_namespace_packages = (lambda **kwargs: seen.update(kwargs)), (lambda **kwargs: ["lmac"])
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return seen


def test_setup_agrees_with_settings(monkeypatch):
    cfg, got = settings(), setup_arguments(monkeypatch)
    assert (got["name"], got["version"]) == (cfg["lib_name"], cfg["version"])
    assert got["python_requires"] == ">=" + cfg["min_python"]
    assert got["install_requires"] == cfg["requirements"].split()
    assert got["extras_require"] == {name: cfg[f"{name}_requirements"].split() for name in EXTRAS}
    assert got["entry_points"]["console_scripts"] == cfg["console_scripts"].split()
    assert got["entry_points"]["nbdev"] == ["lmac=lmac._modidx:d"]
    assert got["license"] == "Apache-2.0" and cfg["license"] == "apache2"
    assert got["include_package_data"] and (ROOT/got["license_files"][0]).is_file()


def test_version_is_the_same_everywhere():
    version = settings()["version"]
    assert f'__version__ = "{version}"' in (ROOT/"lmac"/"__init__.py").read_text()
    assert f"\nversion: {version}\n" in (ROOT/"CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT/"CHANGELOG.md").read_text()


@pytest.mark.parametrize("script", settings()["console_scripts"].split())
def test_console_script_leads_somewhere(script):
    module, name = script.split("=")[1].split(":")
    path = ROOT/(module.replace(".", "/") + ".py")
    assert path.is_file(), f"{script}: there is no {path.relative_to(ROOT)}"
    assert name in {getattr(node, "name", None) for node in ast.parse(path.read_text(encoding="utf-8")).body}


def test_readme_is_the_front_page():
    made = runpy.run_path(str(ROOT/"docs"/"readme.py"))["readme_text"]()
    assert (ROOT/"README.md").read_text(encoding="utf-8") == made, "run `python docs/readme.py` and commit README.md"


def test_the_gallery_is_what_the_notebooks_hold():
    docs = runpy.run_path(str(ROOT/"docs"/"picture.py"), run_name="docs")
    for name, where in docs["GALLERY"].items():
        assert (ROOT/"nbs"/"images"/f"gallery-{name}.png").read_bytes() == docs["picture_of"](ROOT/"nbs", *where), f"{name}: run `python docs/picture.py`"
    with pytest.raises(LookupError, match="Run the notebook first"): docs["picture_of"](ROOT/"nbs", "11_explain", "for name, among in (('right'", 9)


def test_the_gallery_tells_what_the_results_say():
    rows = json.loads((ROOT/"nbs"/"results"/"shortcuts.json").read_text(encoding="utf-8"))["results"]
    found = {r["method"]: 100*r["mean"] for r in rows if (r["clips"], r["artefact"], r["measure"]) == ("sufficient", "all", "found")}
    others = [v for name, v in found.items() if not name.startswith(("lmac", "ideal"))]
    ours, best = re.search(r"finds (\d+) % of planted shortcuts .*? the next best method (\d+) %", (ROOT/"README.md").read_text(encoding="utf-8")).groups()
    assert (int(ours), int(best)) == (round(found["lmac"]), round(max(others)))


def test_readme_links_lead_somewhere():
    text = (ROOT/"README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)
    missing = [link for link in links if not (ROOT/link).exists()]
    assert links and not missing, f"README.md links to {missing}"


def test_ci_runs_the_commands_of_the_readme():
    readme = (ROOT/"README.md").read_text(encoding="utf-8")
    ci = (ROOT/".ci"/"run").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) for line in block.splitlines()]
    tests = next(line for line in lines if "pytest" in line)
    for command in tests.split(" && "): assert command.removeprefix("pip ") in ci, f".ci/run does not call {command}"
    setup = "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && lmac-explain --out out"
    assert setup in lines and "lmac-explain\" --out out" in ci


def test_readme_code_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT/"README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2 and len([line for line in blocks[0].splitlines() if line.strip()]) <= 10
    check = "\nassert ex.label in lmac.labels and mask.shape == magnitude.shape and 0 <= mask.min() <= mask.max() <= 1"
    res = subprocess.run([sys.executable, "-c", blocks[0] + check], cwd=tmp_path, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-2000:]
    files = {"explanation.flac", "residual.flac", "mask.png", "thumbnail.png", "report.html", "explanation.json"}
    assert files <= {p.name for p in (tmp_path/"out").iterdir() if p.stat().st_size}
    prepare = """
import torch
from pathlib import Path
from torch import nn
from lmac.audio import make_scene, save_audio
from lmac.explain import LMAC
network = nn.Sequential(nn.Unflatten(1, (1, -1)), nn.Conv1d(1, 8, 64, 64), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
Path("recordings").mkdir()
for i in range(4): save_audio(f"recordings/{i}.wav", make_scene({"dog": 0}, 1., seed=i).waveform, 16000)
save_audio("one.wav", make_scene({"rain": 0}, 1.).waveform, 16000)
"""
    res = subprocess.run([sys.executable, "-c", prepare + blocks[1].replace("epochs=40", "epochs=1")], cwd=tmp_path, capture_output=True, text=True)
    assert "epochs=40" in blocks[1] and res.returncode == 0, res.stderr[-2000:]


HEAVY = ["pandas", "huggingface_hub", "accelerate", "matplotlib", "scipy", "sklearn", "captum", "IPython", "ipywidgets", "statsmodels", "skimage", "transformers"]


def test_importing_explain_imports_nothing_heavy():
    "What costs time is imported when it is needed: `import lmac.explain` is to take at most a quarter longer than `import torch`"
    code = f"import sys, lmac.explain; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]", found.stdout


@pytest.mark.parametrize("command, package, extra", [("lmac-evaluate --quick --data scenes --out x.json", "captum", "evidence"),
                                                     ("lmac-experiment shortcuts --quick --out x.json", "captum", "evidence"), ("lmac-study check .", "ipywidgets", "listen")])
def test_a_command_without_its_extra_says_what_to_install(tmp_path, command, package, extra):
    name, *args = command.split()
    code = f"import sys; sys.modules[{package!r}] = None; import lmac.cli; lmac.cli.sys.argv = {[name, *args]}; import runpy; runpy.run_path('run.py', run_name='__main__')"
    (tmp_path/"run.py").write_text(f"from lmac.cli import {name.replace('-', '_')} as command\ncommand()\n")
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 1 and f"pip install 'lmac[{extra}]'" in found.stderr and "Traceback" not in found.stderr, found.stderr[-1500:]
    assert len([line for line in found.stderr.splitlines() if line.startswith(name)]) == 1
