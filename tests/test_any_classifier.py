"""Classifiers of every kind, explained by the same code: front ends, taps, targets, waveforms, several labels at once."""
import json
import warnings

import pytest
import torch
from torch import nn

from lmac.adapters import Dependencies, LinearSpectrogram, Resynthesis, SpectrogramImage, flip_frequency, propose_taps
from lmac.audio import make_scene, save_audio
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.evidence.evaluation import score_mask, score_full_input
from lmac.explain import LMAC, training_clips
from lmac.spectrogram import STFT, LogMel
from lmac.training import ExplainerTask
from lmac.masking import MaskingLoss

RATE, SECONDS = 8000, 1.



class Wave(nn.Module):
    "1-D convolutions on `(batch, 1, time)`"
    def __init__(self, n_classes=3):
        super().__init__()
        def block(n_in, n_out, size, stride): return nn.Sequential(nn.Conv1d(n_in, n_out, size, stride), nn.BatchNorm1d(n_out), nn.ReLU())
        self.blocks = nn.Sequential(block(1, 8, 64, 16), block(8, 16, 5, 4), block(16, 16, 5, 2))
        self.fc = nn.Linear(16, n_classes)

    def forward(self, x): return self.fc(self.blocks(x).mean(2))


class Frames(nn.Module):
    "A transformer on log-mel frames"
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(40, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, log_mel): return self.fc(self.encoder(self.embed(log_mel.mT)).mean(1))


class Recurrent(nn.Module):
    "A GRU, whose output is a tuple"
    def __init__(self):
        super().__init__()
        self.conv, self.gru, self.fc = nn.Conv1d(40, 16, 3, padding=1), nn.GRU(16, 8, batch_first=True, bidirectional=True), nn.Linear(16, 3)

    def forward(self, log_mel): return self.fc(self.gru(self.conv(log_mel).relu().mT)[0].mean(1))


class Plain(nn.Module):
    "2-D convolutions on a linear spectrogram, frequency first"
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.MaxPool2d(2))
        self.fc = nn.Linear(16, 3)

    def forward(self, x): return self.fc(self.features(x[:, None]).mean((2, 3)))


def log_mel(): return LogMel(RATE, 512, 40)


def image_network(name):
    import torchvision
    return getattr(torchvision.models, name)(weights=None, num_classes=3)


FAMILIES = {
    'CNN14 on log-mel': lambda: dict(model=Cnn14(3, 4, 40, 16), front_end=log_mel()),
    'CNN on a linear spectrogram': lambda: dict(model=Plain(), front_end=LinearSpectrogram(STFT(512, 128), RATE)),
    'ResNet on images': lambda: dict(model=image_network('resnet18'), front_end=SpectrogramImage(log_mel(), (96, 96))),
    'MobileNet on images': lambda: dict(model=image_network('mobilenet_v2'), front_end=SpectrogramImage(log_mel(), (96, 96))),
    'transformer on frames': lambda: dict(model=Frames(), front_end=log_mel()),
    'recurrent network': lambda: dict(model=Recurrent(), front_end=log_mel(), taps=['conv', 'gru']),
    'CNN on waveforms': lambda: dict(model=Wave()),
    'several labels': lambda: dict(model=Cnn14(3, 4, 40, 16), front_end=log_mel(), multi_label=True),
}


@pytest.fixture(scope='module')
def sounds():
    torch.manual_seed(0)
    names = ('dog', 'rain', 'siren', 'clock_tick')
    return torch.stack([make_scene({name: 0}, SECONDS, RATE, seed=i).waveform[0] for i, name in enumerate(names * 3)])


@pytest.fixture(scope='module', params=FAMILIES)
def family(request, sounds):
    "An explainer for a classifier of this kind, trained for one epoch; the classifier's weights before"
    torch.manual_seed(0)
    parts = FAMILIES[request.param]()
    for m in parts['model'].modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)): m.momentum = 1.
    with torch.no_grad():  # takes the statistics, without which an untrained network's deepest maps are next to zero
        parts['model'].train()(parts['front_end'](STFT(512, 128)(sounds)[0]) if 'front_end' in parts else sounds[:, None])
    parts['model'].eval()
    explainer = LMAC.for_classifier(**parts, stft=STFT(512, 128), labels=list('abc'), sample_rate=RATE, duration_s=SECONDS)
    before = {k: v.clone() for k, v in parts['model'].state_dict().items()}
    history = explainer.fit(sounds, epochs=1, batch_size=4)
    return explainer, before, history


