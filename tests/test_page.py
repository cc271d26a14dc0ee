"""The page on which a visitor drops a recording, in headless Chromium: what it says and plays is what Python says and plays; and whoever errs is told what to do.

What it needs is built by `npm ci --prefix docs/try_it && python docs/page.py`; where that was not done it is done here, and without npm these tests are skipped. `.ci/run` builds it.
"""
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lmac.audio import make_scene, save_audio
from lmac.classifier import TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.spectrogram import STFT, LogMel

from conftest import LABELS, Small

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/"docs"))
from check_site import CHROMIUM, FLAGS, WIDTH, serious, watch  # noqa: E402

pytest.importorskip("onnxruntime")
from lmac.listen.page import PAGE, POLICY, PageHandler, is_built, page_words, served_page, version_script  # noqa: E402


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


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    "`sound(name, seconds, levels)`: a file of a synthetic scene"
    folder = tmp_path_factory.mktemp("sounds")
    def make(name, seconds, levels):
        if not (folder/name).exists():
            x = make_scene(levels, seconds).waveform
            save_audio(folder/name, x / x.abs().max(), 16000)
        return folder/name
    return make


@pytest.fixture(scope="module")
def own(tmp_path_factory, explainer):
    "`own(name, change, **about)`: a small explainer, with something else in its metadata, or in its graph after `change(graph)`"
    import onnx

    from lmac.scale.export import with_checksum
    folder = tmp_path_factory.mktemp("own")
    model = onnx.load(explainer.export_onnx(folder/"own.onnx"))
    given = {p.key: json.loads(p.value) for p in model.metadata_props if p.key != "sha256"}
    def make(name="own.onnx", change=None, **about):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        onnx.helper.set_model_props(other, {k: json.dumps(v) for k, v in (given | about).items()})
        if change: change(other.graph)
        (folder/name).write_bytes(with_checksum(other.SerializeToString()))
        return folder/name
    return make


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
    def until(self, said, seconds=60):
        "Wait for an expression to be true, which the page's policy lets nobody evaluate in the page itself"
        end = time.monotonic() + seconds
        while not self.page.evaluate(said):
            assert time.monotonic() < end, (said, self.page.inner_text("main"))
            time.sleep(.02)
    @property
    def title(self): return self.page.inner_text(".lmac-title")
    @property
    def note(self): return self.page.inner_text("#note")
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


