"""Explaining at its edges: clips that are no clips, folders of weights that are damaged, disks that are full.

An explainer with random weights does for all of it: neither recordings nor the bundled weights are needed.
"""
import errno
import json
import os
import re
import shutil

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import nn

import lmac.explain
from lmac.audio import load_audio, make_scene, resample, save_audio
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.explanation import Explanations
from lmac.pretrained import sha256_of
from lmac.pretrained import load_classifier, save_classifier
from lmac.player import mask_png, player_script, static
from lmac.spectrogram import STFT, LogMel

pytestmark = pytest.mark.usefixtures('one_thread')
LABELS = ['bell', 'rain', 'saw']
RESULTS = ['explanation.flac', 'explanation.json', 'mask.png', 'regions.csv', 'regions.selections.txt', 'regions.txt', 'report.html', 'residual.flac', 'thumbnail.png']
WEIGHTS = ['classifier.safetensors', 'config.json', 'decoder.safetensors']


def small_explainer(seed=0, width=4, taps=('conv_block2', 'conv_block4', 'conv_block6'), labels=LABELS, **kwargs):
    torch.manual_seed(seed)
    stft = STFT()
    model = Cnn14(len(labels), width=width, n_mels=40, max_width=32)
    classifier = TappedClassifier(model, LogMel(n_mels=40), taps, labels, 16000, **kwargs)
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8, head_channels=4), stft)

@pytest.fixture(scope='module')
def explainer(): return small_explainer()

@pytest.fixture(scope='module')
def scene(): return make_scene({'clock_tick': 0, 'rain': -14})

@pytest.fixture(scope='module')
def explanation(explainer, scene): return explainer.explain(scene.waveform, 16000)

@pytest.fixture
def saved(tmp_path, explainer): return explainer.save_pretrained(tmp_path/'saved')

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}

def edit_config(folder, **changes):
    "Change parts of config.json: keyword 'a_b' is its part a, key b"
    config = json.loads((folder/'config.json').read_text())
    for where, value in changes.items():
        part, key = where.split('__')
        config[part][key] = value
    (folder/'config.json').write_text(json.dumps(config))

def full_disk(monkeypatch, name='fsync', after=0):
    "Let `os.fsync` or `os.replace` fail for want of room after so many calls"
    calls, real = [], getattr(os, name)
    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) > after: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)
    monkeypatch.setattr(os, name, fail)
    return calls


# ---- files that are no recordings ----

def whole_wav(path): return save_audio(path, make_scene({'siren': 0}, 1.).waveform, 16000).read_bytes()

