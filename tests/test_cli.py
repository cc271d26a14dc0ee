"""The commands as somebody at a shell meets them: what they print, the status they end with, and what they leave behind."""
import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from fastcore.script import anno_parser

import lmac.cli

from lmac.audio import encode_audio, load_audio, make_scene, save_audio
from lmac.classifier import Cnn14, TappedClassifier
from lmac.cli import DEMO
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.spectrogram import STFT, LogMel

from commands import Run

LABELS = ['bell', 'rain', 'saw']
STAGES = 'classifier', 'explainer', 'finetune'
REGIONS = ['regions.csv', 'regions.selections.txt', 'regions.txt']
RESULTS = sorted(['explanation.flac', 'explanation.json', 'mask.png', *REGIONS, 'report.html', 'residual.flac', 'thumbnail.png'])

@pytest.fixture
def shell(commands, tmp_path):
    "Run a command in `tmp_path`; `largest` is a limit on the size of a file, in bytes, as of a disk that is full"
    return lambda *argv, largest=None: commands(1, *argv, cwd=tmp_path, largest=largest)[0]

@pytest.fixture(scope='module')
def explainer(tmp_path_factory):
    "A folder with an explainer of random weights"
    torch.manual_seed(0)
    stft = STFT()
    classifier = TappedClassifier(Cnn14(3, width=4, n_mels=40, max_width=32), LogMel(n_mels=40), ['conv_block2', 'conv_block5'], LABELS, 16000, duration_s=1.)
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8, head_channels=4), stft).save_pretrained(tmp_path_factory.mktemp('weights'))

@pytest.fixture
def dog(tmp_path): return save_audio(tmp_path/'dog.wav', make_scene({'dog': 0}, 1.).waveform, 16000)

@pytest.fixture
def explain(shell, explainer): return lambda *args, **kwargs: shell('lmac-explain', *args, '--explainer', explainer, **kwargs)

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
def names(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())


# ---- from a real shell ----

def shell_run(script, environment, *argv, cwd=None):
    found = subprocess.run([script(argv[0]), *map(str, argv[1:])], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)
    return Run(found.returncode, found.stdout, found.stderr)

@pytest.mark.parametrize('command, words', [
    ('lmac-explain', ['[audio ...]', '--out', '--explainer', '--binary', '--threshold', '--target', 'dog,rain', '--top', '--long', '--native_rate', '--speed', '--time_expansion', '--channel', 'm4a', '--region_threshold', 'slower', 'folder', 'Hugging Face', 'esc10', 'report.html', 'timeline.csv', 'regions.csv']),
    ('lmac-train', ['{classifier,explainer,finetune,zero_shot,l2i}', '--out', '--config', '--classifier', '--explainer', '--share_classifier', '--data',
                    '--epochs', '--seed', '--mixed_precision', 'interrupted', 'urbansound8k']),
    ('lmac-evaluate', ['[explainer]', '--data', '--folds', '--out', '--costs', 'Fid-In', 'esc10'])])
def test_help(monkeypatch, command, words):
    monkeypatch.setenv('COLUMNS', '120')
    help = anno_parser(getattr(lmac.cli, command.replace('-', '_')).__wrapped__, prog=command).format_help()  # in a shell: the notebook's
    assert help.startswith(f'usage: {command} [-h]')
    for word in words: assert word in help, word
    for line in re.findall(r'^ +--?\w.*', help, re.M):  # every option says what it is for
        assert re.search(r'\S {2,}\S', line.strip()) or len(line) > 30, line

def test_errors_in_a_real_shell(tmp_path, script, environment, explainer):
    shell_run(script, environment, 'lmac-explain', 'nowhere.wav', '--explainer', explainer, cwd=tmp_path).failed('no .*nowhere.wav')
    shell_run(script, environment, 'lmac-train', 'classifier', '--config', 'nowhere', cwd=tmp_path).failed("No configuration 'nowhere'. Bundled: ")


# ---- lmac-explain ----

def test_explain_a_file(tmp_path, explain, explainer, dog):
    run = explain(dog, '--out', 'results').ok()
    assert names(tmp_path/'results') == RESULTS
    numbers = json.loads((tmp_path/'results/explanation.json').read_text())
    expected = LMAC.from_pretrained(explainer).explain(dog)
    assert numbers['label'] == expected.label and numbers['probability_heard'] == pytest.approx(expected.probability_heard, abs=1e-5)
    assert (numbers['source'], numbers['threshold'], numbers['duration_s']) == (str(dog), None, 1.)
    assert (load_audio(tmp_path/'results/explanation.flac')[0] - expected.audio).abs().max() < 1e-3
    assert str(dog) in run.out and repr(expected.label) in run.out and 'results/report.html in a browser' in run.out