def test_only_what_was_asked_for_last_is_explained(visit, sound, tmp_path):
    v, dog, rooster = visit(), sound("dog.wav", 1., {"dog": 0}), sound("rooster.wav", 12., {"rooster": 0})
    v.drop(dog)
    v.page.set_input_files("#file", str(rooster))
    v.until("document.querySelector('#status').textContent.startsWith('Explaining') && lmacTryIt.wanted.name == 'rooster.wav'")
    v.page.click("#soft")   # while another recording is computed
    v.until("document.body.dataset.state == 'judged' && lmacTryIt.answer.threshold === .5")
    assert "rooster.wav" in v.title and len(v.heard()["input"]) == 192_000 and not v.page.is_checked("#soft")
    v.page.set_input_files("#file", str(dog))
    v.page.set_input_files("#file", str(rooster))
    v.page.set_input_files("#file", str(dog))
    v.until("document.body.dataset.state == 'judged' && lmacTryIt.shown.name == 'dog.wav' && lmacTryIt.answer.raw.input.length == 16000")
    # a file that is broken, while another recording is computed, and one that holds no numbers: what was asked before is shown, and can be used
    broken, holes = tmp_path/"broken.wav", tmp_path/"holes.wav"
    soundfile.write(holes, np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    broken.write_bytes(b"RIFF" + bytes(range(200)))
    v.page.set_input_files("#file", str(rooster))
    v.until("lmacTryIt.asked.name == 'rooster.wav'")
    v.page.set_input_files("#file", str(broken))
    v.page.wait_for_selector("#error:not([hidden])")
    assert "broken.wav could not be read" in v.error
    v.until("document.body.dataset.state == 'judged' && lmacTryIt.shown.name == 'rooster.wav'")
    v.drop(holes)
    assert "no numbers" in v.error and "rooster.wav" in v.title and v.page.get_attribute("body", "data-state") == "judged"
    for k in (1, 2): v.page.click(f"#classes button >> nth={k}")   # of two, the last
    wanted = v.page.evaluate("lmacTryIt.wanted.target")
    v.until("document.body.dataset.state == 'judged'")
    heard = v.heard()
    assert heard["target"] == wanted and "NaN" not in v.says and len(heard["input"]) == 192_000 and not v.error


def test_what_is_loaded_can_be_interrupted(visit, sound, own):
    "Another explainer while one is loaded, and another runtime; files of the page that come at the second try"
    v, dog = visit(), sound("dog.wav", 1., {"dog": 0})
    v.page.add_init_script("Object.defineProperty(Navigator.prototype, 'gpu', { get: () => ({ requestAdapter: async () => ({}) }) })")   # which the worker has not
    v.page.reload()
    v.page.click("#scenes button")
    time.sleep(.1)
    v.drop(str(own()))
    assert v.page.get_attribute("body", "data-state") == "adopted" and not v.error
    v.drop(dog)
    assert v.page.inner_text("#about").startswith("own.onnx: 2 classes") and len(v.heard()["p"]) == 2
    v.page.evaluate("document.body.dataset.state = 'asked'")
    v.page.click("#gpu")
    v.page.click("#classes button >> nth=1")   # at once
    v.wait("judged")
    assert v.page.inner_text("#about").startswith("own.onnx: 2 classes") and len(v.heard()["p"]) == 2 and "This explains" in v.says
    for name in ("ort.wasm.gz", "worker.mjs"):
        v = visit(service_workers="block")
        v.page.context.route(f"**/{name}", lambda route: route.abort(), times=1)
        v.page.set_input_files("#file", str(dog))
        v.page.wait_for_selector("#error:not([hidden])")
        assert v.page.get_attribute("body", "data-state") == "ready"
        v.drop(dog)
        assert not v.error and "'dog'" in v.says
        v.complaints[:] = [c for c in v.complaints if "net::ERR_FAILED" not in c]


def test_links_that_ask_for_something_else(visit, address, sound):
    v = visit(f"{address}#class=rain&threshold=0.7")
    v.drop(sound("dog.wav", 1., {"dog": 0}))
    assert "This explains 'rain'" in v.says and v.page.evaluate("lmacTryIt.answer.threshold") == .7 and not v.page.is_checked("#soft") and not v.note
    v.drop(sound("dog.wav", 1., {"dog": 0}))   # of the first recording alone
    assert "This explains" not in v.says and v.page.evaluate("lmacTryIt.answer.threshold") is None
    v = visit(f"{address}#scene=__proto__&threshold=abc")
    assert "no scene '__proto__'" in v.note and "no number: 'abc'" in v.note and not v.error
    v.drop(sound("dog.wav", 1., {"dog": 0}))
    assert v.page.evaluate("lmacTryIt.answer.threshold") is None
    v = visit(f"{address}#scene=dog-rain&threshold=7&class=Nobody")
    v.wait("judged")
    assert v.page.evaluate("lmacTryIt.answer.threshold") == 1 and "no class 'Nobody'" in v.note and "'dog'" in v.says


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


def test_waveforms_are_rounded_as_well(visit, sound, tmp_path):
    "Of an explainer in the time domain, whose soft explanations are waveforms, a threshold makes masks of the input's spectrogram"
    separates = LMAC.from_pretrained("esc10-time-domain")
    v = visit()
    v.drop(separates.export_onnx(tmp_path/"time_domain.onnx"))
    v.drop(sound("dog and rain.wav", 5, {"dog": 0, "rain": -8}))
    as_python(separates, v.heard())
    v.page.evaluate("document.body.dataset.state = 'asked'")
    v.page.click("#soft")
    v.wait("judged")
    assert v.page.evaluate("lmacTryIt.answer.threshold") == .5
    as_python(separates, v.heard(), .5)


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


@contextmanager
def publishing(**instead):
    "Serve the page from one address, and change what is served there"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(PageHandler, directory=str(PAGE), instead=instead))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/", instead
    finally: server.shutdown(); server.server_close()