def broken_files(folder):
    good = whole_wav(folder/'good.wav')
    flac = save_audio(folder/'good.flac', make_scene({'siren': 0}, 1.).waveform, 16000).read_bytes()
    (folder/'empty.wav').write_bytes(b'')
    (folder/'text.wav').write_text('not audio')
    (folder/'zeros.wav').write_bytes(bytes(5000))
    (folder/'picture.mp3').write_bytes(b'\x89PNG\r\n\x1a\n' + bytes(range(256)) * 20)
    (folder/'header.wav').write_bytes(good[:20])
    (folder/'half.wav').write_bytes(good[:len(good)//2])
    (folder/'half.flac').write_bytes(flac[:len(flac)//2])
    sf.write(folder/'no-samples.wav', np.zeros((0, 1), dtype='float32'), 16000)
    sf.write(folder/'nan.wav', np.array([0, np.nan, .5], dtype='float32'), 16000, subtype='FLOAT')
    sf.write(folder/'inf.wav', np.array([0, .5, np.inf], dtype='float32'), 16000, subtype='FLOAT')
    (folder/'folder.wav').mkdir()

@pytest.mark.parametrize('name, message', [
    ('empty.wav', r'empty \(0 bytes\)'), ('text.wav', 'no audio'), ('zeros.wav', 'no audio'), ('picture.mp3', 'no audio'),
    ('header.wav', 'damaged|truncated|no samples'), ('half.wav', 'truncated'), ('half.flac', 'truncated|cut off'),
    ('no-samples.wav', 'length is zero'), ('nan.wav', '1 of 3 samples NaN'), ('inf.wav', '1 of 3 samples NaN or inf'),
    ('folder.wav', 'not a file')])
def test_a_broken_file_is_named(tmp_path, explainer, name, message):
    broken_files(tmp_path)
    with pytest.raises(ValueError, match=message) as error: explainer.explain(tmp_path/name)
    assert name in str(error.value) and '\n' not in str(error.value)

def test_missing_file(tmp_path, explainer):
    with pytest.raises(FileNotFoundError, match='nowhere.wav'): explainer.explain(tmp_path/'nowhere.wav')
    with pytest.raises(FileNotFoundError, match='nowhere.wav'): explainer.explain(str(tmp_path/'nowhere.wav'))

def test_one_broken_file_in_a_list(tmp_path, explainer):
    broken_files(tmp_path)
    with pytest.raises(ValueError, match='text.wav'): explainer.explain([tmp_path/'good.wav', tmp_path/'text.wav'])


# ---- waveforms that are no clips ----

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_samples_that_are_no_numbers(explainer, scene, bad):
    waveform = scene.waveform.clone()
    waveform[0, 700:703] = bad
    for act in (explainer.explain, explainer.classify):
        with pytest.raises(ValueError, match=r'3 of 80000 samples NaN or infinite, the first at index \(0, 700\)'):
            act(waveform, 16000)

@pytest.mark.parametrize('shape', [(0,), (1, 0), (0, 16000), (2, 1, 0), (0, 1, 16000), (1, 1, 1, 16000), ()])
def test_wrong_shapes_and_zero_length(explainer, shape):
    for act in (explainer.explain, explainer.classify):
        with pytest.raises(ValueError, match='Found shape: ' + re.escape(str(shape))): act(torch.zeros(shape), 16000)

@pytest.mark.parametrize('bad', [torch.zeros(1, 16000, dtype=torch.int16), torch.zeros(1, 16000, dtype=torch.complex64),
                                 np.zeros((1, 16000), dtype=np.int32), None, 5, {'waveform': 1}, [0.1, 0.2]])
def test_what_is_no_waveform(explainer, bad):
    with pytest.raises(TypeError, match='waveform'): explainer.explain(bad, 16000)

@pytest.mark.parametrize('rate, error', [(0, ValueError), (-16000, ValueError), (44100.5, ValueError), (float('nan'), ValueError),
                                         ('16000', TypeError), (True, TypeError)])
def test_sample_rates_that_are_none(explainer, scene, rate, error):
    for act in (explainer.explain, explainer.classify):
        with pytest.raises(error, match='hertz.*Found'): act(scene.waveform, rate)

def test_a_waveform_needs_its_rate(explainer, scene):
    with pytest.raises(ValueError, match='needs its sample rate'): explainer.explain(scene.waveform)

@pytest.mark.parametrize('target', ['violin', '', 3, -1, 1.5])
def test_unknown_class(explainer, scene, target):
    with pytest.raises(ValueError, match='bell, rain, saw'): explainer.explain(scene.waveform, 16000, target=target)

def test_another_class_than_the_one_decided(explainer, scene, explanation):
    decided, other = explanation.label, LABELS[(explanation.class_index + 1) % 3]
    for target in (other, LABELS.index(other)):
        found = explainer.explain(scene.waveform, 16000, target=target)
        assert (found.label, found.predicted_label, explanation.predicted_label) == (other, decided, decided)
        assert found.probability == found.probabilities[LABELS.index(other)].item() == found.summary()['probability']
        assert found.summary()['predicted_label'] == decided and found.summary()['label'] == other
        assert f"says {decided!r}" in repr(found) and f"explains {other!r}, which has {found.probability:.2f}" in repr(found)
        assert ('Not much' in repr(found)) == (found.probability_heard <= .5)
    for target in (decided, explanation.class_index):
        found = explainer.explain(scene.waveform, 16000, target=target)
        assert torch.equal(found.mask, explanation.mask) and repr(found) == repr(explanation)

@pytest.mark.parametrize('threshold', [-0.1, 1.5, float('nan')])
def test_a_threshold_that_is_none(explainer, scene, threshold):
    with pytest.raises(ValueError, match='threshold'): explainer.explain(scene.waveform, 16000, threshold=threshold)


# ---- parts that do not fit ----

def test_unknown_tap(explainer):
    classifier = explainer.classifier
    with pytest.raises(ValueError, match="no layer 'conv_block9' to tap.*conv_block"):
        TappedClassifier(classifier.model, classifier.front_end, ['conv_block9'], LABELS, 16000)
    with pytest.raises(ValueError, match='at least one tap'):
        TappedClassifier(classifier.model, classifier.front_end, [], LABELS, 16000)

@pytest.mark.parametrize('other', [dict(width=8), dict(taps=('conv_block2', 'conv_block6')), dict(taps=('conv_block1', 'conv_block4', 'conv_block6'))])
def test_decoder_for_another_classifier(explainer, other):
    with pytest.raises(ValueError, match='made for another classifier'):
        LMAC(explainer.classifier, small_explainer(**other).decoder, explainer.stft)

def test_stft_that_the_front_end_does_not_fit(explainer):
    with pytest.raises(ValueError, match='257|512'): LMAC(explainer.classifier, explainer.decoder, STFT(512, 128))

def test_decoder_for_another_stft(explainer):
    "Its mask has another number of bins than the spectrogram"
    stft = STFT(512, 128)
    decoder = MaskDecoder([8, 32, 32], explainer.classifier.front_end.frequencies, stft.frequencies(16000), 8, 4)
    with pytest.raises(ValueError, match='257'): LMAC(explainer.classifier, decoder, explainer.stft)

def test_labels_that_do_not_match_the_logits(explainer):
    classifier = explainer.classifier
    with pytest.raises(ValueError, match='3.*2|2.*3'):
        short = TappedClassifier(classifier.model, classifier.front_end, classifier.taps, ['bell', 'rain'], 16000)
        LMAC(short, explainer.decoder, explainer.stft)


# ---- what an explanation is ----

def check(explainer, found, n_samples):
    "What holds of any explanation"
    assert found.waveform.shape == found.audio.shape == found.residual.shape == (1, n_samples)
    assert found.mask.shape == found.magnitude.shape and 0 <= found.mask.min() and found.mask.max() <= 1
    assert all(t.isfinite().all() for t in (found.mask, found.magnitude, found.audio, found.residual, found.probabilities))
    assert found.audio.abs().max() <= 1 and found.residual.abs().max() <= 1
    assert found.probabilities.shape == (3,) and abs(found.probabilities.sum().item() - 1) < 1e-5
    assert found.label == LABELS[found.class_index] == LABELS[found.probabilities.argmax()]
    for p in (found.probability, found.probability_masked_in, found.probability_masked_out, found.probability_heard): assert 0 <= p <= 1
    heard = explainer.classify(found.audio, found.sample_rate)[0, found.class_index].item()
    assert abs(found.probability_heard - heard) < 1e-6

@pytest.mark.parametrize('threshold', [None, 0.5])
@pytest.mark.parametrize('duration_s', [0.05, 1/16000, 0.7, 5., 12.3])
def test_clips_of_any_length(explainer, duration_s, threshold):
    waveform = make_scene({'chainsaw': 0}, max(duration_s, .05)).waveform[:, :max(1, round(16000*duration_s))]
    found = explainer.explain(waveform, 16000, threshold=threshold)
    check(explainer, found, waveform.shape[-1])
    assert threshold is None or set(found.mask.unique().tolist()) <= {0., 1.}

def test_a_minute(explainer):
    waveform = make_scene({'siren': 0, 'rain': -6}, 60.).waveform
    check(explainer, explainer.explain(waveform, 16000), 960000)

def test_the_ends_of_a_long_clip_are_explained_too(explainer):
    "The frames of the mask reach the last sample"
    waveform = make_scene({'rain': 0}, 12.3).waveform
    found = explainer.explain(waveform, 16000)
    assert (found.mask.shape[-1] - 1)*found.hop_length >= waveform.shape[-1] - found.hop_length
    for part in (found.audio, found.residual): assert part[:, -2000:].abs().max() > 1e-3

@pytest.mark.parametrize('threshold', [None, 0.5])
def test_a_batch_is_its_clips(explainer, threshold):
    clips = torch.stack([make_scene({name: 0}, 2., seed=i).waveform for i, name in enumerate(('dog', 'rain', 'siren'))])
    batch = explainer.explain(clips, 16000, threshold=threshold)
    assert isinstance(batch, list) and len(batch) == 3
    torch.testing.assert_close(explainer.classify(clips, 16000), torch.stack([b.probabilities for b in batch]), rtol=0, atol=1e-5)
    for clip, found in zip(clips, batch):
        single = explainer.explain(clip, 16000, threshold=threshold)
        check(explainer, found, 32000)
        assert found.label == single.label
        for name in ('probabilities', 'magnitude'):
            torch.testing.assert_close(getattr(found, name), getattr(single, name), rtol=0, atol=1e-4)
        assert (found.mask - single.mask).abs().mean() < 1e-4  # rounding may turn a bin on the edge of a binary mask
        assert (found.audio - single.audio).norm() < 1e-2*clip.norm()
    assert isinstance(explainer.explain(clips[:1], 16000), list)

def test_a_batch_with_a_silent_clip(explainer, scene):
    loud, silent = explainer.explain(torch.stack([scene.waveform, torch.zeros(1, 80000)]), 16000)
    assert silent.silent and not loud.silent and torch.equal(silent.audio, torch.zeros(1, 80000))
    check(explainer, loud, 80000); check(explainer, silent, 80000)

def test_stereo_at_44100_hz(tmp_path, explainer):
    stereo = torch.cat([make_scene({name: 0}, 1., sample_rate=44100).waveform for name in ('dog', 'rain')])*.5
    save_audio(tmp_path/'stereo.wav', stereo, 44100, subtype='FLOAT')
    found = explainer.explain(tmp_path/'stereo.wav')
    check(explainer, found, 16000)
    assert found.sample_rate == 16000 and found.source == str(tmp_path/'stereo.wav')
    torch.testing.assert_close(found.waveform, resample(stereo.mean(0, keepdim=True), 44100, 16000))
    assert torch.equal(found.audio, explainer.explain(stereo, 44100).audio)
    assert torch.equal(found.audio, explainer.explain(stereo.numpy(), 44100).audio)
    assert torch.equal(found.audio, explainer.explain(stereo.double(), 44100.).audio)

@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
def test_every_format(tmp_path, explainer, suffix):
    path = save_audio(tmp_path/f'a{suffix}', make_scene({'dog': 0}, 1., sample_rate=22050).waveform, 22050)
    found = explainer.explain(path)
    check(explainer, found, found.waveform.shape[-1])
    assert abs(found.duration_s - 1) < .1

def test_paths_in_a_list(tmp_path, explainer):
    paths = [save_audio(tmp_path/f'{name}.wav', make_scene({name: 0}, t).waveform, 16000) for name, t in (('dog', .5), ('rain', 1.))]
    found = explainer.explain(paths)
    assert [f.source for f in found] == [str(p) for p in paths] and [f.duration_s for f in found] == [.5, 1.]

def test_the_input_is_left_alone(explainer, scene):
    waveform = scene.waveform.clone()
    explainer.explain(waveform, 16000)
    assert torch.equal(waveform, scene.waveform)

def test_one_dimension(explainer, scene, explanation):
    assert torch.equal(explainer.explain(scene.waveform[0], 16000).audio, explanation.audio)


# ---- silence, and nearly ----

@pytest.mark.parametrize('shape, rate', [((80000,), 16000), ((1, 800), 16000), ((2, 44100), 44100), ((1, 1), 8000)])
@pytest.mark.parametrize('threshold', [None, 0.5])
def test_silence_is_explained_as_silence(tmp_path, explainer, shape, rate, threshold):
    found = explainer.explain(torch.zeros(shape), rate, threshold=threshold)
    assert found.silent and not found.audio.any() and not found.residual.any()
    check(explainer, found, found.waveform.shape[-1])
    assert 'silent' in found.sentence() and 'silent' in repr(found)
    found.save(tmp_path/'out')
    def refuse(constant): raise AssertionError(f"explanation.json holds {constant}")
    numbers = json.loads((tmp_path/'out/explanation.json').read_text(), parse_constant=refuse)
    assert numbers['silent'] is True and numbers['label'] in LABELS
    assert not load_audio(tmp_path/'out/explanation.flac')[0].any()

@pytest.mark.parametrize('waveform', [torch.full((1, 16000), .5), 1e-30*torch.ones(1, 16000), torch.eye(16000)[:1], torch.ones(1, 16000),
                                      torch.tensor([[1., -1.]]).repeat(1, 8000)],
                         ids=['constant', 'denormal', 'one sample', 'full scale', 'square'])
def test_sounds_at_the_edge(tmp_path, explainer, waveform):
    found = explainer.explain(waveform, 16000)
    check(explainer, found, 16000)
    found.save(tmp_path/'out')

def test_a_clip_beyond_full_scale(tmp_path, explainer, scene):
    "A float recording may exceed ±1; what is played may not"
    loud = explainer.explain(20*scene.waveform, 16000)
    check(explainer, loud, 80000)
    assert loud.gain_db < 0
    loud.save(tmp_path/'out')
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == RESULTS

def test_no_clicks(explainer):
    "Both parts begin and end as softly as a clip that does"
    fade = torch.hann_window(32000, periodic=False)
    found = explainer.explain(make_scene({'rain': 0}, 2.).waveform*fade, 16000)
    assert found.audio[:, [0, -1]].abs().max() < 1e-2 and found.audio.diff().abs().max() <= found.waveform.diff().abs().max()*1.5


# ---- determinism ----

def test_the_same_every_time(explainer, scene, explanation):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = explainer.explain(scene.waveform, 16000)
    assert torch.equal(torch.get_rng_state(), state)  # draws no random numbers
    for name in ('mask', 'audio', 'residual', 'probabilities', 'magnitude'):
        assert torch.equal(getattr(again, name), getattr(explanation, name)), name
    assert again.summary() == explanation.summary() and again.report() == explanation.report()

def test_the_classifier_does_not_change(explainer, scene):
    classifier = explainer.classifier
    before = {k: v.clone() for k, v in classifier.state_dict().items()}
    with torch.no_grad(): logits = classifier(explainer.stft(scene.waveform)[0])
    explainer.explain(scene.waveform, 16000, threshold=.5)
    explainer.classify(scene.waveform, 16000)
    after = classifier.state_dict()
    assert list(after) == list(before) and all(torch.equal(v, after[k]) for k, v in before.items())
    assert not classifier.training and not any(m.training for m in explainer.decoder.modules())
    assert not any(p.requires_grad for p in classifier.parameters()) and not classifier.model._forward_hooks
    with torch.no_grad(): assert torch.equal(classifier(explainer.stft(scene.waveform)[0]), logits)


# ---- results on disk ----

def test_results(tmp_path, explainer, explanation):
    assert explanation.save(tmp_path/'new'/'folder') == tmp_path/'new'/'folder'
    assert sorted(p.name for p in (tmp_path/'new/folder').iterdir()) == RESULTS
    for name, sound in (('explanation', explanation.audio), ('residual', explanation.residual)):
        written, rate = load_audio(tmp_path/f'new/folder/{name}.flac')
        assert rate == 16000 and (written - sound).abs().max() <= 2**-15
    numbers = json.loads((tmp_path/'new/folder/explanation.json').read_text())
    assert numbers == json.loads(json.dumps(explanation.summary())) and list(numbers['probabilities'])[0] == explanation.label
    assert (tmp_path/'new/folder/mask.png').read_bytes().startswith(b'\x89PNG')
    heard = explainer.classify(*load_audio(tmp_path/'new/folder/explanation.flac'))[0, explanation.class_index].item()
    assert abs(heard - numbers['probability_heard']) < 1e-3  # 16 bits

def test_the_report_stands_alone(explanation):
    page = explanation.report()
    assert len(page.encode()) < 6e5
    assert page.count('<script') == 1 and static('player.js') in page
    assert not re.search(r'https?:|//\w|@import|url\(|<link|<iframe', re.sub(r'data:[\w/]+;base64,[\w+/=]+', '', page))
    sources = re.findall(r'(?:src|href|poster|srcset)="([^"]{0,22})', page)
    assert len(sources) == 5 and all(s.startswith('data:') for s in sources)   # three sounds, two images, which the picture shows once more
    assert page.startswith('<!doctype html>') and '<html lang=' in page and 'alt="' in page
    assert page.count('<div') == page.count('</div>') and page.count('<table') == page.count('</table>')

def test_names_are_escaped_in_the_report(tmp_path):
    explainer = small_explainer(labels=['<b>"a"</b>', '<i>', '&amp'])
    path = save_audio(tmp_path/'<script>alert(1)<.wav', make_scene({'dog': 0}, .2).waveform, 16000)
    page = explainer.explain(path).report()
    page = page.replace(player_script('').split('</style>')[1], '')   # our own script
    assert not any(tag in page for tag in ('<script', '<b>', '<i>')) and '&lt;script&gt;' in page

def test_saving_below_a_file(tmp_path, explainer, explanation):
    (tmp_path/'file').write_text('mine')
    for act in (explanation.save, explainer.save_pretrained):
        for folder in (tmp_path/'file', tmp_path/'file'/'out'):
            with pytest.raises(OSError, match='file') as error: act(folder)
            assert '\n' not in str(error.value)
    assert contents(tmp_path) == {'file': b'mine'}

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere')
def test_saving_where_one_may_not(tmp_path, explanation):
    (tmp_path/'locked').mkdir(mode=0o500)
    for folder in (tmp_path/'locked', tmp_path/'locked'/'out'):
        with pytest.raises(PermissionError, match='locked'): explanation.save(folder)

@pytest.mark.parametrize('name, after', [*(('fsync', n) for n in range(5)), ('replace', 0)])
def test_full_disk_while_saving_results(tmp_path, monkeypatch, explainer, explanation, name, after):
    "Whichever file finds no room: what was there stays, all of it, and no part of the new is left"
    out = explainer.explain(make_scene({'dog': 0}, 1.).waveform, 16000).save(tmp_path/'out')
    earlier = contents(tmp_path)
    with monkeypatch.context() as patch:
        full_disk(patch, name, after)
        for folder in (out, tmp_path/'new'):
            with pytest.raises(OSError, match='No space left') as error: explanation.save(folder)
            assert error.value.errno == errno.ENOSPC and str(folder) in str(error.value)
    assert contents(tmp_path) == earlier
    explanation.save(out)
    assert contents(tmp_path) != earlier and sorted(p.name for p in out.iterdir()) == RESULTS


# ---- weights on disk ----

def test_round_trip(saved, explainer, scene, explanation):
    assert sorted(p.name for p in saved.iterdir()) == WEIGHTS
    again = LMAC.from_pretrained(saved)
    for module in ('classifier', 'decoder'):
        a, b = getattr(explainer, module).state_dict(), getattr(again, module).state_dict()
        assert list(a) == list(b) and all(torch.equal(v, b[k]) for k, v in a.items())
    assert (again.labels, again.sample_rate, again.domain, again.stft.config) == (LABELS, 16000, 'log1p', explainer.stft.config)
    found = LMAC.from_pretrained(str(saved)).explain(scene.waveform, 16000)
    assert found.summary() == explanation.summary() and torch.equal(found.audio, explanation.audio)
    before = contents(saved)
    again.save_pretrained(saved)
    assert contents(saved) == before

def test_other_settings_survive_the_round_trip(tmp_path):
    explainer = small_explainer(taps=['conv_block3'], duration_s=1.)
    explainer.domain, explainer.provenance = 'magnitude', {'data': 'esc10', 'folds': [1, 2]}
    again = LMAC.from_pretrained(explainer.save_pretrained(tmp_path/'e'))
    assert (again.domain, again.provenance) == ('magnitude', {'data': 'esc10', 'folds': [1, 2]})
    assert (again.classifier.taps, again.classifier.duration_s) == (['conv_block3'], 1.)

def test_shared_classifier(tmp_path, explainer):
    save_classifier(explainer.classifier, explainer.stft, tmp_path/'classifier')
    explainer.save_pretrained(tmp_path/'explainer', '../classifier/classifier.safetensors')
    assert sorted(p.name for p in (tmp_path/'explainer').iterdir()) == ['config.json', 'decoder.safetensors']
    assert LMAC.from_pretrained(tmp_path/'explainer').labels == LABELS
    save_classifier(small_explainer(seed=1).classifier, explainer.stft, tmp_path/'classifier')  # trained anew since
    with pytest.raises(ValueError, match='classifier.safetensors is damaged, or belongs to another explainer'):
        LMAC.from_pretrained(tmp_path/'explainer')
    before = contents(tmp_path)
    with pytest.raises(ValueError, match='damaged, or belongs to another'):
        small_explainer(seed=2).save_pretrained(tmp_path/'explainer', '../classifier/classifier.safetensors')
    assert contents(tmp_path) == before

@pytest.mark.parametrize('file', ['classifier.safetensors', 'decoder.safetensors'])
def test_damaged_weights(saved, file):
    whole = (saved/file).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole)//2] ^= 4
    for damaged in (bytes(flipped), whole[:-1], whole[:100], b'', whole + b'\0'):
        (saved/file).write_bytes(damaged)
        with pytest.raises(ValueError, match=f'{file} is damaged.*expected sha256 [0-9a-f]{{12}}.*found [0-9a-f]{{12}}'):
            LMAC.from_pretrained(saved)

def test_weights_that_hold_no_weights(saved):
    "The sha256 is right, the file is not"
    for file, part in (('decoder.safetensors', 'decoder'), ('classifier.safetensors', 'classifier')):
        before = (saved/'config.json').read_bytes(), (saved/file).read_bytes()
        (saved/file).write_bytes(b'no safetensors')
        edit_config(saved, **{f'{part}__sha256': sha256_of(b'no safetensors')})
        with pytest.raises(ValueError, match=file): LMAC.from_pretrained(saved)
        (saved/'config.json').write_bytes(before[0]); (saved/file).write_bytes(before[1])

@pytest.mark.parametrize('file', WEIGHTS)
def test_missing_files_of_an_explainer(saved, file):
    (saved/file).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(file)): LMAC.from_pretrained(saved)

def test_decoder_of_another_explainer_on_disk(tmp_path, saved):
    other = small_explainer(seed=1).save_pretrained(tmp_path/'other')
    wide = small_explainer(width=8).save_pretrained(tmp_path/'wide')
    mine = contents(saved)
    for folder in (other, wide):
        shutil.copy(folder/'decoder.safetensors', saved)
        with pytest.raises(ValueError, match='decoder.safetensors is damaged, or belongs to another explainer'): LMAC.from_pretrained(saved)
    edit_config(saved, decoder__sha256=sha256_of((wide/'decoder.safetensors').read_bytes()))
    with pytest.raises(ValueError, match='made for another classifier'): LMAC.from_pretrained(saved)
    for name, data in mine.items(): (saved/name).write_bytes(data)
    shutil.copy(other/'classifier.safetensors', saved)
    with pytest.raises(ValueError, match='classifier.safetensors is damaged, or belongs to another explainer'): LMAC.from_pretrained(saved)

@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{}', '{"stft": {}}', '{"stft": {"n_fft": 1024}, "classifier": 5}'])
def test_config_that_is_none(saved, text):
    (saved/'config.json').write_text(text)
    with pytest.raises(ValueError, match='config.json is not the configuration of an explainer') as error: LMAC.from_pretrained(saved)
    assert '\n' not in str(error.value)

@pytest.mark.parametrize('changes', [
    dict(classifier__taps=['conv_block9']), dict(classifier__taps=[]), dict(classifier__labels=['bell', 'rain']),
    dict(classifier__sample_rate=0), dict(classifier__map_layout='upside_down'), dict(stft__n_fft=512),
    dict(stft__hop_length=0), dict(classifier__front_end={'n_mels': 40, 'unknown': 1}),
    dict(classifier__network={'n_classes': 4, 'width': 4, 'n_mels': 40, 'max_width': 32}),
    dict(classifier__network={'n_classes': 3, 'depth': 4}), dict(decoder__channels=16)], ids=str)
def test_config_that_does_not_fit(saved, changes):
    edit_config(saved, **changes)
    with pytest.raises(ValueError) as error: LMAC.from_pretrained(saved)
    assert '\n' not in str(error.value)

def test_nothing_there(tmp_path):
    for name in ('no-such-explainer', tmp_path, tmp_path/'nowhere'):
        with pytest.raises(FileNotFoundError, match='no config.json there. Bundled: '): LMAC.from_pretrained(name)

def test_a_classifier_alone_is_no_explainer(tmp_path, explainer):
    save_classifier(explainer.classifier, explainer.stft, tmp_path)
    assert load_classifier(tmp_path)[0].labels == LABELS
    with pytest.raises(ValueError, match='holds a classifier and no explainer'): LMAC.from_pretrained(tmp_path)

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 5, 3), nn.Conv2d(4, 8, 3, 2), nn.Linear(8, 3)
    def forward(self, x): return self.head(self.b(self.a(x[:, None]).relu()).relu().mean((2, 3)))

def test_a_classifier_of_ones_own(tmp_path, explainer, scene):
    def tapped(seed):
        torch.manual_seed(seed)
        return TappedClassifier(Mine(), LogMel(n_mels=40), ['a', 'b'], LABELS, 16000, map_layout='freq_time')
    mine, stft = tapped(0), STFT()
    LMAC(mine, MaskDecoder.for_classifier(mine, stft), stft).save_pretrained(tmp_path)
    check(explainer := LMAC.from_pretrained(tmp_path, classifier=mine), explainer.explain(scene.waveform, 16000), 80000)
    with pytest.raises(ValueError, match='classifier of your own'): LMAC.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match='classifier handed in'): LMAC.from_pretrained(tmp_path, classifier=tapped(1))

