"""Data: broken lines and archives, caches under stress, odd folders, datasets that are not whole, exact ratios."""
import dataclasses
import errno
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from lmac import data
from lmac.audio import save_audio
from lmac.data import (ARCHIVES, Archive, ClipDataset, download, esc50, folder_dataset, from_huggingface, has_dataset, hf_recordings, loader, mix_at_snr,
                       snr_db, urbansound8k)

RECORDINGS = data.data_root()  # read before the tests put their own folder in its place
CSV_HEAD = "filename,fold,target,category,esc10,src_file,take\n"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    "Every test has a data folder and a cache of its own"
    monkeypatch.setenv('LMAC_DATA', str(tmp_path/'data'))
    monkeypatch.setenv('LMAC_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('no_proxy', '127.0.0.1')


def write_clip(path, seed=0, sample_rate=16000, duration_s=.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    n_samples = round(sample_rate*duration_s)
    return save_audio(path, .1*torch.randn(1, n_samples, generator=torch.Generator().manual_seed(seed)), sample_rate)


def write_folders(root, n_clips=3):
    for label in ('dog', 'rain'):
        for i in range(n_clips): write_clip(root/label/f'{label}-{i}.wav', seed=i)
    return root


def in_new_process(code, **variables):
    "Start `code` in a Python of its own"
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **variables})


# download

class Handler(http.server.BaseHTTPRequestHandler):
    "Serves `server.content` for any path; `server` says how well"
    def log_message(self, *args): pass

    def do_GET(self):
        server = self.server
        if server.status: return self.send_error(server.status)
        self.send_response(200)
        if server.states_length: self.send_header('Content-Length', len(server.content))
        self.end_headers()
        self.wfile.write(server.content[:len(server.content)//2] if server.hangs_up else server.content)


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.content, server.status, server.states_length, server.hangs_up = b'', None, True, False
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def toy_zip(n_clips=3, top='ESC-50-33c8ce9'):
    rows = [f'1-{i}-A-0.wav,1,0,dog,True,{i},A\n' for i in range(n_clips)]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
        z.writestr(f'{top}/meta/esc50.csv', CSV_HEAD + ''.join(rows))
        for i in range(n_clips): z.writestr(f'{top}/audio/1-{i}-A-0.wav', np.random.default_rng(i).bytes(60_000))
    return buffer.getvalue()


@pytest.fixture
def toy(server, monkeypatch):
    "A toy ESC-50 takes the place of the real one; returns how to change what is expected of it"
    server.content = toy_zip()
    url = f'http://127.0.0.1:{server.server_port}/toy.zip'
    def expect(**changes):
        archive = Archive(url, 'ESC-50.zip', 'ESC-50', 'meta/esc50.csv', n_clips=3)
        monkeypatch.setitem(ARCHIVES, 'esc50', dataclasses.replace(archive, **changes))
    expect()
    return expect


def left_in(folder):
    "What lies in a folder, locks aside"
    return sorted(p.name for p in Path(folder).iterdir() if not p.name.endswith('.lock'))


def test_interrupted_download_leaves_nothing(server, toy, tmp_path):
    server.hangs_up = True
    with pytest.raises(ConnectionError, match='Cannot download .*To do it by hand, get .*LMAC_DATA'): download('esc50', tmp_path)
    assert left_in(tmp_path) == []
    server.hangs_up = False
    assert download('esc50', tmp_path) == tmp_path/'ESC-50'
    assert left_in(tmp_path) == ['ESC-50']


def test_part_of_a_killed_download_is_written_anew(server, toy, tmp_path):
    (tmp_path/'ESC-50.zip.part').write_bytes(server.content + b'more')
    download('esc50', tmp_path)
    assert has_dataset('esc50', tmp_path) and left_in(tmp_path) == ['ESC-50']


def test_length_need_not_be_stated(server, toy, tmp_path):
    server.states_length = False
    download('esc50', tmp_path)
    assert has_dataset('esc50', tmp_path)


def test_two_downloads_at_once_fetch_once(server, toy, tmp_path, monkeypatch):
    fetched, plain = [], data.fetch
    monkeypatch.setattr(data, 'fetch', lambda *args: fetched.append(args) or plain(*args))
    with ThreadPoolExecutor(2) as pool: folders = list(pool.map(download, ['esc50']*2, [tmp_path]*2))
    assert folders == [tmp_path/'ESC-50']*2 and len(fetched) == 1


def test_wrong_checksum_is_refused(server, toy, tmp_path):
    toy(md5='0'*32)
    right = data.hashlib.md5(server.content).hexdigest()
    with pytest.raises(ValueError, match=f"{'0'*32}.*{right}"): download('esc50', tmp_path)
    assert left_in(tmp_path) == []
    toy(md5=right)
    download('esc50', tmp_path)


@pytest.mark.parametrize('changes,message', [
    (dict(n_clips=2000), 'should hold 2000 clips. Found: 3'),
    (dict(metadata_sha256='f'*64), 'should have sha256 ' + 'f'*64),
    (dict(metadata='meta/other.csv'), 'a folder with meta/other.csv. Found: none')])
def test_unexpected_contents_are_refused(toy, tmp_path, changes, message):
    toy(**changes)
    with pytest.raises(ValueError, match=message): download('esc50', tmp_path)
    assert left_in(tmp_path) == []


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 255]) + content[position + 1:]


