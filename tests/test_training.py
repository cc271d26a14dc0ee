"""Training that is killed, runs out of disk or goes wrong; and what a step must not depend on.

`lmac-train` is killed with SIGKILL for real, on a dataset of synthetic scenes; all else runs in this process.
"""
import errno
import io
import json
import os
import pickle
import signal
import subprocess
import time

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier
from lmac.data import loader
from lmac.decoder import MaskDecoder
from lmac.masking import ExtendedMaskingLoss, Guidance
from lmac.spectrogram import STFT, LogMel
from lmac.models.classifiers import ClassifierTask
from lmac.training import Callback, Checkpoint, ExplainerTask, Learner, Log, Progress, Task

NAMES = ['clock_tick', 'rain', 'siren']


@pytest.fixture(autouse=True)
def afresh(one_thread):
    "One thread, and an accelerate that has not been told a precision yet"
    for state in (AcceleratorState, GradientState): state._reset_state()

def scenes(n, seed=0):
    clips = [make_scene({NAMES[i % 3]: 0}, .5, seed=seed + i).waveform for i in range(n)]
    return TensorDataset(torch.cat(clips), torch.arange(n) % 3)

@pytest.fixture(scope='module')
def train(): return scenes(24)

@pytest.fixture(scope='module')
def valid(): return scenes(6, 1000)

class Tiny(Task):
    "Band levels through one linear layer"
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.trained, self.stft = nn.Linear(4, 3), STFT(512, 256)
    def logits(self, waveform): return self.trained(F.adaptive_avg_pool1d(self.stft(waveform)[0].mean(-1).log1p(), 4))
    def forward(self, waveform, target): return dict(loss=F.cross_entropy(self.logits(waveform), target))
    def validate(self, waveform, target):
        logits = self.logits(waveform)
        return dict(loss=F.cross_entropy(logits, target, reduction='none'), accuracy=(logits.argmax(1) == target).float())

def classifier_task(seed=0):
    torch.manual_seed(seed)
    model = Cnn14(3, width=4, n_mels=40, max_width=16)
    return ClassifierTask(model, LogMel(n_fft=512, n_mels=40), STFT(512, 256), 16000)

def explainer_task(seed=0, **kwargs):
    task = classifier_task(seed)
    classifier = TappedClassifier(task.trained, task.front_end, ['conv_block2', 'conv_block4'], NAMES, 16000, duration_s=.5)
    decoder = MaskDecoder.for_classifier(classifier, task.stft, channels=8, head_channels=4)
    return ExplainerTask(classifier, decoder, task.stft, **kwargs)

def learner(task, train, valid, folder=None, batch=6, callbacks=(Log(), Checkpoint()), **kwargs):
    return Learner(task, loader(train, batch, shuffle=True), loader(valid, 3), folder=folder, callbacks=list(callbacks),
                   **dict(dict(epochs=3, lr=.05), **kwargs))

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
def history(folder): return pd.read_csv(folder/'history.csv', dtype=str).drop(columns='seconds')

def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('epochs, warmup', [(10, .1), (4, .25), (2, .5), (3, .1)])
def test_a_warmup_of_one_step(epochs, warmup):
    "PyTorch's schedule divides by the length of the warmup less one step"
    train = TensorDataset(torch.randn(2, 8), torch.zeros(2, dtype=torch.long))
    learner = Learner(Tiny(), loader(train, 2), loader(train, 2), epochs=epochs, lr=.1, warmup=warmup)
    learner.fit()
    assert len(learner.history) == epochs and learner.schedule.get_last_lr()[0] < .1


# ---- kill -9 ----

EPOCHS = 10

class Runner:
    "Runs `lmac-train`, and kills it when its log has so many rows"
    def __init__(self, command, environment): self.command, self.environment = command, environment

    def whole(self, *args):
        found = subprocess.run([self.command, *map(str, args)], env=self.environment, capture_output=True, text=True, timeout=300)
        assert found.returncode == 0, found.stderr[-2000:]

    def killed(self, rows, out, *args):
        log = out/'training/history.csv'
        with open(out.parent/f'{out.name}.log', 'wb') as file:
            process = subprocess.Popen([self.command, *map(str, args), '--out', str(out)], env=self.environment, stdout=file, stderr=file)
            end = time.monotonic() + 300
            while not (log.exists() and log.read_bytes().count(b'\n') > rows) and process.poll() is None and time.monotonic() < end:
                time.sleep(.002)
            time.sleep(.02)  # into the next epoch
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, f"it ended before it could be killed: {(out.parent/f'{out.name}.log').read_text()[-2000:]}"
        assert not (out/'config.json').exists()
        assert rows <= len(history(out/'training')) < EPOCHS

