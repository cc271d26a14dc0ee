"Training on mixtures: pairs with a known answer, and questions that have none"
import pytest
import torch
from torch import nn

from lmac.classifier import TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.masking import ExtendedMaskingLoss, Guidance
from lmac.evidence.recipes import explainer_task, read_config
from lmac.models.sources import SourcesTask, mix_pairs, residual_db
from lmac.spectrogram import STFT
from lmac.training import ExplainerTask

RATE, N = 8000, 4000


class Bands(nn.Module):
    "Four classes, each as likely as its quarter of the spectrum is loud"
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x):
        self.second(self.first(x[:, None]))
        return 12 * torch.stack([q.square().mean((1, 2)) for q in x.chunk(4, 1)], 1) / x.square().mean((1, 2)).clamp_min(1e-9)[:, None]


@pytest.fixture
def stft(): return STFT(128, 64)

@pytest.fixture
def classifier(stft): return TappedClassifier(Bands(), nn.Identity(), ['first', 'second'], list('abcd'), RATE, duration_s=N/RATE)

@pytest.fixture
def tones():
    "One of each class, twice, and a silence"
    t = torch.arange(N)/RATE
    return torch.stack([torch.sin(2*torch.pi*f*t) for f in (500, 1500, 2500, 3500)*2] + [torch.zeros(N)])

@pytest.fixture
def make(classifier, stft):
    def make(**kwargs):
        torch.manual_seed(0)
        options = dict(p_absent=.5, p_noise=0., snr_low_db=-6., snr_high_db=6.) | kwargs
        return SourcesTask(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8), stft, options.pop('loss', None), **options)
    return make


def test_the_distance_in_decibels():
    source = torch.randn(2, 5, 6, dtype=torch.complex64)
    mixture = source + torch.randn(2, 5, 6, dtype=torch.complex64)
    assert residual_db(source, source, mixture).tolist() == pytest.approx([-20, -20])
    assert residual_db(source, source, mixture, -40.).tolist() == pytest.approx([-40, -40])
    energy = mixture.abs().square().sum((1, 2))
    part, off = 1.1*source, .01*source.abs().square().sum((1, 2))
    assert torch.allclose(residual_db(part, source, mixture), 10*torch.log10(off/energy + .01), atol=1e-4)
    assert residual_db(0*source, 0*source, 0*mixture).isfinite().all()

@pytest.mark.parametrize('ratio', [-6., 0., 9.])
def test_pairs_have_the_ratio_asked_for(tones, ratio):
    mixed, apart = mix_pairs(tones, tones.roll(1, 0), torch.full((9,), ratio), torch.ones(9, dtype=torch.bool))
    assert apart.tolist() == [False] + [True]*7 + [False]    # the silence has no ratio to anything
    added = mixed[1:8] - tones[1:8]
    assert (10*torch.log10(tones[1:8].square().sum(1)/added.square().sum(1))).tolist() == pytest.approx([ratio]*7, abs=.01)
    assert torch.equal(mixed[~apart], tones[~apart])

def test_a_class_that_is_heard_in_either_clip_is_never_asked_for_as_absent(make, tones):
    task, seen = make(p_absent=1., p_single=0.), set()
    for seed in range(40):
        torch.manual_seed(seed)
        clean, other, ratio, apart, draw = task.augment(tones)
        *_, apart, asked, absent = task.sample_mixtures(clean, other, ratio, apart, draw)
        p_clean, p_other = task.classify_clips(clean, other)
        first, second = p_clean.argmax(1), p_other.argmax(1)
        assert (asked[absent] != first[absent]).all()
        both = absent & apart
        assert (asked[both] != second[both]).all()
        assert (p_clean[absent, asked[absent]] < .01).all() and (p_other[both, asked[both]] < .01).all()
        assert (asked[~absent] == first[~absent]).all()
        assert (first[apart] != second[apart]).all()
        seen |= set(asked[absent].tolist())
    assert seen == {0, 1, 2, 3}

