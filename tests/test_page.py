"""The page on which a visitor drops a recording, in headless Chromium: what it says and plays is what Python says and plays; and whoever errs is told what to do.

What it needs is built by `npm ci --prefix docs/try_it && python docs/page.py`; where that was not done it is done here, and without npm these tests are skipped. `.ci/run` builds it.
"""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lmac.audio import make_scene, save_audio
from lmac.explain import LMAC

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from check_site import CHROMIUM, FLAGS, WIDTH, serious, watch  # noqa: E402

pytest.importorskip("onnxruntime")
from lmac.listen.page import PAGE, POLICY, is_built, page_words, served_page  # noqa: E402


@pytest.fixture(scope="session")
def built(once):
    def make(folder):
        if is_built() and json.loads((PAGE/"vendor"/"words.json").read_text()) == page_words(): return
        if not shutil.which("npm"): return
        subprocess.run(["npm", "ci", "--prefix", ROOT/"docs"/"try_it", "--ignore-scripts"], check=True)
        subprocess.run([sys.executable, ROOT/"docs"/"page.py", "--again"], check=True)
    once("try_it", make)
    if not is_built(): pytest.skip("The page is built with npm, which is not here.")


@pytest.fixture(scope="session")
def address(built):
    with served_page() as address: yield address


@pytest.fixture(scope="session")
def lmac(): return LMAC.from_pretrained()


class Visit:
    "A page, and what a visitor does"
    def __init__(self, page, address):
        self.page, self.complaints = page, watch(page)
        page.goto(address)
        self.wait("ready")

    def wait(self, *states): self.page.wait_for_selector(", ".join(f"body[data-state={s}]" for s in states) + ", #error:not([hidden])", timeout=90_000)
    def drop(self, file):
        self.page.evaluate("document.body.dataset.state = 'asked'")
        self.page.set_input_files("#file", file)
        self.wait("judged", "adopted")
    @property
    def error(self): return self.page.inner_text("#error") if self.page.is_visible("#error") else ""
    @property
    def says(self): return self.page.inner_text(".lmac-says")
    def heard(self):
        "What was explained, as arrays"
        found = self.page.evaluate("({ p: [...lmacTryIt.answer.p], target: lmacTryIt.answer.target, ...Object.fromEntries(Object.entries(lmacTryIt.answer.raw).map(([k, x]) => [k, [...x]])), found: lmacTryIt.judged.found })")
        return {k: np.asarray(x, np.float32) if isinstance(x, list) else x for k, x in found.items()}


@pytest.fixture
def visit(browser, address):
    "Open the page; at the end nothing must have been complained about, and no other host asked for anything"
    contexts, visits = [], []

    def make(url=address, **options):
        contexts.append(browser.new_context(accept_downloads=True, **options))
        visits.append(Visit(contexts[-1].new_page(), url))
        return visits[-1]
    yield make
    for context in contexts: context.close()
    assert not any(v.complaints for v in visits), [v.complaints for v in visits]


