"""Render the doc site without Quarto: `python docs/render.py [--out _site]`, or `make site`.

The same notebooks through the same filter (docs/nbfilter.py), in the order of the sidebar in _quarto.yml, with nbconvert: what continuous integration
and the browser tests look at. `quarto render` makes the site that is published. Nothing is executed, and no page asks another host for anything:
formulas become MathML, and widgets their static form.
"""
import html
import json
import os
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import yaml
from fastcore.script import call_parse

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT/"docs"


def reading_order(contents):
    "The sidebar of _quarto.yml as (section, page) pairs, globs filled in"
    for entry in contents:
        section, pages = (entry["section"], entry["contents"]) if "section" in entry else ("", [entry["href"]])
        for page in [pages] if isinstance(pages, str) else pages:
            for path in sorted(ROOT.glob(page)) if "*" in page else [ROOT/page]: yield section, path.relative_to(ROOT).as_posix()


def title_of(notebook): return re.search(r"^# (.+)$", "".join(notebook["cells"][0]["source"]), re.M)[1]


def slug(heading):
    "The anchor that Pandoc, and so Quarto, gives a heading"
    text = html.unescape(re.sub("<.*?>", "", heading)).strip().lower()
    return re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", text))) or "section"


def anchored(body):
    "Headings of markdown with Pandoc's anchors in place of nbconvert's; those in outputs stay as they are"
    inside = r"(?:(?!</?h[1-6]\b).)*?"
    return re.sub(rf'<h([1-6])[^>]*>({inside})<a class="anchor-link"{inside}</a></h\1>', lambda m: f'<h{m[1]} id="{slug(m[2])}">{m[2]}</h{m[1]}>', body, flags=re.S)


def mathml(source):
    "Formulas between dollars as MathML; code is left alone"
    from latex2mathml.converter import convert
    parts = re.split(r"(```.*?```|`[^`\n]*`)", source, flags=re.S)
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"\$\$(.+?)\$\$", lambda m: f"\n\n{convert(m[1].strip(), display='block')}\n\n", parts[k], flags=re.S)
        parts[k] = re.sub(r"(?<![\\\w$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\w)", lambda m: convert(m[1]), parts[k])
    return "".join(parts)


def prepare(notebook):
    "What nbconvert needs that Quarto does by itself: attributes of links, links to notebooks, formulas, alternative texts"
    heading = ""
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            source = re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)\{([^}]*)\}", lambda m: f'<a href="{m[2]}" {m[3]}>{m[1]}</a>', source)
            source = re.sub(r"(\]\((?!\w+:)[^)\s#]+)\.ipynb(#[^)\s]*)?\)", lambda m: f"{m[1]}.html{m[2] or ''})", source)
            source = re.sub(r'(href="(?!\w+:)[^"#]+)\.ipynb', r"\1.html", source)
            heading = ([heading] + re.findall(r"^#+ (.+)$", source, re.M))[-1]
            cell["source"] = mathml(source)
            continue
        options = dict(re.findall(r"^#\|\s*([\w-]+):\s*(.+)$", source, re.M))
        cell["source"] = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
        if options.get("echo") == "false": cell.setdefault("metadata", {})["tags"] = ["hide_input"]
        alt = options.get("fig-alt", f"Figure: {heading}").strip("\"'")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in ("image/png", "image/svg+xml"):
                if kind in data and "text/html" not in data: output.setdefault("metadata", {}).setdefault(kind, {})["alt"] = alt
    return notebook


def body_of(path):
    "A notebook's page, without the frame: title, HTML, headings, text to be searched"
    sys.path.insert(0, str(HERE))
    import nbformat
    from nbconvert import HTMLExporter
    from nbfilter import filter_notebook
    from traitlets.config import Config
    os.chdir((ROOT/path).parent)                             # as Quarto does
    notebook = prepare(filter_notebook(json.loads((ROOT/path).read_text())))
    os.chdir(ROOT)
    nb = nbformat.reads(json.dumps(notebook), as_version=4)
    exporter = HTMLExporter(Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags={"hide_input"})), template_name="basic",
                            exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(nb)
    body = anchored(body)
    headings = re.findall(r'<h([23])[^>]*id="([^"]+)"[^>]*>(.*?)</h\1>', body, re.S)
    text = " ".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    return dict(path=path, title=title_of(notebook), body=body, headings=[(int(n), i, re.sub("<.*?>", "", t)) for n, i, t in headings],
                text=re.sub(r"<[^>]+>|[#*`\[\]()>|]", " ", text))


