"""Recordings of any length and rate: streams against the whole, sounds without seams, files that are whole or not there, bounded memory."""
import json
import math
from dataclasses import replace
from unittest.mock import patch as replaced

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from torch import nn

from lmac.scale import long
from lmac.audio import encode_audio, load_audio, make_scene, resample, rms_db, save_audio
from lmac.classifier import TappedClassifier
from lmac.cli import lmac_explain
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.scale.long import (ExplanationStream, FrameStream, LongExplanation, MaskGrid, MaskStream, ResampleStream, SoundStream, at_native_rate, blended_mask, encode_file,
                       explain_stream, length_s, masked_spectra, native_stft, sound_blocks, window_masks, window_plan, window_starts, window_weights)
from lmac.masking import apply_mask
from lmac.spectrogram import STFT, LogMel

RATES = (8000, 16000, 22050, 32000, 44100, 48000)
COMPARED = ['start_s', 'end_s', 'probability', 'kept', 'level_db']
FILES = ['explanation.json', 'explanation.wav', 'regions.csv', 'regions.selections.txt', 'regions.txt', 'report.html', 'residual.wav', 'timeline.csv', 'timeline.png']

pytestmark = pytest.mark.usefixtures('one_thread')


class Constant(nn.Module):
    "In place of a decoder: the same mask everywhere, or one that changes at random with frequency and time"
    def __init__(self, value=None): super().__init__(); self.value = value
    def forward(self, maps, n_frames, target=None):
        shape = (len(maps[0]), 257, n_frames)
        return torch.rand(shape, generator=torch.Generator().manual_seed(n_frames)) if self.value is None else torch.full(shape, float(self.value))

def with_mask(explainer, value=None, domain='log1p'):
    stub = LMAC(explainer.classifier, explainer.decoder, explainer.stft, domain)
    stub.fast_decoder = Constant(value)
    return stub

