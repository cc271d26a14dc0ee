"""Explainers as ONNX files: networks of several kinds, with front ends of their own, say the same as in PyTorch; what can't be exported says why."""
import functools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from lmac.audio import make_scene, save_audio
from lmac.cli import lmac_explain, lmac_export, lmac_serve
from lmac.explain import LMAC
from lmac.models.time_domain import TimeDomainLMAC

from measure_ordinary import NETWORKS

pytest.importorskip("onnxruntime")
import onnx
from lmac.scale.export import OUTPUTS, OnnxExplainer, compare_onnx, in_double_precision, probe_sounds, verify_checksum, with_checksum


def agrees(explainer, file, **tolerances):
    "Compare on sounds that tell, in the classifier's own length and, where the file takes any, in a longer one"
    limits = dict(probabilities=1e-4, mask=1e-3, sound_db=-60) | tolerances
    lengths = [explainer.classifier.duration_s] + ([] if OnnxExplainer(file).length else [1.37 * explainer.classifier.duration_s])
    for duration_s in lengths:
        found = compare_onnx(explainer, file, probe_sounds(explainer.sample_rate, duration_s))
        assert found.same_class.all(), found
        for column, limit in limits.items(): assert found[column].max() <= limit, (column, found)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "Name of a bundled explainer to it and its file, which is written once"
    folder = tmp_path_factory.mktemp("exported")
    @functools.cache
    def of(name):
        explainer = LMAC.from_pretrained(name)
        return explainer, explainer.export_onnx(folder/f"{name}.onnx")
    return of


def is_right(explainer, file):
    "Compare with double precision, as networks must be that take logarithms without a floor: of a tone's quiet bins the last bits of single precision are heard, and what PyTorch says in it is off by more than the file"
    agrees(in_double_precision(explainer), file)


class Speech(nn.Module):
    "A network on waveforms with windows of 25 ms at 16 kHz, which are no power of two"
    def __init__(self, n_fft=400, hop=160):
        super().__init__()
        self.mel = nn.Sequential(MelSpectrogram(16000, n_fft, hop_length=hop, n_mels=40), AmplitudeToDB())
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, padding=1), nn.ReLU())
        self.out = nn.Linear(16, 3)

    def forward(self, x): return self.out(self.body(self.mel(x)[:, None] / 40).mean((2, 3)))


@pytest.mark.parametrize("n_fft", [400, 512])
def test_a_network_on_waveforms_with_its_own_front_end(tmp_path, n_fft):
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(Speech(n_fft), sample_rate=16000, duration_s=1.)
    is_right(explainer, explainer.export_onnx(tmp_path/"speech.onnx", length_s=1.))
    of_masked_noise = compare_onnx(explainer, tmp_path/"speech.onnx", {"masked noise": probe_sounds(16000)["masked_noise"]})
    assert of_masked_noise.probabilities.max() < 1e-5   # by ONNX's own transform, of 400 samples, its levels would be off by 6 dB


def test_any_length_and_one_length(tmp_path):
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(Speech(), sample_rate=16000, duration_s=1.)
    is_right(explainer, explainer.export_onnx(tmp_path/"any.onnx"))
    fixed = OnnxExplainer(explainer.export_onnx(tmp_path/"fixed.onnx", length_s=2.))
    assert fixed.length == 32000
    assert fixed.run(torch.randn(1, 20000))["masked_in"].shape == (1, 20000)   # padded, and cut again
    with pytest.raises(ValueError, match="2 s at most"): fixed.run(torch.randn(1, 40000))
    assert fixed.explain(torch.randn(1, 40000).clamp(-1, 1), 16000).audio.shape == (1, 40000)   # in stretches


