"""Whether ordinary networks are wrongly said to hear something besides the clip: `pip install -e '.[dev]' torchvision timm torchcrepe`, then
`python tests/measure_ordinary.py --out nbs/results/ordinary.json`, some minutes.

Some forty networks of torchvision, timm, transformers, SpeechBrain, PANNs, torchaudio and torchcrepe, small versions with random weights, which need nothing from the
network, are examined as `LMAC.for_classifier` does it. What each does hear besides the clip, or does not hear of it, is known from its code and stands beside it: a window, a
padding that is no silence, a normalisation together with the padding, noise that is added. All else that is found, or is not, is wrong. Networks of a package that is not installed are left out.
"""
import json
import sys
import types
import warnings
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from fastcore.script import call_parse
from torch import nn

from lmac import __version__
from lmac.adapters import SpectrogramImage
from lmac.classifier import ANSWER
from lmac.explain import LMAC
from lmac.spectrogram import LogMel

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48, num_labels=4)
WAVES = dict(conv_dim=(16,) * 7, num_conv_pos_embeddings=16)


def image(package, name, size=None, **settings):
    "An image network on a log-mel spectrogram, as it is or scaled to a size"
    model = {"torchvision": lambda: import_module("torchvision.models").get_model(name, **settings), "timm": lambda: import_module("timm").create_model(name, **settings)}[package]()
    return LMAC.for_classifier(model, SpectrogramImage(LogMel(), (size, size)) if size else LogMel(), duration_s=2.)

def of_transformers(model, extractor, config, **settings):
    "A network of transformers with its feature extractor"
    from lmac.models.checkpoints import from_transformers
    hf = import_module("transformers")
    hf.logging.set_verbosity_error()
    extractor = getattr(hf, f"{extractor}FeatureExtractor")(**settings)
    classifier, stft = from_transformers(getattr(hf, model)(getattr(hf, f"{model.split('For')[0]}Config")(**config)), extractor)
    return LMAC.for_classifier(classifier, stft=stft)

def speechbrain(name, **settings):
    "A network of SpeechBrain on `(batch, frame, mel)`, with a linear head"
    network = getattr(import_module(f"speechbrain.lobes.models.{name}"), name)(**settings)
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.network, self.head = network, nn.LazyLinear(4)
        def forward(self, x):
            x = self.network(x.mT)
            return self.head((x[0] if isinstance(x, tuple) else x).flatten(1))
    model = Headed().eval()
    model(torch.zeros(2, 80, 126))
    return LMAC.for_classifier(model, LogMel(), duration_s=2.)

def panns(name, rate=32000):
    "PANNs as panns_inference has them, on waveforms"
    if "panns_inference" not in sys.modules:  # the package itself would download its labels
        folder = find_spec("panns_inference").submodule_search_locations
        sys.modules["panns_inference"] = types.ModuleType("panns_inference")
        sys.modules["panns_inference"].__path__ = folder
    models = import_module("panns_inference.models")
    return LMAC.for_classifier(getattr(models, name)(rate, 1024, 320, 64, 50, 14000, 20), sample_rate=rate, duration_s=2.)

def on_waves(make, rate=16000, **settings): return LMAC.for_classifier(make(), sample_rate=rate, **settings)

class Wav2Vec2(nn.Module):
    "torchaudio's wav2vec 2.0, which normalises nothing"
    def __init__(self):
        super().__init__()
        self.network = import_module("torchaudio.models").wav2vec2_model("group_norm", [(16, 10, 5), (16, 3, 2), (16, 2, 2)], False, 32, 0., 16, 4, 2, 2, 0., 48, 0., 0., False, 0., 4)
    def forward(self, x): return self.network(x)[0].mean(1)

class Conformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = import_module("torchaudio.models").Conformer(80, 2, 64, 2, 7), nn.Linear(80, 4)
    def forward(self, x): return self.head(self.body(x.mT, torch.full((len(x),), x.shape[2]))[0].mean(1))

class Crepe(nn.Module):
    "Frames of 1024 samples, brought to zero mean and unit variance"
    def __init__(self):
        super().__init__()
        self.network = import_module("torchcrepe").Crepe("tiny")
    def forward(self, x):
        x = x - x.mean(1, keepdim=True)
        return self.network(x / x.std(1, keepdim=True).clamp_min(1e-10))

class Wave(nn.Module):
    "Four convolutions on the waveform (M5, arXiv 1610.00087)"
    def __init__(self):
        super().__init__()
        def block(i, o, size, stride): return nn.Sequential(nn.Conv1d(i, o, size, stride), nn.BatchNorm1d(o), nn.ReLU(), nn.MaxPool1d(4))
        self.blocks, self.head = nn.Sequential(block(1, 32, 80, 4), block(32, 32, 3, 1), block(32, 64, 3, 1), block(64, 64, 3, 1)), nn.Linear(64, 4)
    def forward(self, x): return self.head(self.blocks(x).mean(2))

class Recurrent(nn.Module):
    "Two layers of GRU on a log-mel spectrogram"
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(80, 64, 2, batch_first=True, bidirectional=True), nn.Linear(128, 4)
    def forward(self, x): return self.head(self.gru(x.mT)[0].mean(1))


