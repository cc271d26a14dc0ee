"""A real Ray of two workers on this machine: what it makes is what one process makes, a killed worker loses nothing, a stopped run goes on."""
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from lmac.audio import encode_audio, load_audio, make_scene, save_audio
from lmac.classifier import TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.scale.cluster import SOUND_COLUMNS, explain, list_recordings, read_results, start_ray, to_folder
from lmac.spectrogram import STFT, LogMel

N = 24 # recordings


@pytest.fixture(scope='module')
def engine(tmp_path_factory):
    "Ray with two processors. Where JupyterLab is installed, jsonschema builds a grammar of addresses in each process that imports Ray, for seconds; without, it does without"
    pytest.importorskip('ray')
    stub = tmp_path_factory.mktemp('stub')
    (stub/'rfc3987_syntax.py').write_text('raise ImportError\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('PYTHONPATH', os.pathsep.join(filter(None, [str(stub), os.environ.get('PYTHONPATH')])))
        patch.setenv('RAY_worker_niceness', '0')  # other tests run beside
        ray = start_ray(num_cpus=2, object_store_memory=200_000_000)
        yield ray
        ray.shutdown()


def make_explainer(wait_s=0.):
    "An untrained explainer with a network of our own, which a worker could not import; it may take its time"
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 4, 5, 2, 2), nn.Conv2d(4, 8, 5, 2, 2), nn.Linear(8, 2)
        def forward(self, x):
            time.sleep(wait_s)
            return 5 * self.head(self.b(self.a(x[:, None]).relu()).relu().amax((2, 3)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(512, 256)
        classifier = TappedClassifier(Own(), LogMel(n_fft=512, n_mels=40), ['a', 'b'], ['rain', 'siren'], 16000, 'freq_time', .4)
        return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft), stft)


@pytest.fixture(scope='module')
def quick(): return make_explainer()


@pytest.fixture(scope='module')
def slow(): return make_explainer(.03)


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
    "Recordings in two folders, of the same names; one is broken"
    root = tmp_path_factory.mktemp('recordings')
    for i in range(N):
        path = root/f'site {i % 2}'/f'{i // 2}.wav'
        path.parent.mkdir(exist_ok=True)
        save_audio(path, make_scene({('rain', 'siren')[i % 3 > 0]: 0}, .4 + .1 * (i % 3), seed=i).waveform, 16000)
    (root/'site 1'/'0.wav').write_bytes(b'RIFF\0\0')
    return root


def table_of(dataset): return dataset.to_pandas().sort_values('source', ignore_index=True)


def same_as_one_process(table, explainer, root):
    "Each row is what one process says of the recording, to the bit where it is sound"
    assert table.source.tolist() == [row['source'] for row in list_recordings(root)]
    assert table[table.error != ''].recording.tolist() == ['site 1/0.wav'] and '0.wav' in table.error.max()
    for row in table[table.error == ''].itertuples():
        ex = explainer.explain(row.source)
        for name, value in ex.summary().items():
            if isinstance(value, float): assert getattr(row, name) == pytest.approx(value, abs=1e-5), name
        assert (row.label, row.verdict, row.sample_rate) == (ex.label, ex.verdict, ex.sample_rate)
        assert row.explanation == encode_audio(ex.audio, 16000, '.flac') and row.residual == encode_audio(ex.residual, 16000, '.flac')
        assert json.loads(row.explanation_json)['source'] == row.source


