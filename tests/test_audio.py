"""Audio files at their edges: every format, rate and channel count; damaged files; folders and disks that refuse."""
import errno
import os
import struct

import numpy as np
import pytest
import soundfile as sf
import torch

from lmac.audio import (SOURCES, check_sample_rate, check_waveform, encode_audio, fit_peak, load_audio,
                        make_scene, play, resample, rms_db, save_audio, to_mono, write_atomically)


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
