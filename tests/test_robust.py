"""Names, places, options, signals and two runs at once: what goes wrong around the sounds, and must lose nothing."""
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from lmac.audio import PARTIAL, load_audio, make_scene, save_audio
from lmac.classifier import Cnn14, TappedClassifier
from lmac.scale.folder import result_folders
from lmac.data import ClipDataset, esc50, exclusive, folder_dataset, urbansound8k
from lmac.decoder import MaskDecoder
from lmac.evidence.benchmark import benchmark, read_benchmark, scene_dataset
from lmac.evidence.recipes import open_dataset
from lmac.explain import LMAC
from lmac.scale.long import LongExplanation, explain_stream
from lmac.spectrogram import STFT, LogMel

pytestmark = pytest.mark.usefixtures('one_thread')
ODD = ['None', 'NA', '0012'] # names of classes that pandas takes for something else

def small_explainer(labels):
    torch.manual_seed(0)
    classifier = TappedClassifier(Cnn14(len(labels), width=4, n_mels=40, max_width=32), LogMel(n_mels=40), ['conv_block2', 'conv_block5'], labels, 16000, duration_s=1.)
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, STFT(), channels=8, head_channels=4), STFT())

@pytest.fixture(scope='module')
def explainer(tmp_path_factory): return small_explainer(['bell', 'rain', 'saw']).save_pretrained(tmp_path_factory.mktemp('weights'))

@pytest.fixture
def shell(commands, tmp_path): return lambda *argv: commands(1, *argv, cwd=tmp_path)[0]

@pytest.fixture
def explain(shell, explainer): return lambda *args: shell('lmac-explain', *args, '--explainer', explainer)

@pytest.fixture
def sound(tmp_path):
    def write(name, seconds=.3, seed=0):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        made = save_audio(tmp_path/'made.wav', make_scene({'siren': 0}, seconds, seed=seed).waveform, 16000)
        os.rename(made, os.path.join(os.fsencode(tmp_path), os.fsencode(name)))
        return tmp_path/name
    return write

