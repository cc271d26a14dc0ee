"""Sounds that nobody can hear: which are played slower or faster, whether they are then heard as loud as they are, and recorders whose header lies."""
import base64
import io
import json
import random
import re
import struct
import warnings

import numpy as np
import pytest
import soundfile as sf
import torch

from lmac.audio import BROWSER_HZ, at_speed, listening_speed, load_audio, play, riff_chunk, rms_db, save_audio, time_expansion_of
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.player import figure_html
from lmac.scale.long import at_native_rate, explain_stream, length_s, sound_blocks
from lmac.spectrogram import STFT, LogMel

from conftest import Small

pytestmark = pytest.mark.usefixtures('one_thread')
BAT_HZ, WHALE_HZ = 256000, 1000 # sample rates


def tone(hz, rate, duration_s, peak=.5): return peak * torch.sin(2 * torch.pi * hz * torch.arange(round(duration_s * rate)) / rate)[None]

def heard(sound, rate):
    "Strongest frequency in Hz and level in dB of `(channel, time)`"
    return torch.fft.rfft(sound[0]).abs().argmax().item() * rate / sound.shape[-1], rms_db(sound[0]).item()

def embedded(page):
    "The sounds of a page's audio elements, and their sample rates"
    found = [sf.read(io.BytesIO(base64.b64decode(x)), dtype='float32') for x in re.findall(r' src="data:audio/\w+;base64,([^"]+)', page)]
    return [(torch.from_numpy(x)[None], rate) for x, rate in found]

def explainer_at(rate, duration_s, n_fft=512, n_mels=20):
    "An untrained explainer for sounds at that rate"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(n_fft, n_fft // 2)
        classifier = TappedClassifier(Small(), LogMel(rate, n_fft, n_mels, rate / 100), ['a', 'b'], ['call', 'none'], rate, 'freq_time', duration_s)
        return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8, head_channels=4), stft)

@pytest.fixture(scope='module')
def for_bats(): return explainer_at(BAT_HZ, .1)

@pytest.fixture(scope='module')
def for_whales(): return explainer_at(WHALE_HZ, 4., 256, 10)

@pytest.fixture(scope='module')
def bat(): return tone(40000, BAT_HZ, .1)

@pytest.fixture(scope='module')
def whale(): return tone(20, WHALE_HZ, 4.)


# ---- the rule ----

@pytest.mark.parametrize('parts, rate, speed', [
    ([(40000, 1)], BAT_HZ, .1), ([(20500, 1)], 48000, .1), ([(19500, 1)], 48000, 1), ([(40000, 1), (3000, .9)], BAT_HZ, .1), ([(40000, .9), (3000, 1)], BAT_HZ, 1),
    ([(20, 1)], WHALE_HZ, 8), ([(20, 1)], 16000, 8), ([(60, 1)], WHALE_HZ, 1), ([(20, 1), (300, .2)], WHALE_HZ, 8), ([(20, 1), (300, .3)], WHALE_HZ, 1),
    ([(0.1, 0)], 16000, 1), ([(440, 1)], 16000, 1)])
def test_the_speed_follows_the_energy(parts, rate, speed):
    assert listening_speed(sum(tone(hz, rate, 2., .1 * peak) for hz, peak in parts), rate) == speed

def test_an_offset_is_no_infrasound(): assert listening_speed(tone(440, 16000, 1., .01) + .5, 16000) == 1

def test_blocks_have_the_speed_of_the_whole(bat, whale):
    assert listening_speed(iter(bat.split(4096, 1)), BAT_HZ) == .1 and listening_speed(whale.split(1000, 1), WHALE_HZ) == 8
    assert listening_speed([bat, 0 * bat, 3 * tone(500, BAT_HZ, .1)], BAT_HZ) == 1   # what is loud decides

@pytest.mark.parametrize('rate, hz', [(300, 20), (1000, 20), (4000, 300), (16000, 100), (44100, 1000), (192000, 1000), (256000, 40000), (384000, 900), (1000000, 900)])
@pytest.mark.parametrize('speed', [.05, .1, 1 / 3, 1, 8])
def test_played_at_a_rate_for_browsers(rate, hz, speed):
    "Pitch, length and level are those of the sound at that speed, unless the pitch is beyond hearing"
    sound = tone(hz, rate, 60 / hz)
    played, new = at_speed(sound, rate, speed)
    assert BROWSER_HZ[0] <= new <= BROWSER_HZ[1]
    assert played.shape[-1] / new == pytest.approx(60 / hz / speed, rel=.01)
    if hz * speed < 20000: assert heard(played, new) == (pytest.approx(hz * speed, rel=.005), pytest.approx(-9.03, abs=.15))
    if BROWSER_HZ[0] <= rate * speed <= BROWSER_HZ[1]: assert played is sound

