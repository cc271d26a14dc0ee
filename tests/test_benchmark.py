"""Evaluation: agreement with explanations, one numerical route, result files that repeat and give nobody away."""
import getpass
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from lmac import benchmark
from lmac.audio import make_scene, save_audio
from lmac.benchmark import (BARS, CONDITIONS, check_bars, command_line, evaluate, figures, full_width, git_revision, judge,
                            machine, peak_rss_mb, score_batch, score_clips, show_results, summarize_table, time_decoder)
from lmac.classifier import TappedClassifier
from lmac.data import ClipDataset, folder_table
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.metrics import METRICS
from lmac.spectrogram import STFT, LogMel

LABELS = ["rain", "siren"]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 5, 2, 2), nn.Conv2d(4, 8, 5, 2, 2), nn.Linear(8, 2)

    def forward(self, x): return 5 * self.head(self.b(self.a(x[:, None]).relu()).relu().amax((2, 3)))


@pytest.fixture(scope="module")
def explainer():
    "An untrained explainer, whose masks vary from bin to bin"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(512, 256)
        classifier = TappedClassifier(Small(), LogMel(n_fft=512, n_mels=40), ["a", "b"], LABELS, 16000, "freq_time", 0.4)
        decoder = MaskDecoder.for_classifier(classifier, stft)
        for p in decoder.parameters(): p.data.mul_(3)
        return LMAC(classifier, decoder, stft)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    "Six loud clips of a length that is no multiple of the hop, one of them silent"
    root = tmp_path_factory.mktemp("scenes")
    for i in range(6):
        label = LABELS[i % 2]
        (root/label).mkdir(exist_ok=True)
        waveform = make_scene({label: 0}, 0.4, seed=i).waveform
        save_audio(root/label/f"{label}{i}.wav", 0 * waveform if i == 5 else waveform / waveform.abs().max(), 16000)
    return ClipDataset(*folder_table(root, 1), 16000, 0.4, cache_dir=root/"cache")


