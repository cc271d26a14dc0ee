"""The benchmark: conditions, equal shares, ground truth, parts that survive a kill, paired comparisons."""
import json
import re
import socket

import numpy as np
import pandas as pd
import pytest
import torch

from lmac.evidence import benchmark
from lmac.audio import make_scene, save_audio
from lmac.evidence.benchmark import (Shares, attribution, compare, contaminate, curve_area, few_clips, load_method, mask_auc,
                            parse_condition, read_benchmark, scene_dataset, results_table, si_sdr, aggregate, take_batches,
                            topk_mask, verdict)
from lmac.classifier import Cnn14, TappedClassifier
from lmac.data import snr_db
from lmac.decoder import MaskDecoder
from lmac.evidence.evaluation import VARIANTS, score_mask, score_clips, score_full_input
from lmac.explain import LMAC
from lmac.spectrogram import STFT, LogMel

LABELS = ["rain", "siren"]


# conditions

@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    "A data folder with an excerpt shorter and one longer than the clips"
    root = tmp_path_factory.mktemp("data")
    (root/"speech").mkdir()
    for name, duration in (("short", 0.3), ("long", 1.0)):
        save_audio(root/"speech"/f"{name}.wav", make_scene({"crying_baby": 0}, duration, seed=3).waveform, 16000)
    return root


@pytest.mark.parametrize("condition", ["ambient@5", "mixture@5", "mixture@-3.5", "white_noise@3", "speech@5"])
def test_levels_are_exact_and_parts_add_up(clips, speech, monkeypatch, condition):
    monkeypatch.setenv("LMAC_DATA", str(speech))
    mixed, target, other = contaminate(clips, condition)
    assert torch.equal(target, clips.waveforms) and mixed.shape == target.shape
    torch.testing.assert_close(target + other, mixed)
    torch.testing.assert_close(snr_db(target, other), torch.full((5,), parse_condition(condition)[1]), atol=1e-2, rtol=0)
    assert torch.equal(contaminate(clips, condition)[0], mixed) and not torch.equal(contaminate(clips, condition, seed=1)[0], mixed)


def test_clean_clips_are_the_clips(clips):
    mixed, target, other = contaminate(clips, "clean", seed=7)
    assert torch.equal(mixed, clips.waveforms) and torch.equal(mixed, target) and not other.any()


def test_a_mixture_holds_a_clip_of_another_class(clips):
    _, target, other = contaminate(clips, "mixture@0")
    for i, x in enumerate(other):
        alike = torch.nn.functional.cosine_similarity(x[None], target, dim=1)
        assert alike.max() > 0.999 and clips.targets[alike.argmax()] != clips.targets[i]


@pytest.mark.parametrize("condition", ["ambient@5", "white_noise@3", "mixture@5"])
def test_contamination_does_not_depend_on_batches_order_or_random_state(explainer, clips, condition):
    whole, one_by_one = (take_batches(explainer, clips, condition, 0, size) for size in (16, 1))
    assert torch.equal(whole[0].waveform, torch.cat([batch.waveform for batch in one_by_one]))
    torch.manual_seed(123)
    backwards = contaminate(clips.subset([4, 3, 2, 1, 0]), condition)[0].flip(0)
    if condition != "mixture@5": assert torch.equal(backwards, whole[0].waveform)
    before = torch.get_rng_state()
    assert torch.equal(contaminate(clips, condition)[0], whole[0].waveform) and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("condition", ["rain@5", "mixture", "mixture@", "speech@loud", "white_noise@nan", "ambient@inf", ""])
def test_unknown_conditions_are_refused(clips, condition):
    with pytest.raises(ValueError, match=re.escape(f"mixture@5, white_noise@5, speech@5. Found: {condition!r}")): contaminate(clips, condition)


