"""Kill -9 at random moments, and go on: `python tests/kills.py --n 20` prints, for each command, how many ends were bit-equal to those of a run that nobody killed, and what was left behind.

Not a part of the test suite: it takes a quarter of an hour. What a run says of its own time and date is left out of the comparison.
"""
import argparse
import json
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
import yaml

from lmac.audio import PARTIAL, make_scene, save_audio
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.spectrogram import STFT, LogMel

TIMES = {'seconds', 'date', 'timing', 'command', 'git', 'explained_in_s', 'evaluation_s', 'memory_mb'}
LABELS = ['siren', 'rain', 'dog']


def without_times(x):
    if isinstance(x, dict): return {k: without_times(v) for k, v in x.items() if k not in TIMES}
    return [without_times(v) for v in x] if isinstance(x, list) else x

def contents(folder):
    "What is below a folder, without times; checkpoints, which hold them, are left out"
    found = {}
    for path in sorted(p for p in folder.rglob('*') if p.is_file() and p.name not in ('checkpoint.pt', 'history.png', 'README.md')):
        data = path.read_bytes()
        if path.suffix == '.json': data = json.dumps(without_times(json.loads(data)), sort_keys=True).encode()
        if path.name == 'history.csv': data = '\n'.join(line.rpartition(',')[0] for line in data.decode().splitlines()).encode()  # the last column is the time
        found[path.relative_to(folder).as_posix()] = data
    return found

def prepare(folder, hours):
    "Recordings, an explainer of random weights, a configuration"
    torch.manual_seed(0)
    classifier = TappedClassifier(Cnn14(3, width=4, n_mels=40, max_width=32), LogMel(n_mels=40), ['conv_block2', 'conv_block5'], LABELS, 16000, duration_s=1.)
    LMAC(classifier, MaskDecoder.for_classifier(classifier, STFT(), channels=8, head_channels=4), STFT()).save_pretrained(folder/'explainer')
    for name in LABELS:
        (folder/'sounds'/name).mkdir(parents=True)
        for i in range(12): save_audio(folder/f'sounds/{name}/{i}.wav', make_scene({name: 0}, 1., seed=i).waveform, 16000)
    save_audio(folder/'hour.flac', make_scene({'rain': 0, 'siren': -6}, 60.).waveform.repeat(1, max(1, round(60 * hours))), 16000)
    config = dict(data=dict(dataset=str(folder/'sounds'), train=[1, 2, 3], valid=[4], test=[5]), sample_rate=16000, duration_s=1., stft=dict(n_fft=512, hop_length=256), front_end=dict(n_mels=40, f_min=20.),
                  network=dict(width=4, max_width=32), taps=['conv_block2', 'conv_block5'], augmentation=dict(p_mix=.5), training=dict(epochs=12, batch_size=4, lr=.002, seed=0), monitor=dict(monitor='valid_loss', mode='min'))
    (folder/'config.yaml').write_text(yaml.safe_dump(config))
    explainer = ['--explainer', 'explainer']
    return {'train': ['lmac-train', 'classifier', '--config', 'config.yaml', '--out', 'OUT'], 'evaluate': ['lmac-evaluate', 'explainer', '--data', 'scenes', '--methods', 'lmac', 'energy', 'random', 'saliency', '--conditions', 'clean', 'white_noise@0', '--out', 'OUT/result.json'],
            'explain a folder': ['lmac-explain', 'sounds', '--out', 'OUT', *explainer], 'explain an hour': ['lmac-explain', 'hour.flac', '--out', 'OUT', *explainer]}

def run(folder, argv, out, kill_after_s=None):
    "Status and seconds of a run in a process of its own"
    argv = [str(Path(sysconfig.get_path('scripts'))/argv[0]), *(a.replace('OUT', out) for a in argv[1:])]
    start = time.monotonic()
    process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try: said, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return -9, kill_after_s
    if process.returncode: sys.exit(f'{argv} failed: {said[-2000:]}')
    return 0, time.monotonic() - start

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=20, help='kills of each command')
    parser.add_argument('--hours', type=float, default=1., help='length of the long recording')
    parser.add_argument('--only', nargs='+', help='some of: train, evaluate, "explain a folder", "explain an hour"')
    parser.add_argument('--seed', type=int, default=0)
    args, failed = parser.parse_args(), 0
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, argv in prepare(folder, args.hours).items():
            if args.only and name not in args.only: continue
            _, seconds = run(folder, argv, 'whole')
            expected, killed, equal, stale, missed = contents(folder/'whole'), 0, 0, 0, []
            for i in range(args.n):
                out = f'out-{i}'  # a name that no base64 contains, since it is replaced in what is compared
                status, _ = run(folder, argv, out, rng.uniform(.3, 1.) * seconds)
                killed += status == -9
                run(folder, argv, out)
                found = {k: v.replace(out.encode(), b'whole') for k, v in contents(folder/out).items()}
                equal += found == expected
                missed += [k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)]
                stale += sum(1 for p in (folder/out).rglob('*') if p.name.startswith(PARTIAL) or p.suffix == '.parts' or p.suffix == '.part')
            failed += args.n - equal + stale
            print(f'{name}: {seconds:.0f} s; {args.n} runs, {killed} killed; {equal} ends as without a kill; {stale} files left behind. {sorted(set(missed))[:5] or ""}', flush=True)
            for made in folder.glob('out-*'): subprocess.run(['rm', '-rf', str(made)])
            subprocess.run(['rm', '-rf', str(folder/'whole')])
    sys.exit(failed > 0)

if __name__ == '__main__': main()