def test_a_new_version_is_taken_and_mixes_with_no_old_one(visit, sound, own):
    dog, script = sound("dog.wav", 1., {"dog": 0}), "vendor/version.js"
    with publishing(**{script: version_script(PAGE/"vendor"), "favicon.ico": b""}) as (address, instead):
        v = visit(address)
        cdp = v.page.context.new_cdp_session(v.page)
        v.drop(dog)
        assert "ESC-10" in v.page.inner_text("#about") and v.page.evaluate("navigator.serviceWorker.controller !== null")
        old = v.page.context.new_page()   # stays open
        old.goto(address)
        for name, said, other in (("try_it.mjs", "heard: (answer)", "listened: (answer)"), ("worker.mjs", "say('heard'", "say('listened'")):
            text = (PAGE/name).read_text()
            assert said in text
            instead[name] = text.replace(said, other).encode()
        instead[script] = b"self.VERSION = 'another'\n"
        old.set_input_files("#file", str(dog))   # the old page, with what it has; or it says that it is old
        old.wait_for_selector("body[data-state=judged], #error:not([hidden])")
        if old.is_visible("#error"): assert "new version" in old.inner_text("#error")
        v.page.goto("about:blank")
        v.page.goto(address)
        v.drop(dog)
        assert not v.error and "'dog'" in v.says and v.page.evaluate("VERSION") == "another"
        old.close()
        instead.clear()   # at the same address, an explainer of one's own
        instead |= {script: version_script(PAGE/"vendor", own()), "vendor/explainer.onnx": own().read_bytes(), "favicon.ico": b""}
        v.page.goto("about:blank")
        v.page.goto(address)
        v.drop(dog)
        about = v.page.inner_text("#about")
        assert "2 classes" in about and "ESC-10" not in about and not v.error
        cdp.send("Storage.overrideQuotaForOrigin", dict(origin=address.rstrip("/"), quotaSize=1000))   # no room
        instead[script] = b"self.VERSION = 'without room'\n"
        v.page.goto("about:blank")
        v.page.goto(address)
        v.drop(dog)
        assert not v.error and v.says
        assert all("quota" in c.lower() for c in v.complaints)
        v.complaints.clear()


def test_what_an_explainer_says_of_itself(visit, own, sound):
    "Not trained; hears padding; for clips of one length; names that are long; a graph that fails"
    from onnx import TensorProto, helper
    def counts(graph):   # gives the residual as many times as large as the clip is long, in thousands of samples
        for node in graph.node:
            for i, name in enumerate(node.output):
                if name == "masked_out": node.output[i] = "raw_out"
            for i, name in enumerate(node.input):
                if name == "masked_out": node.input[i] = "raw_out"
        graph.input.append(helper.make_tensor_value_info("n_samples", TensorProto.INT64, []))
        graph.initializer.append(helper.make_tensor("thousands", TensorProto.FLOAT, [], [1e-6]))
        graph.node.extend([helper.make_node("Cast", ["n_samples"], ["n_float"], to=TensorProto.FLOAT), helper.make_node("Mul", ["n_float", "thousands"], ["share"]), helper.make_node("Mul", ["raw_out", "share"], ["masked_out"])])
    v, dog = visit(viewport=dict(width=WIDTH, height=800)), sound("dog.wav", 1., {"dog": 0})
    v.drop(str(own()))
    v.drop(dog)
    plain = v.heard()
    v.drop(str(own("counts.onnx", counts, untrained=True, padded_s=2.5, labels=["x" * 120, "siren"])))
    assert "not trained" in v.page.inner_text("#status") and "not trained" in v.page.inner_text("#about")
    v.drop(dog)
    heard = v.heard()
    np.testing.assert_allclose(heard["outside"], 16000e-6 * plain["outside"], atol=1e-5)
    assert "masks mean nothing" in v.says and "1.5 s of padding" in v.says and v.page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    v.drop(str(own("fixed.onnx", counts, length=12000)))
    v.drop(dog)   # in two stretches, each with its own number
    heard = v.heard()
    assert "windows of 0.75 s" in v.says and len(heard["outside"]) == 16000
    v.drop(sound("short.wav", .5, {"dog": 0}))
    assert "windows" not in v.says and not v.error
    def fails(graph): graph.input.append(helper.make_tensor_value_info("something", TensorProto.FLOAT, []))
    v.drop(str(own("fails.onnx", fails)))
    v.drop(dog)
    assert v.error.startswith("This explainer could not be computed for this recording") and v.page.get_attribute("body", "data-state") == "ready"
    v.drop(str(own()))
    v.drop(dog)
    assert not v.error and v.says