def names(folder): return sorted(p.name for p in folder.iterdir())
def contents(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}
def noise(n, seed=0, level=.1): return level*torch.randn(1, n, generator=torch.Generator().manual_seed(seed))
def random_blocks(x, most, seed=0):
    "Of all lengths, some of them empty"
    sizes = np.random.default_rng(seed).integers(0, most, 10 + 4*x.shape[-1]//most)
    return x.split([*sizes[:(n := int((sizes.cumsum() < x.shape[-1]).sum()))].tolist(), x.shape[-1] - int(sizes[:n].sum())], -1)
def stream(explainer, blocks, rate, plan=(26, 13, 0), native_rate=False, **settings):
    s = ExplanationStream(MaskStream(explainer, *plan, **settings), rate, native_rate)
    return torch.cat([s.push(b) for b in blocks] + [s.finish()], 1), s

@pytest.fixture(scope='module')
def minute():
    "Not quite a minute, whose parts differ"
    parts = [make_scene({'rain': 0}, 3.2), make_scene({'siren': -4, 'rain': -20}, 4.), make_scene({'dog': 0}, 2.3)]
    return torch.cat([p.waveform for p in parts], 1)


# ---- windows ----

@pytest.mark.parametrize('n, size, step', [(1, 5, 2), (5, 5, 5), (6, 5, 5), (1000, 314, 157), (1001, 314, 15), (997, 50, 50), (53, 26, 1)])
def test_windows_cover_all_and_their_shares_add_up_to_one(n, size, step):
    starts = window_starts(n, size, step)
    assert starts[0] == 0 and starts == sorted(set(starts)) and max(b - a for a, b in zip(starts, starts[1:] + [starts[-1] + 1])) <= step
    assert starts[-1] + size == n or (n <= size and starts == [0])
    total, edge = torch.zeros(n), (size - step)//3
    for s in starts: total[s:s + size] += window_weights(min(size, n), edge if n > size else 0, s == 0, s == starts[-1])
    assert total.min() > 0  # so that dividing by it makes shares of the weights

def test_weights_are_those_of_a_hann_window_at_half_overlap():
    w = window_weights(314)
    assert torch.allclose(w[:157] + w[157:], torch.ones(157), atol=1e-6) and torch.allclose(w, w.flip(0), atol=1e-6)
    assert window_weights(314, 40)[:40].sum() == 0 < window_weights(314, 40)[40]

def test_window_plans_that_make_no_sense(explainer):
    assert window_plan(explainer) == (26, 13, 0)
    for settings, message in ((dict(window_s=.1), 'at least the 0.4 s of'), (dict(window_s=math.nan), 'Found: nan'), (dict(overlap=1), 'between 0 and 0.95. Found: 1'),
                              (dict(overlap=-.1), 'overlap'), (dict(overlap=.2, edge=.11), 'half the overlap, 0.1'), (dict(edge=-.1), 'edge')):
        with pytest.raises(ValueError, match=message): window_plan(explainer, **settings)


# ---- streams against the whole ----

@pytest.mark.parametrize('settings', [dict(), dict(n_fft=1024, hop_length=186, win_length=372), dict(n_fft=401, hop_length=107, win_length=321), dict(n_fft=512, hop_length=300)], ids=str)
@pytest.mark.parametrize('n', [1, 255, 4097])
def test_frames_and_back_in_blocks(settings, n):
    stft, x = STFT(**settings), noise(n)[0]
    frames = FrameStream(stft)
    found = torch.cat([frames.push(b) for b in random_blocks(x, 600, n)] + [frames.finish()], 1)
    magnitude, phase = stft(x)
    assert torch.allclose(found, torch.polar(magnitude, phase), atol=1e-5)
    mask = torch.rand(2, *magnitude.shape, generator=torch.Generator().manual_seed(1))
    masked, sound, parts = torch.polar(mask*magnitude, phase.expand(mask.shape)), SoundStream(stft), []
    blocks = random_blocks(masked, 5, n)
    for i, b in enumerate(blocks): parts.append(sound.push(b, n if i == len(blocks) - 1 else None))
    expected = torch.stack([stft.inverse(m*magnitude, phase, n) for m in mask])
    assert torch.allclose(torch.cat(parts, -1), expected, atol=1e-5)

@pytest.mark.parametrize('rate', (*RATES, 11025, 44101))
@pytest.mark.parametrize('n', [1, 1000, 30011])
def test_resampling_in_blocks(rate, n):
    s = ResampleStream(rate, 16000)
    found = torch.cat([s.push(b) for b in random_blocks(noise(n)[0], 5000, n)] + [s.finish()])
    assert torch.allclose(found, resample(noise(n)[0], rate, 16000), atol=1e-5)

@pytest.mark.parametrize('plan', [(26, 13, 0), (26, 26, 0), (40, 5, 8), (100, 33, 20)], ids=str)
@pytest.mark.parametrize('target', [None, 1])
def test_the_stream_is_its_windows_one_by_one(explainer, minute, plan, target):
    magnitude, phase = explainer.stft(minute[0])
    expected = blended_mask(explainer, magnitude, *plan, target)
    for most in (7, 90, 1200):
        s = MaskStream(explainer, *plan, target, batch_size=3)
        given = [s.push(b) for b in random_blocks(torch.polar(magnitude, phase), most)] + [s.finish()]
        frames, mask = (torch.cat(x, 1) for x in zip(*given))
        assert torch.equal(frames, torch.polar(magnitude, phase)) and torch.allclose(mask, expected, atol=1e-5)
        assert [row['start'] for row in s.rows] == window_starts(magnitude.shape[1], *plan[:2]) and not s.waiting
    assert expected.std() > .001

def test_what_is_scored_is_what_is_heard(explainer, minute):
    "Each row against the blended mask, put on the window by hand"
    magnitude, phase = explainer.stft(minute[0])
    for threshold in (None, .5):
        s = MaskStream(explainer, 26, 13, threshold=threshold)
        s.push(torch.polar(magnitude, phase)), s.finish()
        blended = blended_mask(explainer, magnitude, 26, 13)
        if threshold is not None: blended = (blended > threshold).float()
        for row in s.rows[::7] + s.rows[-1:]:
            at = slice(row['start'], row['start'] + 26)
            p = explainer.classifier(magnitude[None, :, at]).softmax(1)[0]
            assert row['probabilities'] == pytest.approx(p.tolist(), abs=1e-5) and row['target'] == p.argmax()
            for name, m in (('in', blended), ('out', 1 - blended)):
                expected = explainer.classifier(apply_mask(magnitude[:, at], m[:, at], explainer.domain)[None]).softmax(1)[0, row['target']].item()
                assert row[f'masked_{name}'] == pytest.approx(expected, abs=1e-5)
            assert row['kept'] == pytest.approx(blended[:, at].mean().item(), abs=1e-5)
            start = row['start']*256
            if 256 < start < 140000: assert row['level_db'] == pytest.approx(rms_db(minute[0, start:start + 25*256]).item(), abs=1.5)

def test_a_recording_of_one_window_is_a_clip(explainer):
    for duration_s, rate in ((.05, 16000), (.4, 16000), (.3, 44100)):
        clip = make_scene({'siren': 0}, duration_s, rate).waveform
        (found, s), ex = stream(explainer, clip[0].split(999), rate), explainer.explain(clip, rate)
        assert torch.allclose(found*10**(ex.gain_db/20), torch.cat([ex.audio, ex.residual]), atol=1e-5)
        row, = s.masks.rows
        assert (row['kept'], row['masked_in'], row['masked_out']) == pytest.approx((ex.kept, ex.probability_masked_in, ex.probability_masked_out), abs=1e-4)

@pytest.mark.parametrize('rate, native_rate', [(16000, False), (44100, False), (44100, True), (8000, True)])
def test_the_size_of_blocks_changes_nothing(explainer, minute, rate, native_rate):
    x = resample(minute, 16000, rate)[0]
    whole, _ = stream(explainer, [x], rate, native_rate=native_rate)
    assert whole.shape == (2, len(x) if native_rate else minute.shape[1])
    for most in (300, 20000):
        found, s = stream(explainer, random_blocks(x, most), rate, native_rate=native_rate)
        assert torch.allclose(found, whole, atol=1e-5)


class Local(nn.Module):
    "Fully convolutional up to its end, with a reach of 3 frames"
    def __init__(self): super().__init__(); self.body, self.head = nn.Conv2d(1, 4, (3, 7), padding=(1, 3)), nn.Linear(4, 2)
    def forward(self, x): return self.head(self.body(x[:, None]).relu().mean((2, 3)))

class LocalDecoder(nn.Module):
    "Likewise, with a reach of 3 more"
    def __init__(self): super().__init__(); self.draw, self.to_bins = nn.Conv2d(4, 1, (3, 7), padding=(1, 3)), nn.Parameter(torch.randn(257, 40)/5)
    def forward(self, maps, n_frames, target=None): return torch.sigmoid(self.to_bins @ (20*self.draw(maps[0])[:, 0]))

def local_explainer(stft):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = TappedClassifier(Local(), LogMel(n_fft=512, n_mels=40), ['body'], ['a', 'b'], 16000, 'freq_time', .4)
        explainer = LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=2, head_channels=2), stft)
        explainer.fast_decoder = LocalDecoder().requires_grad_(False)
        return explainer