def test_family_is_trained_and_its_classifier_untouched(family):
    explainer, before, history = family
    assert history.train_loss.notna().all()
    state = explainer.classifier.model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in before.items())
    assert not explainer.classifier.training and not any(p.requires_grad for p in explainer.classifier.parameters())


def test_family_is_explained(family, sounds, tmp_path):
    explainer = family[0]
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ex = explainer.explain(sounds[:1], RATE)
    assert ex.audio.shape == ex.residual.shape == (1, RATE) and ex.audio.isfinite().all()
    assert ex.mask.min() >= 0 and ex.mask.max() <= 1 and ex.mask.shape == ex.magnitude.shape
    assert abs(explainer.classify(ex.audio, RATE)[0, ex.class_index].item() - ex.probability_heard) < 1e-5
    ex.save(tmp_path)
    assert json.loads((tmp_path / 'explanation.json').read_text())['label'] == ex.label


def test_family_answers_for_each_class(family, sounds):
    explainer = family[0]
    nn.init.normal_(explainer.decoder.weigh.of_class, std=.5)
    explainer.set_decoder(explainer.decoder)
    magnitude, phase = explainer.magnitude_phase(sounds[:2])
    masks = [explainer.attribute(magnitude, k, phase=phase) for k in range(3)]
    assert all((a - b).abs().max() > 1e-4 for a, b in ((masks[0], masks[1]), (masks[1], masks[2])))
    contrast = explainer.attribute(magnitude, 0, phase=phase, contrast=1)
    assert torch.allclose(contrast, masks[0] * (1 - masks[1]), atol=1e-6)


def test_family_is_evaluated(family, sounds):
    explainer = family[0]
    whole = score_full_input(explainer, sounds[:3])
    found, heard = score_mask(explainer, whole, torch.ones_like(whole.magnitude))
    for route in ('spectrogram', 'audio'):  # a mask of ones changes nothing on either route
        assert torch.allclose(found[route][0], whole.probabilities[route], atol=1e-3), route
    assert torch.allclose(heard[0], sounds[:3] * (heard[0].abs().amax(1) / sounds[:3].abs().amax(1))[:, None], atol=1e-3)


def test_family_is_saved_and_comes_back_with_its_classifier(family, sounds, tmp_path):
    explainer = family[0]
    explainer.save_pretrained(tmp_path)
    again = LMAC.from_pretrained(tmp_path, classifier=explainer.classifier)
    magnitude, phase = explainer.magnitude_phase(sounds[:2])
    assert torch.equal(again.attribute(magnitude, phase=phase), explainer.attribute(magnitude, phase=phase))


def test_gradient_reaches_the_mask_through_the_waveform():
    torch.manual_seed(0)
    stft, wave = STFT(512, 128), Wave().eval()
    clf = TappedClassifier(wave, Resynthesis(stft, RATE, nn.Unflatten(1, (1, -1))), ['blocks.1'], list('abc'), RATE, 'time').double()
    magnitude, phase = stft(.1 * torch.randn(2, RATE).double())
    mask = torch.full_like(magnitude, .5, requires_grad=True)
    clf.log_odds(clf(mask * magnitude, phase), torch.tensor([0, 1])).sum().backward()
    with torch.no_grad():
        step = 1e-5 * mask.grad / mask.grad.norm()
        def odds(m): return clf.log_odds(clf(m * magnitude, phase), torch.tensor([0, 1])).sum()
        slope = (odds(mask + step) - odds(mask - step)) / 2e-5
    assert mask.grad.norm() > 0 and abs(slope / mask.grad.norm() - 1) < .01


def test_loss_of_several_labels_is_that_of_the_one_asked_for():
    "With a sigmoid, what other classes do must not matter"
    torch.manual_seed(0)
    stft = STFT(512, 128)
    explainer = LMAC.for_classifier(Cnn14(3, 4, 40, 16), log_mel(), stft=stft, sample_rate=RATE, duration_s=SECONDS, multi_label=True)
    task = ExplainerTask(explainer.classifier, explainer.decoder, stft, MaskingLoss())
    target, logits = torch.tensor([0, 1]), torch.tensor([[2., 5., -1.], [9., -1., 3.]])
    answer = task.classifier.one_vs_rest_logits(logits, target)
    assert torch.allclose(answer.softmax(1)[:, 0], logits.sigmoid()[[0, 1], [0, 1]])
    others = task.classifier.one_vs_rest_logits(logits + torch.tensor([[0., 9., 9.], [9., 0., 9.]]), target)
    assert torch.equal(answer, others)


