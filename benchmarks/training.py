"""Both bundled models trained anew in less time: `python benchmarks/training.py --out nbs/results/training.json`, fifteen minutes on two cores that do nothing else.

`lmac-train` with the configurations `esc10-classifier-short` and `esc10-short`, which have fewer epochs and validations, in processes of their own, their start included; then `lmac-evaluate` on the folds that
are asked for, and every requirement of the results pages beside what was reached. With `--config_suffix ''` it is the configurations of the bundled models.
"""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from fastcore.script import call_parse

from lmac.audio import write_atomically
from lmac.evidence.evaluation import check_requirements, figures
from lmac.evidence.record import run_metadata


def run(command, *args):
    "Seconds of a command of lmac; raises `RuntimeError` if it fails"
    print('lmac-' + command, *args, flush=True)
    began = time.perf_counter()
    done = subprocess.run([Path(sys.executable).with_name('lmac-' + command), *map(str, args)])
    if done.returncode: raise RuntimeError(f"lmac-{command} ended with {done.returncode}")
    return time.perf_counter() - began


@call_parse
def main(
    out:Path=Path('training.json'), # file to write
    runs:Path=Path('runs/training'), # folder for the models; one that is complete there is kept, with the time it took
    config_suffix:str='-short', # of the names of the configurations
    mixed_precision:str='bf16', # no, bf16 or fp16
    folds:str='4', # to evaluate on, with commas between them: choose on 4, look at 5 once
    seed:int=0, # of both trainings
):
    "Train both models, and write what it took and what it reached"
    def train(stage, config, *args):
        done = runs / f'{stage}.json'
        if not done.is_file():
            if (runs / stage).exists(): raise SystemExit(f"{runs / stage} was interrupted, and would go on there: its time would be none. Remove it, or name another folder with --runs.")
            seconds = run('train', stage, '--config', config + config_suffix, '--out', runs / stage, '--mixed_precision', mixed_precision, '--seed', seed, *args)
            done.write_text(json.dumps(dict(config=config + config_suffix, seconds=seconds)))
        return json.loads(done.read_text())['seconds']
    seconds = dict(classifier=train('classifier', 'esc10-classifier'), explainer=train('explainer', 'esc10', '--classifier', runs / 'classifier'))
    found = dict(provenance=run_metadata(), cores=os.cpu_count(), mixed_precision=mixed_precision, seed=seed, seconds=seconds, minutes=sum(seconds.values()) / 60, folds={})
    for fold in folds.split(','):
        run('evaluate', runs / 'explainer', '--folds', fold, '--out', runs / f'fold{fold}.json')
        result = json.loads((runs / f'fold{fold}.json').read_text())
        found['folds'][fold] = dict(accuracy=result['accuracy'], requirements=check_requirements(figures(result)).to_dict('records'))
    write_atomically(out, json.dumps(found, indent=1, default=str).encode())
    print(json.dumps({k: v for k, v in found.items() if k != 'provenance'}, indent=1, default=str))
