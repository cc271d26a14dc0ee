"""Evaluation: agreement with explanations, one numerical route, result files that repeat and give nobody away."""
import getpass
import json
import re
import socket
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from lmac.evidence import evaluation
from lmac.evidence.evaluation import (REQUIREMENTS, ROUTES, VARIANTS, check_requirements, evaluate, figures, full_width, classify_parts, peak_rss_mb, score_batch, score_clips,
                             show_results, summarize_table, time_decoder)
from lmac.explain import LMAC
from lmac.metrics import METRICS


@pytest.fixture(scope="module")
def result(explainer, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")/"deeper"/"small.json"
    evaluate(explainer, dataset, [1], out, name="/models/small", data=str(out.parent), progress=False)
    return out


# scores

@pytest.mark.parametrize("rounded", [False, True])
def test_clips_are_judged_as_explanations_judge_them(explainer, dataset, rounded):
    masks = classify_parts(explainer, dataset.waveforms)[1]
    threshold = masks[masks > 0].median().item() if rounded else None   # half of the bins: the decoder is not trained
    seen = classify_parts(explainer, dataset.waveforms, threshold)
    heard = classify_parts(explainer, dataset.waveforms, threshold, scored_on='audio')
    gains = []
    for i, waveform in enumerate(dataset.waveforms):
        ex, k = explainer.explain(waveform, 16000, threshold=threshold), int(seen[0][i])
        assert k == ex.class_index
        torch.testing.assert_close(seen[1][i], ex.mask, atol=1e-5, rtol=0)
        for p, expected in ((seen[3], ex.probability_masked_in), (seen[4], ex.probability_masked_out),
                            (heard[3], ex.probability_heard), (heard[2], ex.probability)):
            assert abs(float(p[i, k]) - expected) < 1e-4
        gains.append(ex.gain_db)
    if rounded:   # a rounded mask lets a part peak higher than the whole; a soft one seldom does
        assert min(gains) < 0, "no clip was scaled down, so that part was not tested"


class Constant(LMAC):
    "The same mask value everywhere"
    value = 1.
    def attribute(self, magnitude, target=None, threshold=None): return torch.full_like(magnitude, self.value)


@pytest.mark.parametrize("route", ROUTES)
def test_a_mask_of_ones_changes_nothing_at_all(explainer, dataset, route):
    table = score_clips(Constant(explainer.classifier, explainer.decoder, explainer.stft), dataset, scored_on=route, progress=False)
    assert (table.p == table.p_in).all()
    assert (table[["AI", "AD", "AG"]] == 0).all().all() and (table[["Fid-In", "kept"]] == 1).all().all()


def test_a_mask_of_zeros_swaps_the_parts(explainer, dataset):
    nothing = Constant(explainer.classifier, explainer.decoder, explainer.stft)
    nothing.value = 0.
    table = score_clips(nothing, dataset, progress=False)
    assert (table.p == table.p_out).all() and (table.FF == 0).all() and (table.kept == 0).all()


@pytest.mark.parametrize("way", VARIANTS)
def test_scores_are_finite_in_range_and_per_clip(explainer, dataset, way):
    table = score_clips(explainer, dataset, **VARIANTS[way], progress=False)
    assert list(table["clip"]) == [Path(path).stem for path in dataset.table["path"]]
    assert (table.correct == (table.label == table.predicted)).all()
    assert not table.isna().any().any()
    for metric in METRICS.values():
        assert table[metric.short].between(metric.low, metric.high or float("inf")).all(), metric.short
    one_by_one = score_clips(explainer, dataset, **VARIANTS[way], batch_size=1, progress=False)
    numbers = [c for c in table.select_dtypes("number") if c != "AI"]   # AI may hang on a rounding error
    pd.testing.assert_frame_equal(table[numbers], one_by_one[numbers], atol=1e-2, rtol=1e-3)


def test_binary_masks_are_binary_and_kept_is_their_share(explainer, dataset):
    mask = classify_parts(explainer, dataset.waveforms, 0.5)[1]
    assert set(mask.unique().tolist()) == {0., 1.}
    torch.testing.assert_close(score_batch(explainer, dataset.waveforms, 0.5)["kept"], mask.mean((1, 2)))


def test_clips_shorter_than_the_classifier_was_trained_on(explainer, dataset):
    short = dataset.waveforms[:, :5000]
    predicted, mask, *probabilities = classify_parts(explainer, short, scored_on='audio')
    assert mask.shape[-1] == explainer.stft.n_frames(6400)
    assert abs(float(probabilities[1][0, predicted[0]]) - explainer.explain(short[0], 16000).probability_heard) < 1e-4


@pytest.mark.parametrize("what, value", [("labels", ["rain", "sea"]), ("sample_rate", 8000)])
def test_another_dataset_is_refused(explainer, dataset, what, value):
    other = dataset.subset(range(6))
    setattr(other, what, value)
    with pytest.raises(ValueError, match=rf"classifier's {what}, .* Found: {re.escape(str(value))}"):
        score_clips(explainer, other, progress=False)


def test_the_classifier_is_untouched(explainer, dataset):
    before = {k: v.clone() for k, v in explainer.classifier.state_dict().items()}
    score_clips(explainer, dataset, scored_on='audio', progress=False)
    assert all(torch.equal(v, explainer.classifier.state_dict()[k]) for k, v in before.items())


# result files

def test_result_file_holds_the_means_of_the_table_beside_it(result):
    made, table = json.loads(result.read_text()), pd.read_csv(result.with_suffix(".csv.gz"))
    assert len(table) == 4 * 6 and len(made["results"]) == 4 * 12
    for row in made["results"]:
        part = table[(table["mask"] == row["mask"]) & (table.scored_on == row["scored_on"])]
        assert row["n"] == len(part) == 6 and row["low"] <= row["mean"] <= row["high"]
        assert row["mean"] == pytest.approx(part[row["metric"]].mean(), rel=1e-5, abs=1e-6)
    assert made["accuracy"]["mean"] == pytest.approx(100 * part.correct.mean())


def test_result_file_says_how_it_was_made(result, explainer, tmp_path):
    made = json.loads(result.read_text())["provenance"]
    config = json.loads((explainer.save_pretrained(tmp_path)/"config.json").read_text())
    assert made["explainer"] == dict(name="small", sha256={k: config[k]["sha256"] for k in ("classifier", "decoder")})
    assert made["dataset"] == dict(name="deeper", folds=[1], n_clips=6) and made["seed"] == 0
    assert {"lmac", "torch", "torchaudio", "python"} <= set(made["versions"]) and made["date"].endswith("+00:00")
    assert made["machine"]["cpu"] and made["machine"]["cores_used"] >= 1 and made["command"]


def test_result_file_gives_no_machine_and_nobody_away(result):
    text = result.read_text()
    strings = re.findall(r'"([^"]*)"', text)
    assert not [s for s in strings if re.search(r"(^|[\s='])(/|~/|[A-Za-z]:\\)", s)]
    for name in {socket.gethostname(), getpass.getuser(), str(Path.home()), Path.home().name}:
        assert name not in strings and not re.search(rf"\b{re.escape(name)}\b", text), name


def test_an_evaluation_repeats(explainer, dataset, result, tmp_path):
    again = evaluate(explainer, dataset, [1], tmp_path/"again.json", batch_size=16, progress=False)
    assert again["results"] == json.loads(result.read_text())["results"]
    assert (tmp_path/"again.csv.gz").read_bytes() == result.with_suffix(".csv.gz").read_bytes()


def test_a_failed_evaluation_leaves_the_old_file(explainer, dataset, tmp_path, monkeypatch):
    out = tmp_path/"r.json"
    out.write_text("old")
    monkeypatch.setattr(evaluation, "score_clips", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"): evaluate(explainer, dataset, [1], out, progress=False)
    assert out.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_what_cannot_be_written_is_known_before_anything_is_computed(explainer, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "score_clips", lambda *a, **k: pytest.fail("computed first"))
    (tmp_path/"file").write_text("")
    with pytest.raises(ValueError, match="must end in .json. Found: r.txt"): evaluate(explainer, dataset, [1], tmp_path/"r.txt")
    with pytest.raises(OSError): evaluate(explainer, dataset, [1], tmp_path/"file"/"r.json")
    with pytest.raises(ValueError, match="folds"): evaluate(explainer, dataset, [9], tmp_path/"r.json")


# tables and bars

def test_table_has_a_row_for_each_way(result):
    shown = show_results(json.loads(result.read_text()))
    assert list(shown.index) == list(VARIANTS)
    assert list(shown) == ["AI ↑", "AD ↓", "AG ↑", "FF ↑", "Fid-In ↑", "SPS ↑", "COMP ↓", "kept"]
    assert shown.map(lambda text: bool(re.fullmatch(r"\S+ \[\S+, \S+\]", text))).all().all()


def fake(fold, ai, heard_ai, **more):
    rows = [dict(mask="soft", scored_on=j, metric="AI", mean=v, low=v, high=v, n=80) for j, v in (("spectrogram", ai), ("audio", heard_ai))]
    return dict(results=rows, accuracy=dict(mean=91.25), timing={}, provenance=dict(dataset=dict(folds=[fold]))) | more


def test_figures_are_held_against_the_bars():
    costs = dict(timing=dict(explainer=dict(ratio=0.4), full_width=dict(ratio=0.26)), memory_mb=dict(beyond_torch=300.))
    met = check_requirements(figures(fake(5, 69.9, 73., **costs), fake(4, 0, 0), training_minutes=25.1))
    met = met.set_index(["condition", "metric"]).met
    assert met["classifier", "accuracy, fold 5"] == "yes" and met["classifier", "accuracy, fold 4"] == "NO"
    assert met["soft masks", "AI"] == "NO" and met["soft masks", "AD"] == "not measured"
    assert met["soft masks, audio vs. spectrogram", "AI"] == "NO"   # 3.1 points better is not within 3
    assert met["time of decoder / classifier", "bundled"] == "yes"
    assert met["time of decoder / classifier", "CNN14 at full width"] == "NO"
    assert met["lmac-explain", "MB beyond importing torch"] == "yes" and met["training on 2 cores", "minutes"] == "NO"
    assert len(met) == len(REQUIREMENTS) and met.isin(["yes", "NO", "not measured"]).all()


def test_every_bar_is_for_a_figure_that_evaluate_gives(result):
    made = json.loads(result.read_text())
    made["provenance"]["dataset"]["folds"] = [5]
    other = json.loads(json.dumps(made))
    other["provenance"]["dataset"]["folds"] = [4]
    made["timing"] |= dict(explainer=dict(ratio=1.), full_width=dict(ratio=1.))
    assert "not measured" not in set(check_requirements(figures(made | dict(memory_mb=dict(beyond_torch=1.)), other, training_minutes=1.)).met)


def test_intervals_do_not_depend_on_the_order_of_metrics(explainer, dataset):
    table = score_clips(explainer, dataset, progress=False)
    pd.testing.assert_frame_equal(summarize_table(table), summarize_table(table[table.columns[::-1]]).loc[summarize_table(table).index])


# costs

def test_turns_are_taken_and_the_first_does_not_count(explainer, monkeypatch):
    order, clock = [], iter(range(10**6))
    monkeypatch.setattr(explainer.classifier, "forward", lambda m, phase=None, f=explainer.classifier.forward: order.append("c") or f(m, phase))
    monkeypatch.setattr(explainer.fast_decoder, "forward", lambda *a, f=explainer.fast_decoder.forward: order.append("d") or f(*a))
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: next(clock))
    cost = time_decoder(explainer, n_repeats=3)
    assert "".join(order) == "cd" * 4   # a warm-up and three turns, after a pass that reads the taps
    assert cost == dict(classifier_s=1, decoder_s=1, ratio=1., n_repeats=3, batch_size=1)


@pytest.mark.slow
def test_full_width_is_the_size_of_the_paper():
    explainer = full_width()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (explainer.classifier.model, explainer.decoder)]
    assert 70e6 < sizes[0] < 90e6 and sizes[1] < sizes[0] / 20 and len(explainer.labels) == 50


@pytest.mark.skipif(sys.platform == "win32", reason="there is no resource module")
def test_peak_memory_is_that_of_the_program_and_not_of_its_parent():
    ballast = b"1" * 200_000_000
    small = peak_rss_mb([sys.executable, "-c", "pass"])
    assert small < 100 and len(ballast) > 0
    assert 90 < peak_rss_mb([sys.executable, "-c", "x = b'1' * 100_000_000"]) - small < 120
    with pytest.raises(RuntimeError, match="ended with status 3: no luck"):
        peak_rss_mb([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])
