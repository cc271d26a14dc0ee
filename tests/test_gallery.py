"""The gallery of a results folder: what its page holds, and what a person does with it in headless Chromium.

The results folders here have the layout that `lmac-explain` leaves, made of scenes and of numbers that were chosen; one test goes the whole way, from explanations to sounds that play.
"""
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lmac.audio import make_scene, save_audio
from lmac.explain import LMAC
from lmac.listen.gallery import KINDS, Gallery, gallery_data, gallery_rows, write_gallery

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from check_site import CHROMIUM, FLAGS, page_problems, served, watch  # noqa: E402

LABELS, RATE = ["dog", "rain", "siren"], 16000
VERDICTS = ["explains", "explains", "the rest is as convincing", "the class was not likely"]


def results(root, n=12, labels=True, failed=(), source=True, sounds=True):
    "A results folder of `n` recordings beside their folder: every third is predicted wrongly"
    random, rows = np.random.default_rng(0), []
    for i in range(n):
        true, name = LABELS[i % 3], f"{LABELS[i % 3]}/{i:03}.wav"
        predicted = LABELS[(i + 1) % 3] if i % 3 == 0 and labels else true
        path, place = root/"recordings"/name, root/"out"/true/f"{i:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        waveform = make_scene({true: 0}, 1.5, seed=i).waveform
        if sounds:
            save_audio(path, waveform, RATE)
            save_audio(place/"explanation.flac", .5 * waveform, RATE)
            save_audio(place/"residual.flac", .25 * waveform, RATE)
        picture = Image.fromarray(random.integers(0, 80, (72, 240), dtype=np.uint8)).convert("P")
        picture.save(place/"thumbnail.png")
        (place/"report.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{i}</title><p>Report {i}')
        (place/"explanation.json").write_text(json.dumps(dict(source=str(path))))
        p = float(random.uniform(.3, 1))
        row = dict(recording=name, explanation=f"{true}/{i:03}") | (dict(source=str(path)) if source else {}) | (dict(true_label=true) if labels else {})
        if i in failed: rows.append(row | dict(explanation="", error=f"{name} holds no sound: 0 samples."))
        else: rows.append(row | dict(predicted_label=predicted, label=predicted, class_index=LABELS.index(predicted), probability=p, probability_masked_in=.9 * p, probability_masked_out=.2 * p,
                                     probability_heard=.8 * p, verdict=VERDICTS[i % 4], mask_mean=float(random.uniform(.05, .6)), threshold=None, contrast=None, gain_db=-6. if i == 1 else 0.,
                                     silent=False, sample_rate=RATE, duration_s=1.5, playing_speed=1., error=""))
    pd.DataFrame(rows).to_csv(root/"out"/"explanations.csv", index=False)
    return root/"out"


def data_of(page): return json.loads(re.search(r'id="data">(.*?)</script>', Path(page).read_text(encoding="utf-8"))[1])
def edit(out, change):
    "Change the table of a results folder"
    table = pd.read_csv(out/"explanations.csv", dtype=str, keep_default_na=False)
    change(table).to_csv(out/"explanations.csv", index=False)


# rows

def test_rows_are_those_of_the_table(tmp_path):
    rows = gallery_rows(results(tmp_path))
    table = pd.read_csv(tmp_path/"out"/"explanations.csv")
    assert list(rows.recording) == list(table.recording) and set(rows.sound) == {"explanation.flac"} and set(rows.rest) == {"residual.flac"}
    np.testing.assert_allclose(rows.probability, table.probability)
    assert rows.input[4] == "../recordings/rain/004.wav" and set(rows.picture) == {"thumbnail.png"} and set(rows.report) == {"report.html"}


def test_a_table_without_sources_asks_each_explanation(tmp_path):
    a, b = gallery_rows(results(tmp_path/"a")), gallery_rows(results(tmp_path/"b", source=False))
    assert list(a.input) == list(b.input)


def test_sources_may_be_relative_to_where_the_command_ran(tmp_path, monkeypatch):
    out = results(tmp_path, 3)
    edit(out, lambda t: t.assign(source=[os.path.relpath(x, tmp_path) for x in t.source]))
    for folder in (tmp_path, tmp_path/"recordings", Path("/")):
        monkeypatch.chdir(folder)
        assert gallery_rows(out).input[0] == "../recordings/dog/000.wav"
        assert gallery_rows(os.path.relpath(out)).input[0] == "../recordings/dog/000.wav"


@pytest.mark.parametrize("name", ["50% #1?.wav", "ein Hähnchen.wav", "a b/c&d=e.wav", "x;y'z\".wav"])
def test_addresses_of_odd_names(tmp_path, name):
    out = results(tmp_path, 1)
    path = tmp_path/"recordings"/name
    path.parent.mkdir(exist_ok=True)
    save_audio(path, torch.zeros(1, 99) + .1, RATE)
    edit(out, lambda t: t.assign(source=str(path), recording=name))
    data = data_of(write_gallery(out))
    assert data["files"]["above"] == "../recordings/" and data["files"]["input"] == dict(of=[None])
    assert Gallery(out).file(0, "input")[0] == path.read_bytes()


def test_several_classes_of_one_recording(tmp_path):
    lmac, scene = LMAC.from_pretrained(), make_scene({"dog": 0, "rain": -8}, 1.)
    path = save_audio(tmp_path/"scene.wav", scene.waveform, RATE)
    found = lmac.explain(path, targets=["dog", "rain"])
    found.save(tmp_path/"out"/"scene")
    common = {k: v for k, v in found.summary().items() if k not in ("probabilities", "classes")}
    rows = [dict(recording="scene.wav", explanation="scene") | common | {k: v for k, v in row.items() if k != "files"} | dict(error="") for row in found.summary()["classes"]]
    pd.DataFrame(rows).to_csv(tmp_path/"out"/"explanations.csv", index=False)
    rows = gallery_rows(tmp_path/"out")
    assert [name.rpartition(".")[0] for name in rows.sound] == ["explanation-dog", "explanation-rain"] and [name.rpartition(".")[0] for name in rows.rest] == ["residual-dog", "residual-rain"]
    assert data_of(write_gallery(tmp_path/"out"))["n"] == 2


def test_files_that_an_explanation_names_stay_in_its_folder(tmp_path):
    out = results(tmp_path, 2)
    edit(out, lambda t: t.assign(explanation="dog/000"))
    (out/"dog"/"000"/"explanation.json").write_text(json.dumps(dict(classes=[dict(label="rain", files=["../../explanation.flac", "/etc/explanation.wav", "explanation.flac"]), "odd", dict(label=3)])))
    rows = gallery_rows(out)
    assert set(rows.sound) <= {"", "explanation.flac"}


def test_an_earlier_wav_is_not_what_is_played(tmp_path):
    out = results(tmp_path, 1)
    save_audio(out/"dog"/"000"/"explanation.wav", torch.zeros(1, 99) + .1, RATE)
    assert gallery_rows(out).sound[0] == "explanation.flac"
    (out/"dog"/"000"/"explanation.flac").unlink()
    assert gallery_rows(out).sound[0] == "explanation.wav"


def test_damaged_tables_and_other_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="explanations.csv was expected.*lmac-explain RECORDINGS --out"): write_gallery(tmp_path)
    with pytest.raises(FileNotFoundError, match="lmac-explain"): write_gallery(tmp_path/"nowhere")
    (tmp_path/"explanations.csv").write_text("name,class\na,b\n")
    with pytest.raises(ValueError, match="column 'recording'.*Found: name, class"): write_gallery(tmp_path)
    (tmp_path/"explanations.csv").write_text('recording\n"a\n')
    with pytest.raises(ValueError, match="was expected to be a table"): write_gallery(tmp_path)
    assert not (tmp_path/"index.html").exists()
    (tmp_path/"explanations.csv").write_bytes(b"recording,label\n\xff\xfe.wav,\x00\n")
    assert data_of(write_gallery(tmp_path))["n"] == 1