def test_the_absent_class_is_mostly_what_the_mixture_is_mistaken_for(make, tones, monkeypatch):
    task = make(p_absent=1., p_single=0.)
    def mistaken(logits): return torch.tensor([.75, .001, .24, .009]).expand(len(logits), -1) if len(logits) == 64 else torch.tensor([.99, .002, .002, .006]).expand(len(logits), -1)
    monkeypatch.setattr(task.classifier, 'probabilities', mistaken)    # all that is heard alone is of the first class; a mixture may be of the third
    tones = tones[1:2].expand(64, -1)
    torch.manual_seed(0)
    *_, asked, absent = task.sample_mixtures(tones, tones, torch.zeros(64), torch.zeros(64, dtype=torch.bool), torch.zeros(64))
    assert absent.all() and 0 not in asked
    assert (asked == 2).sum() > (asked == 3).sum() > 0

def test_the_answer_is_the_clip_and_silence_for_what_is_not_there(make, tones, stft):
    task = make()
    clean, mixed = tones[:2], tones[:2] + tones[2:4]
    spectrum = stft(mixed)
    ideal = (stft(clean)[0] > stft(mixed - clean)[0]).float()
    there = torch.zeros(2, dtype=torch.bool)
    def source_db(mask, absent): return task.source_db(torch.polar(mask * spectrum[0], spectrum[1]), spectrum[0], clean, absent)
    assert (source_db(ideal, there) < -15).all()
    assert (source_db(1 - ideal, there) > -1).all()
    assert (source_db(0*ideal, ~there) < -19.9).all()
    assert (source_db(ideal, ~there) > -5).all()

def test_single_clips_have_their_own_loss(make, tones):
    def terms(**kwargs):
        task = make(p_absent=0., loss=ExtendedMaskingLoss(4., .4, 0.), single=ExtendedMaskingLoss(4., .4, 100.), **kwargs).train()
        torch.manual_seed(1)
        return task(tones[:8])
    single = terms(p_single=1.)
    price = 100*single['sparsity'] - .4*single['masked_out'] + 4*single['masked_in']
    assert single['loss'].item() == pytest.approx(price.item(), rel=1e-4)    # and nothing of the distance
    task = make(p_absent=0., loss=ExtendedMaskingLoss(4., .4, 0.), p_single=0.).train()
    torch.manual_seed(1)
    terms = task(tones[:8])
    assert terms['loss'].item() == pytest.approx((.6*terms['source'] - .4*terms['masked_out'] + 4*terms['masked_in']).item(), rel=1e-4)

class Table(nn.Module):
    "A mask for each class, the same for every clip: all that these tones need"
    n_classes = 4
    def __init__(self, n_freqs):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(4, n_freqs))
    def forward(self, maps, n_frames, target): return self.logits[target].sigmoid()[:, :, None].expand(-1, -1, n_frames)

def test_it_learns_to_take_tones_apart(classifier, stft, tones):
    "Asked for one of two tones, the part comes to be that tone, and the classifier stays as it is"
    task = SourcesTask(classifier, Table(stft.n_freqs), stft, ExtendedMaskingLoss(.1, 0., 0.), p_absent=.2, p_single=0., p_noise=0., snr_low_db=-6., snr_high_db=6.).train()
    optimizer = torch.optim.AdamW(task.trained.parameters(), .1)
    frozen = {k: v.clone() for k, v in task.classifier.state_dict().items()}
    torch.manual_seed(0)
    def distance():
        task.eval()
        with torch.no_grad(): found = task.validate(tones[:8])['source'].mean().item()
        task.train()
        return found
    assert distance() > -7    # half of everything
    for _ in range(80):
        task(tones[:8])['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distance() < -15
    masks = task.trained.logits.detach().sigmoid()
    assert masks.argmax(1).diff().min() > 8 and (masks.amax(1) > .9).all()    # each its own quarter
    assert all(torch.equal(v, frozen[k]) for k, v in task.classifier.state_dict().items())

def test_what_it_refuses(make, classifier, stft):
    agnostic = MaskDecoder.for_classifier(classifier, stft, channels=8, n_classes=None)
    with pytest.raises(ValueError, match='needs a class-conditional decoder'): SourcesTask(classifier, agnostic, stft)
    with pytest.raises(ValueError, match='leave it out'): make(loss=ExtendedMaskingLoss(guidance=Guidance()))
    with pytest.raises(ValueError, match='leave it out'): make(single=ExtendedMaskingLoss(guidance=Guidance()))

def test_a_configuration_says_which_task(classifier, stft):
    for name, kind in (('esc10', ExplainerTask), ('esc10-finetuned', ExplainerTask), ('esc10-sources', SourcesTask)):
        task = explainer_task(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8), stft, read_config(name))
        assert type(task) is kind
    assert task.single.weight_sparsity == 3 and task.loss.weight_sparsity == 0
    config = read_config('esc10-sources')
    del config['sources']['single']
    assert explainer_task(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8), stft, config).single is None