def test_what_a_condition_lacks_is_said(dataset, clips, tmp_path, monkeypatch):
    monkeypatch.setenv("LMAC_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="needs recordings of speech in .*speech"): contaminate(clips, "speech@5")
    with pytest.raises(ValueError, match="two classes or more"): contaminate(clips.subset(clips.targets == 0), "mixture@5")
    with pytest.raises(ValueError, match="silent in 1 of 6"): contaminate(dataset, "white_noise@5")


# equal shares

@pytest.mark.parametrize("share", [0, 0.02, 0.3, 0.5, 1])
@pytest.mark.parametrize("scores", ["random", "constant", "ties"])
def test_shares_are_exact_also_with_ties(share, scores):
    values = dict(random=torch.rand(3, 20, 50), constant=torch.full((3, 20, 50), 0.7), ties=torch.rand(3, 20, 50).mul(4).floor())[scores]
    mask = topk_mask(values, share)
    assert mask.shape == values.shape and set(mask.unique().tolist()) <= {0., 1.}
    assert (mask.sum((1, 2)) == round(share * 1000)).all()
    for v, m in zip(values, mask.bool()):
        if m.any() and not m.all(): assert v[m].min() >= v[~m].max()


def test_ties_are_not_broken_by_place():
    mask = topk_mask(torch.zeros(1, 100, 100), 0.3)
    assert mask.mean(2).std() < 0.1 and mask.mean(1).std() < 0.1 and abs(mask[0, :50].mean() - 0.3) < 0.03
    assert torch.equal(mask, topk_mask(torch.ones(1, 100, 100), 0.3))   # the same lot for everybody


def test_a_share_of_the_energy_takes_as_few_bins_as_it_needs():
    torch.manual_seed(0)
    scores, energy = torch.rand(4, 30, 40), torch.rand(4, 30, 40)**4
    mask = topk_mask(scores, 0.5, energy)
    kept, total = (mask * energy).sum((1, 2)), energy.sum((1, 2))
    last = torch.where(mask.bool(), scores, torch.inf).flatten(1).argmin(1)   # the least important bin that is kept
    assert (kept >= 0.5 * total).all() and (kept - energy.flatten(1).gather(1, last[:, None])[:, 0] < 0.5 * total).all()
    assert topk_mask(scores, 0.5, torch.zeros_like(energy)).sum() == 0   # silence has no energy to keep
    assert topk_mask(scores, 1, energy).sum() == energy.count_nonzero()


def test_top_share_refuses_nonsense():
    x = torch.rand(1, 4, 4)
    for share in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"between 0 and 1. Found: {share}"): topk_mask(x, share)
    with pytest.raises(ValueError, match="finite"): topk_mask(x / 0, 0.5)
    with pytest.raises(ValueError, match="scores' shape"): topk_mask(x, 0.5, torch.rand(1, 4, 5))


def test_areas_of_a_model_worked_by_hand():
    "The probability is the share of the sound that is left, of bins worth 4, 3, 2, 1"
    worth, levels = torch.tensor([[0.4, 0.3, 0.2, 0.1]]), (0.25, 0.5, 0.75)
    for scores, kept in ((worth, [0.4, 0.7, 0.9]), (-worth, [0.1, 0.3, 0.6])):
        p_in = torch.stack([(topk_mask(scores, s) * worth).sum(1) for s in levels])
        assert p_in[:, 0].tolist() == pytest.approx(kept)
        insertion = curve_area(levels, p_in, torch.zeros(1), torch.ones(1))
        deletion = curve_area(levels, 1 - p_in, torch.ones(1), torch.zeros(1))
        assert insertion.item() == pytest.approx(0.25 * (sum(kept) + 0.5)) and deletion.item() == pytest.approx(1 - insertion.item())


def test_levels_need_not_be_evenly_spaced():
    assert curve_area((0.1, 0.8), torch.tensor([[0.1], [0.8]]), torch.zeros(1), torch.ones(1)).item() == pytest.approx(0.5)


# ground truth