def test_a_page_is_written_wholly_or_not_at_all(tmp_path, monkeypatch):
    out = results(tmp_path, 2)
    before = write_gallery(out).read_bytes()
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="has room"): write_gallery(out)
    assert (out/"index.html").read_bytes() == before and not [p for p in out.iterdir() if "part" in p.name]


def test_a_hash_is_of_the_content(tmp_path):
    a, b = (data_of(write_gallery(results(tmp_path/x, 6))) for x in "ab")
    c = data_of(write_gallery(results(tmp_path/"c", 7)))
    assert a["hash"] != c["hash"] and len(a["hash"]) == 16
    edit(tmp_path/"b"/"out", lambda t: t.assign(probability="0.5"))
    assert data_of(write_gallery(tmp_path/"b"/"out"))["hash"] != b["hash"]


def decoded(data, name):
    c = data["columns"][name]
    return c["v"] if "v" in c else [c["of"][k] for k in c.get("k", [0] * data["n"])]


def test_columns_hold_what_the_table_does(tmp_path):
    out = results(tmp_path, 40, failed=[3])
    rows, data = gallery_rows(out), data_of(write_gallery(out))
    for name in data["columns"]:
        found, column = decoded(data, name), rows[name]
        if pd.api.types.is_numeric_dtype(column): np.testing.assert_allclose(np.array(found, float), column.to_numpy(float), rtol=1e-4)
        else: assert found == ["" if pd.isna(x) else x for x in column]
    assert "k" in data["columns"]["label"] and data["columns"]["threshold"] == dict(of=[None])


# the page

@pytest.fixture(scope="module")
def browser(driver):
    if CHROMIUM is None: pytest.fail("These tests need Chromium: apt install chromium, or another that is called so on the PATH.")
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def opened(browser):
    "Open a page; at the end nothing must have been complained about, but for files that the test has moved away, and no other host asked for anything"
    contexts, complaints = [], []

    def make(page, context=None, moved=False, **options):
        context = context or browser.new_context(**dict(accept_downloads=True, viewport=dict(width=1280, height=800)) | options)
        tab = context.new_page()
        contexts.append(context)
        complaints.append((watch(tab), moved))
        tab.goto(page if isinstance(page, str) else page.as_uri())
        tab.wait_for_selector(".lmac-grid")
        return tab
    yield make
    for context in contexts: context.close()
    found = [text for texts, moved in complaints for text in texts if not (moved and "ERR_FILE_NOT_FOUND" in text)]
    assert not found, found


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    "A page of twelve recordings, of which one failed"
    return write_gallery(results(tmp_path_factory.mktemp("twelve"), failed=[5]))


def state(page): return page.evaluate("document.querySelector('.lmac-gallery').lmac.state")
def shown(page): return [e.get_attribute("title") for e in page.locator(".lmac-row .lmac-file").all()]
def shown_in_order(page): return [name for _, name in sorted((int(e.get_attribute("aria-rowindex")), e.locator(".lmac-file").get_attribute("title")) for e in page.locator(".lmac-list .lmac-row").all())]
def counted(page): return page.locator(".lmac-count").inner_text()
