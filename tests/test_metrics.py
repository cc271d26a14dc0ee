"""Metrics: parity with Quantus, ranges on random input, refused input, the reference's AD, and interval coverage."""
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lmac.metrics import (METRICS, average_drop, average_gain, average_increase, bootstrap_interval, complexity, energy_within,
                          faithfulness, frame_f1, input_fidelity, intersection_over_union, pointing_game, sparseness, summarize)


def random_generator(seed): return torch.Generator().manual_seed(seed)


def probability_pairs(seed, n_clips=500):
    "Pairs of probabilities that cover the square, its corners, its edges and its diagonal"
    corners = torch.tensor([[0., 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5], [1e-12, 1], [1 - 1e-7, 1e-30]])
    pairs = torch.cat([torch.rand(n_clips, 2, generator=random_generator(seed)), corners])
    return pairs[:, 0], pairs[:, 1]


# parity with Quantus

def quantus_scores(name, maps):
    quantus = pytest.importorskip('quantus')
    metric = getattr(quantus, name)(disable_warnings=True, display_progressbar=False)
    a = np.asarray(maps, dtype=np.float64).reshape(len(maps), 1, *maps.shape[1:])
    if (a == a.max()).all(): return metric.evaluate_batch(a, np.ones_like(a))   # its checks refuse it, not its formula
    return np.array(metric(model=None, x_batch=a, y_batch=np.zeros(len(a), dtype=int), a_batch=a.copy()))


def sample_maps(kind, shape, seed=0):
    g = random_generator(seed)
    uniform = torch.rand(*shape, generator=g)
    return {'random': uniform, 'signed': torch.randn(*shape, generator=g), 'constant': torch.full(shape, 0.3),
            'sparse': (uniform > 0.99).float() * torch.rand(*shape, generator=g) + (uniform == uniform.max()),
            'binary': (uniform > 0.7).float(), 'steep': uniform ** 20}[kind]


@pytest.mark.parametrize('kind', ['random', 'signed', 'constant', 'sparse', 'binary', 'steep'])
@pytest.mark.parametrize('shape', [(1, 7, 5), (1, 65, 40), (1, 513, 157)])
def test_each_map_scores_as_quantus_scores_it(kind, shape):
    maps = sample_maps(kind, shape)
    np.testing.assert_allclose(sparseness(maps), quantus_scores('Sparseness', maps), rtol=0, atol=1e-5)
    np.testing.assert_allclose(complexity(maps), quantus_scores('Complexity', maps), rtol=0, atol=1e-5)


@pytest.mark.parametrize('kind', ['random', 'sparse', 'binary', 'steep'])
def test_batches_score_as_quantus_scores_them(kind):
    maps = sample_maps(kind, (6, 40, 33), seed=1)
    maps = maps / maps.amax((1, 2), keepdim=True)    # one peak for all: Quantus divides by the largest of the batch
    np.testing.assert_allclose(sparseness(maps), quantus_scores('Sparseness', maps), rtol=0, atol=1e-5)
    np.testing.assert_allclose(complexity(maps), quantus_scores('Complexity', maps), rtol=0, atol=1e-5)


def test_one_bin_of_a_full_spectrogram_scores_as_quantus_scores_it():
    maps = torch.zeros(1, 513, 313)
    maps[0, 17, 99] = 0.2
    np.testing.assert_allclose(sparseness(maps), quantus_scores('Sparseness', maps), rtol=0, atol=1e-5)
    np.testing.assert_allclose(complexity(maps), quantus_scores('Complexity', maps), rtol=0, atol=1e-5)


def test_a_clips_score_does_not_depend_on_its_neighbours():
    maps = sample_maps('sparse', (3, 30, 30), seed=2)
    loud = torch.cat([maps, 1e6 * maps[:1]])
    for metric in (sparseness, complexity):
        torch.testing.assert_close(metric(loud)[:3], metric(maps), rtol=0, atol=1e-12)


