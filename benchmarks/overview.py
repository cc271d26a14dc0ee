"""Does the overview find a planted shortcut by itself? `python benchmarks/overview.py --runs runs --out nbs/results/overview.json --seed 1`

For each artefact of `lmac.evidence.shortcuts`: clips of one class get it, and so do clips of others that are then filed under that class; a classifier learns the shortcut, and an explainer is
trained for it. Then the clips of a fold that neither has heard, with the artefact planted in the same way, are explained as anybody would explain a folder, and `describe` is told nothing.
Beside them stand clean classifiers, with the bundled explainers and with one of the same recipe. Everything that takes time is kept in RUNS, so that a run that was interrupted goes on.
"""
from pathlib import Path

import torch
from fastcore.script import call_parse

from lmac.data import esc50
from lmac.evidence.recipes import read_config
from lmac.evidence.shortcuts import ARTEFACTS, plant_dataset, train_for_shortcut, train_shortcut
from lmac.explain import LMAC

TIED = dict(beep='rain', click='sea_waves', hum='dog', band_limit='crying_baby')   # as in lmac-experiment shortcuts
STRAY = .3
CLASSIFIER = dict(epochs=16, batch_size=16, lr=2e-3, weight_decay=.01, warmup=.2, mixed_precision='bf16')
EXPLAINER = dict(epochs=24, batch_size=16, lr=2e-3, mixed_precision='bf16')


def learn(parent, clips, name, folder, seed):
    "An `LMAC` for a classifier that was trained on clips of folds 1 to 4 with an artefact, or, for 'clean', for the parent"
    if name == 'clean':
        train, valid, classifier = clips.fold(1, 2, 3), clips.fold(4), parent.classifier
    else:
        lab = plant_dataset(clips.fold(1, 2, 3, 4), ARTEFACTS[name], TIED[name], stray=STRAY, seed=seed)
        train, valid = lab.fold(1, 2, 3), lab.fold(4)
        augmentation = read_config('esc10-classifier')['augmentation'] | dict(p_mix=.4)
        classifier, _ = train_shortcut(parent.classifier, parent.stft, train, valid, augmentation, seed=seed, folder=folder/'classifier', **CLASSIFIER)
    few = valid.subset(slice(None, None, 5)) if name != 'clean' else valid.subset(list(range(0, len(valid), 5)))
    explainer, _ = train_for_shortcut(classifier, parent.stft, train, few, 'shortcuts', seed, folder=folder/'explainer', **EXPLAINER)
    return explainer


@call_parse
def main(runs:Path=Path('runs'), # what is trained is kept here
         seed:int=1, # of everything random
        ):
    parent = LMAC.from_pretrained('esc10')
    clips = esc50(subset='esc10', sample_rate=parent.sample_rate, duration_s=parent.classifier.duration_s)
    for name in ('beep', 'click', 'band_limit', 'hum', 'clean'):
        learn(parent, clips, name, runs/'overview'/f'{name}-{seed}', seed)
        print(name, 'trained', flush=True)