@pytest.mark.parametrize('damage', [lambda whole: flipped(whole, 70_000), lambda whole: whole[:-1000],
                                    lambda whole: b'<html>sorry</html>'])
def test_damaged_archive_is_refused(server, toy, tmp_path, damage):
    whole = server.content
    server.content = damage(whole)
    with pytest.raises(ValueError, match='cannot be unpacked'): download('esc50', tmp_path)
    assert left_in(tmp_path) == []
    server.content = whole
    download('esc50', tmp_path)


@pytest.mark.parametrize('status', [404, 503])
def test_refusal_of_the_server(server, toy, tmp_path, status):
    server.status = status
    with pytest.raises(ConnectionError, match=f'{status} .*LMAC_DATA'): download('esc50', tmp_path)


@pytest.mark.parametrize('get', [esc50, urbansound8k])
def test_no_network(get, tmp_path, monkeypatch):
    "One error, which says where to put the data by hand"
    for name, archive in ARCHIVES.items():
        monkeypatch.setitem(ARCHIVES, name, dataclasses.replace(archive, url='http://127.0.0.1:9/archive'))
    with pytest.raises(ConnectionError) as e: get()
    folder = 'ESC-50' if get is esc50 else 'UrbanSound8K'
    assert str(tmp_path/'data'/folder) in str(e.value) and 'LMAC_DATA' in str(e.value) and '\n' not in str(e.value)
    assert left_in(tmp_path/'data') == []


def test_unwritable_data_folder(toy, tmp_path):
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='set LMAC_DATA'): download('esc50', tmp_path/'file'/'data')


def test_folder_that_is_no_dataset_is_left_alone(toy, tmp_path):
    (tmp_path/'ESC-50').mkdir()
    (tmp_path/'ESC-50'/'mine.txt').touch()
    with pytest.raises(FileExistsError, match='lacks meta/esc50.csv'): download('esc50', tmp_path)
    assert left_in(tmp_path/'ESC-50') == ['mine.txt']


def test_leftovers_of_a_killed_unpacking(toy, tmp_path):
    (tmp_path/'.ESC-50.unpacking'/'ESC-50-33c8ce9').mkdir(parents=True)
    download('esc50', tmp_path)
    assert left_in(tmp_path) == ['ESC-50']


@pytest.mark.parametrize('member', ['../outside.txt', '/tmp/lmac-outside.txt'])
def test_archive_cannot_write_outside(tmp_path, member):
    for suffix in ('zip', 'tar'):
        file, inside = tmp_path/f'evil.{suffix}', tmp_path/suffix
        if suffix == 'zip':
            with zipfile.ZipFile(file, 'w') as z: z.writestr(member, 'x')
        else:
            with tarfile.open(file, 'w') as t:
                info = tarfile.TarInfo(member)
                info.size = 1
                t.addfile(info, io.BytesIO(b'x'))
        try: data._unpack(file, inside)
        except ValueError: pass
        assert not (tmp_path/'outside.txt').exists() and not Path('/tmp/lmac-outside.txt').exists()


