"""Widgets without a browser: controls are moved by program, and what is heard, scored and said is looked at."""
import json
import re
import time

import numpy as np
import pandas as pd
import pytest
import torch

from lmac.audio import SOURCES, encode_audio, make_scene
from lmac.explain import LMAC
from lmac.listen.widgets import LATENCY_LIMITS_S, Brush, ClipPicker, Explorer, Player, ExplanationSession, Tuner, run_widgets, _summarize_latencies, _time_moves


@pytest.fixture(scope="module")
def lmac(): return LMAC.from_pretrained()


@pytest.fixture(scope="module")
def scene(): return make_scene({"dog": 0, "rain": -8}, 1.)


@pytest.fixture(scope="module")
def why(lmac, scene): return ExplanationSession(lmac, scene.waveform, 16000, sources=scene.sources, name="dog/in: the <rain>")


def error_of(explorer):
    explorer.explain_button.click()
    assert 'role="alert"' in explorer.status.value
    return re.sub("<.*?>", "", explorer.status.value)


# sessions

@pytest.mark.parametrize("target", [None, "rain", 3])
def test_an_answer_is_the_explanation(lmac, scene, target):
    why = ExplanationSession(lmac, scene.waveform, 16000, target)
    found, direct = why.explain(why.attribution()[0]), lmac.explain(scene.waveform, 16000, target=target)
    assert found.label == direct.label
    torch.testing.assert_close(found.mask, direct.mask)
    torch.testing.assert_close(found.audio, direct.audio, atol=1e-5, rtol=0)
    assert found.probability_heard == pytest.approx(direct.probability_heard, abs=1e-5)


def test_a_method_is_asked_once(why):
    assert why.attribution("gradcam")[0] is why.attribution("gradcam")[0]
    with pytest.raises(ValueError, match="Unknown method 'oracle'"): why.attribution("oracle")


def test_other_rates_channels_and_silence(lmac, scene):
    assert ExplanationSession(lmac, scene.waveform[0], 16000).waveform.shape == (1, 16000)
    assert ExplanationSession(lmac, torch.rand(2, 44100) - .5, 44100).waveform.shape == (1, 16000)
    silent = ExplanationSession(lmac, torch.zeros(1, 16000), 16000)
    assert silent.explain(silent.attribution()[0]).silent
    with pytest.raises(ValueError, match="no class 'violin'"): ExplanationSession(lmac, scene.waveform, 16000, "violin")


# the tuner

def test_soft_threshold_and_share(why):
    tuner = Tuner(why)
    soft = tuner.explanation
    tuner.threshold.value = .3
    assert tuner.kind.value == "threshold" and set(tuner.explanation.mask.unique().tolist()) <= {0., 1.}
    assert tuner.explanation.threshold == .3
    tuner.share.value = 1.
    assert tuner.kind.value == "share" and tuner.explanation.kept == 1
    torch.testing.assert_close(tuner.explanation.audio, tuner.explanation.waveform, atol=1e-4, rtol=0)
    tuner.share.value = 0.
    assert not tuner.explanation.audio.any() and "0.0%" in tuner.scores.value
    tuner.kind.value = "soft"
    assert torch.equal(tuner.explanation.audio, soft.audio)


def test_a_move_that_changes_nothing_computes_nothing(why, monkeypatch):
    tuner = Tuner(why)
    monkeypatch.setattr(tuner.session, "explain", lambda *a: pytest.fail("computed again"), raising=False)
    tuner.update(type("Change", (), dict(owner=tuner.kind)))


# the brush

def test_the_brush_takes_what_a_browser_sends(why):
    brush = Brush(why)
    cells = np.zeros((64, 160), np.uint8)
    cells[:32] = 255
    brush.player.grid = memoryview(cells.tobytes())
    assert brush.mask.shape == why.magnitude.shape and brush.mask[0, :200, :63].min() == 1 and brush.mask[0, 300:].max() == 0
    assert brush.explanation.kept == pytest.approx(.5, abs=.01)
    low = torch.stft(brush.explanation.audio[0], 1024, window=torch.hann_window(1024), return_complex=True).abs().square().mean(1)
    assert low[:250].sum() > 50 * low[270:].sum()   # what is heard is what was painted


