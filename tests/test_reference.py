"""The reference decoder in our harness: masks of every length, clear refusals, files that are checked."""
import subprocess
import sys

import pytest
import torch

pytest.importorskip("speechbrain")
from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.evidence.reference import (REFERENCE_TAPS, ReferenceDecoder, ReferenceExplainer, reference_network,
                            with_taps_at)
from lmac.spectrogram import STFT, LogMel
from lmac.training import ExplainerTask

ALL = [f"conv_block{k}" for k in range(1, 7)]


def classifier(width=2, taps=REFERENCE_TAPS, seed=0, n_mels=80):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TappedClassifier(Cnn14(3, width=width, n_mels=n_mels), LogMel(n_mels=n_mels), taps, ["a", "b", "c"], 16000, duration_s=1.)


@pytest.fixture(scope="module")
def stft(): return STFT(hop_length=240)


@pytest.fixture(scope="module")
def explainer(stft):
    "An untrained one, whose masks vary from bin to bin"
    torch.manual_seed(0)
    tapped = classifier()
    decoder = ReferenceDecoder.for_classifier(tapped, stft)
    for p in decoder.parameters(): p.data.mul_(2)
    return ReferenceExplainer(tapped, decoder, stft, provenance=dict(made="here"))


@pytest.mark.parametrize("n_frames", [32, 39, 40, 41, 47, 48, 63, 72, 100, 201, 314, 335, 431, 432])
def test_mask_of_every_length(explainer, n_frames):
    magnitude = torch.rand(2, 513, n_frames, generator=torch.Generator().manual_seed(n_frames))
    mask = explainer.attribute(magnitude)
    assert mask.shape == magnitude.shape and mask.isfinite().all()
    assert 0 <= mask.min() < mask.max() <= 1


@pytest.mark.parametrize("n_frames", [40, 47, 72, 201])
def test_unchanged_where_the_network_fits(explainer, n_frames):
    with torch.no_grad():
        _, maps = explainer.classifier.with_taps(torch.rand(1, 513, n_frames))
        bare = explainer.decoder.network([m.mT for m in maps[::-1]])[:, 0].mT
        found = explainer.decoder.logits(maps, n_frames)
    n = min(n_frames, bare.shape[-1])
    torch.testing.assert_close(found[..., :n], bare[..., :n], rtol=0, atol=1e-5)
    assert (found[..., n:] == found[..., n - 1:n]).all()


def test_parameters_of_the_published_decoder():
    with torch.device("meta"): network = reference_network(2048)
    assert sum(p.numel() for p in network.parameters()) == 236_728_321


@pytest.mark.parametrize("other", [dict(taps=ALL), dict(taps=ALL[:4]), dict(taps=REFERENCE_TAPS[::-1]), dict(n_mels=64)])
def test_other_maps_are_refused(stft, other):
    with pytest.raises(ValueError, match="reads blocks 3 to 6 of a Cnn14 on 80 mel bands.*Found"):
        ReferenceDecoder.for_classifier(classifier(**other), stft)


def test_other_width_is_refused(explainer, stft):
    _, maps = classifier(4).with_taps(torch.rand(1, 513, 72))
    with pytest.raises(ValueError, match="with dim 32 times its width"): explainer.decoder(maps, 72)


def test_other_stft_is_refused():
    with pytest.raises(ValueError, match="513 bins.*Found: 257"): ReferenceDecoder.for_classifier(classifier(), STFT(512))


@pytest.mark.parametrize("dim", [0, -8, 12])
def test_unfit_dim(dim):
    with pytest.raises(ValueError, match="multiple of 8"): ReferenceDecoder(dim)


def test_without_speechbrain(monkeypatch):
    monkeypatch.setitem(sys.modules, "speechbrain.lobes.models.Cnn14", None)
    with pytest.raises(ImportError, match="pip install speechbrain"): reference_network(64)


def test_imported_only_when_needed():
    code = "import sys, lmac.evidence.reference; assert not any(m.split('.')[0] == 'speechbrain' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_trains_in_the_task_and_leaves_the_classifier(stft):
    torch.manual_seed(0)
    tapped = classifier()
    before = {k: v.clone() for k, v in tapped.state_dict().items()}
    task = ExplainerTask(tapped, ReferenceDecoder.for_classifier(tapped, stft), stft)
    task.train()
    waveform = torch.cat([make_scene({name: 0}, 1., seed=0).waveform for name in ("dog", "rain")])
    task(waveform)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in task.trained.parameters())
    assert all(torch.equal(v, before[k]) for k, v in tapped.state_dict().items())


def test_other_taps_of_the_same_network():
    six = classifier(taps=ALL)
    four = with_taps_at(six, REFERENCE_TAPS)
    assert four.model is six.model and four.taps == REFERENCE_TAPS and six.taps == ALL
    assert (four.labels, four.sample_rate, four.duration_s) == (six.labels, six.sample_rate, six.duration_s)
    with pytest.raises(ValueError, match="no layer 'conv_block9'"): with_taps_at(six, ["conv_block9"])


def test_save_and_load(explainer, tmp_path):
    magnitude = torch.rand(1, 513, 68)
    folder = explainer.save_pretrained(tmp_path/"reference")
    for other in (None, classifier(taps=ALL)):
        again = ReferenceExplainer.from_folder(folder, other)
        assert torch.equal(again.attribute(magnitude), explainer.attribute(magnitude))
        assert (again.name, again.provenance, again.domain) == ("reference", dict(made="here"), "log1p")
        assert again.stft.config == explainer.stft.config
    assert sorted(p.name for p in folder.iterdir()) == ["classifier.safetensors", "config.json", "decoder.safetensors"]


@pytest.mark.parametrize("file", ["classifier.safetensors", "decoder.safetensors"])
def test_damaged_weights(explainer, tmp_path, file):
    folder = explainer.save_pretrained(tmp_path)
    data = bytearray((folder/file).read_bytes())
    data[-1] ^= 1
    (folder/file).write_bytes(data)
    with pytest.raises(ValueError, match=f"{file} is damaged"): ReferenceExplainer.from_folder(folder)


def test_what_is_no_reference_explainer(explainer, stft, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"): ReferenceExplainer.from_folder(tmp_path/"nothing")
    six = classifier(taps=ALL)
    LMAC(six, MaskDecoder.for_classifier(six, stft), stft).save_pretrained(tmp_path/"ours")
    with pytest.raises(ValueError, match="LMAC.from_pretrained"): ReferenceExplainer.from_folder(tmp_path/"ours")
    folder = explainer.save_pretrained(tmp_path/"reference")
    with pytest.raises(ValueError, match="belongs to another"): ReferenceExplainer.from_folder(folder, classifier(seed=1))
    with pytest.raises(ValueError, match="not the configuration of an explainer"): LMAC.from_pretrained(folder)


def test_explains_like_any_explainer(explainer):
    scene = make_scene({"dog": 0}, .6)
    explanation = explainer.explain(scene.waveform, 16000)
    assert explanation.audio.shape == scene.waveform.shape
    wrong = (explanation.class_index + 1) % 3
    with pytest.raises(ValueError, match="leave the target out"):
        explainer.attribute(explainer.magnitude_phase(explainer.prepare(scene.waveform, 16000))[0], wrong)
