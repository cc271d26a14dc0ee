"""Attribution methods on networks whose answer is known by hand, beside a second library, and on networks of other people.

No recordings and no bundled weights: linear models, two ReLUs, and small untrained convolutions.
"""
import json

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_grad_cam import GradCAM
from torch import nn
from torch.nn import functional as F

from lmac.audio import make_scene, save_audio
from lmac.evidence.baselines import (BASELINES, L2I, Baseline, CompressedInput, GradCam, L2INetwork, clip_seed, make_baseline,
                            map_to_bins, mel_segments, scores_to_mask, seeded, train_l2i, window_shape)
from lmac.classifier import Cnn14, TappedClassifier
from lmac.data import ClipDataset
from lmac.spectrogram import STFT, LogMel

pytestmark = pytest.mark.usefixtures('one_thread')
ALL = sorted(BASELINES)
RANDOM = sorted(name for name, method in BASELINES.items() if method.draws)
FREQS, FRAMES = 6, 8


class Log1p(nn.Module):
    "A front end that makes the classifier a function of exactly what the mask multiplies"
    def forward(self, magnitude): return magnitude.log1p()

def wrap(model, tap='tap', n_classes=2, layout='freq_time', front_end=None):
    return TappedClassifier(model, front_end or Log1p(), tap, [f'class {i}' for i in range(n_classes)], 16000, map_layout=layout)

class Linear(nn.Module):
    "`w·x + b`, by way of a tap that changes nothing"
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.tap, self.weight, self.bias = nn.Identity(), nn.Parameter(torch.randn(2, FREQS, FRAMES)), nn.Parameter(torch.randn(2))
    def forward(self, x): return torch.einsum('bft,cft->bc', self.tap(x[:, None])[:, 0], self.weight) + self.bias

class LinearByRelu(Linear):
    "The same, by way of a ReLU that is never cut off"
    def __init__(self): super().__init__(); self.relu = nn.ReLU(inplace=True)
    def forward(self, x): return self.relu(super().forward(x) + 1e3)

@pytest.fixture
def x(): return 2 + torch.rand(3, FREQS, FRAMES, generator=torch.Generator().manual_seed(1))

TARGET = torch.tensor([0, 1, 1])
def scores(name, model, x, target=TARGET, **kwargs): return make_baseline(name, wrap(model), **kwargs).scores(x.expm1(), target)
def close(a, b, tolerance=1e-4): torch.testing.assert_close(a, b.detach(), rtol=tolerance, atol=tolerance)


# ---- a linear model: the answers are known ----

def test_gradients_of_a_linear_model_are_its_weights(x):
    model = Linear()
    close(scores('saliency', model, x), model.weight[TARGET].abs())
    close(scores('smoothgrad', model, x, noise=.01), model.weight[TARGET].abs())

def test_integrated_gradients_of_a_linear_model(x):
    model = Linear()
    found = scores('integrated_gradients', model, x, n_steps=5, batch_size=4)
    close(found, model.weight[TARGET] * x)
    with torch.no_grad(): gained = (model(x) - model(0 * x)).gather(1, TARGET[:, None])[:, 0]
    close(found.sum((1, 2)), gained)   # completeness

def test_shap_of_a_linear_model_is_weight_times_difference(x):
    "against a background whose clips are all alike, neither method has anything left to chance"
    model, other = LinearByRelu(), torch.rand(1, FREQS, FRAMES)
    for name in ('gradient_shap', 'deeplift_shap'):
        close(scores(name, model, x, background=other.repeat(3, 1, 1).expm1()), model.weight[TARGET] * (x - other), 1e-3)

def test_deeplift_shap_is_the_mean_over_the_background(x):
    model, other = LinearByRelu(), torch.rand(4, FREQS, FRAMES)
    close(scores('deeplift_shap', model, x, background=other.expm1()), model.weight[TARGET] * (x - other.mean(0)), 1e-3)

