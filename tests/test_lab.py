"""The widgets' notebook in a browser: each control is operated by hand, and its effect on samples and scores is read back from the kernel.

In JupyterLab; with `--vscode FOLDER`, which `tests/vscode/setup.sh FOLDER` fills, in VS Code."""
import ast
import itertools
import json
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from jupyter_client import BlockingKernelClient
from notebook_apps import TIMEOUT_S, JupyterLab, VSCode, wait

from lmac.audio import make_scene, save_audio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"docs"))
from check_site import CHROMIUM, FLAGS  # noqa: E402


RATE = 16000
NOTEBOOK = Path(__file__).resolve().parent.parent/"nbs"/"listen/widgets.ipynb"
LIVE = """waiting = Monitor(lmac, scene.waveform, 16000, scene.sources)
task = ExplainerTask(lmac.classifier, MaskDecoder.for_classifier(lmac.classifier, lmac.stft, channels=8), lmac.stft, domain=lmac.domain, targets='sampled', metrics=probabilities_metrics)
learner = Learner(task, loader(Clips(), 8), loader(Clips(), 8), epochs=3, lr=2e-3, callbacks=[waiting])
waiting"""   # shown first, trained when a test says so
TONE_HZ = 440.


@pytest.fixture(scope="module")
def app(request, tmp_path_factory):
    "What shows the notebook, and a training to be watched"
    notebook, folder, vscode = nbformat.read(NOTEBOOK, 4), tmp_path_factory.mktemp("lab"), request.config.getoption("vscode")
    notebook.cells.append(nbformat.v4.new_code_cell(LIVE))
    app = VSCode(notebook, folder, vscode) if vscode else JupyterLab(notebook, folder)
    try: yield app.start()
    finally: app.stop()


@pytest.fixture(scope="module")
def tone(tmp_path_factory):
    "What the microphone hears"
    file = tmp_path_factory.mktemp("tone")/"tone.wav"
    save_audio(file, .5 * torch.sin(2 * torch.pi * TONE_HZ * torch.arange(48000 * 20) / 48000)[None], 48000)
    return file


@pytest.fixture(scope="module")
def page(app, tone, driver):
    "The notebook in a browser, all of its cells run"
    if CHROMIUM is None: pytest.fail("These tests need Chromium: apt install chromium, or another that is called so on the PATH.")
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-audio-capture={tone}"]
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS + microphone)
    page = browser.new_page(viewport=dict(width=1300, height=1000))
    page.set_default_timeout(1000 * TIMEOUT_S)
    complaints = []
    page.on("pageerror", lambda e: complaints.append(str(e)))
    app.run(page)
    yield page
    browser.close()
    assert not complaints, complaints


@pytest.fixture(scope="module")
def ask(page, app):
    "The value of an expression in the kernel that the page talks to; what the page has sent may still be under way, in a thread of its own"
    client = BlockingKernelClient(connection_file=app.connection_file())
    client.load_connection_file()
    client.start_channels()

    def value(expression):
        message = client.execute("import json", silent=True, user_expressions=dict(x=f"json.dumps({expression})"))
        while (reply := client.get_shell_msg(timeout=TIMEOUT_S))["parent_header"].get("msg_id") != message: pass
        found = reply["content"]["user_expressions"]["x"]
        assert found["status"] == "ok", found
        return json.loads(ast.literal_eval(found["data"]["text/plain"]))
    yield value
    client.stop_channels()


@pytest.fixture(scope="module")
def cell(page, app):
    "The output of the cell that begins so"
    def find(begin):
        found = app.output(begin)
        found.locator(".jupyter-widgets, .lmac-player").first.wait_for()
        found.scroll_into_view_if_needed()
        return found
    return find


@pytest.fixture(scope="module")
def tuner(cell): return cell("tuner = Tuner")


@pytest.fixture(scope="module")
def brush(cell): return cell("brush = Brush")


@pytest.fixture(scope="module")
def explorer(cell): return cell("explorer = Explorer")


def state(player): return player.evaluate("e => e.lmac.state")