def test_one_clip_and_silence(make, tones):
    for waveform in (tones[:1], tones[8:], torch.zeros(3, N)):
        task = make().train()
        assert all(v.isfinite().all() for v in task(waveform).values())
        with torch.no_grad(): assert all(v.isfinite().all() for v in task.eval().validate(waveform).values())

def test_what_is_constrained(make, tones):
    "Clips that are left alone, where they have a loss of their own; all of them where they have none"
    from types import SimpleNamespace
    from lmac.training import Constraints
    single, mixtures = ExtendedMaskingLoss(), ExtendedMaskingLoss()
    for task, loss, other in ((make(loss=mixtures, single=single), single, mixtures), (make(loss=mixtures), mixtures, single)):
        learner = SimpleNamespace(task=task, accelerator=SimpleNamespace(reduce=lambda x, how: x), terms=dict(part=torch.tensor(.2), rest=torch.tensor(.9), kept=torch.tensor(.1)))
        constraints = Constraints()
        for _ in range(3): constraints.after_batch(learner)
        assert loss.multipliers['masked_in'] > 1 and loss.multipliers['masked_out'] > 1 and loss.multipliers['sparsity'] == 1 and not other.multipliers
        loss.multipliers = {}
    task = make(loss=mixtures, single=single, p_single=1., p_absent=0.)
    terms = task.train()(tones)
    with torch.no_grad(): alone = {k: v.item() for k, v in terms.items()}
    assert 0 < alone['kept'] <= 1 and alone['part'] > 0  # nothing is mixed, so all clips count
    absent = make(loss=mixtures, single=single, p_single=1., p_absent=1.).train()(tones[:4])
    assert absent['part'] == absent['kept'] == 0  # and of classes that are not there none does


class Low(Bands):
    "A detector of the lowest band"
    def forward(self, x): return super().forward(x)[:, :1] - 6

def test_a_detector_of_one_class(tones, stft):
    "Noise is mixed into what it detects, is never a source, and what is asked of noise alone is absent"
    classifier = TappedClassifier(Low(), nn.Identity(), ['first', 'second'], ['low'], RATE, duration_s=N/RATE)
    task = SourcesTask(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8), stft, p_absent=.5, p_noise=0.)
    *_, apart, target, absent = task.sample_mixtures(tones[[0, 0, 1, 1]], tones[[1, 0, 0, 2]], torch.zeros(4), torch.ones(4, dtype=torch.bool), torch.ones(4))
    assert apart.tolist() == [True, False, False, False] and target.tolist() == [0] * 4 and absent.tolist() == [False, False, True, True]
    assert task(tones)['loss'].isfinite() and task.validate(tones)['source'].isfinite().all()

def test_classes_with_probabilities_of_their_own(stft):
    classifier = TappedClassifier(Bands(), nn.Identity(), ['first', 'second'], list('abcd'), RATE, duration_s=N/RATE, multi_label=True)
    task = SourcesTask(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8), stft, p_absent=.5)
    differ, nothing = task.clips_differ(torch.tensor([[.9, .8, 0, 0]] * 3 + [[.3, .4, 0, 0]]), torch.tensor([[.7, 0, 0, 0], [.1, .9, 0, 0], [.9, 0, 0, 0], [0, 0, 0, 0]]))
    assert differ.tolist() == [False, True, False, False] and nothing.tolist() == [False, False, False, True]
