"""Sanity checks: similarity measures on known arrays, randomisation, removal, resumption, and quick runs of all experiments."""
import gzip
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lmac.evidence import sanity
from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.evidence.sanity import (Maps, attribution_maps, cascade, group_intervals, iou, pairwise_similarity, propose_stages, randomize_layers,
                                  rank_correlation, remove_and_retrain, remove_bins, ssim)
from lmac.spectrogram import STFT, LogMel

pytest.importorskip('skimage', reason="SSIM is scikit-image's")


@pytest.fixture(scope='module')
def explainer():
    "Untrained, with batch statistics that are not those of a new network"
    torch.manual_seed(0)
    stft, model = STFT(512, 256), Cnn14(3, width=4, n_mels=40, max_width=32)
    model.train()
    for _ in range(2): model(torch.rand(4, 40, 40))
    classifier = TappedClassifier(model, LogMel(n_fft=512, n_mels=40), ['conv_block1', 'conv_block3'], ['x', 'y', 'z'], 16000, duration_s=.6)
    decoder = MaskDecoder.for_classifier(classifier, stft)
    for p in decoder.parameters(): nn.init.normal_(p, std=.3)
    return LMAC(classifier, decoder, stft)

@pytest.fixture(scope='module')
def waveform(): return torch.cat([make_scene({name: 0, 'rain': -12}, .6, seed=i).waveform for i, name in enumerate(('dog', 'siren', 'clock_tick'))])

@pytest.fixture(scope='module')
def magnitude(explainer, waveform): return sanity._magnitudes(explainer, waveform)

class Energy:
    "Never looks at the classifier"
    name = 'energy'
    def attribute(self, magnitude, target=None): return magnitude.log1p() / magnitude.log1p().amax((1, 2), keepdim=True)

class Gradient:
    "Saliency in two lines, which notes the targets that it was given"
    name, targets = 'gradient', None
    def __init__(self, explainer): self.explainer = explainer
    def attribute(self, magnitude, target=None):
        Gradient.targets = target
        x = magnitude.clone().requires_grad_()
        gradient, = torch.autograd.grad(self.explainer.classifier(x).gather(1, target[:, None]).sum(), x)
        return gradient.abs() / gradient.abs().amax((1, 2), keepdim=True)


# similarity
def test_measures_on_known_maps():
    a = torch.arange(200.).view(2, 10, 10) / 200
    flat = torch.full_like(a, .3)
    assert torch.allclose(rank_correlation(a, a), torch.ones(2))
    assert torch.allclose(rank_correlation(a, 1 - a), -torch.ones(2))
    assert torch.allclose(rank_correlation(a, a.exp()), torch.ones(2))
    assert rank_correlation(a, flat).tolist() == rank_correlation(flat, flat).tolist() == [0, 0]
    assert torch.allclose(ssim(a, a), torch.ones(2)) and (ssim(a, 1 - a) < .5).all()
    kept = (a > .25).float()
    assert iou(kept, kept).tolist() == [1, 1] and iou(kept, 1 - kept).tolist() == [0, 0]
    assert iou(0 * kept, 0 * kept).tolist() == [1, 1]

def test_rank_correlation_is_scipys_with_ties():
    from scipy.stats import spearmanr
    torch.manual_seed(0)
    a, b = torch.randint(4, (2, 3, 8, 9)).float()
    expected = [spearmanr(x, y)[0] for x, y in zip(a.flatten(1), b.flatten(1))]
    assert np.allclose(rank_correlation(a, b), expected, atol=1e-6)
    assert np.allclose((sanity._unit_ranks(a) @ sanity._unit_ranks(b).T).diagonal(), expected, atol=1e-6)

def test_ssim_is_scikit_images():
    from skimage.metrics import structural_similarity
    torch.manual_seed(0)
    a, b = torch.rand(2, 2, 12, 11)
    expected = [structural_similarity(x.numpy(), y.numpy(), data_range=1.) for x, y in zip(a, b)]
    assert np.allclose(ssim(a, b), expected, atol=1e-6)