def test_rectangles_add_and_remove(why):
    brush = Brush(why)
    brush.buttons["fill"].click()
    assert brush.mask.min() == 1
    brush.time_s.value, brush.frequency_hz.value = (.5, 1.), (0., 8000.)
    brush.buttons["remove"].click()
    assert brush.mask[..., :31].min() == 1 and brush.mask[..., 33:].max() == 0


# the explorer

def test_what_can_not_be_done_is_said(lmac, tmp_path):
    explorer = Explorer(lmac, out=tmp_path)
    assert explorer.export_button.disabled
    explorer.picker.selected_index = 1
    assert "Type the path" in error_of(explorer)
    explorer.picker.path.value = str(tmp_path/"nothing.wav")
    assert "nothing.wav" in error_of(explorer)
    (tmp_path/"text.wav").write_text("no sound")
    explorer.picker.path.value = str(tmp_path/"text.wav")
    assert "text.wav" in error_of(explorer)
    explorer.picker.selected_index, explorer.methods.value = 0, ()
    assert "Choose a method" in error_of(explorer)


def test_what_was_explained_outlasts_an_error(lmac, tmp_path):
    explorer = Explorer(lmac, out=tmp_path)
    explorer.explain_button.click()
    before, explorer.methods.value = explorer.explanations, ()
    assert "Choose a method" in error_of(explorer) and explorer.explanations is before and before
    explorer.export_button.click()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_predicted_class_can_be_chosen_again(lmac):
    explorer = Explorer(lmac)
    explorer.target.index = 3
    explorer.target.index = 0   # as a browser does; None as an option's value would be taken for no choice at all
    assert explorer.target.index == 0 and explorer.target.label == "predicted class"
    explorer.explain_button.click()
    assert explorer.explanations["lmac"].label == explorer.explanations["lmac"].predicted_label


def upload(picker, name, content):
    picker.upload.value = ({"name": name, "type": "audio/wav", "size": len(content), "content": memoryview(content), "last_modified": __import__("datetime").datetime.now()},)


def test_uploads_are_explained_and_reports_written(lmac, scene, tmp_path):
    explorer = Explorer(lmac, out=tmp_path/"new"/"folder")
    explorer.picker.selected_index = 2
    upload(explorer.picker, "../odd näme.wav", encode_audio(scene.waveform, 16000))
    explorer.target.value = explorer.explainer.class_index("rain")
    explorer.explain_button.click()
    assert explorer.explanations["lmac"].label == "rain" and "alert" not in explorer.status.value
    explorer.export_button.click()
    written = list((tmp_path/"new"/"folder").iterdir())
    assert len(written) == 1 and (written[0]/"report.html").is_file()
    upload(explorer.picker, "broken.wav", b"RIFFnothing")
    assert "broken.wav" in error_of(explorer)


def test_clips_of_a_dataset_can_be_picked(lmac, dataset):
    picker = ClipPicker(dataset)
    assert len(picker.listed.options) == len(dataset)
    picker.listed.value = 2
    taken = picker.take()
    assert torch.equal(taken["waveform"], dataset.waveforms[2]) and taken["name"].startswith("rain: ")


def test_scenes_of_the_classes_come_first(lmac):
    explorer = Explorer(lmac)
    names = [name for name, _ in explorer.picker.listed.options]
    assert names[:10] == lmac.labels and sorted(names) == sorted(SOURCES)
    explorer.picker.duration_s = 1.
    taken = explorer.picker.take()
    assert taken["name"] == "dog and rain" and taken["waveform"].shape == (1, 16000)
    assert {name for name, _ in ClipPicker(labels=["siren"]).listed.options} == set(SOURCES) and ClipPicker(labels=["siren"]).listed.label == "siren"


# static forms

@pytest.mark.parametrize("make", [Tuner, Brush])
def test_every_form_stands_alone(why, make):
    page = make(why).static()
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and "audio/flac" in page and "<script" in page
    assert "<rain>" not in page