def test_an_oracle_and_a_hopeless_mask(explainer, clips):
    mixed, target, other = contaminate(clips, "mixture@0")
    louder = explainer.stft(target)[0] > explainer.stft(other)[0]
    whole, found = score_full_input(explainer, mixed), {}
    for name, mask in (("oracle", louder.float()), ("hopeless", 1 - louder.float())):
        heard = score_mask(explainer, whole, mask, ["audio"])[1][0]
        found[name] = mask_auc(mask, louder), si_sdr(heard, target) - si_sdr(mixed, target)
    assert (found["oracle"][0] == 1).all() and (found["oracle"][1] > 3).all()
    assert (found["hopeless"][0] == 0).all() and (found["hopeless"][1] < -3).all()
    torch.testing.assert_close(mask_auc(torch.ones_like(mixed)[:, :100], torch.rand(5, 100) < 0.3), torch.full((5,), 0.5).double())


def test_auc_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    torch.manual_seed(0)
    scores, label, weight = torch.rand(3, 20, 20).mul(10).round(), torch.rand(3, 20, 20) < 0.4, torch.rand(3, 20, 20)
    for w in (None, weight):
        expected = [metrics.roc_auc_score(y.flatten(), s.flatten(), sample_weight=None if w is None else v.flatten()) for y, s, v in zip(label, scores, weight)]
        assert mask_auc(scores, label, w).tolist() == pytest.approx(expected, abs=1e-6)
    assert mask_auc(scores, torch.ones_like(label)).isnan().all()


@pytest.mark.parametrize("ratio_db", [-10., 0., 20.])
def test_si_sdr_of_orthogonal_sounds(ratio_db):
    t = torch.arange(16000) / 16000
    target, other = torch.sin(2 * torch.pi * 440 * t)[None], torch.sin(2 * torch.pi * 880 * t)[None]
    mixed = target + other * 10**(-ratio_db / 20)
    for gain in (1, -3): assert si_sdr(gain * mixed, target).item() == pytest.approx(ratio_db, abs=.01)


def test_si_sdr_has_limits():
    a, b = torch.eye(2, 4)
    assert [si_sdr(x, a).item() for x in (a, b, 0 * a)] == [100, -30, -30]
    assert si_sdr(a, 0 * a).item() == si_sdr(0 * a, 0 * a).item() == -30   # nothing to be near to


# methods

class Rival:
    "Ranks by a fixed lot; counts how often it is asked"
    how = "a lot"
    def __init__(self, name="rival", seed=0): self.name, self.settings, self.calls = name, dict(seed=seed), 0
    def attribute(self, magnitude, target=None):
        self.calls += 1
        assert torch.is_grad_enabled() and not torch.is_inference(magnitude)
        return torch.rand(magnitude.shape[1:], generator=torch.Generator().manual_seed(self.settings["seed"])).expand_as(magnitude)


@pytest.mark.parametrize("mask, found", [(lambda m: 1.5 * torch.ones_like(m), "1.5 to 1.5"), (lambda m: torch.ones_like(m)[:, 1:], "shape"),
                                         (lambda m: torch.full_like(m, torch.nan), "nan")])
def test_what_is_no_mask_is_refused(explainer, clips, mask, found):
    rival = Rival("broken")
    rival.attribute = lambda magnitude, target=None: mask(magnitude)
    with pytest.raises(ValueError, match=f"broken must give masks of shape .* Found: .*{found}"):
        attribution(rival, explainer.magnitude_phase(clips.waveforms)[0], torch.zeros(5).long())


def test_scores_rank_and_masks_mask(explainer, clips):
    class Both(Rival):
        def scores(self, magnitude, target): return -magnitude.requires_grad_()
        def to_mask(self, scores): return (scores - scores.min()) / (scores.max() - scores.min())
    magnitude = explainer.magnitude_phase(clips.waveforms)[0]
    mask, scores = attribution(Both(), magnitude.clone(), torch.zeros(5).long())
    assert torch.equal(scores, -magnitude) and mask.max() == 1 and not mask.requires_grad


@pytest.fixture(scope="module")
def cnn_explainer():
    "An explainer of a network of ours, which can be loaded again without its code"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft, settings = STFT(512, 256), dict(labels=LABELS, sample_rate=16000, duration_s=0.6)
        model = Cnn14(2, width=4, n_mels=40, max_width=8)
        made = [TappedClassifier(model, LogMel(n_fft=512, n_mels=40), taps, **settings) for taps in (["conv_block1", "conv_block2"], ["conv_block2"])]
        return [LMAC(c, MaskDecoder.for_classifier(c, stft), stft) for c in made]


