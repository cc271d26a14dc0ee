"""Experiments: known answers for what they measure, valid files, and what was trained once is not trained again."""
import gzip
import json

import pandas as pd
import pytest
import torch

pytest.importorskip("speechbrain")
from lmac.evidence import experiments
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.pretrained import WEIGHTS
from lmac.evidence.experiments import (ABLATIONS, RATES, SYNTHETIC, RecordedTask, ablation_configs, check_reference, explainer_task,
                              log_spectral_distance, mixture_quality, mixtures, override_config, paired_difference, paired_differences, pareto)
from lmac.metrics import METRICS
from lmac.evidence.reference import REFERENCE_TAPS, ReferenceDecoder, ReferenceExplainer, with_taps_at
from lmac.spectrogram import STFT, LogMel
from lmac.training import Learner

bundled = pytest.mark.skipif(not (WEIGHTS/"esc10/config.json").is_file(), reason="needs the bundled explainer")
PLAN = dict(data=dict(train=[1, 2, 3], valid=[4]), training=dict(epochs=2, batch_size=4, lr=1e-3, seed=0), mixed_precision="no",
            loss={}, domain="log1p", augmentation={})


EXPERIMENTS = {name: getattr(experiments, f"run_{name}") for name in ("reference", "tradeoff", "ablation", "sources")}


@pytest.fixture(scope="module")
def clips(): return experiments._open_clips(True, 16000, 5.)


@pytest.fixture(scope="module")
def classifier():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TappedClassifier(Cnn14(4, width=2), LogMel(), [f"conv_block{k}" for k in range(1, 7)], SYNTHETIC, 16000, duration_s=1.)


def tables(n=6, shift=0.):
    "Scores as `score_conditions` gives them"
    row = dict(condition="clean", mask="soft")
    return pd.DataFrame([dict(row, clip=i, **{name: float(i) + shift for name in METRICS}) for i in range(n)])


# What is measured

@pytest.mark.parametrize("low, high", [(0., 5.), (5., 5.), (-3., -3.)])
def test_mixtures_are_exact(clips, low, high):
    pairs = mixtures(clips, low, high, seed=3)
    ratio = 10 * (pairs["signal"].square().sum(1) / pairs["other"].square().sum(1)).log10()
    assert ((ratio > low - .01) & (ratio < high + .01)).all()
    torch.testing.assert_close(pairs["signal"] + pairs["other"], pairs["mixed"])
    assert torch.equal(pairs["signal"], clips.waveforms)
    assert (pairs["target"] != pairs["other_target"]).all()
    assert torch.equal(mixtures(clips, low, high, seed=3)["mixed"], pairs["mixed"])
    assert not torch.equal(mixtures(clips, low, high, seed=4)["mixed"], pairs["mixed"])


def test_mixtures_need_two_classes(clips):
    with pytest.raises(ValueError, match="at least two classes. Found: 1"): mixtures(clips.subset(clips.targets == 0))


def test_log_spectral_distance_of_a_gain_and_of_silence():
    clean = torch.rand(3, 20, 7) + .5
    for gain_db in (-12., 0., 6.):
        assert log_spectral_distance(clean * 10**(gain_db / 20), clean, -200.) == pytest.approx([abs(gain_db)] * 3, abs=1e-3)
    flat = torch.ones(1, 4, 5)
    assert log_spectral_distance(0 * flat, flat, -40.).item() == pytest.approx(40)
    assert log_spectral_distance(0 * flat, 0 * flat).item() == 0


class Deaf:
    "Keeps everything; predicts by a list"
    def __init__(self, predicted): self.predicted, self.stft = predicted, STFT()
    def masked_parts(self, waveform): return dict(target=self.predicted, audio_in=self.stft.inverse(*self.stft(waveform), waveform.shape[-1]))


def test_quality_is_against_the_predicted_class(clips):
    pairs = mixtures(clips.fold(5), 5., 5.)
    predicted = torch.stack([pairs["target"][0], pairs["other_target"][1], torch.tensor(4), pairs["target"][3]])
    found = mixture_quality(Deaf(predicted), pairs)
    assert found["SI-SDRi"].isna().tolist() == [False, False, True, False]
    assert found["SI-SDRi"].dropna().abs().max() < .01
    assert (found["SI-SDR"] > 0).tolist() == [True, False, False, True]


