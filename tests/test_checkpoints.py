"""Published checkpoints: the same logits as the original's own code, on random weights in exactly the published layouts."""
import csv
import hashlib
import http.server
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lmac.models.checkpoints as checkpoints
from lmac.adapters import Resynthesis
from lmac.audio import make_scene
from lmac.models.checkpoints import (PANNS, PSI_TAPS, POOLS, PublishedFile, PublishedDecoder, array_globals, checkpoint_kind, extractor_features, fetch_published,
                              from_panns, from_speechbrain, from_transformers, lmac_from_speechbrain, panns_network, panns_settings, read_checkpoint,
                              read_hyperparams, state_dict_of, zenodo_md5)
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.masking import apply_mask
from lmac.spectrogram import STFT

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = [f"sound {k}" for k in range(527)]
SETTINGS = {32000: (1024, 320, 14000), 16000: (512, 160, 8000), 8000: (256, 80, 4000)}  # of PANNs: n_fft, hop, upper edge
PARAMETERS = dict(Cnn14=80_753_615, Cnn10=5_219_279, Cnn6=4_837_455, MobileNetV1=4_796_303, MobileNetV2=4_075_343)  # arXiv 1912.10211, table VII


def sound(duration_s, rate, seed=0):
    "A sound that neither begins nor ends with silence"
    n = round(duration_s * rate)
    scene = [{"dog": 0, "rain": -8, "siren": -12}, {"clock_tick": 0, "white_noise": -24}][seed]
    return make_scene(scene, duration_s + 1, rate, seed=seed).waveform[:, rate//2:rate//2 + n].contiguous()

def ones(magnitude): return apply_mask(magnitude, torch.ones_like(magnitude))  # a mask of ones, as an explanation applies it


# PANNs: the published names and shapes, written down; the published computation, as plain functions of them

def trunk_shapes(kind, widths=None):
    "Shapes of the convolutions of a network's trunk, with the name of the normalisation after each"
    if kind.startswith("Cnn"):
        widths = widths or [64 * 2**k for k in range(6 if kind == "Cnn14" else 4)]
        for k, (n_in, n_out) in enumerate(zip([1, *widths], widths), 1):
            size = 5 if kind == "Cnn6" else 3
            yield f"conv_block{k}.conv1", (n_out, n_in, size, size), f"conv_block{k}.bn1"
            if kind != "Cnn6": yield f"conv_block{k}.conv2", (n_out, n_out, 3, 3), f"conv_block{k}.bn2"
    elif kind == "MobileNetV1":
        yield "features.0.0", (32, 1, 3, 3), "features.0.2"
        for k, (n_in, n_out) in enumerate(zip([32, 64, 128, 128, 256, 256, *[512] * 6, 1024], [64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]), 1):
            yield f"features.{k}.0", (n_in, 1, 3, 3), f"features.{k}.2"
            yield f"features.{k}.4", (n_out, n_in, 1, 1), f"features.{k}.5"
    else:
        yield "features.0.0", (32, 1, 3, 3), "features.0.2"
        n_in, k = 32, 0
        for factor, n_out, times in ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)):
            for _ in range(times):
                k, wide = k + 1, factor * n_in
                at = [(0, 2), (4, 5)] if factor == 1 else [(0, 1), (3, 5), (7, 8)]
                shapes = ([] if factor == 1 else [(wide, n_in, 1, 1)]) + [(wide, 1, 3, 3), (n_out, wide, 1, 1)]
                for (conv, norm), shape in zip(at, shapes): yield f"features.{k}.conv.{conv}", shape, f"features.{k}.conv.{norm}"
                n_in = n_out
        yield "features.18.0", (1280, 320, 1, 1), "features.18.1"

def norm_state(name, n):
    return {f"{name}.weight": torch.empty(n).uniform_(.8, 1.2), f"{name}.bias": .1 * torch.randn(n), f"{name}.running_mean": .1 * torch.randn(n),
            f"{name}.running_var": torch.empty(n).uniform_(.6, 1.5), f"{name}.num_batches_tracked": torch.tensor(7)}

def front_end_modules(rate, n_mels=64):
    stft = pytest.importorskip("torchlibrosa.stft")
    n_fft, hop, top = SETTINGS[rate]
    return (stft.Spectrogram(n_fft, hop, n_fft, "hann", True, "reflect", freeze_parameters=True),
            stft.LogmelFilterBank(rate, n_fft, n_mels, 50, top, ref=1.0, amin=1e-10, top_db=None, freeze_parameters=True))

def panns_state(kind, rate=32000, widths=None, n_classes=527, seed=0):
    "A state dict of random numbers in the published layout"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        spectrogram, log_mel = front_end_modules(rate)
        state = {f"spectrogram_extractor.{k}": v for k, v in spectrogram.state_dict().items()} | {f"logmel_extractor.{k}": v for k, v in log_mel.state_dict().items()}
        state |= norm_state("bn0", 64) | {"bn0.running_mean": torch.full((64,), -30.), "bn0.running_var": torch.full((64,), 400.)}
        for name, shape, norm in trunk_shapes(kind, widths):
            state |= {f"{name}.weight": torch.randn(shape) * (2 / np.prod(shape[1:]))**.5} | norm_state(norm, shape[0])
        n = shape[0]
        hidden = 1024 if kind == "MobileNetV2" else n
        for name, shape in (("fc1", (hidden, n)), ("fc_audioset", (n_classes, hidden))):
            state |= {f"{name}.weight": torch.randn(shape) * (2 / shape[1])**.5, f"{name}.bias": .1 * torch.randn(shape[0])}
        return state