def test_whole_and_windows_agree_where_all_is_convolution(minute):
    explainer = local_explainer(STFT(512, 256))
    magnitude, _ = explainer.stft(minute[0])
    with torch.inference_mode(): whole = window_masks(explainer, magnitude[None], target=0)[2][0]
    assert whole.std() > .1
    for plan in ((40, 20, 6), (40, 28, 6), (100, 37, 10)): assert torch.allclose(blended_mask(explainer, magnitude, *plan, 0), whole, atol=1e-5)
    assert (blended_mask(explainer, magnitude, 40, 20, 0, 0) - whole).abs().max() > 1e-4  # so the edges do matter
    found, _ = stream(explainer, minute[0].split(5000), 16000, (40, 20, 6), target=0)
    at_once = explainer.stft.inverse(apply_mask(magnitude, whole), explainer.stft(minute[0])[1], minute.shape[1])
    assert torch.allclose(found[0], at_once, atol=1e-5)


# ---- no seams ----

@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('domain', ['log1p', 'magnitude'])
def test_a_mask_of_ones_gives_the_recording_back(explainer, rate, domain):
    x = .9*make_scene({'rain': 0, 'siren': 0}, 2.3, rate).waveform
    (found, _) = stream(with_mask(explainer, 1, domain), x[0].split(rate//3), rate, native_rate=True)
    assert found.shape == (2, x.shape[1]) and (found.sum(0) - x[0]).abs().max() < 1e-4
    if rate <= 16000: assert (found[0] - x[0]).abs().max() < 1e-4 and found[1].abs().max() < 1e-4
    (found, _) = stream(with_mask(explainer, 0, domain), x[0].split(rate//3), rate, native_rate=True)
    assert found[0].abs().max() < 1e-6 and (found[1] - x[0]).abs().max() < 1e-4

@pytest.mark.parametrize('rate', RATES)
def test_parts_add_up_in_the_domain_of_magnitudes(explainer, rate):
    "Whatever the mask; and in log1p they don't, and what is missing is measured"
    x = make_scene({'rain': 0, 'siren': 0}, 1.7, rate).waveform
    found, _ = stream(with_mask(explainer, None, 'magnitude'), x[0].split(4000), rate, native_rate=True)
    assert (found.sum(0) - x[0]).abs().max() < 1e-4
    assert .05 < (found[0].square().mean()/x.square().mean()).sqrt() < .95  # it does share out
    found, _ = stream(with_mask(explainer, None, 'log1p'), x[0].split(4000), rate, native_rate=True)
    assert -40 < rms_db(found.sum(0) - x[0]) - rms_db(x[0]) < -1

def test_no_seams_at_windows_or_blocks(explainer):
    "A steady tone through a mask of one half stays steady, to the sample"
    x = .5*torch.sin(2*torch.pi*1000*torch.arange(60000)/16000)[None]
    for rate, native_rate in ((16000, False), (44100, True)):
        y = .5*torch.sin(2*torch.pi*1000*torch.arange(60000*rate//16000)/rate)[None]
        found, _ = stream(with_mask(explainer, .5, 'magnitude'), y[0].split(1777), rate, native_rate=native_rate)
        assert (found - .5*(y if native_rate else x)).abs()[:, 600:-600].max() < 1e-3

def test_one_gain_for_both(explainer, tmp_path):
    loud = 3*noise(30000, level=.5)
    ex = explain_stream(with_mask(explainer, None, 'magnitude'), loud, tmp_path, 16000, progress=False)
    heard, rest = (load_audio(tmp_path/f'{name}.wav')[0] for name in ('explanation', 'residual'))
    assert ex.gain_db < -1 and max(heard.abs().max(), rest.abs().max()) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(heard + rest, loud*10**(ex.gain_db/20), atol=2e-4)
    quiet = explain_stream(explainer, .01*loud, tmp_path, 16000, progress=False)
    assert quiet.gain_db == 0


# ---- at the recording's own rate ----

@pytest.mark.parametrize('rate', RATES)
def test_the_grid_of_another_rate(rate):
    "Windows of the same duration, never less overlap; and a mask is read off where it was drawn, an hour on as well"
    for stft in (STFT(512, 256), STFT(), STFT(1024, 186, 372)):
        own = native_stft(stft, 16000, rate)
        assert abs(own.win_length/rate - stft.win_length/16000) <= 1/rate and own.hop_length/own.win_length <= stft.hop_length/stft.win_length + 1e-3
        assert own.hop_length/rate <= stft.hop_length/16000 and own.n_fft/rate >= stft.n_fft/16000 - 1e-9
        grid, start = MaskGrid(stft, 16000, own, rate), 3600*16000//stft.hop_length
        ramp = (torch.arange(200)/200).expand(stft.n_freqs, -1)  # over time
        frames = torch.arange(3600*rate//own.hop_length + 3, 3600*rate//own.hop_length + 60)
        at = (frames.double()*own.hop_length/rate*16000/stft.hop_length - start)/200
        assert torch.allclose(grid(ramp, start, frames)[3].double(), at, atol=1e-3)
        slope = torch.linspace(0, 1, stft.n_freqs)[:, None].expand(-1, 200)  # over frequency
        hz = own.frequencies(rate)
        assert torch.allclose(grid(slope, start, frames)[:, 5], torch.where(hz <= 8000.01, hz/8000, 0), atol=1e-4)
        if rate == 16000: assert own is stft

def test_the_scale_of_magnitudes(explainer):
    "The change in level that a log1p mask makes is the same at each rate, for loud sounds and for faint ones"
    for level in (1., 1e-3):
        found = []
        for rate in RATES:
            own, x = native_stft(explainer.stft, 16000, rate), level*torch.sin(2*torch.pi*1000*torch.arange(rate)/rate)
            scale = (explainer.stft.window.sum()/own.window.sum()).item()
            kept, _ = masked_spectra(torch.polar(*own(x)), torch.full((own.n_freqs, own.n_frames(rate)), .4), 'log1p', scale)
            found.append((rms_db(own.inverse(kept.abs(), kept.angle(), rate)) - rms_db(x)).item())
        assert max(found) - min(found) < .3, found
    assert -10 < found[0] < -5  # faint: nearly linear, 20 log10(.4) = -8 dB

@pytest.mark.parametrize('rate', RATES)
def test_tones_below_and_above_what_the_classifier_hears(explainer, rate):
    "Kept by the mask, a tone is heard at its level; above 8 kHz it is in the residual, whatever the mask"
    stub, t = with_mask(explainer, 1), torch.arange(rate)/rate
    for hz in (440, 3000, 7000, 7800, 8200, 9000, 15000, 20000):
        if hz > .49*rate: continue
        tone = .3*torch.sin(2*torch.pi*hz*t)[None]
        ex = at_native_rate(stub, tone, rate)
        assert ex.audio.shape == ex.residual.shape == tone.shape and ex.sample_rate == rate
        inner, (there, absent) = slice(rate//20, -rate//20), (ex.audio, ex.residual) if hz < 8000 else (ex.residual, ex.audio)
        assert abs(rms_db(there[0, inner]) - rms_db(tone[0, inner])) < .1 and rms_db(absent[0, inner]) < rms_db(tone[0, inner]) - 40
        found, _ = stream(stub, tone[0].split(5000), rate, native_rate=True)
        assert torch.allclose(found, torch.cat([ex.audio, ex.residual]), atol=1e-3) or rate == 16000

@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('threshold', [None, .5])
def test_a_clip_at_its_own_rate(explainer, rate, threshold):
    x = make_scene({'siren': 0, 'rain': -10}, .4, rate).waveform
    ours, own = explainer.explain(x, rate, threshold=threshold), at_native_rate(explainer, x.repeat(2, 1), rate, threshold=threshold)
    assert (own.label, own.sample_rate, own.duration_s) == (ours.label, rate, x.shape[1]/rate)
    assert own.probability == pytest.approx(ours.probability, abs=1e-3) and own.probability_masked_in == pytest.approx(ours.probability_masked_in, abs=1e-3)
    assert abs(own.probability_heard - ours.probability_heard) < .1
    n = native_stft(explainer.stft, 16000, rate)
    assert own.mask.shape == own.magnitude.shape == (n.n_freqs, n.n_frames(x.shape[1])) and own.hop_length == n.hop_length
    if threshold: assert set(own.mask.unique().tolist()) <= {0., 1.}
    assert own.mask[n.frequencies(rate) > 8001].sum() == 0
    level = [rms_db(resample(e.audio, e.sample_rate, 16000)) for e in (ours, own)]
    assert abs(level[0] - level[1]) < 1
    found, s = stream(explainer, x[0].split(1234), rate, native_rate=True, threshold=threshold)
    if threshold is None: assert torch.allclose(found*10**(own.gain_db/20), torch.cat([own.audio, own.residual]), atol=1e-4)

@pytest.mark.parametrize('threshold', [None, .5])
def test_several_classes_at_its_own_rate(explainer, threshold, tmp_path):
    x = make_scene({'siren': 0, 'rain': -10}, .4, 22050).waveform
    both = at_native_rate(explainer, x, 22050, threshold=threshold, targets=['siren', 'rain'])
    assert both.targets == ['siren', 'rain'] and both[0].magnitude is both[1].magnitude and both[0].waveform is both[1].waveform
    for ex in both:
        alone = at_native_rate(explainer, x, 22050, ex.label, threshold)
        for name in ('mask', 'audio', 'residual', 'magnitude'): torch.testing.assert_close(getattr(ex, name), getattr(alone, name), atol=1e-4, rtol=0)
        assert ex.probability_heard == pytest.approx(alone.probability_heard, abs=1e-5) and ex.sample_rate == 22050
    assert at_native_rate(explainer, x, 22050, targets=1).targets == [at_native_rate(explainer, x, 22050).label] == at_native_rate(explainer, x[:, :6400], 16000, targets=1).targets
    file = save_audio(tmp_path/'a.wav', x, 22050)
    assert {ex.source for ex in at_native_rate(explainer, file, targets=2)} == {str(file)}

def test_own_rate_says_what_is_wrong(explainer, tmp_path):
    with pytest.raises(ValueError, match='needs its sample rate'): at_native_rate(explainer, noise(100))
    with pytest.raises(ValueError, match='One recording at a time'): at_native_rate(explainer, noise(100)[None], 44100)
    with pytest.raises(FileNotFoundError, match='nowhere'): at_native_rate(explainer, tmp_path/'nowhere.wav')
    with pytest.raises(ValueError, match="no class 'dog'"): at_native_rate(explainer, noise(100), 44100, target='dog')
    file = save_audio(tmp_path/'a.wav', noise(5000), 22050)
    ex = at_native_rate(explainer, file)
    assert ex.source == str(file) and sorted(p.name for p in ex.save(tmp_path/'out').iterdir())[0] == 'explanation.flac'
    assert load_audio(tmp_path/'out/explanation.flac')[1] == 22050


# ---- from file to file ----

@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
def test_from_file_to_file(explainer, minute, tmp_path, suffix):
    x = resample(minute, 16000, 44100).repeat(2, 1)
    file = save_audio(tmp_path/f'in{suffix}', x, 44100)
    ex = explain_stream(explainer, file, tmp_path/'out', block_s=1.3, suffix=suffix, progress=False)
    assert names(tmp_path/'out') == sorted([f.replace('.wav', suffix) for f in FILES]) and ex.source == str(file)
    heard, rate = load_audio(ex.audio)
    assert rate == 16000 and abs(heard.shape[1] - minute.shape[1]) < (3000 if suffix == '.mp3' else 2)
    expected, _ = stream(explainer, [load_audio(file, mono=True)[0][0]], 44100)
    n = min(heard.shape[1], expected.shape[1])
    if suffix in ('.wav', '.flac'): assert torch.allclose(heard[0], expected[0], atol=1e-4)
    else: assert (heard[0, :n] - expected[0, :n]).square().mean() < expected[0].square().mean()

def test_sources_of_all_kinds_are_the_same(explainer, minute, tmp_path):
    file = save_audio(tmp_path/'in.wav', minute, 16000, 'FLOAT')
    sources = dict(file=(file,), path=(str(file),), waveform=(minute, 16000), flat=(minute[0].numpy(), 16000), blocks=((b for b in minute.split(5000, 1)), 16000), list=([minute], 16000))
    found = {}
    for name, (source, *rate) in sources.items():
        ex = explain_stream(explainer, source, tmp_path/name, *rate, progress=False)
        found[name] = contents(tmp_path/name)
        assert (ex.source is None) == (name not in ('file', 'path'))
    for name in found: assert load_audio(tmp_path/name/'explanation.wav')[0].sub(load_audio(tmp_path/'file/explanation.wav')[0]).abs().max() < 1e-4

def test_the_timeline(explainer, minute, tmp_path):
    ex = explain_stream(explainer, minute, tmp_path/'out', 16000, progress=False)
    t = ex.timeline
    assert len(t) == len(window_starts(explainer.stft.n_frames(minute.shape[1]), 26, 13)) and t.start_s.is_monotonic_increasing
    assert t.start_s.iloc[0] == 0 and t.end_s.iloc[-1] == pytest.approx(minute.shape[1]/16000, abs=.02)
    p = t[[f'p_{n}' for n in explainer.labels]].to_numpy()
    assert p.sum(1) == pytest.approx(1, abs=1e-5) and (t.predicted_label == np.array(explainer.labels)[p.argmax(1)]).all() and (t.label == t.predicted_label).all()
    assert (t.probability == p.max(1)).all() and t[['probability_masked_in', 'probability_masked_out', 'kept']].stack().between(0, 1).all()
    assert ex.scored and ex.segments().start_s.iloc[0] == 0 and ex.segments().end_s.iloc[-1] == ex.duration_s
    assert np.allclose(ex.segments().end_s[:-1], ex.segments().start_s[1:]) and ex.segments().windows.sum() == len(t)
    again = LongExplanation.load(tmp_path/'out')
    pd.testing.assert_frame_equal(again.timeline, t, atol=1e-3, check_dtype=False)
    assert again.sentence() == ex.sentence() and {**vars(again), 'timeline': 0, 'boxes': 0} == {**vars(ex), 'timeline': 0, 'boxes': 0}
    pd.testing.assert_frame_equal(again.regions(), ex.regions(), atol=1e-6)
    saved = json.loads((tmp_path/'out/explanation.json').read_text())
    assert saved['windows'] == len(t) and saved['means']['kept'] == pytest.approx(t.kept.mean()) and saved['duration_s'] == ex.duration_s
    page = (tmp_path/'out/report.html').read_text()
    assert 'src="explanation.wav"' in page and 'src="timeline.png"' in page and 'http' not in page and 'explanation.wav#t=' in page
    assert 'data:image/png' in ex._repr_html_()
    with pytest.raises(FileNotFoundError, match='no timeline.csv'): LongExplanation.load(tmp_path)

def test_one_class_throughout(explainer, minute, tmp_path):
    ex = explain_stream(explainer, minute, tmp_path/'out', 16000, target='rain', progress=False)
    assert set(ex.timeline.label) == {'rain'} and ex.target == 'rain' and "explains 'rain' throughout" in ex.sentence()
    assert np.allclose(ex.timeline.probability, ex.timeline.p_rain)
    with pytest.raises(ValueError, match="no class 'dog'"): explain_stream(explainer, minute, tmp_path/'dog', 16000, target='dog', progress=False)
    assert not (tmp_path/'dog').exists()

def test_parts_that_are_not_scored(explainer, minute, tmp_path):
    ex = explain_stream(explainer, minute, tmp_path/'out', 16000, score_parts=False, progress=False)
    judged = explain_stream(explainer, minute, tmp_path/'judged', 16000, progress=False)
    assert not ex.scored and judged.scored and (tmp_path/'out/explanation.wav').read_bytes() == (tmp_path/'judged/explanation.wav').read_bytes()
    assert 'is kept' in ex.sentence() and json.loads((tmp_path/'out/explanation.json').read_text())['means']['probability_masked_in'] is None
    assert not LongExplanation.load(tmp_path/'out').scored and 'masked out' not in [line.get_label() for ax in ex.figure().axes for line in ax.lines]

def test_silence(explainer, tmp_path):
    x = torch.cat([torch.zeros(1, 40000), noise(30000)], 1)
    ex = explain_stream(explainer, x, tmp_path/'part', 16000, progress=False)
    assert ex.segments().label.isna().tolist()[0] and ex.segments().label.notna().tolist()[-1] and 'silence' in ex.sentence() and 'silence' in ex.report()
    assert not load_audio(ex.audio)[0][:, :35000].any() and not load_audio(ex.residual)[0][:, :35000].any()
    ex = explain_stream(explainer, torch.zeros(1, 40000), tmp_path/'all', 16000, progress=False)
    assert 'silence 100%' in ex.sentence() and not load_audio(ex.audio)[0].any() and 'NaN' not in (tmp_path/'all/explanation.json').read_text()

def test_many_classes_in_one_picture(explainer, minute, tmp_path):
    ex = explain_stream(explainer, minute, tmp_path/'out', 16000, progress=False)
    extra = {f'p_class {i}': 0. for i in range(30)}
    many = replace(ex, labels=ex.labels + [k[2:] for k in extra], timeline=ex.timeline.assign(**extra))
    assert len(many.figure().axes[0].get_yticklabels()) == long.MOST_CLASSES and len(ex.figure().axes[0].get_yticklabels()) == 2


# ---- what goes wrong ----

def test_broken_files(explainer, tmp_path):
    good = save_audio(tmp_path/'good.flac', noise(50000), 16000).read_bytes()
    (tmp_path/'empty.wav').write_bytes(b'')
    (tmp_path/'text.wav').write_text('not audio')
    (tmp_path/'half.flac').write_bytes(good[:len(good)//2])
    (tmp_path/'half.wav').write_bytes(encode_audio(noise(50000), 16000)[:50000])
    sf.write(tmp_path/'no-samples.wav', np.zeros((0, 1), dtype='float32'), 16000)
    sf.write(tmp_path/'nan.wav', np.r_[np.zeros(20000), np.nan].astype('float32'), 16000, subtype='FLOAT')
    for name, message in (('nowhere.wav', 'No such audio file'), ('empty.wav', 'empty'), ('text.wav', 'damaged'), ('half.flac', 'half.flac is (damaged|truncated)'), ('half.wav', 'header promises'),
                          ('no-samples.wav', 'holds no samples'), ('nan.wav', 'nan.wav from 1 s on must be finite')):
        with pytest.raises((ValueError, FileNotFoundError), match=message): explain_stream(explainer, tmp_path/name, tmp_path/'out', block_s=1, progress=False)
        assert not (tmp_path/'out').exists() or names(tmp_path/'out') == []
    for source, rate, message in ((noise(10), None, 'sample rate'), (noise(10), 0, 'sample_rate'), ([], 16000, 'needs at least one sample'), (noise(10)[None], 16000, 'One recording'), ([[0., 1.]], 16000, 'must be a tensor')):
        with pytest.raises((ValueError, TypeError), match=message): explain_stream(explainer, source, tmp_path/'out', rate, progress=False)
    for settings, message in ((dict(suffix='.aac'), '.aac'), (dict(threshold=3), 'threshold must be between'), (dict(block_s=0), 'block_s'), (dict(overlap=2), 'overlap')):
        with pytest.raises(ValueError, match=message): explain_stream(explainer, noise(10000), tmp_path/'out', 16000, progress=False, **settings)
    assert not (tmp_path/'out').exists() or names(tmp_path/'out') == []

def test_lengths_are_counted(tmp_path):
    "Of a file that states no length, or is several: the same as from memory, and no total in the progress bar"
    flac, ogg = (encode_audio(noise(40000), 16000, suffix) for suffix in ('.flac', '.ogg'))
    for name, data, n in (('pipe.flac', flac[:21] + bytes([flac[21] & 0xf0, 0, 0, 0, 0]) + flac[26:], 40000), ('radio.ogg', 2*ogg, 80000)):
        (tmp_path/name).write_bytes(data)
        with sound_blocks(tmp_path/name, block_s=.3) as (rate, expected, blocks): read = torch.cat(list(blocks))
        assert (rate, expected, len(read)) == (16000, None, n) and (read - load_audio(tmp_path/name)[0][0]).abs().max() < 1e-6
        assert length_s(tmp_path/name) == n/16000
    (tmp_path/'left.wav').write_bytes((wav := encode_audio(noise(16000), 16000))[:40] + (8000).to_bytes(4, 'little') + wav[44:])
    with pytest.warns(UserWarning, match='left.wav: the last 24000 of'), sound_blocks(tmp_path/'left.wav') as (_, _, blocks): assert sum(map(len, blocks)) == 4000

def test_one_channel(explainer, minute, tmp_path):
    "Channels that cancel: said once, and one of them is explained as if it were alone"
    both = torch.cat([minute, -minute])
    save_audio(tmp_path/'both.wav', both, 16000)
    expected = explain_stream(explainer, load_audio(tmp_path/'both.wav', channel=1)[0], tmp_path/'expected', 16000, progress=False)
    with pytest.warns(UserWarning, match='both.wav cancel') as said: explain_stream(explainer, tmp_path/'both.wav', tmp_path/'mix', block_s=1, progress=False)
    assert sum('cancel' in str(w.message) for w in said) == 1
    for source, rate in ((tmp_path/'both.wav', None), (both, 16000)):
        found = explain_stream(explainer, source, tmp_path/'one', rate, progress=False, channel=1)
        assert (found.timeline[COMPARED] - expected.timeline[COMPARED]).abs().max().max() < 1e-3 and found.channel == 1
    found = explain_stream(explainer, tmp_path/'both.wav', tmp_path/'one', progress=False, channel=1)
    assert (loaded := LongExplanation.load(tmp_path/'one')).channel == 1 and 'Input' in loaded.excerpt(0, 1)
    for ask in (lambda: explain_stream(explainer, tmp_path/'both.wav', tmp_path/'two', progress=False, channel=2), lambda: at_native_rate(explainer, tmp_path/'both.wav', channel=2)):
        with pytest.raises(ValueError, match=r'channel must be in 0\.\.1'): ask()
    short = both[:, :16000]
    assert torch.equal(at_native_rate(explainer, short, 16000, channel=0).waveform, at_native_rate(explainer, short[:1], 16000).waveform)
    assert torch.equal(explainer.explain(short, 16000, channel=1).mask, explainer.explain(short[1:], 16000).mask)
    assert torch.equal(explainer.classify(short, 16000, channel=1), explainer.classify(short[1:], 16000))
    assert torch.equal(explainer.explain([tmp_path/'both.wav'], channel=1)[0].mask, explainer.explain(tmp_path/'both.wav', channel=1).mask)
    with pytest.warns(UserWarning, match='the waveform cancel'): explainer.classify(short, 16000)
    with pytest.warns(UserWarning, match='both.wav cancel'): explainer.explain(tmp_path/'both.wav')


def test_earlier_results_stay_when_something_goes_wrong(explainer, minute, tmp_path):
    explain_stream(explainer, minute, tmp_path/'out', 16000, progress=False)
    before = contents(tmp_path/'out')
    def breaks_off():
        yield minute[:, :50000]
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): explain_stream(explainer, breaks_off(), tmp_path/'out', 16000, progress=False)
    assert contents(tmp_path/'out') == before
    calls, real = [], long.encode_file
    def fails(*args):
        calls.append(args)
        if len(calls) == 2: raise OSError(28, 'No space left on device')
        return real(*args)
    def full(*args): raise OSError(28, 'No space left on device')
    for name, broken in (('lmac.scale.long.encode_file', fails), ('lmac.pretrained.os.replace', full)):
        with replaced(name, broken), pytest.raises(OSError, match='No space left'): explain_stream(explainer, .5*minute, tmp_path/'out', 16000, progress=False)
        assert contents(tmp_path/'out') == before  # neither of the two

def test_no_place_to_write(explainer, minute, tmp_path):
    (tmp_path/'file').write_text('mine')
    for out in ('file', 'file/below'):
        with pytest.raises(OSError, match='Cannot write to the folder .*file.*Name another'): explain_stream(explainer, minute, tmp_path/out, 16000, progress=False)
    with replaced.object(sf.SoundFile, 'write', side_effect=AssertionError), pytest.raises(OSError, match='not all could be written. Name another, or make room'):
        explain_stream(explainer, minute, tmp_path/'out', 16000, progress=False)
    assert names(tmp_path/'out') == [] and (tmp_path/'file').read_text() == 'mine'

def test_wav_files_beyond_4_gigabytes(tmp_path):
    "Are RF64, which has no such limit; no such file is written here"
    sf.write(tmp_path/'a.w64', np.zeros(1000, dtype='float32'), 16000, 'FLOAT')
    class Long(sf.SoundFile):
        frames = property(lambda self: 2_200_000_000 if self.name.endswith('w64') else self._info.frames)
        def blocks(self, *args, **kwargs): yield np.zeros(1000, dtype='float32')
    with replaced.object(sf, 'SoundFile', Long): encode_file(tmp_path/'a.w64', tmp_path/'a.wav', 1.)
    assert sf.info(tmp_path/'a.wav').format == 'RF64' and sf.info(tmp_path/'a.wav').frames == 1000

def test_a_class_agnostic_decoder(explainer, minute, tmp_path):
    told_nothing = LMAC(explainer.classifier, MaskDecoder.for_classifier(explainer.classifier, explainer.stft, n_classes=None), explainer.stft)
    explain_stream(told_nothing, minute, tmp_path/'out', 16000, progress=False)
    with pytest.raises(ValueError, match='is class-agnostic'): [explain_stream(told_nothing, minute, tmp_path/name, 16000, target=name, progress=False) for name in explainer.labels]


# ---- bounded memory ----

def test_what_is_held_does_not_grow(explainer):
    for native_rate, rate in ((False, 16000), (True, 44100)):
        s, held = ExplanationStream(MaskStream(explainer, 26, 13, batch_size=4), rate, native_rate), []
        def numbers(x): return sum(numbers(getattr(x, k)) for k in ('masks', 'down', 'frames', 'own', 'sound') if getattr(x, k, None) is not None) + sum(v.numel() for v in vars(x).values() if isinstance(v, torch.Tensor))
        for i in range(60):
            s.push(noise(rate//2, i)[0])
            held.append(numbers(s))
        assert max(held[40:]) <= max(held[10:25])*1.05 and len(s.masks.rows) > 100

@pytest.mark.slow
def test_peak_memory_of_a_process(tmp_path):
    "Four minutes take no more than one, but for some MB"
    from lmac.evidence.evaluation import peak_rss_mb
    import sys
    found = []
    for minutes in (1, 4):
        with sf.SoundFile(tmp_path/'in.wav', 'w', 16000, 1) as file:
            for i in range(minutes*12): file.write(noise(80000, i)[0].numpy())
        code = "import sys, torch; torch.set_num_threads(1); from lmac.explain import LMAC; from lmac.scale.long import explain_stream; explain_stream(LMAC.from_pretrained(), *sys.argv[1:], progress=False)"
        back = ['env', 'MALLOC_ARENA_MAX=1', 'MALLOC_MMAP_THRESHOLD_=65536', 'MALLOC_TRIM_THRESHOLD_=65536']   # what is freed goes back at once
        found.append(peak_rss_mb([*back, sys.executable, '-c', code, tmp_path/'in.wav', tmp_path/'out']))
    assert found[1] < found[0] + 100 and found[1] < 1500


# ---- classifiers of other kinds ----

class Wave(nn.Module):
    "1-D convolutions on `(batch, 1, time)`"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv1d(1, 8, 64, 16), nn.Conv1d(8, 8, 5, 4), nn.Linear(8, 3)
    def forward(self, x): return 20*self.head(self.b(self.a(x).relu()).relu().mean(2))

@pytest.mark.parametrize('multi_label', [False, True])
def test_a_classifier_on_waveforms(tmp_path, multi_label):
    "Which needs the phase of each window; classes exclude each other or do not; and its rate is not 16 kHz"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        explainer = LMAC.for_classifier(Wave(), labels=list('abc'), sample_rate=8000, stft=STFT(512, 128), duration_s=.5, multi_label=multi_label)
    x = make_scene({'siren': 0, 'rain': -5}, 4., 22050).waveform
    with pytest.warns(UserWarning, match='not trained'): ex = explain_stream(explainer, x, tmp_path/'out', 22050, native_rate=True, progress=False)
    low = resample(x, 22050, 8000)
    magnitude, phase = explainer.stft(low[0])
    size, step, _ = window_plan(explainer)
    for i in (0, 3, len(ex.timeline) - 1):
        at = slice(start := window_starts(magnitude.shape[1], size, step)[i], start + size)
        p = explainer.probabilities_of(magnitude[None, :, at], phase[None, :, at])[0]
        assert ex.timeline[['p_a', 'p_b', 'p_c']].iloc[i].tolist() == pytest.approx(p.tolist(), abs=1e-4)
    assert (abs(ex.timeline[['p_a', 'p_b', 'p_c']].sum(axis=1) - 1).max() > .01) == multi_label
    assert ex.sample_rate == 22050 and sf.info(ex.audio).frames == x.shape[1]
    with pytest.warns(UserWarning, match='not trained'): clip = at_native_rate(explainer, x[:, :20000], 22050)
    assert clip.audio.shape == (1, 20000) and clip.mask[native_stft(explainer.stft, 8000, 22050).frequencies(22050) > 4001].sum() == 0

def test_one_class_against_another(explainer, minute, tmp_path):
    ex = explain_stream(explainer, minute, tmp_path/'out', 16000, target='rain', contrast='siren', progress=False)
    alone = explain_stream(explainer, minute, tmp_path/'alone', 16000, target='rain', progress=False)
    assert "'rain', and not 'siren', throughout" in ex.sentence() and ex.timeline.kept.mean() < alone.timeline.kept.mean()
    magnitude, _ = explainer.stft(minute[0])
    blended = blended_mask(explainer, magnitude, 26, 13, target=0, contrast=1)
    assert ex.timeline.kept.iloc[3] == pytest.approx(blended[:, 39:65].mean().item(), abs=1e-5)
    with pytest.raises(ValueError, match='name the target too'): explain_stream(explainer, minute, tmp_path/'no', 16000, contrast='siren', progress=False)
    with pytest.raises(ValueError, match="must be another than the target"): explain_stream(explainer, minute, tmp_path/'no', 16000, target='rain', contrast='rain', progress=False)
    clip = at_native_rate(explainer, minute[:, :6400], 44100, target='rain', contrast='siren')
    assert clip.contrast == 'siren' and clip.contrast_heard == pytest.approx(explainer.classify(clip.audio, 44100)[0, 1].item(), abs=1e-5)


# ---- the bundled explainer, and the command ----

@pytest.fixture(scope='module')
def bundled(): return LMAC.from_pretrained()

def test_whole_and_windows_of_the_bundled_explainer(bundled):
    "They resemble each other; they are not the same, since decision and weights are taken over the clip"
    magnitude = bundled.stft(make_scene({'dog': 0, 'rain': -15}, 12.).waveform[0])[0]
    target = bundled.labels.index('dog')
    with torch.inference_mode(): whole = window_masks(bundled, magnitude[None], target=target)[2][0]
    blended = blended_mask(bundled, magnitude, *window_plan(bundled), target)
    inner = slice(157, -157)
    assert torch.corrcoef(torch.stack([whole[:, inner].flatten(), blended[:, inner].flatten()]))[0, 1] > .9

@pytest.mark.parametrize('options, seconds, expected', [(dict(), 2., 'clip'), (dict(long=True), 6., 'long'), (dict(), 31., 'long'), (dict(native_rate=True), 2., 'clip'), (dict(native_rate=True, target='rain', binary=True), 31., 'long')])
def test_the_command(tmp_path, capsys, options, seconds, expected):
    x = torch.cat([make_scene({'rain': 0}, seconds/2, 22050).waveform, make_scene({'dog': 0}, seconds/2, 22050).waveform], 1)
    lmac_explain(str(save_audio(tmp_path/'in.wav', x, 22050)), out=str(tmp_path/'out'), **options)
    assert ('timeline.csv' in names(tmp_path/'out')) == (expected == 'long') and 'report.html' in names(tmp_path/'out')
    heard, rate = load_audio(tmp_path/f"out/explanation.{'wav' if expected == 'long' else 'flac'}")
    assert rate == (22050 if options.get('native_rate') else 16000) and heard.shape[1] == -(-x.shape[1]*rate//22050)
    said = capsys.readouterr().out
    assert 'in.wav' in said and 'report.html in a browser' in said
    if expected == 'long':
        saved = json.loads((tmp_path/'out/explanation.json').read_text())
        assert (saved['target'], saved['threshold']) == (options.get('target'), .5 if options.get('binary') else None)

def test_a_folder_with_long_and_short_ones(tmp_path):
    (tmp_path/'in').mkdir()
    save_audio(tmp_path/'in/short.wav', make_scene({'rain': 0}, 1.).waveform, 16000)
    save_audio(tmp_path/'in/long.flac', make_scene({'rain': 0}, 33.).waveform, 16000)
    lmac_explain(str(tmp_path/'in'), out=str(tmp_path/'out'))
    assert names(tmp_path/'out/long') == FILES and 'mask.png' in names(tmp_path/'out/short')
