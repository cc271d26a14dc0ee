"""Audio files at their edges: every format, rate and channel count; damaged files; folders and disks that refuse."""
import errno
import io
import os
import struct
import sys
import warnings

import numpy as np
import pytest
import soundfile as sf
import torch

from lmac.audio import (READ_SUFFIXES, SOURCES, Recording, check_sample_rate, check_waveform, encode_audio, fit_peak, load_audio,
                        make_scene, play, resample, rms_db, save_audio, to_mono, write_atomically)
from lmac.data import audio_files, decode_clip
from fuzz_recordings import av_recordings, run_recordings


def tones(n_channels=1, sample_rate=16000, duration_s=0.5, peak=0.5):
    "A different tone in each channel, `(channel, time)`"
    t = torch.arange(round(duration_s*sample_rate))/sample_rate
    return torch.stack([peak*torch.sin(2*torch.pi*(200 + 100*c)*t) for c in range(n_channels)])


# ---- round trips ----

LOSSLESS = [('.wav', 'PCM_U8', 2**-7), ('.wav', 'PCM_16', 2**-15), ('.wav', 'PCM_24', 2**-23),
            ('.wav', 'PCM_32', 2**-24), ('.wav', 'FLOAT', 0), ('.wav', 'DOUBLE', 0), ('.flac', 'PCM_16', 2**-15),
            ('.flac', 'PCM_24', 2**-23)]

@pytest.mark.parametrize('n_channels', [1, 2, 6])
@pytest.mark.parametrize('suffix, subtype, step', LOSSLESS)
def test_lossless_round_trip(tmp_path, suffix, subtype, step, n_channels):
    waveform = tones(n_channels)
    path = save_audio(tmp_path/f'a{suffix}', waveform, 16000, subtype=subtype)
    loaded, sample_rate = load_audio(path)
    assert sf.info(path).subtype == subtype
    assert (loaded.shape, loaded.dtype, sample_rate) == (waveform.shape, torch.float32, 16000)
    assert (loaded - waveform).abs().max() <= step
    save_audio(tmp_path/f'b{suffix}', loaded, 16000, subtype=subtype)
    assert torch.equal(load_audio(tmp_path/f'b{suffix}')[0], loaded)  # rounded once, bit-equal from then on