def panns_logits(state, waveform, rate):
    "What the original computes, as functions of its weights"
    for module, prefix in zip(modules := front_end_modules(rate), ("spectrogram_extractor.", "logmel_extractor.")):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    def norm(x, name): return F.batch_norm(x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))
    def conv(x, name):
        w = state[f"{name}.weight"]
        return F.conv2d(x, w, padding=w.shape[-1]//2, groups=x.shape[1] if w.shape[1] == 1 and x.shape[1] > 1 else 1)
    x = modules[1](modules[0](waveform))
    x = norm(x.transpose(1, 3), "bn0").transpose(1, 3)
    if "conv_block1.conv1.weight" in state:
        for k in range(1, 7):
            if f"conv_block{k}.conv1.weight" not in state: break
            for i in (1, 2):
                if f"conv_block{k}.conv{i}.weight" in state: x = norm(conv(x, f"conv_block{k}.conv{i}"), f"conv_block{k}.bn{i}").relu()
            if k < 6: x = F.avg_pool2d(x, 2)
    else:
        second = "features.1.conv.0.weight" in state
        act = F.relu6 if second else F.relu
        halve = {0, 2, 4, 7, 11} if second else {0, 2, 4, 6, 12}
        def step(x, at, conv_at, norm_at, pool=1, activate=True):
            x = norm(F.avg_pool2d(conv(x, f"{at}.{conv_at}"), pool), f"{at}.{norm_at}")
            return act(x) if activate else x
        x = step(x, "features.0", 0, 2, 2)
        for k in range(1, 19 if second else 14):
            at, pool = f"features.{k}" + (".conv" if second and k < 18 else ""), 2 if k in halve else 1
            if not second: x = step(step(x, at, 0, 2, pool), at, 4, 5)
            elif k == 18: x = step(x, at, 0, 1)
            elif k == 1: x = step(step(x, at, 0, 2, pool), at, 4, 5, activate=False)
            else:
                y = step(step(step(x, at, 0, 1), at, 3, 5, pool), at, 7, 8, activate=False)
                x = x + y if pool == 1 and x.shape == y.shape else y
    x = x.mean(3)
    x = x.amax(2) + x.mean(2)
    return F.linear(F.linear(x, state["fc1.weight"], state["fc1.bias"]).relu(), state["fc_audioset.weight"], state["fc_audioset.bias"])


@pytest.mark.parametrize("kind,rate", [("Cnn10", 32000), ("Cnn6", 32000), ("MobileNetV1", 32000), ("MobileNetV2", 32000), ("Cnn10", 16000), ("Cnn6", 8000)])
def test_panns_logits(kind, rate):
    state = panns_state(kind, rate)
    classifier, stft = from_panns(dict(model=state), LABELS)
    assert sum(p.numel() for p in classifier.model.parameters()) == PARAMETERS[kind]
    assert (classifier.sample_rate, stft.n_fft, stft.hop_length, classifier.multi_label) == (rate, *SETTINGS[rate][:2], True)
    clips = torch.cat([sound(1., rate, seed) for seed in (0, 1)])
    with torch.no_grad():
        found, maps = classifier.with_taps(ones(stft(clips)[0]))
        expected = panns_logits(state, clips, rate)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > .05   # else the same would be no wonder
    assert [m.shape[2] for m in maps] == sorted((m.shape[2] for m in maps), reverse=True) and len(maps) >= 4


def test_full_cnn14_beside_panns_inference(tmp_path, monkeypatch):
    pytest.importorskip("torchlibrosa")
    (tmp_path/"panns_data").mkdir()   # the package looks for its labels there when it is imported, and would download them
    rows = [["index", "mid", "display_name"]] + [[k, f"/m/{k}", name] for k, name in enumerate(LABELS)]
    with open(tmp_path/"panns_data"/"class_labels_indices.csv", "w", newline="") as f: csv.writer(f).writerows(rows)
    monkeypatch.setenv("HOME", str(tmp_path))
    models = pytest.importorskip("panns_inference.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = models.Cnn14(32000, 1024, 320, 64, 50, 14000, 527).eval()
        for m in theirs.modules():
            if isinstance(m, (nn.Conv2d, nn.Linear)): nn.init.kaiming_normal_(m.weight)
    theirs.bn0.running_mean.fill_(-30), theirs.bn0.running_var.fill_(400)
    classifier, stft = from_panns(dict(model=theirs.state_dict()), tmp_path/"panns_data"/"class_labels_indices.csv")
    assert classifier.labels == LABELS and sum(p.numel() for p in classifier.model.parameters()) == PARAMETERS["Cnn14"]
    clip = sound(1., 32000)
    with torch.no_grad():
        found, expected = classifier.probabilities(classifier(ones(stft(clip)[0]))), theirs(clip)["clipwise_output"]
        other = theirs(sound(1., 32000, 1))["clipwise_output"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (expected - other).abs().max() > 1e-3


def test_cnn14_at_16_khz_with_sampler_in_an_old_file(tmp_path):
    "As `Cnn14_16k_mAP=0.438.pth`: written by an old PyTorch, with arrays under an old name of NumPy"
    widths = (2, 4, 4, 8, 8, 16)
    state = panns_state("Cnn14", 16000, widths)
    sampler = dict(indexes_per_class=[np.arange(4), np.arange(2)], queue=[3], pointers_of_classes=[0, 1])
    file = tmp_path/"Cnn14_16k.pth"
    torch.save(dict(iteration=1, model=state, sampler=sampler), file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    with pytest.raises(Exception, match="numpy"): torch.load(file, weights_only=True)
    classifier, stft = from_panns(file, LABELS)
    clip = sound(2., 16000)
    with torch.no_grad(): torch.testing.assert_close(classifier(stft(clip)[0]), panns_logits(state, clip, 16000), rtol=0, atol=1e-4)
    assert classifier.taps == [f"conv_block{k}" for k in range(1, 7)]
    explainer = LMAC.for_classifier(classifier, stft=stft)
    assert explainer.attribute(stft(clip)[0], target=5).shape == stft(clip)[0].shape


def test_gradient_of_panns_is_one():
    "A small step along the gradient changes the logit by its length, through the front end as well"
    for kind in ("Cnn6", "MobileNetV2"):
        state = panns_state(kind, 16000, [4, 8, 8, 8] if kind == "Cnn6" else None)
        classifier, stft = from_panns(state, LABELS)
        classifier = classifier.double()
        classifier.front_end.forward = lambda m, f=classifier.front_end: 10 * (f.bank.mT @ m.square()).clamp_min(1e-10).log10()  # in double precision
        x = stft(sound(.5, 16000))[0].double().requires_grad_()
        gradient, = torch.autograd.grad(classifier(x)[0, 0], x)
        along, step = gradient / gradient.norm(), 1e-5
        with torch.no_grad(): slope = (classifier(x + step * along)[0, 0] - classifier(x - step * along)[0, 0]) / (2 * step)
        assert gradient.norm() > 1e-4 and abs(slope / gradient.norm() - 1) < 1e-3


def test_fine_tuned_panns(tmp_path):
    state = panns_state("Cnn6", 16000, [4, 8, 8, 8], n_classes=3)
    torch.save({f"module.{k}": v for k, v in state.items()}, tmp_path/"mine.pth")   # from training on several devices
    classifier, _ = from_panns(tmp_path/"mine.pth", ["a", "b", "c"], multi_label=False)
    assert classifier.labels == ["a", "b", "c"] and not classifier.multi_label
    with pytest.warns(UserWarning, match="3 classes are numbered"): assert from_panns(state)[0].labels[0] == "class 0"
    bank = state["logmel_extractor.melW"]
    with pytest.raises(ValueError, match="not the published one for 16000 Hz.*sample_rate="): panns_settings(bank.roll(1, 0))
    classifier, stft = from_panns(state | {"logmel_extractor.melW": bank.roll(1, 0)}, ["a", "b", "c"], sample_rate=22050, hop_length=220)
    assert (classifier.sample_rate, stft.hop_length) == (22050, 220)


@pytest.mark.parametrize("change,message", [
    (lambda s: {k: v for k, v in s.items() if not k.startswith("logmel")}, "logmel_extractor.melW is missing. They look like a CNN of PANNs"),
    (lambda s: s | {"fc1.weight": torch.ones(8, 9)}, "trunk ends with 8 channels, and the head takes 9"),
    (lambda s: s | {"conv_block2.bn1.weight": torch.ones(3)}, r"conv_block2.bn1.weight \(3,\) in place of \(8,\)"),
    (lambda s: {k: v for k, v in s.items() if k != "conv_block3.bn1.running_mean"}, "1 missing: conv_block3.bn1.running_mean"),
    (lambda s: s | {"att_block.att.weight": torch.ones(1)}, "a DecisionLevelAtt network of PANNs"),
    (lambda s: s | {"pre_conv0.weight": torch.ones(1)}, "a Wavegram network of PANNs"),
    (lambda s: {"resnet.layer1.0.conv1.weight": torch.ones(1), "fc_audioset.weight": torch.ones(1, 1)}, "a ResNet of PANNs"),
    (lambda s: {f"base.{k}": v for k, v in s.items()}, "fine-tuned network in the layout of PANNs"),
    (lambda s: {"wav2vec2.encoder.layers.0.x": torch.ones(1)}, "wav2vec 2.0 of transformers"),
    (lambda s: {"features.0.0.weight": torch.ones(32, 3, 3, 3), "classifier.1.weight": torch.ones(1)}, "an image network of torchvision")])
def test_other_layouts_are_named(change, message):
    with pytest.raises(ValueError, match=message): from_panns(change(panns_state("Cnn6", 16000, [4, 8, 8, 8])), LABELS)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"): from_panns(tmp_path/"none.pth")
    (tmp_path/"text.pth").write_text("hello")
    with pytest.raises(ValueError, match="no checkpoint of PyTorch"): read_checkpoint(tmp_path/"text.pth")
    torch.save(nn.Linear(2, 2), tmp_path/"module.pth")
    with pytest.raises(ValueError, match="holds more than numbers.*state dict alone"): read_checkpoint(tmp_path/"module.pth")
    torch.save([1, 2], tmp_path/"list.pth")
    with pytest.raises(ValueError, match="Found: list"): state_dict_of(tmp_path/"list.pth")
    torch.save(dict(model=np.array([print], dtype=object)), tmp_path/"objects.pth")   # an array, but not of numbers
    with pytest.raises(ValueError, match="holds more than numbers"): read_checkpoint(tmp_path/"objects.pth")
    assert checkpoint_kind(state_dict_of(dict(state_dict={"convt9.weight": torch.ones(1)}))) == "L-MAC's decoder of SpeechBrain (psi_model.ckpt)"
    assert all(not (isinstance(f, tuple) and f[0] in (eval, exec)) for f in array_globals())


# downloads, from a server on this machine

@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        files, asked = {}, []
        def log_message(self, *args): pass
        def do_GET(self):
            self.asked.append(self.path)
            data = self.files.get(self.path)
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", len(data or b""))
            self.end_headers()
            self.wfile.write(data or b"")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    Handler.address = f"http://127.0.0.1:{httpd.server_port}"
    yield Handler
    httpd.shutdown()
    httpd.server_close()

def test_download_checked_and_kept(server, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("LMAC_DATA", str(tmp_path))
    torch.save(dict(model=panns_state("Cnn6", 16000, [4, 8, 8, 8], n_classes=2)), tmp_path/"a")
    data = server.files["/cnn6"] = (tmp_path/"a").read_bytes()
    labels = server.files["/labels"] = b'index,mid,display_name\n0,/m/1,"Speech"\n1,/m/2,"Dog, barking"\n'
    monkeypatch.setitem(PANNS, "Cnn6", PublishedFile("Cnn6.pth", f"{server.address}/cnn6", hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(checkpoints, "AUDIOSET_LABELS", PublishedFile("class_labels_indices.csv", f"{server.address}/labels"))
    monkeypatch.setattr(checkpoints, "AUDIOSET_SHA256", hashlib.sha256(labels).hexdigest())
    for _ in range(2): classifier, _ = from_panns("Cnn6")
    assert classifier.labels == ["Speech", "Dog, barking"] and server.asked == ["/cnn6", "/labels"]   # the second time nothing was fetched
    assert sorted(p.name for p in (tmp_path/"panns").iterdir() if not p.name.startswith(".")) == ["Cnn6.pth", "class_labels_indices.csv"]
    monkeypatch.setattr(checkpoints, "AUDIOSET_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="class_labels_indices.csv is damaged"): from_panns("Cnn6")
    with pytest.raises(ValueError, match="should have the md5 sum"): fetch_published(PublishedFile("b.pth", f"{server.address}/cnn6", "0" * 32))
    assert not (tmp_path/"panns"/"b.pth").exists()

def test_checksum_that_zenodo_states(server, monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.files["/record"] = b'{"files": [{"key": "a.pth", "checksum": "md5:0123"}]}'
    assert (zenodo_md5("a.pth", f"{server.address}/record"), zenodo_md5("b.pth", f"{server.address}/record")) == ("0123", None)
    server.files["/html"] = b"<html>"
    with pytest.raises(ConnectionError, match="for a checksum"): zenodo_md5("a.pth", f"{server.address}/html")

def test_no_network(monkeypatch, tmp_path):
    import requests
    def fail(*args, **kwargs): raise requests.ConnectionError("no network")
    monkeypatch.setattr(requests, "get", fail)
    monkeypatch.setenv("LMAC_DATA", str(tmp_path))
    for name in PANNS:
        with pytest.raises(ConnectionError, match=rf"To do it by hand, get https://zenodo.org/records/3987831/files/.*put it at {tmp_path}/panns/"): from_panns(name)
    assert all(len(p.md5 or "0" * 32) == 32 for p in PANNS.values())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="embedding_model.ckpt.*from https://huggingface.co/nobody/nothing into a folder"): from_speechbrain("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="There is no folder nothing"): from_speechbrain("nothing")


# SpeechBrain

@pytest.fixture(scope="module")
def brain():
    pytest.importorskip("speechbrain")
    from speechbrain.lobes.models import Cnn14, ECAPA_TDNN
    from speechbrain.processing import features
    return Cnn14, ECAPA_TDNN, features

YAML = """
sample_rate: {rate}
n_fft: 1024
spec_mag_power: 0.5
hop_length: 11.6099
win_length: 23.2199
n_mels: 80
use_melspectra: True
use_log1p_mel: {log1p}
compute_stft: !new:speechbrain.processing.features.STFT
    n_fft: !ref <n_fft>
    sample_rate: !ref <sample_rate>
compute_fbank: !new:speechbrain.processing.features.Filterbank
    n_mels: !ref <n_mels>
    n_fft: !ref <n_fft>
    log_mel: {log_mel}
seed: 1234
__set_seed: !apply:speechbrain.utils.seed_everything [!ref <seed>]
opt_class: !name:torch.optim.Adam
    lr: 0.0002
data_folder: !PLACEHOLDER
"""

def speechbrain_folder(brain, folder, head, rate=16000, log1p=True, log_mel=False):
    "A CNN14 with its head, saved as SpeechBrain does"
    torch.manual_seed(0)
    network = brain[0].Cnn14(mel_bins=80, emb_dim=64).eval()
    for m in network.modules():
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight)
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 1.5)
    if log_mel: network.norm0.running_mean.fill_(-20), network.norm0.running_var.fill_(300)
    for m in head.modules():
        if isinstance(m, nn.BatchNorm1d): m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 1.5)
    for name, module in (("embedding_model", network), ("classifier", head)): torch.save(module.state_dict(), folder/f"{name}.ckpt")
    (folder/"hyperparams.yaml").write_text(YAML.format(rate=rate, log1p=log1p, log_mel=log_mel))
    (folder/"label_encoder.txt").write_text("".join(f"'{name}' => {k}\n" for k, name in enumerate("abc")) + "================\n'starting_index' => 0\n")
    return network

def speechbrain_features(brain, waveform, rate, log1p, log_mel):
    features = brain[2]
    magnitude = features.spectral_magnitude(features.STFT(rate, 23.2199, 11.6099, 1024)(waveform), power=.5)
    mel = features.Filterbank(n_mels=80, n_fft=1024, sample_rate=rate, log_mel=log_mel)(magnitude)
    return mel.log1p() if log1p else mel

@pytest.mark.parametrize("kind,settings", [
    ("linear", dict(rate=16000, log1p=True, log_mel=False)), ("linear", dict(rate=16000, log1p=False, log_mel=False)),
    ("cosine", dict(rate=16000, log1p=False, log_mel=True)), ("cosine with a block", dict(rate=44100, log1p=False, log_mel=True))])
def test_speechbrain_logits(brain, tmp_path, settings, kind):
    head = nn.Linear(64, 3) if kind == "linear" else brain[1].Classifier(64, lin_blocks=int("block" in kind), lin_neurons=24, out_neurons=3)
    network = speechbrain_folder(brain, tmp_path, head, **settings)
    classifier, stft = from_speechbrain(tmp_path)
    rate = settings["rate"]
    assert (classifier.sample_rate, classifier.labels) == (rate, ["a", "b", "c"])
    clips = torch.cat([sound(1.5, rate, seed)[:, :-9] for seed in (0, 1)])
    with torch.no_grad():
        expected = head.eval()(network(speechbrain_features(brain, clips, **settings))).squeeze(1) * (1 if kind == "linear" else 30)
        found = classifier(ones(stft(clips)[0]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > .01


def test_speechbrain_stft_and_its_inverse(brain):
    clip, stft = sound(5., 16000), STFT(1024, 186, 372, "hamming")
    magnitude, phase = stft(clip)
    theirs = torch.view_as_complex(brain[2].STFT(16000, 23.2199, 11.6099, 1024)(clip)).mT
    assert magnitude.shape[-1] == theirs.shape[-1] + 1 == 432
    torch.testing.assert_close(torch.polar(magnitude, phase)[..., :-1], theirs, rtol=0, atol=1e-4)
    torch.testing.assert_close(stft.inverse(magnitude, phase, 80000), clip, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_frames", [40, 47, 72, 201])
def test_published_decoder(brain, n_frames):
    torch.manual_seed(n_frames)
    theirs, ours = brain[0].CNN14PSI_stft(64).eval(), PublishedDecoder(64).eval()
    ours.load_state_dict(theirs.state_dict())   # the very names and shapes
    frames = n_frames//8, n_frames//16, n_frames//32, n_frames//32
    maps = [torch.randn(2, n, bands, k) for n, bands, k in zip((8, 16, 32, 64), (10, 5, 2, 2), frames)]
    with torch.no_grad():
        expected, found = theirs([m.mT for m in maps[::-1]])[:, 0].mT, ours.logits(maps, n_frames)
    n = min(n_frames, expected.shape[-1])
    torch.testing.assert_close(found[..., :n], expected[..., :n], rtol=0, atol=1e-4)
    assert found.shape == (2, 513, n_frames) and expected.std() > 1e-3
    with pytest.raises(ValueError, match="blocks 3 to 6"): ours.logits(maps[::-1], n_frames)


@pytest.fixture(scope="module")
def published(brain, tmp_path_factory):
    "A whole published explainer, narrow: a CNN14 of widths 2 to 64 and SpeechBrain's decoder of 64"
    folder = tmp_path_factory.mktemp("lmac")
    torch.manual_seed(0)
    widths, state = (2, 4, 8, 16, 32, 64), norm_state("norm0", 80)
    for k, (n_in, n_out) in enumerate(zip((1, *widths), widths), 1):
        for i, n in ((1, n_in), (2, n_out)):
            state |= {f"conv_block{k}.conv{i}.weight": torch.randn(n_out, n, 3, 3) * (2 / 9 / n)**.5} | norm_state(f"conv_block{k}.norm{i}", n_out)
    psi = brain[0].CNN14PSI_stft(64).eval()
    for name, x in (("embedding_model", state), ("classifier", nn.Linear(64, 3).state_dict()), ("psi_model", psi.state_dict())): torch.save(x, folder/f"{name}.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return folder, psi, lmac_from_speechbrain(folder)

def test_published_explainer_plays(brain, published):
    folder, psi, explainer = published
    clip = sound(5., 16000)
    magnitude, _ = explainer.stft(clip)
    with torch.no_grad():   # the recipe's way: maps of its 431 frames, deepest first, through its decoder
        features = speechbrain_features(brain, clip, 16000, True, False)
        torch.testing.assert_close(explainer.classifier.front_end(magnitude), features.mT, rtol=0, atol=1e-4)
        _, maps = explainer.classifier.with_taps(magnitude)
        expected = psi([m.mT for m in maps[::-1]]).sigmoid()[:, 0].mT
    mask = explainer.attribute(magnitude)
    assert expected.shape[-1] == 425 and mask.shape == magnitude.shape == (1, 513, 432)
    torch.testing.assert_close(mask[..., :425], expected, rtol=0, atol=1e-5)
    assert (mask[..., 425:] == mask[..., 424:425]).all() and mask.std() > 1e-3
    explanation = explainer.explain(clip, 16000)
    assert explanation.audio.shape == clip.shape and explanation.audio.isfinite().all()
    with pytest.raises(ValueError, match="decoder is class-agnostic"): explainer.explain(clip, 16000, target=(explanation.class_index + 1) % 3)

def test_published_explainer_without_speechbrain(published):
    code = ("import sys, warnings; warnings.simplefilter('ignore'); sys.modules['speechbrain'] = sys.modules['transformers'] = None\n"
            f"from lmac.models.checkpoints import lmac_from_speechbrain\nimport torch\nprint(lmac_from_speechbrain({str(published[0])!r}).attribute(torch.rand(1, 513, 80)).shape)")
    assert "513, 80" in subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

def test_speechbrain_refusals(brain, published, tmp_path):
    folder = published[0]
    with pytest.warns(UserWarning, match="settings of L-MAC's recipe"), pytest.warns(UserWarning, match="classes are numbered"): from_speechbrain(folder)
    for name in ("embedding_model", "classifier"): (tmp_path/f"{name}.ckpt").write_bytes((folder/f"{name}.ckpt").read_bytes())
    with pytest.raises(FileNotFoundError, match="no decoder psi_model.ckpt.*without a checksum"): lmac_from_speechbrain(tmp_path)
    with pytest.raises(ValueError, match="not L-MAC's decoder.*a linear layer"): lmac_from_speechbrain(tmp_path, tmp_path/"classifier.ckpt")
    torch.save(brain[0].CNN14PSI(64).state_dict(), tmp_path/"psi_model.ckpt")
    with pytest.raises(ValueError, match="SpeechBrain's decoder on mel bands"): lmac_from_speechbrain(tmp_path)
    torch.save(panns_state("Cnn6", 16000, [4, 8, 8, 8]), tmp_path/"embedding_model.ckpt")
    with pytest.raises(ValueError, match="They look like a CNN of PANNs"): from_speechbrain(tmp_path)
    torch.save(brain[0].Cnn14(80, 16, norm_type="ln").state_dict(), tmp_path/"embedding_model.ckpt")
    with pytest.raises(ValueError, match="with batch normalisation"): from_speechbrain(tmp_path)
    (tmp_path/"hyperparams.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="no YAML file"): read_hyperparams(tmp_path/"hyperparams.yaml")


# transformers

@pytest.fixture(scope="module")
def hf():
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers

SMALL = dict(hidden_size=32, num_hidden_layers=5, num_attention_heads=2, intermediate_size=48, initializer_range=.3)  # weights large enough to matter
NAMES = dict(id2label={0: "dog", 1: "rain", 2: "siren"}, label2id=dict(dog=0, rain=1, siren=2))

def tiny(hf, kind):
    "A model of random weights and its feature extractor"
    torch.manual_seed(0)
    conv = dict(conv_dim=(16,) * 7, num_conv_pos_embeddings=16)
    wave = lambda name, **more: getattr(hf, f"{name}ForSequenceClassification")(getattr(hf, f"{name}Config")(**conv, **SMALL, **NAMES, **more))
    if kind == "ast": return hf.ASTForAudioClassification(hf.ASTConfig(max_length=260, **SMALL, **NAMES)), hf.ASTFeatureExtractor(max_length=260)
    if kind == "ast other grid":
        config = hf.ASTConfig(max_length=140, num_mel_bins=64, frequency_stride=16, time_stride=8, **SMALL, **NAMES)
        return hf.ASTForAudioClassification(config), hf.ASTFeatureExtractor(max_length=140, num_mel_bins=64, do_normalize=False)
    if kind == "wav2vec2": return wave("Wav2Vec2"), hf.Wav2Vec2FeatureExtractor()
    if kind == "wav2vec2 layer norm":
        return wave("Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True, use_weighted_layer_sum=True), hf.Wav2Vec2FeatureExtractor(do_normalize=True)
    if kind == "hubert": return wave("Hubert"), hf.Wav2Vec2FeatureExtractor(do_normalize=False)
    if kind == "wavlm": return wave("WavLM"), hf.Wav2Vec2FeatureExtractor()
    config = hf.WhisperConfig(d_model=32, encoder_layers=5, encoder_attention_heads=2, encoder_ffn_dim=48, max_source_positions=150, decoder_layers=1, init_std=.3,
                              use_weighted_layer_sum="weighted" in kind, **NAMES)
    return hf.WhisperForAudioClassification(config), hf.WhisperFeatureExtractor(chunk_length=3)

KINDS = ["ast", "ast other grid", "wav2vec2", "wav2vec2 layer norm", "hubert", "wavlm", "whisper", "whisper weighted"]

@pytest.mark.parametrize("kind", KINDS)
def test_transformers_logits(hf, kind):
    model, extractor = tiny(hf, kind)
    classifier, stft = from_transformers(model, extractor)
    assert classifier.uses_phase and classifier.labels == ["dog", "rain", "siren"] and len(classifier.taps) == 4 and not classifier.multi_label
    clips = torch.cat([sound(1.3, 16000, seed) for seed in (0, 1)])
    magnitude, phase = stft(clips)
    mask = torch.ones_like(magnitude, requires_grad=True)
    found, maps = classifier.with_taps(apply_mask(magnitude, mask), phase)
    with torch.no_grad(): expected = torch.cat([model(**extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")).logits for clip in clips])
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > .01
    found[:, 1].sum().backward()
    assert mask.grad.isfinite().all() and (mask.grad.flatten(1).abs().sum(1) > 0).all()
    assert all(p.grad is None for p in model.parameters())
    columns, rows = dict(ast=(13, 12), whisper=(65, 1)).get(kind.split()[0], (64, 1))   # 128 frames of Kaldi's in 13 columns; 1.3 s in frames of 20 ms
    if kind == "ast other grid": columns, rows = 16, 4
    assert {tuple(m.shape) for m in maps[classifier.guide:]} == {(2, 32, rows, columns)} and classifier.guide == (rows == 1)
    decoder = MaskDecoder.for_classifier(classifier, stft)
    assert decoder.guide == classifier.guide and (not decoder.guide or tuple(maps[0].shape) == (2, 2, *magnitude.shape[1:]))   # the spectrogram comes first
    assert decoder(maps, magnitude.shape[-1], torch.tensor([0, 1])).shape == magnitude.shape


@pytest.mark.parametrize("kind", ["ast", "wav2vec2", "whisper"])
@pytest.mark.parametrize("duration_s", [.4, 2.9, 3.7])
def test_transformers_features(hf, kind, duration_s):
    "Shorter and longer than what the network takes"
    _, extractor = tiny(hf, kind)
    clip = sound(duration_s, 16000)
    expected = next(iter(extractor(clip[0].numpy(), sampling_rate=16000, return_tensors="pt").values()))
    torch.testing.assert_close(extractor_features(extractor)(clip), expected, rtol=0, atol=1e-4)
    assert expected.std() > .01


def ten_clips(rate, window_s):
    "Silence, short, long, quiet and odd ones"
    noise = lambda duration_s, level=.1, g=torch.Generator().manual_seed(0): level * torch.randn(int(duration_s * rate), generator=g)
    tone = torch.sin(.17 * torch.arange(rate))
    return dict(silence=torch.zeros(rate), noise=noise(1.), short=noise(.05), odd=noise(.7)[:-37], quiet=noise(1., 1e-4), very_quiet=noise(1., 1e-7), tone=tone,
                offset=.3 + noise(.5), half=torch.cat([noise(.5), torch.zeros(rate//2)]), long=noise(1.7 * window_s))

EXTRACTORS = {"AST": ("ASTFeatureExtractor", dict(max_length=200)), "AST as it is": ("ASTFeatureExtractor", dict(max_length=200, do_normalize=False)),
              "wav2vec 2.0": ("Wav2Vec2FeatureExtractor", dict(do_normalize=True)), "wav2vec 2.0, mask": ("Wav2Vec2FeatureExtractor", dict(return_attention_mask=True)),
              "HuBERT": ("Wav2Vec2FeatureExtractor", dict(do_normalize=False)), "Whisper": ("WhisperFeatureExtractor", dict(chunk_length=2)),
              "Whisper, 128 bands": ("WhisperFeatureExtractor", dict(chunk_length=2, feature_size=128)), "Whisper, padded": ("WhisperFeatureExtractor", dict(chunk_length=2, padding_value=.01)),
              "CLAP": ("ClapFeatureExtractor", dict(max_length_s=2, truncation="rand_trunc")), "CLAP, fusion": ("ClapFeatureExtractor", dict(max_length_s=2)),
              "CLAP, repeat": ("ClapFeatureExtractor", dict(max_length_s=2, padding="repeat")), "CLAP, pad": ("ClapFeatureExtractor", dict(max_length_s=2, padding="pad", truncation="rand_trunc"))}

@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractors_on_ten_clips(hf, name, monkeypatch):
    "Each twin gives what its extractor gives; where that draws lots, the first of what might be drawn"
    monkeypatch.setattr(np.random, "randint", lambda low, *high: low if high else 0)
    monkeypatch.setattr(np.random, "choice", lambda among: among[0])
    kind, settings = EXTRACTORS[name]
    extractor = getattr(hf, kind)(**settings)
    twin, rate = extractor_features(extractor), extractor.sampling_rate
    for clip_name, clip in ten_clips(rate, 2.).items():
        theirs = torch.as_tensor(next(iter(extractor(clip.numpy(), sampling_rate=rate, return_tensors="pt").values())))
        torch.testing.assert_close(twin(clip[None]), theirs, rtol=0, atol=1e-4, msg=lambda m: f"{clip_name}: {m}")


@pytest.mark.parametrize("truncation", ["rand_trunc", "fusion"])
def test_clap_in_a_module_of_ones_own(hf, truncation):
    "What CLAP says to a sound, as similarities to sentences: an explainer of a few lines, with the same answers; `is_longer` is what the extractor says of a clip alone"
    torch.manual_seed(0)
    config = hf.ClapAudioConfig(spec_size=256, patch_embeds_hidden_size=16, depths=[1, 1, 1, 1], num_attention_heads=[2, 2, 2, 2], hidden_size=128, projection_dim=16,
                                projection_hidden_size=16, num_mel_bins=64, enable_fusion=truncation == "fusion")
    extractor, audio, sentences = hf.ClapFeatureExtractor(max_length_s=10, truncation=truncation), hf.ClapAudioModelWithProjection(config).eval(), torch.randn(3, 16)
    class Similarity(nn.Module):
        def __init__(self):
            super().__init__()
            self.audio = audio
        def forward(self, features): return 10 * F.normalize(self.audio(features, is_longer=torch.ones(len(features), 1, dtype=torch.bool)).audio_embeds, dim=1) @ F.normalize(sentences, dim=1).T
    with pytest.raises(ValueError, match="CLAP has no classes"): from_transformers(audio, extractor)
    stft, clip = STFT(2048, 960), sound(1., 48000)
    features = Resynthesis(stft, 48000, extractor_features(extractor))
    with torch.no_grad():
        inputs = extractor(clip[0].numpy(), sampling_rate=48000, return_tensors="pt")
        expected = 10 * F.normalize(audio(**inputs).audio_embeds, dim=1) @ F.normalize(sentences, dim=1).T
        torch.testing.assert_close(Similarity()(features(*stft(clip))), expected, rtol=0, atol=1e-4)


def test_guide_of_models_without_frequencies(hf):
    "wav2vec 2.0's decoder draws from the spectrogram itself, and one from before that can still be had"
    model, extractor = tiny(hf, "wav2vec2")
    classifier, stft = from_transformers(model, extractor)
    made = LMAC.for_classifier(classifier, stft=stft)
    magnitude, phase = stft(sound(1.3, 16000))
    assert made.decoder.guide and made.attribute(magnitude, phase=phase).shape == magnitude.shape
    classifier, _ = from_transformers(model, extractor, guide=False)
    assert not MaskDecoder.for_classifier(classifier, stft).guide
    model.config.id2label = {k: "the same" for k in range(3)}
    with pytest.raises(ValueError, match="the same"): from_transformers(model, extractor)
    assert from_transformers(model, extractor, labels=["a", "b", "c"])[0].labels == ["a", "b", "c"]
    assert from_transformers(*tiny(hf, "whisper"))[0].guide and not from_transformers(*tiny(hf, "ast"))[0].guide


@pytest.mark.parametrize("kind", ["ast", "wav2vec2", "hubert", "whisper"])
def test_padding_of_extractors(hf, kind):
    "AST's padding is no silence, wav2vec 2.0's is normalised with the clip; the mask leaves it out, and it is said and drawn"
    classifier, stft = from_transformers(*tiny(hf, kind))
    made = LMAC.for_classifier(classifier, stft=stft)
    notes = " ".join(made.classifier.notes)
    assert ("no silence" in notes) == (kind == "ast") and ("normalised together" in notes) == (kind == "wav2vec2") and classifier.notes == ([] if notes else classifier.notes)
    window = dict(ast=2.6, whisper=3.).get(kind)
    assert made.classifier.heard_s == (window and pytest.approx(window, abs=.05)) and ("hears the first" in notes) == (window is not None)
    assert made.classifier.padded_s == dict(ast=made.classifier.heard_s, wav2vec2=1.).get(kind)
    with pytest.warns(UserWarning, match="not trained"): ex = made.explain(sound(.6, 16000), 16000)
    assert ex.padding_s == pytest.approx(dict(ast=2., wav2vec2=.4).get(kind, 0), abs=.05) and ("padding" in ex.sentence()) == (kind in ("ast", "wav2vec2"))
    assert ex.mask[:, ex.n_frames:].any() == (kind not in ("ast", "wav2vec2")) and ex.mask[:, :ex.n_frames].any()
    texts = [text.get_text() for ax in ex.figure().axes for text in ax.texts]
    assert ("padding" in texts) == (kind in ("ast", "wav2vec2")) and ex.figure().axes[0].get_xlim()[1] == pytest.approx(.6 + ex.padding_s, abs=.03)
    if window:
        with pytest.warns(UserWarning, match="not trained"): ex = made.explain(sound(4.3, 16000), 16000)
        assert not ex.mask[:, ex.heard_frames:].any() and ex.padding_s == 0


@pytest.mark.parametrize("kind", ["ast", "wav2vec2", "whisper"])
def test_features_in_full_precision(hf, kind):
    "Under mixed precision, and of batches clip by clip"
    features = extractor_features(tiny(hf, kind)[1])
    clips = torch.cat([sound(1., 16000, seed) for seed in (0, 1)])
    with torch.autocast("cpu", torch.bfloat16): found = features(clips)
    torch.testing.assert_close(found, torch.cat([features(clip[None]) for clip in clips]), rtol=0, atol=1e-4)

def test_front_ends_in_full_precision():
    magnitude = 30 * torch.rand(1, 513, 40)
    for front_end in (checkpoints.SpeechBrainMel(), checkpoints.SpeechBrainMel(compression="db"), checkpoints.DecibelMel(torch.rand(513, 64), 16000)):
        with torch.autocast("cpu", torch.bfloat16): found = front_end(magnitude)
        torch.testing.assert_close(found, front_end(magnitude), rtol=0, atol=0)


def test_tokens_lie_where_the_sound_is(hf):
    "A click late in the clip and high in frequency: what AST's first layer makes of it, compared with the clip without, is late and high"
    model, extractor = tiny(hf, "ast")
    classifier, stft = from_transformers(model, extractor, taps=["audio_spectrogram_transformer.embeddings.patch_embeddings"], n_taps=1)
    layout = classifier.layouts[classifier.taps[0]]
    plain = torch.zeros(1, 32000)
    t = torch.arange(1600) / 16000
    with_tone = plain.clone()
    with_tone[0, 24000:25600] = torch.sin(2 * torch.pi * 5000 * t)
    def patches(x):   # the embeddings of patches, behind two tokens as in the layers
        with torch.no_grad(): found = model.audio_spectrogram_transformer.embeddings.patch_embeddings(extractor_features(extractor)(x))
        return layout(F.pad(found, (0, 0, 2, 0)), stft.n_frames(32000))
    change = (patches(with_tone) - patches(plain)).square().sum((0, 1))
    row, column = divmod(change.argmax().item(), change.shape[1])
    assert change.shape == (12, 20) and column in (14, 15) and row in (9, 10)   # 1.5 s of 2; 5 kHz is band 106 of 128


def test_whisper_frames_of_the_clip_alone(hf):
    model, extractor = tiny(hf, "whisper")
    classifier, stft = from_transformers(model, extractor)
    lengths = {d: classifier.with_taps(*stft(sound(d, 16000)))[1][-1].shape[-1] for d in (.5, 1., 2., 4.)}
    assert lengths == {.5: 25, 1.: 50, 2.: 100, 4.: 200}   # beyond three seconds there is nothing, and zeros say so
    assert not classifier.with_taps(*stft(sound(4., 16000)))[1][-1][..., 150:].any()


def test_odd_length_is_the_clip_with_zeros_appended(hf):
    model, extractor = tiny(hf, "wav2vec2")
    classifier, stft = from_transformers(model, extractor)
    clip = sound(1.3, 16000)[:, :-111]
    with torch.no_grad():
        found = classifier(*stft(clip))
        padded, bare = (model(extractor_features(extractor)(x)).logits for x in (F.pad(clip, (0, 111)), clip))
    torch.testing.assert_close(found, padded, rtol=0, atol=1e-4)
    assert (padded - bare).abs().max() > 1e-4


def test_transformers_folder(hf, tmp_path):
    model, extractor = tiny(hf, "hubert")
    model.config.problem_type = "multi_label_classification"
    model.save_pretrained(tmp_path), extractor.save_pretrained(tmp_path)
    classifier, stft = from_transformers(str(tmp_path), n_taps=2)
    assert classifier.multi_label and classifier.taps == ["hubert.encoder.layers.2", "hubert.encoder.layers.4"]
    assert not from_transformers(tmp_path, multi_label=False)[0].multi_label
    clip = sound(1., 16000)
    with torch.no_grad(): torch.testing.assert_close(classifier(*stft(clip)), model.eval()(clip).logits, rtol=0, atol=1e-4)
    other = STFT(512, 160)
    classifier, stft = from_transformers(tmp_path, stft=other)
    assert stft is other and classifier(*stft(clip)).shape == (1, 3)


def test_audioset_model_is_a_tagger(hf):
    config = hf.ASTConfig(max_length=120, **SMALL, id2label={k: "Speech" if k == 0 else f"s{k}" for k in range(527)}, label2id={})
    classifier, _ = from_transformers(hf.ASTForAudioClassification(config), hf.ASTFeatureExtractor(max_length=120))
    assert classifier.multi_label and len(classifier.labels) == 527


def test_transformers_refusals(hf, tmp_path, monkeypatch):
    model, extractor = tiny(hf, "wav2vec2")
    with pytest.raises(ValueError, match="needs its feature extractor"): from_transformers(model)
    with pytest.raises(ValueError, match="Found: SpeechT5FeatureExtractor.*Resynthesis"): from_transformers(model, hf.SpeechT5FeatureExtractor())
    with pytest.raises(ValueError, match="no layer 'nothing' to tap"): from_transformers(model, extractor, taps=["nothing"])
    model.wav2vec2.save_pretrained(tmp_path/"base"), extractor.save_pretrained(tmp_path/"base")
    with pytest.raises(ValueError, match="lacks 4 weights, for example classifier.bias: it is a model to be fine-tuned"): from_transformers(tmp_path/"base")
    hf.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path/"bert")
    with pytest.raises((ValueError, FileNotFoundError), match="is no audio classifier|No model could be loaded"): from_transformers(tmp_path/"bert")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="get config.json, model.safetensors, preprocessor_config.json from https://huggingface.co/nobody/nothing"):
        from_transformers("nobody/nothing")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="pip install"): from_transformers(tmp_path/"base")


def test_pools_are_those_of_the_networks():
    assert [sum(p == 2 for p in pools) for pools in POOLS.values()] == [5, 5]
    assert PSI_TAPS == [f"conv_block{k}" for k in (3, 4, 5, 6)]
    assert panns_network(panns_state("MobileNetV2", 16000)).min_frames == 32