def page(made, order, titles):
    "The page with its frame"
    path = made["path"]
    out = Path(path).with_suffix(".html")
    def to(target): return os.path.relpath(Path(target).with_suffix(".html"), out.parent)
    nav, last = [], None
    for section, other in order:
        if section != last: nav.append(f"<h2>{html.escape(section)}</h2>" if section else "")
        last = section
        here = ' aria-current="page"' if other == path else ""
        nav.append(f'<a href="{to(other)}"{here}>{html.escape(titles[other])}</a>')
    pages = [other for _, other in order]
    k = pages.index(path)
    around = "".join(f'<a rel="{rel}" href="{to(pages[j])}">{arrow.format(html.escape(titles[pages[j]]))}</a>'
                     for rel, j, arrow in (("prev", k - 1, "← {}"), ("next", k + 1, "{} →")) if 0 <= j < len(pages))
    toc = "".join(f'<a class="level{n}" href="#{i}">{html.escape(t)}</a>' for n, i, t in made["headings"] if n == 2)
    root = os.path.relpath(".", out.parent)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(made["title"])} – lmac</title><link rel="stylesheet" href="{root}/site.css"><link rel="icon" href="data:,">
<script>document.documentElement.dataset.theme = localStorage.lmacTheme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')</script></head>
<body><a class="skip" href="#content">Skip to the content</a>
<header><a class="home" href="{to(pages[0])}">lmac</a><search><label for="search">Search</label> <input id="search" type="search" autocomplete="off"><ul id="found" hidden></ul></search>
<button type="button" id="theme">Dark mode</button></header>
<div class="columns"><nav aria-label="Pages"><details open><summary>Pages</summary>{"".join(nav)}</details></nav>
<main id="content">{made["body"]}<footer><nav class="around" aria-label="Before and after">{around}</nav></footer></main>
<nav class="toc" aria-label="On this page">{toc}</nav></div>
<script>const SITE = {json.dumps(root)}</script><script src="{root}/search.js" defer></script><script src="{root}/site.js" defer></script></body></html>"""


@call_parse
def main(
    out:str="_site", # folder for the site; emptied first if it is one
    workers:int=2, # processes
):
    "Render all pages"
    start, out = time.perf_counter(), Path(out)
    if out.exists() and not (out/"site.css").is_file() and any(out.iterdir()): raise SystemExit(f"{out} is not a site made by this program, and not empty. Name another folder.")
    shutil.rmtree(out, ignore_errors=True)
    order = list(reading_order(yaml.safe_load((ROOT/"_quarto.yml").read_text())["website"]["sidebar"]["contents"]))
    with ProcessPoolExecutor(workers) as pool: made = list(pool.map(body_of, [path for _, path in order]))
    titles = {m["path"]: m["title"] for m in made}
    for m in made:
        file = (out/m["path"]).with_suffix(".html")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page(m, order, titles))
        print(f"{file.stat().st_size / 1e6:5.2f} MB  {file}")
    shutil.copytree(ROOT/"nbs"/"images", out/"nbs"/"images")
    for name in ("site.css", "site.js"): shutil.copy(HERE/name, out)
    index = [dict(href=Path(m["path"]).with_suffix(".html").as_posix(), title=m["title"], text=m["text"]) for m in made]
    (out/"search.js").write_text(f"const PAGES = {json.dumps(index)}\n")
    (out/"index.html").write_text('<!doctype html><html lang="en"><meta charset="utf-8"><title>lmac</title><meta http-equiv="refresh" content="0; url=nbs/index.html"><a href="nbs/index.html">lmac</a></html>')
    print(f"{len(made)} pages in {time.perf_counter() - start:.0f} s: {out/'index.html'}")