def test_one_channel(tmp_path, explain, dog):
    sound = load_audio(dog)[0]
    save_audio(tmp_path/'wide.wav', torch.cat([sound, -sound]), 16000)
    explain(dog, '--out', 'dog').ok()
    run = explain('wide.wav', '--out', 'mix').ok()
    assert 'wide.wav cancel' in run.err and '--channel 0' in run.err
    run = explain('wide.wav', '--channel', '0', '--out', 'left').ok()
    assert 'cancel' not in run.err
    left, whole = (json.loads((tmp_path/folder/'explanation.json').read_text()) for folder in ('left', 'dog'))
    assert left['label'] == whole['label'] and left['probability_heard'] == pytest.approx(whole['probability_heard'], abs=1e-3)
    explain('wide.wav', '--channel', '2', '--out', 'none').failed(r'channel must be in 0\.\.1: wide.wav has 2. Found: 2')
    assert not (tmp_path/'none').exists()

def test_recordings_without_a_length(tmp_path, explain):
    "A FLAC from a pipe, of over 30 s in windows, a recorded radio, and what a header claims"
    flac = encode_audio(make_scene({'dog': 0}, 31.).waveform, 16000, '.flac')
    (tmp_path/'pipe.flac').write_bytes(flac[:21] + bytes([flac[21] & 0xf0, 0, 0, 0, 0]) + flac[26:])
    run = explain('pipe.flac', '--out', 'pipe').ok()
    assert '576460' not in run.err and json.loads((tmp_path/'pipe/explanation.json').read_text())['duration_s'] == 31
    (tmp_path/'radio.ogg').write_bytes(2*encode_audio(make_scene({'rain': 0}, 1.).waveform, 16000, '.ogg'))
    explain('radio.ogg', '--out', 'radio').ok()
    assert json.loads((tmp_path/'radio/explanation.json').read_text())['duration_s'] == 2
    mp3 = encode_audio(make_scene({'rain': 0}, 1.).waveform, 16000, '.mp3')
    at = max(mp3.find(b'Xing'), mp3.find(b'Info')) + 8
    (tmp_path/'claims.mp3').write_bytes(mp3[:at] + b'\xff'*4 + mp3[at + 4:])
    explain('claims.mp3', '--out', 'claims').failed('claims.mp3 is truncated or damaged')
    save_audio(tmp_path/'slow.wav', torch.zeros(1, 40000), 1)
    explain('slow.wav', '--out', 'slow').failed('slow.wav must be between 100 Hz and 10 MHz')

def test_explain_without_arguments(tmp_path, explain):
    run = explain().ok()
    assert names(tmp_path/'out') == sorted(RESULTS + ['input.wav', *(f'{name}.wav' for name in DEMO)])
    parts = [load_audio(tmp_path/f'out/{name}.wav')[0] for name in (*DEMO, 'input')]
    assert (sum(parts[:-1]) - parts[-1]).abs().max() < 1e-3  # 16 bits
    assert 'synthetic scene' in run.out and 'out/report.html' in run.out

def test_explain_in_place_of_earlier_results(tmp_path, explain, dog):
    explain(dog, '--out', 'results').ok()
    (tmp_path/'results/mine.txt').write_text('mine')
    earlier = contents(tmp_path)
    explain(dog, '--out', 'results').ok()
    assert contents(tmp_path) == earlier  # the same again, to the bit

@pytest.mark.parametrize('options, threshold', [(['--binary'], .5), (['--threshold', '.4'], .4), (['--binary', '--threshold', '.4'], .4), ([], None)])
def test_binary_masks(tmp_path, explain, dog, options, threshold):
    explain(dog, '--out', 'results', *options).ok()
    numbers = json.loads((tmp_path/'results/explanation.json').read_text())
    assert numbers['threshold'] == threshold
    assert ('binary mask' in (tmp_path/'results/report.html').read_text()) <= (threshold is not None)

def test_target(tmp_path, explain, explainer, dog):
    label = LMAC.from_pretrained(explainer).explain(dog).label
    other = next(l for l in LABELS if l != label)
    explain(dog, '--target', label).ok()
    explain(dog, '--target', other, '--out', 'other').ok()
    numbers = json.loads((tmp_path/'other/explanation.json').read_text())
    assert (numbers['label'], numbers['predicted_label']) == (other, label)
    assert f'says {label!r}' in (text := html.unescape((tmp_path/'other/report.html').read_text())) and f'explains {other!r}' in text
    before = contents(tmp_path)
    explain(dog, '--target', 'violin').failed("no class 'violin'. Its classes: bell, rain, saw")
    assert contents(tmp_path) == before

@pytest.fixture(scope='module')
def commas(tmp_path_factory):
    "A folder with an explainer whose classes have commas in their names"
    torch.manual_seed(0)
    classifier = TappedClassifier(Cnn14(3, width=4, n_mels=40, max_width=32), LogMel(n_mels=40), ['conv_block2', 'conv_block5'], ['Speech, human', 'Speech', 'Dog'], 16000, duration_s=1.)
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, STFT(), channels=8, head_channels=4), STFT()).save_pretrained(tmp_path_factory.mktemp('commas'))