@pytest.mark.parametrize('kind', [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_an_archive_are_refused(tmp_path, kind):
    (tmp_path/'inside').mkdir()
    with tarfile.open(tmp_path/'evil.tar', 'w') as t:
        link = tarfile.TarInfo('folder')
        link.type, link.linkname = kind, '..'
        t.addfile(link)
        info = tarfile.TarInfo('folder/outside.txt')
        info.size = 1
        t.addfile(info, io.BytesIO(b'x'))
    with pytest.raises(ValueError, match="'folder' is no file or folder inside"): data._unpack(tmp_path/'evil.tar', tmp_path/'inside')
    assert list((tmp_path/'inside').iterdir()) == [] and not (tmp_path/'outside.txt').exists()


def test_official_sums_are_sums():
    assert len(ARCHIVES['urbansound8k'].md5) == 32 and len(ARCHIVES['esc50'].metadata_sha256) == 64


# cache

BUILD = "import lmac.data; print(lmac.data.folder_dataset({root!r}, duration_s=.2).waveforms.sum().item())"


def test_another_process_never_decodes(tmp_path):
    root = write_folders(tmp_path/'sounds')
    here = folder_dataset(root, duration_s=.2).waveforms.sum().item()
    stub = "import lmac.data as d\ndef no(*args): raise SystemExit('decoded again')\nd.decode_clip = no\n"
    process = in_new_process(stub + BUILD.format(root=str(root)))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert float(out) == here


def test_two_processes_at_once_decode_once(tmp_path):
    root, log = write_folders(tmp_path/'sounds'), tmp_path/'log'
    count = ("import lmac.data as d, time\nplain = d.decode_clip\n"
             f"def counted(*args):\n    open({str(log)!r}, 'a').write('x')\n    time.sleep(.3)\n"
             "    return plain(*args)\nd.decode_clip = counted\n")
    processes = [in_new_process(count + BUILD.format(root=str(root))) for _ in range(2)]
    outputs = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert log.read_text() == 'x'*6


def test_killed_decoding_leaves_no_cache_and_is_made_good(tmp_path):
    root, cache = write_folders(tmp_path/'sounds'), tmp_path/'cache'
    kill = ("import lmac.data as d, os, signal\nplain, n = d.decode_clip, []\n"
            "def killed(*args):\n    n.append(1)\n    if len(n) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return plain(*args)\nd.decode_clip = killed\n")
    process = in_new_process(kill + BUILD.format(root=str(root)))
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert not list(cache.glob('*.npy'))
    assert len(folder_dataset(root, duration_s=.2)) == 6
    assert len(list(cache.glob('*.npy'))) == 1 and not list(cache.glob('*.part'))


@pytest.mark.parametrize('stop', [KeyboardInterrupt, ValueError])
def test_interrupted_decoding_leaves_nothing(tmp_path, monkeypatch, stop):
    root, n_threads = write_folders(tmp_path/'sounds'), torch.get_num_threads()
    def decode(path, *_):
        if path.stem == 'rain-1': raise stop
        return torch.zeros(3200)
    with monkeypatch.context() as m:
        m.setattr(data, 'decode_clip', decode)
        with pytest.raises(stop): folder_dataset(root, duration_s=.2)
    assert torch.get_num_threads() == n_threads
    assert not list((tmp_path/'cache').glob('*.part')) and not list((tmp_path/'cache').glob('*.npy'))
    assert folder_dataset(root, duration_s=.2).waveforms.abs().sum(-1).min() > 0


def test_full_disk(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, block):
            if len(block) > 1000: raise OSError(errno.ENOSPC, 'No space left on device')
            return len(block)
    root = write_folders(tmp_path/'sounds')
    monkeypatch.setattr(data, 'open', lambda *args: Full(), raising=False)
    with pytest.raises(OSError, match='No space left on device while writing to .*Make room') as e: folder_dataset(root)
    assert e.value.errno == errno.ENOSPC and not list((tmp_path/'cache').glob('*.npy'))


@pytest.mark.parametrize('spoil', [lambda raw: raw[:-4], lambda raw: raw[:50], lambda raw: b'',
                                   lambda raw: b'not numpy'])
def test_spoiled_cache_is_made_again(tmp_path, spoil):
    root = write_folders(tmp_path/'sounds')
    clips = folder_dataset(root, duration_s=.2)
    before, raw = clips.waveforms.clone(), clips.cache_file.read_bytes()
    clips.cache_file.write_bytes(spoil(raw))
    assert torch.equal(folder_dataset(root, duration_s=.2).waveforms, before)


def test_changed_file_is_decoded_again(tmp_path):
    root = write_folders(tmp_path/'sounds')
    before = folder_dataset(root, duration_s=.2).waveforms.clone()
    write_clip(root/'dog'/'dog-1.wav', seed=99)
    after = folder_dataset(root, duration_s=.2).waveforms
    assert (before != after).any(-1).tolist() == [False, True, False, False, False, False]


def test_filled_cache_may_be_read_only(tmp_path, monkeypatch):
    "Nothing is opened for writing, locked or made once the cache is there"
    root = write_folders(tmp_path/'sounds')
    first = folder_dataset(root, duration_s=.2)
    def refuse(*args, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(data, 'FileLock', refuse)
    monkeypatch.setattr(Path, 'mkdir', refuse)
    assert torch.equal(folder_dataset(root, duration_s=.2).waveforms, first.waveforms)


def test_data_folder_is_never_written_to(tmp_path):
    root = write_folders(tmp_path/'sounds')
    before = sorted((p, p.stat().st_mtime_ns) for p in root.rglob('*'))
    folder_dataset(root, duration_s=.2)
    assert sorted((p, p.stat().st_mtime_ns) for p in root.rglob('*')) == before


def test_writing_to_a_clip_changes_neither_dataset_nor_file(tmp_path):
    clips = folder_dataset(write_folders(tmp_path/'sounds'), duration_s=.2)
    before = clips.cache_file.read_bytes()
    clips[0][0].zero_()
    assert clips[0][0].abs().max() > 0
    clips.waveforms[0].zero_()
    assert clips.cache_file.read_bytes() == before
    assert data._open_cache(clips.cache_file, (6, 3200))[0].abs().max() > 0


def test_pickle_carries_no_audio(tmp_path):
    clips = folder_dataset(write_folders(tmp_path/'sounds'), duration_s=.2)
    waveform, _ = clips[2]
    small = pickle.dumps(clips.subset([2, 4]))
    assert len(small) < clips.waveforms.nbytes/4
    assert torch.equal(pickle.loads(small)[0][0], waveform)


def test_workers_see_the_same_clips(tmp_path):
    clips = folder_dataset(write_folders(tmp_path/'sounds'), duration_s=.2)
    here, there = (torch.cat([x for x, _ in loader(clips, 2, shuffle=True, num_workers=n)]) for n in (0, 1))
    assert torch.equal(here, there)


# datasets

def test_subset_of_a_subset(tmp_path):
    clips = folder_dataset(write_folders(tmp_path/'sounds'), duration_s=.2)
    chosen = clips.subset([5, 0, 3]).subset(torch.tensor([True, False, True]))
    assert [p.stem for p in chosen.table.path] == ['rain-2', 'rain-0']
    assert chosen.targets.tolist() == [1, 1]
    assert torch.equal(chosen.waveforms, clips.waveforms[[5, 3]]) and torch.equal(chosen[1][0], clips[3][0])
    assert torch.equal(clips.subset([5, 4, 3, 2, 1, 0]).waveforms, clips.waveforms.flip(0))
    with pytest.raises(IndexError): chosen[2]


@pytest.mark.parametrize('which', [[], [6], [True], [.5], np.zeros(6, bool)])
def test_subsets_that_make_no_sense(tmp_path, which):
    clips = folder_dataset(write_folders(tmp_path/'sounds'), duration_s=.2)
    with pytest.raises(ValueError, match='Choose by a mask|No clip is chosen'): clips.subset(which)


def test_corrupted_clip_is_named(tmp_path):
    root = write_folders(tmp_path/'sounds')
    (root/'rain'/'rain-1.wav').write_bytes((root/'rain'/'rain-1.wav').read_bytes()[:1000])
    with pytest.raises(ValueError, match=r'rain-1\.wav'): folder_dataset(root)
    (root/'rain'/'rain-1.wav').write_bytes(b'')
    with pytest.raises(ValueError, match=r'rain-1\.wav'): folder_dataset(root)


def test_clip_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    "and is not taken for a cache that cannot be written"
    def refuse(path, **kwargs): raise PermissionError(errno.EACCES, 'Permission denied')
    monkeypatch.setattr(data, 'load_audio', refuse)
    with pytest.raises(ValueError, match=r'The clip .*dog-0\.wav cannot be read'):
        folder_dataset(write_folders(tmp_path/'sounds'))


def test_clip_that_went_away(tmp_path):
    root = write_folders(tmp_path/'sounds')
    table, labels = data.folder_table(root)
    (root/'dog'/'dog-2.wav').unlink()
    with pytest.raises(FileNotFoundError, match=r'1 of 6 clips are missing, for example .*dog-2\.wav'):
        ClipDataset(table, labels)


@pytest.mark.parametrize('bad', [dict(sample_rate=0), dict(sample_rate=-8000), dict(duration_s=0), dict(duration_s=-1),
                                 dict(duration_s=float('nan')), dict(n_folds=0)])
def test_settings_that_make_no_sense(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))): folder_dataset(write_folders(tmp_path/'sounds'), **bad)


def test_folder_with_odd_contents(tmp_path):
    root = write_folders(tmp_path/'sounds')
    (root/'notes.txt').write_text('hello')
    write_clip(root/'stray.wav')                      # beside the classes: belongs to none
    (root/'dog'/'._dog-0.wav').write_bytes(b'shadow file of macOS')
    (root/'dog'/'cover.jpg').write_bytes(b'picture')
    (root/'dog'/'folder.wav').mkdir()                 # a folder that is called like a clip
    write_clip(root/'.trash'/'old.wav')
    write_clip(root/'__MACOSX'/'old.wav')
    write_clip(root/'rain'/'garden'/'Rain 4 (über).FLAC')
    clips = folder_dataset(root, duration_s=.2)
    assert clips.labels == ['dog', 'rain']
    assert [p.name for p in clips.table.path] == ['dog-0.wav', 'dog-1.wav', 'dog-2.wav', 'Rain 4 (über).FLAC',
                                                  'rain-0.wav', 'rain-1.wav', 'rain-2.wav']


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match='is no folder'): folder_dataset(tmp_path/'nowhere')
    write_clip(tmp_path/'flat'/'a.wav')
    with pytest.raises(ValueError, match='no class folders, and 1 audio files'): folder_dataset(tmp_path/'flat')
    root = write_folders(tmp_path/'sounds')
    (root/'owl').mkdir()
    (root/'owl'/'readme.md').touch()
    with pytest.raises(ValueError, match='No audio file .*: owl'): folder_dataset(root)