def hears(player, ask, name):
    "The page's sounds of an explanation become the very samples that the kernel has; the table of scores becomes that of the kernel"
    def difference():
        page = player.evaluate("async e => { await e.lmac.decode(); return e.lmac.buffers.slice(0, 3).map((b) => Array.from(b.getChannelData(0))) }")
        return max(np.abs(np.array(a) - np.clip(b, -1, 1)).max() if len(a) == len(b) else 9 for a, b in zip(page, ask(f"[x[0].tolist() for x in ({name}.waveform, {name}.audio, {name}.residual)]")))
    wait(difference, lambda d: d < 2**-13)


def scored(form, ask, name, row=0):
    "What the table says is what the classifier says to the parts that are heard"
    numbers = f"{name}.probability, {name}.probability_masked_in, lmac.classify({name}.audio, 16000)[0, {name}.class_index].item(), {name}.probability_masked_out, {name}.kept"
    def both(): return form.locator("table.lmac-scores tbody tr").nth(row).locator("td").all_inner_texts()[1:6], [f"{x:.{d}}" for x, d in zip(ask(f"[{numbers}]"), ["3f"] * 4 + ["1%"])]
    wait(both, lambda found: found[0] == found[1])


def handle(form, name, which=0):
    "A handle of a slider with this label"
    return form.locator(".widget-slider", has_text=re.compile(rf"^\s*{name}")).get_by_role("slider").nth(which)


def press(handle, key, times=1, value=None):
    "With `value`, which asks the kernel, as a person does who looks: each step is there before the next, since an answer that comes late can take a slider back"
    for _ in range(times):
        before = value and value()
        handle.press(key)
        if value: wait(value, lambda v: v != before)


def click(form, name): form.get_by_role("button", name=name, exact=True).click()


# the notebook

def test_the_notebook_runs_without_an_error(app, ask):
    assert app.errors() == []
    assert ask("sorted(monitor.samples)") == [1, 2, 3]


CONTRAST = """(form) => {   // of each text in it to what it stands on, as WCAG defines contrast
    const color = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return { rgb: [r, g, b], a } }
    const light = (rgb) => rgb.map((v) => v / 255).map((v) => (v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
    const page = Object.assign(document.createElement('div'), { style: 'background: var(--vscode-editor-background, white)' })   // VS Code's view has no ground of its own
    document.body.append(page)
    const ground = (e) => { for (; e; e = e.parentElement) { const { rgb, a } = color(getComputedStyle(e).backgroundColor); if (a === 1) return rgb } return color(getComputedStyle(page).backgroundColor).rgb }
    const texts = [...form.querySelectorAll('.lmac-player *, .lmac-label, .lmac-scores *, .widget-label, .widget-readout, button, select')]
        .filter((e) => e.checkVisibility() && !e.disabled && [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) && !e.closest('.lmac-view'))
    const pairs = texts.map((e) => [light(color(getComputedStyle(e).color).rgb), light(ground(e))])
    return pairs.map((pair, i) => [(Math.max(...pair) + .05) / (Math.min(...pair) + .05), texts[i].textContent.slice(0, 40)])
}"""


@pytest.mark.parametrize("begin", ["player = ", "tuner = ", "brush = ", "explorer = "])
def test_all_can_be_read(cell, begin):
    found = cell(begin).evaluate(CONTRAST)
    assert len(found) > 15
    assert [x for x in found if x[0] < 4.5] == []


# the tuner

def test_the_kinds_of_mask(tuner, ask):
    sounds = {}
    for kind in ("soft", "threshold", "share"):
        click(tuner, kind)
        wait(lambda: ask("[tuner.at[0], len(tuner.explanation.mask.unique()) > 2, f'>{tuner.at[0]}<' in tuner.scores.value]"), lambda s: s == [kind, kind == "soft", True])
        hears(tuner.locator(".lmac-player"), ask, "tuner.explanation")
        scored(tuner, ask, "tuner.explanation")
        sounds[kind] = ask("tuner.explanation.audio[0, ::10].tolist()")
    assert len({str(x) for x in sounds.values()}) == 3


