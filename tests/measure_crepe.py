"""What CREPE's pitch rests on, measured: `pip install torchcrepe`, then `python tests/measure_crepe.py --out nbs/results/crepe.json`, some minutes.

CREPE (Kim et al. 2018, arXiv 1802.06182) estimates the pitch of a frame of 1024 samples at 16 kHz, as 360 probabilities, 20 cents apart. An explainer is made and
trained with defaults alone, on 150 synthetic frames; on 100 others, of known pitch, it is measured whether the part keeps the pitch, whether the rest loses it, and whether
what is kept lies at the harmonics: within half a semitone of one, or where that is less than a window of 64 ms resolves, within two bins (31 Hz).
"""
import json
from importlib.metadata import version
from pathlib import Path

import torch
from fastcore.script import call_parse
from torch import nn

from lmac import __version__
from lmac.explain import LMAC
from lmac.masking import apply_mask

RATE, LENGTH = 16000, 1024


class Frames(nn.Module):
    "The network with what torchcrepe does to each frame: no mean, unit variance"
    def __init__(self, network):
        super().__init__()
        self.network = network
    def forward(self, waveform):
        x = waveform - waveform.mean(1, keepdim=True)
        return self.network(x / x.std(1, keepdim=True).clamp_min(1e-10))


def harmonic_frames(n, generator):
    "Tones of 100 to 1000 Hz with up to 39 harmonics, in white or brown noise at 0 to 20 dB: waveforms `(n, 1024)`, pitches in Hz `(n, 1)`"
    def uniform(*shape): return torch.rand(*shape, generator=generator)
    def normal(*shape): return torch.randn(*shape, generator=generator)
    pitch, t, tones = 100 * 10**uniform(n, 1), torch.arange(LENGTH) / RATE, torch.zeros(n, LENGTH)
    for k in range(1, 40):
        level = k**-(.5 + uniform(n, 1)) * 10**(normal(n, 1) * 4 / 20) * (k * pitch < 7000)
        tones += level * torch.sin(2 * torch.pi * (k * pitch * t + uniform(n, 1)))
    noise = normal(n, LENGTH)
    brown = noise.cumsum(1) - noise.cumsum(1).mean(1, keepdim=True)
    noise = torch.where(uniform(n, 1) < .5, brown, noise)
    mixed = tones / tones.std(1, keepdim=True) + noise / noise.std(1, keepdim=True) * 10**(-uniform(n, 1))
    return .3 * mixed / mixed.abs().amax(1, keepdim=True), pitch


def measure(explainer, waveform, pitch, threshold):
    "Means over the frames"
    found = explainer.masked_parts(waveform, threshold)
    target = found['target'][:, None]
    p, p_in, p_out = (found[f'probabilities{part}'].gather(1, target)[:, 0] for part in ('', '_in', '_out'))
    cents = 20 * (found['probabilities_in'].argmax(1) - target[:, 0]).abs()
    hz, harmonics = explainer.stft.frequencies(RATE), pitch * torch.arange(1, 80)
    reach = (harmonics * (2**(.5 / 12) - 1)).clamp_min(31)
    near = (((hz[None, :, None] - harmonics[:, None]).abs() <= reach[:, None]) & (harmonics < 7900)[:, None]).any(2)[:, :, None]
    energy = found['magnitude'].square(), apply_mask(found['magnitude'], found['mask'], explainer.domain).square()
    ratio_input, ratio_kept = ((e * near).sum().item() / (e * ~near).sum().item() for e in energy)
    return dict(p=p.mean().item(), p_in=p_in.mean().item(), p_out=p_out.mean().item(), kept=found['mask'].mean().item(), AI=100 * (p_in > p).float().mean().item(),
                within_50_cents=(cents <= 50).float().mean().item(), harmonics_to_rest=ratio_kept, harmonics_to_rest_of_input=ratio_input)


@call_parse
def main(
    out:str="nbs/results/crepe.json", # result file
    capacity:str="tiny", # 'tiny' or 'full'
    minutes:float=20., # for training
):
    "Train an explainer for CREPE with defaults alone, and measure it"
    import torchcrepe
    torchcrepe.load.model("cpu", capacity)
    generator = torch.Generator().manual_seed(0)
    sounds, (test, pitch) = harmonic_frames(150, generator)[0], harmonic_frames(100, generator)
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(Frames(torchcrepe.infer.model).eval(), sample_rate=RATE)
    history = explainer.fit(sounds, minutes=minutes)
    result = dict(what=f"CREPE {capacity}, an explainer made and trained with defaults alone on 150 synthetic frames, measured on 100 others", lmac_version=__version__,
                  torchcrepe_version=version("torchcrepe"), taps=explainer.classifier.taps, domain=explainer.domain, notes=explainer.classifier.notes, epochs=len(history),
                  seconds=round(history.seconds.sum()), verdict=explainer.provenance['verdict'], soft=measure(explainer, test, pitch, None), binary=measure(explainer, test, pitch, .5))
    Path(out).write_text(json.dumps(result, indent=1))
    print(json.dumps({k: result[k] for k in ("soft", "binary")}, indent=1))