@pytest.mark.parametrize('name, after', [('fsync', 0), ('fsync', 1), ('fsync', 2), ('replace', 0)])
def test_full_disk_while_saving_weights(tmp_path, monkeypatch, saved, explainer, name, after):
    "The explainer that was there still works, and no part of the new one is left"
    earlier, other = contents(tmp_path), small_explainer(seed=1)
    with monkeypatch.context() as patch:
        full_disk(patch, name, after)
        with pytest.raises(OSError, match='No space left') as error: other.save_pretrained(saved)
        assert error.value.errno == errno.ENOSPC
    assert contents(tmp_path) == earlier
    again = LMAC.from_pretrained(saved)
    assert all(torch.equal(v, again.decoder.state_dict()[k]) for k, v in explainer.decoder.state_dict().items())


def test_dropout_is_saved_and_off_when_explaining(tmp_path, explainer):
    decoder = MaskDecoder(**explainer.decoder.config | dict(dropout=.4))
    again = LMAC.from_pretrained(LMAC(explainer.classifier, decoder, explainer.stft).save_pretrained(tmp_path/'e'))
    assert again.decoder.config['dropout'] == again.decoder.weigh.dropout.p == .4
    magnitude = again.stft(torch.randn(1, 16000))[0]
    assert torch.equal(again.attribute(magnitude), again.attribute(magnitude))


