"""A folder end to end, as a user has it: `python benchmarks/folder.py --out nbs/results/folder.json`, ten minutes.

Each measurement is a command in a process of its own, its start included, on all cores: `lmac-explain FOLDER` with reports and with `--no_report` (ESC-10, or synthetic scenes where there is none), a recording of
an hour made of these clips, and a single clip. Written down are seconds, how many times faster than the sound lasts, and the most memory that the process had (resident, in MB);
beside them what each step takes of one core. Of several runs the quickest counts, as others share the machine.
"""
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from fastcore.script import call_parse

from lmac.audio import SOURCES, make_scene, save_audio, write_atomically
from lmac.data import audio_files, esc50, has_dataset
from lmac.evidence.record import run_metadata
from lmac.explain import LMAC

_RUN = "import resource, sys, lmac.cli as cli; sys.argv[0] = 'lmac-explain'; cli.lmac_explain(sys.argv[1:-2] or None, out=sys.argv[-2], no_report=sys.argv[-1] == 'True'); print('\\nMB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"


def recordings(folder, n):
    "A folder with `n` clips, and what they are"
    if has_dataset('esc50'):
        table = esc50('esc10', download=False, sample_rate=16000).table
        paths = [Path(p) for p in table.path][:n]
        for p in paths: os.symlink(p, folder / p.name)
        return 'ESC-10'
    for i in range(n): save_audio(folder / f'{i:04}.wav', make_scene({list(SOURCES)[i % len(SOURCES)]: 0}, 5., 44100, seed=i).waveform, 44100)
    return 'synthetic scenes'


def run(paths, out, no_report=False):
    "Seconds and megabytes of one command"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', _RUN, *map(str, paths), str(out), str(no_report)], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode: raise RuntimeError(done.stderr[-2000:])
    return dict(seconds=seconds, megabytes=float(done.stdout.rsplit('MB', 1)[1]))


def quickest(runs):
    "The run that took the least time"
    return min(runs, key=lambda run: run['seconds'])


def stages(files, batch_size=8):
    "Milliseconds of one core for a clip, by what is done with it: the least of three rounds"
    explainer, threads = LMAC.from_pretrained(), torch.get_num_threads()
    torch.set_num_threads(1)
    def timed(f):
        f()
        times = []
        for _ in range(3):
            began = time.process_time()
            result = f()
            times.append((time.process_time() - began) / len(files) * 1000)
        return min(times), result
    found = {}
    found['read'], waveforms = timed(lambda: [explainer.read(path)[0][0] for path in files])
    some = [waveforms[i:i + batch_size] for i in range(0, len(files), batch_size)]
    spectra = [[explainer.magnitude_phase(x[None])[0] for x in those] for those in some]
    with torch.inference_mode(): found['classifier'], _ = timed(lambda: [explainer.fast_classifier(torch.cat(group)) for those in spectra for group in ([x for x in those if x.shape == shape] for shape in {x.shape for x in those})])
    found['explain'], explanations = timed(lambda: [ex.complete() for those in some for ex in explainer.explain_waveforms(those, batch_size=batch_size)])
    with tempfile.TemporaryDirectory() as where:
        for name, report in (('save', False), ('save_with_page', True)): found[name], _ = timed(lambda: [ex.save(Path(where, name, str(i)), report) for i, ex in enumerate(explanations)])
    torch.set_num_threads(threads)
    return found


@call_parse
def main(
    out:str='folder.json', # file to write
    n:int=400, # clips
    runs:int=2, # of each command; the quickest counts
    hours:float=1., # length of the long recording; 0 leaves it out
):
    "Measure `lmac-explain`"
    found = dict(provenance=run_metadata(), cores=os.cpu_count())
    with tempfile.TemporaryDirectory() as where:
        where = Path(where)
        (where / 'clips').mkdir()
        found['data'] = recordings(where / 'clips', n)
        files = audio_files(where / 'clips')
        seconds = sum(sf.info(p).duration for p in files)
        found['clip'] = quickest(run(files[:1], where / f'one{i}') for i in range(4))
        for name, no_report in (('no_report', True), ('reports', False)):
            found[name] = quickest(run([where / 'clips'], where / f'{name}{i}', no_report) for i in range(runs))
            found[name] |= dict(clips=len(files), sound_s=seconds, times_real_time=seconds / found[name]['seconds'], megabytes_written=sum(p.stat().st_size for p in (where / f'{name}0').rglob('*') if p.is_file()) / 1e6)
        if hours:
            with sf.SoundFile(where / 'long.wav', 'w', sf.info(files[0]).samplerate, 1) as file:
                for i in range(int(hours * 3600 / 5)): file.write(np.atleast_2d(sf.read(files[i % len(files)], always_2d=True)[0].mean(1)).T)
            found['long'] = quickest(run([where / 'long.wav'], where / f'hour{i}') for i in range(runs))
            found['long'] |= dict(sound_s=(length := sf.info(where / 'long.wav').duration), times_real_time=length / found['long']['seconds'])
        found['stages_ms'] = stages(files[:64])  # last: a process inherits the most memory that the one before it had
    write_atomically(out, json.dumps(found, indent=1).encode())
    print(json.dumps({k: v for k, v in found.items() if k != 'provenance'}, indent=1))