def test_lmac_metrics_does_not_import_quantus_or_scipy():
    code = "import sys, lmac.metrics; print([m for m in ('quantus', 'scipy', 'matplotlib') if m in sys.modules])"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


# ranges and relations, on random input

@pytest.mark.parametrize('seed', range(5))
def test_faithfulness_numbers_stay_in_range(seed):
    p, other = probability_pairs(seed)
    for short in ('AI', 'AD', 'AG', 'FF'):
        metric = METRICS[short]
        values = metric.function(p, other)
        assert values.shape == p.shape and values.dtype == torch.float64 and values.isfinite().all()
        assert metric.low <= values.min() and values.max() <= metric.high, short


@pytest.mark.parametrize('seed', range(5))
def test_a_clip_rises_or_drops_but_never_both(seed):
    p, p_in = probability_pairs(seed)
    increase, drop, gain = average_increase(p, p_in), average_drop(p, p_in), average_gain(p, p_in)
    assert not ((drop > 0) & (gain > 0)).any()
    assert (increase[gain > 0] == 100).all() and (increase[drop > 0] == 0).all()
    torch.testing.assert_close(average_gain(p, p_in), average_drop(1 - p.double(), 1 - p_in.double()))   # mirror images
    torch.testing.assert_close(faithfulness(p, p_in), -faithfulness(p_in, p))


@pytest.mark.parametrize('seed', range(5))
def test_map_metrics_stay_in_range_and_ignore_scale_sign_and_order(seed):
    g = random_generator(seed)
    n_freqs, n_frames = (int(n) for n in torch.randint(1, 40, (2,), generator=g))
    maps = torch.randn(8, n_freqs, n_frames, generator=g) * (torch.rand(8, n_freqs, n_frames, generator=g) > 0.5)
    order = torch.randperm(n_freqs * n_frames, generator=g)
    for metric, high in ((sparseness, 1.), (complexity, math.log(n_freqs * n_frames) + 1e-9)):
        values = metric(maps)
        assert values.shape == (8,) and values.isfinite().all() and values.min() >= 0 and values.max() <= high
        torch.testing.assert_close(metric(-3e-4 * maps), values, rtol=0, atol=1e-6)
        torch.testing.assert_close(metric(maps.flatten(1)[:, order]), values, rtol=0, atol=1e-9)


@pytest.mark.parametrize('seed', range(3))
def test_input_fidelity_is_the_share_of_kept_decisions(seed):
    scores = torch.randn(200, 10, generator=random_generator(seed))
    target = torch.randint(10, (200,), generator=random_generator(seed + 100))
    values = input_fidelity(scores, target)
    assert set(values.tolist()) <= {0., 1.}
    assert values.sum() == sum(int(row.argmax()) == t for row, t in zip(scores, target.tolist()))
    assert torch.equal(values, input_fidelity(scores.softmax(1), target))
    assert input_fidelity(scores, scores.argmax(1)).mean() == 1


def test_limits_are_defined():
    assert average_drop([0.], [0.5]).tolist() == [0] and average_gain([1.], [1.]).tolist() == [0]
    silent = torch.zeros(2, 9, 7)
    assert sparseness(silent).tolist() == [0, 0]
    torch.testing.assert_close(complexity(silent), torch.full((2,), math.log(63), dtype=torch.float64))
    single = torch.ones(1, 1)
    assert sparseness(single).item() == 0 and complexity(single).item() == 0


@pytest.mark.parametrize('convert', [lambda x: x, lambda x: x.numpy(), lambda x: x.tolist(), lambda x: x.half(),
                                     lambda x: x.bfloat16(), lambda x: x.clone().requires_grad_()])
def test_tensors_arrays_lists_and_low_precision_are_taken(convert):
    p, p_in = torch.tensor([0.75, 0.5]), torch.tensor([0.375, 0.75])
    for metric in (average_increase, average_drop, average_gain, faithfulness):
        values = metric(convert(p), convert(p_in))
        assert torch.equal(values, metric(p, p_in)) and not values.requires_grad
    maps = torch.tensor([[0.5, 0.25, 1.], [1., 1., 0.]])
    for metric in (sparseness, complexity): assert torch.equal(metric(convert(maps)), metric(maps))