@pytest.mark.parametrize("name, key", [("threshold", "ArrowUp"), ("share", "ArrowUp"), ("threshold", "ArrowDown")])
def test_a_slider_changes_the_sound_and_the_scores(tuner, ask, name, key):
    value, kept = ask(f"tuner.{name}.value"), ask("tuner.explanation.kept")
    press(handle(tuner, name), key, 7, lambda: ask(f"tuner.{name}.value"))
    moved = value + (.07 if key == "ArrowUp" else -.07)
    wait(lambda: ask(f"[tuner.{name}.value, tuner.kind.value]"), lambda s: s == [pytest.approx(moved), name])
    if name == "share": wait(lambda: ask("tuner.explanation.kept"), lambda k: k == pytest.approx(moved, abs=1e-3))
    else: wait(lambda: ask("torch.equal(tuner.explanation.mask, binarize(tuner.mask, tuner.threshold.value)[0])"))
    assert ask("tuner.explanation.kept") != kept
    hears(tuner.locator(".lmac-player"), ask, "tuner.explanation")
    scored(tuner, ask, "tuner.explanation")


def test_a_slider_is_dragged_while_it_plays(page, tuner, ask):
    player = tuner.locator(".lmac-player")
    click(tuner, "Play")
    wait(lambda: state(player)["position"], lambda t: t > .1)
    box = handle(tuner, "share").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for k in range(8): page.mouse.move(x + 8 * k, y)
    page.mouse.up()
    shown = float(tuner.locator(".widget-slider").nth(1).locator(".widget-readout").inner_text())
    wait(lambda: ask("[tuner.share.value, tuner.explanation.kept]"), lambda v: v == [pytest.approx(shown), pytest.approx(shown, abs=1e-3)])
    hears(player, ask, "tuner.explanation")
    scored(tuner, ask, "tuner.explanation")
    player.evaluate("e => e.lmac.pause()")


# the player

def test_the_choice_of_a_sound_reaches_the_kernel_and_back(tuner, ask):
    player = tuner.locator(".lmac-player")
    for k, name in enumerate(["Input", "Explanation", "Residual", "Dog alone", "Rain alone"]):
        click(player, name)
        wait(lambda: ask("tuner.player.sound"), lambda found: found == k)
        assert state(player)["name"] == name and player.locator("[aria-pressed=true]").inner_text() == name
    ask("setattr(tuner.player, 'sound', 1)")
    wait(lambda: state(player)["current"], lambda found: found == 1)
    sources = player.evaluate("async e => { await e.lmac.decode(); return e.lmac.buffers.slice(3).map((b) => Array.from(b.getChannelData(0))) }")
    for name, found in zip(("dog", "rain"), sources): np.testing.assert_allclose(found, ask(f"scene.sources['{name}'][0].tolist()"), atol=2**-13)


def test_loudness_seeking_and_loops(page, tuner):
    player = tuner.locator(".lmac-player")
    click(player, "Rain alone")
    raised = state(player)["level"]
    player.get_by_label("same loudness").uncheck()
    assert state(player)["level"] == 1 != raised
    player.get_by_label("same loudness").check()
    assert state(player)["level"] == raised == pytest.approx(float(player.locator("audio").nth(4).get_attribute("data-gain")))
    view = player.locator(".lmac-view")
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    def x(share): return box["x"] + share * box["width"]
    y = box["y"] + box["height"] / 2
    page.mouse.click(x(.5), y)
    assert state(player)["position"] == pytest.approx(.75, abs=.02)
    page.mouse.move(x(.2), y)
    page.mouse.down()
    page.mouse.move(x(.4), y, steps=4)
    page.mouse.up()
    assert state(player)["loop"] == pytest.approx([.3, .6], abs=.02)
    click(player, "Play")
    passed = [wait(lambda: state(player))["position"] for _ in range(30)]
    assert state(player)["playing"] and .28 <= min(passed) and max(passed) <= .62
    click(player, "Pause")
    click(player, "End loop")
    assert state(player)["loop"] is None and not state(player)["playing"]


def test_the_shade_and_the_download(page, tuner, ask, tmp_path):
    import soundfile as sf
    player = tuner.locator(".lmac-player")
    player.get_by_label("mask").fill("0.3")
    assert player.locator(".lmac-mask").evaluate("e => e.style.opacity") == "0.3"
    click(player, "Explanation")
    player.get_by_label("same loudness").uncheck()
    with page.expect_download() as info: click(player, "Download")
    info.value.save_as(tmp_path/"x.wav")
    found, rate = sf.read(tmp_path/"x.wav", dtype="float32")
    assert rate == RATE
    np.testing.assert_allclose(found, ask("tuner.explanation.audio[0].tolist()"), atol=2**-13)
    player.get_by_label("same loudness").check()


