"""Hostile and damaged input by the thousand: `python tests/fuzz.py explainers --n 2000`, `python tests/fuzz.py recordings --n 10000` (made and read by tests/fuzz_recordings.py)

Each case is made from its number, so that `--case 17` makes it again and shows the traceback. It runs in a process of its own, with a time limit, and
ends in one of two good ways: it is used, or it is refused by a documented error of one line. Counted as faults are crashes (the process died), hangs (it computed
longer than `SECONDS` on one core, or took longer than `PATIENCE`, on a machine that may have other work), memory (more than `MEGABYTES` beyond what a process has that does nothing, or an allocation that failed), and any other error.

A kind of input is a class in `KINDS`: `Kind(folder)` prepares what is mutated, `make(rng, folder)` writes a case into an empty folder and says what it is, `use(folder)` does
what a user would, and `documented` are the errors that may come of it.
"""
import argparse
import copy
import hashlib
import json
import math
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.pretrained import WEIGHTS
from lmac.spectrogram import STFT, LogMel

from fuzz_recordings import run_recordings

SECONDS, PATIENCE, MEGABYTES = 5, 30, 1024
VALUES = [None, True, False, 0, 1, -1, 2, 7, 64, 1000, 2**31, 10**9, 10**12, 10**30, 10**400, -1.5, .5, 1e-300, 1e12, 1e308, math.inf, -math.inf, math.nan, '', ' ', 'yes', 'x' * 10_000,
          '/dev/zero', '/etc/passwd', '../../decoder.safetensors', '../decoder.safetensors', '..', 'pipe.safetensors', 'decoder.safetensors', 'a\0b', '\ud800', '<b>', '$\\frac', 'Cnn14', 'decibel', 'frames', 'conv_block1', 'fc',
          [], {}, [[]], [None], [1, 'a'], ['a', 'a'], {'a': {}}, {'n_classes': 3}]


class Mine(nn.Module):
    "A network of one's own, small"
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(1, 4, 5, 3), nn.Conv2d(4, 8, 3, 2), nn.Linear(8, 3)
    def forward(self, x): return self.head(self.b(self.a(x[:, None]).relu()).relu().mean((2, 3)))


def places(x, path=()):
    "Paths of all values in a tree of dicts and lists"
    if path: yield path
    for k, v in x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else (): yield from places(v, (*path, k))