def test_folds_depend_on_the_stem_alone(tmp_path):
    folds = lambda clips: {p.stem: fold for p, fold in zip(clips.table.path, clips.folds.tolist())}
    before = folds(folder_dataset(write_folders(tmp_path/'a'), duration_s=.2))
    (write_folders(tmp_path/'b', n_clips=5)/'rain').rename(tmp_path/'b'/'drizzle')
    after = folds(folder_dataset(tmp_path/'b', duration_s=.2))
    assert before.items() <= after.items() and len(after) == 10


def write_esc50(root, clips):
    "The layout of ESC-50 with these `(stem.suffix, label, esc10)`"
    (root/'ESC-50'/'meta').mkdir(parents=True)
    rows = []
    for i, (name, label, esc10) in enumerate(clips):
        write_clip(root/'ESC-50'/'audio'/name, seed=i)
        stem = Path(name).stem
        fold, src_file, take, target = stem.split('-')
        rows.append(f'{stem}.wav,{fold},{target},{label},{esc10},{src_file},{take}\n')
    (root/'ESC-50'/'meta'/'esc50.csv').write_text(CSV_HEAD + ''.join(rows))
    return root


def test_esc50_numbers_classes_by_target(tmp_path):
    root = write_esc50(tmp_path/'data', [('4-1-A-41.ogg', 'chainsaw', True), ('1-2-A-3.wav', 'cow', False),
                                         ('5-3-A-10.flac', 'rain', True)])
    clips = esc50(require_all=False)
    assert clips.labels == ['cow', 'rain', 'chainsaw'] and clips.targets.tolist() == [2, 0, 1]
    ten = esc50('esc10', require_all=False, root=root)
    assert ten.labels == ['rain', 'chainsaw'] and ten.targets.tolist() == [1, 0] and ten.folds.tolist() == [4, 5]
    assert esc50(folds=(1, 5), require_all=False).labels == clips.labels
    assert len(esc50(folds=np.int64(5), require_all=False)) == 1
    with pytest.raises(ValueError, match=r'among \[1, 4, 5\]. Found: \[2\]'): esc50(folds=2, require_all=False)


