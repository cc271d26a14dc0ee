"""The overview: planted things are found, clean ones are not suspected, bad folders are said, and the page holds in a browser."""
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lmac.audio import make_scene, save_audio
from lmac.explain import LMAC
from lmac.listen.overview import MOST_SOUNDS, STRONG, SUSPICIONS, Overview, describe, repeats, write_overview

RATE = 16000
LABELS = ["dog", "rain", "crying_baby", "helicopter"]


def scene(label, i, duration_s=2.):
    x = make_scene({label: 0, "white_noise": -25}, duration_s + 1, seed=31 * LABELS.index(label) + i).waveform
    start = 1009 * (i * i + 5) % RATE
    return .5 * x[:, start:start + round(RATE * duration_s)]


def beep(i, n, hz=2000):
    x, at = torch.zeros(1, n), (7919 * i) % (n - 4000)
    x[0, at:at + 3000] = .1 * torch.sin(2 * torch.pi * hz / RATE * torch.arange(3000)) * torch.hann_window(3000)
    return x


def clicks(i, n):
    g, x = torch.Generator().manual_seed(i), torch.zeros(1, n)
    for at in torch.randint(0, n - 200, (4,), generator=g).tolist(): x[0, at:at + 100] += .5 * torch.randn(100, generator=g) * torch.exp(-torch.arange(100) / 16)
    return x


def write(root, parts, **more):
    "A results folder out of (label, explained, rest)"
    rows = []
    for i, (label, kept, rest) in enumerate(parts):
        place = root/f"{i:03}"
        place.mkdir(parents=True)
        gain = min(1., .98 / max(kept.abs().max().item(), rest.abs().max().item(), 1e-9))
        for name, x in (("explanation", kept), ("residual", rest)): save_audio(place/f"{name}.flac", gain * x, RATE)
        (place/"explanation.json").write_text(json.dumps(dict(label=label)))
        rows.append(dict(recording=f"sub/{i}.wav", explanation=place.name, true_label=label, predicted_label=label, label=label, probability=.9, verdict="explains", gain_db=20 * np.log10(gain), error="")
                    | {k: v[i] for k, v in more.items()})
    pd.DataFrame(rows).to_csv(root/"explanations.csv", index=False)
    return root


def clean(n=7): return [(label, scene(label, i), .01 * torch.randn(1, 32000, generator=torch.Generator().manual_seed(i))) for label in LABELS for i in range(n)]


def planted(label, what, n=7): return [(one, what(i, 32000), scene(one, i)) if one == label else (one, scene(one, i), rest) for k, (one, _, rest) in enumerate(clean(n)) for i in [k % n]]


@pytest.fixture(scope="module")
def beeping(tmp_path_factory): return write(tmp_path_factory.mktemp("results"), planted("rain", beep))


def first(overview): return overview.suspicions.iloc[0]


@pytest.mark.parametrize("what, kind, words", [(beep, "tone", "2.0 kHz"), (clicks, "moments", "clicks")])
def test_what_is_planted_comes_first(tmp_path, what, kind, words):
    found = describe(write(tmp_path, planted("rain", what)))
    top = first(found)
    assert top.label == "rain" and top.strength > STRONG and SUSPICIONS[kind] in (SUSPICIONS[top.kind], *top.also.split("; "))
    assert words in top.sentence
    assert len(found.suspicions[(found.suspicions.strength > STRONG) & (found.suspicions.label != "rain")]) == 0


def test_clean_classes_are_not_suspected(tmp_path):
    found = describe(write(tmp_path, clean()))
    assert not len(found.suspicions) or first(found).strength < STRONG
    assert "no proof" in found.sentence()


def test_strength_is_comparable():
    assert 0 == repeats(1, 1, 0, 50) < repeats(2, 2, 0, 50) < repeats(8, 8, 0, 50) < repeats(30, 30, 0, 50) < 1
    assert repeats(8, 8, 25, 50) < repeats(8, 8, 0, 50) and repeats(8, 8, 50, 50) == 0