def test_loss_of_one_label_is_cross_entropy():
    torch.manual_seed(0)
    stft = STFT(512, 128)
    explainer = LMAC.for_classifier(Cnn14(3, 4, 40, 16), log_mel(), stft=stft, sample_rate=RATE, duration_s=SECONDS)
    task, logits, target = ExplainerTask(explainer.classifier, explainer.decoder, stft), 5 * torch.randn(64, 3), torch.randint(3, (64,))
    answer = task.classifier.one_vs_rest_logits(logits, target)
    yes = torch.zeros_like(target)
    assert torch.allclose(nn.functional.cross_entropy(answer, yes), nn.functional.cross_entropy(logits, target), atol=1e-5)


def test_flipped_image_is_turned_back():
    stft = STFT(512, 128)
    tone = .5 * torch.sin(2 * torch.pi * 500 * torch.arange(RATE) / RATE)[None]
    magnitude, _ = stft(tone)
    maps = {}
    for flip, layout in ((False, 'freq_time'), (True, flip_frequency)):
        clf = TappedClassifier(nn.Sequential(nn.AvgPool2d(4), nn.Flatten(1), nn.Linear(3 * 24 * 24, 3)), SpectrogramImage(log_mel(), (96, 96), flip=flip), ['0'], list('abc'), RATE, layout)
        maps[flip] = clf.with_taps(magnitude)[1][0]
    assert maps[False].shape == maps[True].shape and torch.allclose(maps[False], maps[True], atol=1e-5)


@pytest.mark.parametrize('taps, says', [(['nope'], "no layer 'nope'"), (['fc'], "'fc' gives no map to tap")])
def test_taps_that_do_not_fit(taps, says):
    with pytest.raises(ValueError, match=says): LMAC.for_classifier(Wave(), taps=taps, sample_rate=RATE, duration_s=SECONDS)


def test_layer_that_runs_twice_is_not_proposed():
    class Twice(Wave):
        def forward(self, x):
            h = self.blocks[1](self.blocks[0](x))
            h = self.blocks[2](self.blocks[2](h))
            return self.fc(h.mean(2))
    stft = STFT(512, 128)
    proposal = propose_taps(Twice(), Resynthesis(stft, RATE, nn.Unflatten(1, (1, -1))), stft, RATE)
    assert 'blocks.2' not in proposal.taps and 'runs 2 times' in proposal.table.set_index('layer').why['blocks.2']
    with pytest.raises(ValueError, match='gives no map to tap: runs 2 times'):
        LMAC.for_classifier(Twice(), taps=['blocks.2'], sample_rate=RATE, duration_s=SECONDS)


def conv_block(a, b): return nn.Sequential(nn.Conv1d(a, b, 3, 1, 1), nn.ReLU())


class Ensemble(nn.Module):
    "Members that go over the same sizes of maps, with the first layer in common"
    def __init__(self, members=3, size=5):
        super().__init__()
        self.first = conv_block(40, 8)
        self.members = nn.ModuleList(nn.Sequential(*[conv_block(8, 8) for _ in range(size)]) for _ in range(members))
        self.fc = nn.Linear(8, 3)

    def forward(self, log_mel):
        h = self.first(log_mel)
        return sum(self.fc(m(h).mean(2)) for m in self.members)


class Packed(nn.Module):
    "Layers in a module that gives a dict, as networks of Hugging Face do"
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(6))

        def forward(self, h):
            for layer in self.layers: h = layer(h)
            return dict(last=h)

    def __init__(self):
        super().__init__()
        self.conv, self.embed = conv_block(40, 16), nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16))
        self.encoder, self.fc = self.Encoder(), nn.Linear(16, 3)

    def forward(self, log_mel): return self.fc(self.encoder(self.embed(self.conv(log_mel).mT))['last'].mean(1))


def proposed(model, **kwargs): return propose_taps(model, log_mel(), STFT(512, 128), RATE, **kwargs)