def as_python(lmac, heard, threshold=None):
    "Compare with PyTorch on the very samples that the page explained"
    want = lmac.masked_parts(torch.from_numpy(heard["input"])[None], target=heard["target"], threshold=threshold)
    assert np.abs(heard["p"] - want["probabilities"][0].numpy()).max() < 1e-4
    gain = 1 / max(1., want["audio_in"].abs().max().item(), want["audio_out"].abs().max().item())
    for name, part in (("inside", "audio_in"), ("outside", "audio_out")):
        differ, whole = heard[name] - gain * want[part][0].numpy(), max((want["audio_in"]**2).sum().item() + (want["audio_out"]**2).sum().item(), 1e-12)
        assert 10 * np.log10((differ**2).sum() / whole + 1e-20) < -60, name
    assert abs(heard["found"]["p_in"] - want["probabilities_in"][0, heard["target"]].item()) < 1e-4
    assert abs(heard["found"]["kept"] - want["mask"][0, :, :1 + len(heard["input"]) // 256].mean().item()) < 1e-3


RECORDINGS = {
    "44.1 kHz, stereo": lambda: (torch.cat([make_scene({"dog": 0, "rain": -8}, 4., 44100).waveform, .5 * make_scene({"dog": 0, "rain": -8}, 4., 44100).waveform]), 44100),
    "8 kHz": lambda: (make_scene({"clock_tick": 0}, 3., 8000).waveform, 8000),
    "half a minute": lambda: (torch.cat([make_scene({name: 0}, 15.).waveform for name in ("rooster", "rain")], 1), 16000),
}


@pytest.mark.parametrize("kind", RECORDINGS)
def test_a_recording_is_explained_as_in_python(visit, lmac, tmp_path, kind):
    sound, rate = RECORDINGS[kind]()
    file = save_audio(tmp_path/"sound.wav", sound / sound.abs().max(), rate)
    v = visit()
    v.drop(file)
    assert not v.error
    heard, ex = v.heard(), lmac.explain(file)
    as_python(lmac, heard)
    assert lmac.labels[heard["target"]] == ex.label
    assert abs(heard["p"][heard["target"]] - ex.probability) < .05   # a browser resamples with a filter of its own
    assert re.sub(r"\d\.\d\d|\d+%", "N", v.says) == re.sub(r"\d\.\d\d|\d+%", "N", ex.sentence())
    assert abs(heard["found"]["p_heard"] - ex.probability_heard) < .05


def test_silence_and_what_is_no_sound(visit, tmp_path):
    v = visit()
    v.drop(save_audio(tmp_path/"silence.wav", torch.zeros(1, 32000), 16000))
    assert v.says.startswith("The recording is silent.") and not v.error
    broken = tmp_path/"broken.flac"
    broken.write_bytes(b"fLaC" + bytes(range(256)) * 20)
    v.drop(broken)
    assert "could not be read as sound" in v.error and "ffmpeg" in v.error
    v.drop(save_audio(tmp_path/"dog.wav", make_scene({"dog": 0}, 1.).waveform, 16000))
    assert not v.error and "'dog'" in v.says   # and goes on


def test_classes_threshold_and_a_link_that_keeps_them(visit, lmac, address):
    v = visit()
    v.page.click("#scenes button")
    v.wait("judged")
    assert "'dog'" in v.says
    v.page.evaluate("document.body.dataset.state = 'asked'")
    v.page.click("#classes button:has-text('rain')") if v.page.locator("#classes button:has-text('rain')").count() else v.page.click("#classes button >> nth=1")
    v.wait("judged")
    heard = v.heard()
    assert f"This explains '{lmac.labels[heard['target']]}'" in v.says
    as_python(lmac, heard)
    v.page.evaluate("document.body.dataset.state = 'asked'")
    v.page.click("#soft")
    v.wait("judged")
    as_python(lmac, v.heard(), threshold=.5)
    v.page.click("#link")
    assert "scene=dog-rain" in v.page.url and "threshold=0.5" in v.page.url
    again = visit(v.page.url)
    again.wait("judged")
    assert again.says == v.says and again.heard()["target"] == heard["target"]


def test_what_it_plays_is_what_it_explained(visit, lmac):
    v = visit()
    v.page.click("#scenes button >> nth=1")
    v.wait("judged")
    heard = v.heard()
    played = v.page.evaluate("(async () => { const p = document.querySelector('.lmac-player').lmac; await p.decode(); return p.buffers.map((b) => [...b.getChannelData(0)]) })()")
    for sound, name in zip(played, ("input", "inside", "outside")): np.testing.assert_allclose(np.float32(sound), heard[name], atol=1e-6)
    with v.page.expect_download() as download: v.page.click(".lmac-tools button:has-text('Download')")
    assert download.value.suggested_filename == "explanation.wav"


def test_by_keyboard_alone(visit):
    v = visit()
    for _ in range(30):
        v.page.keyboard.press("Tab")
        if v.page.evaluate("document.activeElement.closest('#scenes') !== null"): break
    v.page.keyboard.press("Enter")
    v.wait("judged")
    for _ in range(30):
        v.page.keyboard.press("Tab")
        if v.page.evaluate("document.activeElement.closest('#classes') !== null && document.activeElement.getAttribute('aria-pressed') === 'false'"): break
    v.page.evaluate("document.body.dataset.state = 'asked'")
    v.page.keyboard.press("Enter")
    v.wait("judged")
    assert "This explains" in v.says
    assert v.page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"   # the focus stays where it was
    for _ in range(30):
        v.page.keyboard.press("Tab")
        if v.page.evaluate("document.activeElement.classList.contains('lmac-view')"): break
    v.page.keyboard.press("3")
    assert v.page.evaluate("document.querySelector('.lmac-player').lmac.state.name") == "Residual"
    v.page.keyboard.press("Space")
    v.page.wait_for_selector(".lmac-player[data-state=playing]")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_and_everybody(visit, scheme):
    v = visit(viewport=dict(width=WIDTH, height=800), color_scheme=scheme)
    for step in ("#scenes button", None):
        assert v.page.evaluate("document.documentElement.scrollWidth") <= WIDTH
        assert not serious(v.page)
        if step: v.page.click(step); v.wait("judged")


def test_without_a_network_after_the_first_visit(visit):
    v = visit()
    v.page.click("#scenes button")
    v.wait("judged")
    before = v.says
    v.page.context.set_offline(True)
    v.page.reload()
    v.wait("ready")
    v.page.click("#scenes button")
    v.wait("judged")
    assert v.says == before and not v.error
    v.page.click("#scenes button >> nth=2")
    v.wait("judged")
    assert not v.error


def test_an_explainer_of_ones_own_and_files_that_are_none(visit, tmp_path, explainer, lmac):
    v = visit()
    junk = tmp_path/"junk.onnx"
    junk.write_bytes(bytes(range(256)) * 10)
    v.drop(junk)
    assert "lmac-export EXPLAINER" in v.error
    own = explainer.export_onnx(tmp_path/"own.onnx")
    damaged = bytearray(own.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path/"damaged.onnx").write_bytes(damaged)
    v.drop(tmp_path/"damaged.onnx")
    assert "is damaged" in v.error
    v.drop(own)
    assert not v.error and "own.onnx explains from now on" in v.page.inner_text("#status")
    v.drop(save_audio(tmp_path/"rain.wav", make_scene({"rain": 0}, 1.).waveform, 16000))
    heard = v.heard()
    want = explainer.masked_parts(torch.from_numpy(heard["input"])[None], target=heard["target"])
    assert len(heard["p"]) == 2 and np.abs(heard["p"] - want["probabilities"][0].numpy()).max() < 1e-4
    assert np.abs(heard["inside"] - want["audio_in"][0].numpy()).max() < 1e-3
    assert "2 classes" in v.page.inner_text("#about")


def test_a_long_recording_minute_by_minute(visit, tmp_path):
    sound = torch.cat([make_scene({name: 0}, 14., seed=i).waveform for i, name in enumerate(("dog", "rain", "dog", "rain", "dog"))], 1)
    v = visit()
    v.drop(save_audio(tmp_path/"long.flac", sound, 16000))
    assert "the first 60 s of 70 s" in v.page.inner_text("#status") and "windows of 30 s" in v.says
    v.page.evaluate("document.body.dataset.state = 'asked'")
    v.page.click("#more")
    v.wait("judged")
    assert len(v.heard()["input"]) == sound.shape[1] and not v.page.is_visible("#more")


def test_a_microphone_that_is_not_allowed(visit):
    v = visit()
    v.page.click("#record")
    v.page.wait_for_selector("#error:not([hidden])")
    assert "choose a file" in v.error
    v.page.evaluate("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    v.page.click("#record")
    assert "https" in v.error


def test_a_recording_of_ones_own(driver, address):
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"])
    try:
        v = Visit(browser.new_context(permissions=["microphone"]).new_page(), address)
        v.page.click("#record")
        v.page.wait_for_selector("#status:has-text('Recording, 1')", timeout=20_000)
        v.page.click("#record")
        v.wait("judged")
        assert not v.error and len(v.heard()["input"]) > 8000 and v.heard()["input"].any()
        assert not v.complaints
    finally: browser.close()


def test_nothing_is_loaded_before_it_is_asked_for_and_no_more_than_fifteen_megabytes(browser, address):
    context = browser.new_context()
    page, sizes = context.new_page(), {}
    page.on("response", lambda r: sizes.update({r.url: int(r.headers.get("content-length", 0))}))
    v = Visit(page, address)
    assert sum(sizes.values()) < 2e5
    page.click("#scenes button")
    v.wait("judged")
    assert sum(sizes.values()) < 15e6, sizes
    assert page.request.get(address).headers["content-security-policy"] == POLICY
    context.close()


def test_the_policy_is_the_same_in_the_page():
    said = re.search(r'Content-Security-Policy" content="([^"]+)"', (PAGE/"index.html").read_text())[1]
    assert POLICY.startswith(said) and not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", (PAGE/"index.html").read_text())


ARITHMETIC = """
import { STFT, remask, stretches, joined, metadata, verdict } from '%s'
import { readFileSync } from 'node:fs'
const given = JSON.parse(readFileSync(0)), found = {}
for (const [name, settings] of Object.entries(given.settings)) {
  const stft = new STFT(settings), { re, im, count } = stft.analyse(given.x)
  found[name] = { re: [...re], im: [...im], count, back: [...stft.synthesise(re, im, given.x.length)] }
}
found.parts = Object.fromEntries(['log1p', 'decibel'].map((domain) => {
  const stft = new STFT(given.settings.power), spectrum = stft.analyse(given.x)
  return [domain, remask(stft, spectrum, given.mask, 0.5, domain, given.x.length).map((x) => [...x])]
}))
found.stretches = given.lengths.map((n) => stretches(n, 480, 80))
console.log(JSON.stringify(found))
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_the_arithmetic_of_the_page_is_that_of_the_library(tmp_path):
    from lmac.masking import apply_mask
    from lmac.scale.export import _stretches
    from lmac.spectrogram import STFT
    settings = dict(power=dict(n_fft=512, hop_length=128), speech=dict(n_fft=400, hop_length=160), padded=dict(n_fft=512, hop_length=160, win_length=400, window="hamming"), mirrored=dict(n_fft=256, hop_length=64, pad_mode="reflect"), odd=dict(n_fft=441, hop_length=147))
    x, lengths = torch.randn(3001), [10, 480, 481, 600, 959, 960, 1000]
    stft = STFT(**settings["power"])
    magnitude, phase = stft(x)
    mask = torch.rand(magnitude.shape)
    (tmp_path/"run.mjs").write_text(ARITHMETIC % (PAGE/"explain.mjs").as_uri())
    done = subprocess.run(["node", tmp_path/"run.mjs"], input=json.dumps(dict(settings=settings, x=x.tolist(), lengths=lengths, mask=mask.flatten().tolist())), capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    for name, kwargs in settings.items():
        want = STFT(**kwargs).analyse(x)
        got = torch.complex(*(torch.tensor(found[name][k]).view(-1, want.shape[0]).T.contiguous() for k in ("re", "im")))
        torch.testing.assert_close(got, want, atol=2e-4, rtol=0, msg=name)
        torch.testing.assert_close(torch.tensor(found[name]["back"]), x, atol=1e-5, rtol=0, msg=name)
    for domain, parts in found["parts"].items():   # rounded, as by the slider
        for got, keep in zip(parts, (mask > .5, mask <= .5)):
            want = stft.inverse(apply_mask(magnitude, keep.float(), domain), phase, stft.hop_length * (magnitude.shape[-1] - 1))[:len(x)]
            torch.testing.assert_close(torch.tensor(got), want, atol=1e-4, rtol=0, msg=domain)
    assert [[list(p) for p in _stretches(n, 480, 80)] for n in lengths] == found["stretches"]


def test_from_a_shell(built, capsys, tmp_path, explainer):
    import socket
    import urllib.request

    from lmac.cli import lmac_serve
    lmac_serve(port=0, seconds=.1)
    assert re.match(r"http://127\.0\.0\.1:\d+/", capsys.readouterr().out)
    with pytest.raises(SystemExit): lmac_serve(explainer=str(tmp_path/"nowhere.onnx"), port=0, seconds=.1)
    assert "nowhere.onnx" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(SystemExit): lmac_serve(port=taken.getsockname()[1], seconds=.1)
    assert "lmac-serve: error:" in capsys.readouterr().err
    own = explainer.export_onnx(tmp_path/"own.onnx")
    with served_page(own) as address, served_page() as bundled:   # another explainer, another version, so that no browser keeps the old one
        versions = [urllib.request.urlopen(f"{where}vendor/version.js").read() for where in (address, bundled)]
        assert versions[0] != versions[1] and urllib.request.urlopen(f"{address}vendor/explainer.onnx").read() == own.read_bytes()
