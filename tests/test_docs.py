"""What the doc site is made of: the filter in docs/nbfilter.py on the real notebooks, and the pages in _quarto.yml."""
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pypandoc
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from render import page_markdown, reading_order, site_notebook  # noqa: E402
NBS = ROOT/"nbs"
FILTER = ROOT/"docs"/"nbfilter.py"
NOTEBOOKS = sorted(p for p in NBS.rglob("*.ipynb") if not any(part[0] in "._" for part in p.relative_to(NBS).parts))
HIDDEN = {"hide", "default_exp", "exporti"}
WIDGET = "application/vnd.jupyter.widget-view+json"


def source(cell): return "".join(cell["source"])
def text_of(data): return data if isinstance(data, str) else "".join(data) if isinstance(data, list) else data


@functools.cache
def filtered(path):
    "What Quarto gets of a notebook"
    return site_notebook(path.relative_to(ROOT).as_posix())


def call_filter(notebook, folder=NBS):
    "Run the filter as Quarto does: JSON in, JSON out, in the notebook's folder"
    command = [sys.executable, FILTER]
    res = subprocess.run(command, input=json.dumps(notebook), cwd=folder, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-2000:]
    return json.loads(res.stdout)


def notebook(*cells):
    new = nbformat.v4
    made = [new.new_markdown_cell(c[3:]) if c.startswith("md:") else new.new_code_cell(c) for c in cells]
    meta = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return json.loads(nbformat.writes(new.new_notebook(cells=made, metadata=meta)))


@pytest.fixture(scope="session")
def small():
    nb = notebook("md:# Title\n\n> Subtitle\n\nPurpose of `load_audio`.", "#| default_exp never", "#| export\nimport math",
        "#| export\ndef twice(x:int # a number\n         ) -> int: # its double\n    'Double it.'\n    return 2*x",
        "print(twice(2))", "#| hide\nsecret = 1", "#| slow\nlong = 1", "#| echo: false\nshown = 1")
    nb["cells"][4]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["4\n"]}]
    return nb


@pytest.fixture(scope="session")
def small_page(small): return call_filter(small)


def test_filter_keeps_title_code_and_outputs(small_page):
    nbformat.validate(nbformat.from_dict(small_page))
    sources = [source(cell) for cell in small_page["cells"]]
    assert sources[0].startswith("# Title\n\n> Subtitle\n\nPurpose of ")
    assert any(s.endswith("return 2*x") for s in sources) and "long = 1" in sources
    assert "#| echo: false\nshown = 1" in sources   # Quarto's own options are Quarto's to read
    shown = next(cell for cell in small_page["cells"] if source(cell) == "print(twice(2))")
    assert text_of(shown["outputs"][0]["text"]) == "4\n"


def test_filter_puts_a_heading_above_a_definition(small_page):
    sources = [source(cell) for cell in small_page["cells"]]
    at = next(i for i, s in enumerate(sources) if s.endswith("return 2*x"))
    assert sources[at - 1] == "### twice" and small_page["cells"][at - 1]["cell_type"] == "markdown"
    assert sources[at].startswith("#| code-fold: show\n")


def test_filter_drops_what_is_hidden(small_page):
    text = json.dumps(small_page["cells"])
    assert all(word not in text for word in ("secret", "import math", "default_exp", "#| export", "#| hide", "#| slow"))


def test_filter_links_to_the_pages_of_this_site(small_page):
    if (NBS/"00_audio.ipynb").exists(): assert "(00_audio.ipynb#load_audio)" in source(small_page["cells"][0])
    page = call_filter(notebook("md:# A tutorial\n\n`load_audio` from a folder"), ROOT/"tests")
    assert "(../nbs/00_audio.ipynb#load_audio)" in source(page["cells"][0])


def test_filter_emits_lines_and_is_idempotent(small_page):
    for cell in small_page["cells"]:
        assert isinstance(cell["source"], list) and all("\n" not in line[:-1] for line in cell["source"])
    assert call_filter(small_page) == small_page