@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
@pytest.mark.parametrize('n_channels', [1, 2, 6])
@pytest.mark.parametrize('sample_rate', [8000, 22050, 44100, 48000])
def test_every_format_rate_and_channel_count(tmp_path, sample_rate, n_channels, suffix):
    waveform = tones(n_channels, sample_rate)
    if suffix == '.mp3' and n_channels > 2:
        with pytest.raises(ValueError, match='cannot hold 6 channels'):
            save_audio(tmp_path/'a.mp3', waveform, sample_rate)
        assert not list(tmp_path.iterdir())
        return
    loaded, rate = load_audio(save_audio(tmp_path/f'a{suffix}', waveform, sample_rate))
    assert (loaded.shape, rate) == (waveform.shape, sample_rate)
    middle = slice(sample_rate//10, -sample_rate//10)
    if suffix == '.ogg' and n_channels == 6:
        loaded, waveform = loaded[:5], waveform[:5]  # Vorbis keeps only the bass of the last channel of 5.1
    error = (loaded - waveform)[:, middle].norm()/waveform[:, middle].norm()
    assert error < (0.1 if suffix in ('.ogg', '.mp3') else 1e-3)  # and so no channel swapped, no delay

def test_samples_between_channels_keep_their_order(tmp_path):
    save_audio(tmp_path/'a.wav', torch.tensor([[0.25, 0.5], [-0.25, -0.5]]), 8000)
    assert load_audio(tmp_path/'a.wav')[0].tolist() == [[0.25, 0.5], [-0.25, -0.5]]

def test_upper_case_suffix_and_odd_names(tmp_path):
    path = save_audio(tmp_path/'Hündin & Welpe.WAV', tones(), 16000)
    assert load_audio(str(path))[0].shape == (1, 8000)

def test_one_sample_and_one_dimension(tmp_path):
    assert load_audio(save_audio(tmp_path/'a.wav', np.array([0.5], dtype=np.float64), 16000))[0].tolist() == [[0.5]]

def test_full_scale_is_kept(tmp_path):
    loaded, _ = load_audio(save_audio(tmp_path/'a.wav', torch.tensor([-1., 1.]), 16000))
    assert loaded.tolist() == [[-1, 32767/32768]]

def test_float_wav_may_exceed_full_scale(tmp_path):
    loud = 4*tones()
    assert torch.equal(load_audio(save_audio(tmp_path/'a.wav', loud, 16000, subtype='FLOAT'))[0], loud)
    for suffix in ('.wav', '.flac', '.ogg', '.mp3'):
        with pytest.raises(ValueError, match='peak of 2.000.*fit_peak'): save_audio(tmp_path/f'b{suffix}', loud, 16000)

@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
def test_parts_of_a_file(tmp_path, suffix):
    path = save_audio(tmp_path/f'a{suffix}', tones(duration_s=2), 16000)
    whole, _ = load_audio(path)
    part, _ = load_audio(path, start_s=0.5, duration_s=1)
    assert part.shape == (1, 16000)
    assert (part - whole[:, 8000:24000]).abs().max() < 1e-6
    assert load_audio(path, start_s=1.5, duration_s=9)[0].shape == (1, 8000)  # to the end, not beyond
    for arguments in (dict(start_s=2), dict(start_s=-1), dict(duration_s=0), dict(duration_s=float('nan'))):
        with pytest.raises(ValueError, match=next(iter(arguments))): load_audio(path, **arguments)

def test_load_resamples_and_mixes_down(tmp_path):
    path = save_audio(tmp_path/'a.flac', tones(6, 44100, duration_s=1), 44100)
    loaded, sample_rate = load_audio(path, sample_rate=16000, mono=True)
    assert (loaded.shape, sample_rate) == ((1, 16000), 16000)
    expected = tones(6, 16000, duration_s=1).mean(0, keepdim=True)
    assert (loaded - expected)[:, 200:-200].abs().max() < 1e-2
    with pytest.raises(ValueError, match='sample_rate'): load_audio(path, sample_rate=0)


# ---- damaged files ----

@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
@pytest.mark.parametrize('keep', [0.5, 0.9])
def test_truncated(tmp_path, suffix, keep):
    noise = 0.1*torch.randn(1, 3*16000, generator=torch.Generator().manual_seed(0))
    data = encode_audio(noise, 16000, suffix)
    path = tmp_path/f'cut{suffix}'
    path.write_bytes(data[:int(keep*len(data))])
    with pytest.raises(ValueError, match=f'cut{suffix} is (truncated|damaged)'): load_audio(path)

@pytest.mark.parametrize('missing', [1, 2, 100])
@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg'])
def test_truncated_by_a_few_bytes(tmp_path, suffix, missing):
    path = tmp_path/f'cut{suffix}'
    path.write_bytes(encode_audio(tones(), 16000, suffix)[:-missing])
    with pytest.raises(ValueError, match=f'cut{suffix} is (truncated|damaged)') as caught: load_audio(path)
    assert '()' not in str(caught.value)

@pytest.mark.parametrize('subtype', ['PCM_U8', 'PCM_24', 'FLOAT'])
def test_truncated_wav_of_any_depth(tmp_path, subtype):
    data = encode_audio(tones(2), 16000, '.wav', subtype)
    (tmp_path/'cut.wav').write_bytes(data[:len(data)//2])
    with pytest.raises(ValueError, match='cut.wav is truncated: its header promises'): load_audio(tmp_path/'cut.wav')

@pytest.mark.parametrize('size', [0x7fffffff, 0xffffffff])
def test_wav_written_to_a_pipe_is_whole(tmp_path, size):
    "Programs that write to a pipe cannot go back to fill in the length; players and we read to the end"
    data = bytearray(encode_audio(tones(), 16000))
    data[40:44] = struct.pack('<I', size)
    (tmp_path/'piped.wav').write_bytes(data)
    assert load_audio(tmp_path/'piped.wav')[0].shape == (1, 8000)

def test_wav_with_a_trailing_chunk_is_whole(tmp_path):
    data = encode_audio(tones(), 16000) + b'LIST' + struct.pack('<I', 4) + b'INFO'
    (tmp_path/'listed.wav').write_bytes(data)
    plain, _ = load_audio(save_audio(tmp_path/'a.wav', tones(), 16000))
    assert torch.equal(load_audio(tmp_path/'listed.wav')[0], plain)

@pytest.mark.parametrize('suffix', ['.wav', '.flac', '.ogg', '.mp3'])
@pytest.mark.parametrize('data, message', [(b'', 'empty'), (b'not audio, but a letter\n'*100, 'no audio'),
                                           (b'RIFF\x24\x00\x00\x00WAVE', 'cut off'),
                                           (bytes(range(256))*20, 'no audio')])
def test_not_audio(tmp_path, suffix, data, message):
    (tmp_path/f'x{suffix}').write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught: load_audio(tmp_path/f'x{suffix}')
    assert f'x{suffix}' in str(caught.value)

def test_no_samples(tmp_path):
    sf.write(tmp_path/'none.wav', np.zeros((0, 1), dtype='float32'), 16000)
    with pytest.raises(ValueError, match='none.wav holds no samples'): load_audio(tmp_path/'none.wav')

def test_missing_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='missing.wav'): load_audio(tmp_path/'missing.wav')
    with pytest.raises(ValueError, match='is not a file'): load_audio(tmp_path)

@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_file_with_nan_or_infinity(tmp_path, value):
    samples = tones(2).numpy().T.copy()
    samples[5, 1] = value
    sf.write(tmp_path/'bad.wav', samples, 16000, subtype='FLOAT')
    with pytest.raises(ValueError, match=r'bad\.wav must be finite.*1 of 16000 samples.*\(1, 5\)'):
        load_audio(tmp_path/'bad.wav')
    with pytest.raises(ValueError, match='must be finite'): save_audio(tmp_path/'b.wav', samples.T, 16000)
    assert not (tmp_path/'b.wav').exists()

def test_errors_are_one_line(tmp_path):
    (tmp_path/'x.wav').write_bytes(b'junk'*50)
    with pytest.raises(ValueError) as caught: load_audio(tmp_path/'x.wav')
    assert '\n' not in str(caught.value)


# ---- lengths are counted ----

def encoded(container, subtype=None, n=8000, channels=1, rate=16000, seed=0):
    "A file of quiet noise, in any format of libsndfile"
    file = io.BytesIO()
    sf.write(file, .1*np.random.default_rng(seed).standard_normal((n, channels)), rate, format=container, subtype=subtype)
    return file.getvalue()

def stating(flac, n):
    "A FLAC file whose header states `n` samples; 0: no length, as of one that was written to a pipe"
    return flac[:21] + bytes([flac[21] & 0xf0 | n >> 32]) + struct.pack('>I', n & 0xffffffff) + flac[26:]

def note_at(mp3): return max(mp3.find(b'Xing'), mp3.find(b'Info'))

def noting(mp3, n): return mp3[:note_at(mp3) + 8] + struct.pack('>I', n) + mp3[note_at(mp3) + 12:]

def without_note(mp3):
    "An mp3 file without its first frame, which notes the number of frames"
    return mp3[mp3.index(mp3[:2], 2):]

def quiet_load(path, **kwargs):
    "What is read, none of it with a warning"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return load_audio(path, **kwargs)

JOINED = [('WAV', 'PCM_16'), ('WAV', 'FLOAT'), ('RF64', 'PCM_16'), ('W64', 'PCM_16'), ('AIFF', 'PCM_16'), ('AU', 'PCM_16'), ('CAF', 'PCM_16'), ('CAF', 'ALAC_16'), ('VOC', 'PCM_16'),
          ('FLAC', 'PCM_16'), ('FLAC', 'PCM_24'), ('OGG', 'VORBIS'), ('OGG', 'OPUS'), ('MP3', 'MPEG_LAYER_III')]

@pytest.mark.parametrize('container, subtype', JOINED)
def test_recordings_that_are_joined_in_a_file_are_all_read(tmp_path, container, subtype):
    parts = [encoded(container, subtype, n, seed=n) for n in (32000, 16000, 5000)]
    for i, data in enumerate([*parts, b''.join(parts)]): (tmp_path/f'{i}.bin').write_bytes(data)
    each, joined = [quiet_load(tmp_path/f'{i}.bin')[0] for i in range(3)], quiet_load(tmp_path/'3.bin')[0]
    assert joined.shape == (1, 53000) and (joined - torch.cat(each, 1)).abs().max() < 1e-6  # each begins as if it were alone
    with Recording(tmp_path/'3.bin') as file: assert file.count() == 53000
    assert (quiet_load(tmp_path/'3.bin', start_s=1.9, duration_s=1.2)[0] - joined[:, 30400:49600]).abs().max() < 1e-6

@pytest.mark.parametrize('other', [dict(rate=8000), dict(channels=2)], ids=str)
@pytest.mark.parametrize('container', ['WAV', 'FLAC', 'OGG', 'MP3'])
def test_what_cannot_be_joined_is_said(tmp_path, container, other):
    first, second = encoded(container), encoded(container, **other)
    (tmp_path/'two.bin').write_bytes(first + second)
    with pytest.warns(UserWarning, match=rf'two.bin: the last {len(second)} of {len(first + second)} bytes were not read, after 0.5 s: another recording'):
        assert load_audio(tmp_path/'two.bin')[0].shape == (1, 8000)

@pytest.mark.parametrize('container', ['WAV', 'FLAC', 'OGG', 'MP3'])
def test_a_damaged_second_recording_is_an_error(tmp_path, container):
    second = encoded(container)
    (tmp_path/'two.bin').write_bytes(encoded(container) + second[:len(second)//2])
    with pytest.raises(ValueError, match=r'two.bin is (truncated|damaged)'): load_audio(tmp_path/'two.bin')

def test_flac_without_a_length(tmp_path):
    flac = encoded('FLAC', n=50000)
    (tmp_path/'a.flac').write_bytes(flac)
    (tmp_path/'pipe.flac').write_bytes(stating(flac, 0))
    (tmp_path/'cut.flac').write_bytes(stating(flac, 0)[:-1000])
    whole = quiet_load(tmp_path/'a.flac')[0]
    assert torch.equal(quiet_load(tmp_path/'pipe.flac')[0], whole)
    assert torch.equal(quiet_load(tmp_path/'pipe.flac', start_s=1, duration_s=.5)[0], whole[:, 16000:24000])
    with Recording(tmp_path/'pipe.flac') as file: assert (file.expected(), file.count()) == (None, 50000)
    with pytest.raises(ValueError, match='cut.flac is damaged'): load_audio(tmp_path/'cut.flac')
    with pytest.raises(ValueError, match='below the file.s length, 3.125 s'): load_audio(tmp_path/'pipe.flac', start_s=4)

@pytest.mark.parametrize('container, states', [('FLAC', stating), ('MP3', noting)])
def test_a_header_that_states_too_little_or_too_much(tmp_path, container, states):
    data = encoded(container, n=48000)
    (tmp_path/'little.bin').write_bytes(states(data, 10))
    assert quiet_load(tmp_path/'little.bin')[0].shape == (1, 48000)
    for much in (100_000, 2**31, 2**32 - 1):
        (tmp_path/'much.bin').write_bytes(states(data, much))
        with pytest.raises(ValueError, match='much.bin is truncated'): load_audio(tmp_path/'much.bin')

def test_mp3_without_a_note_of_its_length(tmp_path):
    "Whose frames differ in length, so that the first tells little"
    loud = torch.cat([torch.zeros(1, 60000), .1*torch.randn(1, 60000, generator=torch.Generator().manual_seed(0))], 1)
    data = encode_audio(loud, 16000, '.mp3')
    for i, x in enumerate((data, without_note(data), 2*without_note(data))): (tmp_path/f'{i}.mp3').write_bytes(x)
    x, y, z = (quiet_load(tmp_path/f'{i}.mp3')[0] for i in range(3))
    assert x.shape == (1, 120_000) and 120_000 <= y.shape[-1] < 123_000 and z.shape[-1] > 2*y.shape[-1] - 1200  # without the note, what encoders add at the ends is there
    late = y.shape[-1] - next(n for n in range(y.shape[-1]) if y[0, -1 - n].abs() > .01) - 120_000
    assert 0 < late < 3000

@pytest.mark.parametrize('riff, data', [(0, 0), (32036, 0), (8036, 8000), (32036, 8000), (0xffffffff, 0xffffffff)])
def test_wav_that_was_not_closed(tmp_path, riff, data):
    "A recorder without power leaves a length of 0, which is none, or that of the last time it was written"
    wav = encoded('WAV', n=16000)
    (tmp_path/'a.wav').write_bytes(wav[:4] + struct.pack('<I', riff) + wav[8:40] + struct.pack('<I', data) + wav[44:])
    if data != 8000: assert quiet_load(tmp_path/'a.wav')[0].shape == (1, 16000)
    else:
        with pytest.warns(UserWarning, match='a.wav: the last 24000 of 32044 bytes were not read, after 0.25 s'): assert load_audio(tmp_path/'a.wav')[0].shape == (1, 4000)

@pytest.mark.parametrize('end', [b'TAG' + bytes(125), bytes(1000), b'APETAGEX' + struct.pack('<II', 2000, 32) + bytes(48)], ids=['ID3', 'zeros', 'APE'])
@pytest.mark.parametrize('container', ['WAV', 'FLAC', 'OGG', 'MP3'])
def test_tags_at_the_end_are_no_sound(tmp_path, container, end):
    (tmp_path/'a.bin').write_bytes(encoded(container) + end)
    assert quiet_load(tmp_path/'a.bin')[0].shape == (1, 8000)

@pytest.mark.parametrize('container', ['OGG', 'MP3'])
def test_other_bytes_at_the_end_are_said(tmp_path, container):
    (tmp_path/'a.bin').write_bytes(encoded(container) + b'something else '*20)
    with pytest.warns(UserWarning, match='a.bin: the last 300 of'): assert load_audio(tmp_path/'a.bin')[0].shape == (1, 8000)

def test_a_damaged_page_of_ogg(tmp_path):
    "Its sound would be missing without a word"
    data = bytearray(encoded('OGG', 'VORBIS', 64000))
    data[len(data)//2] ^= 1
    (tmp_path/'a.ogg').write_bytes(data)
    with pytest.raises(ValueError, match='a.ogg is damaged: the checksum of its page'): load_audio(tmp_path/'a.ogg')


# ---- sizes that are claimed ----

@pytest.mark.parametrize('rate', [1, 2, 50, 99, 10_000_001, 2**31 - 1])
@pytest.mark.parametrize('to', [None, 16000])
def test_rates_of_no_sound(tmp_path, rate, to):
    wav = encoded('WAV', n=20000)
    (tmp_path/'odd.wav').write_bytes(wav[:24] + struct.pack('<I', rate) + wav[28:])
    with pytest.raises(ValueError, match=rf'odd.wav must be between 100 Hz and 10 MHz. Found: {rate} Hz'): load_audio(tmp_path/'odd.wav', to)

def test_time_expansion_makes_no_such_rate_either(tmp_path):
    path = save_audio(tmp_path/'a.wav', tones(), 16000)
    with pytest.raises(ValueError, match='a.wav must be between .* Found: 16 Hz, time-expanded from 16000 Hz'): load_audio(path, time_expansion=.001)

@pytest.mark.parametrize('rate', [100, 250, 997, 384_000, 10_000_000])
def test_rates_of_infrasound_and_ultrasound_are_read(tmp_path, rate):
    (tmp_path/'a.wav').write_bytes(encoded('WAV', n=1000, rate=rate))
    assert load_audio(tmp_path/'a.wav', 16000)[0].shape[-1] == -(-1000*16000//rate)

def test_silence_that_unfolds(tmp_path, monkeypatch):
    "A FLAC of zeros is small whatever its length: as a whole it is bounded by its size, in parts it can be read"
    (tmp_path/'zeros.flac').write_bytes(stating(encode_audio(torch.zeros(1, 3_000_000), 16000, '.flac'), 0))
    monkeypatch.setattr('lmac.audio.MOST_VALUES', 100_000)
    with pytest.raises(ValueError, match=r'zeros.flac holds over \d+ s of sound in \d+ bytes. Read it in parts'): load_audio(tmp_path/'zeros.flac')
    assert load_audio(tmp_path/'zeros.flac', start_s=100, duration_s=2)[0].shape == (1, 32000)

def test_a_block_never_asks_for_more_than_the_file_can_hold(tmp_path):
    with Recording(save_audio(tmp_path/'a.wav', tones(), 16000)) as file: assert len(file.read(1 << 60)) == 8000


# ---- one of several channels ----

@pytest.mark.parametrize('second, warned', [(-1., True), (-.9, True), (-.83, True), (-.7, False), (1., False), (0., False)])
def test_channels_that_cancel(tmp_path, second, warned):
    sound = torch.cat([tones(), second*tones()])
    path = save_audio(tmp_path/'a.wav', sound, 16000)
    for mix in (lambda: to_mono(sound), lambda: load_audio(path, mono=True)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            mix()
        assert [('cancel' in str(w.message), 'channel=0' in str(w.message)) for w in said] == [(True, True)]*warned
    with pytest.warns(UserWarning, match='a.wav cancel') if warned else warnings.catch_warnings(): decode_clip(path, 16000, .5)
    for channel in (0, 1): assert (quiet_load(path, mono=True, channel=channel)[0] - sound[channel]).abs().max() < 1e-4
    for channel in (2, -1, True, .5):
        with pytest.raises(ValueError, match=r'channel must be in 0\.\.1.*a.wav'): load_audio(path, channel=channel)

def test_silent_channels_do_not_cancel():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for x in (torch.zeros(2, 100), torch.randn(6, 1000, generator=torch.Generator().manual_seed(0)), torch.cat([torch.zeros(5, 100), torch.ones(1, 100)])): to_mono(x)
    with pytest.warns(UserWarning, match='cancel'): to_mono(torch.stack([tones(2), torch.cat([tones(), -tones()])]))  # one of a batch


# ---- formats that PyAV reads ----

def test_without_pyav_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    for name, head in (('a.m4a', b'\0\0\0\x1cftypM4A '), ('a.mp4', b'\0\0\0\x1cftypisom'), ('a.webm', b'\x1aE\xdf\xa3\x9fB\x86\x81\1'), ('a.wma', bytes.fromhex('3026b2758e66cf11a6d900aa0062ce6c')), ('misnamed.wav', b'\0\0\0\x1cftypM4A ')):
        (tmp_path/name).write_bytes(head + bytes(100))
        with pytest.raises(ValueError, match=rf"{name}.*pip install 'lmac\[av\]'"): load_audio(tmp_path/name)

@pytest.fixture
def click():
    "`(1, time)`, a click in quiet noise"
    x = .001*np.random.default_rng(0).standard_normal((1, 96000)).astype('float32')
    x[0, 48000] = .9
    return x

AV = ['a.m4a', 'a.mp4', 'a.aac', 'a.webm', 'a.mka', 'a.wma', 'a.mov']

@pytest.mark.parametrize('name', AV)
def test_phones_and_windows(tmp_path, click, name):
    pytest.importorskip('av')
    if name not in (made := av_recordings(click, 48000)): pytest.skip('no such encoder in this build')
    (tmp_path/name).write_bytes(made[name])
    x, rate = quiet_load(tmp_path/name)
    early = 2048 if name == 'a.wma' else 0  # FFmpeg's decoder drops a frame that its encoder does not add
    assert rate == 48000 and 96000 - early <= x.shape[-1] <= 96000 + 4096  # the last frame is filled up
    assert abs(x[0].abs().argmax().item() - 48000) <= max(2, early)
    part, _ = quiet_load(tmp_path/name, start_s=.9, duration_s=.2)
    assert torch.equal(part, x[:, 43200:52800])
    assert audio_files(tmp_path) == [tmp_path/name]
    assert decode_clip(tmp_path/name, 16000, 1.).shape == (16000,)
    (tmp_path/name).write_bytes(2*made[name])
    if name in ('a.m4a', 'a.mp4', 'a.mov', 'a.webm', 'a.mka'): assert quiet_load(tmp_path/name)[0].shape[-1] == 2*x.shape[-1]
    (tmp_path/name).write_bytes(made[name][:len(made[name])//2])
    if name not in ('a.aac', 'a.wma'):
        with pytest.raises(ValueError, match=f'{name} is (truncated|damaged)'): load_audio(tmp_path/name)

def test_video_with_and_without_sound(tmp_path, click):
    av = pytest.importorskip('av')
    for sound in (True, False):
        with av.open(str(path := tmp_path/f'{sound}.mp4'), 'w') as out:
            video = out.add_stream('mpeg4', rate=10)
            video.width = video.height = 64
            video.pix_fmt = 'yuv420p'
            if sound: audio = out.add_stream('aac', rate=48000, layout='mono')
            for _ in range(20): out.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), 'uint8'), format='rgb24')))
            out.mux(video.encode(None))
            if sound:
                frame = av.AudioFrame.from_ndarray(click, format='fltp', layout='mono')
                frame.sample_rate, frame.pts = 48000, 0
                for packet in [*audio.encode(frame), *audio.encode(None)]: out.mux(packet)
        if sound: assert quiet_load(path)[0][0].abs().argmax() == 48000
        else:
            with pytest.raises(ValueError, match='False.mp4 holds no sound. Found: video'): load_audio(path)

def test_folders_of_what_can_be_read(tmp_path):
    for suffix in ('.m4a', '.MP4', '.webm', '.wma', '.opus', '.aiff', '.txt', '.wav'): (tmp_path/f'a{suffix}').write_bytes(b'x')
    assert [p.suffix for p in audio_files(tmp_path)] == ['.wav', '.opus', '.aiff', '.m4a', '.MP4', '.webm', '.wma'] and len(set(READ_SUFFIXES)) == len(READ_SUFFIXES)


# ---- at random ----

def test_damaged_recordings_give_sound_or_a_documented_error():
    found = run_recordings(300, seed=3)
    assert found['ok'] > 30 and found['documented'] > 100 and not found['failures'], found['failures']


# ---- places that refuse ----

def assert_untouched(folder, before):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

@pytest.fixture
def earlier(tmp_path):
    "A folder with a good file in it, and its contents"
    save_audio(tmp_path/'a.wav', tones(), 16000)
    return tmp_path, {'a.wav': (tmp_path/'a.wav').read_bytes()}

def test_folder_below_a_file(earlier):
    folder, before = earlier
    with pytest.raises(NotADirectoryError, match='Choose an existing folder'):
        save_audio(folder/'a.wav'/'b.wav', tones(), 16000)
    assert_untouched(folder, before)

def test_missing_folder(earlier):
    folder, before = earlier
    with pytest.raises(FileNotFoundError, match='b.wav'): save_audio(folder/'nowhere'/'b.wav', tones(), 16000)
    assert_untouched(folder, before)

def test_path_is_a_folder(tmp_path):
    (tmp_path/'a.wav').mkdir()
    with pytest.raises(OSError, match='Cannot write'): save_audio(tmp_path/'a.wav', tones(), 16000)
    assert [path.name for path in tmp_path.iterdir()] == ['a.wav']

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='permissions do not bind the superuser')
def test_folder_without_write_permission(earlier):
    folder, before = earlier
    folder.chmod(0o500)
    try:
        with pytest.raises(PermissionError, match='Cannot write'): save_audio(folder/'a.wav', tones(), 16000)
    finally: folder.chmod(0o700)
    assert_untouched(folder, before)

@pytest.mark.parametrize('step, kind', [('replace', PermissionError), ('fsync', OSError)])
def test_earlier_file_survives(earlier, monkeypatch, step, kind):
    folder, before = earlier
    number = errno.EACCES if kind is PermissionError else errno.ENOSPC
    def refuse(*args): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(kind, match='Cannot write.*Choose an existing folder') as caught:
        save_audio(folder/'a.wav', 0.1*tones(), 16000)
    assert caught.value.errno == number
    assert_untouched(folder, before)

def test_disk_full_while_writing(earlier, monkeypatch):
    "A real full device: the file that takes the bytes is /dev/full"
    if not os.path.exists('/dev/full'): pytest.skip('no /dev/full here')
    folder, before = earlier
    real_open = open
    def open_full(path, mode='r', *args, **kwargs):
        return real_open('/dev/full', 'wb') if 'x' in mode else real_open(path, mode, *args, **kwargs)
    monkeypatch.setattr('builtins.open', open_full)
    with pytest.raises(OSError, match='No space left') as caught: save_audio(folder/'a.wav', 0.1*tones(), 16000)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert_untouched(folder, before)

def test_interrupt_leaves_no_litter(earlier, monkeypatch):
    folder, before = earlier
    def interrupt(*args): raise KeyboardInterrupt
    monkeypatch.setattr(os, 'replace', interrupt)
    with pytest.raises(KeyboardInterrupt): write_atomically(folder/'a.wav', b'half')
    assert_untouched(folder, before)

@pytest.mark.parametrize('name', ['a', 'a.aac', 'a.wav.txt'])
def test_unknown_suffix(tmp_path, name):
    with pytest.raises(ValueError, match='.wav, .flac, .ogg, .mp3'): save_audio(tmp_path/name, tones(), 16000)

def test_unknown_subtype_and_batch(tmp_path):
    with pytest.raises(ValueError, match="PCM_16.*Found: 'PCM_99'"):
        save_audio(tmp_path/'a.wav', tones(), 16000, 'PCM_99')
    with pytest.raises(ValueError, match=r'A file holds one clip.*\(2, 1, 8000\)'):
        save_audio(tmp_path/'a.wav', tones().expand(2, 1, -1), 16000)


# ---- values ----

@pytest.mark.parametrize('rate', [0, -1, 44100.5, float('nan'), float('inf'), True, '16000', None])
def test_bad_sample_rate(rate):
    with pytest.raises((TypeError, ValueError), match='sample_rate must be'): check_sample_rate(rate)

@pytest.mark.parametrize('waveform', [torch.zeros(1, 0), torch.zeros(0, 5), torch.zeros(2, 3, 4, 5), torch.tensor(1.)])
def test_bad_shape(waveform):
    with pytest.raises(ValueError, match='Found shape'): check_waveform(waveform)

@pytest.mark.parametrize('waveform', [torch.zeros(5, dtype=torch.int16), torch.zeros(5, dtype=torch.complex64),
                                      np.zeros(5, dtype=bool), [0., 1.], None, 'a.wav'])
def test_bad_type(waveform):
    with pytest.raises(TypeError, match='Found'): check_waveform(waveform)

def test_check_waveform_takes_any_memory_layout():
    samples = np.arange(6, dtype=np.float64)[::-1]/6
    assert check_waveform(samples).tolist() == pytest.approx(samples.tolist())
    x = tones()
    assert check_waveform(x).data_ptr() == x.data_ptr()  # no copy where none is needed

@pytest.mark.parametrize('rates', [(44100, 16000), (48000, 16000), (22050, 16000), (8000, 16000), (16000, 44100),
                                   (192000, 11025), (44101, 16000), (16000, 44101), (22254, 16000)])
@pytest.mark.parametrize('n_samples', [1, 1000, 30001])
def test_resampled_length(rates, n_samples):
    orig_rate, new_rate = rates
    assert resample(torch.ones(2, n_samples), orig_rate, new_rate).shape == (2, -(-n_samples*new_rate//orig_rate))

@pytest.mark.parametrize('orig_rate', [44101, 22254])
def test_resampling_between_odd_rates_keeps_the_pitch(orig_rate):
    sine = lambda rate: torch.sin(2*torch.pi*440*torch.arange(2*rate)/rate)
    assert (resample(sine(orig_rate), orig_rate, 16000) - sine(16000))[200:-200].abs().max() < 1e-2

def test_silence_stays_silence():
    silence = torch.zeros(1, 100)
    assert fit_peak(silence) == (silence, 0.0)
    assert rms_db(silence).item() == -120
    assert play(silence, 16000).src.startswith('data:audio/wav;base64,')
    assert to_mono(torch.zeros(2, 100)).shape == (1, 100)

@pytest.mark.parametrize('sample_rate', [8000, 16000, 44100])
@pytest.mark.parametrize('name', SOURCES)
def test_source(name, sample_rate):
    scene = make_scene({name: 0}, duration_s=0.5, sample_rate=sample_rate, seed=2)
    assert scene.waveform.shape == (1, sample_rate//2)
    assert torch.isfinite(scene.waveform).all() and 0.01 < scene.waveform.abs().max() <= 1
    assert torch.equal(scene.waveform, make_scene({name: 0}, 0.5, sample_rate, seed=2).waveform)

def test_scene_parts_sum_and_stay_the_same_beside_others():
    levels = {'dog': 0, 'rain': -12, 'hum': 40}  # loud enough to be scaled down as a whole
    scene = make_scene(levels, duration_s=1)
    assert torch.equal(sum(scene.sources.values()), scene.waveform)
    assert scene.waveform.abs().max() <= 1
    assert (rms_db(scene.sources['hum']) - rms_db(scene.sources['dog'])).item() == pytest.approx(40, abs=0.01)
    assert torch.equal(make_scene({'rain': -9}, 1).waveform, make_scene({'rain': -9, 'hum': -9}, 1).sources['rain'])
    assert not torch.equal(make_scene({'rain': 0}, 1, seed=1).waveform, make_scene({'rain': 0}, 1, seed=2).waveform)

@pytest.mark.parametrize('arguments, message', [
    (dict(levels_db={}), 'Found: none'), (dict(levels_db={'cat': 0}), "'cat'"),
    (dict(levels_db={'dog': float('-inf')}), 'finite'), (dict(levels_db={'dog': 0}, duration_s=0), 'duration_s'),
    (dict(levels_db={'dog': 0}, sample_rate=0), 'sample_rate')])
def test_bad_scene(arguments, message):
    with pytest.raises(ValueError, match=message): make_scene(**arguments)
