"""What a saved explanation takes and weighs: `python benchmarks/report.py --out nbs/results/report.json`, a minute.

Every clip of ESC-10's fold 5 (of `$LMAC_DATA`; synthetic scenes if it is not there) is explained with the bundled explainer and saved several times, on one thread: time of the
processor and of the clock, the least of the repetitions, with the page and without it, and the bytes of all files and of each. What is explained is not timed. The bars are those of a 5 s clip at 16 kHz.
"""
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from fastcore.script import call_parse

from lmac.audio import SOURCES, make_scene, write_atomically
from lmac.data import esc50, has_dataset
from lmac.evidence.record import run_metadata
from lmac.explain import LMAC

BARS = dict(milliseconds=100., bytes=780_000)   # of a clip: the median's time, every clip's bytes


def clips(explainer, n):
    "`(name, class, waveform, sample_rate)` of clips, and what they are of"
    if has_dataset('esc50'):
        rate = explainer.sample_rate
        fold = esc50('esc10', 5, download=False, sample_rate=rate)
        return [(Path(row.path).stem, row.label, fold.waveforms[i][None].clone(), rate) for i, row in enumerate(fold.table.iloc[:n].itertuples())], "ESC-10, fold 5"
    scenes = [(f'{name}-{seed}', name, make_scene({name: 0, 'white_noise': -10 * seed}, 5., seed=seed)) for seed in range(4) for name in SOURCES]
    return [(name, label, scene.waveform, scene.sample_rate) for name, label, scene in scenes[:n]], "synthetic scenes"


def measured(explanation, folder, repeats, **options):
    "Least milliseconds of the processor and of the clock, and the bytes of each file"
    times = []
    for _ in range(repeats):
        cpu, wall = time.process_time(), time.perf_counter()
        explanation.save(folder, **options)
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = (1000 * min(column) for column in zip(*times))
    return dict(cpu_ms=round(cpu, 1), wall_ms=round(wall, 1), bytes={p.name: p.stat().st_size for p in sorted(Path(folder).iterdir())})


@call_parse
def main(
    out:str='report.json', # file to write
    n:int=None, # clips at most; all by default
    repeats:int=3, # of each save
):
    "Measure `Explanation.save`"
    torch.set_num_threads(1)
    explainer, rows = LMAC.from_pretrained(), []
    sounds, data = clips(explainer, n)
    for k, (name, label, waveform, rate) in enumerate(sounds):
        explanation = explainer.explain(waveform, rate)
        with tempfile.TemporaryDirectory() as folder:
            if not k: explanation.save(folder)   # what is imported at first use is not timed
            whole, alone = measured(explanation, f'{folder}/whole', repeats), measured(explanation, f'{folder}/alone', repeats, report=False)
        rows.append(dict(clip=name, label=label, duration_s=explanation.duration_s, **whole, total_bytes=sum(whole['bytes'].values()),
                         without_report=dict(cpu_ms=alone['cpu_ms'], wall_ms=alone['wall_ms'], total_bytes=sum(alone['bytes'].values()))))
    heaviest = max(rows, key=lambda row: row['total_bytes'])
    found = dict(milliseconds=median(row['wall_ms'] for row in rows), bytes=heaviest['total_bytes'])
    bars = [dict(what=what, measured=found[what], bar=f'at most {bar:g}', met=found[what] <= bar) for what, bar in BARS.items()]
    summary = dict(clips=len(rows), median_cpu_ms=median(row['cpu_ms'] for row in rows), median_wall_ms=found['milliseconds'], median_bytes=median(row['total_bytes'] for row in rows),
                   heaviest=heaviest['clip'], heaviest_bytes=heaviest['total_bytes'], median_cpu_ms_without_report=median(row['without_report']['cpu_ms'] for row in rows))
    write_atomically(out, json.dumps(dict(experiment='report', data=data, threads=1, repeats=repeats, summary=summary, bars=bars, rows=rows, provenance=run_metadata()), indent=1).encode())
    print(json.dumps(summary, indent=1))
    for bar in bars: print(f"{bar['what']}: {bar['measured']:g}, {bar['bar']}: {'met' if bar['met'] else 'NOT met'}")