@pytest.fixture(scope='module')
def runner(script, environment): return Runner(script('lmac-train'), environment)

@pytest.fixture(scope='module')
def whole_classifier(tmp_path_factory, runner, write_config):
    "A folder with a classifier, trained without interruption, and its configuration"
    folder = tmp_path_factory.mktemp('runs')
    config = write_config(folder/'classifier.yaml', 'classifier', training__epochs=EPOCHS)
    runner.whole('classifier', '--config', config, '--out', folder/'whole')
    return folder/'whole', config

def assert_same_run(a, b, files):
    for file in files: assert (a/file).read_bytes() == (b/file).read_bytes(), file
    assert history(a).equals(history(b)) and len(history(a)) == EPOCHS
    made = [json.loads((folder/'config.json').read_text()) for folder in (a, b)]
    for m in made: m['provenance'] = {k: v for k, v in m['provenance'].items() if k not in ('command', 'seconds')}
    assert made[0] == made[1]
    assert sorted(contents(a)) == sorted(contents(b))  # and nothing half-written

def test_killed_classifier_goes_on_to_the_same_bits(tmp_path, runner, whole_classifier):
    whole, config = whole_classifier
    args = 'classifier', '--config', config
    runner.killed(3, tmp_path/'killed', *args)
    runner.killed(8, tmp_path/'killed', *args)  # and once more
    for part in tmp_path.rglob('*.part'): part.unlink()  # what a kill in the middle of writing leaves, beside whole files
    runner.whole(*args, '--out', tmp_path/'killed')
    assert_same_run(whole, tmp_path/'killed', ['training/best.safetensors', 'classifier.safetensors'])

def test_killed_explainer_goes_on_to_the_same_bits(tmp_path, runner, whole_classifier, write_config):
    classifier, _ = whole_classifier
    config = write_config(tmp_path/'explainer.yaml', 'explainer', training__epochs=EPOCHS)
    before, args = contents(classifier), ('explainer', '--config', config, '--classifier', classifier)
    runner.whole(*args, '--out', tmp_path/'whole')
    runner.killed(4, tmp_path/'killed', *args)
    for part in tmp_path.rglob('*.part'): part.unlink()
    runner.whole(*args, '--out', tmp_path/'killed')
    assert_same_run(tmp_path/'whole', tmp_path/'killed', ['training/best.safetensors', 'decoder.safetensors', 'classifier.safetensors'])
    assert contents(classifier) == before
    assert (tmp_path/'whole/classifier.safetensors').read_bytes() == before['classifier.safetensors']

@pytest.mark.parametrize('make', [Tiny, classifier_task, explainer_task])
@pytest.mark.parametrize('moment', ['before_epoch', 'after_batch', 'after_epoch'])
def test_interrupted_anywhere(tmp_path, train, valid, make, moment):
    "Whatever the moment, the run that goes on ends with the same bits; random numbers drawn meanwhile do not matter"
    class Die(Callback):
        order = 15  # between the log and the checkpoint
    def die(self, learner):
        if learner.epoch == 1 and getattr(learner, 'batch', 0) == (2 if moment == 'after_batch' else learner.batch): raise SystemError
    setattr(Die, moment, die)
    whole = learner(make(), train, valid, tmp_path/'a')
    whole.fit()
    with pytest.raises(SystemError): learner(make(), train, valid, tmp_path/'b', callbacks=[Log(), Checkpoint(), Die()]).fit()
    again = learner(make(5), train, valid, tmp_path/'b')  # begun from other weights: the checkpoint's count
    torch.rand(17)
    if isinstance(again.task, ExplainerTask): again.task.classifier.load_state_dict(whole.task.classifier.state_dict())
    again.fit()
    assert same_weights(whole.task.trained, again.task.trained)
    assert history(tmp_path/'a').equals(history(tmp_path/'b'))
    assert (tmp_path/'a/best.safetensors').read_bytes() == (tmp_path/'b/best.safetensors').read_bytes()

