"""Networks as other people write them: whatever they take, give back and depend on, an explainer for them is made without naming anything, and what it says is what they say."""
import copy
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchaudio
from torch import nn
from torch.utils.data import TensorDataset

from lmac.adapters import Resynthesis, heard_seconds
from lmac.classifier import ANSWER, TappedClassifier
from lmac.explain import LMAC
from lmac.masking import apply_mask
from lmac.spectrogram import STFT, LogMel
from lmac.training import Constraints, LoudestTask

from measure_ordinary import NETWORKS, look_at

RATE = 16000
pytestmark = pytest.mark.usefixtures('one_thread')
NOISE = .1 * torch.randn(1, 2 * RATE, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    "Two blocks on a log-mel spectrogram, with or without an axis for channels"
    def __init__(self, n=3, then=lambda scores: scores):
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(inplace=True))
        self.o, self.then = nn.Linear(16, n), then
    def features(self, x): return self.c(x[:, None] if x.dim() == 3 else x).mean((2, 3))
    def forward(self, x): return self.then(self.o(self.features(x)))


class ByFrame(Base):
    def __init__(self, transposed=False):
        super().__init__()
        self.transposed = transposed
    def forward(self, x):
        scores = self.o(self.c(x[:, None]).mean(2).mT)  # (batch, frame, class)
        return scores.mT if self.transposed else scores


class OnMaps(Base):
    "Scores for each place of the map"
    def forward(self, x): return self.o(self.c(x[:, None]).movedim(1, 3)).movedim(3, 1)


class OneChannel(Base):
    def forward(self, x): return self.o(self.c(x).mean((2, 3)))  # takes an image of one channel, and nothing else