@pytest.fixture(scope="module")
def result(explainer, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")/"deeper"/"small.json"
    evaluate(explainer, dataset, [1], out, name="/models/small", data=str(out.parent), progress=False)
    return out


# scores

@pytest.mark.parametrize("threshold", [None, 0.5])
def test_clips_are_judged_as_explanations_judge_them(explainer, dataset, threshold):
    seen = judge(explainer, dataset.waveforms, threshold)
    heard = judge(explainer, dataset.waveforms, threshold, heard=True)
    gains = []
    for i, waveform in enumerate(dataset.waveforms):
        ex, k = explainer.explain(waveform, 16000, threshold=threshold), int(seen[0][i])
        assert k == ex.class_index
        torch.testing.assert_close(seen[1][i], ex.mask, atol=1e-5, rtol=0)
        for p, expected in ((seen[3], ex.probability_masked_in), (seen[4], ex.probability_masked_out),
                            (heard[3], ex.probability_heard), (heard[2], ex.probability)):
            assert abs(float(p[i, k]) - expected) < 1e-4
        gains.append(ex.gain_db)
    if threshold:   # a rounded mask lets a part peak higher than the whole; a soft one seldom does
        assert min(gains) < 0, "no clip was scaled down, so that part was not tested"


class Constant(LMAC):
    "The same mask value everywhere"
    value = 1.
    def attribute(self, magnitude, target=None, threshold=None): return torch.full_like(magnitude, self.value)


@pytest.mark.parametrize("heard", [False, True])
def test_a_mask_of_ones_changes_nothing_at_all(explainer, dataset, heard):
    table = score_clips(Constant(explainer.classifier, explainer.decoder, explainer.stft), dataset, heard=heard, progress=False)
    assert (table.p == table.p_in).all()
    assert (table[["AI", "AD", "AG"]] == 0).all().all() and (table[["Fid-In", "kept"]] == 1).all().all()


def test_a_mask_of_zeros_swaps_the_parts(explainer, dataset):
    nothing = Constant(explainer.classifier, explainer.decoder, explainer.stft)
    nothing.value = 0.
    table = score_clips(nothing, dataset, progress=False)
    assert (table.p == table.p_out).all() and (table.FF == 0).all() and (table.kept == 0).all()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_scores_are_finite_in_range_and_per_clip(explainer, dataset, condition):
    table = score_clips(explainer, dataset, **CONDITIONS[condition], progress=False)
    assert list(table["clip"]) == [Path(path).stem for path in dataset.table["path"]]
    assert (table.correct == (table.label == table.decided)).all()
    assert not table.isna().any().any()
    for metric in METRICS.values():
        assert table[metric.short].between(metric.low, metric.high or float("inf")).all(), metric.short
    one_by_one = score_clips(explainer, dataset, **CONDITIONS[condition], batch_size=1, progress=False)
    numbers = [c for c in table.select_dtypes("number") if c != "AI"]   # AI may hang on a rounding error
    pd.testing.assert_frame_equal(table[numbers], one_by_one[numbers], atol=1e-2, rtol=1e-3)


def test_binary_masks_are_binary_and_kept_is_their_share(explainer, dataset):
    mask = judge(explainer, dataset.waveforms, 0.5)[1]
    assert set(mask.unique().tolist()) == {0., 1.}
    torch.testing.assert_close(score_batch(explainer, dataset.waveforms, 0.5)["kept"], mask.mean((1, 2)))


def test_clips_shorter_than_the_classifier_was_trained_on(explainer, dataset):
    short = dataset.waveforms[:, :5000]
    decided, mask, *probabilities = judge(explainer, short, heard=True)
    assert mask.shape[-1] == explainer.stft.n_frames(6400)
    assert abs(float(probabilities[1][0, decided[0]]) - explainer.explain(short[0], 16000).probability_heard) < 1e-4


@pytest.mark.parametrize("what, value", [("labels", ["rain", "sea"]), ("sample_rate", 8000)])
def test_another_dataset_is_refused(explainer, dataset, what, value):
    other = dataset.subset(range(6))
    setattr(other, what, value)
    with pytest.raises(ValueError, match=rf"classifier's {what}, .* Found: {re.escape(str(value))}"):
        score_clips(explainer, other, progress=False)


def test_the_classifier_is_untouched(explainer, dataset):
    before = {k: v.clone() for k, v in explainer.classifier.state_dict().items()}
    score_clips(explainer, dataset, heard=True, progress=False)
    assert all(torch.equal(v, explainer.classifier.state_dict()[k]) for k, v in before.items())


# result files

def test_result_file_holds_the_means_of_the_table_beside_it(result):
    made, table = json.loads(result.read_text()), pd.read_csv(result.with_suffix(".csv.gz"))
    assert len(table) == 4 * 6 and len(made["results"]) == 4 * 11
    for row in made["results"]:
        part = table[(table["mask"] == row["mask"]) & (table.judged_on == row["judged_on"])]
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
    monkeypatch.setattr(benchmark, "score_clips", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"): evaluate(explainer, dataset, [1], out, progress=False)
    assert out.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_what_cannot_be_written_is_known_before_anything_is_computed(explainer, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "score_clips", lambda *a, **k: pytest.fail("computed first"))
    (tmp_path/"file").write_text("")
    with pytest.raises(ValueError, match="must end in .json. Found: r.txt"): evaluate(explainer, dataset, [1], tmp_path/"r.txt")
    with pytest.raises(OSError): evaluate(explainer, dataset, [1], tmp_path/"file"/"r.json")
    with pytest.raises(ValueError, match="folds"): evaluate(explainer, dataset, [9], tmp_path/"r.json")


@pytest.mark.parametrize("argv, expected", [
    (["/usr/local/bin/lmac-evaluate", "--out", "/a/b/r.json"], "lmac-evaluate --out r.json"),
    (["lmac-evaluate", "--out=/a b/r.json", "esc10"], "lmac-evaluate --out=r.json esc10"),
    (["C:\\env\\lmac-evaluate.exe", "nbs/results/r.json"], "lmac-evaluate.exe nbs/results/r.json"),
    (["lmac-evaluate", "~/models/mine", "--fold", "5"], "lmac-evaluate mine --fold 5"),
    (["lmac-evaluate", "two words"], "lmac-evaluate 'two words'")])
def test_commands_lose_their_absolute_folders(argv, expected): assert command_line(argv) == expected


def test_git_revision(tmp_path):
    def git(*args): subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True, capture_output=True)
    assert git_revision(tmp_path) is None
    git("init")
    package = tmp_path/"package"
    package.mkdir()
    (package/"__init__.py").write_text("")
    assert git_revision(package) is None   # in somebody's checkout, but not part of it
    git("add", "-A")
    assert git_revision(package) is None   # no commit yet
    git("commit", "-m", "first")
    clean = git_revision(package)
    assert re.fullmatch(r"[0-9a-f]{40}", clean["revision"]) and clean["dirty"] is False
    (tmp_path/"result.json").write_text("{}")
    assert git_revision(package) == clean   # a result file does not change the code
    (package/"__init__.py").write_text("x = 1")
    assert git_revision(package) == clean | dict(dirty=True)


# tables and bars

def test_table_has_a_row_for_each_condition(result):
    shown = show_results(json.loads(result.read_text()))
    assert list(shown.index) == list(CONDITIONS)
    assert list(shown) == ["AI ↑", "AD ↓", "AG ↑", "FF ↑", "Fid-In ↑", "SPS ↑", "COMP ↓", "kept"]
    assert shown.map(lambda text: bool(re.fullmatch(r"\S+ \[\S+, \S+\]", text))).all().all()


def fake(fold, ai, heard_ai, **more):
    rows = [dict(mask="soft", judged_on=j, metric="AI", mean=v, low=v, high=v, n=80) for j, v in (("spectrogram", ai), ("heard", heard_ai))]
    return dict(results=rows, accuracy=dict(mean=91.25), timing={}, provenance=dict(dataset=dict(folds=[fold]))) | more


def test_figures_are_held_against_the_bars():
    costs = dict(timing=dict(explainer=dict(ratio=0.4), full_width=dict(ratio=0.26)), memory_mb=dict(beyond_torch=300.))
    met = check_bars(figures(fake(5, 69.9, 73., **costs), fake(4, 0, 0), training_minutes=25.1))
    met = met.set_index(["condition", "metric"]).met
    assert met["classifier", "accuracy, fold 5"] == "yes" and met["classifier", "accuracy, fold 4"] == "NO"
    assert met["soft masks", "AI"] == "NO" and met["soft masks", "AD"] == "not measured"
    assert met["soft masks, heard against spectrogram", "AI"] == "NO"   # 3.1 points better is not within 3
    assert met["time of decoder / classifier", "bundled"] == "yes"
    assert met["time of decoder / classifier", "CNN14 at full width"] == "NO"
    assert met["lmac-explain", "MB beyond importing torch"] == "yes" and met["training on 2 cores", "minutes"] == "NO"
    assert len(met) == len(BARS) and met.isin(["yes", "NO", "not measured"]).all()


def test_every_bar_is_for_a_figure_that_evaluate_gives(result):
    made = json.loads(result.read_text())
    made["provenance"]["dataset"]["folds"] = [5]
    other = json.loads(json.dumps(made))
    other["provenance"]["dataset"]["folds"] = [4]
    made["timing"] |= dict(explainer=dict(ratio=1.), full_width=dict(ratio=1.))
    assert "not measured" not in set(check_bars(figures(made | dict(memory_mb=dict(beyond_torch=1.)), other, training_minutes=1.)).met)


def test_intervals_do_not_depend_on_the_order_of_metrics(explainer, dataset):
    table = score_clips(explainer, dataset, progress=False)
    pd.testing.assert_frame_equal(summarize_table(table), summarize_table(table[table.columns[::-1]]).loc[summarize_table(table).index])


# costs

def test_turns_are_taken_and_the_first_does_not_count(explainer, monkeypatch):
    order, clock = [], iter(range(10**6))
    monkeypatch.setattr(explainer.classifier, "forward", lambda m, f=explainer.classifier.forward: order.append("c") or f(m))
    monkeypatch.setattr(explainer.fast_decoder, "forward", lambda *a, f=explainer.fast_decoder.forward: order.append("d") or f(*a))
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(clock))
    cost = time_decoder(explainer, n_repeats=3)
    assert "".join(order) == "c" + "cd" * 4   # the maps first, then a warm-up and three turns
    assert cost == dict(classifier_s=1, decoder_s=1, ratio=1., n_repeats=3, batch_size=1)


@pytest.mark.slow
def test_full_width_is_the_size_of_the_paper():
    explainer = full_width()
    sizes = [sum(p.numel() for p in m.parameters()) for m in (explainer.classifier.model, explainer.decoder)]
    assert 70e6 < sizes[0] < 90e6 and sizes[1] < 1e6 and len(explainer.labels) == 50


@pytest.mark.skipif(sys.platform == "win32", reason="there is no resource module")
def test_peak_memory_is_that_of_the_program_and_not_of_its_parent():
    ballast = b"1" * 200_000_000
    small = peak_rss_mb([sys.executable, "-c", "pass"])
    assert small < 100 and len(ballast) > 0
    assert 90 < peak_rss_mb([sys.executable, "-c", "x = b'1' * 100_000_000"]) - small < 120
    with pytest.raises(RuntimeError, match="ended with status 3: no luck"):
        peak_rss_mb([sys.executable, "-c", "import sys; print('no luck', file=sys.stderr); sys.exit(3)"])


def test_machine_names_a_processor(): assert set(machine()) == {"cpu", "cores_used", "system"}