def test_interrupted_after_epochs_were_skipped(tmp_path, train, valid):
    class Enough(Callback):
        def after_epoch(self, learner):
            if learner.epoch == 1: learner.skip_to_end(.3)
    class Die(Callback):
        def before_epoch(self, learner):
            if learner.epoch == 8: raise SystemError
    def make(folder, *more): return learner(Tiny(), train, valid, folder, epochs=10, callbacks=[Enough(), Log(), Checkpoint('epoch', 'max'), *more])
    whole = make(tmp_path/'a')
    assert whole.fit().epoch.tolist() == [1, 2, 8, 9, 10]
    with pytest.raises(SystemError): make(tmp_path/'b', Die()).fit()
    again = make(tmp_path/'b')
    again.fit()
    assert same_weights(whole.task.trained, again.task.trained) and history(tmp_path/'a').equals(history(tmp_path/'b'))
    assert (tmp_path/'a/best.safetensors').read_bytes() == (tmp_path/'b/best.safetensors').read_bytes()

def test_a_finished_run_is_not_trained_again(tmp_path, train, valid):
    first = learner(Tiny(), train, valid, tmp_path)
    first.fit()
    before = contents(tmp_path)
    again = learner(Tiny(7), train, valid, tmp_path)
    assert len(again.fit()) == 3 and same_weights(first.task.trained, again.task.trained)
    after = contents(tmp_path)
    assert {k: v for k, v in after.items() if k != 'history.png'} == {k: v for k, v in before.items() if k != 'history.png'}

def test_the_same_seed_gives_the_same_bits(train, valid):
    a, b, c = (learner(classifier_task(), train, valid, callbacks=[], seed=seed) for seed in (0, 0, 1))
    for run in (a, b, c): run.fit()
    assert same_weights(a.task.trained, b.task.trained) and not same_weights(a.task.trained, c.task.trained)


# ---- checkpoints ----

def full_disk(patch, after):
    calls, real = [], os.fsync
    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) > after: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor)
    patch.setattr(os, 'fsync', fail)

@pytest.mark.parametrize('after, file', [(3, 'history.csv'), (4, 'best.safetensors'), (5, 'checkpoint.pt')])
def test_full_disk_while_saving(tmp_path, monkeypatch, train, valid, after, file):
    "An epoch writes three files; whichever of the second epoch's finds no room, the first epoch's checkpoint stays"
    def run(folder, **kwargs): return learner(Tiny(), train, valid, folder, callbacks=[Log(), Checkpoint('train_loss')], **kwargs)
    whole = run(tmp_path/'whole')
    rows = whole.fit()
    assert rows.train_loss.is_monotonic_decreasing  # so that each epoch is the best so far
    kept = []
    class Keep(Callback):
        order = 30
        def after_epoch(self, learner): kept.append(contents(tmp_path/'full'))
    with monkeypatch.context() as patch:
        full_disk(patch, after)
        with pytest.raises(OSError, match='No space left') as error:
            learner(Tiny(), train, valid, tmp_path/'full', callbacks=[Log(), Checkpoint('train_loss'), Keep()]).fit()
    assert error.value.errno == errno.ENOSPC and str(tmp_path/'full'/file) in str(error.value)
    found = contents(tmp_path/'full')
    assert len(kept) == 1 and sorted(found) == sorted(kept[0])
    assert found['checkpoint.pt'] == kept[0]['checkpoint.pt'] and found[file] == kept[0][file]
    again = run(tmp_path/'full')
    again.fit()
    assert same_weights(whole.task.trained, again.task.trained) and history(tmp_path/'whole').equals(history(tmp_path/'full'))

def test_folder_that_cannot_be_made(tmp_path, train, valid):
    (tmp_path/'file').write_text('mine')
    with pytest.raises(OSError, match='file'): learner(Tiny(), train, valid, tmp_path/'file'/'run').fit()
    assert contents(tmp_path) == {'file': b'mine'}

@pytest.mark.parametrize('changes, message', [
    (dict(lr=.1), r"\{'lr': 0.05\}, expected \{'lr': 0.1\}"), (dict(epochs=4), r"\{'epochs': 3\}, expected \{'epochs': 4\}"),
    (dict(seed=1), "'seed': 0.*'seed': 1"), (dict(config=dict(data='other')), 'data'), (dict(mixed_precision='bf16'), 'bf16')])
def test_checkpoint_of_another_configuration(tmp_path, train, valid, changes, message):
    learner(Tiny(), train, valid, tmp_path).fit()
    before = contents(tmp_path)
    AcceleratorState._reset_state()
    with pytest.raises(ValueError, match='checkpoint.pt belongs to a run with other settings.*' + message) as error:
        learner(Tiny(), train, valid, tmp_path, **changes).fit()
    assert 'Use another folder' in str(error.value) and contents(tmp_path) == before

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')

