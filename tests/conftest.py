"""What several test files need: a dataset and configurations so small that `lmac-train` is through with them in a second, and an explainer to be evaluated."""
import copy
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from torch import nn

from lmac.audio import make_scene, save_audio
from lmac.classifier import TappedClassifier
from lmac.data import ClipDataset, folder_table
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.spectrogram import STFT, LogMel

from commands import Commands, Run

CLASSES = ['clock_tick', 'rain', 'siren']
CLASSIFIER = dict(
    data=dict(dataset=None, train=[1, 2, 3], valid=[4], test=[5]), sample_rate=16000, duration_s=1.0,
    stft=dict(n_fft=512, hop_length=256, win_length=512), front_end=dict(n_mels=40, f_min=20.0, gain=30.0),
    network=dict(width=4, max_width=32, dropout=0.1, head_dropout=0.3), taps=['conv_block2', 'conv_block4', 'conv_block6'],
    augmentation=dict(p_mix=0.6, p_noise=0.2, p_time_freq_mask=0.25, gain_range_db=12.0),
    training=dict(epochs=2, batch_size=4, lr=0.002, weight_decay=0.01, warmup=0.2, seed=0),
    monitor=dict(monitor='valid_loss', mode='min'))
EXPLAINER = dict(
    data=CLASSIFIER['data'], decoder=dict(channels=8, head_channels=4), domain='log1p',
    loss=dict(weight_in=4.0, weight_out=0.2, weight_sparsity=0.4, weight_tv=0.0, max_masked_out=5.0),
    augmentation=dict(p_binary=0.5, p_mix=0.6, p_noise=0.3, snr_low_db=-2.0, snr_high_db=18.0, targets='sampled', p_absent=0.3),
    training=dict(epochs=2, batch_size=4, lr=0.002, weight_decay=0.0, warmup=0.1, seed=0),
    monitor=dict(monitor='valid_loss', mode='min'))
FINETUNE = {k: v for k, v in EXPLAINER.items() if k != 'decoder'} | dict(guidance=dict(weight=4.0, threshold=0.6, binarization=0.35))
STAGES = dict(classifier=CLASSIFIER, explainer=EXPLAINER, finetune=FINETUNE)


LONGEST_FIRST = ['test_scale', 'test_browser', 'test_gallery', 'test_cluster', 'test_cli', 'test_lab', 'test_experiments', 'test_training', 'test_long', 'test_sanity', 'test_explain']  # as measured


def pytest_collection_modifyitems(items):
    "Of files that are handed out to several workers (`-n 2 --dist loadfile --no-loadscope-reorder`), the longest come first, so that none is left alone with one"
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.stem) if item.path.stem in LONGEST_FIRST else len(LONGEST_FIRST))


def pytest_addoption(parser):
    parser.addoption('--vscode', metavar='FOLDER', help='test the widgets in VS Code, which tests/vscode/setup.sh FOLDER installs, rather than in JupyterLab')


@pytest.fixture(scope='module')
def one_thread():
    "For small networks more threads are slower"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

@pytest.fixture(scope='session')
def once(tmp_path_factory, worker_id):
    "`once(name, make)`: a folder that `make(folder)` fills, once per session, whichever worker of pytest-xdist comes first"
    base = tmp_path_factory.getbasetemp()
    if worker_id != 'master': base = base.parent
    def folder_of(name, make):
        folder, done = base/name, base/f'{name}.done'
        with FileLock(base/f'{name}.lock'):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder
    return folder_of

@pytest.fixture(scope='session')
def tiny_data(once):
    "Folder-per-class dataset: 3 classes of 10 clips of 1 s, folds by a hash of the stems"
    def make(root):
        for name in CLASSES:
            (root/name).mkdir()
            for i in range(10): save_audio(root/name/f'{name}-{i}.wav', make_scene({name: 0}, 1., seed=i).waveform, 16000)
    return once('data', make)

@pytest.fixture(scope='session')
def write_config(tiny_data):
    "Write a stage's configuration to a file; keyword 'a__b' changes its part a, key b, to a value or, if None, removes it"
    def write(path, stage, **changes):
        config = copy.deepcopy(STAGES[stage])
        config['data'] = dict(config['data'], dataset=str(tiny_data))
        for where, value in changes.items():
            *parts, key = where.split('__')
            part = config
            for name in parts: part = part[name]
            if value is None: del part[key]
            else: part[key] = value
        path.write_text(yaml.safe_dump(config))
        return path
    return write