@pytest.mark.parametrize('measure', [rank_correlation, ssim, iou])
def test_measures_refuse_other_shapes(measure):
    with pytest.raises(ValueError, match=r'one shape .* Found: \(2, 9, 9\) and \(2, 9, 8\)'): measure(torch.rand(2, 9, 9), torch.rand(2, 9, 8))

def test_measures_refuse_nan():
    with pytest.raises(ValueError, match='2 values of 18'): sanity._unit_ranks(torch.tensor([[1., np.nan, 2.]] * 2).repeat(1, 3)[:, :9].clone().index_fill(1, torch.tensor([4, 7]), 0.))

def test_compare_ranks_scores_and_shows_masks():
    torch.manual_seed(0)
    mask, scores = torch.rand(2, 2, 9, 9)
    found = sanity._map_similarity(Maps(mask, scores), Maps(mask, -scores))
    assert np.allclose(found['rank_correlation'], -1) and np.allclose(found['abs_rank_correlation'], 1)
    assert np.allclose(found['ssim'], 1) and found['iou'] == [1, 1]
    assert Maps(mask).of_others().mask[0].equal(mask[1])

def test_compare_pairs_has_the_floor():
    torch.manual_seed(0)
    a, b = Maps(torch.rand(3, 9, 9)), Maps(torch.rand(3, 9, 9))
    table = pairwise_similarity(dict(a=a, again=a, b=b))
    assert len(table) == 3 * 2 * 3
    same = table[(table.a == 'a') & (table.b == 'again')].groupby('compared').rank_correlation.mean()
    assert same['same clip'] == pytest.approx(1) and abs(same['another clip']) < .5


# randomisation
def test_stages_of_cnn14_whatever_the_taps(explainer):
    stages = propose_stages(explainer)
    assert list(stages) == ['fc', 'fc1', *(f'conv_block{k}' for k in range(6, 0, -1))]
    names = [name for layers in stages.values() for name in layers]
    assert sorted(names) == sorted(n for n, m in explainer.classifier.model.named_modules() if list(m.parameters(recurse=False)))
    assert list(propose_stages(explainer, ['conv_block3'])) == ['fc', 'fc1', *[n for k in (6, 5, 4) for n in
        (f'conv_block{k}.bn2', f'conv_block{k}.conv2', f'conv_block{k}.bn1', f'conv_block{k}.conv1')], 'conv_block3']

class Own(nn.Module):
    "Two convolutions, one of them used twice"
    def __init__(self):
        super().__init__()
        self.first, self.twice, self.head = nn.Conv2d(1, 4, 5, 2, 2), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 3)
    def forward(self, x): return self.head(self.twice(self.twice(self.first(x[:, None]).relu()).relu()).amax((2, 3)))

def test_stages_of_another_classifier():
    stft = STFT(512, 256)
    classifier = TappedClassifier(Own(), LogMel(n_fft=512, n_mels=40), ['first'], list('abc'), 16000, 'freq_time', duration_s=.6)
    own = LMAC(classifier, MaskDecoder.for_classifier(classifier, stft), stft)
    assert propose_stages(own) == dict(head=['head'], twice=['twice'], first=['first'])

@pytest.mark.parametrize('names', [['fc'], ['fc', 'fc1'], ['conv_block6', 'fc'], ['conv_block1.bn1', 'bn0']])
def test_randomises_exactly_the_layers_named(explainer, names):
    before = {k: v.clone() for k, v in explainer.classifier.model.state_dict().items()}
    changed = randomize_layers(explainer, names, seed=3).classifier
    differ = {k for k, v in changed.model.state_dict().items() if not v.equal(before[k])}
    inside = {k for k in before if any(k.startswith(f'{name}.') for name in names)}
    assert differ <= inside
    assert {k.rpartition('.')[0] for k in differ} == {k.rpartition('.')[0] for k in inside}  # each of the layers
    assert all(v.equal(before[k]) for k, v in explainer.classifier.model.state_dict().items())
    assert not changed.training and not any(p.requires_grad for p in changed.parameters())