@pytest.mark.parametrize('speed', [0, -1, float('nan'), float('inf'), 1e-3, '0.1', True])
def test_bad_speeds(speed, bat):
    with pytest.raises(ValueError, match='between 0.01 and 100'): at_speed(bat, BAT_HZ, speed)
    with pytest.raises(ValueError, match='between 0.01 and 100'): play(bat, BAT_HZ, speed=speed)
    with pytest.raises(ValueError, match='between 0.01 and 100'): figure_html({'a': bat}, BAT_HZ, torch.rand(9, 9), speed=speed)


# ---- headers that lie ----

def with_chunks(path, sound, rate, *chunks, first=False):
    "A wav file with more chunks, `(name, data)` or `(name, data, size that it says)`, before or after the sound"
    whole = save_audio(path, sound, rate).read_bytes()
    more = b''.join(name + (size[0] if size else len(data)).to_bytes(4, 'little') + data + b'\0' * (len(data) % 2) for name, data, *size in chunks)
    whole = whole[:12] + more + whole[12:] if first else whole + more
    path.write_bytes(whole[:4] + (len(whole) - 8).to_bytes(4, 'little') + whole[8:])
    return path

def guano(te): return b'guan', f'GUANO|Version: 1.0\nMake: x\nTE: {te}\nNote: \u00e0 TE: 3\n'.encode()
def wamd(te): return b'wamd', struct.pack('<HIH', 0, 2, 1) + struct.pack('<HI', 1, 3) + b'SM4' + struct.pack('<HIH', 15, 2, te)

@pytest.mark.parametrize('chunks, factor, says', [
    ([], 1, ''), ([guano(10)], 10, 'GUANO'), ([guano(' 10.0\r')], 10, 'GUANO'), ([guano('')], 1, ''), ([guano(1)], 1, 'GUANO'), ([(b'guan', b'GUANO|Version: 1.0')], 1, ''),
    ([wamd(10)], 10, 'WAMD'), ([wamd(8), guano(10)], 10, 'GUANO'), ([guano(10), wamd(8)], 10, 'GUANO'), ([(b'LIST', b'odd'), guano(10)], 10, 'GUANO'), ([(b'guan', b'XY|TE: 10')], 1, '')])
@pytest.mark.parametrize('first', [False, True])
def test_time_expansion_is_read(tmp_path, bat, chunks, factor, says, first):
    path = with_chunks(tmp_path/'a.wav', bat, 25600, *chunks, first=first)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found, rate = load_audio(path)
        warnings.simplefilter('ignore')
        assert length_s(path) == pytest.approx(1 / factor) and length_s(path, 4) == .25
    assert rate == 25600 * factor and torch.allclose(found, bat, atol=2**-14)
    assert len(said) == (factor != 1) and all(says in str(w.message) and '\n' not in str(w.message) for w in said)
    assert [load_audio(path, time_expansion=k)[1] for k in (1, 4)] == [25600, 102400]

@pytest.mark.parametrize('chunk', [guano(x) for x in ('0', '-1', 'nan', 'inf', 'ten', '1e9', '10 times')] + [wamd(0), wamd(65535)])
def test_a_factor_that_is_none_is_refused(tmp_path, bat, chunk):
    path = with_chunks(tmp_path/'a.wav', bat, 25600, chunk)
    for act in (lambda: load_audio(path), lambda: length_s(path), lambda: sound_blocks(path).__enter__()):
        with pytest.raises(ValueError, match=r'(GUANO|WAMD) metadata of .*a.wav give a time expansion that is none: .*time_expansion=10'): act()
    assert load_audio(path, time_expansion=10)[1] == 256000