class Explainers:
    "Folders of explainers: a toy with its classifier, a bundled one with a shared classifier, and one whose classifier is handed in"
    documented = ValueError, OSError

    def __init__(self, folder):
        torch.manual_seed(0)
        stft, front_end = STFT(512, 128), LogMel(16000, 512, 40)
        ours = TappedClassifier(Cnn14(3, 4, 40, 16), front_end, ['conv_block2', 'conv_block5'], ['a', 'b', 'c'], 16000, duration_s=.5)
        self.mine = TappedClassifier(Mine(), front_end, ['a', 'b'], ['a', 'b', 'c'], 16000, 'freq_time', .5)
        for name, classifier in dict(toy=ours, mine=self.mine).items():
            LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8, head_channels=4), stft, provenance=dict(test={'AI': 1.})).save_pretrained(folder/name/'explainer')
        (folder/'mine'/'handed-in').touch()
        for name in ('esc10', 'esc10-classifier'):
            (to := folder/'bundled'/(name if 'class' in name else 'explainer')).mkdir(parents=True)
            for file in ('config.json', 'decoder.safetensors', 'classifier.safetensors'):
                if (WEIGHTS/name/file).exists(): shutil.copy(WEIGHTS/name/file, to)
        self.folder, self.clip = folder, make_scene({'dog': 0}, .5).waveform
        for name in ('toy', 'mine', 'bundled'): self.use(folder/name)  # they are whole, and what is slow once is done

    def make(self, rng, folder):
        base = rng.choices(['toy', 'mine', 'bundled'], [7, 2, 1])[0]
        shutil.copytree(self.folder/base, folder, dirs_exist_ok=True)
        what = rng.choices([self.mutate_config, self.mutate_together, self.mutate_text, self.mutate_weights, self.mutate_bytes, self.mutate_files], [8, 4, 2, 4, 3, 1])[0]
        return f"{base}: {', '.join(what(rng, folder/'explainer') for _ in range(1 if what == self.mutate_files else rng.choice([1, 1, 1, 2, 3])))}"

    def use(self, folder):
        explainer = LMAC.from_pretrained(folder/'explainer', classifier=self.mine if (folder/'handed-in').exists() else None)
        explanation = explainer.explain(self.clip, 16000)
        explanation.summary(), explanation.sentence(), repr(explainer)
        for name in ('mask', 'audio', 'residual', 'probabilities'):
            if not getattr(explanation, name).isfinite().all(): raise AssertionError(f'{name} is not finite')

    def mutate_config(self, rng, folder):
        file = folder/'config.json'
        try: config = json.loads(file.read_bytes())
        except ValueError: return 'no JSON left'
        found = [p for p in places(config) if p[0] != 'provenance' or len(p) == 1 or rng.random() < .05]
        if not found: return 'nothing left'
        *path, key = rng.choice(found)
        at = config
        for k in path: at = at[k]
        kind = rng.choice(['value'] * 6 + ['scale'] * 4 + ['delete', 'rename', 'add', 'swap', 'wrap', 'double', 'deep', 'move'])
        old, new = at[key], rng.choice(VALUES)
        if kind == 'scale' and isinstance(old, (int, float)): at[key] = new = rng.choice([old * 2, old // 2, old + 1, old - 1, -old, old * 10, float(old), old * 10**6])
        elif kind == 'delete': del at[key]
        elif kind == 'rename' and isinstance(at, dict): at[f'{key}x'] = at.pop(key)
        elif kind == 'add' and isinstance(at, dict): at[rng.choice(['x', 'rank', 'kind', 'guide', 'answer', 'file', 'window'])] = new
        elif kind == 'swap':
            *others, other = rng.choice(found)
            there = config
            for k in others: there = there[k]
            at[key] = copy.deepcopy(there[other])
        elif kind == 'wrap': at[key] = [old] if rng.random() < .5 else {'a': old}
        elif kind == 'double' and isinstance(old, list): at[key] = old * 2
        elif kind == 'deep':
            for _ in range(rng.choice([10, 150, 300])): new = [new]
            at[key] = new
        elif kind == 'move': config[rng.choice(['format', 'classifier', 'decoder', 'stft', 'domain'])] = old
        else: at[key] = new
        file.write_bytes(json.dumps(config).encode())
        return f"{kind} {'.'.join(map(str, (*path, key)))} {str(new)[:60]!r}"

    def mutate_together(self, rng, folder):
        "Another value for a setting, wherever it stands, of those that could be meant"
        file = folder/'config.json'
        try: config = json.loads(file.read_bytes())
        except ValueError: return 'no JSON left'
        key = rng.choice(['n_fft', 'hop_length', 'win_length', 'sample_rate', 'duration_s', 'n_mels', 'f_min', 'f_max', 'gain', 'dropout', 'taps', 'map_layout', 'domain', 'multi_label', 'answer', 'labels', 'rank'])
        power = 2**rng.randrange(22)
        new = dict(taps=lambda: rng.sample([f'conv_block{k}' for k in range(1, 7)] + ['fc1', 'bn0', 'conv_block1.conv1', 'relu', 'a', 'b'], rng.randrange(1, 7)),
                   map_layout=lambda: rng.choice(['freq_time', 'time_freq', 'time', 'frames', 'freq_time_channel', 'time_freq_channel']), domain=lambda: rng.choice(['log1p', 'magnitude', 'decibel']),
                   multi_label=lambda: rng.random() < .5, labels=lambda: [f'<{k}>$_{{' for k in range(rng.choice([1, 3, 10, 1000]))],
                   answer=lambda: dict(one_by_one=rng.random() < .5, draws=rng.choice([0, 1, 8, 64]), stateful=rng.random() < .5, switched_off=rng.choice([[], ['model.conv_block1.bn1'], ['model.x'], ['front_end.y']]),
                                       heard_s=rng.choice([None, 0, .1, 1e-9, 86400]), padded_s=rng.choice([None, 0, .1, 1e-9]), notes=['*a*\n# b'])).get(key, lambda: rng.choice([power, power + 1, power - 1, power / 1000, power / 10**7, 22050, 3 * power]))()
        def change(x):
            if isinstance(x, dict): return {k: new if k == key else change(v) for k, v in x.items()}
            return x
        for part in ('stft', 'classifier', 'decoder'):
            if part in config: config[part] = change(config[part])
        if key == 'answer' and isinstance(config.get('classifier'), dict): config['classifier'][key] = new
        file.write_bytes(json.dumps(config).encode())
        return f'together {key} {str(new)[:60]}'

    def mutate_text(self, rng, folder):
        file = folder/'config.json'
        data, kind = bytearray(file.read_bytes()), rng.choice(['flip', 'cut', 'insert', 'deep', 'encode', 'digits', 'empty'])
        at = rng.randrange(len(data) + 1)
        if kind == 'flip' and data: data[at - 1] ^= 1 << rng.randrange(8)
        elif kind == 'cut': data = data[:at]
        elif kind == 'insert': data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 20)))
        elif kind == 'deep': data = data.replace(b'"taps": ', b'"taps": ' + rng.choice([b'[', b'{"a":']) * rng.choice([100, 1000, 100_000]), 1)
        elif kind == 'encode': data = bytearray(data.decode(errors='replace').encode(rng.choice(['utf-16', 'utf-8-sig', 'utf-32', 'utf-7'])))
        elif kind == 'digits': data = data.replace(b'16000', b'1' * rng.choice([50, 5000, 100_000]))
        else: data = bytearray(rng.choice([b'', b'null', b'[]', b'{}', b'0', b'"' * 3]))
        file.write_bytes(data)
        return f'text {kind} {at}'

    def rewrite(self, rng, file, data):
        "Write weights, and mostly their sum into the configuration"
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        try:
            config = json.loads((file.parent/'config.json').read_bytes())
            if rng.random() < .85: config[file.stem]['sha256'] = hashlib.sha256(data).hexdigest()
            (file.parent/'config.json').write_bytes(json.dumps(config).encode())
        except (ValueError, KeyError, TypeError): pass

    def weights(self, rng, folder):
        "A file of weights, and its contents"
        found = [p for p in sorted(folder.glob('*.safetensors')) if p.is_file()]
        return (file := rng.choice(found), file.read_bytes()) if found else (folder/'decoder.safetensors', b'')

    def mutate_weights(self, rng, folder):
        file, data = self.weights(rng, folder)
        try: tensors = load(data)
        except Exception: return 'no tensors left'
        if not tensors: return 'no tensors left'
        name, kind = rng.choice(sorted(tensors)), rng.choice(['value'] * 4 + ['huge', 'dtype', 'dtype', 'shape', 'delete', 'add', 'rename', 'empty', 'many'])
        x = tensors[name]
        if kind == 'value' and x.numel(): x.view(-1)[rng.randrange(x.numel())] = rng.choice([math.nan, math.inf, -math.inf, 1e38, -1e38, -1., 0.]) if x.is_floating_point() else -1
        elif kind == 'huge': tensors[name] = x * rng.choice([1e30, -1, 0, 1e-38]) if x.is_floating_point() else x - 10
        elif kind == 'dtype': tensors[name] = x.to(rng.choice([torch.int64, torch.int8, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.complex64]))
        elif kind == 'shape': tensors[name] = rng.choice([x[None], x.flatten(), x.flatten()[:-1], torch.cat([x[None]] * 2), x.new_zeros(0)]).contiguous()
        elif kind == 'delete': del tensors[name]
        elif kind == 'add': tensors[rng.choice(['x', '', 'a.b' * 50, name + '.weight'])] = torch.zeros(rng.choice([0, 1, 1000, 10**6]))
        elif kind == 'rename': tensors[name + 'x'] = tensors.pop(name)
        elif kind == 'empty': tensors = {}
        else: tensors |= {f'x{k}': torch.zeros(0) for k in range(20_000)}
        self.rewrite(rng, file, save(tensors))
        return f'{kind} {file.stem} {name}'

    def mutate_bytes(self, rng, folder):
        file, data = self.weights(rng, folder)
        data, kind = bytearray(data), rng.choice(['flip', 'cut', 'extend', 'length', 'header', 'garbage'])
        at = rng.randrange(len(data) + 1)
        if kind == 'flip' and data:
            for _ in range(rng.choice([1, 10, 1000])): data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 'cut': data = data[:at]
        elif kind == 'extend': data += bytes(rng.choice([1, 1000, 3 * 2**20]))
        elif kind == 'length': data[:8] = struct.pack('<Q', rng.choice([0, 1, 8, 2**31, 2**63, 2**64 - 1, len(data), rng.randrange(2**20)]))
        elif kind == 'header' and len(data) > 8:
            end = 8 + min(struct.unpack('<Q', data[:8])[0], len(data))
            head = data[8:end].replace(*rng.choice([(b'F32', b'I32'), (b'F32', b'C64'), (b'F32', b'F8_E5M2'), (b'F32', b'X'), (b'"shape":[', b'"shape":[1,'), (b'"shape":[', b'"shape":[9223372036854775807,'),
                                                    (b'"data_offsets":[', b'"data_offsets":[-1,'), (b'[0,', b'[1,'), (b'{', b'[' * 10_000), (b'}', b',')]), rng.choice([1, -1]))
            data = bytearray(struct.pack('<Q', len(head))) + head + data[end:]
        else: data = bytearray(rng.randbytes(rng.choice([0, 1, 7, 8, 9, 1000])))
        self.rewrite(rng, file, bytes(data))
        return f'bytes {kind} {file.stem} {at}'

    def mutate_files(self, rng, folder):
        file, kind = folder/rng.choice(['config.json', 'decoder.safetensors', 'classifier.safetensors']), rng.choice(['missing', 'pipe', 'device', 'folder', 'loop', 'passwd', 'large'])
        file.unlink(missing_ok=True)
        if kind == 'pipe': os.mkfifo(file)
        elif kind == 'folder': file.mkdir()
        elif kind == 'large':
            with open(file, 'wb') as f: f.truncate(2**33)  # nothing on the disk, 8 GB to read
        elif kind != 'missing': file.symlink_to(dict(device='/dev/zero', loop=file.name, passwd='/etc/passwd')[kind])
        return f'{kind} {file.name}'


