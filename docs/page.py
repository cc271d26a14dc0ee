"""Build the page where one tries it: `npm ci --prefix docs/try_it && python docs/page.py [--site _site]`.

Writes what lmac/try_it needs into its folder vendor/, for `lmac-serve` and the wheel; with `--site`, the page goes to try_it/ of a site that was rendered.
"""
import shutil
from pathlib import Path

from fastcore.script import call_parse

from lmac.listen.page import PAGE, build_page, is_built, write_version

RUNTIME = Path(__file__).resolve().parent/"try_it"/"node_modules"/"onnxruntime-web"


@call_parse
def main(
    site:str=None, # folder of a site that was rendered, to which the page is added
    again:bool=False, # build what is built already
):
    "Build the page, and add it to a site"
    if again or not is_built(): build_page(RUNTIME)
    else: write_version()   # of pages that were changed since
    if site: shutil.copytree(PAGE, Path(site)/"try_it", dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    print(f"The page is in {Path(site)/'try_it' if site else PAGE}: {sum(p.stat().st_size for p in PAGE.rglob('*') if p.is_file()) / 1e6:.1f} MB")