def explainer(model, front_end=None, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LMAC.for_classifier(model.eval(), front_end or LogMel(), **dict(duration_s=2.) | settings)


def explain(lmac, **options):
    with pytest.warns(UserWarning, match='not trained'): return lmac.explain(NOISE, RATE, **options)


OUTPUTS = dict(dict=(lambda s: dict(logits=s, embedding=s[:, :1]), 'softmax'), clipwise=(lambda s: dict(embedding=s.repeat(1, 9), clipwise_output=s.sigmoid()), 'sigmoid'),
               tuple=(lambda s: (s, s[:, :1]), 'softmax'), softmax=(lambda s: s.softmax(1), 'softmax'), sigmoid=(lambda s: s.sigmoid(), 'sigmoid'),
               log_softmax=(lambda s: s.log_softmax(1), 'softmax'))

@pytest.mark.parametrize('kind', OUTPUTS)
def test_outputs(kind):
    then, squash = OUTPUTS[kind]
    torch.manual_seed(0)
    model = Base(then=then).eval()
    lmac = explainer(model, labels=list('abc'))
    with torch.no_grad(): scores = model.o(model.features(LogMel()(lmac.magnitude_phase(NOISE)[0])))
    expected = scores.softmax(1) if squash == 'softmax' else scores.sigmoid()
    torch.testing.assert_close(lmac.classify(NOISE, RATE), expected, atol=1e-5, rtol=0)
    assert lmac.classifier.multi_label == (squash == 'sigmoid')
    ex = explain(lmac)
    assert ex.probability == pytest.approx(expected.max().item(), abs=1e-5)


@pytest.mark.parametrize('squeeze', [False, True])
@pytest.mark.parametrize('probability', [False, True])
def test_a_single_score_is_a_yes_or_a_no(squeeze, probability):
    model = Base(1, lambda s: (s.sigmoid() if probability else s)[:, 0 if squeeze else slice(None)]).eval()
    lmac = explainer(model)
    assert lmac.labels == ['yes'] and lmac.classifier.multi_label
    with torch.no_grad(): score = model.o(model.features(LogMel()(lmac.magnitude_phase(NOISE)[0])))
    torch.testing.assert_close(lmac.classify(NOISE, RATE), score.sigmoid(), atol=1e-5, rtol=0)
    assert explainer(model, labels=['noise', 'call']).classify(NOISE, RATE).sum().item() == pytest.approx(1)
    with warnings.catch_warnings(action='ignore'): history = lmac.fit(.1 * torch.randn(8, 2 * RATE), epochs=1, batch_size=4)  # it dies of no loss that is nan
    assert history.notna().all().all()


@pytest.mark.parametrize('model, layout', [(ByFrame(), 'frames'), (ByFrame(True), 'time'), (OnMaps(), 'freq_time')], ids=['frames', 'time', 'maps'])
def test_scores_with_frames(model, layout):
    lmac = explainer(model, labels=list('abc'))
    assert lmac.classifier.output_layout == layout
    with torch.no_grad(): found = model(LogMel()(lmac.magnitude_phase(NOISE)[0]))
    axes = {'frames': 1, 'time': 2, 'freq_time': (2, 3)}[layout]
    torch.testing.assert_close(lmac.classify(NOISE, RATE), found.amax(axes).softmax(1), atol=1e-5, rtol=0)
    for pool in ('mean', 'logsumexp'): assert explainer(copy.deepcopy(model), labels=list('abc'), pool=pool).classify(NOISE, RATE).sum().item() == pytest.approx(1)
    then = explain(lmac, at=(.5, .6))
    assert then.mask.any(0).sum() < lmac.stft.n_frames(2 * RATE) / 2 and 'from 0.50 to 0.60 s' in then.sentence()
    together = explain(lmac, at=(.5, .6), targets=['c', 'a'])  # a gradient of each class, from one pass
    for ex in together: torch.testing.assert_close(ex.mask, explain(lmac, at=(.5, .6), target=ex.label).mask, atol=1e-5, rtol=0)
    assert 'from 0.50 to 0.60 s' in together.sentence() and together[0].at_s == (.5, .6)


def test_frames_that_nobody_can_tell():
    with pytest.raises(ValueError, match='not clear which axis is time'): explainer(Base(then=lambda s: s[:, :, None].repeat(1, 1, 4)), duration_s=1.)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_types(dtype):
    ex = explain(explainer(Base().to(dtype)))
    assert 0 < ex.probability < 1 and ex.mask.dtype == torch.float32


@pytest.mark.parametrize('wrap', [nn.DataParallel, torch.compile])
def test_wrapped_networks(wrap):
    model = Base().eval()
    torch.testing.assert_close(explainer(wrap(model)).classify(NOISE, RATE), explainer(model).classify(NOISE, RATE))


def test_what_cannot_be_looked_into():
    scripted = torch.jit.script(nn.Sequential(nn.Conv1d(80, 8, 3), nn.ReLU()))
    with pytest.raises(TypeError, match='Hand in the Python module'): LMAC.for_classifier(scripted, LogMel())
    with pytest.raises(TypeError, match='must be a torch.nn.Module'): LMAC.for_classifier(lambda x: x, LogMel())


def test_a_scripted_part_is_passed_by():
    class Partly(Base):
        def __init__(self):
            super().__init__()
            self.scripted = torch.jit.script(nn.Sequential(nn.Conv1d(80, 80, 3, padding=1), nn.ReLU()))
        def forward(self, x): return super().forward(self.scripted(x))
    lmac = explainer(Partly())
    assert not any('scripted' in tap for tap in lmac.classifier.taps) and explain(lmac).probability > 0


def test_the_axis_of_a_channel():
    assert explain(explainer(OneChannel())).probability > 0


def test_a_function_of_one_argument_as_layout():
    lmac = explainer(Base(), taps=['c.2'], map_layout=lambda output: output)
    assert explain(lmac).mask.shape == lmac.magnitude_phase(NOISE)[0].shape[1:]


def test_front_ends_that_cut_the_gradient_are_named():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.mel = LogMel()
        def forward(self, magnitude): return torch.from_numpy(self.mel(magnitude).detach().numpy())
    with pytest.raises(ValueError, match='gradient is cut at front_end'): explainer(Base(), Cut())


def test_frequencies_are_measured_or_asked_for():
    class Linear(nn.Module):
        def forward(self, magnitude): return magnitude[:, :256].log1p().flip(1)  # the lower half, upside down
    lmac = explainer(Base(), Linear())
    hz = torch.tensor(lmac.decoder.band_hz)
    assert (hz.diff() < 0).float().mean() > .95 and hz[0] == pytest.approx(4000, abs=60) and hz[-1] < 60
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('w', torch.randn(513, 80, generator=torch.Generator().manual_seed(0)))
        def forward(self, magnitude): return (magnitude.mT @ self.w).mT
    with pytest.raises(ValueError, match='`frequencies`'): explainer(Base(), Mixed())


# answers that are not the clip's own

class OnWaves(nn.Module):
    "A decibel mel spectrogram, something done to it, and three blocks"
    def __init__(self, before=None, after=None, top_db=None):
        super().__init__()
        self.mel, self.db = torchaudio.transforms.MelSpectrogram(RATE, n_fft=512, hop_length=160, n_mels=64), torchaudio.transforms.AmplitudeToDB(top_db=top_db)
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        def block(i, o): return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.AvgPool2d(2))
        self.block1, self.block2, self.block3, self.head = block(1, 8), block(8, 16), block(16, 32), nn.Linear(32, 4)
    def forward(self, waveform): return self.head(self.block3(self.block2(self.block1(self.after(self.db(self.mel(self.before(waveform))))[:, None] / 40))).mean((2, 3)))