@pytest.mark.parametrize('members, n', [(2, 6), (3, 6), (6, 6), (3, 7)])
def test_each_member_of_an_ensemble_gets_its_taps(members, n):
    found = proposed(Ensemble(members), n=n)
    counts = [sum(tap.startswith(f'members.{k}.') for tap in found.taps) for k in range(members)]
    assert sum(counts) == len(found.taps) == n and max(counts) - min(counts) <= 1
    assert all(f'members.{k}.4' in found.taps for k in range(members))  # the end of each
    assert found.table.set_index('layer').why['members.1.4'].startswith('last of branch 2 at')

def test_more_members_than_taps():
    assert proposed(Ensemble(9), n=3).taps == [f'members.{k}.4' for k in range(3)]

def test_members_are_told_apart_in_place():
    "A network that begins by changing its input, behind a front end that hands it on, and goes on so"
    class Changing(Ensemble):
        def forward(self, magnitude): return super().forward(magnitude.sub_(magnitude.mean()).relu_())
    model, stft = Changing(2), STFT(78, 20)
    for m in model.modules():
        if isinstance(m, nn.ReLU): m.inplace = True
    found = propose_taps(model, LinearSpectrogram(stft, RATE, 'magnitude'), stft, RATE)
    assert [sum(f'members.{k}' in tap for tap in found.taps) for k in range(2)] == [3 - ('first' in found.taps), 3], found.taps

def test_turned_and_rectified_in_place_is_still_a_row():
    "Views of a block's output that change in place"
    class Row(Ensemble):
        def forward(self, log_mel):
            h = self.first(log_mel)
            for block in self.members[0]: h = block(h).mT.mul_(2).mT.relu_()
            return self.fc(h.mean(2))
    found = proposed(Row(1), n=3)
    assert found.taps == ['members.0.0', 'members.0.2', 'members.0.4'] and 'branch' not in ' '.join(found.table.why)

def test_branches_that_join_are_one():
    class Joined(Ensemble):
        def __init__(self):
            super().__init__(2)
            self.last = conv_block(8, 8)
        def forward(self, log_mel):
            h = self.first(log_mel)
            return self.fc(self.last(sum(m(h) for m in self.members)).mean(2))
    found = proposed(Joined())
    assert 'branch' not in ' '.join(found.table.why) and found.taps[-1] == 'last'

@pytest.mark.parametrize('heads, n, trunk', [(10, 6, 5), (2, 6, 4), (3, 3, 2)])
def test_a_trunk_has_more_taps_than_its_heads(heads, n, trunk):
    class Headed(Ensemble):
        def __init__(self):
            super().__init__(1, 12)
            self.heads = nn.ModuleList(conv_block(8, 8) for _ in range(heads))
        def forward(self, log_mel):
            h = self.members[0](self.first(log_mel))
            return sum(self.fc(head(h).mean(2)) for head in self.heads)
    taps = proposed(Headed(), n=n).taps
    assert len(taps) == n and sum(tap.startswith(('first', 'members')) for tap in taps) == trunk and 'heads.0' in taps

def test_what_the_output_does_not_depend_on_is_not_proposed():
    class Idle(Ensemble):
        def forward(self, log_mel):
            h = self.first(log_mel)
            for a, b in zip(*self.members):
                h, idle = a(h), b(h)
            return self.fc(h.mean(2))
    found = proposed(Idle(2))
    assert all('members.1' not in tap for tap in found.taps)
    assert found.table.set_index('layer').why['members.1.4'] == 'the output does not depend on it'

def test_maps_that_are_all_idle():
    class Pooled(Ensemble):
        def forward(self, log_mel):
            super().forward(log_mel)
            return self.fc(log_mel[:, :8].mean(2))
    with pytest.raises(ValueError, match='gives a map over time .first.0: the output does not depend on it'): proposed(Pooled())

def test_storage_that_is_used_again():
    "A constant that takes the place of an output that is gone depends on nothing"
    with Dependencies() as dependencies:
        for _ in range(20):
            x = torch.ones(1000)
            dependencies.mark(x, {'layer'})
            del x
            assert dependencies.of(torch.tensor([1.] * 1000)) == set()