# the brush

def drawn(brush):
    "Which cells are filled in the page, from low to high frequencies"
    alpha = brush.locator("canvas").evaluate("c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((x, i) => i % 4 == 3))")
    return np.array(alpha).reshape(64, 160)[::-1] > 127


def draw(brush, ask, y, x0=.1, x1=.6):
    "A horizontal line, in shares of the picture; the share that is kept, once the whole line is in the kernel and judged"
    view, mouse = brush.locator(".lmac-view"), brush.page.mouse
    view.scroll_into_view_if_needed()
    box = view.bounding_box()
    mouse.move(box["x"] + x0 * box["width"], box["y"] + y * box["height"])
    mouse.down()
    mouse.move(box["x"] + x1 * box["width"], box["y"] + y * box["height"], steps=12)
    mouse.up()
    wait(lambda: np.array_equal(drawn(brush), ask("brush.player.cells.tolist()")) and ask("torch.equal(brush.explanation.mask, brush.mask[0])"))
    return ask("brush.explanation.kept")


def judged(brush, ask):
    "What is painted in the kernel is what is drawn, heard and scored"
    wait(lambda: ask("torch.equal(brush.explanation.mask, brush.mask[0])"))
    assert brush.locator("canvas").bounding_box() == brush.locator(".lmac-view").bounding_box()
    assert np.array_equal(drawn(brush), ask("brush.player.cells.tolist()"))
    hears(brush.locator(".lmac-player"), ask, "brush.explanation")
    scored(brush, ask, "brush.explanation")


def test_painting_erasing_and_the_width_of_the_pen(brush, ask):
    click(brush, "clear")
    wait(lambda: ask("brush.explanation.kept"), lambda k: k == 0)
    assert not ask("brush.explanation.audio.any().item()")
    click(brush, "paint")
    wait(lambda: ask("[brush.player.painting, brush.player.erase]"), lambda s: s == [True, False])
    thin = draw(brush, ask, .8)
    assert .02 < thin < .09 and ask("brush.player.cells[:6].any().item() or brush.player.cells[24:].any().item()") is False   # a fifth from below
    judged(brush, ask)
    low = ask("torch.stft(brush.explanation.audio[0], 1024, window=torch.hann_window(1024), return_complex=True).abs().square().mean(1).tolist()")
    assert sum(low[50:160]) > 10 * (sum(low[:20]) + sum(low[230:]))   # 1.6 kHz in the middle

    press(handle(brush, "pen"), "PageUp", 3, lambda: ask("brush.pen.value"))
    wide = wait(lambda: ask("brush.pen.value"), lambda w: w > 8)
    more = draw(brush, ask, .3)
    assert more - thin > .8 * thin * wide / 6
    judged(brush, ask)

    click(brush, "erase")
    wait(lambda: ask("brush.player.erase"))
    assert draw(brush, ask, .3, 0, 1) == pytest.approx(thin, abs=.005)
    judged(brush, ask)


def test_the_pointer_seeks_again_when_it_listens(brush, ask):
    before = ask("brush.player.cells.tolist()")
    click(brush, "listen")
    wait(lambda: ask("brush.player.painting") or brush.locator("[data-brush]").count(), lambda p: not p)  # kernel and page
    box = brush.locator(".lmac-view").bounding_box()
    brush.page.mouse.click(box["x"] + .25 * box["width"], box["y"] + 20)
    assert state(brush.locator(".lmac-player"))["position"] == pytest.approx(.375, abs=.02) and ask("brush.player.cells.tolist()") == before


