"""How quick the gallery of 10,000 rows is: bytes of the page, seconds to make it, first paint, sorting, filtering and scrolling in headless Chromium.

    python benchmarks/gallery.py --out nbs/results/gallery.json

makes a results folder in a temporary place: a table of 10,000 rows with a folder for each, whose pictures and sounds are links to a few real ones, explained by the bundled explainer. Each number is the median of several
runs in a fresh browser profile; the worst is given as well. `--rows 500 --runs 2` tries it.
"""
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from fastcore.script import call_parse

from lmac.audio import make_scene, save_audio
from lmac.evidence.record import Record, run_metadata
from lmac.explain import LMAC
from lmac.listen.gallery import write_gallery

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"docs"))
from check_site import CHROMIUM, FLAGS, watch  # noqa: E402

LIMITS = dict(page_bytes=5_000_000, first_paint_s=1.5, sort_s=.3)   # what is promised
SCENES = ["dog", "rain", "siren", "rooster", "chainsaw", "crying_baby"]
PAINT = "() => new Promise((done) => new PerformanceObserver((list) => done(list.getEntriesByName('first-contentful-paint')[0]?.startTime / 1000)).observe({ type: 'paint', buffered: true }))"
READY = "() => performance.getEntriesByName('rows')[0].startTime / 1000"
TIMED = """(what) => new Promise((done) => {
    const gallery = document.querySelector('.lmac-gallery').lmac, grid = document.querySelector('.lmac-grid'), start = performance.now()
    if (what.sort) gallery.sortBy(what.sort, what.down)
    if (what.set) gallery.set(what.set)
    if (what.scroll !== undefined) grid.scrollTop = what.scroll * grid.scrollHeight
    requestAnimationFrame(() => { const channel = new MessageChannel(); channel.port1.onmessage = () => done((performance.now() - start) / 1000); channel.port2.postMessage(0) })   // after the frame was drawn
})"""
MARK = "new MutationObserver((_, self) => { if (document.querySelector('.lmac-list .lmac-row')) { performance.mark('rows'); self.disconnect() } }).observe(document, { childList: true, subtree: true })"


def make_results(root, rows, seed):
    "A results folder of `rows` recordings: a few that were explained, linked under many names, with numbers that vary"
    lmac, random, kinds = LMAC.from_pretrained(), np.random.default_rng(seed), []
    for i, name in enumerate(SCENES):
        path = save_audio(root/"scenes"/f"{name}.wav", make_scene({name: 0, "hum": -12}, 5., seed=i).waveform, 16000)
        explanation = lmac.explain(path)
        kinds.append((path, explanation.save(root/"few"/name), {k: v for k, v in explanation.summary().items() if k != "probabilities"}))
    table = []
    for i in range(rows):
        k = int(random.integers(len(kinds)))
        path, folder, known = kinds[k]
        name = f"station {i % 7:02}/2026-{1 + i % 12:02}/recording_{i:06}.wav"
        recording, place = root/"recordings"/name, (root/"out"/name).with_suffix("")
        recording.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True)
        os.link(path, recording)
        for file in folder.iterdir():
            if file.name.startswith(("explanation", "residual", "thumbnail", "report")): os.link(file, place/file.name)
        p = random.random(4)
        numbers = dict(probability=p[0], probability_masked_in=p[1], probability_masked_out=p[0] * p[2], probability_heard=p[1] * p[3], mask_mean=random.random(), gain_db=-6 * p[3], duration_s=5.)
        table.append(dict(recording=name, explanation=place.relative_to(root/"out").as_posix(), true_label=SCENES[int(random.integers(len(SCENES)))]) | known | numbers
                     | dict(source=str(recording), verdict=["explains", "keeps too much", "the rest is as convincing"][int(random.integers(3))], error=""))
    pd.DataFrame(table).to_csv(root/"out"/"explanations.csv", index=False)
    return root/"out"


def measure(page):
    "One row of seconds for each thing that is done to a fresh page"
    yield "first_paint", page.evaluate(PAINT)
    yield "rows_there", page.evaluate(READY)
    for name in ("recording", "probability", "label", "mask_mean", "verdict"):
        for down in (False, True): yield "sort", page.evaluate(TIMED, dict(sort=name, down=down))
    for what in (dict(text="recording_0001"), dict(text="dog"), dict(text=""), dict(wrong=True), dict(wrong=False, label="dog"), dict(label="", ranges=dict(probability=[.5, .6])), dict(ranges={})):
        yield "filter", page.evaluate(TIMED, dict(set=what))
    for share in np.linspace(0, 1, 21): yield "scroll", page.evaluate(TIMED, dict(scroll=float(share)))


@call_parse
def main(
    out:Path="nbs/results/gallery.json", # Result file
    rows:int=10_000, # Rows of the table
    runs:int=5, # Fresh browsers
    seed:int=0, # Of the numbers in the table
):
    "Measure the gallery of a results folder of many rows"
    from playwright.sync_api import sync_playwright
    if CHROMIUM is None: sys.exit("This needs Chromium: apt install chromium, or another that is called so on the PATH.")
    record, found, complaints = Record(out), [], []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder)/"scenes").mkdir()
        results = make_results(Path(folder), rows, seed)
        for run in range(runs):
            start = time.perf_counter()
            page_file = write_gallery(results)
            found.append(dict(run=run, what="build", seconds=time.perf_counter() - start))
        page_bytes = page_file.stat().st_size
        for run in range(runs):
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport=dict(width=1280, height=800))
            complaints += [watched := watch(page)]
            page.add_init_script(MARK)
            page.goto(page_file.as_uri())
            page.wait_for_selector(".lmac-list .lmac-row")
            found += [dict(run=run, what=what, seconds=seconds) for what, seconds in measure(page)]
            version = browser.version
            browser.close()
    table = pd.DataFrame(found)
    if any(complaints): sys.exit(f"The browser complained: {complaints}")
    summary = [dict(what=what, n=len(x), median_s=float(x.median()), p95_s=float(x.quantile(.95)), max_s=float(x.max())) for what, x in table.groupby("what", sort=False).seconds]
    results = dict(page_bytes=page_bytes, rows=rows, times=summary)
    record.write(table, run_metadata(), settings=dict(rows=rows, runs=runs, seed=seed, viewport=[1280, 800], browser=f"Chromium {version}"), limits=LIMITS, results=results)
    print(f"{rows} rows, {page_bytes / 1e6:.2f} MB (at most {LIMITS['page_bytes'] / 1e6:g})\n{pd.DataFrame(summary).round(3).to_string(index=False)}")
