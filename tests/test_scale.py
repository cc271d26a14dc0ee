"""Several processes, gradient accumulation and compilation: the same results, or as good ones, from more hands.

Two processes on one machine, connected by gloo, which find the environment of a launcher (commands.py); one test starts them with accelerate.
"""
import json
import re
import shutil
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lmac.audio import make_scene, save_audio
from lmac.training import check_compiler

from commands import free_port

@pytest.fixture(scope='module')
def run(commands): return commands

def names(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
def history(folder): return pd.read_csv(folder/'history.csv').drop(columns='seconds')

def difference(a, b):
    "Largest difference between two files of weights"
    a, b = load_file(a), load_file(b)
    assert list(a) == list(b)
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


# ---- training ----

@pytest.fixture(scope='module')
def twice(trained, run):
    "The toy's classifier and explainer, which one process trained, and the same by two processes: their folder, and what the two printed"
    folder, _ = trained
    return folder, {stage: [r.ok() for r in run(2, 'lmac-train', stage, '--config', folder/f'{stage}.yaml', '--out', f'{stage}-2', *args, cwd=folder)]
                    for stage, args in (('classifier', []), ('explainer', ['--classifier', 'classifier']))}

FILES = dict(classifier='classifier.safetensors', explainer='decoder.safetensors')

@pytest.mark.parametrize('stage', FILES)
def test_two_processes_train_as_well_as_one(twice, stage):
    "With augmentation the draws differ, and the weights with them; the curves are those of the same training"
    folder, _ = twice
    one, two = folder/stage, folder/f'{stage}-2'
    assert difference(one/FILES[stage], two/FILES[stage]) > 0
    a, b = history(one), history(two)
    assert list(a) == list(b) and len(a) == len(b) and 'valid_loss' in a
    assert b.valid_loss.tolist() == pytest.approx(a.valid_loss.tolist(), rel=.2)

def test_two_processes_take_mixtures_apart(trained, run, write_config):
    folder, _ = trained
    config = write_config(folder/'sources.yaml', 'explainer', augmentation__p_absent=.4,
                          sources=dict(weight_source=.6, p_single=.3, single=dict(weight_sparsity=2.)), constraints=dict(kept=.2, limit=3.))
    for n in (1, 2): [r.ok() for r in run(n, 'lmac-train', 'explainer', '--config', config, '--classifier', 'classifier', '--out', f'sources-{n}', cwd=folder)]
    a, b = (history(folder/f'sources-{n}') for n in (1, 2))
    saved = torch.load(folder/'sources-1/training/checkpoint.pt', weights_only=True)
    assert saved['callbacks']['Constraints']['smooth'].keys() == {'part', 'rest', 'kept'} and max(saved['callbacks']['Constraints']['log_factor'].values()) > 0
    assert 'train_source' in a and b.valid_source.tolist() == pytest.approx(a.valid_source.tolist(), abs=1.)

def test_a_batch_that_cannot_be_shared(trained, run):
    folder, _ = trained
    for r in run(2, 'lmac-train', 'classifier', '--config', folder/'classifier.yaml', '--out', 'odd', '--batch_size', 5, cwd=folder):
        assert r.status == 1 and 'must be a multiple of 2 processes. Found: 5.' in r.err and 'Traceback' not in r.err

def test_one_process_writes_and_speaks(twice):
    folder, runs = twice
    for stage in FILES:
        assert names(folder/f'{stage}-2') == names(folder/stage)
        main, other = runs[stage]
        assert main.out.startswith(f'{stage}-2: loss ') and 'epoch 2/2' in main.err
        assert other.out == '' and 'epoch' not in other.err
        made = json.loads((folder/f'{stage}-2/config.json').read_text())['provenance']
        assert made['machine']['processes'] == 2 and set(made['test']) == set(json.loads((folder/f'{stage}/config.json').read_text())['provenance']['test'])

STOP = '''import lmac.training as t
old = t.Checkpoint.after_epoch
def after_epoch(self, learner):
    old(self, learner)
    raise SystemExit(3)
t.Checkpoint.after_epoch = after_epoch'''

@pytest.mark.parametrize('first, then', [(1, 2), (2, 1)])
def test_begun_with_some_processes_and_continued_with_others(trained, run, first, then):
    folder, _ = trained
    out = folder/f'from-{first}-to-{then}'
    args = 'lmac-train', 'classifier', '--config', folder/'classifier.yaml', '--out', out
    assert [r.status for r in run(first, *args, before=STOP)] == [3] * first
    assert len(pd.read_csv(out/'training/history.csv')) == 1 and not (out/'config.json').exists()
    for r in run(then, *args): r.ok()
    assert len(history(out)) == 2 and history(out).valid_loss.tolist() == pytest.approx(history(folder/'classifier').valid_loss.tolist(), rel=.2)

def test_accumulated_batches_of_two_processes(trained, run, write_config):
    folder, _ = trained
    config = write_config(folder/'guided.yaml', 'explainer', guidance=dict(weight=4.0, threshold=0.3, binarization=0.35))
    for n in (1, 2):
        for r in run(n, 'lmac-train', 'explainer', '--config', config, '--classifier', 'classifier', '--out', f'accumulated-{n}',
                     '--batch_size', 2, '--accumulate', 2, '--epochs', 1, cwd=folder): r.ok()
    a, b = (folder/f'accumulated-{n}/decoder.safetensors' for n in (1, 2))
    assert difference(a, b) > 0
    assert json.loads((folder/'accumulated-2/config.json').read_text())['provenance']['config']['training']['accumulate'] == 2

FAIL = '''import lmac.training as t
old = t.Learner.step
def step(self, batch):
    if rank == 1 and self.epoch == 1: raise OSError(28, 'No space left on device')
    return old(self, batch)
t.Learner.step = step'''

def test_an_error_in_one_process_ends_the_other(trained, run):
    "Nobody waits for somebody who is gone; the checkpoint of the epoch before stays"
    folder, _ = trained
    start = time.monotonic()
    main, other = run(2, 'lmac-train', 'classifier', '--config', folder/'classifier.yaml', '--out', 'failed', cwd=folder, before=FAIL)
    assert time.monotonic() - start < 60
    assert main.status == other.status == 1 and 'Traceback' not in main.err + other.err
    assert 'lmac-train: error: No space left on device' in other.err
    assert 'lmac-train: error: Another process has ended' in main.err
    assert torch.load(folder/'failed/training/checkpoint.pt', weights_only=True)['epoch'] == 1

@pytest.mark.parametrize('changes, message', [(dict(training__lr=1e20), 'loss became (nan|inf) in epoch'), (dict(monitor__monitor='valid_beauty'), "no 'valid_beauty' to choose the best epoch by")], ids=str)
def test_what_goes_wrong_in_all_processes(tmp_path, run, write_config, changes, message):
    config = write_config(tmp_path/'c.yaml', 'classifier', **changes)
    for r in run(2, 'lmac-train', 'classifier', '--config', config, '--out', 'c', cwd=tmp_path):
        assert r.status == 1 and 'Traceback' not in r.err
        assert re.search('lmac-train: error: .*' + message, r.err), r.err[-500:]

PLAIN = '''
import sys, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from safetensors.torch import save_file
from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier
from lmac.data import loader
from lmac.decoder import MaskDecoder
from lmac.spectrogram import STFT, LogMel
from lmac.training import Callback, ExplainerTask, Learner, Task
names = ['clock_tick', 'siren', 'rain']
data = TensorDataset(torch.cat([make_scene({names[i % 3]: 0}, .5, seed=i).waveform * 10**(-(i % 4) / 2) for i in range(16)]), torch.arange(16) % 3)
stft, front_end = STFT(512, 256), LogMel(n_fft=512, n_mels=40)
class Classify(Task):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trained = Cnn14(3, width=4, n_mels=40, max_width=32, dropout=0, head_dropout=0)
    def logits(self, waveform): return self.trained(front_end(stft(waveform)[0]))
    def forward(self, waveform, target): return dict(loss=F.cross_entropy(self.logits(waveform), target))
    def validate(self, waveform, target): return dict(accuracy=(self.logits(waveform).argmax(1) == target).float())
class Explain(ExplainerTask):
    def augment(self, waveform): return waveform, waveform  # no augmentation: nothing is drawn
def explain():
    torch.manual_seed(0)
    tapped = TappedClassifier(Classify().trained, front_end, ['conv_block1', 'conv_block3', 'conv_block5'], names, 16000, duration_s=.5)
    return Explain(tapped, MaskDecoder.for_classifier(tapped, stft, dropout=0.), stft, p_binary=0.)
for name, task in (('classify', Classify()), ('explain', explain())):
    learner = Learner(task, loader(data, 8, shuffle=True, drop_last=True), loader(data, 3), epochs=3, lr=2e-3, weight_decay=.01)
    gradients = []
    class Note(Callback):
        "The gradients of the first step, noted as the optimiser is about to clear them"
        def before_epoch(self, learner):
            zero_grad = learner.optimizer.zero_grad
            def note(*args, **kwargs):
                if not gradients: gradients.extend(p.grad.clone(memory_format=torch.contiguous_format) for p in learner.task.trained.parameters() if p.grad is not None)
                zero_grad(*args, **kwargs)
            learner.optimizer.zero_grad = note
    learner.callbacks = [Note()]
    rows = learner.fit()
    assert not any(type(m).__name__.startswith('Sync') for m in task.trained.modules())
    if rank == 0:
        save_file({k: v.clone(memory_format=torch.contiguous_format) for k, v in task.trained.state_dict().items()}, f'{name}-{learner.count}.safetensors')
        save_file({str(i): g for i, g in enumerate(gradients)}, f'{name}-{learner.count}-gradient.safetensors')
        rows.to_csv(f'{name}-{learner.count}.csv')
'''

@pytest.fixture(scope='module')
def plain(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp('plain')
    for n in (1, 2): [r.ok() for r in run(n, before=PLAIN, cwd=folder)]
    return folder

@pytest.mark.parametrize('name', ['classify', 'explain'])
def test_gradients_of_two_processes_are_those_of_one(plain, name):
    "Augmentation off: gradients, batch normalisation's statistics, weights after three epochs and validation, by DDP and synchronised batch normalisation"
    one, two = (load_file(plain/f'{name}-{n}-gradient.safetensors') for n in (1, 2))
    assert len(one) > 10
    for k in one: assert (one[k] - two[k]).norm() <= 1e-3 * one[k].norm() + 1e-6, k
    assert difference(plain/f'{name}-1.safetensors', plain/f'{name}-2.safetensors') < 2e-3
    a, b = (pd.read_csv(plain/f'{name}-{n}.csv') for n in (1, 2))
    for k in a.columns.drop('seconds'): assert b[k].tolist() == pytest.approx(a[k].tolist(), rel=2e-3, abs=2e-3), k


# ---- as a user starts them ----

def test_started_by_accelerate(twice, script, environment):
    folder, _ = twice
    command = [script('accelerate'), 'launch', '--multi_gpu', '--num_processes', '2', '--main_process_port', free_port(), script('lmac-train'),
               'classifier', '--config', folder/'classifier.yaml', '--out', 'launched']
    found = subprocess.run([str(c) for c in command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.count('launched: loss') == 1
    assert difference(folder/'classifier-2/classifier.safetensors', folder/'launched/classifier.safetensors') < 2e-4


# ---- compilation ----

def test_compilation_without_a_compiler(trained, run):
    folder, _ = trained
    r, = run(1, 'lmac-train', 'classifier', '--config', folder/'classifier.yaml', '--out', 'compiled', '--compile', cwd=folder,
             before="import os; os.environ['PATH'] = ''; os.environ.pop('CXX', None)")
    assert r.status == 1 and 'torch.compile needs a C++ compiler' in r.err and 'Traceback' not in r.err

COMPILED = '''
import torch
import torch._inductor.config as config; config.cpp.simdlen = config.compile_threads = 1
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from lmac.data import loader
from lmac.training import Checkpoint, Learner, Task
class Plain(Task):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trained = nn.Linear(4, 3)
    def forward(self, waveform, target): return dict(loss=F.cross_entropy(self.trained(waveform), target))
    def validate(self, waveform, target): return dict(accuracy=(self.trained(waveform).argmax(1) == target).float())
torch.manual_seed(1)
data = TensorDataset(torch.randn(11, 4), torch.arange(11) % 3)
learner = Learner(Plain(), loader(data, 4, shuffle=True), loader(data, 4), folder="compiled", callbacks=[Checkpoint("valid_accuracy", "max")], compile=True, epochs=2, lr=.1)
rows = learner.fit()
print(learner.task.trained.weight.flatten().tolist(), rows.valid_accuracy.tolist())
assert "Compiled" not in str(type(learner.task.trained)) and learner.task.trained._compiled_call_impl is None
'''

@pytest.mark.slow
def test_compiled_code_learns_the_same(run, tmp_path):
    try: check_compiler()
    except ValueError as e: pytest.skip(str(e))
    r, = run(1, before=COMPILED, cwd=tmp_path)
    plain, = run(1, before=COMPILED.replace('compile=True, ', '').replace('"compiled"', '"plain"'), cwd=tmp_path)
    weights, others = (json.loads(x.ok().out.split(']')[0] + ']') for x in (r, plain))
    assert weights == pytest.approx(others, abs=1e-5)
    assert list(load_file(tmp_path/'compiled/best.safetensors')) == ['bias', 'weight']
    assert list(torch.load(tmp_path/'compiled/checkpoint.pt', weights_only=True)['weights']) == ['weight', 'bias']


# ---- lmac-evaluate ----

def result(file):
    found = json.loads(file.read_text())
    return {k: v for k, v in found.items() if k not in ('timing', 'seconds', 'provenance')}

@pytest.mark.parametrize('args', [['--batch_size', 2], ['--methods', 'lmac', 'energy', 'saliency', '--conditions', 'clean', 'mixture@5', '--quick', '--batch_size', 3]], ids=['evaluate', 'benchmark'])
def test_two_processes_measure_what_one_does(trained, tiny_data, run, args):
    folder, _ = trained
    files = {}
    for n in (1, 2):
        out = folder/f'{len(args)}-{n}.json'
        runs = run(n, 'lmac-evaluate', 'explainer', '--data', tiny_data, '--folds', 4, 5, '--out', out, *args, cwd=folder)
        for r in runs: r.ok()
        assert runs[0].out and all(r.out == '' for r in runs[1:])
        files[n] = out
        assert json.loads(out.read_text())['provenance']['machine']['processes'] == n
    assert result(files[1]) == result(files[2])
    assert files[1].with_suffix('.csv.gz').read_bytes() == files[2].with_suffix('.csv.gz').read_bytes()
    assert not list(folder.glob('*.parts'))

def test_scenes_are_made_once(trained, run):
    "The clips that are made for the occasion are the same in both processes, and are gone afterwards"
    folder, _ = trained
    temporary = folder/'tmp'
    temporary.mkdir()
    before = f"import os, tempfile; tempfile.tempdir = {str(temporary)!r}"
    runs = run(2, 'lmac-evaluate', 'explainer', '--data', 'scenes', '--methods', 'energy', 'random', '--quick', '--out', folder/'scenes.json', cwd=folder, before=before)
    for r in runs: r.ok()
    assert json.loads((folder/'scenes.json').read_text())['provenance']['dataset']['n_clips'] == 6 and not list(temporary.iterdir())


# ---- lmac-explain ----

@pytest.fixture
def sounds(tmp_path):
    "Six recordings in two folders, and one that is none"
    for i in range(6):
        (tmp_path/f'sounds/{i % 2}').mkdir(parents=True, exist_ok=True)
        save_audio(tmp_path/f'sounds/{i % 2}/{i}.wav', make_scene({'siren': 0}, 1., seed=i).waveform, 16000)
    (tmp_path/'sounds/0/text.wav').write_text('no sound')
    return tmp_path/'sounds'

def explanations(folder): return {p.parent.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob('explanation.json')}

def test_a_folder_shared_by_two_processes(trained, run, sounds, tmp_path):
    folder, _ = trained
    args = 'lmac-explain', sounds, '--explainer', folder/'explainer', '--out'
    (one,), two = run(1, *args, tmp_path/'one'), run(2, *args, tmp_path/'two')
    assert (one.status, two[0].status, two[1].status) == (1, 1, 0)
    for r in (one, two[0]): assert 'lmac-explain: error: 1 of 7 recordings could not be explained: text.wav' in r.err and 'Traceback' not in r.err
    assert names(tmp_path/'one') == names(tmp_path/'two')
    said = [r.out.count('The classifier says') for r in two]
    assert sum(said) == 6 and min(said) > 0  # both had their part
    assert '7/7' in two[0].err and 'clip' not in two[1].err  # one shows progress
    tables = [pd.read_csv(tmp_path/name/'explanations.csv') for name in ('one', 'two')]
    pd.testing.assert_frame_equal(*tables)
    for file in ('regions.csv', 'regions.txt', 'regions.selections.txt'): assert (tmp_path/'one'/file).read_bytes() == (tmp_path/'two'/file).read_bytes()
    assert tables[0].recording.tolist() == ['0/0.wav', '0/2.wav', '0/4.wav', '0/text.wav', '1/1.wav', '1/3.wav', '1/5.wav']
    for row in tables[1].itertuples():
        if row.recording == '0/text.wav':
            assert 'text.wav' in row.error and row.label != row.label
            continue
        found = json.loads((tmp_path/'two'/row.explanation/'explanation.json').read_text())
        assert (found['label'], found['mask_mean']) == (row.label, row.mask_mean) and row.error != row.error
        for file in ('explanation.flac', 'residual.flac', 'mask.png', 'thumbnail.png'):
            assert (tmp_path/'one'/row.explanation/file).read_bytes() == (tmp_path/'two'/row.explanation/file).read_bytes()

def test_what_was_explained_is_not_explained_again(trained, run, sounds, tmp_path):
    folder, _ = trained
    def explain(*args, n=1, explainer='explainer', before=''):
        return run(n, 'lmac-explain', sounds, '--explainer', folder/explainer, '--out', sounds/'out', *args, before=before)
    (sounds/'0/text.wav').unlink()
    stop = '''import lmac.scale.folder
old, calls = lmac.scale.folder.FolderRun.explain, []
def explain(*args):
    calls.append(1)
    if len(calls) == 3: raise KeyboardInterrupt
    return old(*args)
lmac.scale.folder.FolderRun.explain = explain'''
    assert explain(before=stop)[0].status == 130  # interrupted at the third
    assert len(before := explanations(sounds/'out')) in (2, 3) and not (sounds/'out/explanations.csv').exists()  # with two cores, another was being explained
    again = explain(n=2)
    assert [r.ok().out.count('The classifier says') for r in again][0] <= 6 - len(before) and f'{len(before)} of 6 had been explained before' in again[0].out
    after = explanations(sounds/'out')  # in a folder of the recordings, and taken for none of them
    assert len(after) == 6 and before.items() <= after.items()
    table = pd.read_csv(sounds/'out/explanations.csv')
    assert len(table) == 6 and table.error.isna().all()
    assert '6 of 6' in explain()[0].ok().out and explanations(sounds/'out') == after
    save_audio(sounds/'1/1.wav', make_scene({'rain': 0}, 1.).waveform, 16000)  # another recording of that name
    (sounds/'out/0/2/explanation.json').write_text('{')  # damaged
    (sounds/'out/0/4/regions.csv').unlink()  # explained before there were regions
    assert '3 of 6' in explain()[0].ok().out
    changed = explanations(sounds/'out')
    assert {k for k in after if after[k] != changed[k]} == {'1/1', '0/2', '0/4'} and (sounds/'out/0/4/regions.csv').exists()
    assert set(pd.read_csv(sounds/'out/regions.csv').recording) <= {f'{i % 2}/{i}.wav' for i in range(6)}

def test_what_would_come_out_otherwise_is_explained_again(twice, run, sounds, tmp_path):
    folder, _ = twice
    for i in (2, 4): (sounds/f'0/{i}.wav').unlink()
    shutil.rmtree(sounds/'1')
    (sounds/'0/text.wav').unlink()
    def explained(*args, explainer='explainer'):
        r, = run(1, 'lmac-explain', sounds, '--explainer', folder/explainer, '--out', tmp_path/'out', *args)
        return r.ok().out.count('The classifier says')
    assert [explained(), explained(), explained('--binary'), explained('--binary'), explained('--binary', '--overwrite')] == [1, 0, 1, 0, 1]
    r, = run(1, 'lmac-explain', sounds, '--explainer', folder/'explainer-2', '--out', tmp_path/'out', '--binary')  # other weights, if only by a rounding
    assert r.status == 1 and 'results of another explainer' in r.err
    assert explained('--binary', '--overwrite', explainer='explainer-2') == 1

def test_one_recording_is_one_process_s_work(trained, run, sounds, tmp_path):
    folder, _ = trained
    main, other = run(2, 'lmac-explain', sounds/'1/1.wav', '--explainer', folder/'explainer', '--out', tmp_path/'out')
    assert 'The classifier says' in main.ok().out and other.ok().out == '' and (tmp_path/'out/report.html').exists()
