"""Explanations that are made as waveforms, against masks on the spectrogram: `python benchmarks/time_domain.py esc10-time-domain runs/esc10-filter-bank --folds 4 --out nbs/results/time_domain_fold4.json`

Each explainer is of the same classifier as the bundled `esc10-sources`, whose masks are what it is compared with: the metrics of the benchmark, clean and in three conditions; mixtures of two classes at 0 dB, in which each class
is asked about, by the distance of the part from its own source (SI-SDR, log-spectral distance, and what a model of the ear says); what the classifier's randomisation does to the parts; and what one of them costs beside the classifier's
forward pass, on one thread, the network in its published size standing beside with random weights. Choose on fold 4; look at fold 5 once.
"""
import time
from pathlib import Path

import pandas as pd
import torch
from explain import timed  # which stands beside this script
from fastcore.script import Param, call_parse, store_true

from lmac.evidence.benchmark import benchmark, few_clips, load_method, read_benchmark, si_sdr
from lmac.evidence.experiments import mixtures, paired_difference, score_sources
from lmac.evidence.quality import log_spectral_distance, zimtohrli_mos
from lmac.evidence.record import Record, evaluation_metadata
from lmac.evidence.recipes import open_dataset
from lmac.evidence.sanity import cascade, propose_stages
from lmac.explain import LMAC
from lmac.metrics import summarize
from lmac.models.time_domain import PUBLISHED, FilterBankDecoder

CONDITIONS = 'clean', 'mixture@5', 'white_noise@3', 'speech@5'
SPECTROGRAM = 'esc10-sources'
MEASURES = ['SI_SDR', 'LSD', 'zimtohrli_mos']


def means(columns):
    "Means and 95 % intervals of columns, name to one number per clip"
    return summarize({name: torch.tensor(x.to_numpy(dtype=float)) for name, x in columns.items()})


def sound_quality(explainer, pairs):
    "How near the part of the first class is to its clip, by three measures: a row per mixture; and the input itself, which is what is to be improved"
    rows = []
    for i in range(0, len(pairs['target']), 16):
        mixed, clean, target = (pairs[k][i:i + 16] for k in ('mixed', 'signal', 'target'))
        part = explainer.masked_parts(mixed, target=target)['audio_in']
        for name, sound in dict(part=part, mixture=mixed).items():
            measures = dict(SI_SDR=si_sdr(sound, clean), LSD=log_spectral_distance(explainer.stft(sound)[0], explainer.stft(clean)[0]), zimtohrli_mos=zimtohrli_mos(sound.clamp(-1, 1), clean.clamp(-1, 1), explainer.sample_rate))
            rows.append(pd.DataFrame({k: v.numpy() for k, v in measures.items()}).assign(sound=name, clip=range(i, i + len(mixed))))
    return pd.concat(rows, ignore_index=True)


def costs(explainers, classifier, waveform, rounds=7):
    "Median seconds of the classifier's own forward pass, from magnitudes, and of what each explainer adds up to; one thread, all in turn"
    torch.set_num_threads(1)
    first = next(iter(explainers.values()))
    magnitude, phase = first.magnitude_phase(waveform)
    target = torch.zeros(1, dtype=torch.long)
    def forward():
        with torch.inference_mode(): classifier(magnitude)
    seconds = timed(dict(forward=forward) | {name: (lambda e=e: e.attribute(magnitude, target, phase=phase if e.needs_phase else None)) for name, e in explainers.items()}, rounds)
    published = FilterBankDecoder([m.shape[1] for m in classifier.with_taps(magnitude)[1]], len(first.labels), **PUBLISHED).eval()
    start = time.perf_counter()
    with torch.inference_mode(): published.separate(waveform, classifier.with_taps(magnitude)[1], target)
    seconds |= {'published size': time.perf_counter() - start}
    return {name: dict(seconds=s, of_forward=s / seconds['forward']) for name, s in seconds.items()}


@call_parse
def main(explainers:Param('Folders or bundled names of explainers of the classifier of esc10-sources', str, nargs='+'),
         out:Path=Path('time_domain.json'), # result file; tables of all clips go beside it
         folds:str='4', # with commas between them: choose on 4, look at 5 once
         seed:int=0, # of what is mixed
         quick:store_true=False, # eight clips
        ):
    "Measure faithfulness, separation, sound, randomisation and cost"
    host = LMAC.from_pretrained(SPECTROGRAM)
    dataset = open_dataset(dict(dataset='esc10'), host.sample_rate, host.classifier.duration_s)
    numbers = [int(fold) for fold in folds.split(',')]
    clips = few_clips(dataset.fold(*numbers), 8) if quick else dataset.fold(*numbers)
    table = out.with_name(out.stem + '_methods.json')
    benchmark(host, dataset, numbers, table, ['lmac', *(f'lmac:{x}' for x in explainers)], list(CONDITIONS), [seed], quick=quick, name=SPECTROGRAM, data='esc10')
    _, summary, _ = read_benchmark(table)
    faithful = summary.query("mask == 'soft' and scored_on == 'audio' and metric in ['AI', 'AD', 'AG', 'FF', 'Fid-In', 'kept']")
    loaded = {SPECTROGRAM: host} | {Path(x).name: load_method(f'lmac:{x}', host) for x in explainers}
    pairs, tables, separation, quality = mixtures(clips, 0., 0., seed=seed), [], {}, {}
    for name, explainer in loaded.items():
        asked, heard = score_sources(explainer, pairs), sound_quality(explainer, pairs)
        there = asked[asked.presence == 'source'].reset_index(drop=True)
        if name == SPECTROGRAM: before, heard_before = there, heard
        separation[name] = means(dict(SI_SDR=there['SI-SDR'], SI_SDRi=there['SI-SDRi'], nearer_own=100. * (there['SI-SDR'] > there.to_other), absent_energy=100. * asked[(asked.presence == 'absent') & (asked.p < .01)].energy))
        separation[name] |= dict(advantage=paired_difference(there['SI-SDR'], before['SI-SDR']))
        own, theirs = (x[x.sound == 'part'] for x in (heard, heard_before))
        quality[name] = {k: mean | dict(advantage=paired_difference(own[k], theirs[k], 'lower' if k == 'LSD' else 'higher')) for k, mean in means(own[MEASURES]).items()}
        tables.append(asked.assign(explainer=name))
        print(name, {k: round(v['mean'], 2) for k, v in (separation[name] | quality[name]).items()}, flush=True)
    quality['mixture'] = means(heard[heard.sound == 'mixture'][MEASURES])
    few = few_clips(clips, 16)
    magnitude, phase = (torch.cat(x) for x in zip(*(host.magnitude_phase(x) for x in few.waveforms.split(8))))
    random = {}
    for name, explainer in loaded.items():
        make = lambda changed, e=explainer: type(e)(changed.classifier, e.decoder, e.stft, e.domain)
        found = cascade(make, explainer, magnitude, propose_stages(host), (seed,), phase=phase)
        random[name] = found.groupby(['depth', 'stage'], sort=False)[['rank_correlation', 'ssim', 'iou']].mean().reset_index().to_dict('records')
    cost = costs(loaded, host.classifier, clips.waveforms[:1])
    record = Record(out, out.parent)
    record.write(pd.concat(tables, ignore_index=True), evaluation_metadata(host, SPECTROGRAM, 'esc10', clips, seed), faithfulness=faithful.to_dict('records'), separation=separation, quality=quality, randomisation=random, cost=cost)
    print(faithful.pivot_table(index=['condition', 'method'], columns='metric', values='mean').round(2).to_string())
    print({name: round(x['of_forward'], 2) for name, x in cost.items()})