def test_boolean_masks_are_maps_too():
    mask = torch.rand(3, 8, 9, generator=random_generator(0)) > 0.6
    for metric in (sparseness, complexity): assert torch.equal(metric(mask), metric(mask.float()))


# refused input

VALID = torch.tensor([0.2, 0.7])

@pytest.mark.parametrize('metric', [average_increase, average_drop, average_gain, faithfulness])
@pytest.mark.parametrize('bad, message', [
    (torch.tensor([3.1, -0.4]), 'apply softmax first'),
    (torch.tensor([0.2, 1.01]), 'apply softmax first'),
    (torch.tensor([0.2, float('nan')]), '1 NaN or infinite'),
    (torch.tensor([0.2, float('inf')]), '1 NaN or infinite'),
    (torch.tensor([0.2]), r'\(2,\)|\(1,\)'),
    (torch.rand(2, 10), 'Take one class per clip'),
    (torch.zeros(0), 'must not be empty'),
    (torch.tensor(0.5), r'must have shape \(clip,\)\. Found: \(\)'),
])
def test_what_is_no_probability_is_refused(metric, bad, message):
    for arguments in ((bad, VALID), (VALID, bad)):
        with pytest.raises(ValueError, match=message): metric(*arguments)


@pytest.mark.parametrize('metric', [average_increase, average_drop, average_gain, faithfulness])
def test_what_is_no_number_is_refused(metric):
    for bad in ('0.5', None, ['a', 'b'], {'p': 0.5}, torch.tensor([1j, 0.5])):
        with pytest.raises(TypeError): metric(bad, VALID)


def test_rounding_beyond_one_is_forgiven():
    assert average_gain([1 + 1e-6], [1.]).tolist() == [0] and average_drop([0.5], [-1e-6]).tolist() == [100]


@pytest.mark.parametrize('scores, target, error, message', [
    (torch.rand(4, 3), [0, 1, 2], ValueError, r'shape \(4,\). Found: \(3,\)'),
    (torch.rand(4, 3), [0, 1, 2, 3], ValueError, r'0\.\.2'),
    (torch.rand(4, 3), [0, 1, 2, -1], ValueError, r'0\.\.2'),
    (torch.rand(4, 3), [0., 1, 2, 0], TypeError, 'integer class indices'),
    (torch.rand(4, 3), [True, False, True, True], TypeError, 'integer class indices'),
    (torch.rand(3), [0, 1, 2], ValueError, r'\(clip, class\)'),
    (torch.zeros(0, 3), [], ValueError, 'must not be empty'),
    (torch.full((1, 3), float('nan')), [0], ValueError, 'NaN'),
])
def test_input_fidelity_refuses_what_does_not_fit(scores, target, error, message):
    with pytest.raises(error, match=message): input_fidelity(scores, target)


@pytest.mark.parametrize('metric', [sparseness, complexity])
@pytest.mark.parametrize('bad, error, message', [
    (torch.rand(5), ValueError, r'attribution\[None\]'),
    (torch.zeros(0, 4, 4), ValueError, 'must not be empty'),
    (torch.zeros(2, 0, 4), ValueError, 'must not be empty'),
    (torch.full((1, 2, 2), float('nan')), ValueError, '4 NaN or infinite'),
    (torch.full((1, 2, 2), float('inf')), ValueError, '4 NaN or infinite'),
    (torch.zeros(1, 2, 2, dtype=torch.cfloat), TypeError, 'magnitude'),
])
def test_bad_maps_are_refused(metric, bad, error, message):
    with pytest.raises(error, match=message): metric(bad)


# the reference's AD

def spread(p, n_classes):
    "`(clip, class)`: `p` for class 0, the rest evenly over the others"
    p = torch.as_tensor(p, dtype=torch.float64)[:, None]
    return torch.cat([p, ((1 - p) / (n_classes - 1)).expand(-1, n_classes - 1)], 1)


