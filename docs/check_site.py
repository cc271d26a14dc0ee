"""Check a site that was rendered: `python docs/check_site.py [--site _site]`, after `quarto render` or `make site`.

Links and anchors within the site lead somewhere, and pictures have alternative texts. Then every page is opened in headless Chromium, 400 pixels wide
as on a telephone, light and dark: it asks no other host for anything, nothing is complained about, it is not wider than the screen, its sounds can be
decoded, and axe-core finds nothing serious. Without Playwright, which `pip install -e '.[dev]'` brings, or without Chromium the second part is left out.
"""
import functools
import html.parser
import http.server
import re
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from fastcore.script import call_parse

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--autoplay-policy=no-user-gesture-required"]
WIDTH = 400
SILENT = """async () => (await Promise.all([...document.querySelectorAll('audio')].map(async a => {
    const bytes = await (await fetch(a.currentSrc || a.src)).arrayBuffer()
    return new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes).then(b => b.duration > 0, () => false) }))).filter(ok => !ok).length"""


class Reader(html.parser.HTMLParser):
    "Ids, references and pictures without alternative text of a page"
    def __init__(self, file):
        super().__init__()
        self.ids, self.refs, self.mute = [], [], []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs and tag != "link": self.ids.append(attrs["id"])   # Quarto's styles, light and dark, share theirs
        self.refs += [attrs[k] for k in ("href", "src") if attrs.get(k)]
        if tag == "img" and "alt" not in attrs: self.mute.append(attrs.get("src", "")[:80])


def site_pages(site:Path # folder
              ) -> list: # of files, without those that only lead on to another
    "The pages of a site"
    return sorted(p for p in site.rglob("*.html") if "site_libs" not in p.parts and not re.search(r'http-equiv="refresh"|window\.location\.replace', p.read_text(encoding="utf-8")[:3000]))


def dead_links(site:Path # folder
              ) -> list: # of sentences
    "What is wrong with the pages as they are written"
    found, problems = {p.resolve(): Reader(p) for p in site_pages(site)}, []
    for page, reader in found.items():
        name = page.relative_to(site.resolve())
        twice = {i for i in reader.ids if reader.ids.count(i) > 1}
        if twice: problems.append(f"{name} has ids more than once: {sorted(twice)[:5]}")
        problems += [f"{name} has a picture without alternative text: {src}" for src in reader.mute]
        for ref in reader.refs:
            path, _, anchor = ref.partition("#")
            if re.match(r"[a-z]+:|//", ref): continue
            target = (page.parent/unquote(path.partition("?")[0])).resolve() if path else page
            if target.is_dir(): target = target/"index.html"
            lost = not target.is_file() or (anchor and target in found and unquote(anchor) not in found[target].ids)
            if lost: problems.append(f"{name} links to {ref}, which is not there")
    return problems


@contextmanager
def served(site:Path # folder
          ): # address of the site
    "Serve the folder on this computer"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def watch(page, # Playwright's
         ) -> list: # grows while the page is used
    "What the browser complains about, and what is asked of other hosts"
    complaints = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: complaints.append(str(e)))
    page.on("request", lambda r: None if re.match(r"(data|blob|file|about):|http://127\.0\.0\.1", r.url) else complaints.append(f"asks for {r.url}"))
    return complaints


def serious(page, # Playwright's
            rules:list=None, # of axe-core; None: all
           ) -> list: # of sentences
    "What axe-core calls serious or critical"
    from axe_playwright_python.sync_playwright import Axe
    found = Axe().run(page, options=dict(resultTypes=["violations"]) | (dict(runOnly=rules) if rules else {})).response["violations"]
    return [f"{v['id']} at {len(v['nodes'])} places: {v['nodes'][0]['html'][:150]}" for v in found if v["impact"] in ("serious", "critical")]


def page_problems(browser, # Playwright's
                  url:str # of a page
                 ) -> list: # of sentences
    "What is wrong with a page when it is opened on a telephone"
    context = browser.new_context(viewport=dict(width=WIDTH, height=800), color_scheme="light")
    page = context.new_page()
    problems = watch(page)
    page.goto(url)
    if (width := page.evaluate("document.documentElement.scrollWidth")) > WIDTH: problems.append(f"is {width} px wide")
    if silent := page.evaluate(SILENT): problems.append(f"has {silent} sounds that cannot be decoded")
    problems += serious(page)
    page.emulate_media(color_scheme="dark")
    page.reload()
    problems += [f"dark: {p}" for p in serious(page, ["color-contrast"])]
    context.close()
    return problems


@call_parse
def main(
    site:str="_site", # folder
):
    "Check a site that was rendered"
    site = Path(site)
    if not (site/"index.html").is_file(): raise SystemExit(f"{site} must hold a site. Run `quarto render` or `make site` first.")
    problems, pages = dead_links(site), site_pages(site)
    try: from playwright.sync_api import sync_playwright
    except ModuleNotFoundError: sync_playwright = None
    if sync_playwright and CHROMIUM:
        with sync_playwright() as playwright, served(site) as address:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            for file in pages: problems += [f"{file.relative_to(site)}: {p}" for p in page_problems(browser, f"{address}/{file.relative_to(site).as_posix()}")]
            browser.close()
    else: print("Pages are not opened: Playwright or Chromium is missing.")
    print("\n".join(problems))
    print(f"{len(pages)} pages, {len(problems)} problems")
    raise SystemExit(bool(problems))