def test_folder_and_explanations_say_the_same(tmp_path):
    explainer = LMAC.from_pretrained("esc10")
    explanations = [explainer.explain(scene(label, i, 5.), RATE) for label in ("dog", "rain") for i in range(2)]
    rows = []
    for i, ex in enumerate(explanations):
        place = tmp_path/str(i)
        place.mkdir()
        for name, x in (("explanation", ex.audio), ("residual", ex.residual)): save_audio(place/f"{name}.flac", x, RATE)
        rows.append(dict(recording=f"{i}.wav", explanation=str(i), error="") | {k: ex.summary()[k] for k in ("label", "predicted_label", "verdict", "gain_db", "probability")})
    pd.DataFrame(rows).to_csv(tmp_path/"explanations.csv", index=False)
    kept = ["level_db", "kept_db", "peak_hz", "start_s", "end_s"]
    np.testing.assert_allclose(describe(tmp_path).table[kept].to_numpy(), describe(explanations).table[kept].to_numpy(), atol=.2)
    assert isinstance(describe(explanations), Overview)


def test_levels_are_true(tmp_path):
    "What was scaled to keep peaks within ±1 is scaled back"
    parts = clean(2)
    loud, soft = write(tmp_path/"loud", [(label, 3 * a, 3 * b) for label, a, b in parts]), write(tmp_path/"soft", parts)
    np.testing.assert_allclose((describe(loud).table.level_db - describe(soft).table.level_db).to_numpy(), 20 * np.log10(3), atol=.1)


def test_several_classes_in_one_folder(tmp_path):
    place = tmp_path/"one"
    place.mkdir()
    for label in LABELS[:2]:
        save_audio(place/f"explanation-{label}.flac", scene(label, 0), RATE)
        save_audio(place/f"residual-{label}.flac", 0 * scene(label, 0), RATE)
    classes = [dict(label=label, files=[f"explanation-{label}.wav", f"residual-{label}.wav", f"mask-{label}.png"]) for label in LABELS[:2]]
    (place/"explanation.json").write_text(json.dumps(dict(source="x.wav", classes=classes)))
    found = describe(tmp_path)   # without a table, what stands in the folders
    assert sorted(found.table.label) == sorted(LABELS[:2]) and found.table.level_db.nunique() == 2
    assert "explanation-dog.flac" in found.table.sound[found.table.label == "dog"].iloc[0]


def test_a_folder_without_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="no explanations.csv. Make them with: lmac-explain"): write_overview(tmp_path)
    with pytest.raises(FileNotFoundError): describe(tmp_path/"nowhere")
    (tmp_path/"explanations.csv").write_text("")
    with pytest.raises(ValueError, match="a table that lmac-explain wrote"): describe(tmp_path)


def test_nothing_but_failures(tmp_path):
    pd.DataFrame([dict(recording="a.wav", explanation="", error="it holds no samples", label="")]).to_csv(tmp_path/"explanations.csv", index=False)
    with pytest.raises(ValueError, match=r"Found: none. a.wav was not explained: it holds no samples"): describe(tmp_path)


def test_silence_moved_sounds_and_damage_are_said(tmp_path):
    root = write(tmp_path, [*clean(2), ("dog", torch.zeros(1, 32000), scene("dog", 0))])
    (root/"000"/"explanation.flac").unlink()
    (root/"001"/"residual.flac").write_bytes(b"no sound")
    found = describe(root)
    assert len(found.table) == 6 and len(found.problems) == 3 and any("explanation is silent" in p for p in found.problems)
    assert "3 without a sound to describe" in found.page()


def test_few_and_one_class_only(tmp_path):
    found = describe(write(tmp_path, [("dog", scene("dog", i), beep(i, 32000)) for i in range(3)]))
    assert found.table.cluster.tolist() == [1, 1, 1] and "3 explanations are too few to cluster" in found.page()
    one = describe(write(tmp_path/"one", [("dog", scene("dog", 0), beep(0, 32000))]))
    assert not len(one.suspicions) and "Nothing repeats" in one.page()