def test_paired_differences_know_the_direction():
    worse = {row["metric"]: row["mean"] for row in paired_differences(tables(), tables(shift=2.))}
    assert worse == {name: pytest.approx(2. if m.direction == "lower" else -2.) for name, m in METRICS.items()}
    assert paired_difference(tables().AI, tables().AI) == dict(mean=0, low=0, high=0, p=1, n=6)
    with pytest.raises(ValueError, match="same clips. Found: 6 and 5 rows, 5 in both"): paired_differences(tables(), tables(5))


def test_intervals_leave_out_what_is_missing():
    table = tables().assign(AG=[1., None, 3., None, None, None], AI=float("nan"))
    rows = {row["metric"]: row for row in experiments._interval_rows(table, ["condition", "mask"])}
    assert rows["AG"]["n"] == 2 and rows["AG"]["mean"] == 2 and rows["AD"]["n"] == 6 and "AI" not in rows
    assert rows["AD"]["low"] < rows["AD"]["mean"] < rows["AD"]["high"]


def test_pareto():
    points = pd.DataFrame(dict(good=[3., 2, 1, 1, 3], bad=[3., 1, 2, 1, 3]))
    assert pareto(points, ["good"], ["bad"]).tolist() == [True, True, False, False, True]


def test_bars():
    def cost(method, s, width="trained", **more): return dict(width=width, method=method, decoder_s=s, explanation_s=s, **more)
    row = dict(mask="soft", condition="clean")
    result = dict(differences=[dict(row, metric="AI", mean=1., low=.5, high=2.), dict(row, metric="AD", mean=-1., low=-2., high=.5),
                               dict(row, metric="FF", mean=-1., low=-2., high=-.5), dict(row, metric="SPS", mean=-1., low=-2., high=-.5)],
                  costs=[cost("ours", 1., step_s=1.), cost("reference", 5., step_s=2.9), cost("ours", 1., "full"), cost("reference", 4.9, "full")])
    bars = check_reference(result)
    assert bars.met.tolist() == ["yes", "NO", "NO", "yes", "yes", "NO", "NO", "NO"]
    assert bars.interval[:3].tolist() == ["better", "no difference shown", "worse"]


def test_timing_in_turns():
    calls = []
    assert set(experiments._time_in_turns(dict(a=lambda: calls.append("a"), b=lambda: calls.append("b")), 3)) == {"a", "b"}
    assert calls == ["a", "b"] * 4


# How it is trained

def test_changed_settings():
    config = dict(a=dict(b=1, c=2), d=3)
    assert override_config(config, a__b=5, d=None) == dict(a=dict(b=5, c=2)) and config == dict(a=dict(b=1, c=2), d=3)
    with pytest.raises(ValueError, match="no part 'x'. Found: a, d"): override_config(config, x__b=1)
    with pytest.raises(ValueError, match="no part 'd'"): override_config(config, d__b=1)


def test_every_ablation_changes_one_thing():
    configs = ablation_configs(False, 0)
    assert list(configs) == list(ABLATIONS)
    for name, config in configs.items():
        same = [key for key in config if config[key] == configs["complete"].get(key)]
        parts = {"complete": 0, "class-agnostic": 2}.get(name, 1)  # which cannot be asked for other classes either
        assert len(set(config) - set(same)) == parts, name
    assert ablation_configs(False, 5)["another seed"]["training"]["seed"] == 6
    assert ablation_configs(False, 5)["no complement term"]["training"]["seed"] == 5


def test_every_point_of_the_grid_is_another():
    points = experiments._tradeoff_points(False, 0)
    guided = [p["guidance"] for p in points.values() if p and "guidance" in p]
    assert len({json.dumps(g) for g in guided}) == len(guided) == len(points) - 2
    assert points["not fine-tuned"] is None and "guidance" not in points["no guidance"]