class Do(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
    def forward(self, x): return self.function(x)


class Running(nn.Module):
    "A mean that goes on running in eval()"
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.zeros(()))
    def forward(self, x):
        self.mean = self.mean + .3 * (x.mean() - self.mean)
        return x - self.mean


class Remembering(nn.Module):
    "A recurrent layer that goes on from where it was"
    def __init__(self):
        super().__init__()
        self.gru, self.state = nn.GRU(64, 64, batch_first=True), None
    def forward(self, x):
        out, state = self.gru(x.mT, self.state if self.state is not None and self.state.shape[1] == len(x) else None)
        self.state = state.detach()
        return out.mT * 3


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        return x + self.calls


DEPENDENT = dict(top_db=dict(top_db=80.), batch_mean=dict(after=Do(lambda x: x - x.mean())), batch_max=dict(before=Do(lambda x: x / x.abs().max().clamp_min(1e-5))),
                 batch_norm=dict(after=nn.BatchNorm1d(64, track_running_stats=False)))
RANDOM = dict(frequency_masking=dict(after=torchaudio.transforms.FrequencyMasking(30)), time_masking=dict(after=torchaudio.transforms.TimeMasking(60)),
              dither=dict(before=Do(lambda x: x + 3e-3 * torch.randn_like(x))), dropout=dict(after=Do(lambda x: nn.functional.dropout(x, .2, True))),
              depth=dict(after=Do(lambda x: x * (torch.rand(()) > .3))))
STATEFUL = dict(running=dict(after=Running()), recurrent=dict(after=Remembering()), counting=dict(after=Counting()))


@pytest.mark.parametrize('kind', [*DEPENDENT, *RANDOM, *STATEFUL])
def test_twelve_kinds_whose_answer_is_not_the_clip_s_own(kind):
    "Each is found, and then p, p in and p out of a batch are those of one clip at a time"
    torch.manual_seed(0)
    model = OnWaves(**copy.deepcopy((DEPENDENT | RANDOM | STATEFUL)[kind])).eval()
    lmac = LMAC.for_classifier(model, labels=list('abcd'), duration_s=1.)
    notes = ' '.join(lmac.classifier.notes)
    assert ('beside it' in notes) == (kind in DEPENDENT) or kind in STATEFUL, notes
    assert ('random' in notes) == (kind in RANDOM), notes
    assert ('remembers' in notes) == (kind in STATEFUL), notes
    clips = torch.stack([1e-4 * torch.randn(RATE), torch.sin(torch.arange(RATE) * .3) * .9, .1 * torch.randn(RATE)])
    together = lmac.masked_parts(clips)
    for i, clip in enumerate(clips):
        alone = lmac.masked_parts(clip[None])
        for part in ('probabilities', 'probabilities_in', 'probabilities_out'): torch.testing.assert_close(together[part][i], alone[part][0], atol=1e-5, rtol=0)
        magnitude, phase = lmac.magnitude_phase(clip[None])
        torch.testing.assert_close(lmac.probabilities_of(apply_mask(magnitude, 1 - alone['mask'], lmac.domain), phase)[0], alone['probabilities_out'][0], atol=1e-5, rtol=0)