@pytest.mark.parametrize('kind', ['cut', 'empty', 'text', 'pickle', 'list', 'foreign'])
def test_checkpoint_that_is_none(tmp_path, train, valid, kind):
    learner(Tiny(), train, valid, tmp_path/'run', epochs=1).fit()
    file = tmp_path/'run/checkpoint.pt'
    def saved(x):
        data = io.BytesIO()
        torch.save(x, data)
        return data.getvalue()
    file.write_bytes(dict(cut=file.read_bytes()[:-200], empty=b'', text=b'no checkpoint', pickle=pickle.dumps(Evil(tmp_path/'ran')),
                          list=saved([1, 2]), foreign=saved({'weights': {}}))[kind])
    with pytest.raises(ValueError, match='checkpoint.pt cannot be read as a checkpoint.*Delete it'):
        learner(Tiny(), train, valid, tmp_path/'run', epochs=1).fit()
    assert not (tmp_path/'ran').exists()  # no code of the file was run

def test_best_is_the_best_epoch(tmp_path, train, valid):
    class Keep(Callback):
        weights = {}
        def after_epoch(self, learner): self.weights[learner.epoch] = {k: v.clone() for k, v in learner.task.trained.state_dict().items()}
    for monitor, mode in (('valid_loss', 'min'), ('valid_accuracy', 'max')):
        rows = learner(Tiny(), train, valid, tmp_path/mode, callbacks=[Keep(), Log(), Checkpoint(monitor, mode)], lr=.5, epochs=5).fit()
        best = rows[monitor].idxmin() if mode == 'min' else rows[monitor].idxmax()
        assert all(torch.equal(v, load_file(tmp_path/mode/'best.safetensors')[k]) for k, v in Keep.weights[best].items())

def test_what_cannot_be_monitored(tmp_path, train, valid):
    with pytest.raises(ValueError, match="no 'valid_beauty' to choose the best epoch by.*valid_accuracy"):
        learner(Tiny(), train, valid, tmp_path, callbacks=[Checkpoint('valid_beauty')]).fit()
    with pytest.raises(ValueError, match="mode must be 'min' or 'max'. Found: 'best'"): Checkpoint('valid_loss', 'best')


# ---- which class is explained ----

def targets_of(task, waveform): return task.sample_targets(task.read_taps(*task.stft(waveform))[0])[0]

def test_likely_targets_are_drawn_by_their_probability(train):
    task, waveform = explainer_task(targets='sampled'), train.tensors[0][:1].repeat(400, 1)
    bias = task.classifier.model.fc.bias
    with torch.no_grad():
        task.classifier.model.fc.weight.zero_()
        bias.copy_(torch.tensor([.7, .3, 1e-9]).log())
    torch.manual_seed(0)
    share = targets_of(task.train(), waveform).bincount(minlength=3) / 400
    assert abs(share[0] - .7) < .08 and abs(share[1] - .3) < .08 and share[2] == 0
    assert (targets_of(task.eval(), waveform[:9]) == 0).all()  # validated on the predicted class
    task.targets = 'predicted'
    assert (targets_of(task.train(), waveform[:9]) == 0).all()

def test_absent_classes_are_those_ruled_out(train):
    task, waveform = explainer_task(p_absent=.5), train.tensors[0][:1].repeat(200, 1)
    with torch.no_grad():
        task.classifier.model.fc.weight.zero_()
        task.classifier.model.fc.bias.copy_(torch.tensor([.7, .3, 1e-4]).log())
    torch.manual_seed(0)
    share = targets_of(task.train(), waveform).bincount(minlength=3) / 200
    assert abs(share[0] - .5) < .12 and share[1] == 0 and abs(share[2] - .5) < .12
    assert (targets_of(task.eval(), waveform[:9]) == 0).all()
    with torch.no_grad(): task.classifier.model.fc.bias.zero_()
    assert (targets_of(task.train(), waveform[:9]) == 0).all()  # nothing is ruled out

def test_the_loss_refuses_what_is_absent():
    "Gradient descent empties the mask of an absent class where it fills that of the class decided"
    logit = torch.zeros(2, 1, 1, requires_grad=True)
    def logits(mask): return torch.stack([4 * mask.mean((1, 2)) - 2, torch.zeros(2)], 1)  # the more is kept, the likelier class 0
    for _ in range(50):
        mask = logit.sigmoid().expand(2, 3, 3)
        terms = ExtendedMaskingLoss(weight_complement=1.)(logits(mask), logits(1 - mask), torch.zeros(2).long(), mask, logits=logits(torch.ones(2, 1, 1)), absent=torch.tensor([False, True]))
        gradient, = torch.autograd.grad(terms['loss'], logit)
        logit = (logit - gradient).detach().requires_grad_()
    assert logit[0].sigmoid() > .9 and logit[1].sigmoid() < .1