# ---- which class ----

@pytest.fixture
def is_class_conditional(explainer): # an explainer whose classes weigh the deepest map differently, as after training
    decoder = MaskDecoder(**explainer.decoder.config)
    torch.manual_seed(0)
    torch.nn.init.normal_(decoder.weigh.of_class, std=1e3)  # an untrained classifier's deepest map is all but flat
    return LMAC(explainer.classifier, decoder, explainer.stft)

def test_each_class_has_a_mask_of_its_own(tmp_path, is_class_conditional):
    magnitude = is_class_conditional.stft(torch.randn(3, 16000))[0]
    masks = [is_class_conditional.attribute(magnitude, target=k) for k in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)): assert (masks[a] - masks[b]).abs().max() > 1e-3
    decided = is_class_conditional.classifier(magnitude).argmax(1)
    torch.testing.assert_close(is_class_conditional.attribute(magnitude), torch.stack([masks[k][i] for i, k in enumerate(decided)]))
    mixed = is_class_conditional.attribute(magnitude, target=torch.tensor([2, 0, 1]))
    torch.testing.assert_close(mixed, torch.stack([masks[2][0], masks[0][1], masks[1][2]]))
    again = LMAC.from_pretrained(is_class_conditional.save_pretrained(tmp_path/'e'))
    assert torch.equal(again.attribute(magnitude, target=1), masks[1])
    for target in (3, -1, torch.tensor([0, 1, 3])):
        with pytest.raises(ValueError, match='3 classes. Found target (3|-1) for clip [02]'): is_class_conditional.attribute(magnitude, target=target)