def test_reference_compat_gives_the_references_numbers():
    full, masked = spread([0.9], 50), spread([0.1], 50)
    assert average_drop(full[:, 0], masked[:, 0]).item() == pytest.approx(88.9, abs=0.05)
    assert average_drop(full, masked, reference_compat=True).item() == pytest.approx(54.6, abs=0.05)
    share, share_in = (math.exp(p) / (math.exp(p) + 49 * math.exp((1 - p) / 49)) for p in (0.9, 0.1))
    expected = 100 * (share - share_in) / share
    assert average_drop(full, masked, reference_compat=True).item() == pytest.approx(expected, abs=1e-9)


def test_reference_compat_follows_the_class_decided_on_the_full_input():
    g = random_generator(5)
    full, masked = (torch.randn(300, 50, generator=g).mul(3).softmax(1) for _ in range(2))
    target = full.argmax(1)
    drop = average_drop(full, masked, reference_compat=True)
    torch.testing.assert_close(drop, average_drop(full, masked, target=target, reference_compat=True))
    assert 0 <= drop.min() and drop.max() <= 100 * (1 - 1 / math.e)
    other = average_drop(full, masked, target=(target + 1) % 50, reference_compat=True)
    assert not torch.allclose(drop, other)


@pytest.mark.parametrize('full, masked, options, error, message', [
    (VALID, VALID, {}, ValueError, r'\(clip, class\)'),
    (torch.rand(2, 5), torch.rand(2, 5), {}, ValueError, 'must sum to 1'),
    (torch.randn(2, 5) * 9, spread([0.5, 0.5], 5), {}, ValueError, 'apply softmax first'),
    (spread([0.5, 0.5], 5), spread([0.5, 0.5], 6), {}, ValueError, 'must have the shape of p'),
    (spread([0.5, 0.5], 5), spread([0.5, 0.5], 5), {'target': [0, 5]}, ValueError, r'0\.\.4'),
])
def test_reference_compat_refuses_what_does_not_fit(full, masked, options, error, message):
    with pytest.raises(error, match=message): average_drop(full, masked, reference_compat=True, **options)


def test_target_without_reference_compat_is_refused():
    with pytest.raises(ValueError, match='reference_compat=True'): average_drop(VALID, VALID, target=[0, 0])


# intervals

def coverage(draw, mean, n_samples=200, confidence=0.95):
    "Share of samples whose interval holds `mean`"
    intervals = [bootstrap_interval(draw(np.random.default_rng(seed)), confidence, n_resamples=400, seed=seed)
                 for seed in range(n_samples)]
    return np.mean([low <= mean <= high for low, high in intervals])


def test_intervals_hold_the_mean_about_as_often_as_promised():
    assert 0.90 <= coverage(lambda rng: rng.normal(3, 2, 80), 3) <= 0.99
    assert 0.88 <= coverage(lambda rng: 100. * (rng.random(80) < 0.7), 70) <= 0.99       # as AI: only 0 or 100
    assert 0.72 <= coverage(lambda rng: rng.normal(3, 2, 80), 3, confidence=0.8) <= 0.87


def test_interval_agrees_with_the_standard_error():
    values = np.random.default_rng(0).normal(10, 5, 400)
    low, high = bootstrap_interval(values)
    half_width = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half_width, values.mean() + half_width), abs=0.1)


def test_interval_is_deterministic_and_seeded():
    values = torch.rand(50, generator=random_generator(0))
    assert bootstrap_interval(values) == bootstrap_interval(values.numpy()) == bootstrap_interval(values, seed=0)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


@pytest.mark.filterwarnings('error')
def test_constant_and_nearly_constant_values_need_no_warning():
    assert bootstrap_interval([4.2] * 10) == (4.2, 4.2) and bootstrap_interval([7.]) == (7., 7.)
    low, high = bootstrap_interval([0.] * 39 + [100.])
    assert 0 <= low <= 2.5 <= high <= 100