@pytest.mark.parametrize("name", ["esc10-sources", "esc10-time-domain", "esc10-zero-shot"])
def test_the_bundled_ones(exported, name):
    explainer, file = exported(name)
    agrees(explainer, file)
    of_scenes = compare_onnx(explainer, file, {name: make_scene({name: 0, "rain": -8}, 5.).waveform[0] for name in ("dog", "rooster", "siren")})
    assert of_scenes["mask"].max() < 1e-3 and of_scenes.sound_db.max() < -60
    is_rounded(explainer, OnnxExplainer(file))
    about = OnnxExplainer(file).about
    assert about["labels"] == explainer.labels and about["sample_rate"] == 16000 and about["licence"] == "apache-2.0"
    assert onnx.load(file).opset_import[0].version == about["opset"] == 20
    assert file.stat().st_size <= 9.5e6


def test_filter_banks_and_several_classes_at_once(tmp_path):
    bundled = LMAC.from_pretrained("esc10")
    torch.manual_seed(0)
    explainer = TimeDomainLMAC.for_classifier(bundled.classifier, stft=bundled.stft, architecture="filter_bank")
    agrees(explainer, explainer.export_onnx(tmp_path/"bank.onnx", length_s=5.))
    is_rounded(explainer, OnnxExplainer(tmp_path/"bank.onnx"))


def is_rounded(explainer, by_file):
    "A mask that is rounded is one of the input's spectrogram, also where what is soft is a waveform"
    sound = make_scene({"dog": 0, "rain": -8}, 5.).waveform
    soft = by_file.run(sound, 0)
    at = soft["mask"].median().item()
    found, want = by_file.run(sound, 0, at), explainer.explain(sound, 16000, 0, threshold=at)
    mask = found["mask"]
    assert mask.unique().tolist() == [0., 1.] and (mask[0] != want.mask).float().mean() < 1e-3 and .4 < mask.mean() < .6   # a few lie at the threshold
    spectrum = explainer.stft.analyse(sound)
    for name, kept in dict(masked_in=mask, masked_out=1 - mask).items():
        heard = explainer.stft.synthesise(spectrum * kept, sound.shape[-1])
        by_mask, by_waveform = (20 * torch.log10((found[name] - x).norm() / sound.norm()) for x in (heard, soft[name]))
        assert by_mask < -80 and by_waveform > -40, (name, by_mask, by_waveform)
    assert found["probabilities_masked_in"][0, 0] == pytest.approx(want.probability_masked_in, abs=1e-2)


def test_waveforms_of_a_network_that_hears_the_beginning(tmp_path):
    torch.manual_seed(0)
    class Beginning(Speech):
        def forward(self, x): return super().forward(x[:, :24000])
    explainer = TimeDomainLMAC.for_classifier(Beginning(), sample_rate=16000, duration_s=1., architecture="filter_bank")
    assert explainer.classifier.heard_s == pytest.approx(1.5, abs=.05)
    by_file = OnnxExplainer(explainer.export_onnx(tmp_path/"beginning.onnx"))
    sound = make_scene({"dog": 0, "rain": -8}, 3.).waveform
    soft, want = by_file.explain(sound, 16000, 0), explainer.explain(sound, 16000, 0)
    n = soft.heard_frames
    at = soft.mask[:, :n].median().item()
    rounded = by_file.explain(sound, 16000, 0, threshold=at)
    assert 0 < soft.mask[:, :n].min() and soft.kept == pytest.approx(want.kept, abs=1e-4) and .4 < rounded.mask[:, :n].mean() < .6
    for found, mask in ((soft, want.mask), (rounded, rounded.mask)):
        heard = explainer.stft.synthesise(explainer.stft.analyse(sound) * mask, sound.shape[-1])
        assert not found.mask[:, n:].any() and 20 * torch.log10((found.audio - heard).norm() / heard.norm()) < -60