def test_the_price_on_energy_is_paid_by_the_loud():
    "Gradient descent shuts the loud bins of no use, and leaves the silent ones, which cost nothing, where they began"
    magnitude = torch.tensor([[[3., 3., .1, 0.]]])
    logit = torch.zeros(1, 1, 4, requires_grad=True)
    for _ in range(200):
        mask = logit.sigmoid()
        logits_in, logits_out = (torch.stack([8 * m[:, 0, 0] - 4, torch.zeros(1)], 1) for m in (mask, 1 - mask))  # the first bin decides
        terms = ExtendedMaskingLoss(weight_sparsity=0., weight_energy=2.)(logits_in, logits_out, torch.zeros(1).long(), mask, magnitude)
        gradient, = torch.autograd.grad(terms['loss'], logit)
        logit = (logit - gradient).detach().requires_grad_()
    needed, useless, faint, silent = logit.sigmoid().flatten().tolist()
    assert needed > .8 and useless < .1 and abs(faint - .5) < .05 and silent == .5
    assert terms['energy'].item() == pytest.approx((9 * needed + 9 * useless + .01 * faint) / 18.01, abs=.01)

def test_a_class_agnostic_decoder_is_trained_for_the_predicted_class():
    task = explainer_task()
    plain = MaskDecoder.for_classifier(task.classifier, task.stft, n_classes=None)
    for wrong in (dict(targets='sampled'), dict(p_absent=.1)):
        with pytest.raises(ValueError, match='class-agnostic'): ExplainerTask(task.classifier, plain, task.stft, **wrong)

def test_unknown_targets():
    with pytest.raises(ValueError, match="'predicted' or 'sampled'. Found: 'label'"): explainer_task(targets='label')


# ---- what a step must not depend on ----

@pytest.mark.parametrize('guidance', [None, Guidance(threshold=.3)])
def test_loss_terms_do_not_depend_on_the_batch_size(train, guidance):
    task = explainer_task()
    loss = ExtendedMaskingLoss(weight_tv=.1, guidance=guidance)
    magnitude, phase = task.stft(train.tensors[0][:6])
    logits, maps = task.read_taps(magnitude, phase)
    decided = logits.argmax(1)
    mask = task.trained(maps, magnitude.shape[-1], decided)
    logits_in, logits_out = task.classify_parts(magnitude, phase, mask)
    def terms(i): return loss(logits_in[i], logits_out[i], decided[i], mask[i], magnitude[i], magnitude[i])
    whole, twice = terms(slice(None)), terms(torch.arange(6).repeat(2))
    singles = [terms(slice(i, i + 1)) for i in range(6)]
    assert set(whole) >= {'loss', 'masked_in', 'masked_out', 'sparsity', 'tv'} | ({'guidance', 'guided'} if guidance else set())
    for k, v in whole.items():
        assert v.ndim == 0
        torch.testing.assert_close(torch.stack([s[k] for s in singles]).mean(), v, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(twice[k], v, rtol=1e-5, atol=1e-6)

@pytest.mark.parametrize('make', [classifier_task, explainer_task])
def test_validation_does_not_depend_on_the_batch_size(train, valid, make):
    runs = [Learner(make(), loader(train, 6), loader(valid, size), epochs=1) for size in (1, 4, 6)]
    for run in runs: run.prepare()
    a, *others = [run.validate() for run in runs]
    for b in others: assert a == pytest.approx(b, rel=1e-4, abs=1e-5)

@pytest.mark.parametrize('batch, accumulate', [(6, 2), (4, 3), (2, 6)])
def test_accumulated_gradients_make_the_step_of_a_large_batch(train, valid, batch, accumulate):
    one = learner(Tiny(), train, valid, batch=12, callbacks=[], epochs=2)
    many = learner(Tiny(), train, valid, batch=batch, accumulate=accumulate, callbacks=[], epochs=2)
    rows = one.fit(), many.fit()
    for a, b in zip(one.task.trained.parameters(), many.task.trained.parameters()): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(torch.tensor(rows[0].lr), torch.tensor(rows[1].lr))
    start = Tiny().trained
    assert not same_weights(start, many.task.trained)

@pytest.mark.parametrize('guidance', [None, Guidance(threshold=0.)])
def test_training_an_explainer_leaves_the_classifier(tmp_path, train, valid, guidance):
    task = explainer_task(loss=ExtendedMaskingLoss(guidance=guidance))
    classifier, decoder = task.classifier, task.trained
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (classifier, decoder)]
    learner(task, train, valid, tmp_path).fit()
    assert all(torch.equal(v, classifier.state_dict()[k]) for k, v in before[0].items())
    assert not classifier.training and all(p.grad is None and not p.requires_grad for p in classifier.parameters())
    assert not all(torch.equal(v, decoder.state_dict()[k]) for k, v in before[1].items())
    assert set(load_file(tmp_path/'best.safetensors')) == set(decoder.state_dict())  # the decoder's weights alone