@pytest.mark.parametrize('values, options, message', [
    ([], {}, 'must not be empty'), ([0.1, float('nan')], {}, 'NaN'),
    (torch.rand(3, 2), {}, r'\(clip,\)'), (torch.tensor(1.), {}, r'\(clip,\)'),
    ([0.1, 0.2], {'confidence': 95}, 'e.g. 0.95'), ([0.1, 0.2], {'confidence': 0}, 'e.g. 0.95'),
])
def test_bad_values_for_an_interval_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message): bootstrap_interval(values, **options)


def test_summary_is_plain_numbers():
    values = torch.rand(30, generator=random_generator(1))
    summary = summarize({'FF': values, 'AI': torch.full((30,), 100.)})
    assert list(summary) == ['FF', 'AI'] and json.loads(json.dumps(summary)) == summary
    assert summary['FF']['low'] < summary['FF']['mean'] < summary['FF']['high'] and summary['FF']['n'] == 30
    assert summary['AI'] == dict(mean=100., low=100., high=100., n=30)
    assert summarize({'FF': values}) == {'FF': summary['FF']}
    with pytest.raises(ValueError, match='AD must be finite. Found: 1 NaN'): summarize({'AD': torch.tensor([float('nan'), 1.])})


# the table, and speed

def test_every_metric_declares_what_it_is():
    assert list(METRICS) == ['AI', 'AD', 'AG', 'FF', 'Fid-In', 'SPS', 'COMP']
    for short, metric in METRICS.items():
        assert metric.short == short and callable(metric.function) and metric.name and metric.source
        assert metric.direction in ('higher', 'lower') and (metric.high is None or metric.low < metric.high)
    assert {m.short for m in METRICS.values() if m.direction == 'lower'} == {'AD', 'COMP'}


class CountOperations(TorchDispatchMode):
    "Count the tensor operations that run inside"
    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize('metric', [sparseness, complexity])
def test_no_loop_over_clips(metric):
    "A hundred clips take as many tensor operations as two"
    counts = []
    for n_clips in (2, 100):
        with CountOperations() as operations: metric(torch.ones(n_clips, 5, 4))
        counts.append(operations.count)
    assert 0 < counts[0] == counts[1]


def test_64_full_maps_take_about_a_second():
    maps = torch.rand(64, 513, 313, generator=random_generator(0))
    for metric, limit_s in ((complexity, 4), (sparseness, 4)):    # under a second each, with room for a busy machine
        start = time.perf_counter()
        metric(maps)
        elapsed_s = time.perf_counter() - start
        print(f'{metric.__name__} of 64 maps of 513 x 313: {elapsed_s:.2f} s')
        assert elapsed_s < limit_s


# regions and masks against known events

def stretches(*edges, label=None): return [dict(start_s=a, end_s=b, label=label) for a, b in edges]
def box(start_s, end_s, low_hz, high_hz): return dict(start_s=start_s, end_s=end_s, low_hz=low_hz, high_hz=high_hz)


@pytest.mark.parametrize('a, b, expected', [((0, 2), (0, 2), 1), ((0, 2), (1, 3), 1 / 3), ((0, 4), (1, 2), 1 / 4), ((0, 1), (1, 2), 0), ((0, 1), (2, 3), 0), ((1, 1), (1, 1), 0), ((1, 1), (0, 2), 0)])
def test_iou_of_stretches_of_time(a, b, expected):
    assert intersection_over_union(stretches(a), stretches(b)).tolist() == [[pytest.approx(expected)]] == intersection_over_union(stretches(b), stretches(a)).tolist()


def test_iou_of_boxes_is_that_of_torchvision():
    ops = pytest.importorskip('torchvision.ops')
    g = random_generator(0)
    a, b = (torch.rand(n, 2, 2, generator=g, dtype=torch.float64).sort(-1).values for n in (7, 5))
    tables = [[box(*x.flatten().tolist()) for x in t] for t in (a, b)]
    assert torch.allclose(intersection_over_union(*tables, in_frequency=True), ops.box_iou(*(t.transpose(1, 2).flatten(1) for t in (a, b))))
    assert intersection_over_union([box(0, 2, 0, 10)], [box(0, 2, 10, 20)], in_frequency=True).item() == 0 < intersection_over_union([box(0, 2, 0, 10)], [box(0, 2, 10, 20)]).item()


