"""Relevance on networks whose answer is known, and measures of others that have traps"""
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lmac.adapters import examine
from lmac.classifier import TappedClassifier
from lmac.evidence.baselines import IntegratedGradients, make_baseline
from lmac.evidence.benchmark import all_methods, load_method, si_sdr
from lmac.evidence.relevance import LRP, ModuleCalls
from lmac.explain import LMAC
from lmac.spectrogram import STFT


class Network(nn.Module):
    "Features `(batch, band, frame)`, a branch around a convolution, and pooling in one way or another"
    def __init__(self, pool):
        super().__init__()
        torch.manual_seed(0)
        self.pool, self.average = pool, nn.AdaptiveAvgPool2d(1)
        self.a, self.b, self.norm, self.fc = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.Linear(6, 2, bias=False)
        nn.init.uniform_(self.a.weight, 0, 1), nn.init.uniform_(self.b.weight, -.2, 1), nn.init.uniform_(self.fc.weight, 0, 1)

    def forward(self, x):
        x = F.relu(self.a(x[:, None]))
        x = x + F.relu(self.norm(self.b(x)))
        if self.pool == "module": x = self.average(x).flatten(1)
        elif self.pool == "mean": x = x.mean((2, 3))
        elif self.pool == "two means": x = x.mean(3).mean(2)
        elif self.pool == "adaptive": x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        else: x = F.avg_pool2d(x, (4, 4)).flatten(2).mean(2)
        return self.fc(x)


class Bands(nn.Module):
    "Front end without a logarithm: every bin is a band"
    def forward(self, magnitude): return magnitude


@pytest.fixture
def event():
    x = torch.full((1, 33, 40), .02)
    x[:, 10:18, 12:20] = 1.
    return x


@pytest.mark.parametrize("pool", ["module", "mean", "two means", "adaptive", "average"])
def test_relevance_lies_in_the_event_however_the_network_pools(event, pool):
    classifier = TappedClassifier(Network(pool).eval(), Bands(), ["a"], ["x", "y"], 16000, "freq_time", duration_s=.1)
    scores = LRP(classifier, domain="magnitude").scores(event, 0)
    inside = scores[event == 1].sum() / scores.sum()
    assert inside > .6
    assert scores.sum().item() == pytest.approx(classifier(event)[0, 0].item(), rel=.02)


def test_nothing_of_it_is_left_in_the_classifier(event):
    network = Network("mean").eval()
    classifier = TappedClassifier(network, Bands(), ["a"], ["x", "y"], 16000, "freq_time", duration_s=.1)
    before, hooks = classifier(event), sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())
    LRP(classifier).scores(event, 1)
    assert torch.equal(classifier(event), before) and hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def test_attention_and_logarithms_are_refused(event):
    class Attends(Network):
        def forward(self, x): return self.fc(F.scaled_dot_product_attention(x, x, x).mean((1, 2))[:, None].expand(-1, 6))
    for network, said in ((Attends("mean"), "attention"), (nn.Sequential(nn.Conv1d(33, 4, 1), nn.Softmax(1)), None)):
        if said:
            with pytest.raises(ValueError, match=said): ModuleCalls(network.eval(), event)
        else: ModuleCalls(network.eval(), event)  # a module's own affair


def test_a_classifier_on_images_says_what_it_needs():
    class Images(nn.Module):
        def forward(self, magnitude): return magnitude[:, None]
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    classifier = TappedClassifier(network.eval(), Images(), ["0"], ["x", "y"], 16000, "freq_time", duration_s=.1)
    with pytest.raises(ValueError, match="needs features"): LRP(classifier).scores(torch.rand(1, 33, 40), 0)


def test_it_is_a_method_of_the_benchmark():
    explainer = LMAC.from_pretrained("esc10")
    assert "lrp" in all_methods() and isinstance(load_method("lrp", explainer), LRP) and make_baseline("lrp", explainer.classifier).name == "lrp"


def test_silence_scores_worst_in_si_sdr():
    "The formula gives silence 0 dB, above every poor estimate"
    target, noise = torch.sin(torch.arange(8000.) / 5), torch.randn(8000, generator=torch.Generator().manual_seed(0))
    assert si_sdr(0 * target, target) == -30 < si_sdr(target / 5 + noise, target) < si_sdr(target + noise, target) < 0


class RelativeDecibels(nn.Module):
    "A front end that looks at the whole batch: levels below the loudest bin of all"
    def forward(self, magnitude):
        level = 20 * magnitude.clamp_min(1e-5).log10()
        return torch.maximum(level, level.amax() - 80) + 100


def test_integrated_gradients_sum_to_the_score_where_the_front_end_hears_the_whole_batch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv1d(257, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    examined, classifier = (TappedClassifier(network.eval(), RelativeDecibels(), ["0"], ["x", "y"], 16000, "time", duration_s=.5) for _ in range(2))
    stft = STFT(512, 128)
    examined = examine(examined, stft)
    assert examined.one_by_one
    magnitude = stft(torch.randn(1, 8000) / 10)[0]
    score = (examined(magnitude) - examined(0 * magnitude))[0, 0].item()
    alone, together = (IntegratedGradients(c, n_steps=400, domain="magnitude", batch_size=400).scores(magnitude, 0).sum().item() / score for c in (examined, classifier))
    print(f"of the score: {alone:.2f} clip by clip, {together:.2f} in batches")
    assert alone == pytest.approx(1., abs=.25) and together < alone - .3


def test_with_the_default_baseline_of_quantus_removing_makes_a_waveform_louder():
    "Its “black” is the least value of the input, which of a waveform is the most negative: a curve that rises for the perfect attribution, and falls with 0"
    import quantus
    class Loud(nn.Module):
        def forward(self, x): return torch.stack([x.square().mean((1, 2)), torch.zeros(len(x))], 1)
    generator = torch.Generator().manual_seed(0)
    wave = .02 * torch.randn(1, 1, 1600, generator=generator)
    wave[..., 400:800] += torch.randn(400, generator=generator)
    curves = {}
    for baseline in ("black", 0.):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flip = quantus.PixelFlipping(features_in_step=200, perturb_baseline=baseline, disable_warnings=True)
            curves[baseline] = np.array(flip(Loud().eval(), wave.numpy(), np.array([0]), wave.square().numpy(), channel_first=True, softmax=False)[0])
    assert curves["black"][-1] > 2 * curves["black"][0] and curves[0.][-1] < .2 * curves[0.][0] + 1e-6