def test_silero_vad_leaves_the_threads_alone():
    "Its package sets torch to one thread when it is imported, for the whole process"
    code = 'import torch; torch.set_num_threads(2); from lmac.models.packages import SileroVAD; SileroVAD(); assert torch.get_num_threads() == 2'
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('name', ['torchvision resnet18', 'torchvision mobilenet_v3_small', 'transformers HuBERT', 'transformers wav2vec 2.0', 'SpeechBrain Xvector', 'M5'])
def test_ordinary_networks_are_not_called_so(name):
    "A few of those that `measure_ordinary.py` looks at"
    row = look_at(name)
    if row is None: pytest.skip('its package is not installed')
    assert not row['wrong'], row


def test_ordinary_networks_of_the_result_file():
    found = json.loads((Path(__file__).parent.parent/'nbs'/'results'/'ordinary.json').read_text())
    assert found['n_wrong'] == 0 and found['n_networks'] >= 30 and {row['network'] for row in found['networks']} | set(found['missing']) == set(NETWORKS)


BY_HAND = dict(top_db=DEPENDENT['top_db'], masking=RANDOM['frequency_masking'], dither=RANDOM['dither'], running=STATEFUL['running'])
FOUND = dict(top_db=dict(one_by_one=True), masking=dict(switched_off=['model.after']), dither=dict(one_by_one=True), running=dict(stateful=True, one_by_one=True))

def by_hand(model):
    return TappedClassifier(model.eval(), Resynthesis(STFT(), RATE), ['block1', 'block2', 'block3'], list('abcd'), RATE, 'freq_time', 1.)

@pytest.mark.parametrize('kind', BY_HAND)
def test_a_classifier_made_by_hand_is_examined_as_well(kind, tmp_path):
    "The explainer has a copy that gives the clip's own answer; what was handed in is as it was. It is saved, and comes back"
    torch.manual_seed(0)
    mine = by_hand(OnWaves(**copy.deepcopy(BY_HAND[kind])))
    lmac = LMAC.for_classifier(mine, stft=STFT())
    assert lmac.classifier is not mine and lmac.classifier.notes and {k: getattr(mine, k) for k in ANSWER} == ANSWER and not mine.examined
    assert all(a is b for a, b in zip(mine.model.parameters(), lmac.classifier.model.parameters(), strict=True))
    if kind == 'running': assert mine.model.after.mean == 0 == lmac.classifier.model.after.mean
    found = {k: getattr(lmac.classifier, k) for k in ANSWER}
    assert all(found[k] == v for k, v in FOUND[kind].items()) and (found['draws'] in (1, 8)) == (kind == 'dither')
    clips = torch.stack([1e-4 * torch.randn(RATE), torch.sin(torch.arange(RATE) * .3) * .9])
    expected = lmac.classify(clips[:, None], RATE)
    lmac.save_pretrained(tmp_path, card=True)
    assert json.loads((tmp_path/'config.json').read_text())['classifier']['answer'] == found
    assert all(f'- {note}' in (tmp_path/'README.md').read_text() for note in found['notes'])
    again = LMAC.from_pretrained(tmp_path, classifier=mine)
    assert {k: getattr(again.classifier, k) for k in ANSWER} == found and again.classifier.examined and not mine.examined
    torch.testing.assert_close(again.classify(clips[:, None], RATE), expected)
    assert LMAC.for_classifier(again.classifier, stft=STFT()).classifier is again.classifier  # it is known already


def test_a_classifier_made_by_hand_that_is_in_order_stays_the_same(tmp_path):
    mine = by_hand(OnWaves())
    lmac = LMAC.for_classifier(mine, stft=STFT())
    assert lmac.classifier is mine and mine.examined and not mine.notes
    lmac.save_pretrained(tmp_path)
    config = json.loads((tmp_path/'config.json').read_text())
    assert config['classifier'].pop('answer') == ANSWER
    (tmp_path/'config.json').write_text(json.dumps(config))  # as it was written before there was such a part
    assert LMAC.from_pretrained(tmp_path, classifier=mine).classifier is mine


def test_our_own_networks_are_not_examined(monkeypatch):
    "Of these it is known, and no time is to be lost; the bundled folders hold nothing new"
    monkeypatch.setattr('lmac.explain.examine', lambda *args: pytest.fail('it was examined'))
    bundled = LMAC.from_pretrained('esc10')
    assert LMAC.for_classifier(bundled.classifier, stft=bundled.stft).classifier is bundled.classifier and not bundled.classifier.examined