def test_batch_statistics_are_reset(explainer):
    norm = randomize_layers(explainer, ['conv_block2']).classifier.model.conv_block2.bn1
    assert norm.running_mean.eq(0).all() and norm.running_var.eq(1).all() and norm.num_batches_tracked == 0
    assert not explainer.classifier.model.conv_block2.bn1.running_mean.eq(0).all()

def test_statistics_estimated_of_named_layers_only(explainer, magnitude):
    changed, plain = (randomize_layers(explainer, ['conv_block5', 'fc'], 0, m).classifier.model for m in (magnitude, None))
    assert changed.conv_block5.conv1.weight.equal(plain.conv_block5.conv1.weight)
    assert not changed.conv_block5.bn1.running_mean.eq(0).all() and plain.conv_block5.bn1.running_mean.eq(0).all()
    assert not changed.training and not changed.conv_block5.bn1.training and changed.conv_block5.bn1.momentum == .1
    for name in ('conv_block4', 'conv_block6', 'bn0'):
        for a, b in zip(getattr(changed, name).buffers(), getattr(explainer.classifier.model, name).buffers()): assert a.equal(b)

def test_random_weights_depend_on_seed_and_name_only(explainer):
    state = torch.random.get_rng_state()
    def weight(names, seed): return randomize_layers(explainer, names, seed).classifier.model.fc1.weight
    assert weight(['fc1'], 0).equal(weight(['fc', 'conv_block6', 'fc1'], 0))
    assert not weight(['fc1'], 0).equal(weight(['fc1'], 1))
    assert torch.random.get_rng_state().equal(state)

def test_reset_says_what_it_cannot(explainer):
    class Scale(nn.Module):
        def __init__(self): super().__init__(); self.factor = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"'0' \(Scale\) has weights and no reset_parameters"): sanity._reset_layers(nn.Sequential(Scale()), ['0'])
    with pytest.raises(ValueError, match="no layer 'nowhere'"): randomize_layers(explainer, ['nowhere'])

@pytest.mark.parametrize('statistics', sanity.STATISTICS)
def test_cascade(explainer, magnitude, statistics):
    before = {k: v.clone() for k, v in explainer.classifier.state_dict().items()}
    table = cascade(Gradient, explainer, magnitude, seeds=(0, 1), statistics=statistics)
    assert all(v.equal(before[k]) for k, v in explainer.classifier.state_dict().items())
    assert len(table) == 2 * 10 * 3
    nothing = table[table.stage == 'none']
    assert np.allclose(nothing.rank_correlation, 1) and np.allclose(nothing.ssim, 1)
    assert table[table.depth == 8].rank_correlation.mean() < .9
    assert Gradient.targets.equal(explainer.classifier(magnitude).argmax(1))  # of the untouched classifier

def test_cascade_of_who_ignores_the_model(explainer, magnitude):
    table = cascade(lambda explainer: Energy(), explainer, magnitude, stages=['fc', 'conv_block1'])
    assert np.allclose(table[table.depth >= 0].rank_correlation, 1) and table.depth.max() == 2

def test_cascade_of_lmac_follows_the_random_maps(explainer, magnitude):
    table = cascade(lambda explainer: explainer, explainer, magnitude, stages=['fc', 'conv_block1'])
    mean = table.groupby('stage').rank_correlation.mean()
    assert mean['none'] == pytest.approx(1) and mean['fc'] == pytest.approx(1) and mean['conv_block1'] < .99  # taps are below fc