def test_methods_are_found_by_name(cnn_explainer, tmp_path):
    first, second = cnn_explainer
    magnitude = torch.rand(2, 257, 40)
    assert load_method("lmac", first) is first
    same = load_method(f"lmac:{first.save_pretrained(tmp_path/'a')}", first)
    other = load_method(f"lmac:{second.save_pretrained(tmp_path/'b')}", first)   # other taps, same classifier
    torch.testing.assert_close(same.attribute(magnitude), first.attribute(magnitude))
    torch.testing.assert_close(other.attribute(magnitude), second.attribute(magnitude))
    another = TappedClassifier(Cnn14(2, width=4, n_mels=40, max_width=8), LogMel(n_fft=512, n_mels=40), ["conv_block1"], LABELS, 16000, duration_s=0.6)
    foreign = LMAC(another, MaskDecoder.for_classifier(another, first.stft), first.stft).save_pretrained(tmp_path/"c")
    with pytest.raises(ValueError, match="'c' was made for another classifier: sha256 differ"): load_method(f"lmac:{foreign}", first)
    with pytest.raises(ValueError, match="Unknown method 'clairvoyance'. Known: lmac, saliency"): load_method("clairvoyance", first)
    assert load_method("gradcam", first).attribute(magnitude).shape == magnitude.shape


# the benchmark

SETTINGS = dict(folds=[1], conditions=["clean", "mixture@5"], seeds=[0, 1], progress=False, command="a test")