class Cropping(nn.Module):
    "A second anywhere in what is longer"
    def forward(self, x):
        start = int(torch.randint(0, max(1, x.shape[1] - RATE), (1,)))
        return x[:, start:start + RATE]

def test_a_crop_that_is_drawn_in_longer_recordings():
    torch.manual_seed(0)
    classifier = LMAC.for_classifier(OnWaves(before=Cropping()), labels=list('abcd'), duration_s=1.).classifier
    assert classifier.draws and 'draws random numbers' in classifier.notes[0]


@pytest.mark.parametrize('level, heard', [(-100., False), (-30., True)])
def test_padding_that_is_heard(level, heard):
    "Decibels of a short clip, padded up to three seconds: at the floor, which is silence, or at a level"
    torch.manual_seed(0)
    class Padded(nn.Module):
        def forward(self, x): return nn.functional.pad(x, (0, 301 - x.shape[2]), value=level)
    lmac = LMAC.for_classifier(OnWaves(after=Padded()), labels=list('abcd'), duration_s=1.)
    assert lmac.classifier.heard_s == pytest.approx(3., abs=.05) and lmac.classifier.padded_s == (lmac.classifier.heard_s if heard else None)
    ex = explain(lmac)
    assert ex.padding_s == (pytest.approx(1., abs=.05) if heard else 0) and ('of padding' in ex.sentence()) == heard and ex.summary()['padding_s'] == ex.padding_s


def test_a_network_with_a_window_of_its_own():
    "What it doesn't hear is outside the mask, and every picture and sentence says so"
    torch.manual_seed(0)
    lmac = LMAC.for_classifier(OnWaves(before=Do(lambda x: x[:, :int(2.6 * RATE)])), labels=list('abcd'), duration_s=4.)
    assert lmac.classifier.heard_s == pytest.approx(2.6, abs=.15) and 'hears the first 2.' in repr(lmac)
    with pytest.warns(UserWarning, match='not trained'): ex = lmac.explain(.1 * torch.randn(1, 8 * RATE), RATE)
    frames = ex.heard_frames
    assert not ex.mask[:, frames:].any() and ex.mask[:, :frames - 20].any()
    assert f'of the first {lmac.classifier.heard_s:.1f} s' in ex.sentence() and ex.kept == pytest.approx(ex.mask[:, :frames].mean().item())
    assert heard_seconds(LMAC.for_classifier(OnWaves(), duration_s=1.).classifier, lmac.stft) is None

def test_the_highest_frame_may_be_the_first():
    "Of scores by frame all count for what is heard, whatever pools them"
    class Falling(ByFrame):
        def forward(self, x): return (scores := super().forward(x)) - torch.arange(scores.shape[1])[:, None]
    assert explainer(Falling()).classifier.heard_s is None


@pytest.mark.parametrize('model', [Base(then=OUTPUTS['sigmoid'][0]), Base(1), Base(1, lambda s: s[:, 0].sigmoid()), ByFrame(), OnWaves()], ids=['multi_label', 'single', 'squeezed', 'frames', 'waves'])
def test_every_kind_can_be_evaluated(model):
    "Metrics of each clip, finite and of one length, and times"
    from lmac.evidence.evaluation import score_batch, time_decoder
    lmac = LMAC.for_classifier(model.eval(), duration_s=1.) if isinstance(model, OnWaves) else explainer(model, duration_s=1.)
    clips = .1 * torch.randn(3, RATE)
    for scored_on in ('spectrogram', 'audio'):
        for threshold in (None, .5):
            scores = score_batch(lmac, clips, threshold, scored_on)
            assert {'AI', 'AD', 'AG', 'FF', 'Fid-In', 'SPS', 'COMP'} <= set(scores) and all(len(x) == 3 and x.isfinite().all() for x in scores.values())
            assert ('AD_ref' in scores) == (not lmac.classifier.multi_label or len(lmac.labels) == 1)  # of classes that exclude each other, as yes and no do
    assert time_decoder(lmac, n_repeats=1)['ratio'] > 0