@pytest.mark.parametrize('args, labels', [(['--target', 'Speech, human'], 'Speech, human'), (['--target', 'Dog'], 'Dog'), (['--target', 'Dog,Speech, human'], ['Dog', 'Speech, human']),
                                          (['--target', 'Speech, Dog'], ['Speech', 'Dog'])], ids=str)
def test_names_with_commas(tmp_path, shell, commas, dog, args, labels):
    "The longest name that there is wins before the text is split"
    shell('lmac-explain', dog, '--explainer', commas, '--out', 'results', *args).ok()
    numbers = json.loads((tmp_path/'results/explanation.json').read_text())
    assert (numbers['label'] if isinstance(labels, str) else [row['label'] for row in numbers['classes']]) == labels

def test_several_classes(tmp_path, explain, explainer, dog):
    lmac = LMAC.from_pretrained(explainer)
    run = explain(dog, '--target', 'saw,bell', '--out', 'named').ok()
    numbers = json.loads((tmp_path/'named/explanation.json').read_text())
    assert names(tmp_path/'named') == sorted(['explanation.json', 'mask.png', 'regions.csv', 'regions.selections.txt', 'regions.txt', 'report.html', 'thumbnail.png', *(f for row in numbers['classes'] for f in row['files'])])
    for row, name in zip(numbers['classes'], ['saw', 'bell']):
        assert row['label'] == name and row['probability_heard'] == pytest.approx(lmac.explain(dog, target=name).probability_heard, abs=1e-5)
    assert run.out.count('The classifier says') == 1 and "'saw' has" in run.out and 'named/report.html in a browser' in run.out
    explain(dog, '--top', '2', '--binary', '--native-rate', '--out', 'top').ok()
    numbers = json.loads((tmp_path/'top/explanation.json').read_text())
    assert [row['label'] for row in numbers['classes']] == list(numbers['probabilities'])[:2] and numbers['threshold'] == .5
    explain('--top', '3', '--out', 'scene').ok()
    assert {f'explanation-{name}.flac' for name in LABELS} < set(names(tmp_path/'scene'))

@pytest.mark.parametrize('args, message', [(['--target', 'saw,violin'], "no class 'violin'. Its classes: bell, rain, saw"), (['--target', 'saw,'], "no class ''. Its"), (['--target', 'saw,bell,saw'], 'each class once. Found twice: saw'),
                                           (['--top', '0'], '1 to 3.*Found: 0'), (['--top', '4'], 'Found: 4'), (['--target', 'saw', '--top', '2'], "with --top. Found both: 'saw' and 2"),
                                           (['--target', 'saw,bell', '--contrast', 'bell'], "another than the target. Found: 'bell' twice"), (['--top', '2', '--long'], 'in windows, with one class at a time')], ids=str)
def test_several_classes_that_cannot_be(tmp_path, explain, dog, args, message):
    before = contents(tmp_path)
    explain(dog, *args).failed(message)
    explain('--top', 'many').misused("top.*'many'")
    assert contents(tmp_path) == before

def test_several_classes_of_a_folder(tmp_path, explain):
    (tmp_path/'sounds').mkdir()
    for name in ('dog', 'rain'): save_audio(tmp_path/f'sounds/{name}.wav', make_scene({name: 0}, .5).waveform, 16000)
    (tmp_path/'sounds/text.wav').write_text('not audio')
    def again(*args): return explain('sounds', '--out', 'results', *args).failed('1 of 3 recordings could not be explained: text.wav', lines=None).out
    assert again('--target', 'saw,bell').count('The classifier says') == 2
    table = pd.read_csv(tmp_path/'results/explanations.csv')
    assert table.recording.tolist() == ['dog.wav', 'dog.wav', 'rain.wav', 'rain.wav', 'text.wav'] and table.label.tolist()[:4] == ['saw', 'bell'] * 2
    assert table.error.notna().tolist() == [False] * 4 + [True] and not {'classes', 'files', 'probabilities'} & set(table)
    for row in table[:4].itertuples(): assert row.probability_heard in [r['probability_heard'] for r in json.loads((tmp_path/f'results/{row.explanation}/explanation.json').read_text())['classes']]
    assert '2 of 3 had been explained before' in again('--target', 'saw, bell')  # the same classes, written otherwise
    assert 'before' not in again('--top', '2') and 'before' not in again('--target', 'saw') and '2 of 3' in again('--target', 'saw')
    assert explain('results', '--out', 'more').failed('No audio file').out == ''  # sounds of explanations are no recordings