def test_a_decoder_that_is_not_told_the_class(tmp_path, explainer):
    decoder = MaskDecoder(**explainer.decoder.config | dict(n_classes=None))
    plain = LMAC.from_pretrained(LMAC(explainer.classifier, decoder, explainer.stft).save_pretrained(tmp_path/'e'))
    magnitude = plain.stft(torch.randn(1, 16000))[0]
    decided = plain.classifier(magnitude).argmax().item()
    assert plain.decoder.config['n_classes'] is None and not plain.is_class_conditional and explainer.is_class_conditional
    assert torch.equal(plain.attribute(magnitude), plain.attribute(magnitude, target=decided))
    with pytest.raises(ValueError, match='is class-agnostic'): plain.attribute(magnitude, target=(decided + 1) % 3)
    with pytest.raises(ValueError, match='is class-agnostic'): plain.explain(torch.zeros(1, 16000), 16000, target=(plain.classify(torch.zeros(1, 16000), 16000).argmax().item() + 1) % 3)


# ---- several classes at once ----

NUMBERS = 'probability', 'probability_masked_in', 'probability_masked_out', 'probability_heard', 'kept', 'gain_db'

def check_together(together, alone):
    "The same numbers, masks and sounds as one by one"
    assert isinstance(together, Explanations) and together.targets == [ex.label for ex in alone]
    for a, b in zip(together, alone):
        assert (a.class_index, a.predicted_label, a.contrast, a.threshold, a.verdict) == (b.class_index, b.predicted_label, b.contrast, b.threshold, b.verdict)
        for name in NUMBERS: assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-5), name
        assert (a.contrast_heard is None) == (b.contrast_heard is None) and (a.contrast is None or a.contrast_heard == pytest.approx(b.contrast_heard, abs=1e-5))
        for name in ('mask', 'audio', 'residual', 'probabilities', 'magnitude', 'waveform'): torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-5, rtol=0)