def test_fit_says_what_it_is_worth():
    "A network that was never trained has no reasons: nothing can be explained, and that is said in one sentence, and kept"
    torch.manual_seed(0)
    made = explainer(Base(), duration_s=1.)
    with pytest.warns(UserWarning, match='On 2 clips kept back .* Try more steps'): made.fit(.1 * torch.randn(12, RATE), epochs=1, batch_size=4)
    verdict = made.provenance['verdict']
    assert verdict['verdict'] != 'explains' and verdict['sentence'] and set(verdict['explanation']) == {'p', 'p_in', 'p_out', 'fid_in', 'kept'}
    assert verdict['random']['kept'] == pytest.approx(verdict['explanation']['kept'], abs=1e-3) == verdict['energy']['kept']
    assert json.loads(json.dumps(made.provenance)) == made.provenance


def test_time_for_fit(capsys):
    "Epochs and rounds fit into the minutes that there are"
    made = explainer(Base(), duration_s=1.)
    with warnings.catch_warnings(action='ignore'): history = made.fit(.1 * torch.randn(12, RATE), minutes=.02, batch_size=4)  # explained or not
    assert 'in a round, for 0.02 minutes in all, instead of' in capsys.readouterr().out and 1 <= len(history) < 150


@pytest.mark.parametrize('domain, verdicts, tried, ends', [
    (None, ['explains'], ['decibel'], 'decibel'), (None, ['keeps too much', 'explains'], ['decibel', 'log1p'], 'log1p'),
    (None, ['keeps too much', 'the part is not enough', 'keeps too much'], ['decibel', 'log1p'], 'decibel'), ('log1p', ['keeps too much'] * 3, ['log1p'], 'log1p')])
def test_domains_that_are_tried(monkeypatch, domain, verdicts, tried, ends):
    "Where no domain is named and the first does not explain, another is tried, and the best is kept, weights and all"
    torch.manual_seed(0)
    made, seen = explainer(Base(), duration_s=1., domain=domain), []
    def verdict_on(self, *args):
        seen.append((self.domain, {k: v.clone() for k, v in self.decoder.state_dict().items()}))
        verdict = verdicts[len(seen) - 1]
        numbers = dict(p=1., p_in=.9, p_out=.1 if (self.domain, verdict) != ('log1p', 'the part is not enough') else .5, fid_in=1., kept=.3)
        return dict(verdict=verdict, explains=1. if verdict == 'explains' else .3, explanation=numbers, sentence='')
    monkeypatch.setattr(LMAC, 'verdict_on', verdict_on)
    monkeypatch.setattr(LMAC, 'loudest_share', lambda *args: None)  # no start
    with warnings.catch_warnings(action='ignore'): made.fit(.1 * torch.randn(12, RATE), epochs=1, rounds=3, batch_size=4)
    assert made.provenance['trained_with']['domains'] == tried and len(seen) == len(verdicts) and made.domain == ends
    assert any(d == ends and all(torch.equal(w[k], v) for k, v in made.decoder.state_dict().items()) for d, w in seen)

def test_share_of_the_loudest_bins_that_explains():
    class Loud(nn.Module): # how loud the loudest bin of each frame is, on the mean
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        def forward(self, x):
            self.b(self.a(x[:, None]).relu())
            loud = x.amax(1).mean(1)
            return torch.stack([10 - loud, loud - 10], 1)
    made = LMAC.for_classifier(TappedClassifier(Loud().eval(), nn.Identity(), ['a', 'b'], ['quiet', 'loud'], RATE, duration_s=1.), stft=STFT(256, 128))
    tones = .3 * torch.sin(2 * math.pi * 400 * torch.arange(RATE) / RATE).repeat(4, 1) + 1e-3 * torch.randn(4, RATE)
    for level, share in ((1., .05), (1e-3, None)):  # nothing speaks for silence more than the rest does
        assert made.loudest_share(TensorDataset(level * tones, torch.zeros(4))) == share