def test_esc50_that_is_not_whole(tmp_path):
    root = write_esc50(tmp_path/'data', [('4-1-A-41.ogg', 'chainsaw', True), ('1-2-A-10.wav', 'rain', True)])
    with pytest.raises(FileNotFoundError, match='398 of 400 clips are missing .*the csv lists only 2'): esc50('esc10')
    (root/'ESC-50'/'audio'/'4-1-A-41.ogg').unlink()
    with pytest.raises(FileNotFoundError, match='399 of 400 .*for example 4-1-A-41'): esc50('esc10')
    left = esc50('esc10', require_all=False)
    assert left.labels == ['rain', 'chainsaw'] and left.targets.tolist() == [0]
    (root/'ESC-50'/'audio'/'1-2-A-10.wav').unlink()
    with pytest.raises(FileNotFoundError, match='400 of 400'): esc50('esc10', require_all=False)


def test_the_first_format_wins_where_a_clip_is_there_twice(tmp_path):
    root = write_esc50(tmp_path/'data', [('1-2-A-10.wav', 'rain', True)])
    write_clip(root/'ESC-50'/'audio'/'1-2-A-10.ogg', seed=5)
    assert esc50(require_all=False).table.path[0].suffix == '.wav'


@pytest.mark.parametrize('csv', ['', 'a,b\n1,2\n', '<html>\n', 'filename;fold\n'])
def test_csv_that_is_none(tmp_path, csv):
    root = write_esc50(tmp_path/'data', [('1-2-A-10.wav', 'rain', True)])
    (root/'ESC-50'/'meta'/'esc50.csv').write_text(csv)
    with pytest.raises(ValueError, match=r'esc50\.csv is not the csv of esc50'): esc50(require_all=False)


