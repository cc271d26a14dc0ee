"""Explanations made as waveforms: the dual-path network as SpeechBrain has it, decoders of any classifier, long recordings, folders that are wrong, the benchmark"""
import copy
import json
import warnings

import pytest
import torch
from torch import nn

from lmac.audio import make_scene
from lmac.evidence.benchmark import si_sdr
from lmac.evidence.evaluation import ROUTES, score_full_input, score_mask, score_parts
from lmac.explain import LMAC
from lmac.models.time_domain import LIGHT, PUBLISHED, DualPathNetwork, FilterBank, FilterBankDecoder, TimeDomainLMAC, TimeDomainTask


@pytest.fixture(scope="module")
def explainer(): return LMAC.from_pretrained()


@pytest.fixture(scope="module")
def scene(): return make_scene({"dog": 0, "rain": -5}).waveform


def names(ours):
    "Where a weight of our dual-path network lies in SpeechBrain's"
    found = {"norm": "norm", "narrow": "conv1d", "prelu": "prelu", "mix": "conv2d", "value": "output.0", "gate": "output_gate.0", "widen": "end_conv1x1"}
    first, rest = ours.split(".", 1)
    if first != "paths": return f"{found[first]}.{rest}"
    block, way, rest = rest.split(".", 2)
    way = ("intra", "inter")[int(way)]
    if rest.startswith(("linear", "norm")): return f"dual_mdl.{block}.{way}_{rest.replace('linear.', 'linear.w.')}"
    rest = rest.removeprefix("encoder.")
    for a, b in (("self_attn", "self_att.att"), ("linear1", "pos_ffn.ffn.0"), ("linear2", "pos_ffn.ffn.3"), ("norm1.", "norm1.norm."), ("norm2.", "norm2.norm.")):
        rest = rest.replace(a, b)
    if rest.startswith("norm."): rest = "norm." + rest
    return f"dual_mdl.{block}.{way}_mdl.mdl.{rest}"


@pytest.mark.parametrize("n_frames", [300, 1000, 1013])
def test_the_dual_path_network_is_that_of_speechbrain(n_frames):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from speechbrain.lobes.models.dual_path import Dual_Path_Model, SBTransformerBlock
    torch.manual_seed(0)
    sizes = dict(width=32, blocks=2, layers_within=2, layers_across=1, heads=4, feed_forward=48, chunk=50)
    ours = DualPathNetwork(16, **sizes).eval()
    def block(layers): return SBTransformerBlock(layers, 32, 4, d_ffn=48, dropout=0., norm_before=True, use_positional_encoding=True)
    theirs = Dual_Path_Model(16, 32, block(2), block(1), num_layers=2, norm="ln", K=50, num_spks=1).eval()
    state = {names(k): v for k, v in ours.state_dict().items()}
    left = set(theirs.state_dict()) ^ set(state)
    assert not {name for name in left if "pos_enc" not in name}, left
    theirs.load_state_dict(state, strict=False)
    theirs.activation = nn.Identity()
    x = torch.randn(2, 16, n_frames)
    with torch.no_grad(): torch.testing.assert_close(ours.logits(x), theirs(x)[0], atol=2e-5, rtol=1e-4)


def test_the_published_sizes_are_those_of_its_repository(explainer):
    decoder = FilterBankDecoder([8, 16], n_classes=10, **PUBLISHED)
    assert decoder.bank.filters.shape == (256, 1, 16) and decoder.bank.stride == 8
    within, across = decoder.network.paths[0]
    assert len(decoder.network.paths) == 2 and len(within.encoder.layers) == 8 and len(across.encoder.layers) == 2
    assert within.encoder.layers[0].self_attn.num_heads == 8 and decoder.network.chunk == 250