@pytest.mark.parametrize('n', [1, 2, 3, 6])
def test_the_end_is_tapped_where_sizes_come_back(n):
    class Hourglass(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.ModuleList(nn.Sequential(nn.Conv1d(a, 8, 3, 2, 1), nn.ReLU()) for a in (40, 8, 8))
            self.up = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv1d(8, 8, 3, 1, 1)) for _ in range(3))
            self.fc = nn.Linear(8, 3)
        def forward(self, h):
            kept = []
            for layer in self.down: kept.append(h := layer(h))
            for layer, before in zip(self.up, [None, *kept[1::-1]]): h = layer(h if before is None else h[..., :before.shape[2]] + before)
            return self.fc(h.mean(2))
    taps = proposed(Hourglass(), n=n).taps
    assert 'up.2' in taps and (n < 6 or taps == ['up.2', 'down.0', 'up.1', 'down.1', 'up.0', 'down.2'])  # finest first: what weighs is the bottleneck

def test_blocks_in_a_container_that_gives_no_map():
    found = proposed(Packed(), n=4)
    assert found.taps == ['conv', 'encoder.layers.0', 'encoder.layers.3', 'encoder.layers.5']

def test_paths_side_by_side_in_a_block_are_no_row():
    found = propose_taps(image_network('inception_v3').eval(), SpectrogramImage(LogMel(), (299, 299)), STFT(), 80000)
    assert found.taps == ['Conv2d_1a_3x3', 'Conv2d_2b_3x3', 'Conv2d_4a_3x3', 'Mixed_5d', 'Mixed_6e', 'Mixed_7c']


def test_channels_last():
    "Swin's maps lie (row, column, channel)"
    explainer = LMAC.for_classifier(image_network('swin_t').eval(), SpectrogramImage(log_mel(), (96, 96)), labels=list('abc'), sample_rate=RATE, duration_s=SECONDS, stft=STFT(512, 128))
    assert set(explainer.classifier.map_layout.values()) == {'freq_time_channel'}
    with torch.no_grad(): _, maps = explainer.classifier.with_taps(*explainer.magnitude_phase(.1 * torch.randn(1, RATE)))
    assert [tuple(m.shape[1:]) for m in maps[1:]][::5] == [(96, 24, 24), (768, 3, 3)] and len(maps) == 7  # the first is the spectrogram