@pytest.mark.parametrize('chunk', [(b'guan', b'TE: 10\xff'), (b'guan', b''), (b'guan', b'TE'), (b'wamd', b'\x0f'), (b'wamd', struct.pack('<HI', 15, 2)), (b'wamd', struct.pack('<HIH', 15, 1, 9)),
                                   (b'wamd', struct.pack('<HI', 1, 2**32 - 1) + wamd(10)[1]), (b'wamd', b'\0' * 3001), (b'junk', b'', 2**32 - 1)])
def test_what_is_no_metadata_is_passed_over(tmp_path, bat, chunk):
    assert time_expansion_of(with_chunks(tmp_path/'a.wav', bat, 25600, chunk)) == (1., '')

def test_any_bytes_do_no_harm(tmp_path, bat):
    "Files with bytes changed at random: a factor, or a plain error"
    whole, random_, found = with_chunks(tmp_path/'a.wav', bat[:, :50], 25600, wamd(10), guano(10), first=True).read_bytes(), random.Random(0), set()
    for _ in range(2000):
        spoilt = bytearray(whole[:random_.choice([len(whole), random_.randrange(len(whole))])])
        for _ in range(min(len(spoilt), random_.randrange(1, 6))): spoilt[random_.randrange(len(spoilt))] = random_.randrange(256)
        (tmp_path/'b.wav').write_bytes(spoilt)
        try: found.add(time_expansion_of(tmp_path/'b.wav')[0])
        except ValueError as e: assert 'a time expansion that is none' in str(e)
    assert {1., 10.} <= found and all(.001 <= x <= 1000 for x in found)

def test_a_file_of_zeros_ends(tmp_path):
    (tmp_path/'a.wav').write_bytes(b'RIFF\0\0\0\0WAVE' + bytes(40_000_000))
    assert riff_chunk(tmp_path/'a.wav', b'guan') == b''

def test_a_part_of_an_expanded_file_is_found_by_its_true_time(tmp_path, bat):
    path = with_chunks(tmp_path/'a.wav', torch.cat([0 * bat, bat], 1), 25600, guano(10))
    with pytest.warns(UserWarning, match='256000 Hz'): part, rate = load_audio(path, start_s=.1, duration_s=.05)
    assert rate == BAT_HZ and part.shape == (1, 12800) and heard(part, rate)[0] == pytest.approx(40000, abs=20)
    with pytest.warns(UserWarning), sound_blocks(path, block_s=.01) as (rate, n, blocks): assert (rate, n, len(next(blocks))) == (BAT_HZ, 51200, 2560)

def test_time_expansion_is_for_files(for_bats, bat, tmp_path):
    for act in (lambda: for_bats.explain(bat, BAT_HZ, time_expansion=10), lambda: at_native_rate(for_bats, bat, BAT_HZ, time_expansion=10),
                lambda: explain_stream(for_bats, bat, tmp_path/'out', BAT_HZ, time_expansion=10)):
        with pytest.raises(ValueError, match='time_expansion is for files'): act()


# ---- explanations ----

def test_a_bat_comes_out_at_4_khz_as_loud_as_it_is(for_bats, bat, tmp_path):
    ex = for_bats.explain(bat, BAT_HZ)
    page, level = ex.player(), [rms_db(x[0]).item() for x in (ex.waveform, ex.audio, ex.residual)]
    assert len(embedded(page)) == 3
    for (sound, rate), level_db in zip(embedded(page), level):
        assert rate == 25600 and heard(sound, rate) == (pytest.approx(4000, abs=10), pytest.approx(level_db, abs=.05))
    assert '128 kHz' in page and f'data-duration="{ex.duration_s}"' in page and '0.1 s' in page and 'Played 10 times slower.' in page
    ex.save(tmp_path)
    sound, rate = load_audio(tmp_path/'explanation-10x-slower.flac')
    assert rate == 25600 and heard(sound, rate) == (pytest.approx(4000, abs=10), pytest.approx(level[1], abs=.05))
    sound, rate = load_audio(tmp_path/'explanation.flac')
    assert rate == BAT_HZ and heard(sound, rate) == (pytest.approx(40000, abs=100), pytest.approx(level[1], abs=.05))
    assert 'Played 10 times slower.' in (tmp_path/'report.html').read_text() and json.loads((tmp_path/'explanation.json').read_text())['playing_speed'] == .1