def test_a_player_of_several_classes(lmac, scene):
    several = lmac.explain(scene.waveform, 16000, targets=["dog", "rain"])
    (player := Player()).play(several, scene.sources, title="two classes")
    assert re.findall(r'<button.*?>([\w ]+)</button>', player.html) == ["All in colours", "dog", "rain"] and "two classes" in player.html
    assert re.findall('data-name="(.*?)"', player.html) == ["Input", "Dog alone", "Rain alone", *["Explanation", "Residual"] * 2]
    assert player.static().count("data:audio/flac") == 7


def test_an_empty_player_has_a_form():
    assert "lmac-player" in Player().static()


# latencies

def test_a_summary_of_times():
    rows = pd.DataFrame([dict(control="explain", methods=m, clip=i, seconds=s) for m, times in dict(lmac=(.1, .2, .3), other=(.2, .4, 9.)).items() for i, s in enumerate(times)])
    first, other = _summarize_latencies(rows)
    assert first == dict(control="explain", methods="lmac", n=3, median_s=.2, p95_s=pytest.approx(.29), limit_s=LATENCY_LIMITS_S["explain"], within=1)
    assert other["median_s"] == .4 and other["within"] == pytest.approx(2 / 3)


def test_every_move_makes_a_new_sound(why, monkeypatch):
    made = []
    answer = ExplanationSession.explain
    monkeypatch.setattr(ExplanationSession, "explain", lambda self, *args: made.append(answer(self, *args)) or made[-1])
    rows = _time_moves(why, 7, [.105, .505, .205])
    assert [r["control"] for r in rows] == [c for c in ("threshold", "share", "brush") for _ in range(3)] and {r["clip"] for r in rows} == {7}
    assert len(made) == 1 + 9 and all(r["seconds"] > .001 for r in rows)   # the brush begins with a sound of its own, the tuner with what the method made


@pytest.mark.slow
def test_a_quick_run_writes_its_files(tmp_path):
    result = run_widgets(tmp_path/"new"/"widgets.json", quick=True, progress=False, runs=tmp_path/"runs")
    assert sorted(p.name for p in (tmp_path/"new").iterdir()) == ["widgets.csv.gz", "widgets.json"] and not (tmp_path/"runs").exists()
    assert json.loads((tmp_path/"new"/"widgets.json").read_text()) == result
    assert [(r["control"], r["methods"], r["n"]) for r in result["results"]] == [
        ("explain", "lmac", 3), ("explain", "lmac + gradcam", 3), ("explain", "lmac + energy", 3), ("threshold", "lmac", 9), ("share", "lmac", 9), ("brush", "lmac", 9)]
    table = pd.read_csv(tmp_path/"new"/"widgets.csv.gz")
    assert table.seconds.sum() < result["seconds"] and (table.seconds > 0).all() and table["clip"].nunique() == 3
    assert result["provenance"]["dataset"] == dict(name="scenes", folds=[5], n_clips=3) and result["settings"] == dict(quick=True, n_moves=3, duration_s=5.)
    with pytest.raises(ValueError, match="must end in .json"): run_widgets(tmp_path/"widgets.csv", quick=True)


@pytest.mark.slow
def test_quick_enough_to_play_with(lmac):
    "Half a second from a click to the sound, 0.15 s for a move of a slider, for five seconds of sound; here with room for a busy machine"
    explorer = Explorer(lmac)
    explorer.explain_button.click()
    start = time.perf_counter()
    explorer.explain_button.click()
    first = time.perf_counter() - start
    scene = make_scene({"dog": 0, "rain": -8}, 5.)
    tuner, moves = Tuner(ExplanationSession(lmac, scene.waveform, 16000)), []
    for share in np.linspace(.05, .5, 9):
        start = time.perf_counter()
        tuner.share.value = float(share)
        moves.append(time.perf_counter() - start)
    print(f"explain {first:.3f} s, move {np.median(moves):.3f} s")
    assert first < 1. and np.median(moves) < .3
