"""What an explanation costs beside the classifier itself: `python benchmarks/explain.py --out nbs/results/explain.json`, three minutes.

On one thread, in one run, rounds of all in turn, the median of each: `attribute` against the classifier's forward as its user has it (magnitude to logits, nothing folded); `explain` against `classify`,
with the mask and the explanation's sound only, and with all numbers and sounds; and `explain` of eight minutes against that of one. Clips are of ESC-10's fold 5, or synthetic scenes where there is none.
"""
import json
import time
from pathlib import Path
from statistics import median

import torch
from fastcore.script import call_parse

from lmac.audio import SOURCES, make_scene, write_atomically
from lmac.data import esc50, has_dataset
from lmac.evidence.record import run_metadata
from lmac.explain import LMAC


def clips(rate, n):
    "`(clip, time)`, and what they are of"
    if has_dataset('esc50'): return esc50('esc10', 5, download=False, sample_rate=rate).waveforms[:n], 'ESC-10, fold 5'
    return torch.cat([make_scene({name: 0, 'white_noise': -10 * seed}, 5., seed=seed).waveform for seed in range(8) for name in SOURCES])[:n], 'synthetic scenes'


def timed(work, rounds):
    "Median seconds of each piece of work; all take their turn in each round, after one that is not counted"
    times = {name: [] for name in work}
    for i in range(rounds + 1):
        for name, f in work.items():
            start = time.perf_counter()
            f()
            if i: times[name].append(time.perf_counter() - start)
    return {name: median(x) for name, x in times.items()}


@call_parse
def main(
    out:str='explain.json', # file to write
    explainer:str='esc10-sources', # bundled explainer, or folder of another
    rounds:int=9, # of each measurement
):
    "Measure `attribute` and `explain`"
    torch.set_num_threads(1)
    lmac = LMAC.from_pretrained(explainer)
    rate = lmac.sample_rate
    sounds, data = clips(rate, 64)
    found = dict(provenance=run_metadata(), data=data, explainer=Path(explainer).name, rounds=rounds, attribute={}, explain={})
    for n in (1, 16, 64):
        magnitude, _ = lmac.magnitude_phase(sounds[:n])
        def forward():
            with torch.inference_mode(): lmac.classifier(magnitude)
        s = timed(dict(forward=forward, attribute=lambda: lmac.attribute(magnitude)), rounds)
        found['attribute'][n] = s | dict(ratio=s['attribute'] / s['forward'])
    for n in (1, 16):
        some = sounds[:n, None]
        def users():
            with torch.inference_mode(): lmac.classifier.probabilities(lmac.classifier(*lmac.stft(lmac.prepare(some, rate))))
        def sound(): [ex.audio for ex in lmac.explain(some, rate)]
        def everything(): [ex.complete() for ex in lmac.explain(some, rate)]
        s = timed(dict(classify=lambda: lmac.classify(some, rate), classify_as_the_user_has_it=users, mask_and_sound=sound, everything=everything), rounds)
        found['explain'][n] = s | {f'{k}_ratio': s[k] / s['classify'] for k in ('mask_and_sound', 'everything')} | {
            f'{k}_ratio_as_the_user_has_it': s[k] / s['classify_as_the_user_has_it'] for k in ('mask_and_sound', 'everything')}
    minute = sounds[:12].flatten()[None]
    s = timed(dict(one=lambda: lmac.explain(minute, rate).complete(), eight=lambda: lmac.explain(minute.repeat(1, 8), rate).complete()), max(1, rounds // 3))
    found['minutes'] = s | dict(ratio=s['eight'] / s['one'])
    write_atomically(out, json.dumps(found, indent=1).encode())
    print(json.dumps({k: v for k, v in found.items() if k != 'provenance'}, indent=1))