@pytest.mark.parametrize('turned', [False, True])
def test_channels_last_with_time_that_grows(turned):
    "The half of a recording that sounds is found on the time axis of the maps"
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = (nn.Sequential(nn.Linear(n, 6), nn.ReLU()) for n in (1, 6, 6))
        def forward(self, log_mel):
            h = self.b(self.a((log_mel.mT if turned else log_mel)[..., None]))
            return self.fc(h.mean((1, 2)))
    sound = .1 * torch.sin(6000 * torch.arange(RATE) / RATE)[None]
    sound[:, :RATE // 2] = 0
    explainer = LMAC.for_classifier(Last(), log_mel(), labels=list('abcdef'), sample_rate=RATE, duration_s=SECONDS, stft=STFT(512, 128))
    with torch.no_grad(): _, maps = explainer.classifier.with_taps(*explainer.magnitude_phase(sound))
    for m in maps[1:]:
        assert m.shape[1] == 6 and m.shape[2] == 40
        change = (m - m[:, :, :, :1]).abs().mean((0, 1, 2))
        assert change[m.shape[3] * 3 // 4] > 10 * change[m.shape[3] // 4]

def test_probe_leaves_the_model_as_it_was():
    model = Wave().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    stft = STFT(512, 128)
    propose_taps(model, Resynthesis(stft, RATE, nn.Unflatten(1, (1, -1))), stft, RATE)
    assert model.training and all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert not any(m._forward_hooks for m in model.modules())


def test_clips_to_train_on(tmp_path, sounds):
    explainer = LMAC.for_classifier(Wave(), sample_rate=RATE, duration_s=SECONDS)
    for i, seconds in enumerate((.4, 2.5)): save_audio(tmp_path / f'{i}.wav', .1 * torch.randn(1, int(16000 * seconds)), 16000)
    assert len(training_clips(explainer, tmp_path)) == 1 + 3  # the long one gives three
    assert training_clips(explainer, tmp_path)[0][0].shape == (RATE,)
    assert len(training_clips(explainer, sorted(tmp_path.glob('*.wav'))[1:])) == 3
    with pytest.raises(ValueError, match='waveforms'): training_clips(explainer, torch.zeros(3))


def test_missing_phase_is_named():
    explainer = LMAC.for_classifier(Wave(), sample_rate=RATE, duration_s=SECONDS)
    with pytest.raises(ValueError, match='hand in its phase'): explainer.attribute(torch.zeros(1, explainer.stft.n_freqs, 63))


def test_phase_may_stand_for_methods_that_know_of_magnitudes_only(sounds):
    from lmac.evidence.baselines import BASELINES
    from lmac.evidence.benchmark import attribution
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(Wave(), stft=STFT(512, 128), labels=list('abc'), sample_rate=RATE, duration_s=SECONDS)
    magnitude, phase = explainer.magnitude_phase(sounds[:2])
    decided = explainer.classifier(magnitude, phase).argmax(1)
    assert torch.equal(decided, explainer.classify(sounds[:2, None], RATE).argmax(1))
    for name in ('saliency', 'integrated_gradients', 'smoothgrad', 'occlusion', 'gradcam', 'energy'):
        method = BASELINES[name](explainer.classifier)
        both, _ = attribution(method, magnitude, decided, phase)
        alone = [attribution(method, magnitude[i:i + 1], decided[i:i + 1], phase[i:i + 1])[0] for i in range(2)]
        assert torch.allclose(both, torch.cat(alone), atol=1e-5), name
    x = magnitude[:1].log1p().requires_grad_()  # the definition of saliency, with the phase given
    gradient, = torch.autograd.grad(explainer.classifier(x.expm1(), phase[:1])[0, decided[0]], x)
    found = BASELINES['saliency'](explainer.classifier).scores(magnitude[:1], decided[:1], phase[:1])
    assert torch.allclose(found, gradient.abs(), atol=1e-6) and explainer.classifier.standing_phase is None


def test_waveform_classifier_goes_through_the_benchmark(tmp_path):
    from lmac.evidence.benchmark import benchmark, read_benchmark, scene_dataset
    torch.manual_seed(0)
    names = ['dog', 'rain', 'siren']
    explainer = LMAC.for_classifier(Wave(), stft=STFT(512, 128), labels=names, sample_rate=RATE, duration_s=SECONDS)
    (tmp_path / 'scenes').mkdir()
    dataset = scene_dataset(names, tmp_path / 'scenes', sample_rate=RATE, duration_s=SECONDS)
    benchmark(explainer, dataset, [5], tmp_path / 'b.json', ['lmac', 'saliency', 'random'], ['clean', 'white_noise@3'], [0], name='wave', data='scenes', batch_size=4)
    table = read_benchmark(tmp_path / 'b.json')[2]
    assert set(table.method) == {'lmac', 'saliency', 'random'}
    assert table[table['mask'] == 'soft'].p_in.notna().all() and set(table.scored_on) == {'spectrogram', 'audio'}

def test_the_spectrogram_guides_where_maps_are_coarse(tmp_path):
    "Few rows of frequency: the decoder draws on the spectrogram as well; explainers from before say nothing of it, and load as they were"
    net, front = Plain().eval(), LinearSpectrogram(STFT(256, 128), RATE)
    made = LMAC.for_classifier(net, front, sample_rate=RATE, stft=STFT(256, 128), duration_s=SECONDS)
    assert made.classifier.guide and made.decoder.guide
    magnitude = made.stft(torch.randn(2, RATE))[0]
    mask = made.attribute(magnitude)
    made.save_pretrained(tmp_path / "new")
    again = LMAC.for_classifier(net, front, sample_rate=RATE, stft=STFT(256, 128), duration_s=SECONDS)
    again.classifier.guide = False    # made by hand
    loaded = LMAC.from_pretrained(tmp_path / "new", classifier=again.classifier)
    assert torch.equal(loaded.attribute(magnitude), mask) and not again.classifier.guide
    before = LMAC(again.classifier, MaskDecoder.for_classifier(again.classifier, made.stft), made.stft)
    before.save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old/config.json").read_text())
    assert config["decoder"].pop("guide") is False
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    loaded = LMAC.from_pretrained(tmp_path / "old", classifier=made.classifier)
    assert not loaded.classifier.guide and torch.equal(loaded.attribute(magnitude), before.attribute(magnitude)) and made.classifier.guide