@pytest.mark.parametrize('options', [{}, dict(threshold=.5), dict(contrast='rain')], ids=str)
def test_together_as_one_by_one(is_class_conditional, scene, options):
    names = ['saw', 'bell']
    together = is_class_conditional.explain(scene.waveform, 16000, targets=['saw', 0], **options)
    check_together(together, [is_class_conditional.explain(scene.waveform, 16000, target=name, **options) for name in names])
    if not options: assert (together[0].mask - together[1].mask).abs().max() > 1e-3
    for name in ('magnitude', 'waveform', 'probabilities'): assert getattr(together[0], name).data_ptr() == getattr(together[1], name).data_ptr(), name  # kept once

@pytest.mark.parametrize('multi_label', [False, True])
def test_the_likeliest_of_many(scene, multi_label):
    explainer = small_explainer(multi_label=multi_label)
    p = explainer.classify(scene.waveform, 16000)[0]
    ranked = [LABELS[k] for k in p.argsort(descending=True)]
    for n in (1, 2, 3): check_together(explainer.explain(scene.waveform, 16000, targets=n), [explainer.explain(scene.waveform, 16000, target=name) for name in ranked[:n]])
    assert multi_label == (abs(p.sum().item() - 1) > 1e-3)

def test_one_pass_for_the_input_and_one_for_all_parts(monkeypatch, is_class_conditional, scene):
    passes, drawn, draw = [], [], is_class_conditional.fast_decoder.forward
    def count(module, inputs, output): passes.append(len(inputs[0]))
    monkeypatch.setattr(is_class_conditional.fast_decoder, 'forward', lambda maps, *args: (drawn.append([len(m) for m in maps]), draw(maps, *args))[1])
    handle = is_class_conditional.fast_classifier.model.register_forward_hook(count)
    try:
        found = is_class_conditional.explain(scene.waveform, 16000, targets=3)
        assert passes == [1] and drawn == [[1, 1, 1]]  # the input; the decoder's pyramid is that of one clip. Nobody has asked for more
        for ex in found: ex.audio
        assert passes == [1]
        for ex in found: ex.complete()
    finally: handle.remove()
    assert passes == [1, 8, 1] and drawn == [[1, 1, 1]]  # parts, rests, and what is heard, of which a CPU judges eight together