def test_lengths_and_rates_differ(tmp_path):
    parts = [(label, scene(label, i, .3 + i), .01 * scene("rain", i, .3 + i)) for label in LABELS[:2] for i in range(4)]
    root = write(tmp_path, parts)
    save_audio(root/"000"/"explanation.flac", torch.randn(1, 200) * .1, 8000)
    save_audio(root/"000"/"residual.flac", torch.randn(1, 200) * .1, 8000)
    found = describe(root)
    assert len(found.table) == 8 and found.table.duration_s.min() < .03 and np.isfinite(found.profiles).all()
    assert found.page().count("<svg") >= 4


def test_large_classes(tmp_path):
    "Of a large class some sounds are compared, and all are counted"
    tick = torch.zeros(1, 3200)
    tick[0, 500:900] = torch.randn(400, generator=torch.Generator().manual_seed(9)) * .3
    parts = [("rain", tick + .002 * torch.randn(1, 3200), scene("rain", i % 20, .2)) for i in range(MOST_SOUNDS + 30)] + [("dog", scene("dog", i, .2), .1 * tick) for i in range(9)]
    found = describe(write(tmp_path, parts))
    same = found.suspicions[found.suspicions.label == "rain"].iloc[0]
    assert len(found.table) == MOST_SOUNDS + 39 and same.strength > .9
    assert found.clusters[found.clusters.label == "rain"]["size"].sum() == MOST_SOUNDS + 30


def test_wrong_decisions_are_a_suspicion(tmp_path):
    parts = clean(8)
    wrong = [{"rain": "dog"}.get(label, label) for label, *_ in parts]
    found = describe(write(tmp_path, parts, true_label=wrong))
    rain = found.suspicions[(found.suspicions.label == "rain") & (found.suspicions.kind == "wrong")].iloc[0]
    assert rain.strength > STRONG and "8 of 8 explanations of 'rain' are of decisions that are wrong" in rain.sentence
    assert (found.clusters.accuracy[found.clusters.label == "rain"] == 0).all() and "wrong: it is dog" in found.page()


def test_it_is_the_same_every_time(beeping):
    a, b = describe(beeping), describe(beeping)
    pd.testing.assert_frame_equal(a.suspicions, b.suspicions)
    pd.testing.assert_frame_equal(a.clusters, b.clusters)


def test_without_scikit_learn(beeping, monkeypatch):
    for name in ("sklearn.cluster", "sklearn.decomposition"): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'lmac\[listen\]'"): describe(beeping)


def test_links_from_another_folder(beeping, tmp_path):
    page = write_overview(beeping, tmp_path/"elsewhere.html")
    links = re.findall(r'src="([^"]+)"', page.read_text())
    assert links and all((page.parent/link).is_file() for link in links)


HOSTILE = '<img src=x onerror="alert(1)">&amp;\'" #?%41 é'


def test_the_page_in_a_browser(tmp_path, new_overview_page):
    root = write(tmp_path/"a #1 %41", planted("rain", beep), label=[HOSTILE if label == "rain" else label for label, *_ in planted("rain", beep)])
    table = pd.read_csv(root/"explanations.csv", dtype=str).assign(recording=HOSTILE)
    table.to_csv(root/"explanations.csv", index=False)
    page = new_overview_page(write_overview(root).as_uri())
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert HOSTILE in page.inner_text("h2 >> nth=1") or HOSTILE in page.inner_text("main")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    loaded = page.evaluate("async () => { const a = document.querySelector('audio'); a.load(); return await new Promise(done => { a.oncanplay = () => done(a.duration); a.onerror = () => done(-1); a.preload = 'auto' }) }")
    assert abs(loaded - 2) < .1


@pytest.fixture
def new_overview_page(driver):
    "Open a page 400 pixels wide, light and dark; at the end axe-core must find nothing, and nothing must have been complained about"
    from axe_playwright_python.sync_playwright import Axe
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"docs"))
    from check_site import CHROMIUM, FLAGS, watch
    if CHROMIUM is None: pytest.fail("This test needs Chromium: apt install chromium, or another that is called so on the PATH.")
    browser, pages = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS), []

    def make(url):
        for scheme in ("light", "dark"):
            page = browser.new_context(viewport=dict(width=400, height=900), color_scheme=scheme).new_page()
            pages.append((page, watch(page)))
            page.goto(url)
        return page
    yield make
    for page, complaints in pages: assert not Axe().run(page).response["violations"] and not complaints
    browser.close()