@pytest.fixture(scope='session')
def environment(tmp_path_factory):
    "Environment for commands: one thread, caches of their own, no dataset, no network"
    folder = tmp_path_factory.mktemp('home')
    return dict(os.environ, OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE', LMAC_CACHE=str(folder/'cache'),
                LMAC_DATA=str(folder/'no-data'), HF_HUB_OFFLINE='1', MPLBACKEND='agg')

@pytest.fixture(scope='session')
def commands(tmp_path_factory, environment):
    "Run installed commands in forks of a process that has imported torch: `commands(n_processes, 'lmac-train', ...)`"
    commands = Commands(tmp_path_factory.mktemp('commands'), environment)
    yield commands
    commands.close()

@pytest.fixture(scope='session')
def toy(once, commands, write_config):
    "The one toy that is trained per session, by all three stages of `lmac-train` on the tiny dataset, and what each printed (runs.json): to be copied, not changed"
    def make(folder):
        runs = {}
        for stage, args in (('classifier', []), ('explainer', ['--classifier', 'classifier']), ('finetune', ['--explainer', 'explainer', '--share_classifier'])):
            run, = commands(1, 'lmac-train', stage, '--config', write_config(folder/f'{stage}.yaml', stage), '--out', stage, *args, cwd=folder)
            runs[stage] = asdict(run.ok())
        (folder/'runs.json').write_text(json.dumps(runs))
    return once('toy', make)

@pytest.fixture(scope='module')
def trained(toy, tmp_path_factory):
    "A copy of the toy of a test file's own: its folder, and what each stage printed"
    folder = shutil.copytree(toy, tmp_path_factory.mktemp('trained')/'toy')
    return folder, {stage: Run(**run) for stage, run in json.loads((folder/'runs.json').read_text()).items()}

@pytest.fixture(scope='session')
def script():
    "Where a command was installed"
    def find(name):
        found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get('PATH', '')]))
        return found or pytest.fail(f"{name} is not installed: pip install -e '.[dev]'")
    return find


# a small explainer and its clips, for tests of evaluations

LABELS = ["rain", "siren"]


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 5, 2, 2), nn.Conv2d(4, 8, 5, 2, 2), nn.Linear(8, 2)

    def forward(self, x): return 5 * self.head(self.b(self.a(x[:, None]).relu()).relu().amax((2, 3)))


@pytest.fixture(scope="module")
def explainer():
    "An untrained explainer, whose masks vary from bin to bin"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stft = STFT(512, 256)
        classifier = TappedClassifier(Small(), LogMel(n_fft=512, n_mels=40), ["a", "b"], LABELS, 16000, "freq_time", 0.4)
        decoder = MaskDecoder.for_classifier(classifier, stft)
        for p in decoder.parameters(): p.data.mul_(3)
        return LMAC(classifier, decoder, stft)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    "Six loud clips of a length that is no multiple of the hop, one of them silent"
    root = tmp_path_factory.mktemp("scenes")
    for i in range(6):
        label = LABELS[i % 2]
        (root/label).mkdir(exist_ok=True)
        waveform = make_scene({label: 0}, 0.4, seed=i).waveform
        save_audio(root/label/f"{label}{i}.wav", 0 * waveform if i == 5 else waveform / waveform.abs().max(), 16000)
    return ClipDataset(*folder_table(root, 1), 16000, 0.4, cache_dir=root/"cache")


@pytest.fixture(scope="module")
def clips(dataset):
    "The clips that are not silent"
    return dataset.subset(range(5))


@pytest.fixture(scope="session")
def driver():
    "Playwright, of which a process can have one only"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p: yield p


@pytest.fixture(scope="session")
def browser(driver):
    "Headless Chromium, the same for all tests of a process"
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent/"docs"))
    from check_site import CHROMIUM, FLAGS
    if CHROMIUM is None: pytest.fail("These tests need Chromium: apt install chromium, or another that is called so on the PATH.")
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield browser
    browser.close()
