"""What a zero-shot explainer is worth on prompts that it was never trained on: `python benchmarks/zero_shot.py lmac/weights/esc10-zero-shot --folds 4 --out nbs/results/zero_shot_fold4.json`

Three sets of prompts were held out from the training of the projection and of the decoder: synonyms and paraphrases, one of each class to a set. With each of them: the accuracy on the clips of a fold. With the first: the metrics of the benchmark on a
softmax over the similarities, against Grad-CAM++ and saliency, clean and in three conditions; and mixtures of two classes at 0 dB, in which every prompt is asked about: is its part nearer to its own source, and how much is kept for a prompt of what is not there?
Last, sounds of the 40 other classes of ESC-50 (fold 4), which neither the trunk nor the projection nor the decoder ever met, asked about by their names.
Choose on fold 4; look at fold 5 once.
"""
import copy
from pathlib import Path

import torch
from fastcore.script import call_parse, store_true

from lmac.data import esc50
from lmac.evidence.benchmark import benchmark, compare, few_clips, read_benchmark
from lmac.evidence.evaluation import score_batch
from lmac.evidence.experiments import mixtures, score_sources
from lmac.evidence.recipes import open_dataset, prompts_of, read_config
from lmac.evidence.record import Record, evaluation_metadata
from lmac.explain import LMAC
from lmac.metrics import summarize

CONDITIONS = 'clean', 'mixture@5', 'white_noise@3', 'speech@5'


def classify(asked, clips):
    "Probabilities of all clips, `(clip, prompt)`"
    return torch.cat([asked.classify(batch[:, None], asked.sample_rate) for batch in clips.waveforms.split(16)]).cpu()


def unheard(zero, known, quick):
    "Accuracy in percent on classes that nothing was trained on, with their names as prompts, beside chance; and how faithful explanations of what is predicted are"
    clips = esc50(folds=4, sample_rate=zero.sample_rate, duration_s=zero.classifier.duration_s, require_all=False)
    clips = clips.subset([clips.labels[k] not in known for k in clips.targets.tolist()])
    if quick: clips = few_clips(clips, 8)
    names = [clips.labels[k] for k in sorted(set(clips.targets.tolist()))]
    asked = zero.with_prompts([f"the sound of {name.replace('_', ' ')}" for name in names])
    own = torch.tensor([names.index(clips.labels[k]) for k in clips.targets.tolist()])
    place = classify(asked, clips).argsort(1, descending=True).argsort(1).gather(1, own[:, None])[:, 0]
    rows = [score_batch(asked, batch, scored_on='audio') for batch in clips.waveforms.split(16)]
    scores = {k: torch.cat([row[k].cpu() for row in rows]) for k in ('AI', 'AD', 'AG', 'FF', 'Fid-In', 'kept')}
    return dict(classes=len(names), chance=100 / len(names), **summarize(dict(first=100. * (place < 1), first_five=100. * (place < 5))), faithfulness=summarize(scores))


@call_parse
def main(explainer:str, # folder of a zero-shot explainer, or the name of a bundled one
         out:Path=Path('zero_shot.json'), # result file; a table of all clips and conditions goes beside it
         folds:str='4', # with commas between them: choose on 4, look at 5 once
         config:str='esc10-zero-shot', # configuration with the prompts
         seed:int=0, # of what is mixed
         quick:store_true=False, # eight clips
        ):
    "Measure accuracy, faithfulness and separation on prompts that were held out"
    zero, settings = LMAC.from_pretrained(explainer), read_config(config)
    dataset = open_dataset(dict(dataset='esc10'), zero.sample_rate, zero.classifier.duration_s)
    numbers, sets = [int(fold) for fold in folds.split(',')], list(zip(*prompts_of(settings, dataset.labels, 'held_out')))
    clips, accuracy = dataset.fold(*numbers), []
    if quick: clips = few_clips(clips, 8)
    for prompts in sets:
        asked = zero.with_prompts(list(prompts))
        accuracy.append(dict(prompts=list(prompts), **summarize(dict(right=100. * (classify(asked, clips).argmax(1) == clips.targets)))['right']))
    print([f"{row['mean']:.1f} %" for row in accuracy], flush=True)
    asked = zero.with_prompts(list(sets[0]))
    renamed = copy.copy(dataset)
    renamed.labels = asked.labels
    table = out.with_name(out.stem + '_methods.json')
    benchmark(asked, renamed, numbers, table, ['lmac', 'gradcam++', 'gradcam', 'saliency', 'energy', 'random'], list(CONDITIONS), [seed], quick=quick, name=explainer, data='esc10')
    _, summary, per_clip = read_benchmark(table)
    faithful = summary.query("method in ['lmac', 'gradcam++', 'saliency'] and mask == 'soft' and scored_on == 'audio' and metric in ['AI', 'AD', 'AG', 'FF', 'Fid-In', 'kept']")
    ahead = compare(per_clip).query("mask == 'soft' and scored_on == 'audio' and method in ['gradcam++', 'saliency'] and metric in ['AI', 'AD', 'Fid-In']")
    pairs = score_sources(asked, mixtures(clips, 0., 0., seed=seed))
    there, absent = pairs[pairs.presence == 'source'], pairs[(pairs.presence == 'absent') & (pairs.p < .01)]
    found = dict(nearer_own=100. * (there['SI-SDR'] > there.to_other), SI_SDRi=there['SI-SDRi'], absent_energy=100. * absent.energy, absent_all_energy=100. * pairs[pairs.presence == 'absent'].energy)
    separation = summarize({name: torch.tensor(x.to_numpy(dtype=float)) for name, x in found.items()})
    record = Record(out, out.parent)
    record.write(pairs, evaluation_metadata(zero, explainer, 'esc10', clips, seed), accuracy=accuracy, faithfulness=faithful.to_dict('records'), ahead=ahead.to_dict('records'), separation=separation, unheard=(never := unheard(zero, dataset.labels, quick)))
    print(faithful.pivot_table(index=['condition', 'method'], columns='metric', values='mean').round(2).to_string())
    print({k: {m: round(x, 2) for m, x in v.items()} for k, v in separation.items()})
    print('classes never met:', {k: never[k] if not isinstance(never[k], dict) else round(never[k]['mean'], 1) for k in ('first', 'first_five', 'chance')}, {k: round(x['mean'], 2) for k, x in never['faithfulness'].items()})