def names(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
def source_of(folder): return Path(json.loads((folder/'explanation.json').read_text())['source']).name


# ---- places ----

BAD_NAMES = ['...wav', '....wav', 'a.wav', 'a.wav.wav', 'a.wav.wav.wav', 'explanations.csv.wav', 'regions.csv.wav', 'sub/explanation.json.wav', 'report.html/a.wav', '-.wav', ' .wav', 'A.WAV']

def test_every_recording_has_a_place_of_its_own_inside(tmp_path, explain, sound):
    for name in BAD_NAMES: sound(f'sounds/{name}')
    before = names(tmp_path)
    explain('sounds', '--out', 'results').ok()
    table = pd.read_csv(tmp_path/'results/explanations.csv')
    assert sorted(table.recording) == sorted(name for name in BAD_NAMES if not Path(name).name.startswith('.'))  # hidden ones are passed over in folders
    assert table.explanation.str.casefold().is_unique and table.error.isna().all()
    for row in table.itertuples():
        place = tmp_path/'results'/row.explanation
        assert place.resolve().is_relative_to(tmp_path/'results') and (place/'report.html').is_file() and source_of(place) == Path(row.recording).name
    assert [name for name in names(tmp_path) if not name.startswith('results/')] == before

def test_places_whatever_the_names():
    names = [Path(name) for name in (*BAD_NAMES, '..', '../up.wav', '/etc/x.wav', 'a/../b.wav', 'explanation.wav.flac', *(f'n.{s}' for s in ('wav', 'flac', 'WAV')), 'n_wav.wav', os.fsdecode(b'\xff.wav'), 'x' * 240 + '.wav')]
    places = result_folders(names)
    assert len({str(place).casefold() for place in places}) == len(names)
    for place in places:
        assert not place.is_absolute() and '..' not in place.parts and str(place).encode()
        assert all(Path(part).suffix not in ('.csv', '.json', '.html', '.png', '.txt', '.wav') for part in place.parts)

@pytest.mark.skipif(os.name == 'nt', reason='names are text there')
def test_a_name_that_is_not_utf8(tmp_path, explain, sound):
    for name in ('good.wav', os.fsdecode(b'\xff.wav'), os.fsdecode(b'\xfe.wav')): sound(f'sounds/{name}')
    explain('sounds', '--out', 'results').ok()
    table = pd.read_csv(tmp_path/'results/explanations.csv')
    assert sorted(table.recording) == ['good.wav', '�.wav', '�.wav'] and table.explanation.is_unique and table.error.isna().all()
    assert '�.wav' in (tmp_path/'results'/table.explanation.iloc[-1]/'report.html').read_text()
    explain(tmp_path/'sounds'/os.fsdecode(b'\xff.wav'), '--out', 'one').ok()
    explain(tmp_path/'sounds'/os.fsdecode(b'\xff.wav'), '--out', 'long', '--long').ok()
    assert source_of(tmp_path/'one') == source_of(tmp_path/'long') == '�.wav'

def test_what_macos_leaves_beside_recordings(tmp_path, explain, sound):
    sound('sounds/a.wav')
    for name in ('sounds/._a.wav', 'sounds/__MACOSX/a.wav', 'sounds/.hidden/b.wav'):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_bytes(b'\0\5\26\7\0\2\0\0Mac OS X')
    explain('sounds', '--out', 'results').ok()
    assert pd.read_csv(tmp_path/'results/explanations.csv').recording.tolist() == ['a.wav']

def test_several_files_and_folders(tmp_path, explain, sound):
    for name in ('a.wav', 'b.wav', 'more/a.wav', 'more/c.ogg.wav'): sound(name)
    explain('a.wav', 'b.wav', 'more', 'a.wav', '--out', 'results').ok()
    table = pd.read_csv(tmp_path/'results/explanations.csv')
    assert table.recording.tolist() == ['a.wav', 'b.wav', 'more/a.wav', 'more/c.ogg.wav'] and table.explanation.tolist() == ['a', 'b', 'more/a', 'more/c_ogg']
    assert all((tmp_path/'results'/place/'explanation.flac').is_file() for place in table.explanation)

def test_a_second_recording_into_the_same_folder(tmp_path, explain, sound):
    for name in ('a.wav', 'b.wav', 'sub/a.wav'): sound(name)
    explain('a.wav').ok()
    before = {name: (tmp_path/name).read_bytes() for name in names(tmp_path)}
    for args in (['b.wav'], ['sub/a.wav'], [], ['a.wav', 'b.wav'], ['sub']): explain(*args).failed('out holds the explanation of a.wav, which would be lost.*--overwrite')
    assert {name: (tmp_path/name).read_bytes() for name in names(tmp_path)} == before
    explain('a.wav', '--binary').ok()  # its own results
    explain('b.wav', '--overwrite').ok()
    assert source_of(tmp_path/'out') == 'b.wav'
    explain('a.wav', 'b.wav', '--out', 'both').ok()
    explain('a.wav', '--out', 'both').failed('both holds the results of several recordings')
    explain('a.wav', 'b.wav', '--out', 'both').ok()
    explain('--out', 'demo').ok()
    explain('--out', 'demo').ok()
    explain('a.wav', '--out', 'demo').failed('demo holds the explanation of a synthetic scene')


# ---- options ----

@pytest.mark.parametrize('argv', [['lmac-explain', ''], ['lmac-explain', 'a.wav', ''], ['lmac-explain', '--out', ''], ['lmac-explain', '--explainer', ''], ['lmac-explain', '--target', ''], ['lmac-train', 'classifier', '--out', ''],
                                  ['lmac-train', 'classifier', '--data', ''], ['lmac-evaluate', ''], ['lmac-evaluate', '--methods', 'lmac', ''], ['lmac-experiment', 'absent', '--runs', ' ']], ids=' '.join)
def test_empty_arguments(tmp_path, shell, argv):
    run = shell(*argv)
    assert run.status == 1 and 'must not be empty' in run.err and not names(tmp_path)

@pytest.mark.parametrize('argv, message', [
    (['lmac-evaluate', '--seed', '-1'], 'seed must be a whole number, at least 0.*Found: -1'), (['lmac-evaluate', '--batch_size', '0'], 'batch_size must be a whole number, at least 1'),
    (['lmac-evaluate', '--seeds', '0', '-3'], 'seeds must'), (['lmac-evaluate', '--folds', '0'], 'folds must'), (['lmac-experiment', 'absent', '--seed', str(2**32)], 'seed must'), (['lmac-experiment', 'sources', '--methods', 'energy'], 'sanity checks only'),
    (['lmac-train', 'classifier', '--seed', '-1'], 'seed must'), (['lmac-train', 'classifier', '--batch-size', '-4'], 'batch_size must'), (['lmac-train', 'explainer', '--epochs', '0'], 'epochs must'),
    (['lmac-train', 'explainer', '--accumulate', '0'], 'accumulate must'), (['lmac-train', 'explainer', '--mixed_precision', 'fp7'], 'mixed_precision must be no, bf16 or fp16'),
    (['lmac-explain', '--speed', 'nan'], 'speed must'), (['lmac-explain', '--time_expansion', '0'], 'time_expansion must'), (['lmac-explain', '--threshold', '1.5'], 'threshold must')], ids=lambda x: ' '.join(x) if isinstance(x, list) else '')
def test_options_are_checked_before_anything_is_done(tmp_path, shell, argv, message):
    run = shell(*argv, *([] if 'experiment' in argv[0] else ['--explainer', 'nowhere'] if 'explain' in argv[0] else []))  # which would be found out next
    assert run.status == 1 and len(run.err.splitlines()) == 1 and not names(tmp_path)
    assert re.search(message, run.err), run.err

def test_a_configuration_is_checked_before_the_first_epoch(tmp_path, shell, write_config):
    def train(*args, **changes): return shell('lmac-train', 'classifier', '--config', write_config(tmp_path/'c.yaml', 'classifier', **changes), '--out', 'c', *args)
    for changes, message in ((dict(data__test=[9]), r'folds must be among.*Found: \[9\]'), (dict(taps=['conv_block2', 'conv_blok4']), "no layer 'conv_blok4' to tap"), (dict(data__test=9), 'must be a list of folds'), (dict(data__train='all'), 'must be a list of folds')):
        train(**changes).failed(message, lines=None)
        assert not (tmp_path/'c/training/checkpoint.pt').exists()
    train().ok()
    before = (tmp_path/'c/classifier.safetensors').read_bytes()
    (tmp_path/'c/classifier.safetensors').unlink()
    train(data__test=[4], taps=['conv_block2', 'conv_block5'], data__credit='mine').ok()  # none of which changes the training: nothing is lost
    assert (tmp_path/'c/classifier.safetensors').read_bytes() == before
    train(training__lr=.5).failed('belongs to a run with other settings', lines=None)


# ---- two at once, and runs that are ended ----

@pytest.mark.parametrize('argv', [['lmac-evaluate', '--out', 'place.json', '--data', 'scenes', '--quick'], ['lmac-explain', '--out', 'place.json'], ['lmac-train', 'classifier', '--out', 'place.json'], ['lmac-experiment', 'absent', '--quick', '--out', 'place.json']], ids=lambda x: x[0])
def test_a_place_where_somebody_writes(monkeypatch, tmp_path, shell, environment, argv, explainer):
    "The second is refused at once, before its work"
    for name in ('HOME', 'LMAC_CACHE', 'XDG_CACHE_HOME'): monkeypatch.setenv(name, environment[name]) if name in environment else monkeypatch.delenv(name, raising=False)
    with exclusive(tmp_path/'place.json'):
        start = time.monotonic()
        run = shell(*argv, *([explainer] if 'evaluate' in argv[0] else []))
        assert run.status == 1 and 'Another process or thread is writing to place.json' in run.err and time.monotonic() - start < 30
        assert not list(tmp_path.glob('place*/*'))

def long_run(tmp_path, script, environment, explainer, argv, until):
    "A command in a process of its own that has begun to write, and what it may leave"
    process = subprocess.Popen([script(argv[0]), *argv[1:], '--explainer', str(explainer)], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for _ in range(1200):
        if list(tmp_path.glob(until)): return process
        if process.poll() is not None: break
        time.sleep(.05)
    raise AssertionError(process.communicate()[1])

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_a_long_recording_that_is_ended(tmp_path, script, environment, explainer, explain, sound, number):
    sound('long.wav', 400.)
    argv = ['lmac-explain', 'long.wav', '--out', 'out']
    process = long_run(tmp_path, script, environment, explainer, argv, f'out/{PARTIAL}*')
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number and err.rstrip().endswith('lmac-explain: terminated') and not names(tmp_path/'out')
    else: assert list((tmp_path/'out').glob(f'{PARTIAL}*'))  # nobody can clear up after that, but whoever comes next
    sound('short.wav')
    explain('short.wav', '--out', 'out').ok()
    assert not [name for name in names(tmp_path/'out') if PARTIAL in name] and not list((tmp_path/'out').glob(f'{PARTIAL}*'))

def test_what_others_write_beside_it_stays(tmp_path):
    "Only what is below the place, or has its name, is cleared"
    for name in (f'{PARTIAL}a.json.12.part', f'{PARTIAL}b.json.12.part', f'folder/{PARTIAL}x/y'):
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).touch()
    with exclusive(tmp_path/'a.json'): assert names(tmp_path) == [f'{PARTIAL}b.json.12.part', f'folder/{PARTIAL}x/y']
    with exclusive(tmp_path/'folder'): assert names(tmp_path) == [f'{PARTIAL}b.json.12.part']


# ---- tables ----

def test_classes_that_look_like_missing_values(tmp_path):
    "What was saved is what is loaded, in every table that is read"
    lmac = small_explainer(ODD)
    long = explain_stream(lmac, torch.cat([make_scene({name: 0}, 1.5, seed=i).waveform for i, name in enumerate(('dog', 'siren', 'rain'))], 1)[0], tmp_path/'long', 16000, progress=False)
    again = LongExplanation.load(tmp_path/'long')
    text = ['label', 'predicted_label']
    assert set(long.timeline.label) <= set(ODD) and again.timeline.label.tolist() == long.timeline.label.tolist() and again.timeline.predicted_label.tolist() == long.timeline.predicted_label.tolist()
    assert again.sentence() == long.sentence() and again.segments()[text].to_dict() == long.segments()[text].to_dict() and again.boxes.label.tolist() == long.boxes.label.tolist()
    (tmp_path/'scenes').mkdir()
    dataset = scene_dataset(['dog', 'rain', 'siren'], tmp_path/'scenes', sample_rate=16000, duration_s=1.)
    dataset.labels = ODD
    benchmark(lmac, dataset, [5], tmp_path/'b.json', ['energy'], ['clean'], [0], name='odd', data='scenes')
    assert set(read_benchmark(tmp_path/'b.json')[2].label) <= set(ODD)

def test_a_folder_explained_by_such_classes(tmp_path, shell, sound):
    small_explainer(ODD).save_pretrained(tmp_path/'odd')
    for i, name in enumerate(('null.wav', '007.wav')): sound(f'sounds/{name}', 1., i)
    shell('lmac-explain', 'sounds', '--explainer', 'odd', '--out', 'out', '--region_threshold', '0').ok()
    text = dict(dtype=str, keep_default_na=False)
    assert set(pd.read_csv(tmp_path/'out/regions.csv', **text).label) <= set(ODD) and sorted(pd.read_csv(tmp_path/'out/explanations.csv', **text).explanation) == ['007', 'null']

@pytest.mark.parametrize('get, folder, head, row', [
    (esc50, 'ESC-50', 'filename,fold,target,category,esc10,src_file,take', '{clip}.wav,1,{k},{name},True,{k},A'),
    (urbansound8k, 'UrbanSound8K', 'slice_file_name,fsID,start,end,salience,fold,classID,class', '{clip}.wav,1,0,1,1,1,{k},{name}')])
def test_official_metadata_with_such_classes(tmp_path, sound, monkeypatch, get, folder, head, row):
    monkeypatch.setenv('LMAC_CACHE', str(tmp_path/'cache'))
    table = tmp_path/folder/('meta/esc50.csv' if get is esc50 else 'metadata/UrbanSound8K.csv')
    table.parent.mkdir(parents=True)
    table.write_text('\n'.join([head, *(row.format(clip=f'00{k}', k=k, name=name) for k, name in enumerate(ODD))]) + '\n')
    for k in range(3): sound(f"{folder}/audio/{'fold1/' if get is urbansound8k else ''}00{k}.wav", .5, k)
    clips = get(root=tmp_path, download=False, duration_s=.5, require_all=False)
    assert clips.labels == ODD and clips.table.label.tolist() == ODD and [Path(p).stem for p in clips.table.path] == ['000', '001', '002']

def test_tables_are_read_in_one_place():
    "pandas takes a class called None for nothing, unless it is told not to"
    sources = {p: p.read_text() for p in (Path(__file__).resolve().parent.parent/'lmac').rglob('*.py')}
    assert [p.name for p, text in sources.items() for _ in range(text.count('pd.read_csv('))] == ['data.py'] and sum(text.count('read_table(') for text in sources.values()) > 4


# ---- channels, and rates that make much of little ----

def test_channel_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv('LMAC_CACHE', str(tmp_path/'cache'))
    left, right = make_scene({'dog': 0}, .5).waveform, make_scene({'rain': 0}, .5).waveform
    (tmp_path/'sounds'/'dog').mkdir(parents=True)
    save_audio(tmp_path/'sounds'/'dog'/'a.wav', torch.cat([left, right]), 16000)
    found = {channel: folder_dataset(tmp_path/'sounds', duration_s=.5, channel=channel).waveforms for channel in (None, 0, 1)}
    for channel, expected in {None: (left + right)/2, 0: left, 1: right}.items(): torch.testing.assert_close(found[channel], expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match='a.wav has 2. Found: 2'): folder_dataset(tmp_path/'sounds', duration_s=.5, channel=2)
    assert open_dataset(dict(dataset=str(tmp_path/'sounds'), channel=1), 16000, .5).waveforms.equal(found[1])
    table = folder_dataset(tmp_path/'sounds', duration_s=.5).table
    assert ClipDataset(table, ['dog'], duration_s=.5, channel=1).waveforms.equal(found[1])

def test_low_rates_do_not_fill_the_memory(tmp_path):
    "A file that claims 100 Hz is 160 times as large at 16 kHz"
    save_audio(tmp_path/'low.wav', torch.zeros(1, 1_000_000), 100)
    for read in (lambda: load_audio(tmp_path/'low.wav', 16000), lambda: small_explainer(['a', 'b', 'c']).explain(tmp_path/'low.wav')):
        with pytest.raises(ValueError, match='1000000 samples at 100 Hz would become 160000000 at 16000 Hz.*explain_stream'): read()
    with pytest.raises(ValueError, match='would become'): small_explainer(['a', 'b', 'c']).prepare(torch.zeros(1_000_000), 100)
    assert load_audio(tmp_path/'low.wav', 16000, duration_s=10.)[0].shape == (1, 160_000)