def test_formats_rates_and_channels_meet_in_one_shape(tmp_path):
    for i, (suffix, rate) in enumerate([('.wav', 8000), ('.flac', 44100), ('.ogg', 48000), ('.mp3', 22050)]):
        time_s = torch.arange(rate)/rate
        tone = .2*torch.sin(2*torch.pi*440*time_s)
        (tmp_path/'sounds'/'tone').mkdir(parents=True, exist_ok=True)
        save_audio(tmp_path/'sounds'/'tone'/f'{i}{suffix}', torch.stack([tone, tone]), rate)
    waveforms = folder_dataset(tmp_path/'sounds', duration_s=1.).waveforms
    assert waveforms.shape == (4, 16000) and waveforms.dtype == torch.float32
    peak_hz = torch.fft.rfft(waveforms).abs().argmax(-1)
    assert peak_hz.tolist() == [440]*4


@pytest.mark.data
@pytest.mark.skipif(not has_dataset('esc50', RECORDINGS), reason='ESC-50 is not here')
def test_esc10_is_whole():
    clips = esc50('esc10', root=RECORDINGS, download=False, duration_s=.5)
    assert torch.bincount(clips.targets).tolist() == [40]*10
    assert [len(clips.fold(fold)) for fold in range(1, 6)] == [80]*5


# order

def test_order_depends_on_seed_and_epoch_alone(tmp_path):
    clips = folder_dataset(write_folders(tmp_path/'sounds', n_clips=8), duration_s=.2)
    def order(seed, epoch, skip=0):
        torch.manual_seed(skip)
        batches = loader(clips, 4, shuffle=True, seed=seed)
        batches.set_epoch(epoch)
        return [x.sum().item() for x, _ in batches]
    assert order(0, 3) == order(0, 3, skip=7)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_order_survives_accelerate(tmp_path):
    accelerate = pytest.importorskip('accelerate')
    clips = folder_dataset(write_folders(tmp_path/'sounds', n_clips=8), duration_s=.2)
    plain, prepared = loader(clips, 4, shuffle=True), loader(clips, 4, shuffle=True)
    prepared = accelerate.Accelerator(cpu=True).prepare_data_loader(prepared)
    for epoch in (0, 5):
        for batches in (plain, prepared): batches.set_epoch(epoch)
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, prepared, strict=True))