# ---- precision, and numbers that are none ----

@pytest.fixture
def bf16(monkeypatch): # on processors without it, too
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: True)

def test_bfloat16_only_where_it_is_faster(monkeypatch, train, valid):
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: False)
    full = learner(classifier_task(), train, valid, callbacks=[], epochs=1).fit()
    AcceleratorState._reset_state()
    with pytest.warns(UserWarning, match='no instructions for bfloat16'): half = learner(classifier_task(), train, valid, callbacks=[], epochs=1, mixed_precision='bf16').fit()
    assert half.train_loss[0] == full.train_loss[0]

@pytest.mark.parametrize('make', [classifier_task, explainer_task])
def test_bfloat16_on_the_cpu(bf16, train, valid, make):
    full = learner(make(), train, valid, callbacks=[], epochs=2, lr=1e-5).fit()
    run = learner(make(), train, valid, callbacks=[], epochs=2, lr=1e-5, mixed_precision='bf16')
    half = run.fit()
    assert half.drop(columns='seconds').map(lambda x: x == x and abs(x) < 1e4).all().all()
    assert all(p.dtype == torch.float32 for p in run.task.trained.parameters())
    assert half.train_loss[0] != full.train_loss[0] and half.train_loss[0] == pytest.approx(full.train_loss[0], rel=.03)  # dropout draws others

def test_guidance_in_bfloat16(bf16, train, valid):
    task = explainer_task(loss=ExtendedMaskingLoss(guidance=Guidance(threshold=0.)))
    rows = learner(task, train, valid, callbacks=[], epochs=1, mixed_precision='bf16').fit()
    assert rows.train_guided[0] == 1 and 0 < rows.train_guidance[0] < 10

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_loss_that_is_no_number(tmp_path, train, valid, value):
    "It is said in which epoch; the checkpoint of the epoch before stays"
    class Wrong(Tiny):
        calls = 0
        def forward(self, waveform, target):
            self.calls += 1
            return dict(loss=super().forward(waveform, target)['loss'] * (value if self.calls > 5 else 1))
    with pytest.raises(FloatingPointError, match='loss became (nan|inf) in epoch 2. Lower the learning rate'):
        learner(Wrong(), train, valid, tmp_path).fit()
    assert torch.load(tmp_path/'checkpoint.pt', weights_only=True)['epoch'] == 1 and len(history(tmp_path)) == 1

@pytest.mark.parametrize('make', [classifier_task, explainer_task])
def test_silent_clips_train(train, valid, make):
    silent = TensorDataset(torch.cat([train.tensors[0][:6], torch.zeros(6, 8000)]), torch.arange(12) % 3)
    rows = learner(make(), silent, silent, callbacks=[], epochs=2).fit()
    assert rows.map(lambda x: x == x and abs(x) < 1e6).all().all()

def test_progress_and_log(tmp_path, train, valid, capsys):
    learner(Tiny(), train, valid, tmp_path, callbacks=[Progress(), Log()]).fit()
    shown = capsys.readouterr().err
    assert 'epoch 3/3' in shown and 'loss=' in shown and 'valid_accuracy=' in shown and '12/12' in shown
    assert list(pd.read_csv(tmp_path/'history.csv').epoch) == [1, 2, 3]
    assert (tmp_path/'history.png').read_bytes().startswith(b'\x89PNG')

def test_bad_arguments(train, valid):
    with pytest.raises(ValueError, match='epochs must be at least 1. Found: -1'): learner(Tiny(), train, valid, epochs=-1)
    with pytest.raises(ValueError, match='fewer clips than one batch'):
        Learner(Tiny(), loader(train, 25, drop_last=True), loader(valid, 3), 1)