def test_batches_and_classes(exported):
    explainer, file = exported("esc10-sources")
    by_file = OnnxExplainer(file, threads=1)
    x = torch.cat([make_scene({name: 0}, 5.).waveform for name in ("dog", "rain", "rooster")])
    found, target = by_file.run(x, [0, 2, 1]), torch.tensor([0, 2, 1])
    want = explainer.masked_parts(x, target=target)
    assert set(found) == set(OUTPUTS)
    torch.testing.assert_close(found["class"], target)
    torch.testing.assert_close(found["mask"], want["mask"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["masked_out"], want["audio_out"], atol=1e-4, rtol=0)
    one_for_all = by_file.run(x, 2)
    torch.testing.assert_close(one_for_all["class"], torch.tensor([2, 2, 2]))
    rounded = by_file.run(x, threshold=.5)["mask"]
    assert rounded.unique().tolist() == [0., 1.]


def loudness_of_the_batch():
    "A network that judges a clip by those beside it"
    return LMAC.for_classifier(nn.Sequential(MelSpectrogram(16000, 512, n_mels=40), AmplitudeToDB(top_db=60), nn.Conv1d(40, 8, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)), sample_rate=16000, duration_s=1.)


@pytest.mark.parametrize("make", [NETWORKS["transformers AST"][1], NETWORKS["transformers wav2vec 2.0"][1], loudness_of_the_batch], ids=["AST", "wav2vec 2.0", "top_db"])
def test_one_clip_at_a_time(tmp_path, make):
    torch.manual_seed(0)
    explainer = make()
    file = explainer.export_onnx(tmp_path/"one.onnx")
    is_right(explainer, file)
    by_file = OnnxExplainer(file)
    assert by_file.about["batch"] == 1
    x = torch.stack([sound for name, sound in probe_sounds(16000).items() if name in ("noise", "chirp", "click")])
    want, found = explainer.masked_parts(x, target=torch.tensor([2, 0, 1])), by_file.run(x, [2, 0, 1])
    assert found["class"].tolist() == [2, 0, 1] and found["mask"].shape == want["mask"].shape
    torch.testing.assert_close(found["mask"], want["mask"], atol=1e-3, rtol=0)
    torch.testing.assert_close(found["probabilities"], want["probabilities"], atol=1e-4, rtol=0)
    torch.testing.assert_close(by_file.run(x, 1)["class"], torch.tensor([1, 1, 1]))
    short = x[1:2, :9000]   # whose padding some take for a part of it: then the graph is told how long it is
    assert ("n_samples" in {given.name for given in by_file.session.get_inputs()}) == bool(explainer.classifier.padded_s) == (make is not loudness_of_the_batch)
    want, found = explainer.explain(short, 16000), by_file.explain(short, 16000)
    torch.testing.assert_close(found.mask, want.mask, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.residual, want.residual, atol=1e-4, rtol=0)
    assert abs(found.probability_masked_in - want.probability_masked_in) < 1e-4 and found.verdict == want.verdict


class Sorts(nn.Module):
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(1, 4, 3); self.out = nn.Linear(4, 2)
    def forward(self, x):
        hidden = self.conv(x[:, None]).relu()
        return self.out(torch.linalg.svdvals(hidden.mean((2, 3))[:, None] * torch.eye(4)))


def test_what_can_not_be_exported_says_why(tmp_path):
    from lmac.spectrogram import STFT, LogMel
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(Sorts(), LogMel(16000, 1024, 40), taps=["conv"], sample_rate=16000, duration_s=1., stft=STFT(1024, 256), map_layout="freq_time")
    with pytest.raises(ValueError, match="can't be exported: .*(svd|operator)"): explainer.export_onnx(tmp_path/"x.onnx", length_s=1.)
    assert not list(tmp_path.iterdir())
    remembers = LMAC.from_pretrained("esc10")
    remembers.classifier.draws = 3
    with pytest.raises(ValueError, match="draws random numbers"): remembers.export_onnx(tmp_path/"x.onnx")


class Grows(nn.Module):
    "Whose answer rests on a number of frames that a graph takes for a constant"
    def __init__(self): super().__init__(); self.conv = nn.Conv2d(1, 4, 3, padding=1); self.out = nn.Linear(4, 2)
    def forward(self, x):
        kept = torch.ones_like(x)
        kept[..., int(x.shape[-1] / 1.5):] = 0
        return self.out(self.conv((x * kept)[:, None]).relu().sum((2, 3)) / 1000)


def test_a_graph_for_any_length_is_tried_with_another(tmp_path):
    from lmac.spectrogram import STFT, LogMel
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(Grows(), LogMel(16000, 1024, 40), taps=["conv"], sample_rate=16000, duration_s=1., stft=STFT(1024, 256), map_layout="freq_time")
    with pytest.raises(ValueError, match=r"can't be exported: of \S+ s of noise the graph says something else .* length_s"): explainer.export_onnx(tmp_path/"x.onnx")
    is_right(explainer, explainer.export_onnx(tmp_path/"one.onnx", length_s=1.))


def test_what_pools_to_a_fixed_size(tmp_path):
    "PyTorch's exporter writes the size of the windows, and at other lengths such a graph is wrong or can't be computed"
    torch.manual_seed(0)
    network = nn.Sequential(MelSpectrogram(16000, 512, n_mels=40), nn.Unflatten(1, (1, 40)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    explainer = LMAC.for_classifier(network.eval(), sample_rate=16000, duration_s=1.)
    with pytest.raises(ValueError, match="can't be exported: .* length_s"): explainer.export_onnx(tmp_path/"x.onnx")
    is_right(explainer, explainer.export_onnx(tmp_path/"x.onnx", length_s=1.))


def test_what_a_file_is_asked(tmp_path, capsys):
    explainer = LMAC.from_pretrained("esc10-sources")
    file = explainer.export_onnx(tmp_path/"explainer.onnx", length_s=6.)
    by_file, x = OnnxExplainer(file), torch.randn(2, 16000)
    for wrong, why in ((dict(target=99), "from 0 to 9"), (dict(target=-2), "from 0 to 9"), (dict(target=[0, 1, 2]), "one for each of 2 clips")):
        with pytest.raises(ValueError, match=why): by_file.run(x, **wrong)
    for wrong in (x[0], x[:0], x[:, :0], x / 0, torch.full((1, 50), float("nan"))):
        with pytest.raises(ValueError, match="must be clips"): by_file.run(wrong)
    assert by_file.explain(make_scene({"dog": 0}, 14.).waveform, 16000).window_s == 6
    with pytest.raises(FileNotFoundError, match="There is no folder"): explainer.export_onnx(tmp_path/"nowhere"/"x.onnx")
    with pytest.raises(ValueError, match="must be a number of seconds"): explainer.export_onnx(tmp_path/"x.onnx", length_s=float("nan"))
    (tmp_path/"junk.onnx").write_bytes(b"junk")
    for command, why in ((lambda: lmac_explain(onnx=str(file), explainer="esc10", out=str(tmp_path/"out")), "Found both"), (lambda: lmac_serve(str(tmp_path/"junk.onnx"), port=0, seconds=.1), "must be a file that lmac-export wrote")):
        with pytest.raises(SystemExit): command()
        assert why in capsys.readouterr().err


def test_the_end_of_a_recording_counts_as_much_as_is_new(exported):
    by_file = OnnxExplainer(exported("esc10-sources")[1])
    x = torch.cat([make_scene({"rain": 0}, 30.).waveform[0], torch.zeros(16000)])
    one, end = by_file.run(x[None, :480000])["probabilities"][0], by_file.run(x[None, -80000:])["probabilities"][0]   # the last stretch is as long as a clip
    torch.testing.assert_close(by_file.run_whole(x)["probabilities"], (30 * one + end) / 31, atol=1e-5, rtol=0)


def test_untrained_and_class_agnostic(tmp_path):
    torch.manual_seed(0)
    explainer = LMAC.for_classifier(Speech(512), sample_rate=16000, duration_s=1., n_classes=0)
    with pytest.warns(UserWarning, match="not trained"): file = explainer.export_onnx(tmp_path/"x.onnx", length_s=1.)
    by_file, x = OnnxExplainer(file), torch.randn(1, 16000).mul(.1)
    with pytest.warns(UserWarning, match="not trained"): found = by_file.explain(x, 16000)
    other = next(k for k in explainer.labels if k != found.label)
    with pytest.raises(ValueError, match="class-agnostic"), pytest.warns(UserWarning): by_file.explain(x, 16000, other)


def test_files_that_are_none(tmp_path):
    data = with_checksum(b"some model")
    verify_checksum(data, "x.onnx")
    for wrong, why in ((data[:-1], "must be a file that lmac-export wrote"), (b"", "must be a file"), (b"S" + data[1:], "is damaged")):
        with pytest.raises(ValueError, match=why): verify_checksum(wrong, "x.onnx")
    with pytest.raises(FileNotFoundError): OnnxExplainer(tmp_path/"nowhere.onnx")


def test_from_a_shell(tmp_path, capsys, exported):
    lmac_export("esc10", out=str(tmp_path/"explainer.onnx"), weights="float16")
    assert "probabilities differ from PyTorch's by" in (said := capsys.readouterr().out) and "all classes are the same" in said
    (tmp_path/"in").mkdir()
    for name in ("dog", "rain"): save_audio(tmp_path/"in"/f"{name}.wav", make_scene({name: 0}, 2., 22050).waveform, 22050)
    (tmp_path/"in"/"broken.wav").write_bytes(b"RIFF")
    def run(**options): return lmac_explain([str(tmp_path/"in")], out=str(tmp_path/"out"), onnx=str(tmp_path/"explainer.onnx"), **options)
    with pytest.raises(SystemExit): run()   # after the others were explained
    out, err = capsys.readouterr()
    assert "1 of 3 recordings could not be explained: broken.wav" in err and (tmp_path/"out"/"index.html").is_file() and f"Open {tmp_path/'out'/'index.html'}" in out
    table = pd.read_csv(tmp_path/"out"/"explanations.csv").set_index("recording")
    assert table.error.notna().tolist() == [True, False, False]
    lmac_explain([str(tmp_path/"in"/"dog.wav")], out=str(tmp_path/"torch"), explainer="esc10", no_report=True)
    by_file, by_torch = (json.loads((tmp_path/p/"explanation.json").read_text()) for p in ("out/dog", "torch"))
    assert by_file["label"] == by_torch["label"] and by_file["verdict"] == by_torch["verdict"]
    assert np.isclose(by_file["probability_heard"], by_torch["probability_heard"], atol=5e-3)
    (tmp_path/"in"/"broken.wav").unlink()
    run()
    assert "2 of 2 had been explained before" in capsys.readouterr().out
    shutil.copy(exported("esc10-sources")[1], tmp_path/"explainer.onnx")
    with pytest.raises(SystemExit): run()
    assert "another explainer" in capsys.readouterr().err
    lmac_explain([str(tmp_path/"in"/"dog.wav")], out=str(tmp_path/"alone"), onnx=str(tmp_path/"explainer.onnx"), top=2)
    assert "Open" in capsys.readouterr().out and (tmp_path/"alone"/"report.html").is_file()
    with pytest.raises(SystemExit): lmac_explain([str(tmp_path/"in"/"dog.wav")], out=str(tmp_path/"out2"), onnx=str(tmp_path/"explainer.onnx"), long=True)
    assert "--long" in capsys.readouterr().err


def test_long_recordings_several_and_what_a_file_has_not(tmp_path, exported):
    _, file = exported("esc10-sources")
    by_file = OnnxExplainer(file)
    long = torch.cat([make_scene({name: 0}, 14.).waveform for name in ("dog", "rain", "rooster")], 1)
    save_audio(tmp_path/"long.wav", long, 16000)
    lmac_explain([str(tmp_path/"long.wav")], out=str(tmp_path/"out"), onnx=str(file), no_report=True)   # in stretches, as one
    assert json.loads((tmp_path/"out"/"explanation.json").read_text())["duration_s"] == 42
    both = by_file.explain([make_scene({name: 0}, 2.).waveform for name in ("dog", "rain")], 16000, targets=2)
    assert len(both) == 2 and all(len(x.targets) == 2 for x in both)
    for more in (dict(contrast="rain"), dict(at=1.)):
        with pytest.raises(ValueError, match="leave contrast and at out"): by_file.explain(long, 16000, **more)