def worker_pids(root=os.getpid()):
    "Processes of actors that hold an explainer, among the children of a process"
    children, titles = {}, {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try: text, title = stat.read_text(), (stat.parent/'cmdline').read_bytes()
        except OSError: continue
        pid, parent = int(stat.parent.name), int(text.rpartition(')')[2].split()[1])
        children.setdefault(parent, []).append(pid)
        titles[pid] = title
    below = [root]
    for pid in below: below += children.get(pid, [])
    return [pid for pid in below if b'_Actor' in titles.get(pid, b'') and titles[pid].startswith(b'ray::')]


def wait_for(ready, timeout_s=300):
    "Wait until something is true"
    until = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < until, "it never came"
        time.sleep(.02)


@pytest.mark.skipif(not Path('/proc').is_dir(), reason="processes are found in /proc")
def test_a_killed_worker_loses_nothing(engine, slow, recordings, tmp_path):
    "And two workers make what one process makes; files of one name in two folders are two recordings"
    out, found = tmp_path/'out', []
    thread = threading.Thread(target=lambda: found.append(explain(recordings, slow, out, progress=False)))
    thread.start()
    wait_for(lambda: list(out.glob('*.parquet')) or found)
    pids = worker_pids()
    assert len(pids) == 2 and not found
    os.kill(pids[0], signal.SIGKILL)
    thread.join(300)
    table = table_of(found[0])
    assert len(table) == len(set(table.source)) == N
    same_as_one_process(table, make_explainer(), recordings)
    check_settings_and_errors(recordings, out, slow)


def check_settings_and_errors(recordings, out, explainer):
    "What is there is left alone; what failed is tried again if asked; other settings have another place"
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert explain(recordings, explainer, out, progress=False).count() == N
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == before
    with pytest.raises(ValueError, match='Name another folder'): explain(recordings, explainer, out, threshold=.5)
    broken = recordings/'site 1'/'0.wav'
    bad = broken.read_bytes()
    save_audio(broken, make_scene({'rain': 0}, .5).waveform, 16000)
    try: table = table_of(explain(recordings, explainer, out, retry=True, progress=False))
    finally: broken.write_bytes(bad)
    assert len(table) == len(set(table.source)) == N and not ''.join(table.error)


STOPPED = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from test_cluster import make_explainer
from lmac.scale.cluster import explain, start_ray
start_ray(address=sys.argv[2])
explain(sys.argv[3], make_explainer(.03), sys.argv[4], block=2, progress=False)
"""


def test_a_stopped_run_goes_on(engine, slow, recordings, tmp_path):
    "The process that began is killed without a word; another one does the rest"
    out, script = tmp_path/'out', tmp_path/'stopped.py'
    script.write_text(STOPPED)
    run = subprocess.Popen([sys.executable, script, Path(__file__).parent, engine.get_runtime_context().gcs_address, recordings, out])
    wait_for(lambda: list(out.glob('*.parquet')) or run.poll() is not None)
    run.kill()
    run.wait()
    time.sleep(1)  # its workers hear of it
    first = {p.name: p.stat().st_mtime_ns for p in out.glob('*.parquet')}
    done = sum(len(pd.read_parquet(out/name, columns=['source'])) for name in first)
    assert 0 < done < N
    table = table_of(explain(recordings, slow, out, progress=False))
    same_as_one_process(table, make_explainer(), recordings)
    assert first.items() <= {p.name: p.stat().st_mtime_ns for p in out.iterdir()}.items()
    assert not [p for p in out.iterdir() if p.suffix != '.parquet']


def test_a_ray_dataset_and_recordings_of_minutes(engine, quick, recordings, tmp_path):
    "Without a folder nothing is kept, and nothing done before it is asked for; what is longer than half a minute is explained in windows"
    long = save_audio(tmp_path/'long.wav', make_scene({'siren': 0, 'rain': -10}, 31.).waveform, 16000)
    paths = [recordings/'site 0'/'0.wav', recordings/'site 1'/'0.wav', long]
    given = engine.data.from_items([dict(path=str(p), label='rain') for p in paths[:2]] + [dict(path=str(long), bytes=long.read_bytes(), label='siren')])
    table = explain(given, quick, workers=1).to_pandas().set_index('source').loc[list(map(str, paths))]
    assert table.error.ne('').tolist() == [False, True, False] and table.true_label.tolist() == ['rain', 'rain', 'siren']
    row = table.iloc[2]
    assert row.duration_s == pytest.approx(31) and row.timeline.startswith('start_s') and json.loads(row.explanation_json)['windows'] > 100
    folder = to_folder(engine.data.from_pandas(table.reset_index()), tmp_path/'out')
    rows = pd.read_csv(folder/'explanations.csv', keep_default_na=False)
    assert not set(rows) & set(SOUND_COLUMNS[1:]) and {'recording', 'explanation', 'source', 'error', 'true_label', 'verdict'} <= set(rows)
    places = dict(zip(rows.source, rows.explanation))
    assert places[str(paths[1])] == '' and len(set(places.values())) == 3
    assert load_audio(folder/places[str(long)]/'explanation.flac')[0].shape[-1] == 31 * 16000
    assert (folder/places[str(long)]/'timeline.csv').is_file() and not (folder/places[str(paths[0])]/'timeline.csv').exists()


@pytest.mark.parametrize('stream', [False, True])
def test_data_sets_of_hugging_face(engine, quick, recordings, stream):
    datasets = pytest.importorskip('datasets')
    paths = [recordings/'site 0'/f'{i}.wav' for i in range(3)]
    data = datasets.Dataset.from_list([dict(audio=dict(bytes=p.read_bytes(), path='same.wav'), label=f'class {i}') for i, p in enumerate(paths)]).cast_column('audio', datasets.Audio())
    table = explain(data.to_iterable_dataset() if stream else data, quick, workers=1).to_pandas().sort_values('true_label')
    assert not ''.join(table.error) and table.true_label.tolist() == ['class 0', 'class 1', 'class 2'] and len(set(table.recording)) == 3
    for path, row in zip(paths, table.itertuples()): assert row.explanation == encode_audio(quick.explain(path).audio, 16000, '.flac')


def test_what_cannot_be(engine, quick, recordings, tmp_path):
    with pytest.raises(FileNotFoundError, match='no file or folder'): explain(tmp_path/'nowhere', quick)
    with pytest.raises(ValueError, match="no class 'dog'"): explain(recordings, quick, target='dog')
    with pytest.raises(ValueError, match='name the target too'): explain(recordings, quick, contrast='rain')
    with pytest.raises(FileNotFoundError, match='no Parquet file'): read_results(tmp_path)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=r"pip install 'lmac\[ray\]'"): start_ray()


def test_a_ray_that_cannot_start(monkeypatch):
    ray, tries = pytest.importorskip('ray'), []
    def init(**options):
        tries.append(options)
        raise RuntimeError("The current node timed out during startup.\nSee the logs.")
    monkeypatch.setattr(ray, 'init', init)
    monkeypatch.setattr(ray, 'is_initialized', lambda: False)
    monkeypatch.setattr(ray, 'shutdown', lambda: None)
    with pytest.raises(ConnectionError, match="Ray can't start, .*timed out during startup. See the logs. Wait until"): start_ray(tries=2)
    assert len(tries) == 2