def test_several_classes_of_several_clips(tmp_path, is_class_conditional):
    clips = torch.stack([make_scene({name: 0}, 1.).waveform for name in ('dog', 'rain')])
    paths = [save_audio(tmp_path/f'{i}.wav', clip, 16000, subtype='FLOAT') for i, clip in enumerate(clips)]
    batch, files = (is_class_conditional.explain(x, 16000, targets=['rain', 'bell']) for x in (clips, paths))
    for clip, a, b, path in zip(clips, batch, files, paths):
        check_together(a, [is_class_conditional.explain(clip, 16000, target=name) for name in ('rain', 'bell')])
        assert b.source == str(path) == b[1].source and torch.equal(a[1].mask, b[1].mask)

def test_a_class_alone_and_one_among_several(is_class_conditional, scene):
    found = is_class_conditional.explain(scene.waveform, 16000, targets=['saw', 'rain', 'bell'])
    assert (len(found), found['rain'] is found[1], found[-1].label, found[:2].targets) == (3, True, 'bell', ['saw', 'rain'])
    assert 'saw' in found and 'dog' not in found and [ex.label for ex in found] == ['saw', 'rain', 'bell']
    found.source = 'a.wav'
    assert {ex.source for ex in found} == {found.summary()['source']} == {'a.wav'}
    with pytest.raises(KeyError, match='saw, rain, bell'): found['dog']
    with pytest.raises(IndexError): found[3]
    silent = is_class_conditional.explain(torch.zeros(1, 16000), 16000, targets=2)
    assert 'silent' in repr(silent) and silent.summary()['silent'] is True and silent.report()