KINDS = dict(explainers=Explainers)


def run_case(kind, seed, folder):
    "Make and use one case in a process of its own; a dict of how it ended: outcome, what, seconds, seconds of computing, megabytes"
    with tempfile.TemporaryDirectory(dir=folder) as place:
        place = Path(place)
        try: what = kind.make(random.Random(seed), place)
        except Exception: raise RuntimeError(f'case {seed} cannot be made') from sys.exc_info()[1]
        read, write = os.pipe()
        start = time.monotonic()
        if not (pid := os.fork()):
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_REAL, PATIENCE)
                resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))  # of this process, which is new
                resource.setrlimit(resource.RLIMIT_AS, (resident(kind='VmSize') + 2**32,) * 2)  # nobody's machine shall suffer
                os.write(write, outcome_of(kind, place).encode()[:4000])
            finally: os._exit(0)
        os.close(write)
        with open(read, 'rb') as pipe: outcome = pipe.read().decode(errors='replace')
        _, status, usage = os.wait4(pid, 0)
    if os.WIFSIGNALED(status): outcome = 'hang' if os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU) else f'crash: signal {os.WTERMSIG(status)}'
    return dict(seed=seed, outcome=outcome or 'crash: no answer', what=what, seconds=time.monotonic() - start, computed_s=usage.ru_utime + usage.ru_stime, megabytes=usage.ru_maxrss / 1024)