@pytest.mark.parametrize('verdicts, is_start', [(['keeps too much', 'explains', 'keeps too much'], True), (['keeps too much', 'explains', 'explains'], False), (['explains'], False), (['just explains', 'explains', 'explains'], False)])
def test_a_start_with_the_loudest_bins(monkeypatch, verdicts, is_start):
    "Taught for the second round only; kept, and told of, where nothing better was learned. What only just explains is not enough to end"
    torch.manual_seed(0)
    made, taught, left = explainer(Base(), duration_s=1.), [], iter(verdicts)
    def verdict_on(self, *args):
        verdict = next(left)
        explains = verdict.endswith('explains')
        return dict(verdict='explains' if explains else verdict, explains=float(explains), explanation=dict(p=1., p_in=.85 if 'just' in verdict else .95, p_out=.1, kept=.2), sentence='So it is.')
    def train_round(self, task, *args, **kwargs):
        if isinstance(task, LoudestTask): taught.append((task.share, task.domain, kwargs['epochs']))
        return []
    for name, stand_in in dict(verdict_on=verdict_on, train_round=train_round, loudest_share=lambda *args: .2).items(): monkeypatch.setattr(LMAC, name, stand_in)
    with warnings.catch_warnings(action='ignore'): made.fit(.1 * torch.randn(12, RATE), epochs=16, rounds=2, batch_size=4)
    verdict = made.provenance['verdict']
    assert taught == [(.2, 'log1p', 2)] * (len(verdicts) > 1) and verdict['is_start'] == is_start == ('nothing better was found' in verdict['sentence'])


def test_a_fit_that_was_interrupted_keeps_its_plan(tmp_path, monkeypatch):
    "How long a step takes is another each time; epochs and adjusted weights of the loss are those of the run that was begun, which ends with the same bits"
    clips, ends = .1 * torch.randn(12, RATE), []
    for name, breaks in (('whole', False), ('broken', True)):
        for attempt in range(1 + breaks):
            with torch.random.fork_rng(), warnings.catch_warnings(action='ignore'):
                torch.manual_seed(0)
                made = explainer(Base(), duration_s=1.)
                monkeypatch.setattr(LMAC, 'seconds_per_step', lambda *args: .5 - .2 * attempt)  # 3 epochs in the first attempt, 5 in the second
                monkeypatch.setattr(Constraints, 'before_epoch', stop_before(2) if breaks and not attempt else BEFORE_EPOCH)
                try: history = made.fit(clips, minutes=.06, rounds=1, batch_size=4, folder=tmp_path/name)
                except KeyboardInterrupt: assert breaks and not attempt
        assert len(history) == 3
        ends.append(made.decoder.state_dict())
    for k, v in ends[0].items(): assert torch.equal(v, ends[1][k]), k


BEFORE_EPOCH = Constraints.before_epoch

def stop_before(epoch):
    def before_epoch(self, learner):
        if learner.epoch == epoch: raise KeyboardInterrupt
        BEFORE_EPOCH(self, learner)
    return before_epoch


@pytest.mark.parametrize('options, patience', [(dict(minutes=.02), 100), (dict(epochs=40), None), (dict(epochs=40, minutes=.02), None)], ids=str)
def test_epochs_that_were_asked_for_are_not_skipped(options, patience, monkeypatch):
    class Stop(Exception): pass
    def stop(*args, callbacks, **kwargs): raise Stop([c.patience_steps for c in callbacks])
    monkeypatch.setattr('lmac.explain.fit_task', stop)
    made = LMAC.for_classifier(OnWaves().eval(), labels=list('abcd'), duration_s=1.)
    with pytest.raises(Stop, match=rf'\[{patience}\]'): made.fit(.1 * torch.randn(12, RATE), batch_size=4, **options)


def test_a_network_of_one_length(tmp_path):
    "Whose last layer takes so many numbers and no more: what is longer is explained in windows, by a folder that was saved as well"
    torch.manual_seed(0)
    network = nn.Sequential(torchaudio.transforms.MelSpectrogram(RATE, n_fft=1024, hop_length=256, n_mels=40), nn.Unflatten(1, (1, 40)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(1, RATE))
    explainer = LMAC.for_classifier(network.eval(), sample_rate=RATE, duration_s=1.)
    assert explainer.classifier.one_length and "in windows" in " ".join(explainer.classifier.notes)
    again = LMAC.from_pretrained(explainer.save_pretrained(tmp_path/"saved"), classifier=explainer.classifier)
    for duration_s in (.4, 1., 1.7):
        with pytest.warns(UserWarning, match="not trained"): found = again.explain(torch.randn(1, int(duration_s * RATE)).mul(.1), RATE)
        assert found.window_s == (1. if duration_s > 1 else None) and found.audio.shape == (1, int(duration_s * RATE))
    assert not LMAC.from_pretrained().classifier.one_length
