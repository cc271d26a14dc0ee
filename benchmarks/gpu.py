"""The same on a GPU: `python benchmarks/gpu.py --out nbs/results/gpu.json`, under four minutes; needs a device that PyTorch finds.

Whether masks and decisions are those of the CPU (to 1e-4, as promised), what full float32 costs against TF32, explanations per second by batch size beside `masked_parts` and the classifier's own forward, a folder
end to end, and the training of the bundled explainer. Clips are of ESC-10 where there is one, else synthetic scenes.
"""
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from fastcore.script import call_parse

from lmac.audio import SOURCES, make_scene, save_audio, write_atomically
from lmac.data import esc50, has_dataset
from lmac.evidence.record import run_metadata
from lmac.explain import LMAC, choose_device
from lmac.scale.folder import explain_folder


def clips(rate, n):
    "`(clip, time)`, and what they are of"
    if has_dataset('esc50'):
        found = esc50('esc10', download=False, sample_rate=rate).waveforms
        return found.repeat(-(-n // len(found)), 1)[:n], 'ESC-10'
    return torch.cat([make_scene({name: 0}, 5., seed=seed).waveform for seed in range(-(-n // len(SOURCES))) for name in SOURCES])[:n], 'synthetic scenes'


def seconds(f, device, repeats=5):
    "Median time of some work, all of it done"
    times = []
    for i in range(repeats + 2):
        torch.accelerator.synchronize(device)
        start = time.perf_counter()
        f()
        torch.accelerator.synchronize(device)
        if i > 1: times.append(time.perf_counter() - start)
    return median(times)


def equality(cpu, fast, sounds):
    "How far masks and probabilities are from the CPU's, and how many decisions are others"
    a, b = cpu.masked_parts(sounds), fast.masked_parts(sounds.to(fast.device))
    alone = torch.cat([fast.mask_clips(x[None].to(fast.device)).mask for x in sounds[:8]])
    return dict(masks=(a['mask'] - b['mask'].cpu()).abs().max().item(), probabilities=(a['probabilities'] - b['probabilities'].cpu()).abs().max().item(),
                decisions=int((a['target'] != b['target'].cpu()).sum()), alone_against_batch=(alone - b['mask'][:8]).abs().max().item(), clips=len(sounds))


@call_parse
def main(
    out:str='gpu.json', # file to write
    device:str='auto', # the device
    epochs:int=70, # of training; 0 leaves it out
):
    "Measure on an accelerator"
    device = choose_device(device)
    if device.type == 'cpu': raise SystemExit("There is no accelerator that PyTorch finds on this machine: nothing was measured, and no file was written.")
    cpu, fast = LMAC.from_pretrained(), LMAC.from_pretrained(device=device)
    sounds, data = clips(cpu.sample_rate, 400)
    found = dict(provenance=run_metadata(), device=torch.cuda.get_device_name(device) if device.type == 'cuda' else str(device), data=data, equality=equality(cpu, fast, sounds[:80]), batches={})
    assert found['equality']['masks'] <= 1e-4 and not found['equality']['decisions'], found['equality']
    for n in (1, 16, 64, 256):
        x = sounds[:n].to(device)
        magnitude, _ = fast.magnitude_phase(x)
        def forward(classifier=fast.classifier):
            with torch.inference_mode(): classifier(magnitude)
        def tf32():
            with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=True): fast.fast_classifier(magnitude)
        def full():
            with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False): fast.fast_classifier(magnitude)
        s = {name: seconds(f, device) for name, f in dict(forward=forward, forward_tf32=tf32, forward_float32=full, classify=lambda: fast.classify(x[:, None], fast.sample_rate), attribute=lambda: fast.attribute(magnitude),
             masked_parts=lambda: fast.masked_parts(x), explain=lambda: [ex.complete() for ex in fast.explain(x[:, None], fast.sample_rate, batch_size=n)]).items()}
        found['batches'][n] = s | dict(explain_to_masked_parts=s['explain'] / s['masked_parts'], masked_parts_to_forward=s['masked_parts'] / s['forward'], clips_per_second=n / s['masked_parts'])
    with tempfile.TemporaryDirectory() as where:
        Path(where, 'in').mkdir()
        for i, x in enumerate(sounds): save_audio(Path(where, f'in/{i:04}.wav'), x[None], cpu.sample_rate)
        start = time.perf_counter()
        explain_folder(fast, Path(where, 'in'), Path(where, 'out'), report=False)
        took = time.perf_counter() - start
    found['folder'] = dict(clips=len(sounds), seconds=took, times_real_time=sounds.numel() / cpu.sample_rate / took)
    if epochs:
        from lmac.decoder import MaskDecoder
        from lmac.evidence.recipes import explainer_task, read_config
        from lmac.training import fit_task
        config = read_config('esc10')
        task = explainer_task(fast.classifier, MaskDecoder.for_classifier(fast.classifier, fast.stft, **config['decoder']), fast.stft, config).to(device)
        train = torch.utils.data.TensorDataset(sounds[:240], torch.zeros(240, dtype=torch.long))
        start = time.perf_counter()
        fit_task(task, train, train, **config['training'] | dict(epochs=epochs), mixed_precision='bf16')
        found['training'] = dict(epochs=epochs, seconds=time.perf_counter() - start)
    write_atomically(out, json.dumps(found, indent=1).encode())
    print(json.dumps({k: v for k, v in found.items() if k != 'provenance'}, indent=1))