def test_long_recordings_fit_into_the_page(visit, own, sound, tmp_path_factory):
    "Pictures that every browser can draw, and no speed that takes long to be resampled"
    file = tmp_path_factory.mktemp("fine")/"fine.onnx"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(64, 32)
        classifier = TappedClassifier(Small(), LogMel(n_fft=64, n_mels=8), ["a", "b"], LABELS, 16000, "freq_time", 0.4)
        LMAC(classifier, MaskDecoder.for_classifier(classifier, stft), stft).export_onnx(file)
    v = visit()
    v.drop(file)
    v.drop(sound("minute.wav", 45., {"dog": 0}))
    assert v.page.evaluate("[...document.querySelectorAll('.lmac-picture img')].map((x) => x.naturalWidth)") == [16384, 16384]
    assert v.page.evaluate("[...document.querySelectorAll('.lmac-speeds option')].map((o) => +o.value)") == [.5, 1, 2, 4, 8, 16] and "2 times slower at most" in v.page.inner_text("#status")
    v.drop(sound("dog.wav", 1., {"dog": 0}))
    assert v.page.evaluate("[...document.querySelectorAll('.lmac-speeds option')].map((o) => +o.value)")[0] == .05 and "slower" not in v.page.inner_text("#status")


def test_another_recording_starts_anew_and_long_names_wrap(visit, sound):
    v = visit()
    v.page.focus("#scenes button")
    v.page.keyboard.press("Enter")
    v.wait("judged")
    assert "Space plays" in v.page.inner_text("#status")
    v.page.keyboard.press("Space")
    v.page.wait_for_selector(".lmac-player[data-state=playing]")
    v.page.evaluate("document.querySelector('.lmac-player').lmac.setLoop([2, 4])")
    v.page.click("#classes button >> nth=1")   # of the same recording: goes on
    v.until("document.body.dataset.state == 'judged' && lmacTryIt.answer.target === lmacTryIt.wanted.target")
    assert v.page.evaluate("document.querySelector('.lmac-player').lmac.state.loop") == [2, 4] and "Space" not in v.page.inner_text("#status")
    for width in (1200, WIDTH):
        v.page.set_viewport_size(dict(width=width, height=800))
        v.drop(sound(f"{'n' * 200}.wav", 1., {"dog": 0}))
        state = v.page.evaluate("(({ loop, position, playing }) => ({ loop, position, playing }))(document.querySelector('.lmac-player').lmac.state)")
        assert state == dict(loop=None, position=0, playing=False) and v.page.inner_text(".lmac-s").split()[-2] == "1"
        assert v.page.evaluate("document.documentElement.scrollWidth") <= width
    v.page.focus("#home")
    v.page.keyboard.press("Tab")
    ring = "getComputedStyle(document.querySelector('%s')).outlineStyle"
    assert v.page.evaluate(ring % "label[for=file]") == "solid" and v.page.evaluate(ring % "#record") == "none"


def test_an_explainer_of_ones_own_and_files_that_are_none(visit, tmp_path, explainer, own):
    v = visit()
    junk = tmp_path/"junk.onnx"
    junk.write_bytes(bytes(range(256)) * 10)
    v.drop(junk)
    assert "lmac-export EXPLAINER" in v.error
    own = own()
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