WINDOW, PADDED = ("heard_s",), ("heard_s", "padded_s")  # of what is known from the code: hears so much and no more; and pads with what is no silence
NETWORKS = {f"torchvision {name}": ("torchvision", partial(image, "torchvision", name, **settings), ()) for name, settings in dict(
    resnet18={}, mobilenet_v2={}, mobilenet_v3_small={}, efficientnet_b0={}, shufflenet_v2_x0_5={}, squeezenet1_0={}, densenet121={}, mnasnet0_5={}, regnet_y_400mf={},
    convnext_tiny={}, vgg11_bn={}, swin_t={}, vit_b_32=dict(size=224), googlenet=dict(init_weights=False, aux_logits=False)).items()}
NETWORKS |= {f"timm {name}": ("timm", partial(image, "timm", name, **settings), ()) for name, settings in dict(
    resnet10t={}, mobilevit_xxs={}, convnext_atto={}, edgenext_xx_small={}, ghostnet_050={}, tf_efficientnetv2_b0={}, vit_tiny_patch16_224=dict(size=224), mixer_s32_224=dict(size=224)).items()}
NETWORKS |= {f"transformers {name}": ("transformers", partial(of_transformers, *parts, **settings), known) for name, parts, settings, known in (
    ("AST", ("ASTForAudioClassification", "AST", SMALL), {}, PADDED),
    ("Whisper", ("WhisperForAudioClassification", "Whisper", dict(d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=48, decoder_layers=1, num_labels=4)), {}, WINDOW),
    ("wav2vec 2.0", ("Wav2Vec2ForSequenceClassification", "Wav2Vec2", SMALL | WAVES), {}, ("padded_s",)),
    ("HuBERT", ("HubertForSequenceClassification", "Wav2Vec2", SMALL | WAVES), dict(do_normalize=False), ()),
    ("WavLM", ("WavLMForSequenceClassification", "Wav2Vec2", SMALL | WAVES), dict(do_normalize=False), ()),
    ("UniSpeech-SAT", ("UniSpeechSatForSequenceClassification", "Wav2Vec2", SMALL | WAVES), dict(do_normalize=False), ()),
    ("data2vec", ("Data2VecAudioForSequenceClassification", "Wav2Vec2", SMALL | dict(conv_dim=(16,) * 7, num_conv_pos_embedding_groups=2)), dict(do_normalize=False), ()))}
NETWORKS |= {f"SpeechBrain {name}": ("speechbrain", partial(speechbrain, name, **settings), known) for name, settings, known in (
    ("ECAPA_TDNN", dict(input_size=80, channels=[32] * 4 + [96], lin_neurons=16), ()), ("Cnn14", dict(mel_bins=80, emb_dim=32), ()),
    ("Xvector", dict(in_channels=80, tdnn_channels=[32] * 4 + [64], lin_neurons=16), ("draws", "one_by_one")))}  # its pooling adds a little noise, in eval() too
NETWORKS |= {f"PANNs {name}": ("panns-inference", partial(panns, name), ()) for name in ("Cnn14", "Cnn14_DecisionLevelMax")}
NETWORKS |= {"torchaudio wav2vec 2.0": ("torchaudio", partial(on_waves, Wav2Vec2, duration_s=1.), ()), "torchaudio Conformer": ("torchaudio", lambda: LMAC.for_classifier(Conformer(), LogMel(), duration_s=2.), ()),
             "torchcrepe tiny": ("torchcrepe", partial(on_waves, Crepe), ("padded_s",)), "M5": ("torch", partial(on_waves, Wave, duration_s=1.), ()),
             "GRU": ("torch", lambda: LMAC.for_classifier(Recurrent(), LogMel(), duration_s=2.), ())}


def look_at(name):
    "Versions, what is known, what was found, and what of it is wrong; None for a package that is not installed"
    package, make, known = NETWORKS[name]
    try: found_version = version(package)
    except ImportError: return None
    torch.manual_seed(0)
    with warnings.catch_warnings(action="ignore"): explainer = make()
    classifier = explainer.classifier
    found = [k for k, v in ANSWER.items() if k != "notes" and getattr(classifier, k) != v]
    return dict(network=name, package=f"{package} {found_version}", million_parameters=round(sum(p.numel() for p in classifier.model.parameters()) / 1e6, 2), known=list(known), found=found,
                wrong=sorted(set(found) ^ set(known)), notes=classifier.notes)


@call_parse
def main(
    out:str="nbs/results/ordinary.json", # result file
):
    "Examine all of them"
    rows, missing = [], []
    for name in NETWORKS:
        row = look_at(name)
        print(name, row and (row["found"], row["wrong"]), flush=True)
        rows, missing = (rows + [row], missing) if row else (rows, missing + [name])
    result = dict(what="Ordinary networks of random weights, and what is said to be heard besides the clip", lmac_version=__version__, torch_version=version("torch"),
                  n_networks=len(rows), n_wrong=sum(bool(row["wrong"]) for row in rows), missing=missing, networks=rows)
    Path(out).write_text(json.dumps(result, indent=1))
