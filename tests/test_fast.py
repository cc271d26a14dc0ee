"""Fast explanations are the plain ones: folded networks, batches, what is computed when, long recordings in windows, threads."""
import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier, fold_batch_norms
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC, choose_device
from lmac.explanation import Explanation
from lmac.spectrogram import STFT, LogMel

RATE = 16000


def shaken(model):
    "Batch norms that do something"
    for m in model.modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
            m.running_mean.normal_(); m.running_var.uniform_(.5, 2)
            if m.affine: m.weight.data.normal_(1, .3); m.bias.data.normal_()
    return model.eval()

class Waves(nn.Module):
    "Convolutions over samples, whose front end is the inverse transform"
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Conv1d(1, 8, 64, 32), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3), nn.Linear(8, 3)
    def forward(self, x): return self.head(self.b(self.norm(self.a(x[:, None])).relu()).relu().mean(2))

class Residual(nn.Module):
    "A sum that skips a convolution and its norm; the same convolution twice in `twice`"
    def __init__(self, twice=False):
        super().__init__()
        self.conv, self.norm, self.head, self.twice = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Linear(1, 3), twice
    def forward(self, x):
        x = x[:, None]
        for _ in range(1 + self.twice): x = x + self.norm(self.conv(x)).relu()
        return self.head(x.mean((2, 3)))

@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    stft, model = STFT(), shaken(Cnn14(3, width=4, n_mels=40, max_width=32))
    classifier = TappedClassifier(model, LogMel(n_mels=40), ['conv_block2', 'conv_block5'], ['saw', 'bell', 'rain'], RATE, duration_s=1.)
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft), stft)

@pytest.fixture
def sounds(): return torch.cat([make_scene({name: 0}, 1., seed=i).waveform for i, name in enumerate(('dog', 'rain', 'siren', 'rooster'))])


# networks

@pytest.mark.parametrize('model, front_end, tap, layout, folds', [(Waves(), None, 'b', 'time', 1), (Residual(), LogMel(n_mels=40), 'norm', 'freq_time', 1), (Residual(), LogMel(n_mels=40), 'conv', 'freq_time', 0),
                                                                  (Residual(twice=True), LogMel(n_mels=40), 'head', 'freq_time', 0)], ids=['waves', 'residual', 'tapped', 'twice'])
def test_folded_networks_answer_as_before(model, front_end, tap, layout, folds, sounds):
    torch.manual_seed(0)
    stft = STFT()
    shaken(model)
    run = lambda m: m(stft.inverse(*stft(sounds), RATE) if front_end is None else front_end(stft(sounds)[0]))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast = fold_batch_norms(model, run, [tap] if tap == 'conv' else [])
    assert sum(isinstance(m, nn.Identity) for m in fast.modules()) == folds and (fast is model) == (folds == 0)
    torch.testing.assert_close(run(fast), run(model), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())

def test_hooks_and_other_kinds_of_layers_stay(sounds):
    class Own(nn.Conv2d): pass
    for spoil in (lambda m: m.conv.register_forward_hook(lambda *_: None), lambda m: setattr(m, 'conv', Own(1, 1, 3, padding=1)), lambda m: m.norm.train()):
        model = shaken(Residual())
        spoil(model)
        assert fold_batch_norms(model, lambda m: m(sounds[:, :4096].view(4, 64, 64))) is model

def test_another_network_is_folded_anew(small):
    assert small.fast_classifier.model is small.fast_classifier.model is not small.classifier.model
    other = copy.copy(small)
    other.classifier = copy.deepcopy(small.classifier)
    with torch.no_grad(): other.classifier.model.fc.bias[0] += 1.
    magnitude, _ = small.magnitude_phase(make_scene({'dog': 0}, 1.).waveform)
    torch.testing.assert_close(other.probabilities_of(magnitude), other.classifier.probabilities(other.classifier(magnitude)), atol=1e-5, rtol=0)
    assert (other.probabilities_of(magnitude) - small.probabilities_of(magnitude)).abs().max() > 1e-3


def test_what_was_folded_while_explaining_lets_gradients_through(small):
    "An explanation is computed without gradients, and a training that follows needs them"
    other = LMAC(copy.deepcopy(small.classifier), small.decoder, small.stft)
    magnitude, _ = other.magnitude_phase(make_scene({'dog': 0}, 1.).waveform)
    other.attribute(magnitude)
    x = magnitude.clone().requires_grad_()
    other.fast_classifier(x).sum().backward()
    assert x.grad.abs().sum() > 0


# what is computed when

def test_batches_are_their_clips(small, sounds):
    together = small.explain([*sounds[:, None], sounds[0, None, :9000], *sounds[:, None]], RATE, batch_size=3)
    assert len(together) == 9
    for x, ex in zip([*sounds[:, None], sounds[0, None, :9000], *sounds[:, None]], together):
        alone = small.explain(x, RATE)
        for name in ('mask', 'audio', 'residual', 'probabilities'): torch.testing.assert_close(getattr(ex, name), getattr(alone, name), atol=1e-4, rtol=0)
        for name in ('probability_masked_in', 'probability_masked_out', 'probability_heard', 'gain_db'): assert getattr(ex, name) == pytest.approx(getattr(alone, name), abs=1e-4), name