def test_a_long_recording_minute_by_minute(visit, own, tmp_path):
    from lmac.scale.export import OnnxExplainer
    sound = torch.cat([make_scene({name: 0}, 14., 4000, seed=i).waveform for i, name in enumerate(("dog", "rain", "dog", "rain", "dog"))], 1)
    v, file = visit(), own("low.onnx", sample_rate=4000)   # soon computed
    v.drop(str(file))
    v.drop(save_audio(tmp_path/"long.wav", sound, 4000))
    assert "the first 60 s of 70 s" in v.page.inner_text("#status") and "windows of 30 s" in v.says
    v.page.evaluate("document.body.dataset.state = 'asked'")
    v.page.click("#more")   # of which the first minute is known
    v.wait("judged")
    heard = v.heard()
    assert len(heard["input"]) == sound.shape[1] and not v.page.is_visible("#more")
    ex = OnnxExplainer(file).explain_waveforms([torch.from_numpy(heard["input"])])[0]
    assert abs(heard["p"][heard["target"]] - ex.probability) < 1e-3 and abs(heard["found"]["kept"] - ex.kept) < 2e-3 and abs(heard["found"]["p_in"] - ex.probability_masked_in) < 1e-3


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
        page = browser.new_context(permissions=["microphone"]).new_page()
        page.add_init_script("""window.streams = []; window.said = 0
            const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices)
            navigator.mediaDevices.getUserMedia = async (c) => { await new Promise((done) => setTimeout(done, 300)); const s = await real(c); streams.push(s); return s }
            addEventListener('DOMContentLoaded', () => new MutationObserver((changes) => { said += changes.length }).observe(document.getElementById('status'), { childList: true }))""")
        v = Visit(page, address)
        v.until("document.getElementById('record').click(), document.getElementById('record').click(), true")   # twice, before the microphone is there
        v.until("document.getElementById('record').textContent === 'Stop'")
        v.page.click("#record")
        v.page.wait_for_selector("#error:has-text('Nothing was recorded')")
        v.page.dblclick("#record")
        v.page.wait_for_selector("#elapsed:has-text('1.')", timeout=20_000)
        assert v.page.evaluate("streams.length") == 2 and v.page.evaluate("said") < 6   # what is read aloud does not count along
        v.page.click("#record")
        v.wait("judged")
        assert v.page.evaluate("streams.every((s) => s.getTracks().every((t) => t.readyState === 'ended'))") and v.page.inner_text("#elapsed") == ""
        assert not v.error and len(v.heard()["input"]) > 8000 and v.heard()["input"].any()
        assert not v.complaints
    finally: browser.close()


def in_double(graph):
    "The sound of a graph by way of double precision"
    from onnx import TensorProto, helper
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "waveform": node.input[i] = "once more single"
    graph.node.insert(0, helper.make_node("Cast", ["doubled"], ["once more single"], to=TensorProto.FLOAT))
    graph.node.insert(0, helper.make_node("Add", ["widened", "widened"], ["doubled"]))
    graph.node.insert(0, helper.make_node("Cast", ["waveform"], ["widened"], to=TensorProto.DOUBLE))


def test_by_webgpu(driver, address, own, sound):
    "By the adapter that Chromium computes itself, where there is no graphics card: the same as by WebAssembly, several stretches and a threshold included"
    adapter = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader", "--enable-features=Vulkan,WebGPU", "--ignore-gpu-blocklist"]
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*(flag for flag in FLAGS if flag != "--disable-gpu"), *adapter])
    try:
        v = Visit(browser.new_page(), address)
        if not v.page.evaluate("navigator.gpu?.requestAdapter().then((adapter) => !!adapter) ?? false"): pytest.skip("This Chromium offers no WebGPU.")
        v.drop(own("stretches.onnx", length=16000))
        v.drop(sound("dog.wav", 3, {"dog": 0}))
        assert "WebAssembly" in v.page.inner_text("#about")
        by_processor = v.heard()
        v.page.evaluate("document.body.dataset.state = 'asked'")
        v.page.click("#gpu")
        v.wait("judged")
        assert not v.error and "by WebGPU" in v.page.inner_text("#about") and "stretches.onnx" in v.page.inner_text("#about")
        for name, x in v.heard().items():
            if isinstance(x, np.ndarray): np.testing.assert_allclose(x, by_processor[name], atol=1e-3, err_msg=name)
        v.page.evaluate("document.body.dataset.state = 'asked'")
        v.page.click("#soft")
        v.wait("judged")
        assert not v.error and v.page.evaluate("lmacTryIt.answer.threshold") is not None
        v.drop(own("double.onnx", in_double))   # which the runtime of graphics cards does not know
        assert not v.error and "WebAssembly, since WebGPU can't" in v.page.inner_text("#about") and "double.onnx" in v.page.inner_text("#about")
        v.drop(own("stretches.onnx", length=16000))
        assert not v.error and "by WebGPU" in v.page.inner_text("#about")   # once more
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


def test_from_a_shell(built, capsys, tmp_path, own):
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
    own = own()
    with served_page(own) as address, served_page() as bundled:   # another explainer, another version, so that no browser keeps the old one
        versions = [urllib.request.urlopen(f"{where}vendor/version.js").read() for where in (address, bundled)]
        assert versions[0] != versions[1] and urllib.request.urlopen(f"{address}vendor/explainer.onnx").read() == own.read_bytes()