@pytest.mark.parametrize('overlap', [1, 2])
def test_occlusion_of_a_linear_model_sums_over_windows(x, overlap):
    model = Linear()
    n_fft = 2 * (FREQS - 1)
    found = scores('occlusion', model, x, window_hz=3 * 16000 / n_fft, window_s=4 * 100 / 16000, hop_length=100, overlap=overlap)
    part, rows, columns = model.weight[TARGET] * x, 3, 4
    total, n = torch.zeros_like(x), torch.zeros_like(x)
    step = -(-rows // overlap), -(-columns // overlap)
    for i in range(-(-(FREQS - rows) // step[0]) + 1):
        for j in range(-(-(FRAMES - columns) // step[1]) + 1):
            window = ..., slice(i * step[0], i * step[0] + rows), slice(j * step[1], j * step[1] + columns)
            total[window] += part[window].sum((1, 2), keepdim=True)
            n[window] += 1
    close(found, total / n, 1e-3)

def test_kernel_shap_of_a_linear_model_sums_over_segments(x):
    model = Linear()
    segments = mel_segments((FREQS, FRAMES), 16000, 2, 3)
    found = scores('kernel_shap', model, x, n_bands=2, n_times=3, n_samples=40, batch_size=7)
    part = model.weight[TARGET] * x
    expected = torch.stack([sum((segments == k) * p[segments == k].sum() for k in range(6)) for p in part])
    close(found, expected, 2e-3)

def test_lime_of_a_linear_model_has_its_order(x):
    model = Linear()
    kernel, lime = (scores(name, model, x, n_bands=2, n_times=3, n_samples=60) for name in ('kernel_shap', 'lime'))
    for a, b in zip(kernel, lime): assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > .98

def test_output_can_be_the_probability(x):
    model = Linear()
    found = scores('saliency', model, x, output='probability')
    leaf = x.clone().requires_grad_()
    model(leaf).softmax(1).gather(1, TARGET[:, None]).sum().backward()
    close(found, leaf.grad.abs())

def test_domain_magnitude_attributes_to_the_magnitude(x):
    leaf = x.clone().requires_grad_()
    model = Linear()
    model(leaf.log1p()).gather(1, TARGET[:, None]).sum().backward()
    close(make_baseline('saliency', wrap(model), domain='magnitude').scores(x, TARGET), leaf.grad.abs())


# ---- two ReLUs, worked by hand ----

class TwoLayers(nn.Module):
    "h = relu(A x), y = relu(B h): on x = (3, 1): A x = (2, 4, −1), h = (2, 4, 0), B h = 8 − 2 = 6"
    def __init__(self, kind=nn.ReLU, inplace=True):
        super().__init__()
        self.tap = nn.Identity()
        self.A = nn.Parameter(torch.tensor([[1., -1.], [1., 1.], [-1., 2.]]))
        self.B = nn.Parameter(torch.tensor([[-1., 2., 5.], [0., 0., 0.]]))
        self.relu1, self.relu2 = nn.ReLU(inplace=inplace), nn.ReLU(inplace=inplace)
    def forward(self, x): return self.relu2(self.relu1(self.tap(x[:, None]).flatten(1) @ self.A.T) @ self.B.T)

@pytest.mark.parametrize('inplace', [True, False])
def test_guided_backprop_by_hand(inplace):
    x = torch.tensor([[[3.], [1.]]])
    # plain gradient: −1·(1, −1) + 2·(1, 1) = (1, 3); guided: the −1 does not pass the first ReLU, 2·(1, 1) does
    close(scores('saliency', TwoLayers(inplace=inplace), x, 0), torch.tensor([[[1.], [3.]]]))
    close(scores('guided_backprop', TwoLayers(inplace=inplace), x, 0), torch.tensor([[[2.], [2.]]]))

class OneRelu(nn.Module):
    def __init__(self): super().__init__(); self.tap, self.relu, self.unused = nn.Identity(), nn.ReLU(inplace=True), nn.Linear(1, 1)
    def forward(self, x):
        y = self.relu(self.tap(x[:, None]).flatten(1).sum(1, keepdim=True) - 1)
        return torch.cat([y, -y], 1)

def test_deeplift_by_hand():
    "f = relu(x₁ + x₂ − 1): from 0 at silence to 3 at (3, 1), a ratio of 3 to 4"
    x = torch.tensor([[[3.], [1.]]])
    found = scores('deeplift_shap', OneRelu(), x, 0, background=torch.zeros(2, 2, 1))
    close(found, torch.tensor([[[3.], [1.]]]) * 3 / 4)


# ---- Grad-CAM ----

class Cam(nn.Module):
    "Two maps, x and 1 − x, each averaged and weighted: the weights of Grad-CAM are the head's, over the size of the map"
    def __init__(self, layout='freq_time'):
        super().__init__()
        self.conv, self.layout = nn.Conv2d(1, 2, 1), layout
        self.conv.weight.data = torch.tensor([1., -1.]).reshape(2, 1, 1, 1)
        self.conv.bias.data = torch.tensor([0., 1.])
        self.head = nn.Linear(2, 2)
        self.head.weight.data = torch.tensor([[2., 1.], [-3., 1.]])
    def forward(self, x):
        return self.head(self.conv(x[:, None] if self.layout == 'freq_time' else x[:, None].mT).mean((2, 3)))

@pytest.mark.parametrize('layout', ['freq_time', 'time_freq'])
def test_gradcam_by_hand(x, layout):
    classifier = wrap(Cam(layout), 'conv', layout=layout)
    found = GradCam(classifier).scores(x.expm1(), torch.tensor([0, 0, 1]))
    n = FREQS * FRAMES
    close(found[:2], (2 * x[:2] + (1 - x[:2])).relu() / n)
    close(found[2], (-3 * x[2] + (1 - x[2])).relu() / n)
    assert found[2].max() == 0 and GradCam(classifier).attribute(x.expm1(), 1).max() == 0   # nothing speaks for it: no NaN

class Coarse(GradCAM):
    "pytorch_grad_cam without its scaling to the input's size"
    def get_target_width_height(self, input_tensor): return None

def small_cnn14(n_classes=3, width=4, taps=('conv_block2', 'conv_block4', 'conv_block5')):
    torch.manual_seed(3)
    model, front_end = Cnn14(n_classes, width=width, n_mels=32, max_width=16), LogMel(n_fft=512, n_mels=32)
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for m in norms: m.momentum = None
    with torch.no_grad():   # statistics of noise, so that no layer is dead
        for _ in range(3): model(front_end(20 * torch.rand(8, 257, 1)**4 * torch.rand(8, 257, 70)))
    return TappedClassifier(model, front_end, taps, [f'class {i}' for i in range(n_classes)], 16000)

@pytest.fixture(scope='module')
def stft(): return STFT(512, 128)

@pytest.fixture(scope='module')
def magnitude(stft):
    clips = torch.cat([make_scene({name: 0, 'rain': -9}, .6, seed=i).waveform for i, name in enumerate(('clock_tick', 'siren', 'rooster'))])
    return stft(clips)[0]

@pytest.fixture(scope='module')
def cnn14(): return small_cnn14()

@pytest.mark.parametrize('layer', ['conv_block2', 'conv_block5'])
def test_gradcam_agrees_with_another_library(cnn14, magnitude, layer):
    class Four(nn.Module):   # that library wants pictures with a channel
        def __init__(self): super().__init__(); self.classifier = cnn14
        def forward(self, x): return self.classifier(x[:, 0])
    for target in range(3):
        with Coarse(Four(), [cnn14.model.get_submodule(layer)]) as cam:
            theirs = cam(magnitude[:, None].clone().requires_grad_(), [lambda out, k=target: out[k]] * 3)
        theirs = map_to_bins(torch.from_numpy(theirs).mT, cnn14, magnitude.shape[1:])   # this network's maps are (time, freq)
        ours = GradCam(cnn14, layer=layer).scores(magnitude, target)
        for a, b in zip(ours.flatten(1), theirs.flatten(1)):   # theirs is shifted and scaled to 0 … 1
            if b.std() == 0: assert a.std() < 1e-6
            else: assert torch.corrcoef(torch.stack([a, b]))[0, 1] > .9999

def test_guided_gradcam_is_the_product(cnn14, magnitude):
    product = make_baseline('gradcam', cnn14).scores(magnitude, 1) * make_baseline('guided_backprop', cnn14).scores(magnitude, 1)
    close(make_baseline('guided_gradcam', cnn14).scores(magnitude, 1), product)

def test_map_to_bins_follows_the_front_end(cnn14):
    "a map that is the number of its band gives each bin the band that it lies in"
    bands = torch.arange(32.)[None, :, None].expand(1, 32, 5)
    found = map_to_bins(bands, cnn14, (257, 5))[0, :, 0]
    centres = cnn14.front_end.frequencies / (16000 / 512)
    inner = centres[1:-1].round().long()
    assert (found[inner] - torch.arange(1., 31)).abs().max() < 1 and (found.diff() >= 0).all()


# ---- every method, on our network and on somebody else's ----

class Theirs(nn.Module):
    "Neither mel bands nor CNN14: strided convolutions with frequency first, max pooling, ELU"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 5, 3), nn.Conv2d(4, 6, 3, 2), nn.Linear(6, 4)
        self.relu, self.elu, self.pool = nn.ReLU(), nn.ELU(), nn.MaxPool2d(2)
    def forward(self, x): return self.head(self.pool(self.elu(self.b(self.relu(self.a(x[:, None]))))).mean((2, 3)))

@pytest.fixture(scope='module')
def theirs():
    torch.manual_seed(0)
    return wrap(Theirs(), ['a', 'b'], 4)

def l2i_network(classifier, magnitude, stft):
    torch.manual_seed(5)
    maps = classifier.with_taps(magnitude)[1]
    network = L2INetwork([m.shape[1] for m in maps], stft.n_freqs, len(classifier.labels), n_components=5, channels=8, rows=2)
    network.dictionary.uniform_()
    return network

CHEAP = dict(smoothgrad=dict(n_samples=3), integrated_gradients=dict(n_steps=4), gradient_shap=dict(n_samples=3),
             occlusion=dict(window_s=.3, window_hz=4000), lime=dict(n_samples=8, n_bands=2, n_times=2),
             kernel_shap=dict(n_samples=8, n_bands=2, n_times=2))

def make(name, classifier, magnitude, stft, **kwargs):
    extra = dict(network=l2i_network(classifier, magnitude, stft)) if name == 'l2i' else CHEAP.get(name, {})
    return make_baseline(name, classifier, **extra, **kwargs)

def snapshot(classifier):
    modules = {name: {k: v for k, v in vars(m).items() if isinstance(v, (bool, int, float, str))} for name, m in classifier.named_modules()}
    hooks = sum(len(h) for m in classifier.modules() for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks))
    extras = {name: sorted(vars(m)) for name, m in classifier.named_modules()}
    grads = [p.grad for p in classifier.parameters()], [p.requires_grad for p in classifier.parameters()]
    return {k: v.clone() for k, v in classifier.state_dict().items()}, (modules, hooks, extras, grads)

def check_mask(mask, like):
    assert mask.shape == like.shape and mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1 and not mask.requires_grad

@pytest.mark.parametrize('which', ['cnn14', 'theirs'])
@pytest.mark.parametrize('name', ALL)
def test_every_method_on_every_classifier(request, name, which, magnitude, stft):
    classifier = request.getfixturevalue(which)
    weights, rest = snapshot(classifier)
    rng = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    given, method = magnitude.clone(), make(name, classifier, magnitude, stft)
    made = torch.random.get_rng_state()
    mask, found = method.attribute(magnitude), method.scores(magnitude)
    check_mask(mask, magnitude)
    assert found.shape == magnitude.shape and found.isfinite().all()
    if name not in ('constant', 'everything'): assert found.std() > 0
    assert torch.equal(method.to_mask(found), mask)                              # deterministic, and made of the scores
    assert torch.equal(magnitude, given) and not magnitude.requires_grad         # what came in is as it was
    after, others = snapshot(classifier)                                         # and so is the classifier, bit for bit
    assert others == rest and all(torch.equal(v, after[k]) for k, v in weights.items())
    assert torch.equal(torch.random.get_rng_state(), made if name == 'l2i' else rng[0])
    assert np.array_equal(np.random.get_state()[1], rng[1])

@pytest.mark.parametrize('name', ALL)
def test_batches_do_not_matter(name, cnn14, magnitude, stft):
    method = make(name, cnn14, magnitude, stft)
    together = method.attribute(magnitude, torch.tensor([2, 0, 1]))
    one = torch.cat([method.attribute(magnitude[i:i + 1], target) for i, target in enumerate((2, 0, 1))])
    backwards = method.attribute(magnitude.flip(0).mT.contiguous().mT, torch.tensor([1, 0, 2])).flip(0)   # other order, other strides
    for other in (one, backwards): assert (together - other).abs().max() < 2e-2 and (together - other).abs().mean() < 1e-3

@pytest.mark.parametrize('name', ALL)
def test_silence_and_odd_input(name, cnn14, stft):
    silence = torch.zeros(2, 257, 50)
    method = make(name, cnn14, silence, stft)
    check_mask(method.attribute(silence), silence)
    odd = 100 * torch.rand(2, 257, 77, generator=torch.Generator().manual_seed(0))**8
    odd[0, :, :60], odd[1, 40:] = 0, 0
    check_mask(method.attribute(odd, 1), odd)

@pytest.mark.parametrize('name', ALL)
def test_target_none_is_the_class_decided(name, cnn14, magnitude, stft):
    method = make(name, cnn14, magnitude, stft)
    with torch.no_grad(): decided = cnn14(magnitude).argmax(1)
    assert torch.equal(method.attribute(magnitude), method.attribute(magnitude, decided))

@pytest.mark.parametrize('name', sorted(set(ALL) - {'random', 'constant', 'everything', 'energy'}))
def test_another_target_is_another_map(name, cnn14, magnitude, stft):
    method = make(name, cnn14, magnitude, stft)
    assert not torch.allclose(method.scores(magnitude, 0), method.scores(magnitude, 1))

@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('name', ['saliency', 'smoothgrad', 'integrated_gradients', 'guided_gradcam', 'deeplift_shap', 'lime', 'l2i'])
def test_inside_a_benchmark_without_gradients(name, context, cnn14, magnitude, stft):
    method = make(name, cnn14, magnitude, stft)
    expected = method.attribute(magnitude)
    with context(): found = method.attribute(magnitude.clone(), torch.tensor([0, 1, 2]).clone() * 0 + cnn14(magnitude).argmax(1))
    assert torch.equal(found, expected)

@pytest.mark.parametrize('name', RANDOM)
def test_seed_matters(name, cnn14, magnitude, stft):
    first, again, other = (make(name, cnn14, magnitude, stft, seed=seed).scores(magnitude) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    if name not in ('lime', 'kernel_shap'): assert not torch.allclose(first, other)
    if name == 'random': assert not torch.equal(first[0], first[1])

@pytest.mark.parametrize('name', ALL)
def test_methods_describe_themselves(name, cnn14, magnitude, stft):
    method = make(name, cnn14, magnitude, stft)
    assert method.name == name and len(method.how) > 5 and method.citation and type(method).__doc__
    assert method.settings == json.loads(json.dumps(method.settings)) and method.settings['seed'] == 0
    assert isinstance(method, Baseline) and name in BASELINES


# ---- scores to masks, windows, segments, seeds ----

def test_rule():
    s = torch.arange(1000.).reshape(1, 20, 50) - 500
    m = scores_to_mask(s)
    level = torch.arange(1000.).sub(500).relu().sort().values[989]
    close(m, (s.relu() / level).clamp(max=1))
    assert torch.equal(scores_to_mask(-s.abs()), torch.zeros_like(s))
    sparse = torch.zeros(1, 20, 50); sparse[0, 0, :2] = torch.tensor([1., 4.])
    assert scores_to_mask(sparse)[0, 0, :2].tolist() == [.25, 1]

def test_rule_is_per_clip():
    s = torch.rand(3, 10, 10) * torch.tensor([1e-6, 1., 1e6])[:, None, None]
    for m, clip in zip(scores_to_mask(s), s): assert torch.equal(m[None], scores_to_mask(clip[None]))

@pytest.mark.parametrize('shape', [(513, 314), (257, 76), (6, 8), (100, 3)])
@pytest.mark.parametrize('window', [(2000., .5), (700., .13), (1e9, 1e9), (1e-3, 1e-3)])
def test_windows_cover_evenly(shape, window):
    found = window_shape(shape, 16000, *window)
    assert all(1 <= w <= n for w, n in zip(found, shape))
    if window[0] == 2000. and shape[0] == 513: assert found == (129, 32)

def test_windows_of_no_size(cnn14, magnitude):
    with pytest.raises(ValueError, match='must be positive'): make_baseline('occlusion', cnn14, window_s=0).scores(magnitude)

def test_segments():
    found = mel_segments((513, 100), 16000, 4, 5)
    assert found.unique().tolist() == list(range(20)) and found[:, :20].unique().tolist() == [0, 5, 10, 15]
    heights = [(found[:, 0] == 5 * k).sum().item() for k in range(4)]
    assert heights == sorted(heights) and sum(heights) == 513
    assert mel_segments((5, 4), 16000, 5, 4).max() < 20   # low bands without a bin are left out, not numbered
    for bad in ((1, 1), (0, 5), (600, 2), (2, 200)):
        with pytest.raises(ValueError, match='n_bands × n_times'): mel_segments((513, 100), 16000, *bad)

def test_clip_seed_survives_rounding(magnitude):
    for clip in magnitude:
        assert clip_seed(clip, 0) == clip_seed(3 * clip * (1 + 1e-7 * torch.randn_like(clip)), 0)
        assert clip_seed(clip, 0) != clip_seed(clip, 1)
    assert len({clip_seed(clip, 0) for clip in magnitude}) == len(magnitude)
    with pytest.raises(RuntimeError, match='in between'), seeded(3): raise RuntimeError('in between')


# ---- what is refused ----

def test_unknown_name(cnn14):
    with pytest.raises(ValueError, match='no baseline \'shap\'. There are: saliency, smoothgrad.*energy'): make_baseline('shap', cnn14)

@pytest.mark.parametrize('bad, message', [
    (3, 'between 0 and 2. Found: 3'), (-1, 'between 0 and 2'), ([0, 1], 'or 3 of them'), (1.5, 'a class index'), (True, 'a class index'),
    (torch.tensor([0, 1, 5]), 'Found: 0 … 5'), (torch.zeros(3, 1, dtype=torch.long), 'one for each clip')])
def test_wrong_targets(cnn14, magnitude, bad, message):
    with pytest.raises(ValueError, match=message): make_baseline('saliency', cnn14).attribute(magnitude, bad)

@pytest.mark.parametrize('bad, message', [
    (lambda m: m[0], r'\(batch, freq, frame\)'), (lambda m: m.long(), 'floating point'), (lambda m: m.numpy(), 'Found: ndarray'),
    (lambda m: -m, 'not negative'), (lambda m: m * float('nan'), 'finite'), (lambda m: m[:0], 'batch'), (lambda m: m[:, :9], 'frequency bins')])
def test_wrong_magnitudes(cnn14, magnitude, bad, message):
    with pytest.raises(ValueError, match=message): make_baseline('energy', cnn14).attribute(bad(magnitude))

@pytest.mark.parametrize('name, kwargs, message', [
    ('saliency', dict(domain='log'), 'domain must be one of'), ('saliency', dict(output='loss'), 'output must be one of'),
    ('constant', dict(value=2), 'between 0 and 1'), ('gradcam', dict(layer='conv_blok2'), "no layer 'conv_blok2'.*conv_block2"),
    ('l2i', {}, 'needs a trained network'), ('gradient_shap', dict(background=torch.rand(257, 70)), r'\(batch, freq, frame\)')])
def test_wrong_parameters(cnn14, name, kwargs, message):
    with pytest.raises(ValueError, match=message): make_baseline(name, cnn14, **kwargs)

@pytest.mark.parametrize('name', ['gradient_shap', 'deeplift_shap'])
def test_background_of_another_shape(cnn14, magnitude, name):
    for background in (magnitude[:, :, 1:], magnitude[:1]):
        with pytest.raises(ValueError, match='background must be at least 2 clips'): make_baseline(name, cnn14, background=background).scores(magnitude)

class Acting(nn.Module):
    "A network whose activation is handed in"
    def __init__(self, act):
        super().__init__()
        self.conv, self.relu, self.head, self.act = nn.Conv2d(1, 3, 3, 2), nn.ReLU(inplace=True), nn.Linear(3, 2), act
    def forward(self, x): return self.head(self.act(self, self.conv(x[:, None])).mean((2, 3)))

@pytest.mark.parametrize('name', ['guided_backprop', 'guided_gradcam', 'deeplift_shap'])
@pytest.mark.parametrize('act', [lambda net, h: F.relu(h), lambda net, h: h.relu(), lambda net, h: torch.relu(h), lambda net, h: h.clone().relu_(),
                                 lambda net, h: net.relu(h).relu()])
def test_hooks_refuse_what_they_cannot_hook(x, name, act):
    with pytest.raises(ValueError, match=f'{name} can only hook activations that are modules .*1 others'):
        make_baseline(name, wrap(Acting(act), 'conv')).scores(x.expm1())

def test_hooks_refuse_other_networks(x):
    with pytest.raises(ValueError, match='found no activation'): make_baseline('guided_backprop', wrap(Acting(lambda net, h: h), 'conv')).scores(x)
    with pytest.raises(ValueError, match='1 others'): make_baseline('deeplift_shap', wrap(Acting(lambda net, h: F.gelu(h)), 'conv')).scores(x)
    twice = wrap(Acting(lambda net, h: net.relu(net.relu(h) - .1)), 'conv')
    make_baseline('guided_backprop', twice).scores(x)   # which has nothing against it
    with pytest.raises(ValueError, match="'model.relu' ran 2 times"): make_baseline('deeplift_shap', twice).scores(x)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in twice.modules()) == 0

def test_a_failing_classifier_is_left_in_order(x):
    def act(net, h):
        if h.requires_grad: raise RuntimeError('not today')
        return net.relu(h)
    classifier = wrap(Acting(act), 'conv')
    for name in ('guided_backprop', 'deeplift_shap', 'gradcam'):
        with pytest.raises(RuntimeError, match='not today'): make_baseline(name, classifier).scores(x)
    assert classifier.model.relu.inplace and sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in classifier.modules()) == 0

def test_gradcam_refuses_a_layer_without_a_map(cnn14, magnitude):
    with pytest.raises(ValueError, match="'fc1' must give a map"): GradCam(cnn14, layer='fc1').scores(magnitude)

@pytest.mark.parametrize('kind', [nn.GRU, nn.LSTM])
def test_gradcam_of_recurrent_layers(x, kind):
    "Of several tensors the first counts, and its channels are its last axis: frame by frame, the weighted sum over them"
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(x.shape[1], 8, batch_first=True), nn.Linear(8, 3)
        def forward(self, x): return self.head(self.rnn(x.mT)[0].mean(1))
    torch.manual_seed(0)
    method, target = GradCam(wrap(Recurrent(), 'rnn', 3, 'frames')), torch.tensor([0, 1, 2])
    net = method.classifier.model
    frames = ((net.rnn(x.log1p().mT)[0] * net.head.weight[target][:, None]).sum(2).relu() / x.shape[2]).detach()
    torch.testing.assert_close(method.scores(x, target), frames[:, None].expand_as(x))
    assert not net.rnn._forward_hooks

def test_scores_that_are_not_finite(x):
    class Root(Acting):
        def forward(self, x): return super().forward(x) * (x.sum((1, 2)) - x.sum((1, 2))).sqrt()[:, None]
    with pytest.raises(ValueError, match='scores that are not finite'): make_baseline('saliency', wrap(Root(lambda net, h: h), 'conv')).scores(x)

def test_gradients_reach_below_no_silence():
    "noise may push a bin below 0: the classifier then hears silence, not NaN"
    model = CompressedInput(small_cnn14())
    x = -torch.rand(1, 257, 50)
    assert torch.equal(model(x), model(0 * x)) and model(x).isfinite().all()


# ---- Listen-to-Interpret ----

@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    folder, names = tmp_path_factory.mktemp('clips'), ['clock_tick', 'siren', 'white_noise']
    rows = [dict(path=folder/f'{i}.wav', label=f'class {i % 3}', class_index=i % 3, fold=1) for i in range(6)]
    for i, row in enumerate(rows): save_audio(row['path'], make_scene({names[i % 3]: 0}, .5, seed=i).waveform, 16000)
    return ClipDataset(pd.DataFrame(rows), ['class 0', 'class 1', 'class 2'], duration_s=.5, cache_dir=folder)

def train(cnn14, stft, clips, folder, epochs=2, **kwargs):
    return train_l2i(cnn14, stft, clips, folder, epochs=epochs, n_components=4, batch_size=3, **kwargs)

@pytest.fixture(scope='module')
def trained(tmp_path_factory, cnn14, stft, clips): return train(cnn14, stft, clips, tmp_path_factory.mktemp('l2i'))

def test_l2i_from_its_folder(trained, cnn14, magnitude):
    config = json.loads((trained/'config.json').read_text())
    assert config['kind'] == 'l2i' and len(config['sha256']) == 64 and config['settings']['epochs'] == 2
    method = L2I.from_folder(trained, cnn14, threshold=.2)
    check_mask(method.attribute(magnitude), magnitude)
    assert method.network.dictionary.min() >= 0 and method.threshold == .2
    assert torch.equal(method.attribute(magnitude), make_baseline('l2i', cnn14, folder=trained, threshold=.2).attribute(magnitude))

def test_l2i_mask_is_a_share(cnn14, magnitude, stft):
    method = make('l2i', cnn14, magnitude, stft)
    network, target = method.network, torch.tensor([0, 1, 2])
    mask = method.attribute(magnitude, target)
    activations, pooled, _ = network(cnn14.with_taps(magnitude)[1], magnitude.shape[-1])
    for i in range(3):
        relevance = pooled[i] * network.linear.weight[target[i]]
        chosen = relevance > .1 * relevance.max().clamp_min(0)
        whole = network.dictionary @ activations[i]
        close(mask[i], (network.dictionary[:, chosen] @ activations[i][chosen]) / whole)

def test_l2i_without_a_component_for_the_class(cnn14, magnitude, stft):
    network = l2i_network(cnn14, magnitude, stft)
    network.linear.weight.data.copy_(-network.linear.weight.abs())
    assert L2I(cnn14, network=network).attribute(magnitude).max() == 0

def test_l2i_goes_on_where_it_was_killed(tmp_path, cnn14, stft, clips, trained, monkeypatch):
    from lmac import training
    class Killed(Exception): pass
    class Killer(training.Log):
        order = 99
        def after_epoch(self, learner): raise Killed
    with monkeypatch.context() as patch:
        patch.setattr(training, 'Log', Killer)
        with pytest.raises(Killed): train(cnn14, stft, clips, tmp_path)
    assert not (tmp_path/'config.json').exists() and (tmp_path/'training'/'checkpoint.pt').exists()
    train(cnn14, stft, clips, tmp_path)
    assert (tmp_path/'l2i.safetensors').read_bytes() == (trained/'l2i.safetensors').read_bytes()
    with pytest.raises(ValueError, match='run with other settings'): train(cnn14, stft, clips, tmp_path, epochs=3)

def test_l2i_refuses(tmp_path, trained, cnn14, theirs, stft, clips):
    with pytest.raises(FileNotFoundError, match='Train one with lmac-train l2i'): L2I.from_folder(tmp_path, cnn14)
    with pytest.raises(ValueError, match='The classifier handed in'): L2I.from_folder(trained, theirs)
    with pytest.raises(ValueError, match='one of the two'): L2I(cnn14, trained, L2I.from_folder(trained, cnn14).network)
    for name in ('config.json', 'l2i.safetensors'): (tmp_path/name).write_bytes((trained/name).read_bytes())
    (tmp_path/'l2i.safetensors').write_bytes((trained/'l2i.safetensors').read_bytes()[:-4] + b'abcd')
    with pytest.raises(ValueError, match='l2i.safetensors is damaged'): L2I.from_folder(tmp_path, cnn14)
    (tmp_path/'config.json').write_text('{}')
    with pytest.raises(ValueError, match='config.json is not the configuration'): L2I.from_folder(tmp_path, cnn14)
    with pytest.raises(ValueError, match='999 components need at least as many frames'): train_l2i(cnn14, stft, clips, tmp_path/'x', n_components=999)


# ---- without the extra ----

@pytest.mark.parametrize('package', ['captum', 'sklearn.decomposition'])
def test_a_missing_extra_says_what_to_install(package):
    import subprocess, sys
    code = f"import sys; sys.modules[{package!r}] = None; import lmac.evidence.baselines"
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert found.returncode and "Install it with: pip install 'lmac[evidence]'" in found.stderr.splitlines()[-1] and package in found.stderr.splitlines()[-1]
