"""Make the pages without Quarto: `python docs/render.py [--out _site]`, or `make site`.

What docs/nbfilter.py hands to Quarto goes through Pandoc alone, in the order of the sidebar in _quarto.yml: plain pages with the words, links, anchors,
formulas, pictures and players of the site. The browser tests look at these; `quarto render` makes what is published, and docs/check_site.py checks either.
"""
import html
import json
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pypandoc
import yaml
from fastcore.script import call_parse
from nbfilter import filter_notebook

ROOT = Path(__file__).resolve().parent.parent
FENCE = "`" * 10
STYLE = """:root { color-scheme: light dark; } body { max-width: 60rem; margin: auto; padding: 0 1rem; font: 16px/1.6 system-ui, sans-serif; background: light-dark(#fff, #181a1b); color: light-dark(#1b1f24, #e6e8eb); }
table { border-collapse: collapse; } th, td { padding: .2rem .6rem; text-align: left; } a { color: light-dark(#0645ad, #8ab4f8); } nav a { margin-right: 1rem; }
""" + re.sub("^//.*\n", "", (ROOT/"docs"/"fonts.scss").read_text().partition("/*-- scss:rules --*/")[2], flags=re.M)
SCROLL = (ROOT/"docs"/"scroll.html").read_text()


def entries(contents):
    "The pages of a sidebar, in reading order"
    for entry in contents:
        if isinstance(entry, str): yield entry
        else: yield from entries(entry["contents"]) if "contents" in entry else [entry["href"]]


def reading_order(): return list(entries(yaml.safe_load((ROOT/"_quarto.yml").read_text())["website"]["sidebar"]["contents"]))


def text(value): return value if isinstance(value, str) else "".join(value)


def site_notebook(path:str # of a notebook, from the top of the repository
                 ) -> dict: # as Quarto gets it
    "Run the filter where Quarto runs it: in the notebook's folder"
    before = Path.cwd()
    os.chdir((ROOT/path).parent)
    try: return filter_notebook(json.loads((ROOT/path).read_text(encoding="utf-8")))
    finally: os.chdir(before)


def output_markdown(output:dict, # of a cell
                    alt:str, # alternative text, if it is a picture
                    ) -> str:
    "An output in the form that Quarto would choose"
    data = output.get("data", {"text/plain": output.get("text") or output.get("traceback", "")})
    if "text/markdown" in data: return text(data["text/markdown"])
    if "image/svg+xml" in data: picture = text(data["image/svg+xml"])
    elif "image/png" in data: picture = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{text(data["image/png"]).strip()}">' if alt else "<img>"
    else: return f"{FENCE}\n{text(data['text/plain'])}\n{FENCE}" if "text/plain" in data else ""
    return f"{FENCE}{{=html}}\n{picture}\n{FENCE}"


def page_markdown(notebook:dict # from `site_notebook`
                 ) -> str:
    "A page as Pandoc gets it"
    parts = []
    for cell in notebook["cells"]:
        source = text(cell["source"])
        if cell["cell_type"] == "markdown": parts.append(source)
        if cell["cell_type"] != "code": continue
        options = dict(re.findall(r"^#\|\s*([\w-]+):\s*(.+)$", source, re.M))
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
        if code and options.get("echo") != "false": parts.append(f"{FENCE}python\n{code}\n{FENCE}")
        shown = [output_markdown(output, options.get("fig-alt", "").strip("\"'")) for output in cell["outputs"]]
        if shown: parts.append("\n\n".join(["::: {.cell-output}", *shown, ":::"]))
    return "\n\n".join(parts)


def render_page(path:str, # of a notebook, from the top of the repository
                order:list, # of all of them, for the links to the pages before and after
                out:Path, # folder for the site
                ) -> Path:
    "Write one page"
    file = (out/path).with_suffix(".html")
    source = page_markdown(site_notebook(path)).replace("fig-alt=", "alt=")
    source = re.sub(r"\A# (.+)", r"# \1 {#page-title}", source)   # Quarto takes the title out, so that no heading can clash with it
    body = pypandoc.convert_text(source, "html", format="markdown", extra_args=["--mathml", "--syntax-highlighting=none", "--wrap=preserve"])
    body = re.sub(r'(href="(?!\w+:)[^"#]+)\.ipynb', r"\1.html", body)
    title = html.unescape(re.sub("<.*?>", "", re.search("<h1.*?>(.*?)</h1>", body, re.S)[1]))
    k = order.index(path)
    links = "\n".join(f'<a href="{os.path.relpath((out/p).with_suffix(".html"), file.parent)}">{Path(p).stem}</a>' for p in order[max(k - 1, 0):k + 2] if p != path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
                    f'<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style>'
                    f'<main class="content">{body}</main><nav>{links}</nav>{SCROLL}</html>', encoding="utf-8")
    return file


@call_parse
def main(
    out:str="_site", # folder for the site; emptied first if it is one
    workers:int=2, # processes
):
    "Make all pages"
    out, order = Path(out).resolve(), reading_order()
    if out.exists() and any(out.iterdir()) and not (out/"index.html").is_file(): raise SystemExit(f"{out} must be a site or empty, since it is emptied. Name another folder.")
    shutil.rmtree(out, ignore_errors=True)
    with ProcessPoolExecutor(workers) as pool: files = list(pool.map(render_page, order, [order] * len(order), [out] * len(order)))
    shutil.copytree(ROOT/"nbs"/"images", out/"nbs"/"images")
    (out/"index.html").write_text('<!doctype html><html lang="en"><title>lmac</title><meta http-equiv="refresh" content="0; url=nbs/index.html"><a href="nbs/index.html">lmac</a></html>')
    print(f"{len(files)} pages: {out/'index.html'}")
