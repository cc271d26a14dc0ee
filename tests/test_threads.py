"""Several threads at once, as in a server or a notebook with two tabs: each gets what it would get alone."""
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier, tapped
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.scale.long import explain_stream
from lmac.spectrogram import STFT, LogMel

pytestmark = pytest.mark.usefixtures('one_thread')
N_THREADS, N_CALLS = 8, 50
LABELS = ['bell', 'rain', 'saw']

def explainer_of(classifier, stft, seed=0):
    torch.manual_seed(seed)
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=4, head_channels=2), stft)

@pytest.fixture(scope='module')
def explainer():
    torch.manual_seed(0)
    model, stft = Cnn14(3, width=4, n_mels=40, max_width=16), STFT(n_fft=512, hop_length=256)
    return explainer_of(TappedClassifier(model, LogMel(n_fft=512, n_mels=40), ['conv_block2', 'conv_block4', 'conv_block6'], LABELS, 16000, duration_s=1.), stft)

@pytest.fixture(scope='module')
def clips(): return [make_scene({name: 0, 'rain': -12}, 1., seed=i).waveform for i, name in enumerate(('dog', 'siren', 'clock_tick', 'rooster') * 2)]

def numbers(ex): return [ex.probabilities, ex.mask, ex.audio, ex.residual, torch.tensor([ex.probability_masked_in, ex.probability_masked_out, ex.probability_heard])]

def assert_as_alone(call, clips, n_calls=N_CALLS):
    "Eight threads, each with a clip of its own, hear what one thread hears"
    alone = [call(clip) for clip in clips]
    with ThreadPoolExecutor(N_THREADS) as pool:
        found = pool.map(lambda i: (i % len(clips), call(clips[i % len(clips)])), range(N_THREADS * n_calls))
        assert all(torch.equal(a, b) for i, several in found for a, b in zip(several, alone[i], strict=True))

def test_explain_in_eight_threads(explainer, clips):
    assert_as_alone(lambda clip: numbers(explainer.explain(clip, 16000)), clips)
    assert not any(m._forward_hooks for m in explainer.classifier.modules())

def test_every_kind_of_call_beside_every_other(explainer, clips):
    other = explainer_of(explainer.classifier, explainer.stft, seed=1)  # two explainers of one classifier
    c = explainer.classifier
    third = explainer_of(TappedClassifier(c.model, c.front_end, ['conv_block2', 'conv_block5'], LABELS, 16000, duration_s=1.), explainer.stft, seed=2)
    magnitude = explainer.stft(clips[0])[0]
    calls = [lambda clip: [explainer.classify(clip, 16000)], lambda clip: numbers(explainer.explain(clip, 16000)), lambda clip: numbers(other.explain(clip, 16000, target='saw', threshold=.5)),
             lambda clip: numbers(third.explain(clip, 16000)), lambda clip: numbers(explainer.explain(clip, 16000, targets=2)[1]), lambda clip: [explainer.attribute(magnitude, 1)]]
    alone = [[call(clip) for clip in clips] for call in calls]
    def one(i): return all(torch.equal(a, b) for a, b in zip(calls[i % len(calls)](clips[i % len(clips)]), alone[i % len(calls)][i % len(clips)], strict=True))
    with ThreadPoolExecutor(N_THREADS) as pool: assert all(pool.map(one, range(N_THREADS * N_CALLS)))

class Remembers(nn.Module):
    "A recurrent network that goes on where the last clip ended"
    def __init__(self):
        super().__init__()
        self.conv, self.cell, self.head, self.state = nn.Conv2d(1, 4, 3, padding=1), nn.GRU(4, 8, batch_first=True), nn.Linear(8, 3), None

    def forward(self, log_mel):
        x = self.conv(log_mel[:, None]).relu()
        found, self.state = self.cell(x.mean(2).mT, self.state if self.state is not None and self.state.shape[1] == len(x) else None)
        return self.head(found.mean(1))

class Draws(nn.Module):
    "A network that adds noise to whatever it hears"
    def __init__(self):
        super().__init__()
        self.conv, self.conv2, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, log_mel):
        x = self.conv2(self.conv((log_mel + .5 * torch.randn(log_mel.shape))[:, None]).relu())
        return self.head(x.amax((2, 3)))

@pytest.mark.parametrize('network, kind', [(Remembers, 'stateful'), (Draws, 'draws')])
def test_networks_that_remember_or_draw(network, kind, clips):
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(network().eval(), LogMel(n_fft=512, n_mels=40), labels=LABELS, stft=STFT(n_fft=512, hop_length=256), duration_s=1., channels=4, head_channels=2)
    explainer.provenance.pop('untrained')
    assert getattr(explainer.classifier, kind)
    assert_as_alone(lambda clip: numbers(explainer.explain(clip, 16000)), clips, 4)

def test_long_recordings_beside_short_ones(tmp_path, explainer, clips):
    def timeline(name): return explain_stream(explainer, torch.cat(clips, -1)[0], tmp_path/name, 16000, progress=False).timeline
    alone, masks = timeline('alone'), [explainer.explain(clip, 16000).mask for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        long, short = [pool.submit(timeline, name) for name in 'ab'], [pool.submit(explainer.explain, clip, 16000) for clip in clips]
        assert all(future.result().equals(alone) for future in long)
        assert all(torch.equal(future.result().mask, mask) for future, mask in zip(short, masks))

def test_a_hook_takes_what_its_own_thread_computes(explainer, clips):
    log_mel = explainer.classifier.front_end(explainer.stft(clips[0])[0])
    with tapped(explainer.classifier.model, ['conv_block2']) as mine, ThreadPoolExecutor(1) as pool:
        pool.submit(explainer.classifier.model, log_mel).result()
        assert mine == {'conv_block2': []}
        explainer.classifier.model(log_mel)
    assert len(mine['conv_block2']) == 1