def test_filter_takes_a_notebook_of_markdown_only():
    page = call_filter(notebook("md:# Only text\n\n> No code\n\nA paragraph."))
    assert source(page["cells"][0]) == "# Only text\n\n> No code\n\nA paragraph."
    assert call_filter(page) == page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_page(path):
    before, page = json.loads(path.read_text(encoding="utf-8")), filtered(path)
    nbformat.validate(nbformat.from_dict(page))
    sources = [source(cell) for cell in page["cells"]]
    for text in sources:
        options = [line for line in text.splitlines() if re.match(r"\s*#\s*\|", line)]
        assert all(re.match(r"#\| [\w-]+: ", line) for line in options), f"a directive is left: {options}"
    for cell in before["cells"]:
        found = set(re.findall(r"^#\|\s*(\w+)", source(cell), re.MULTILINE)) if cell["cell_type"] == "code" else set()
        code = re.sub(r"^#\|.*\n", "", source(cell), flags=re.MULTILINE).strip()
        if found & HIDDEN and code: assert code not in sources, f"a hidden cell is shown: {code[:200]}"
        elif cell.get("outputs") and not found and not re.search(r"^\s*(import|from) ", code, re.MULTILINE):
            after = next((c for c in page["cells"] if source(c) == source(cell).strip()), None)
            assert after, f"a cell is lost: {code[:200]}"
            kept = [o for o in cell["outputs"] if WIDGET not in o.get("data", {}) or "text/html" in o["data"]]   # no progress bars
            assert [o["output_type"] for o in after["outputs"]] == [o["output_type"] for o in kept]
    module = path.relative_to(NBS).parent/re.sub(r"^\d\d_", "", f"{path.stem}.py")
    if (ROOT/"lmac"/module).exists():
        headings = "\n".join(s for s in sources if "\n\n### " in s)
        assert f"/blob/main/lmac/{module.as_posix()}#L" in headings, "no heading links to its source"
    for link in re.findall(r"\]\((?!\w+:)([^)#\s]+\.ipynb)", "\n".join(sources)):
        assert (path.parent/link).exists(), f"{path.name} links to {link}, which is not there"


def test_sidebar_holds_every_notebook_in_reading_order():
    listed = reading_order()
    assert sorted(listed) == sorted(str(p.relative_to(ROOT)) for p in NOTEBOOKS)
    numbered = [name for name in listed if re.match(r"nbs/\d", name)]
    assert numbered == sorted(numbered) and listed[0] == "nbs/index.ipynb"


def test_quarto_settings_that_the_site_depends_on():
    config = yaml.safe_load((ROOT/"_quarto.yml").read_text())
    assert config["project"]["render"][0] == "nbs/index.ipynb" and config["project"]["output-dir"] == "_site"
    assert config["execute"]["enabled"] is False and config["ipynb-filters"] == ["docs/nbfilter.py"]
    ignored = (ROOT/".gitignore").read_text().splitlines()
    assert {"/.quarto/", "**/*.quarto_ipynb", "/_site/"} <= set(ignored)   # quarto appends the first two itself