@pytest.fixture(scope="module")
def contest(explainer, clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("contest")/"contest.json"
    benchmark.benchmark(explainer, clips, out=out, methods=["lmac", Rival()], **SETTINGS)
    return out


def test_one_row_per_clip_method_condition_seed_and_way(contest, clips):
    result, summary, table = read_benchmark(contest)
    ways = 2 * 4 + len(Shares().curve) - 1 + 1
    assert len(table) == 2 * 2 * 2 * 5 * ways and not table.duplicated(["method", "condition", "seed", "clip", "mask", "scored_on"]).any()
    judged = table[table["mask"] != "ranking"]
    assert not judged[["p", "p_in", "p_out", "AI", "AD", "AG", "FF", "Fid-In", "AD_ref", "kept", "energy_fraction"]].isna().any().any()
    ranking = table[table["mask"] == "ranking"]
    assert ranking.insertion.between(0, 1).all() and ranking.deletion.between(0, 1).all()
    assert (ranking.AUC.notna() == (ranking.correct & (ranking.condition != "clean"))).all()
    share = judged[judged["mask"].str.endswith("of bins")]
    assert (share.kept - share["mask"].str.split().str[0].astype(float)).abs().max() < 1e-3
    assert set(summary.n) <= {5, *table[table.correct].groupby(["condition", "method"])["clip"].nunique()}   # clips, not clips × seeds
    assert not contest.with_suffix(".parts").exists() and set(result["accuracy"]) == {"clean", "mixture@5"}


def test_the_benchmark_agrees_with_the_evaluation(contest, explainer, clips):
    _, _, table = read_benchmark(contest)
    for (mask, scored_on), how in VARIANTS.items():
        rows = table.query("method == 'lmac' and condition == 'clean' and seed == 0 and mask == @mask and scored_on == @scored_on")
        expected = score_clips(explainer, clips, **how, progress=False)
        assert list(rows["clip"]) == list(expected["clip"])
        np.testing.assert_allclose(rows[["p", "p_in", "p_out", "AD", "FF", "SPS"]], expected[["p", "p_in", "p_out", "AD", "FF", "SPS"]], rtol=1e-3, atol=1e-3)


def test_summary_holds_the_means_of_the_table(contest):
    _, summary, table = read_benchmark(contest)
    row = summary.query("method == 'rival' and condition == 'mixture@5' and mask == 'binary' and scored_on == 'audio' and metric == 'AD'").iloc[0]
    values = table.query("method == 'rival' and condition == 'mixture@5' and mask == 'binary' and scored_on == 'audio'").groupby("clip").AD.mean()
    assert row["mean"] == pytest.approx(values.mean(), abs=1e-4) and row.low <= row["mean"] <= row.high and row.n == 5
    assert list(results_table(summary, "clean").index) == ["lmac", "rival"]


def test_provenance_says_what_was_compared_and_gives_nobody_away(contest):
    made = json.loads(contest.read_text())["provenance"]
    assert [m["name"] for m in made["methods"]] == ["lmac", "rival"] and made["methods"][1] == dict(name="rival", how="a lot", seed=0)
    assert (made["conditions"], made["seeds"], made["shares"]["bins"], made["command"]) == (["clean", "mixture@5"], [0, 1], 0.3, "a test")
    text = contest.read_text()
    assert not re.search(r'"(/|~/|[A-Za-z]:\\)', text) and socket.gethostname() not in text


class Killed(Exception): pass


class Mortal(Rival):
    "Is killed when asked for the `last` time"
    last = 10**6
    def attribute(self, magnitude, target=None):
        if self.calls + 1 == self.last: raise Killed
        return super().attribute(magnitude, target)


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(explainer, clips, contest, tmp_path):
    out, mortal = tmp_path/"again.json", Mortal()
    mortal.last = 3   # one call per condition and seed
    with pytest.raises(Killed): benchmark.benchmark(explainer, clips, out=out, methods=["lmac", mortal], **SETTINGS)
    parts = {p: p.stat().st_mtime_ns for p in out.with_suffix(".parts").iterdir()}
    assert len(parts) == 5 and not out.exists() and mortal.calls == 2   # lmac and rival twice, and lmac a third time
    mortal.last = 10**6
    again = benchmark.benchmark(explainer, clips, out=out, methods=["lmac", mortal], **SETTINGS)
    assert mortal.calls == 4 and again["results"] == json.loads(contest.read_text())["results"]
    assert out.with_suffix(".csv.gz").read_bytes() == contest.with_suffix(".csv.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.csv.gz", "again.json"]


@pytest.mark.parametrize("change", ["weights", "clips", "shares", "method settings"])
def test_parts_of_other_settings_are_made_anew(explainer, clips, tmp_path, change):
    out, settings = tmp_path/"r.json", SETTINGS | dict(seeds=[0])
    killed = Mortal()
    killed.last = 2
    with pytest.raises(Killed): benchmark.benchmark(explainer, clips, out=out, methods=[killed], **settings)
    rival, other, used = Rival(), explainer, clips
    if change == "weights":
        other = LMAC(explainer.classifier, MaskDecoder.for_classifier(explainer.classifier, explainer.stft), explainer.stft)
    elif change == "clips": used = clips.subset([0, 1, 2, 3])
    elif change == "shares": settings["shares"] = Shares(bins=0.2)
    else: rival = Rival(seed=1)
    benchmark.benchmark(other, used, out=out, methods=[rival], **settings)
    assert rival.calls == 2, "a part that was made under other settings was taken"


def test_what_cannot_be_done_is_said_before_anything_is_computed(explainer, clips, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "take_batches", lambda *a: pytest.fail("computed first"))
    monkeypatch.setenv("LMAC_DATA", str(tmp_path))
    def run(**changes): benchmark.benchmark(explainer, clips, **SETTINGS | dict(out=tmp_path/"r.json", methods=[Rival()]) | changes)
    with pytest.raises(ValueError, match="must end in .json"): run(out=tmp_path/"r.txt")
    with pytest.raises(ValueError, match="Found: 'mix@5'"): run(conditions=["clean", "mix@5"])
    with pytest.raises(FileNotFoundError, match="speech"): run(conditions=["clean", "speech@5"])
    with pytest.raises(ValueError, match="different names. Found: rival, rival"): run(methods=[Rival(), Rival()])
    with pytest.raises(ValueError, match="folds"): run(folds=[9])


def test_the_quick_form_runs_on_synthetic_scenes(tmp_path):
    "With the bundled explainer, as in continuous integration, but with one cheap method less"
    lmac = LMAC.from_pretrained()
    scenes = scene_dataset(lmac.labels, tmp_path, 1)
    assert scenes.labels == lmac.labels and len(scenes) == 10
    result = benchmark.benchmark(lmac, scenes, [5], tmp_path/"quick.json", methods=["lmac", "energy"], quick=True, data="scenes", progress=False)
    assert result["provenance"]["dataset"] == dict(name="scenes", folds=[5], n_clips=8) and list(result["accuracy"]) == ["clean", "mixture@5"]
    with pytest.raises(ValueError, match="no synthetic scenes of cat"): scene_dataset(["dog", "cat"], tmp_path)


def test_few_clips_are_of_many_classes(clips):
    assert few_clips(clips, 3).targets.tolist() == [0, 1, 0] and len(few_clips(clips, 99)) == 5


# statistics

def fake_scores(**methods):
    "A table of AD on soft masks, and of FF on binary ones"
    rows = [dict(method=m, condition="clean", seed=0, mask=mask, scored_on=scored_on, clip=str(i), **{metric: v})
            for m, values in methods.items() for mask, metric in (("soft", "AD"), ("binary", "FF")) for scored_on in ("spectrogram", "audio")
            for i, v in enumerate(values)]
    return pd.DataFrame(rows)


def test_paired_comparison_of_known_numbers():
    ours = [1., 5, 2, 8, 3, 4]
    found = compare(fake_scores(lmac=ours, worse=[v + d for v, d in zip(ours, [1, 2, 3, 4, 5, 6])], same=ours, odd=[2., 4, 3, 7, 4, 3]))
    ad = found.query("metric == 'AD' and scored_on == 'audio'").set_index("method")
    ff = found.query("metric == 'FF' and scored_on == 'audio'").set_index("method")
    assert ad.advantage.to_dict() == pytest.approx(dict(worse=3.5, same=0, odd=0))   # a lower AD is better
    assert ff.advantage["worse"] == pytest.approx(-3.5)   # a lower FF is worse
    assert ad.verdict.to_dict() == dict(worse="wins", same="ties", odd="ties") and ff.verdict["worse"] == "loses"
    assert ad.p["worse"] == pytest.approx(2 / 2**6) and ad.p["same"] == 1   # six of six on one side
    assert ad.p_holm["worse"] == pytest.approx(3 * 2 / 2**6) and (ad.n == 6).all()
    assert 1.5 < ad.low["worse"] < 3.5 < ad.high["worse"] < 5.5


def test_pairs_are_seen_where_intervals_overlap():
    rng = np.random.default_rng(0)
    ours = rng.normal(50, 30, 80)
    table = fake_scores(lmac=ours, rival=ours + rng.normal(2, 1, 80))
    means = aggregate(table).query("metric == 'AD' and scored_on == 'audio'").set_index("method")
    assert means.high["lmac"] > means.low["rival"]
    assert compare(table).query("metric == 'AD'").verdict.eq("wins").all()


def test_seeds_do_not_make_more_clips():
    table = fake_scores(lmac=[1., 2, 3, 4], rival=[2., 3, 4, 6])
    doubled = pd.concat([table, table.assign(seed=1)])
    pd.testing.assert_frame_equal(compare(table), compare(doubled))
    pd.testing.assert_frame_equal(aggregate(table), aggregate(doubled))


def test_the_verdict_names_who_is_not_beaten():
    found = verdict(compare(fake_scores(lmac=[1., 2, 3, 4, 5, 6], weak=[9.] * 6, strong=[0.] * 6, twin=[1., 2, 3, 4, 5, 6])))
    row = found.loc[("clean", "soft", "audio", "AD")]
    assert (row.wins, row.ties, row.loses) == ("1 of 3", "twin", "strong")


@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_holm_is_that_of_statsmodels(n):
    from statsmodels.stats.multitest import multipletests
    p = np.random.default_rng(n).uniform(size=n)**3
    p[n // 2:] = p[n // 2:].round(1)   # ties among them, and ones
    assert benchmark._holm(p) == pytest.approx(multipletests(p, method="holm")[1], abs=1e-12)