def test_draw_maps_in_batches(explainer, magnitude):
    target = torch.tensor([0, 1, 2])
    whole, parts = (attribution_maps(Gradient(explainer), magnitude, target, size) for size in (8, 2))
    assert torch.allclose(whole.mask, parts.mask, atol=1e-5)
    assert torch.allclose(attribution_maps(explainer, magnitude, target).mask, explainer.attribute(magnitude, target), atol=1e-5)
    decoder = MaskDecoder(**explainer.decoder.config | dict(n_classes=None))
    plain = LMAC(explainer.classifier, decoder, explainer.stft)  # class-agnostic: the predicted class, whatever the target
    assert torch.allclose(attribution_maps(plain, magnitude, target).mask, plain.attribute(magnitude), atol=1e-5)


# remove and retrain
@pytest.mark.parametrize('share', [0., .1, .25, .9, 1.])
@pytest.mark.parametrize('mode', ['remove', 'keep'])
def test_removes_exactly_the_share(share, mode):
    torch.manual_seed(0)
    magnitude, scores = torch.rand(2, 2, 20, 30) + .1
    gone = remove_bins(magnitude, scores, share, 'mean', mode, torch.full((20, 1), 7.))
    removed = gone.sub(7).abs() < 1e-3
    assert removed.sum((1, 2)).tolist() == [round(share * 600)] * 2
    assert torch.allclose(gone[~removed], magnitude[~removed], atol=1e-5)
    for s, r in zip(scores, removed):
        if 0 < share < 1: assert (s[r].min() > s[~r].max()) if mode == 'remove' else (s[r].max() < s[~r].min())

def test_neighbours_are_copies_of_what_is_kept():
    torch.manual_seed(0)
    magnitude = torch.rand(2, 20, 30) + .1
    kept = (torch.rand(2, 20, 30) > .5).float()
    found = sanity._copy_neighbours(magnitude, kept)
    for m, k, f in zip(magnitude, kept.bool(), found):
        assert torch.allclose(f[k], m[k])
        assert (f[~k][:, None] - m[k]).abs().amin(1).max() < 1e-6
        assert (f[~k][:, None] - m[~k]).abs().amin(1).min() > 0  # and nothing that was removed
    assert found.equal(sanity._copy_neighbours(magnitude, kept)) and sanity._copy_neighbours(magnitude, 0 * kept).sum() == 0

def test_neighbours_are_near():
    level = torch.arange(100.)[None, :, None].expand(1, 100, 50)
    kept = torch.ones(1, 100, 50)
    kept[:, 40:44] = 0
    assert (sanity._copy_neighbours(level, kept) - level).abs().max() < 30

def test_mean_fill_is_the_mean_in_the_masks_domain():
    magnitude = torch.rand(5, 4, 6)
    assert torch.allclose(sanity._mean_fill(magnitude).log1p()[:, 0], magnitude.log1p().mean((0, 2)), atol=1e-5)

@pytest.mark.parametrize('wrong', [dict(share=-.1), dict(share=1.1), dict(share=.5, mode='burn'), dict(share=.5, fill='zero')])
def test_removal_refuses(wrong):
    with pytest.raises(ValueError, match='Found'): remove_bins(torch.rand(1, 4, 4), torch.rand(1, 4, 4), **wrong)

def bands(n):
    "Features `(clip, 40, 32)` whose class is the loud band, which is easy; and where it is"
    torch.manual_seed(0)
    target = torch.arange(n) % 2
    where = torch.zeros(n, 40, 32)
    for i, t in enumerate(target): where[i, 10 + 16 * t:14 + 16 * t] = 1
    return .5 * torch.rand(n, 40, 32) + where, target, where

def test_small_training_learns_and_repeats():
    features, target, _ = bands(16)
    state = torch.random.get_rng_state()
    a, b = (sanity._train_small(features, target, 2, epochs=25, width=4, lr=1e-2, batch_size=8) for _ in range(2))
    assert all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))
    assert sanity._is_correct(a, features, target).float().mean() > .9
    assert torch.random.get_rng_state().equal(state)

