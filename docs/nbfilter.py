"""Turn a notebook into what its page shows: Quarto calls this for every page (`ipynb-filters` in _quarto.yml).

Reads the notebook's JSON on stdin, writes JSON on stdout. It runs nbdev's own processors, which strip the directives
and drop hidden cells, but not `FrontmatterProc`, which needs a path that a filter never gets, nor those that run a
notebook's code to document it: here the code of a definition stays on the page, below a heading that links to its
source. Links go to the notebooks, where this site has its pages. What Pandoc and Quarto read otherwise than Jupyter does
is written for them. A notebook that has been through it comes out as it went in.
"""
import ast
import html
import json
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

GIVEN = sys.stdin.buffer.read() if __name__ == "__main__" else b""   # first of all: Quarto writes before it listens
try:
    from execnb.nbio import dict2nb, mk_cell, nb2dict
    from nbdev.config import get_config
    from nbdev.doclinks import NbdevLookup
    from nbdev.frontmatter import FrontmatterProc
    from nbdev.process import Processor
    from nbdev.processors import FilterDefaults, add_links, add_show_docs, exec_show_docs, insert_warning, mv_exports
    from nbdev.showdoc import showdoc_nm
except ModuleNotFoundError as e: sys.exit(f"docs/nbfilter.py needs {e.name}, which is not installed for {sys.executable}: pip install -e '.[dev]'")


class show_source(Processor):
    "Leave exported code on the page (as `exports` does), each public definition below a heading; imports are not shown"
    def begin(self):
        self.lookup, cells = NbdevLookup(), []
        for cell in self.nb.cells:
            body = cell.parsed_() if cell.cell_type == "code" and "export" in cell.directives_ else None
            if body and not all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body):
                cell.directives_["exports"] = cell.directives_.pop("export")
                cells += [mk_cell(self.heading(node), "markdown") for node in body if self.is_public(node)]
            cells.append(cell)
        self.nb.cells = cells

    def is_public(self, node):
        return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_")

    def heading(self, node):
        name = showdoc_nm(node)   # `Class.method` for a patched method
        url = self.lookup.code(name)
        link = f'[source]({url}){{target="_blank" style="float:right; font-size:smaller"}}\n\n' if url else ""
        return f"{link}### {name}"


class page_links(Processor):
    "nbdev's `add_links`, with `HOST/BASE/name.html` turned into a relative path to the notebook `NN_name.ipynb`"
    def begin(self):
        cfg = get_config()
        self.url = re.compile(re.escape(f"{cfg.doc_host}{cfg.doc_baseurl}/") + r"(?:\w+/)*(\w+)\.html")
        pages = Path(cfg.nbs_path).rglob("*.ipynb")
        self.pages = {re.sub(r"^\d+[a-z]*_", "", page.stem): os.path.relpath(page) for page in pages if page.stem != "index"}

    def cell(self, cell):
        if cell.cell_type != "markdown": return
        add_links(cell)
        cell.source = re.sub(r"\[(`_\w+`)\]\([^)]*\)", r"\1", cell.source)   # a private definition has no heading
        cell.source = self.url.sub(lambda m: self.pages.get(m[1], m[0]), cell.source)


class SiteFilter(FilterDefaults):
    "nbdev's processors, as this site needs them"
    def base_procs(self):
        left_out = (FrontmatterProc, add_show_docs, exec_show_docs, mv_exports, add_links)
        return [show_source, *(proc for proc in super().base_procs() if proc not in left_out), page_links, static_widgets]


WIDGET = "application/vnd.jupyter.widget-view+json"


class static_widgets(Processor):
    "A widget needs a kernel, which a page has not: its static form (text/html) is shown; what has none, a progress bar say, is not"
    def cell(self, cell):
        if not cell.get("outputs"): return
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {}) or "text/html" in o["data"]]
        for output in cell.outputs: output.get("data", {}).pop(WIDGET, None)


def pandoc_markdown(source:str # of a markdown cell
                   ) -> str: # the same for Pandoc
    """Anchors above headings become the headings' own: Pandoc takes a heading without a blank line before it for text. And of a picture alone in its
    paragraph it makes a figure with the alternative text as a caption, unless Quarto's attribute says it."""
    source = re.sub(r'^<a id="([\w.-]+)"></a>\n+(#{1,6} .+?)[ \t]*$', r"\2 {#\1}", source, flags=re.MULTILINE)
    def with_alt(m): return f'![]({m[2]}){{fig-alt="{html.escape(m[1])}"}}'
    return re.sub(r"(?:(?<=\n\n)|\A)!\[([^\]]+)\]\(([^)\s]+)\)(?=\n\n|\Z)", with_alt, source)


def raw_html(data:dict # the forms of an output
            ) -> dict: # HTML as markdown in which it stands raw
    "Quarto loads jquery and require.js from another host for a page with an output of text/html; for one of markdown it does not"
    if "text/html" not in data: return data
    page = "".join(data["text/html"])
    # a styled table of pandas has ids, of which Quarto gives the table's to a box around it as well: classes do as well
    page = re.sub(r'id="(T_\w+)" class="', r'class="\1 ', page)
    page = re.sub(r'id="(T_\w+)"', r'class="\1"', page)
    page = re.sub(r"#(T_[0-9a-f]+)", r".\1", page) if "<style" in page else page
    return {k: v for k, v in data.items() if k != "text/html"} | {"text/markdown": ["``````````{=html}\n", *page.splitlines(keepends=True), "\n``````````\n"]}


def filter_notebook(notebook:dict # a notebook as parsed from its JSON; the working folder is the notebook's
                   ) -> dict: # the notebook to render
    "Process `notebook` once; a notebook that is already processed is returned unchanged."
    if any(insert_warning.content in "".join(cell["source"]) for cell in notebook["cells"]): return notebook
    nb = dict2nb(notebook)
    with redirect_stdout(sys.stderr): SiteFilter()(nb)
    notebook = nb2dict(nb)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown": cell["source"] = pandoc_markdown("".join(cell["source"])).splitlines(keepends=True)
        for output in cell.get("outputs", []):
            if "data" in output: output["data"] = raw_html(output["data"])
    return notebook


if __name__ == "__main__":
    sys.stdout.buffer.write((json.dumps(filter_notebook(json.loads(GIVEN)), ensure_ascii=False, indent=1) + "\n").encode())