def test_alpha_zero_hears_nothing_of_the_classifier(scene):
    torch.manual_seed(0)
    decoder = FilterBankDecoder([4, 8], n_classes=3, **LIGHT | dict(alpha=0.)).eval()
    maps = [torch.randn(1, 4, 8, 20), torch.randn(1, 8, 4, 10)]
    with torch.no_grad(): same = [decoder.separate(scene, [k * m for m in maps], torch.tensor([i])) for k, i in ((1, 0), (5, 2))]
    assert torch.equal(*same) and not any("frames" in name for name in decoder.state_dict())


@pytest.mark.parametrize("architecture", ["complex_mask", "filter_bank"])
def test_any_classifier_gets_an_explainer_that_is_saved_and_found_again(architecture, tmp_path, tiny_classifier):
    torch.manual_seed(0)
    model, options = tiny_classifier
    explainer = TimeDomainLMAC.for_classifier(model, architecture=architecture, **options)
    with pytest.warns(UserWarning, match="not trained"): ex = explainer.explain(torch.randn(1, 24000) / 20, 16000)
    assert ex.domain == "waveform" and ex.mask.min() >= 0 and ex.mask.max() <= 1
    torch.testing.assert_close(ex.audio + ex.residual, ex.waveform, atol=1e-4, rtol=0)
    explainer.save_pretrained(tmp_path)
    again = LMAC.from_pretrained(tmp_path, explainer.classifier)
    assert isinstance(again, TimeDomainLMAC) and again.decoder.architecture == architecture
    assert again.provenance == dict(untrained=True)
    torch.testing.assert_close(again.separate(ex.waveform, again.classifier.with_taps(*again.stft(ex.waveform))[1], torch.tensor([0])),
                               explainer.separate(ex.waveform, explainer.classifier.with_taps(*explainer.stft(ex.waveform))[1], torch.tensor([0])))


@pytest.fixture(scope="module")
def tiny_classifier():
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 12, 3, 2, 1), nn.Linear(12, 3)
            self.stft = nn.Identity()
        def forward(self, waveform):
            x = torch.stft(waveform, 512, 256, window=torch.hann_window(512), return_complex=True).abs().log1p()[:, None]
            return self.head(self.b(self.a(x).relu()).relu().mean((2, 3)))
    torch.manual_seed(0)
    return Tiny().eval(), dict(sample_rate=16000, duration_s=1.5, labels=["a", "b", "c"])