def test_iou_without_regions_or_events():
    assert [intersection_over_union(a, b).shape for a, b in (([], stretches((0, 1))), (stretches((0, 1)), []), ([], []))] == [(0, 1), (1, 0), (0, 0)]


@pytest.mark.parametrize('regions, events, frame_s, expected', [
    ([(0, 2)], [(1, 3)], 1, .5), ([(0, 2)], [(0, 2)], .1, 1), ([(0, 1)], [(1, 2)], .1, 0), ([(0, 1), (.5, 2)], [(0, 2)], .1, 1),  # overlapping ones count once
    ([(0, 4)], [(0, 1)], .1, .4), ([(0, 1)], [(0, 4)], .1, .4), ([(.95, 1.05)], [(1, 2)], 1, 2 / 3),                             # a frame is active if any of it is covered
    ([], [(0, 1)], .1, 0), ([(0, 1)], [], .1, 0), ([(0, 4)], [(0, 9)], .1, 1), ([(-3, 1)], [(0, 1)], .1, 1)])                    # beyond either end
def test_frame_f1(regions, events, frame_s, expected):
    assert frame_f1(stretches(*regions), stretches(*events), 4., frame_s) == pytest.approx(expected)


def test_frame_f1_where_there_is_nothing():
    assert math.isnan(frame_f1([], [], 4.)) and math.isnan(frame_f1(stretches((5, 6)), stretches((7, 8)), 4.))   # all beyond the end
    assert frame_f1([], [], 4., per_class=True) == {}


def test_frame_f1_of_each_class():
    dog, cat = stretches((0, 1), label='dog'), stretches((2, 3), label='cat')
    assert frame_f1(dog + cat, dog, 4., per_class=True) == {'cat': 0, 'dog': 1}
    assert frame_f1(dog, [dict(x, label='cat') for x in dog], 4., per_class=True) == {'cat': 0, 'dog': 0} and frame_f1(dog, [dict(x, label='cat') for x in dog], 4.) == 1
    assert frame_f1([], dog, 4., per_class=True) == {'dog': 0}
    with pytest.raises(ValueError, match='column label'): frame_f1(dict(start_s=[0], end_s=[1]), dog, 4., per_class=True)


@pytest.mark.parametrize('frame_s, theirs', [(1., .6666666666666666), (.2, .5084745762711863), (.02, .3916349809885932)])
def test_frame_f1_is_that_of_sed_eval(frame_s, theirs):
    "`SegmentBasedMetrics(['dog'], time_resolution=frame_s).overall_f_measure()` of sed_eval 0.2.1"
    regions = stretches((.13, 1.49), (2.2, 2.95), (2.7, 4.01), (6.66, 8.2))
    assert frame_f1(regions, stretches((0, 1.1), (1.3, 1.7), (3.05, 3.9), (5, 6.61), (8.19, 9.97)), 10., frame_s) == pytest.approx(theirs)


@pytest.fixture
def spot():
    "Frames of 10 ms, bins of 100 Hz: the loudest at 0.5 s and 1000 Hz, a tenth of the energy at 0.8 s"
    x = torch.zeros(21, 100)
    x[10, 50], x[5, 80] = 3, 1
    return x, 4000, 40


@pytest.mark.parametrize('event, tolerance, expected', [((.5, .6), 0, 1), ((.51, .6), 0, 0), ((.51, .6), .01, 1), ((.4, .5), 0, 1), ((.4, .49), 0, 0), ((.2, .4), .1, 1), ((.2, .39), .1, 0), ((.9, 7), 0, 0)])
def test_pointing_game_in_time(spot, event, tolerance, expected):
    assert pointing_game(spot[0], stretches(event), *spot[1:], tolerance_s=tolerance) == expected