def test_roar_tells_what_matters_from_what_does_not():
    magnitude, target, where = bands(24)
    training = torch.arange(24) < 16
    def accuracy(scores, mode='remove', fill='neighbours'):
        found = remove_and_retrain(magnitude, scores, target, training, nn.Identity(), .1, mode, fill, seeds=(0, 1), epochs=25, width=4, lr=1e-2, batch_size=8)
        assert sorted(found) == [0, 1] and all(len(correct) == 8 for correct in found.values())
        return np.mean([correct.float().mean() for correct in found.values()])
    assert accuracy(where, 'outline', 'mean') == 1             # the holes give the class away
    assert accuracy(torch.rand_like(where)) > accuracy(where)  # if they can't be seen, their bins are missed

def test_permutation_keeps_the_classes():
    target = torch.arange(60) % 3
    assert sanity._permuted(target).bincount().tolist() == [20, 20, 20] and not sanity._permuted(target).equal(target)
    assert sanity._permuted(target, 1).equal(sanity._permuted(target, 1)) and not sanity._permuted(target, 1).equal(sanity._permuted(target, 2))


# stability and labels
def test_less_noise_less_change(explainer, waveform):
    table = sanity._noise_stability(Energy(), explainer, waveform, (0., 30., 60.)).groupby('snr_db').mean()
    assert table.rank_correlation.is_monotonic_increasing and table.unchanged.loc[60.] == 1

def test_faithful_to_oneself(explainer, magnitude):
    other = randomize_layers(explainer, ['fc', 'fc1'])
    both = dict(a=explainer, b=other)
    table = sanity._cross_faithfulness({name: Maps(torch.rand_like(magnitude)) for name in both}, both, magnitude, share=1.)
    assert len(table) == 2 * 2 * 3 and np.allclose(table.AD, 0, atol=1e-2) and (table['Fid-In'] == 1).all()


# asked for what is not there
class Pleaser:
    "Keeps everything for class 1 and nothing for the others"
    name = 'pleaser'
    def attribute(self, magnitude, target=None): return torch.ones_like(magnitude) * (target == 1)[:, None, None]

def test_each_class_is_asked_for(explainer, magnitude):
    found = sanity._score_all_classes(Pleaser(), explainer, magnitude)
    p = explainer.classifier(magnitude).softmax(1)
    assert found.groupby('asked')['clip'].apply(list).tolist() == [[0, 1, 2]] * 3
    assert (found.groupby('asked').kept.mean() == [0, 1, 0]).all()
    pleased = found[found.asked == 1]
    torch.testing.assert_close(torch.tensor(pleased.p_in.to_numpy()), p[:, 1], rtol=1e-3, atol=1e-5)
    assert (pleased.likeness == 100. * (p[:, 1] > .5).numpy()).all()
    assert found[found.presence == 'predicted'].sort_values('clip').asked.tolist() == p.argmax(1).tolist()
    assert ((found.presence == 'ruled out') == ((found.p < .01) & (found.presence != 'predicted'))).all()


# files
def test_clips_count_once():
    table = sanity._tidy(pd.DataFrame(dict(method='m', seed=[0, 1, 0, 1], clip=[0, 0, 1, 1], ssim=[0., 1, 1, 1])), ['ssim', 'iou'])
    row, = group_intervals(table, ['method', 'measure'])
    assert row['n'] == 2 and row['mean'] == .75 and row['low'] <= .75 <= row['high']


@pytest.fixture(scope='module')
def runs(tmp_path_factory): return tmp_path_factory.mktemp('runs')

RUNS = dict(cascade=sanity.run_cascade, roar=sanity.run_roar, stability=sanity.run_stability, labels=sanity.run_labels, absent=sanity.run_absent)