# mixing

@pytest.mark.parametrize('shape', [(4000,), (1, 4000), (3, 1, 4001), (2, 2, 999)])
@pytest.mark.parametrize('wanted_db', [-30., -3.2, 0., 12., 40.])
def test_ratio_is_exact(shape, wanted_db):
    generator = torch.Generator().manual_seed(0)
    signal = .1*torch.randn(shape, generator=generator)
    for n_noise in (100, shape[-1], 9000):
        noise = torch.rand(n_noise, generator=generator) - .3
        mixture = mix_at_snr(signal, noise, wanted_db)
        assert mixture.shape == signal.shape
        torch.testing.assert_close(snr_db(signal, mixture.double() - signal.double()).float(),
                                   torch.full(shape[:-1], wanted_db), atol=2e-3, rtol=0)


def test_one_ratio_per_clip_and_gradients():
    signal, noise = torch.randn(3, 500, requires_grad=True), torch.randn(3, 700)
    wanted_db = torch.tensor([-10., 0., 10.])
    mixture = mix_at_snr(signal, noise, wanted_db)
    torch.testing.assert_close(snr_db(signal, mixture - signal), wanted_db, atol=1e-3, rtol=0)
    mixture.sum().backward()
    assert signal.grad.isfinite().all()


def test_ratio_of_silence():
    tone = torch.ones(10)
    assert snr_db(tone, 0*tone) == float('inf') and snr_db(0*tone, tone) == -float('inf')
    for signal, noise, which in ((0*tone, tone, 'signal'), (tone, 0*tone, 'noise'), (tone, 1e-30*tone, 'noise')):
        with pytest.raises(ValueError, match=f'{which} is silent in 1 of 1 clips'): mix_at_snr(signal, noise, 0.)


@pytest.mark.parametrize('noise,ratio', [(torch.ones(10), float('nan')), (torch.ones(2, 10), 0.),
                                         (torch.full((10,), float('nan')), 0.), (torch.ones(0), 0.),
                                         (torch.ones(10), torch.zeros(3)), (torch.ones(10, dtype=torch.int16), 0.)])
def test_mixtures_that_make_no_sense(noise, ratio):
    with pytest.raises((ValueError, TypeError)) as e: mix_at_snr(torch.ones(10), noise, ratio)
    assert 'noise' in str(e.value) or 'snr_db' in str(e.value)


# data sets of Hugging Face