def outcome_of(kind, place):
    "Use a case; 'used', 'refused: …', or the fault"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            kind.use(place)
        return 'used'
    except MemoryError: return 'memory'
    except kind.documented as e:
        if 'allocate' in str(e): return f'memory: {e}'
        return f"{'undocumented: more than one line' if chr(10) in str(e) or not str(e) else 'refused'}: {type(e).__name__}: {e}"
    except BaseException as e: return f'undocumented: {type(e).__name__}: {e}'


def resident(kind='VmRSS'):
    "Bytes of this process"
    return 1024 * int(next(line.split()[1] for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(kind)))


def _case(seed): return run_case(_shared[0], seed, _shared[1])


def fuzz(name, n, first=0, workers=2):
    "Run cases `first` to `first + n`; counts, and the cases that failed"
    global _shared
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        kind = KINDS[name](folder/'base')
        start, _shared = time.monotonic(), (kind, folder)
        with get_context('fork').Pool(workers) as pool:
            base = pool.apply(resident) / 2**20
            found = pool.map(_case, range(first, first + n), chunksize=8)
    for case in found:
        case['megabytes'] = max(0, case['megabytes'] - base)
        if case['megabytes'] > MEGABYTES: case['outcome'] = f"memory: {case['megabytes']:.0f} MB"
    counts = {k: sum(case['outcome'].startswith(k) for case in found) for k in ('used', 'refused', 'crash', 'hang', 'memory', 'undocumented')}
    return dict(kind=name, cases=n, **counts, seconds=round(time.monotonic() - start, 1), slowest_s=round(max(c['seconds'] for c in found), 2), most_computed_s=round(max(c['computed_s'] for c in found), 2), most_megabytes=round(max(c['megabytes'] for c in found))), \
        [case for case in found if not case['outcome'].startswith(('used', 'refused'))]


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kind', choices=[*KINDS, 'recordings'])
    parser.add_argument('--n', type=int, default=2000, help='cases')
    parser.add_argument('--first', type=int, default=0, help='number of the first case')
    parser.add_argument('--workers', type=int, default=2, help='processes')
    parser.add_argument('--case', type=int, help='make this case alone, in this process, and show what becomes of it')
    args = parser.parse_args()
    if args.kind == 'recordings':
        found = run_recordings(args.n, args.first, args.workers)
        print(json.dumps(found))
        sys.exit(bool(found['failures']))
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder)/'case').mkdir()
            kind = KINDS[args.kind](Path(folder)/'base')
            print(kind.make(random.Random(args.case), Path(folder)/'case'))
            try: kind.use(Path(folder)/'case')
            except BaseException: traceback.print_exc()
    else:
        counts, failed = fuzz(args.kind, args.n, args.first, args.workers)
        for case in failed: print(json.dumps(case))
        print(json.dumps(counts))
        sys.exit(bool(failed))