def test_a_page_never_shows_a_dead_widget():
    nb = notebook("md:# Title\n\n> Subtitle", "widget")
    view = {WIDGET: {"model_id": "x"}, "text/plain": "W()"}
    nb["cells"][1]["outputs"] = [dict(output_type="display_data", metadata={}, data=view | more) for more in ({"text/html": "<p>static</p>"}, {})]
    found = next(cell for cell in call_filter(nb)["cells"] if source(cell) == "widget")
    assert [set(o["data"]) for o in found["outputs"]] == [{"text/markdown", "text/plain"}]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_every_widget_has_a_static_form(path):
    nb = json.loads(path.read_text())
    assert "widgets" not in nb["metadata"], f"{path.name} holds the state of widgets: clear it, pages do without"
    for cell in nb["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if WIDGET not in data or "text/html" in data: continue
            assert re.match(r"(.*: )? *\d+%\|", text_of(data["text/plain"])), f"{path.name}: a widget, no progress bar, without text/html"


# what Quarto and Pandoc make of it, without Quarto

@functools.cache
def parsed(path):
    "The page's markdown, and the blocks that Pandoc reads in it"
    text = page_markdown(filtered(path))
    return text, json.loads(pypandoc.convert_text(text, "json", format="markdown"))["blocks"]


def nodes(tree, kind):
    "Everything of a kind in Pandoc's tree"
    if isinstance(tree, dict):
        if tree.get("t") == kind: yield tree["c"]
        tree = list(tree.values())
    if isinstance(tree, list):
        for x in tree: yield from nodes(x, kind)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_headings_are_headings(path):
    text, blocks = parsed(path)
    written = re.findall(r"^#{1,6} \S", re.sub(r"^(```+).*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    found = list(nodes(blocks, "Header"))
    assert len(found) == len(written), f"{path.name}: {len(written)} headings are written, Pandoc finds {len(found)}"
    ids = [attributes[0] for level, attributes, _ in found if level > 1]   # the first is the title, outside the text
    assert len(ids) == len(set(ids)), f"{path.name}: two headings have one id: {sorted(i for i in ids if ids.count(i) > 1)}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_anchors_are_on_headings_and_links_within_the_page_lead_to_them(path):
    text, blocks = parsed(path)
    ids = {attributes[0] for _, attributes, _ in nodes(blocks, "Header")} | set(re.findall(r'<a id="([^"]+)"', text))
    missing = {url for _, _, (url, _) in nodes(blocks, "Link") if url.startswith("#") and url[1:] not in ids}
    assert not missing, f"{path.name} links to {missing}, which the page has not"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_a_page_asks_no_other_host_and_has_no_output_that_makes_it(path):
    for cell in filtered(path)["cells"]:
        texts = [source(cell)] if cell["cell_type"] == "markdown" else []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            assert "text/html" not in data, f"{path.name}: an output of text/html makes Quarto load scripts from another host"
            if {"image/png", "image/svg+xml"} & set(data) and "text/markdown" not in data: assert "#| fig-alt: " in source(cell), f"{path.name}: a picture without alternative text: {source(cell)[:200]}"
            texts += [text_of(data[k]) for k in ("text/markdown", "image/svg+xml") if k in data]
        for text in texts:
            found = re.search(r"""<(script|link|img|iframe|audio|source|video)\b[^>]*\b(src|href)=["']?(https?:)?//|@import\s+(url\()?["']?https?:|url\(["']?https?:""", text)
            assert not found, f"{path.name} loads something from elsewhere: {found[0][:200]}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_pictures_have_alternative_texts_and_ids_are_used_once(path):
    text, blocks = parsed(path)
    bare = [target for attributes, alt, (target, _) in nodes(blocks, "Image") if not alt and not dict(attributes[2]).get("fig-alt")]
    assert not bare, f"{path.name}: no alternative text for {bare}"
    assert not list(nodes(blocks, "Figure")), f"{path.name}: a picture alone in its paragraph, whose alternative text becomes a caption"
    page = "".join(text_of(o["data"]["text/markdown"]) for c in filtered(path)["cells"] for o in c.get("outputs", []) if "text/markdown" in o.get("data", {}))
    tables = re.findall(r'id="(T_\w+)"', page)
    assert not tables, f"{path.name}: styled tables have ids, which Quarto doubles: {tables[:3]}"


def test_quarto_reads_anchors_pictures_and_tables():
    cells = ["md:# T\n\n> S\n\n<a id=\"x\"></a>\n## A title\n\n![two words](a.png)\n\nand ![in](b.png) a line", "show"]
    nb = notebook(*cells)
    nb["cells"][1]["outputs"] = [dict(output_type="display_data", metadata={}, data={"text/html": '<style>#T_ab {}</style><table id="T_ab"><td id="T_ab_c" class="d">', "text/plain": "x"})]
    page = call_filter(nb)
    assert source(page["cells"][0]) == '# T\n\n> S\n\n## A title {#x}\n\n![](a.png){fig-alt="two words"}\n\nand ![in](b.png) a line'
    shown = next(c for c in page["cells"] if source(c) == "show")["outputs"][0]["data"]
    assert text_of(shown["text/markdown"]) == '``````````{=html}\n<style>.T_ab {}</style><table class="T_ab"><td class="T_ab_c d">\n``````````\n'


def test_the_filter_says_what_it_lacks():
    res = subprocess.run([sys.executable, "-S", "-I", FILTER], input=json.dumps(notebook("md:# T")), capture_output=True, text=True)
    assert res.returncode == 1 and "pip install -e '.[dev]'" in res.stderr and "Traceback" not in res.stderr


def contrast(a, b):
    "Ratio of luminances, as in the WCAG"
    def luminance(colour):
        values = [int(colour[i:i + 2], 16)/255 for i in (1, 3, 5)]
        return sum(w*(v/12.92 if v <= .04045 else ((v + .055)/1.055)**2.4) for w, v in zip((.2126, .7152, .0722), values))
    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + .05)/(dark + .05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_muted_text_can_be_read(theme):
    text = (ROOT/"docs"/f"{theme}.scss").read_text()
    back, = re.findall(r"on (#\w{6})", text)
    colours = re.findall(r"(?:\bcolor|text-muted): (#[0-9a-f]{6})", text)
    assert len(colours) == 2 and min(contrast(colour, back) for colour in colours) >= 4.5
    html = yaml.safe_load((ROOT/"_quarto.yml").read_text())["format"]["html"]
    assert f"docs/{theme}.scss" in html["theme"][theme] and html["respect-user-color-scheme"] is True