def test_a_whale_comes_out_at_160_hz_as_loud_as_it_is(for_whales, whale, tmp_path):
    ex = for_whales.explain(whale, WHALE_HZ)
    level = rms_db(ex.audio[0]).item()
    sound, rate = embedded(ex.player())[1]
    assert rate == 8000 and heard(sound, rate) == (pytest.approx(160, abs=2), pytest.approx(level, abs=.05)) and sound.shape[-1] / rate == pytest.approx(.5)
    sound, rate = load_audio(ex.save(tmp_path)/'explanation-8x-faster.flac')
    assert rate == 8000 and heard(sound, rate) == (pytest.approx(160, abs=2), pytest.approx(level, abs=.05))
    assert '0.5 kHz' in ex.player() and '4 s' in ex.player()

def test_whoever_asks_for_a_speed_gets_it(for_bats, bat, tmp_path):
    ex = for_bats.explain(bat, BAT_HZ)
    assert embedded(ex.player(speed=.05))[0][1] == 12800
    ex.save(tmp_path)
    ex.speed = 1
    ex.save(tmp_path)   # over the other: what was slower is gone
    assert sorted(p.name for p in tmp_path.glob('*.flac')) == ['explanation.flac', 'residual.flac']
    assert embedded(ex.player())[0][1] == 48000 and rms_db(embedded(ex.player())[0][0][0, 100:-100]) < -60

def test_it_follows_what_the_mask_lets_through(for_bats, bat):
    "A call in front of a louder hum: not what the recording holds decides, but what is kept of it"
    clip = .2 * bat + tone(2000, BAT_HZ, .1)
    ex = for_bats.explain(clip, BAT_HZ)
    hz = torch.linspace(0, BAT_HZ / 2, len(ex.mask))[:, None]
    sound = for_bats.stft.inverse(ex.magnitude * (hz > 20000), for_bats.magnitude_phase(clip)[1][0], clip.shape[-1])[None]
    ex.audio, ex.residual = sound, clip - sound
    assert listening_speed(clip, BAT_HZ) == 1 and ex.playing_speed == .1

def test_several_classes_of_a_bat_are_heard_at_one_speed(for_bats, bat, tmp_path):
    found = for_bats.explain(bat, BAT_HZ, targets=['call', 'none'])
    sounds = embedded(found.player())
    assert found.playing_speed == found.summary()['playing_speed'] == .1 and {rate for _, rate in sounds} == {25600} and len(sounds) == 5
    assert all(heard(*x)[0] == pytest.approx(4000, abs=10) for x in sounds)
    found.save(tmp_path)
    names = {row['label']: row['files'] for row in json.loads((tmp_path/'explanation.json').read_text())['classes']}
    assert names['none'] == ['explanation-none.flac', 'residual-none.flac', 'explanation-none-10x-slower.flac', 'residual-none-10x-slower.flac', 'mask-none.png']
    assert {p.name for p in tmp_path.glob('*-*')} == {*names['call'], *names['none']}
    assert [load_audio(tmp_path/name)[1] for name in names['call'][:4]] == [BAT_HZ, BAT_HZ, 25600, 25600]
    found.speed = 1
    found.save(tmp_path)   # over the other: what was slower is gone
    assert found['none'].speed == 1 and not list(tmp_path.glob('*slower*'))

@pytest.mark.parametrize('suffix', ['.wav', '.flac'])
def test_long_recordings_have_copies_to_be_heard(for_bats, bat, tmp_path, suffix):
    path = with_chunks(tmp_path/'a.wav', bat.repeat(1, 3), 25600, guano(10))
    with pytest.warns(UserWarning, match='time expansion 10'): found = explain_stream(for_bats, path, tmp_path/'out', suffix=suffix, progress=False)
    true, slow = load_audio(found.audio), load_audio(found.played[0])
    assert found.played[0].name.startswith('explanation-10x-slower.') and (true[1], slow[1]) == (BAT_HZ, 25600)
    assert heard(*slow) == (pytest.approx(4000, abs=10), pytest.approx(heard(*true)[1], abs=.05)) and found.duration_s == pytest.approx(.3)
    assert found.played[1].name in found.report() and 'Played 10 times slower' in found.report()
    with pytest.warns(UserWarning): page = found.excerpt(.1, .1)
    assert [rate for _, rate in embedded(page)] == [25600] * 3 and 'Played 10 times slower.' in page
    assert explain_stream(for_bats, path, tmp_path/'out', progress=False, time_expansion=10, speed=1).played[0].name == 'explanation.wav'
    assert not list((tmp_path/'out').glob('*slower*'))