def test_it_learns_on_a_classifier_of_ones_own(tiny_classifier):
    torch.manual_seed(0)
    model, options = tiny_classifier
    explainer = TimeDomainLMAC.for_classifier(model, **options)
    sounds = torch.cat([make_scene({name: 0}, 1.5, seed=i).waveform for i, name in enumerate(["dog", "rain", "siren", "clock_tick"] * 4)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = explainer.fit(sounds, epochs=2, batch_size=4)
    assert len(history) == 2 and explainer.provenance["trained_with"]["task"] == "TimeDomainTask"
    assert explainer.provenance["verdict"]["n_clips"] == 2 and isinstance(explainer.explain(sounds[0], 16000).verdict, str)


def test_a_long_recording_goes_through_in_windows_that_fade_into_each_other(explainer):
    td = TimeDomainLMAC.from_explainer(explainer)
    sound = torch.cat([make_scene({name: 0}, 12., seed=i).waveform for i, name in enumerate(("dog", "rain", "dog"))], 1)
    ex, before = td.explain(sound, 16000, "dog"), explainer.explain(sound, 16000, "dog")
    assert ex.window_s == 5. and ex.audio.shape == sound.shape
    torch.testing.assert_close(ex.audio + ex.residual, ex.waveform * 10**(ex.gain_db / 20), atol=1e-4, rtol=0)
    assert si_sdr(ex.audio, before.audio) > 10  # windows of sound rather than of masks
    assert ex.probability_heard == pytest.approx(before.probability_heard, abs=.1)


def test_several_classes_contrast_and_rounding(explainer, scene):
    td = TimeDomainLMAC.from_explainer(explainer)
    several, before = (x.explain(scene, 16000, targets=["dog", "rain"]) for x in (td, explainer))
    for a, b in zip(several, before): assert si_sdr(a.audio, b.audio) > 40
    rather, plain = td.explain(scene, 16000, "dog", contrast="rain"), td.explain(scene, 16000, "dog")
    assert rather.audio.square().sum() < plain.audio.square().sum() and rather.contrast == "rain"
    rounded = td.explain(scene, 16000, "dog", threshold=.5)
    assert set(rounded.mask.unique().tolist()) <= {0., 1.}
    with pytest.raises(ValueError, match="another than the target"): td.explain(scene, 16000, "dog", contrast="dog")
    with pytest.raises(ValueError, match="hand in its phase"): td.attribute(td.magnitude_phase(scene)[0])


def test_what_is_scored_is_the_sound(explainer, scene):
    "The parts of evaluation are the waveforms, phase and all: a mask alone would have the input's"
    td = TimeDomainLMAC.from_explainer(explainer)
    nn.init.normal_(td.fast_decoder.unet.leave.weight, std=.2)
    whole = score_full_input(td, scene)
    target = whole.predicted
    mask, parts = td.split(whole.magnitude, whole.phase, target)
    found, sounds = score_parts(td, whole, parts, ROUTES)
    ex = td.explain(scene, 16000, target.item())
    torch.testing.assert_close(sounds[0], ex.audio, atol=1e-3, rtol=0)
    assert found["audio"][0][0, target].item() == pytest.approx(ex.probability_heard, abs=2e-3)
    assert si_sdr(score_mask(td, whole, mask)[1][0], sounds[0]) < 30  # the phase that was turned is not in the ratio


@pytest.mark.parametrize("change, said", [
    (dict(architecture="linear"), "architecture"), (dict(settings=dict(domain="log1p", widths=[8, 9], mask=None)), "mask"), (dict(file="../../secret.safetensors"), "safetensors"),
    (dict(sha256="0" * 64), "sha256")])
def test_a_folder_that_is_wrong_is_refused(explainer, tmp_path, change, said):
    folder = TimeDomainLMAC.from_explainer(explainer).save_pretrained(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | dict(decoder=config["decoder"] | change)))
    with pytest.raises(ValueError, match=said): LMAC.from_pretrained(folder)


def test_maps_of_another_classifier_are_refused(explainer):
    decoder = FilterBankDecoder([4, 8], n_classes=10, **LIGHT)
    with pytest.raises(ValueError, match="reads maps with"): TimeDomainLMAC(explainer.classifier, decoder, explainer.stft)


def test_damaged_weights_are_refused(explainer):
    td = TimeDomainLMAC.from_explainer(explainer)
    broken = copy.deepcopy(td.decoder)
    broken.unet.leave.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="finite numbers"): TimeDomainLMAC(explainer.classifier, broken, explainer.stft)


def test_the_task_draws_for_absent_classes_and_keeps_the_classifier(explainer):
    torch.manual_seed(0)
    td = TimeDomainLMAC.from_explainer(explainer)
    task = TimeDomainTask(td.classifier, td.decoder.requires_grad_(True), td.stft, p_absent=1., p_single=1.).train()
    before = copy.deepcopy(td.classifier.state_dict())
    task(make_scene({"dog": 0}).waveform.expand(4, -1))["loss"].backward()
    assert all(torch.equal(v, before[k]) for k, v in td.classifier.state_dict().items())
    assert all(p.grad is None for p in td.classifier.parameters())


def test_silence_and_a_single_sample_are_no_trouble(explainer):
    td = TimeDomainLMAC.from_explainer(explainer)
    for sound in (torch.zeros(1, 16000), torch.ones(1, 1) / 2):
        ex = td.explain(sound, 16000)
        assert ex.audio.shape == sound.shape and ex.audio.isfinite().all() and ex.mask.isfinite().all()
    assert td.explain(torch.zeros(1, 100), 16000).silent


