"""Turn a notebook into what its page shows: Quarto calls this for every page (`ipynb-filters` in _quarto.yml).

Reads the notebook's JSON on stdin, writes JSON on stdout. It runs nbdev's own processors, which strip the directives
and drop hidden cells, but not `FrontmatterProc`, which needs a path that a filter never gets, nor those that run a
notebook's code to document it: here the code of a definition stays on the page, below a heading that links to its
source. Links go to `nbs/NN_name.ipynb`, where this site has its pages. A notebook that has been through it comes out
as it went in.
"""
import ast
import json
import os
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

from execnb.nbio import dict2nb, mk_cell, nb2dict
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import Processor
from nbdev.processors import FilterDefaults, add_links, add_show_docs, exec_show_docs, insert_warning, mv_exports
from nbdev.showdoc import showdoc_nm


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
        self.pages = {re.sub(r"^\d+[a-z]*_", "", page.stem): os.path.relpath(page) for page in pages}

    def cell(self, cell):
        if cell.cell_type != "markdown": return
        add_links(cell)
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


def filter_notebook(notebook:dict # a notebook as parsed from its JSON; the working folder is the notebook's
                   ) -> dict: # the notebook to render
    "Process `notebook` once; a notebook that is already processed is returned unchanged."
    if any(insert_warning.content in "".join(cell["source"]) for cell in notebook["cells"]): return notebook
    nb = dict2nb(notebook)
    with redirect_stdout(sys.stderr): SiteFilter()(nb)
    return nb2dict(nb)


if __name__ == "__main__":
    result = filter_notebook(json.loads(sys.stdin.buffer.read()))
    sys.stdout.buffer.write((json.dumps(result, ensure_ascii=False, indent=1) + "\n").encode())