def test_nothing_is_computed_that_nobody_reads(small, sounds, monkeypatch):
    calls, judge, fit = [], LMAC.judge_magnitude, STFT.synthesise
    monkeypatch.setattr(LMAC, 'judge_magnitude', lambda self, *a: (calls.append('judge'), judge(self, *a))[1])
    monkeypatch.setattr(STFT, 'synthesise', lambda self, *a: (calls.append('sound'), fit(self, *a))[1])
    found = small.explain(sounds[:, None], RATE)
    [ex.kept for ex in found]
    assert calls == []
    [ex.audio for ex in found]
    assert calls == ['sound']
    [ex.sentence() for ex in found]
    assert calls == ['sound', 'judge']

def test_many_threads_read_one_batch(small, sounds):
    expected = [ex.complete() for ex in small.explain(sounds[:, None], RATE)]
    for _ in range(5):
        found = small.explain(sounds[:, None], RATE)
        with ThreadPoolExecutor(8) as pool: list(pool.map(lambda ex: ex.complete(), found * 4))
        for a, b in zip(found, expected): assert a.probability_heard == pytest.approx(b.probability_heard, abs=1e-6) and torch.equal(a.audio, b.audio)

def test_an_explanation_can_be_pickled_and_copied(small, sounds):
    ex = small.explain(sounds[:1], RATE)
    for other in (pickle.loads(pickle.dumps(ex)), copy.deepcopy(ex), copy.copy(ex)):
        assert isinstance(other, Explanation) and other.sentence() == ex.sentence() and torch.equal(other.audio, ex.audio)

def test_sounds_never_clip(small):
    loud = torch.sign(torch.sin(torch.arange(RATE) * .3))[None]
    ex = small.explain(loud, RATE)
    assert ex.gain_db <= 0 and max(ex.audio.abs().max(), ex.residual.abs().max()) <= 1


# long recordings

@pytest.mark.parametrize('options', [{}, dict(target='bell'), dict(threshold=.5), dict(target='bell', contrast='saw')], ids=str)
def test_a_long_recording_is_the_mean_of_its_windows(small, options):
    sound = make_scene({'clock_tick': 0, 'rain': -12}, 33.).waveform
    ex = small.explain(sound, RATE, **options)
    assert ex.window_s == 1. and 'on average over windows of 1 s' in ex.sentence() and ex.mask.shape == ex.magnitude.shape and 0 <= ex.mask.min() <= ex.mask.max() <= 1
    magnitude, _ = small.magnitude_phase(sound)
    size = small.window_size(magnitude.shape[-1])
    starts = [*range(0, magnitude.shape[-1] - size, -(-size // 2)), magnitude.shape[-1] - size]
    windows = torch.stack([magnitude[0, :, s:s + size] for s in starts])
    torch.testing.assert_close(ex.probabilities, small.probabilities_of(windows).mean(0), atol=1e-5, rtol=0)
    if not options: assert [x.mask.shape for x in small.explain(sound, RATE, targets=2)] == 2*[ex.mask.shape]
    if 'threshold' in options: assert set(ex.mask.unique().tolist()) <= {0., 1.}
    assert ex.audio.shape == sound.shape and 0 <= ex.probability_heard <= 1

def test_windows_go_through_some_at_a_time(small):
    passes = []
    handle = small.fast_classifier.model.register_forward_hook(lambda m, i, o: passes.append(len(o)))
    try: small.explain(make_scene({'rain': 0}, 60.).waveform, RATE).complete()
    finally: handle.remove()
    assert max(passes) <= 16 and sum(passes) == 5 * 117  # of the whole twice (its class, its mask), of both parts, of what is heard

def test_half_a_minute_is_one(small): assert small.explain(make_scene({'rain': 0}, 30.).waveform, RATE).window_s is None


# threads, devices

def test_two_threads_give_one_gradient():
    "The gradient of weights that are picked by class is added up in one order"
    code = '''import torch
from lmac.decoder import CandidateGate
torch.set_num_threads(2); torch.manual_seed(0)
gate, maps, target, weight = CandidateGate(192, 16, 10), torch.randn(64, 192, 2, 10), torch.randint(10, (64,)), torch.randn(64, 16, 2, 10)
def gradient():
    gate.zero_grad()
    (gate(maps, target) * weight).sum().backward()
    return gate.of_class.grad.clone()
first = gradient()
print(all(torch.equal(gradient(), first) for _ in range(40)))'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'True', done.stderr[-2000:]

@pytest.mark.parametrize('name', ['toaster', 'cuda:99', '', 3.5])
def test_devices_that_there_are_not(name):
    with pytest.raises(ValueError, match='device must be auto, cpu, or an accelerator'): choose_device(name)
    with pytest.raises(ValueError, match='device must be auto, cpu'): LMAC.from_pretrained(device=name)

def test_half_precision_is_tried_before_it_is_taken(small, sounds):
    half = LMAC(small.classifier, small.decoder, small.stft)
    with pytest.raises(ValueError, match='hand in some recordings'): half.set_precision(torch.bfloat16)
    class Fickle(LMAC):
        "Another decision in half precision"
        def resolve_target(self, logits, target=None): return super().resolve_target(logits, target) if self.precision == torch.float32 else (super().resolve_target(logits, target) + 1) % 3
    fickle = Fickle(small.classifier, small.decoder, small.stft)
    with pytest.raises(ValueError, match='4 of 4 decisions or verdicts are others'): fickle.set_precision(torch.bfloat16, sounds[:, None], RATE)
    assert fickle.precision == torch.float32