def test_both_decoders_see_the_same_batches(classifier, clips, tmp_path):
    stft, batches = STFT(hop_length=240), {}

    class Watched(RecordedTask):
        def augment(self, waveform):
            found = super().augment(waveform)
            if self.training: seen.append(found[1].clone())
            return found

    for name, seed in (("ours", 0), ("reference", 0), ("other seed", 1)):
        torch.manual_seed(99 + len(batches))  # whatever happened before
        tapped = with_taps_at(classifier, REFERENCE_TAPS) if name == "reference" else classifier
        decoder = (ReferenceDecoder if name == "reference" else MaskDecoder).for_classifier(tapped, stft)
        config, seen = override_config(PLAN, training__seed=seed), []
        history = experiments._fit(explainer_task(tapped, decoder, stft, config, Watched), clips, config, tmp_path/name)
        batches[name] = torch.stack(seen), [row["train_checksum"] for row in history]
    assert batches["ours"][0].shape == (6, 4, 16000)  # 2 epochs of 3 steps
    assert torch.equal(batches["ours"][0], batches["reference"][0]) and batches["ours"][1] == batches["reference"][1]
    assert not torch.equal(batches["ours"][0], batches["other seed"][0]) and batches["ours"][1] != batches["other seed"][1]


def test_timed_steps_leave_the_task_alone(classifier, clips):
    task = explainer_task(classifier, MaskDecoder.for_classifier(classifier, STFT()), STFT(), PLAN, RecordedTask)
    before = {k: v.clone() for k, v in task.state_dict().items()}
    experiments._training_step(task, clips.waveforms[:2])()
    assert all(torch.equal(v, before[k]) for k, v in task.state_dict().items())


def test_scores_are_made_once(tmp_path):
    configs, trained = dict(a=dict(x=1), b=dict(x=2)), []
    def score(config, folder): trained.append(folder.name); return pd.DataFrame(dict(a=[1 / 3, None], b=["x", "y"]))
    first, second, other = (experiments._score_each(experiments.Record(tmp_path/"r.json", tmp_path), configs, score, seed=seed) for seed in (0, 0, 1))
    assert len(set(trained)) == len(trained) == 4 and all(second[name].equals(table) for name, table in first.items())


def test_result_file_must_be_json(tmp_path):
    with pytest.raises(ValueError, match="must end in .json. Found: x.csv"): EXPERIMENTS["ablation"](tmp_path/"x.csv", runs=tmp_path)


# The experiments

def counted(monkeypatch, stop_after=None):
    "Count epochs that are trained; interrupt after some"
    epochs, one_epoch = [], Learner.one_epoch
    def count(learner):
        if len(epochs) == stop_after: raise KeyboardInterrupt
        epochs.append(learner.folder.name)
        return one_epoch(learner)
    monkeypatch.setattr(Learner, "one_epoch", count)
    return epochs


def check_comparison(result, runs):
    "Of the two decoders, as it should come out"
    ours, theirs = (result["training"][k] for k in ("ours", "reference"))
    assert result["same_batches"] and ours["checksums"] == theirs["checksums"] and ours["steps"] == theirs["steps"] == 3
    assert {(r["method"], r["lr"]) for r in result["search"]} == {(m, lr) for m in ("ours", "reference") for lr in RATES}
    for name, t in result["training"].items():
        assert t["lr"] == min((r for r in result["search"] if r["method"] == name), key=lambda r: r["valid_loss"])["lr"]
    assert {(r["method"], r["condition"], r["mask"]) for r in result["rows"]} == {
        (m, c, k) for m in ("ours", "reference") for c in ("clean", "mixture 5 dB") for k in ("soft", "binary", "10% of bins", "20% of bins", "30% of bins")}
    shares = {(r["mask"], round(r["mean"], 2)) for r in result["rows"] if r["metric"] == "kept" and "of bins" in r["mask"]}
    assert shares == {("10% of bins", .1), ("20% of bins", .2), ("30% of bins", .3)}  # the same for both
    assert all(row[key] > 0 for row in result["costs"] for key in ("parameters", "classifier_s", "decoder_s", "explanation_s", "step_s"))
    assert len(check_reference(result)) == 5 * 2 * (2 + 3) + 3
    folder, = (runs/"reference").glob("reference-*/explainer")
    assert ReferenceExplainer.from_folder(folder).provenance["lr"] == theirs["lr"]