def test_long_infrasound_is_brought_to_a_rate_for_browsers(for_whales, tmp_path):
    found = explain_stream(for_whales, tone(20, 500, 9.), tmp_path/'out', 500, progress=False, native_rate=True)
    sound, rate = load_audio(found.played[0])
    assert (found.playing_speed, rate) == (8, 8000) and sound.shape[-1] / rate == pytest.approx(9 / 8, rel=.01) and heard(sound, rate)[0] == pytest.approx(160, abs=1)


# ---- where people meet them ----

def test_the_command_line(bat, tmp_path, commands):
    stft = STFT(1024, 256)
    classifier = TappedClassifier(Cnn14(2, 4, 40, 16), LogMel(BAT_HZ, 1024, 40, 2000), ['conv_block2', 'conv_block5'], ['call', 'none'], BAT_HZ, duration_s=.1)
    LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8, head_channels=4), stft).save_pretrained(tmp_path/'weights')
    with_chunks(tmp_path/'bat.wav', bat, 25600, guano(10))
    (tmp_path/'lies').mkdir()
    save_audio(tmp_path/'lies/bat.wav', bat, 25600)
    def explain(*args): return commands(1, 'lmac-explain', *args, '--explainer', 'weights', cwd=tmp_path)[0]
    run = explain('bat.wav').ok()
    assert 'Played 10 times slower: out/explanation-10x-slower.flac' in run.out
    assert [line for line in run.err.splitlines() if 'GUANO' in line] == ['lmac-explain: GUANO metadata (time expansion 10): read as recorded at 256000 Hz, not at the 25600 Hz of the header. '
                                                                            "time_expansion=1 keeps the header's rate."]
    assert load_audio(tmp_path/'out/explanation-10x-slower.flac')[1] == 25600 and load_audio(tmp_path/'out/explanation.flac')[1] == BAT_HZ
    explain('lies', '--time_expansion', '10', '--out', 'many', '--speed', '.05').ok()
    assert heard(*load_audio(tmp_path/'many/bat/explanation-20x-slower.flac'))[0] == pytest.approx(2000, abs=10)
    both = explain('bat.wav', '--top', '2', '--out', 'both').ok()
    assert 'Played 10 times slower: both/explanation-call-10x-slower.flac, both/explanation-none-10x-slower.flac' in both.out
    for folder in ('many', 'both'): explain(folder).failed('No audio file')   # explanations are not explained
    explain('lies', '--time_expansion', '0').failed('between 0.001 and 1000')
    explain('lies/bat.wav', '--speed', '0', '--long').failed('between 0.01 and 100')

def test_a_study_is_heard_at_one_speed(for_bats, bat, tmp_path):
    from lmac.listen.study import ListeningSession, build_study, study_html
    from lmac.listen.widgets import ExplanationSession
    sessions = [ExplanationSession(for_bats, tone(hz, BAT_HZ, .1), BAT_HZ, name=f'{hz}') for hz in (40000, 50000)]
    study = build_study(sessions, tmp_path/'study', ['lmac', 'energy'])
    clip = study.plan['clips'][study.plan['trials'][0]['clip']]
    assert (clip['sample_rate'], clip['header'], clip['speed'], clip['duration_s']) == (BAT_HZ, 25600, .1, pytest.approx(.1))
    reference = study.sound(clip['reference'])
    assert reference[1] == 25600 and heard(*reference)[0] == pytest.approx(4000, abs=10)
    page = ListeningSession(study, 0).trial_html()
    assert {rate for _, rate in embedded(page)} == {25600} and 'data-speeds=""' in page and '128 kHz' in page and f'data-duration="{.1}"' in page
    assert build_study(sessions, tmp_path/'other', ['lmac', 'energy'], speed=.05).plan['clips'].popitem()[1]['header'] == 12800
    assert 'data-speed' in study_html(study)

def test_widgets_play_at_the_speed_of_the_session(for_bats, bat):
    from lmac.listen.widgets import ExplanationSession, Tuner
    for speed, rate in ((None, 25600), (.2, 51200)):
        session = ExplanationSession(for_bats, bat, BAT_HZ, speed=speed)
        assert {found for _, found in embedded(Tuner(session).player.html)} == {rate}