@pytest.mark.parametrize('targets, message', [
    (0, '1 to 3.*Found: 0'), (-1, 'Found: -1'), (4, 'Found: 4'), (True, 'Found: True'), ([], r'Found: \[\]'), ('bell', "a list of names.*Found: 'bell'"), (1.5, 'Found: 1.5'), ({'bell': 1}, 'a list'),
    (['bell', 'violin'], "no class 'violin'. Its classes: bell, rain, saw"), ([0, 3], 'no class 3. Its classes'), ([True], 'no class True'), (['bell', 'rain', 0], 'once. Found twice: bell'), ([1, 1], 'Found twice: rain')], ids=str)
def test_targets_that_are_none(is_class_conditional, scene, targets, message):
    with pytest.raises(ValueError, match=message) as error: is_class_conditional.explain(scene.waveform, 16000, targets=targets)
    assert '\n' not in str(error.value)

def test_targets_that_do_not_go_with_the_rest(is_class_conditional, scene):
    with pytest.raises(ValueError, match="one class as target, or several as targets. Found: target='bell' and targets=2"):
        is_class_conditional.explain(scene.waveform, 16000, target='bell', targets=2)
    with pytest.raises(ValueError, match="must be another than the target. Found: 'rain' twice"):
        is_class_conditional.explain(scene.waveform, 16000, targets=['bell', 'rain'], contrast='rain')
    plain = LMAC(is_class_conditional.classifier, MaskDecoder(**is_class_conditional.decoder.config | dict(n_classes=None)), is_class_conditional.stft)
    with pytest.raises(ValueError, match='class-agnostic: it has one mask, of the predicted class'): plain.explain(scene.waveform, 16000, targets=1)

def test_files_and_report_of_several_classes(tmp_path):
    names = ['Speech, human', 'speech human', '<b>/..']
    explainer = small_explainer(labels=names)
    found = explainer.explain(make_scene({'dog': 0}, 1.).waveform, 16000, targets=names)
    found.save(tmp_path/'out')
    numbers = json.loads((tmp_path/'out/explanation.json').read_text())
    assert numbers == json.loads(json.dumps(found.summary())) and list(numbers['probabilities'])[0] == numbers['predicted_label']
    assert [(row['label'], row['probability_heard'], row['verdict']) for row in numbers['classes']] == [(ex.label, ex.probability_heard, ex.verdict) for ex in found]
    assert numbers['classes'][2]['files'] == ['explanation-2-b.flac', 'residual-2-b.flac', 'mask-2-b.png'] and len({f.lower() for row in numbers['classes'] for f in row['files']}) == 9
    assert {p.name for p in (tmp_path/'out').iterdir()} == {'explanation.json', 'report.html', 'mask.png', 'thumbnail.png', 'regions.csv', 'regions.txt', 'regions.selections.txt', *(f for row in numbers['classes'] for f in row['files'])}
    for row, ex in zip(numbers['classes'], found):
        for file, sound in zip(row['files'], (ex.audio, ex.residual)): assert (load_audio(tmp_path/'out'/file)[0] - sound).abs().max() <= 2**-15
        assert (tmp_path/'out'/row['files'][2]).read_bytes() == mask_png(ex.mask[:, :ex.n_frames])
    page = (tmp_path/'out/report.html').read_text()
    assert page.count('data:audio/flac') == 7 and page.count('<script') == 1 and '<b>' not in page and page.count('<div') == page.count('</div>') and page.count('<table') == page.count('</table>')
    assert not re.search(r'https?:|//\w|@import|url\(|<link|<iframe', re.sub(r'data:[\w/]+;base64,[\w+/=]+', '', page))
    assert all(f'{ex.probability_heard:.3f}' in page for ex in found)

def test_more_classes_than_hues():
    explainer = small_explainer(labels=[f'class {k}' for k in range(9)])
    found = explainer.explain(make_scene({'dog': 0}, 1.).waveform, 16000, targets=9)
    assert len(found.figure().axes) == 10 and [text.get_text() for text in found.figure().axes[0].get_legend().get_texts()] == found.targets[:7]
    page = found.player_figure()
    assert page.count('<button') == 10 and page.count('<i style="background:#') == 7 and page.count('class="lmac-mask"') == 10