@pytest.mark.parametrize('name', RUNS)
def test_quick_runs_write_valid_files_and_resume(name, runs, tmp_path, monkeypatch):
    monkeypatch.setenv('LMAC_CACHE', str(runs/'cache'))
    out = tmp_path/f'{name}.json'
    result = RUNS[name](out, quick=True, runs=runs)
    assert json.loads(out.read_text()) == result
    assert {'settings', 'results', 'seconds', 'provenance'} <= result.keys() and result['settings']['quick']
    table = pd.read_csv(io.BytesIO(gzip.decompress(out.with_suffix('.csv.gz').read_bytes())))
    assert {'clip', 'measure', 'value', 'method'} <= set(table) and table['value'].notna().all()
    for row in result['results']: assert row['low'] <= row['mean'] <= row['high'] and row['n'] >= 1
    for what in ('train_explainer', '_train_small', 'train_classifier'): monkeypatch.setattr(sanity, what, lambda *a, **k: pytest.fail(f'{what} again'))
    again = RUNS[name](out, quick=True, runs=runs)
    assert again['results'] == result['results']

def open_tiny(monkeypatch, folder):
    "The tiny subject, made in `folder`, in runs that are not quick"
    def opened(out, quick, seed, runs): return sanity._Subject(sanity.Record(out, runs), quick, seed, *sanity._tiny_subject(folder/'tiny'))
    monkeypatch.setattr(sanity, '_open_subject', opened)

def test_costly_methods_see_the_first_random_network_only(runs, tmp_path, monkeypatch):
    monkeypatch.setenv('LMAC_CACHE', str(runs/'cache'))
    open_tiny(monkeypatch, runs)
    options = dict(methods=['lmac', 'smoothgrad'], n_clips=2, seeds=(3, 5), statistics=('reset',), runs=runs)
    result = sanity.run_cascade(tmp_path/'few.json', **options)
    table = pd.read_csv(tmp_path/'few.csv.gz')
    assert {m: set(rows.seed) for m, rows in table.groupby('method')} == dict(lmac={3, 5}, smoothgrad={3})
    assert result['settings']['costly'] == ['smoothgrad']


def test_a_killed_run_goes_on(runs, tmp_path, monkeypatch):
    monkeypatch.setenv('LMAC_CACHE', str(runs/'cache'))
    out, calls, real = tmp_path/'killed.json', [], sanity.cascade
    def dies(*args, **kwargs):
        if calls: raise KeyboardInterrupt
        calls.append(1)
        return real(*args, **kwargs)
    monkeypatch.setattr(sanity, 'cascade', dies)
    with pytest.raises(KeyboardInterrupt): sanity.run_cascade(out, quick=True, runs=runs)
    assert not out.exists()
    def counts(*args, **kwargs): calls.append(1); return real(*args, **kwargs)
    monkeypatch.setattr(sanity, 'cascade', counts)
    result = sanity.run_cascade(out, quick=True, runs=runs)
    assert len(calls) == len(result['settings']['methods']) * len(sanity.STATISTICS)  # one before, the others after

@pytest.mark.parametrize('run', RUNS.values())
def test_result_file_must_be_json(run, tmp_path):
    with pytest.raises(ValueError, match='must end in .json'): run(tmp_path/'x.txt', quick=True, runs=tmp_path)

def test_parts_belong_to_the_weights_of_every_method(tmp_path, monkeypatch, runs):
    "Another explainer under the name of one that was compared before is not taken for it"
    monkeypatch.setenv('LMAC_CACHE', str(runs/'cache'))
    open_tiny(monkeypatch, runs)
    rival, folder = sanity._tiny_subject(runs/'tiny')[0], tmp_path/'rival'
    def ask(): return sanity.run_absent(tmp_path/'absent.json', methods=[f'lmac:{folder}'], n_clips=2, conditions=('clean',), runs=tmp_path/'runs')
    rival.save_pretrained(folder)
    first = ask()
    with monkeypatch.context() as m:
        m.setattr(sanity, '_score_all_classes', lambda *args: pytest.fail('scored again'))
        assert ask()['results'] == first['results']
    decoder = MaskDecoder(**rival.decoder.config)
    LMAC(rival.classifier, decoder, rival.stft, rival.domain).save_pretrained(folder)
    assert ask()['results'] != first['results']