def test_rectangles_fill_clear_and_start(brush, ask):
    click(brush, "fill")
    wait(lambda: ask("brush.explanation.kept"), lambda k: k == 1)
    assert ask("(brush.explanation.audio - brush.explanation.waveform).abs().max().item()") < 1e-3
    judged(brush, ask)
    click(brush, "clear")
    for name, which, key in (("from–to s", 0, "ArrowUp"), ("from–to s", 1, "ArrowDown"), ("from–to Hz", 1, "ArrowDown")): press(handle(brush, name, which), key, 4, lambda: ask("[brush.time_s.value, brush.frequency_hz.value]"))
    (t0, t1), (f0, f1) = wait(lambda: ask("[brush.time_s.value, brush.frequency_hz.value]"), lambda v: v[0] == pytest.approx([.2, 1.3]) and v[1][1] == pytest.approx(7800))   # all four steps of each have arrived
    click(brush, "add")
    share = (t1 - t0) / 1.5 * (f1 - f0) / 8000
    wait(lambda: ask("brush.explanation.kept"), lambda k: k == pytest.approx(share, abs=.02))
    judged(brush, ask)
    click(brush, "remove")
    wait(lambda: ask("brush.explanation.kept"), lambda k: k == 0)
    click(brush, "start from L-MAC")
    wait(lambda: ask("brush.explanation.kept"), lambda k: k > 0)
    assert ask("brush.explanation.probability_heard") > .5
    judged(brush, ask)


# the explorer

def tab(explorer, name): explorer.get_by_role("tab", name=name, exact=True).click()


def explain(explorer, ask, expected, methods=("lmac",)):
    "Press the button; the players and the table are those of the explanations of this name"
    before = ask("id(getattr(explorer, 'session', None))")
    click(explorer, "Explain")
    wait(lambda: ask("id(explorer.session)"), lambda i: i != before)
    said = wait(lambda: explorer.locator("p[role=status]").all_inner_texts(), lambda s: s and s[0].startswith(expected))
    assert ask("list(explorer.explanations)") == list(methods)
    explorer.locator(".lmac-player.lmac-ready").nth(len(methods) - 1).wait_for()
    wait(lambda: explorer.locator(".lmac-player").count(), lambda n: n == len(methods))
    for k, name in enumerate(methods):
        hears(explorer.locator(".lmac-player").nth(k), ask, f"explorer.explanations['{name}']")
        scored(explorer, ask, f"explorer.explanations['{name}']", k)
    return float(re.search(r"([\d.]+) s$", said[0])[1])


def test_clips_classes_and_methods_are_chosen(explorer, ask):
    tab(explorer, "Clips")
    explorer.get_by_label("clip", exact=True).select_option("siren")
    explorer.get_by_label("methods").select_option(["lmac", "saliency"])
    seconds = explain(explorer, ask, "siren and rain", ["lmac", "saliency"])
    assert ask("[explorer.session.name, explorer.explanations['lmac'].label == explorer.explanations['lmac'].predicted_label]") == ["siren and rain", True] and seconds < 5
    assert not ask("torch.equal(explorer.explanations['lmac'].audio, explorer.explanations['saliency'].audio)")
    explorer.get_by_label("class", exact=True).select_option("rain")
    explorer.get_by_label("methods").select_option(["saliency"])
    explain(explorer, ask, "siren and rain", ["saliency"])
    assert ask("explorer.explanations['saliency'].label") == explorer.get_by_label("class", exact=True).evaluate("e => e.selectedOptions[0].text") == "rain"


def test_the_bars_are_the_likeliest_classes(explorer, ask):
    rows = explorer.get_by_label("Likeliest classes").locator("tr")
    ranked = ask("[[k, v] for k, v in explorer.explanations['saliency'].summary()['probabilities'].items()][:5]")
    assert rows.locator("th").all_inner_texts() == [k for k, _ in ranked]
    assert rows.locator("td:last-child").all_inner_texts() == [f"{v:.3f}" for _, v in ranked]
    assert [m.evaluate("e => e.value") for m in rows.locator("meter").all()] == pytest.approx([v for _, v in ranked], abs=1e-4)