@pytest.mark.slow
@bundled
@pytest.mark.parametrize("name", ["reference", "tradeoff"])   # the notebook runs the ablation, and resumes it
def test_quick_run_writes_valid_files_and_resumes(name, tmp_path, monkeypatch):
    out, where = tmp_path/"results"/f"{name}.json", dict(quick=True, runs=tmp_path/"runs")
    with monkeypatch.context() as m:
        before = counted(m, stop_after=1)
        with pytest.raises(KeyboardInterrupt): EXPERIMENTS[name](out, **where)
    assert not out.exists()
    with monkeypatch.context() as m:
        after = counted(m)
        result = EXPERIMENTS[name](out, **where)
    assert len(before) == 1 and after and not set(before) & set(after)  # what was trained is not trained again
    assert len(set(before + after)) == len(before + after) == dict(reference=1 + 2 * len(RATES), tradeoff=2)[name]

    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    assert result["experiment"] == name and result["quick"] and result["seed"] == 0 and result["provenance"]["versions"]["lmac"]
    per_clip = pd.read_csv(out.with_suffix(".csv.gz"))
    rows = pd.DataFrame(result["rows"])
    assert (rows.low <= rows["mean"] + 1e-9).all() and (rows["mean"] <= rows.high + 1e-9).all() and rows.n.max() == 4
    keys = [k for k in rows if k in per_clip and k != "metric" and k not in ("mean", "low", "high", "n")]
    for row in rows.sample(10, random_state=0).to_dict("records"):
        part = per_clip[(per_clip[keys] == pd.Series({k: row[k] for k in keys})).all(axis=1)]
        assert part[row["metric"]].mean() == pytest.approx(row["mean"], rel=1e-4, abs=1e-5)
    assert gzip.decompress(out.with_suffix(".csv.gz").read_bytes()).count(b"\n") == len(per_clip) + 1

    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("scores.json.gz")}
    with monkeypatch.context() as m:
        third = counted(m)
        again = EXPERIMENTS[name](out, **where)
    assert not third and again["rows"] == result["rows"]
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("scores.json.gz")}
    if name == "reference": check_comparison(result, tmp_path/"runs")


@pytest.mark.slow
@bundled
def test_quick_mixtures(tmp_path, monkeypatch):
    "Killed after the training, it goes on without training; what it says is what the table of all questions says"
    out, where = tmp_path/"results"/"sources.json", dict(quick=True, runs=tmp_path/"runs")
    with monkeypatch.context() as m:
        trained = counted(m)
        def stop(*args): raise KeyboardInterrupt
        m.setattr(experiments, "score_sources", stop)
        with pytest.raises(KeyboardInterrupt): EXPERIMENTS["sources"](out, **where)
    assert len(trained) == 1 and not out.exists()
    with monkeypatch.context() as m:
        trained = counted(m)
        result = EXPERIMENTS["sources"](out, **where)
        again = EXPERIMENTS["sources"](out, **where)
    assert not trained and again["bars"] == result["bars"] and json.loads(out.read_text())["bars"] == result["bars"]

    table = pd.read_csv(out.with_suffix(".csv.gz"))
    assert len(table) == 2*2*4*10 and table.groupby(["explainer", "fold", "clip"]).presence.apply(lambda p: (p == "source").sum()).eq(2).all()
    for name, fold in [("esc10-sources", 5), ("esc10", 4)]:
        of = table[(table.explainer == name) & (table.fold == fold)]
        source, absent = of[of.presence == "source"], of[of.presence == "absent"]
        measured = {bar["what"]: bar["measured"] for bar in result["bars"] if (bar["explainer"], bar["fold"]) == (name, fold)}
        assert measured["nearer_own"] == pytest.approx(100*(source["SI-SDR"] > source.to_other).mean())
        surely, perhaps = source.p_in > source.p, source.p_in >= source.p    # the table has six digits, which may make two equal
        assert 100*surely.mean() - 1e-6 <= measured["rises"] <= 100*perhaps.mean() + 1e-6
        assert measured["SI_SDRi"] == pytest.approx(source["SI-SDRi"].mean(), rel=1e-4)
        row = next(r for r in result["absent"] if (r["explainer"], r["fold"], r["classes"]) == (name, fold, "all"))
        assert row["n"] == len(absent) == 32 and row["energy"] == pytest.approx(100*absent.energy.mean(), rel=1e-4)
        assert row["convinced"] == pytest.approx(100*(absent.p_in > .5).mean())
    assert {bar["what"] for bar in result["bars"] if "single clips" in bar["what"]} >= {"AI, soft masks, single clips", "SI-SDR, soft masks, single clips"}


def test_the_reference_keeps_its_published_rate():
    assert 2e-4 in RATES
    assert experiments._reference_configs(False, 0)[1]["training"]["lr"] in RATES


@pytest.mark.slow
def test_memory_of_an_explanation():
    assert experiments._explanation_memory_mb() > 50