def test_the_bank_is_exact_at_any_length():
    for kernel, channels in ((2, 4), (16, 32), (16, 256), (64, 128)):
        bank = FilterBank(kernel, channels).double()
        for n in (1, 7, kernel, 999):
            x = torch.randn(3, n, dtype=torch.double)
            torch.testing.assert_close(bank.decode(bank.encode(x), n), x, atol=1e-6, rtol=0)


def test_widgets_sanity_and_benchmark_hand_in_the_phase(explainer, scene):
    from lmac.evidence.benchmark import attribution
    from lmac.listen.widgets import ExplanationSession
    td = TimeDomainLMAC.from_explainer(explainer)
    session = ExplanationSession(td, scene, 16000, "dog")
    mask, _ = session.attribution()
    torch.testing.assert_close(mask[0].cpu(), td.explain(scene, 16000, "dog").mask, atol=1e-3, rtol=0)
    with torch.no_grad(): td.fast_decoder.unet.leave.bias[32:] = 1.  # turns all phases by 45 degrees
    torch.testing.assert_close(session.explain_by().audio, td.explain(scene, 16000, "dog").audio)  # as it was made, rather than the ratio with the input's phase
    assert si_sdr(session.explain(mask).audio, session.explain_by().audio) < 10
    torch.testing.assert_close(session.explain_by("energy").audio, session.explain(session.attribution("energy")[0]).audio)
    from lmac.evidence.sanity import cascade
    found = cascade(lambda changed: type(td)(changed.classifier, td.decoder, td.stft), td, session.magnitude.cpu(), ["conv_block6"], phase=session.phase.cpu())
    correlation = found.set_index("stage").rank_correlation
    assert correlation["none"] > .999 > correlation["conv_block6"]
    whole = score_full_input(td, scene)
    assert attribution(td, whole.magnitude, whole.predicted, **whole.extra)[0].shape == whole.magnitude.shape


def test_an_hour_goes_through_as_a_stream(explainer, tmp_path):
    from lmac.audio import save_audio
    from lmac.scale.folder import explain_file
    td = TimeDomainLMAC.from_explainer(explainer)
    sound = torch.cat([make_scene({name: 0}, 12., seed=i).waveform for i, name in enumerate(("dog", "rain", "dog"))], 1)
    save_audio(tmp_path / "long.wav", sound, 16000)
    found = {name: explain_file(x, tmp_path / "long.wav", tmp_path / name, dict(target="dog", long=True), False) for name, x in dict(td=td, mask=explainer).items()}
    assert (tmp_path / "td" / "timeline.csv").is_file() and found["td"] is not None
    from lmac.audio import load_audio
    ours, before = (load_audio(next((tmp_path / name).glob("explanation.[wf]*")))[0] for name in found)
    assert si_sdr(ours, before) > 10


def test_a_folded_decoder_separates_as_the_one_that_was_trained(explainer, scene):
    decoder = TimeDomainLMAC.from_explainer(explainer).decoder
    for layer in decoder.unet.modules():
        if isinstance(layer, torch.nn.BatchNorm2d): torch.nn.init.normal_(layer.running_mean), torch.nn.init.uniform_(layer.running_var, .5, 2.), torch.nn.init.uniform_(layer.weight, .5, 2.)
    torch.nn.init.normal_(decoder.unet.leave.weight, std=.1)
    spectrum = explainer.stft.analyse(scene)
    _, maps = explainer.classifier.with_taps(spectrum.abs(), spectrum.angle())
    k = torch.tensor([0])
    with torch.no_grad(): plain, fast, of_spectrum = decoder.separate(scene, maps, k), decoder.folded().separate(scene, maps, k), decoder.separate(None, maps, k, spectrum=spectrum)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(of_spectrum[:, :scene.shape[1]], plain, atol=1e-5, rtol=0)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in decoder.folded().unet.modules())