@pytest.fixture
def hub(tmp_path, monkeypatch):
    "Six recordings as bytes, two of each class, stereo and at 8 kHz; the caches in a folder of their own"
    datasets = pytest.importorskip('datasets')
    monkeypatch.setenv('LMAC_CACHE', str(tmp_path/'cache'))
    datasets.disable_progress_bars()
    rows = []
    for i in range(6):
        path = save_audio(tmp_path/f'{i}.wav', torch.linspace(-.5, .5, 2000).roll(100*i).repeat(2, 1)*torch.tensor([[1.], [.5]]), 8000)
        rows.append(dict(audio=dict(bytes=path.read_bytes(), path=path.name), label=['cat', 'dog', 'owl'][i % 3], fold=1 + i // 3))
    return datasets.Dataset.from_list(rows).cast_column('audio', datasets.Audio()).class_encode_column('label')


def test_huggingface_is_read_as_files_are(hub, tmp_path):
    clips = from_huggingface(hub, 16000, .5)
    assert clips.labels == ['cat', 'dog', 'owl'] and clips.targets.tolist() == [0, 1, 2]*2 and clips.folds.tolist() == [1]*3 + [2]*3
    for i in range(6): torch.testing.assert_close(clips[i][0], data.decode_clip(tmp_path/f'{i}.wav', 16000, .5), rtol=0, atol=0)
    assert from_huggingface(hub.to_iterable_dataset(), 16000, .5).cache_file == clips.cache_file
    assert from_huggingface(hub, 16000, .5, channel=1).cache_file != clips.cache_file
    assert len(list((tmp_path/'cache').glob('*.npy'))) == 2 and not list((tmp_path/'cache').glob('.lmac-*'))


def test_huggingface_is_decoded_once(hub, monkeypatch):
    first = from_huggingface(hub, 16000, .5)
    monkeypatch.setattr(data, 'decode_clip', lambda *args: pytest.fail('decoded again'))
    again = from_huggingface(hub, 16000, .5, labels=['owl', 'dog', 'cat'])
    assert again.cache_file == first.cache_file and again.targets.tolist() == [2, 1, 0]*2


@pytest.mark.parametrize('name', ['hf:{}', 'hf:{}#train'])
def test_huggingface_by_name(hub, tmp_path, name):
    datasets = pytest.importorskip('datasets')
    datasets.DatasetDict(train=hub.select(range(4)), test=hub.select([4, 5]).remove_columns('fold')).save_to_disk(tmp_path/'saved')
    clips = from_huggingface(name.format(tmp_path/'saved'), 16000, .5)
    assert clips.folds.tolist() == ([1, 1, 1, 2] if '#' in name else [1, 1, 1, 2, 2, 2])   # of the column, and of the split where there is none
    with pytest.raises(ValueError, match='no such split. Found: train, test'): from_huggingface(f"hf:{tmp_path/'saved'}#valid")


def test_huggingface_recordings_have_names_of_their_own(hub, tmp_path):
    rows = [dict(audio=dict(bytes=row, path='a.wav'), label='x') for row in [(tmp_path/f'{i}.wav').read_bytes() for i in range(3)]]
    rows.append(dict(audio=dict(bytes=None, path=str(tmp_path/'3.wav')), label=None))
    datasets = pytest.importorskip('datasets')
    same = datasets.Dataset.from_list(rows).cast_column('audio', datasets.Audio())
    found = list(hf_recordings(same, tmp_path/'written'))
    assert [name for name, *_ in found] == ['a.wav', 'a-000001.wav', 'a-000002.wav', '3.wav'] and [label for *_, label in found] == ['x', 'x', 'x', '']
    assert [path.read_bytes() for _, path, _ in found] == [(tmp_path/f'{i}.wav').read_bytes() for i in range(4)]
    assert found[3][1] == tmp_path/'3.wav'   # a local file stays where it is


@pytest.mark.parametrize('change, expected', [
    (lambda d: d.remove_columns('audio'), 'one column of type Audio'), (lambda d: d.select([]), 'no rows'),
    (lambda d: d.add_column('other', [0]*6).class_encode_column('other'), 'several columns of classes: label, other')])
def test_huggingface_that_is_not_clear(hub, change, expected):
    with pytest.raises(ValueError, match=expected): from_huggingface(change(hub), 16000, .5)


def test_huggingface_damaged(hub, tmp_path):
    datasets = pytest.importorskip('datasets')
    rows = datasets.Dataset.from_list([dict(audio=dict(bytes=b'no sound', path='bad.wav'), label='x')]).cast_column('audio', datasets.Audio())
    with pytest.raises(ValueError, match=r'bad\.wav'): from_huggingface(rows, 16000, .5)
    assert not list((tmp_path/'cache').glob('*.npy')) and not list((tmp_path/'cache').glob('.lmac-*'))


def test_fit_and_evaluation_take_huggingface(hub, explainer, tmp_path):
    datasets = pytest.importorskip('datasets')
    from lmac.evidence.evaluation import evaluate
    from lmac.explain import training_clips
    assert len(training_clips(explainer, hub)) == 6
    named = datasets.Dataset.from_list([dict(audio=dict(bytes=(tmp_path/f'{i}.wav').read_bytes(), path=f'{i}.wav'), label=i % 2, fold=1) for i in range(6)]).cast_column('audio', datasets.Audio())
    named = named.cast_column('label', datasets.ClassLabel(names=['siren', 'rain']))   # in another order than the classifier's
    result = evaluate(explainer, named, [1], tmp_path/'result.json', progress=False)
    assert result['provenance']['dataset']['n_clips'] == 6