def test_a_file_and_an_upload(explorer, ask, tmp_path):
    for name in ("dog", "rooster"): save_audio(tmp_path/f"{name}.wav", make_scene({name: 0}, 2., seed=3).waveform, RATE)
    explorer.get_by_label("class", exact=True).select_option("predicted class")
    wait(lambda: ask("explorer.target.value"), lambda v: v == -1)
    explorer.get_by_label("methods").select_option(["lmac"])
    tab(explorer, "File")
    explorer.get_by_label("file", exact=True).fill(str(tmp_path/"nothing.wav"))
    click(explorer, "Explain")
    explorer.get_by_role("alert").get_by_text("nothing.wav").wait_for()
    explorer.get_by_label("file", exact=True).fill(str(tmp_path/"dog.wav"))
    explain(explorer, ask, "dog.wav")
    assert ask("[explorer.explanations['lmac'].duration_s, explorer.explanations['lmac'].label == explorer.explanations['lmac'].predicted_label]") == [2, True]
    assert explorer.get_by_label("class", exact=True).evaluate("e => e.selectedIndex") == 0   # it still says so
    tab(explorer, "Upload")
    with explorer.page.expect_file_chooser() as info: explorer.get_by_role("button", name=re.compile("Upload")).click()
    info.value.set_files(tmp_path/"rooster.wav")
    wait(lambda: ask("len(explorer.picker.upload.value)"))
    explain(explorer, ask, "rooster.wav")
    found = ask("explorer.explanations['lmac'].waveform[0].tolist()")
    np.testing.assert_allclose(found, make_scene({"rooster": 0}, 2., seed=3).waveform[0], atol=2**-14)


def test_reports_are_exported(explorer, ask):
    click(explorer, "Export reports")
    explorer.get_by_role("status").get_by_text("Written").wait_for()
    report = Path(ask("str(explorer.out)"))/"rooster-lmac"/"report.html"
    assert report.is_file() and "rooster.wav" in report.read_text()


def test_a_recording_arrives_as_samples_and_is_explained(explorer, ask):
    tab(explorer, "Record")
    old = ask("len(explorer.picker.recorder.samples)")
    click(explorer, "Record")
    wait(lambda: explorer.get_by_role("status").all_inner_texts(), lambda says: any(float(m[1]) > 1.5 for s in says if (m := re.match(r"recording, ([\d.]+) s", s))))
    click(explorer, "Stop")
    wait(lambda: explorer.get_by_role("status").all_inner_texts(), lambda says: any(s.endswith("s recorded") for s in says))
    wait(lambda: ask("len(explorer.picker.recorder.samples)"), lambda n: n != old)
    sound, rate = np.array(ask("explorer.picker.recorder.waveform[0].tolist()")), ask("explorer.picker.recorder.sample_rate")
    assert 1. < len(sound) / rate < TIMEOUT_S
    middle = sound[len(sound) // 4:3 * len(sound) // 4]
    assert abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle) == pytest.approx(TONE_HZ, abs=3)
    explain(explorer, ask, "recording")
    assert ask("explorer.explanations['lmac'].duration_s") == pytest.approx(len(sound) / rate, abs=.01)


# the monitor

def test_a_training_is_watched_live(cell, ask):
    form = cell("waiting = ")
    assert form.get_by_text("Nothing was trained yet").is_visible()
    form.evaluate("""(form) => { window.titles = []; new MutationObserver(() => {
        for (const e of form.querySelectorAll('.lmac-title')) if (/after epoch/.test(e.textContent) && window.titles.at(-1) !== e.textContent) window.titles.push(e.textContent)
    }).observe(form, { subtree: true, childList: true }) }""")
    ask("learner.fit() is not None")
    wait(lambda: form.evaluate("() => window.titles"), lambda t: t == ["after epoch 1", "after epoch 2", "after epoch 3"])
    wait(lambda: form.locator("img.widget-image").evaluate("e => e.complete && e.naturalWidth"), lambda w: w > 300)
    for epoch in (3, 2, 1):
        if epoch < 3: press(handle(form, "epoch"), "ArrowDown")
        wait(lambda: ask("waiting.epoch.value"), lambda e: e == epoch)
        hears(form.locator(".lmac-player"), ask, f"waiting.samples[{epoch}]")
        scored(form, ask, f"waiting.samples[{epoch}]")
    assert not any(ask(f"torch.equal(waiting.samples[{a}].audio, waiting.samples[{b}].audio)") for a, b in itertools.combinations((1, 2, 3), 2))