def write_broken(folder):
    good = save_audio(folder/'good.wav', make_scene({'siren': 0}, 1.).waveform, 16000).read_bytes()
    (folder/'empty.wav').write_bytes(b'')
    (folder/'text.mp3').write_text('not audio')
    (folder/'half.wav').write_bytes(good[:len(good)//2])
    sf.write(folder/'no-samples.wav', np.zeros((0, 1), dtype='float32'), 16000)
    sf.write(folder/'nan.wav', np.array([0, np.nan], dtype='float32'), 16000, subtype='FLOAT')
    return ['empty.wav', 'half.wav', 'nan.wav', 'no-samples.wav', 'text.mp3']

@pytest.mark.parametrize('name, message', [('nowhere.wav', 'no file or folder nowhere.wav'), ('empty.wav', r'empty.wav is empty \(0 bytes\)'),
                                           ('text.mp3', 'text.mp3 is damaged, cut off or no audio'), ('half.wav', 'half.wav is truncated'),
                                           ('no-samples.wav', 'no-samples.wav holds no samples'), ('nan.wav', 'nan.wav must be finite')])
def test_broken_files(tmp_path, explain, name, message):
    write_broken(tmp_path)
    explain(name).failed(message, lines=None if name == 'text.mp3' else 1)  # the mp3 decoder has its say too
    assert not (tmp_path/'out').exists()

def test_silent_file(tmp_path, explain):
    save_audio(tmp_path/'silence.wav', torch.zeros(2, 44100), 44100)
    assert 'silent' in explain('silence.wav').ok().out
    assert not load_audio(tmp_path/'out/explanation.flac')[0].any()
    assert 'NaN' not in (tmp_path/'out/explanation.json').read_text()

def test_a_folder_with_broken_files(tmp_path, explain):
    "They are named, the others are explained, the status says that something was wrong"
    (tmp_path/'sounds/deeper').mkdir(parents=True)
    broken = write_broken(tmp_path/'sounds')
    save_audio(tmp_path/'sounds/deeper/dog.flac', make_scene({'dog': 0}, .5, sample_rate=44100).waveform, 44100)
    (tmp_path/'sounds/notes.txt').write_text('no recording')
    run = explain('sounds', '--out', 'results').failed('5 of 7 recordings could not be explained: empty.wav, half.wav', lines=None)
    for name in broken: assert re.search(rf'lmac-explain: .*{name}', run.err), name
    assert names(tmp_path/'results') == sorted(['explanations.csv', 'index.html', *REGIONS, *(f'{folder}/{file}' for folder in ('deeper/dog', 'good') for file in RESULTS)])
    assert sorted(p.name for p in (tmp_path/'results').iterdir()) == ['deeper', 'explanations.csv', 'good', 'index.html', *REGIONS]

def test_a_whole_folder(tmp_path, explain):
    (tmp_path/'sounds').mkdir()
    for suffix in ('.wav', '.flac', '.MP3'): save_audio(tmp_path/f'sounds/dog{suffix}', make_scene({'dog': 0}, .5).waveform, 16000)
    save_audio(tmp_path/'sounds/rain.ogg', make_scene({'rain': 0}, .5).waveform, 16000)
    run = explain('sounds', '--out', 'results').ok()
    assert sorted(p.name for p in (tmp_path/'results').iterdir()) == ['dog_MP3', 'dog_flac', 'dog_wav', 'explanations.csv', 'index.html', 'rain', *REGIONS]  # none over another
    assert run.out.count('The classifier says') == 4 and run.out.endswith('Open results/index.html in a browser.\n')

def test_the_regions_of_a_folder(tmp_path, explain):
    "One table in one time for Raven, in the order of names; a file that is broken has no time; another threshold is another explanation"
    (tmp_path/'sounds').mkdir()
    for name, seconds in (('b.wav', 1.5), ('a.flac', 1.), ('c.wav', 1.)): save_audio(tmp_path/f'sounds/{name}', make_scene({'siren': 0}, seconds).waveform, 16000)
    (tmp_path/'sounds/a-broken.wav').write_text('not audio')
    explain('sounds', '--out', 'out', '--region_threshold', '0').failed('a-broken.wav', lines=None)
    one = {name: pd.read_csv(tmp_path/f'out/{name}/regions.csv') for name in 'abc'}
    for name, seconds in dict(a=1, b=1.5, c=1).items(): assert one[name].iloc[:, :5].values == pytest.approx(np.array([[0, seconds, 0, 8000, 1]]), abs=.008)  # all of it, to half a frame
    raven = pd.read_csv(tmp_path/'out/regions.selections.txt', sep='\t')
    assert list(raven) == ['Selection', 'View', 'Channel', 'Begin Time (s)', 'End Time (s)', 'Low Freq (Hz)', 'High Freq (Hz)', 'Begin File', 'File Offset (s)', 'Annotation', 'Share']
    assert raven['Begin File'].tolist() == ['a.flac', 'b.wav', 'c.wav']
    assert raven[['Begin Time (s)', 'End Time (s)', 'File Offset (s)']].values == pytest.approx(np.array([[0, 1, 0], [1, 2.5, 0], [2.5, 3.5, 0]]), abs=.008)
    assert pd.read_csv(tmp_path/'out/regions.csv').recording.tolist() == ['a.flac', 'b.wav', 'c.wav'] and raven.Selection.tolist() == [1, 2, 3]
    assert [line.split('\t')[0] for line in (tmp_path/'out/regions.txt').read_text().splitlines()] == ['0.000000', '\\', '1.000000', '\\', '2.500000', '\\']
    explain('sounds', '--out', 'out', '--region-threshold', '1').failed('a-broken.wav', lines=None)
    assert len(pd.read_csv(tmp_path/'out/regions.csv')) == 0 == len(pd.read_csv(tmp_path/'out/b/regions.csv'))

def test_a_folder_without_recordings(tmp_path, explain):
    (tmp_path/'sounds').mkdir()
    explain('sounds').failed('No audio file .*in the folder sounds')

@pytest.mark.parametrize('out', ['file', 'file/below'])
def test_results_below_a_file(tmp_path, explain, dog, out):
    (tmp_path/'file').write_text('mine')
    before = contents(tmp_path)
    explain(dog, '--out', out).failed(f'{out}.*Name another')
    explain('--out', out).failed(f'{out}.*Name another')
    assert contents(tmp_path) == before

def test_full_disk(tmp_path, explain, dog):
    explain(dog, '--out', 'results', '--binary').ok()
    before = contents(tmp_path)
    explain('--out', 'scene', largest=1000).failed('scene')
    sizes = {name: (tmp_path/'results'/name).stat().st_size for name in ('explanation.flac', 'report.html')}
    for largest, out in ((1000, 'new'), *((size - 1, 'results') for size in sizes.values())):  # no room for the sound, for the report
        explain(dog, '--out', out, largest=largest).failed(out)
    assert contents(tmp_path) == before

def test_a_long_recording_on_a_full_disk(tmp_path, explain):
    "Half a minute and more, in windows: no room for the sounds while they are made, for the files, for the table"
    save_audio(tmp_path/'long.wav', make_scene({'rain': 0}, 32.).waveform, 16000)
    explain('long.wav', '--out', 'results').ok()
    before = contents(tmp_path)
    assert 'results/timeline.csv' in before and 'results/mask.png' not in before
    for largest in (1000, 500_000, 1_500_000): explain('long.wav', '--out', 'results', '--threshold', '.7', largest=largest).failed('results.*make room', lines=None)
    assert contents(tmp_path) == before

def test_misuse(explain, shell, dog):
    explain(dog, '--threshold', 'high').misused("threshold.*'high'")
    explain(dog, 'nowhere.wav').failed('no file or folder nowhere.wav')
    explain(dog, '--loud').misused('unrecognized arguments: --loud')
    explain(dog, '--threshold', '7').failed('threshold.*7')
    explain(dog, '--region-threshold', '7').failed('threshold.*7')
    shell('lmac-explain', dog, '--explainer', 'nowhere').failed("No explainer in 'nowhere': no config.json there. Bundled: ")

def test_damaged_weights(tmp_path, shell, explainer, dog):
    whole = contents(explainer)
    (tmp_path/'e').mkdir()
    def run(**changes):
        for name, data in (whole | {k.replace('_', '.'): v for k, v in changes.items()}).items(): (tmp_path/'e'/name).write_bytes(data)
        return shell('lmac-explain', dog, '--explainer', 'e')
    run().ok()
    run(decoder_safetensors=whole['decoder.safetensors'][:-1]).failed('decoder.safetensors is damaged.*expected sha256.*found')
    run(classifier_safetensors=b'').failed('classifier.safetensors is damaged')
    run(config_json=b'{}').failed('config.json is not the configuration of an explainer')
    run(config_json=b'{').failed('config.json is not the configuration of an explainer')
    run(config_json=whole['config.json'].replace(b'conv_block5', b'conv_block9')).failed("no layer 'conv_block9' to tap")
    run()
    (tmp_path/'e/decoder.safetensors').unlink()
    shell('lmac-explain', dog, '--explainer', 'e').failed('decoder.safetensors')


# ---- lmac-train ----

@pytest.fixture
def train(shell, tmp_path, write_config):
    "Run a stage with the tiny configuration of it and changes of that"
    def run(stage, *args, largest=None, **changes):
        return shell('lmac-train', stage, '--config', write_config(tmp_path/f'{stage}.yaml', stage, **changes), *args, largest=largest)
    return run

@pytest.mark.parametrize('text, message', [
    ('a: [1, 2', 'not valid yaml'), ('- a\n- b', 'must have at least the parts data and training'), ('', 'must have at least the parts'),
    ('just words', 'must have at least the parts'), ('data: {dataset: esc10}', 'must have at least the parts'), ('a: !!python/object:os.system {}', 'not valid yaml')])
def test_config_that_is_none(tmp_path, shell, text, message):
    (tmp_path/'bad.yaml').write_text(text)
    shell('lmac-train', 'classifier', '--config', 'bad.yaml').failed('bad.yaml.*' + message)
    shell('lmac-train', 'classifier', '--config', 'bad.yaml', '--epochs', '3').failed('bad.yaml.*' + message)

@pytest.mark.parametrize('changes, message', [
    (dict(stft=None), 'stft'), (dict(sample_rate=None), 'sample_rate'), (dict(taps=None), 'taps'), (dict(monitor=None), 'monitor'),
    (dict(network=None), 'network'), (dict(front_end=None), 'front_end'), (dict(augmentation=None), 'augmentation'),
    (dict(data__train=None), 'train'), (dict(data__dataset=None), 'dataset'),
    (dict(training__batch_size=None), 'batch_size'), (dict(training__seed=None), 'seed'), (dict(training__momentum=.9), 'momentum'),
    (dict(training__epochs=0), 'epochs must be at least 1. Found: 0'), (dict(training__epochs='many'), 'many|epochs|int'),
    (dict(training__batch_size=1000), 'fewer clips than one batch'), (dict(training=None), 'data and training'),
    (dict(training=5), 'training'), (dict(data='esc10'), 'data'),
    (dict(sample_rate=0), 'sample_rate.*Found: 0'), (dict(duration_s=0), 'duration_s'), (dict(taps=['conv_block9']), "no layer 'conv_block9'"),
    (dict(monitor__mode='best'), "'min' or 'max'. Found: 'best'"), (dict(monitor__monitor='valid_beauty'), "no 'valid_beauty'"),
    (dict(data__train=[7]), r'folds must be among \[1, 2, 3, 4, 5\]. Found: \[7\]'), (dict(data__valid=[]), 'folds must be among'),
    (dict(stft__hop_length=0), 'hop'), (dict(network__depth=3), 'depth'),
    (dict(constraints=dict(kept=.2)), "take 'constraints' out of the configuration of the classifier"), (dict(augmentation__echo=.3), 'echo'), (dict(front_end__n_mels=300), 'mel')], ids=str)
def test_configs_that_make_no_sense(tmp_path, train, changes, message):
    train('classifier', '--out', 'c', **changes).failed(message, lines=None)
    assert not (tmp_path/'c/config.json').exists() and not list(tmp_path.rglob('*.part'))

def test_misuse_of_train(train, shell):
    shell('lmac-train').misused('the following arguments are required: stage')
    shell('lmac-train', 'everything').misused("invalid choice: 'everything'.*classifier.*explainer.*finetune")
    train('classifier', '--epochs', 'many').misused("epochs.*'many'")
    train('classifier', '--out', 'c', '--mixed_precision', 'fp7').failed('fp7|fp8|bf16', lines=None)
    shell('lmac-train', 'classifier', '--config', 'nowhere').failed("No configuration 'nowhere'. Bundled: ")

def test_datasets_that_are_none(tmp_path, train):
    train('classifier', '--out', 'c', '--data', 'nowhere').failed('nowhere is no folder')
    (tmp_path/'flat').mkdir()
    save_audio(tmp_path/'flat/dog.wav', make_scene({'dog': 0}, 1.).waveform, 16000)
    train('classifier', '--out', 'c', '--data', 'flat').failed('flat holds no class folders, and 1 audio files directly')
    (tmp_path/'flat/cat').mkdir()
    train('classifier', '--out', 'c', '--data', 'flat').failed('No audio file .*1 of 1 class folders of flat: cat')
    (tmp_path/'flat/cat/cat.wav').write_text('meow')
    train('classifier', '--out', 'c', '--data', 'flat').failed('cat.wav', lines=None)
    train('classifier', '--out', 'c', '--data', 'esc10').failed('(?i)esc-?50|network|download', lines=None)  # not here, nor the network

def test_training_below_a_file(tmp_path, train):
    (tmp_path/'file').write_text('mine')
    for out in ('file', 'file/below'): train('classifier', '--out', out).failed('file')
    assert (tmp_path/'file').read_text() == 'mine'

def test_the_three_stages(trained):
    folder, runs = trained
    made = ['README.md', 'config.json', 'history.csv', 'history.png', *(f'training/{f}' for f in ('best.safetensors', 'checkpoint.pt', 'history.csv', 'history.png'))]
    assert names(folder/'classifier') == sorted(made + ['classifier.safetensors'])
    assert names(folder/'explainer') == sorted(made + ['classifier.safetensors', 'decoder.safetensors'])
    assert names(folder/'finetune') == sorted(made + ['decoder.safetensors'])  # the classifier is the explainer's
    for stage in STAGES:
        assert re.match(rf'{stage}: loss [\d.]+, .* on the test folds$', runs[stage].out.strip())
        assert 'epoch 2/2' in runs[stage].err and 'valid_loss=' in runs[stage].err
        config = json.loads((folder/stage/'config.json').read_text())
        assert config['classifier']['labels'] == ['clock_tick', 'rain', 'siren']
        assert config['provenance']['command'].startswith(f'lmac-train {stage} --config') and config['provenance']['epochs'] == 2
        assert {'loss'} <= set(config['provenance']['test']) and {'loss'} <= set(config['provenance']['validation'])
        card = (folder/stage/'README.md').read_text()
        assert f'# {stage}\n' in card and 'folds [1, 2, 3]' in card and '## Test' in card
        dataset = config['provenance']['config']['data']['dataset']
        assert dataset and not Path(dataset).is_absolute() and f'Trained on `{dataset}`' in card  # no folder of one machine
    for stage in ('explainer', 'finetune'):
        assert ('guidance' in (folder/stage/'history.csv').read_text()) == ('fine-tuned' in (folder/stage/'README.md').read_text()) == (stage == 'finetune')

def test_the_classifier_is_the_same_after_all_stages(trained):
    folder, _ = trained
    states = [LMAC.from_pretrained(folder/name).classifier.state_dict() for name in ('explainer', 'finetune')]
    for k, v in states[0].items(): assert torch.equal(v, states[1][k])
    assert (folder/'classifier/classifier.safetensors').read_bytes() == (folder/'explainer/classifier.safetensors').read_bytes()
    assert len({json.loads((folder/name/'config.json').read_text())['classifier']['sha256'] for name in STAGES}) == 1
    decoders = [LMAC.from_pretrained(folder/name).decoder.state_dict() for name in ('explainer', 'finetune')]
    assert not all(torch.equal(v, decoders[1][k]) for k, v in decoders[0].items())

@pytest.mark.parametrize('name', ['explainer', 'finetune'])
def test_explain_with_what_was_trained(tmp_path, shell, trained, tiny_data, name):
    run = shell('lmac-explain', tiny_data/'siren/siren-1.wav', '--explainer', trained[0]/name, '--out', 'results').ok()
    assert names(tmp_path/'results') == RESULTS and 'The classifier says' in run.out

def test_a_finished_run_again(trained, shell, write_config):
    "Nothing is trained anew, nothing is lost"
    folder, _ = trained
    before = contents(folder/'classifier')
    shell('lmac-train', 'classifier', '--config', folder/'classifier.yaml', '--out', folder/'classifier').ok()
    after = contents(folder/'classifier')
    assert sorted(after) == sorted(before)
    for file in ('classifier.safetensors', 'history.csv', 'training/checkpoint.pt'): assert after[file] == before[file]

def test_another_configuration_in_the_same_folder(trained, shell, train):
    folder, _ = trained
    before = contents(folder)
    train('classifier', '--out', folder/'classifier', training__lr=.5).failed("checkpoint.pt belongs to a run with other settings: .*'lr': 0.002.*expected.*'lr': 0.5", lines=None)
    train('classifier', '--out', folder/'classifier', '--epochs', '5').failed('other settings', lines=None)
    train('classifier', '--out', folder/'classifier', '--seed', '5').failed('other settings', lines=None)
    assert contents(folder) == before

def test_a_parent_that_does_not_fit(tmp_path, trained, shell, train, explainer):
    folder, _ = trained
    before = contents(folder)
    train('explainer', '--out', 'x', '--classifier', explainer).failed(r"data have the classes \['clock_tick', 'rain', 'siren'\], the classifier \['bell', 'rain', 'saw'\]")
    train('explainer', '--out', 'x', '--classifier', 'nowhere').failed("No explainer in 'nowhere'")
    train('finetune', '--out', 'x', '--explainer', folder/'classifier').failed('holds a classifier and no explainer')
    (tmp_path/'bad').mkdir()
    for name, data in contents(folder/'classifier').items():
        if '/' not in name: (tmp_path/'bad'/name).write_bytes(data[:-1] if name.endswith('.safetensors') else data)
    train('explainer', '--out', 'x', '--classifier', 'bad').failed('classifier.safetensors is damaged')
    train('explainer', '--out', 'x', '--classifier', folder/'classifier', domain='decibels').failed("domain.*'decibels'", lines=None)
    train('explainer', '--out', 'x', '--classifier', folder/'classifier', loss__weight_beauty=1.).failed('weight_beauty', lines=None)
    assert contents(folder) == before and not (tmp_path/'x/config.json').exists()

def test_full_disk_while_training(tmp_path, trained, train):
    "No room for a checkpoint: said in one line, nothing half-written stays, and with room the run goes on"
    train('classifier', '--out', 'c', largest=20_000).failed('training/(best.safetensors|checkpoint.pt)', lines=None)
    assert names(tmp_path/'c') == ['training/history.csv']
    train('classifier', '--out', 'c').ok()
    assert (tmp_path/'c/classifier.safetensors').read_bytes() == (trained[0]/'classifier/classifier.safetensors').read_bytes()

def test_a_loss_that_is_no_number(tmp_path, train):
    train('classifier', '--out', 'c', training__lr=1e20).failed('The loss became (nan|inf) in epoch [12]. Lower the learning rate', lines=None)


# ---- lmac-evaluate ----

def test_what_cannot_be_evaluated(tmp_path, shell, trained, tiny_data):
    folder, _ = trained
    (tmp_path/'file').write_text('mine')
    def evaluate(*args): return shell('lmac-evaluate', *args)
    evaluate('nowhere').failed("No explainer in 'nowhere'")
    evaluate(folder/'classifier').failed('holds a classifier and no explainer')
    evaluate(folder/'explainer', '--data', 'nowhere').failed('nowhere is no folder')
    evaluate(folder/'explainer', '--data', tiny_data, '--folds', '9').failed(r'folds must be among \[1, 2, 3, 4, 5\]. Found: \[9\]', lines=None)
    evaluate(folder/'explainer', '--data', tiny_data, '--folds', '4', '--out', 'r.csv').failed('r.csv', lines=None)
    evaluate(folder/'explainer', '--data', tiny_data, '--folds', '4', '--out', 'file/r.json').failed('file', lines=None)
    evaluate(folder/'explainer', '--folds', 'many').misused("folds.*'many'")
    assert sorted(p.name for p in tmp_path.iterdir()) == ['file'] and (tmp_path/'file').read_text() == 'mine'

@pytest.mark.slow
def test_evaluate(tmp_path, shell, trained, tiny_data):
    "The same numbers every time, to the bit, and but for rounding the same in batches of another size"
    folder, _ = trained
    found = []
    for out, size in (('a', 16), ('b', 16), ('c', 2)):
        run = shell('lmac-evaluate', folder/'explainer', '--data', tiny_data, '--out', f'r/{out}.json', '--batch_size', size).ok()
        assert 'Fid-In' in run.out and f'r/{out}.json' in run.out
        rows = json.loads((tmp_path/f'r/{out}.json').read_text())['results']
        found.append({(r['mask'], r['scored_on'], r['metric'], k): r[k] for r in rows for k in ('mean', 'low', 'high')})
    assert found[0] == found[1] and {'AI', 'AD', 'AG', 'FF', 'Fid-In', 'SPS', 'COMP'} <= {name for _, _, name, _ in found[0]}
    kept = [k for k in found[0] if k[2] != 'AI']  # AI counts probabilities that are almost ties
    assert {k: found[2][k] for k in kept} == pytest.approx({k: found[0][k] for k in kept}, rel=.01, abs=.01)
    assert not list((tmp_path/'r').glob('*.part'))


def test_options_with_hyphens(tmp_path, script, environment, explainer):
    "Options may be written with hyphens or underscores"
    for option in ('--native-rate', '--native_rate'):
        save_audio(tmp_path/'a.wav', make_scene({'rain': 0}, 1., 22050).waveform, 22050)
        shell_run(script, environment, 'lmac-explain', 'a.wav', option, '--explainer', explainer, '--out', tmp_path/option, cwd=tmp_path).ok()
        assert load_audio(tmp_path/option/'explanation.flac')[1] == 22050


def test_the_gallery_is_named_where_some_recordings_are_broken(tmp_path, capsys):
    (tmp_path/'in').mkdir()
    save_audio(tmp_path/'in'/'a.wav', make_scene({'dog': 0}).waveform, 16000)
    (tmp_path/'in'/'broken.wav').write_bytes(b'RIFFnothing')
    with pytest.raises(SystemExit): lmac.cli.lmac_explain([str(tmp_path/'in')], out=str(tmp_path/'out'))
    said = capsys.readouterr()
    assert said.out.endswith(f"Open {tmp_path/'out'/'index.html'} in a browser.\n") and '1 of 2 recordings could not be explained: broken.wav' in said.err
    assert (tmp_path/'out'/'index.html').is_file()
    with pytest.raises(SystemExit): lmac.cli.lmac_explain([str(tmp_path/'in')], out=str(tmp_path/'out'), explainer='esc10')
    assert 'Open' not in capsys.readouterr().out  # of nothing that this command has made


def test_a_folder_of_another_explainers_results_is_left_alone(tmp_path, capsys):
    "Nothing of it is lost, unless that is what was asked for; other options of the same explainer go on"
    (tmp_path/'in').mkdir()
    save_audio(tmp_path/'in'/'a.wav', make_scene({'dog': 0}).waveform, 16000)
    def run(**options): lmac.cli.lmac_explain([str(tmp_path/'in')], out=str(tmp_path/'out'), no_report=True, **options)
    run()
    before = (tmp_path/'out'/'a'/'explanation.json').read_bytes()
    with pytest.raises(SystemExit): run(explainer='esc10')
    assert 'results of another explainer' in capsys.readouterr().err and (tmp_path/'out'/'a'/'explanation.json').read_bytes() == before
    run(target='rain')
    assert json.loads((tmp_path/'out'/'a'/'explanation.json').read_text())['label'] == 'rain'
    run(explainer='esc10', overwrite=True)
    assert (tmp_path/'out'/'a'/'explanation.json').read_bytes() != before