def test_pointing_game_in_frequency_and_among_several(spot):
    x, *rates = spot
    assert [pointing_game(x, [box(.4, .6, 1050, 1500)], *rates, 0, hz) for hz in (None, 0, 49, 50)] == [1, 0, 0, 1]
    assert pointing_game(x, [box(0, .1, 0, 2000), box(.45, .55, 900, 1100), box(.5, .6, 0, 100)], *rates, 0, 0) == 1 and pointing_game(x, [], *rates) == 0
    assert pointing_game((x > 0).float(), stretches((.45, .55)), *rates, 0) == .5                       # two bins share the largest value
    assert pointing_game(torch.ones(21, 100), stretches((.2, .395)), *rates, 0) == pytest.approx(.2)    # all do: the chance of a hit
    assert pointing_game(torch.zeros(21, 100), stretches((.2, .395)), *rates, 0) == pytest.approx(.2)


def test_energy_within(spot):
    x, *rates = spot
    def within(*events, **tolerances): return energy_within(x, stretches(*events), *rates, **dict(tolerance_s=0) | tolerances)
    assert within((.4, .6)) == pytest.approx(.9) and within((.7, 9)) == pytest.approx(.1) and within((.5, .8), (.4, .6)) == within((0, 1)) == 1
    assert within() == within((.51, .79)) == 0 and within((.51, .79), tolerance_s=.01) == 1
    assert energy_within(x, [box(.4, .9, 400, 600)], *rates, 0, 0) == pytest.approx(.1) and energy_within(x, [box(.4, .9, 400, 600)], *rates) == 1
    assert math.isnan(energy_within(0 * x, stretches((0, 1)), *rates))


def test_localization_as_quantus_measures_it(spot):
    quantus = pytest.importorskip('quantus')
    x, *rates = spot
    x = x + torch.rand(x.shape, generator=random_generator(1))
    for event in ((.48, .53), (.6, .9)):
        inside = torch.zeros_like(x)
        inside[:, round(100 * event[0]):round(100 * event[1]) + 1] = 1
        given = dict(model=None, x_batch=np.asarray(x[None, None]), y_batch=np.zeros(1, int), s_batch=np.asarray(inside[None, None].bool()))
        quiet = dict(disable_warnings=True, display_progressbar=False)
        hit, = quantus.PointingGame(**quiet)(a_batch=np.asarray(x[None, None], np.float64), **given)
        mass, = quantus.RelevanceMassAccuracy(**quiet)(a_batch=np.asarray(x[None, None].double().square()), **given)
        assert pointing_game(x, stretches(event), *rates, 0) == hit and energy_within(x, stretches(event), *rates, 0) == pytest.approx(mass)


@pytest.mark.parametrize('call, message', [
    (lambda x: intersection_over_union([dict(onset=0, offset=1)], []), 'regions must be a table with the columns start_s, end_s. Found: onset, offset'),
    (lambda x: intersection_over_union([], stretches((0, 1)), in_frequency=True), 'events must be a table with the columns start_s, end_s, low_hz, high_hz'),
    (lambda x: frame_f1(stretches((2, 1)), [], 4.), r'regions must not end before they begin. Found: \[2.0, 1.0\]'),
    (lambda x: frame_f1(stretches((0, math.nan)), [], 4.), 'regions must be finite'), (lambda x: frame_f1([], [], 0.), 'must be positive seconds. Found: 0.1 and 0'),
    (lambda x: frame_f1([], [], 4., 0), 'Found: 0 and 4'), (lambda x: pointing_game(x[None], [], 4000, 40), r'One clip at a time, of shape \(freq, frame\). Found: \(1, 21, 100\)'),
    (lambda x: energy_within(x, [], 4000, 40, tolerance_s=-1), 'Tolerances must not be negative. Found: -1 s'), (lambda x: pointing_game(x, stretches((0, 1)), 4000, 40, 0, 10.), 'low_hz')])
def test_events_that_are_none(spot, call, message):
    with pytest.raises(ValueError, match=message): call(spot[0])
