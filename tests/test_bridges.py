"""Explainers in captum and Quantus, and classifiers that are only a function"""
import numpy as np
import pytest
import torch
from captum.attr import Attribution

from lmac.evidence.baselines import FreqRise, GradCam, GradCamPlusPlus
from lmac.evidence.bridges import NO_GRADIENTS, LMACAttribution, explainer_for_function, quantus_explain, quantus_model
from lmac.explain import LMAC

RATE = 16000


def band_share(waveforms):
    "A classifier by the share of power between 2 and 3 kHz: probabilities of 'band' and 'else'"
    power = np.abs(np.fft.rfft(waveforms, axis=1))**2
    hz = np.fft.rfftfreq(waveforms.shape[1], 1 / RATE)
    inside = power[:, (hz >= 2000) & (hz < 3000)].sum(1)
    p = inside / (inside + 3e3)
    return np.stack([p, 1 - p], 1)


@pytest.fixture(scope="module")
def sound():
    "Faint noise, and from 0.4 to 0.8 s a band of noise from 2 to 3 kHz"
    generator = torch.Generator().manual_seed(0)
    n = RATE
    band = torch.fft.rfft(torch.randn(n, generator=generator))
    hz = torch.fft.rfftfreq(n, 1 / RATE)
    band = torch.fft.irfft(band * ((hz >= 2000) & (hz < 3000)), n)
    t = torch.arange(n) / RATE
    return (.002 * torch.randn(n, generator=generator) + .1 * band * ((t >= .4) & (t < .8)))[None]


@pytest.mark.parametrize("method, settings", [("occlusion", dict(window_s=.2, window_hz=1000.)), ("lime", dict(n_samples=800, n_bands=10)), ("kernel_shap", dict(n_samples=800, n_bands=10)), ("freqrise", {}), ("freqrise_tf", {})])
def test_what_a_function_listens_to_is_found(sound, method, settings):
    explainer = explainer_for_function(band_share, ["band", "else"], RATE, 1., method, **settings)
    ex = explainer.explain(sound, RATE)
    assert ex.label == "band" and ex.probability == pytest.approx(band_share(sound.numpy())[0, 0], abs=1e-3)
    hz, s = torch.linspace(0, RATE / 2, len(ex.mask)), torch.arange(ex.mask.shape[1]) * ex.hop_length / RATE
    when = torch.ones_like(s) if method == "freqrise" else (s > .4) & (s < .8)  # bands are kept for the whole clip
    event = (((hz >= 2000) & (hz < 3000))[:, None] * when).bool()
    assert ex.mask[event].mean() > (2 if method in ("lime", "kernel_shap") else 4) * ex.mask[~event].mean()
    if method not in ("lime", "kernel_shap"): assert ex.verdict == "explains", ex.sentence()  # segments are not as narrow as the band


def test_a_function_has_a_page_a_folder_and_a_place_among_methods(sound, tmp_path):
    explainer = explainer_for_function(band_share, ["band", "else"], RATE, 1., window_s=.2, window_hz=1000.)
    ex = explainer.explain(sound, RATE)
    ex.save(tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    from lmac.evidence.evaluation import score_full_input
    whole = score_full_input(explainer, sound)
    mask, parts = explainer.split(whole.magnitude, whole.phase, whole.predicted)
    torch.testing.assert_close(mask[0], ex.mask, atol=1e-4, rtol=0)
    assert len(parts) == 2


def test_a_folder_and_a_benchmark_take_a_function(sound, tmp_path):
    from lmac.audio import save_audio
    from lmac.evidence.benchmark import load_method
    from lmac.pretrained import weights_sha256
    from lmac.scale.folder import explain_folder
    explainer = explainer_for_function(band_share, ["band", "else"], RATE, 1., window_s=.2, window_hz=1000.)
    (tmp_path / "in").mkdir()
    for name in "ab": save_audio(tmp_path / "in" / f"{name}.wav", sound, RATE)
    out = explain_folder(explainer, tmp_path / "in", tmp_path / "out")
    assert (out / "a" / "explanation.flac").is_file() and (out / "explanations.csv").read_text().count("band") >= 2
    another = explainer_for_function(lambda x: band_share(x)[:, ::-1].copy(), ["band", "else"], RATE, 1., window_s=.2, window_hz=1000.)
    with pytest.raises(ValueError, match="another explainer"): explain_folder(another, tmp_path / "in", out)
    assert load_method("lime", explainer).name == "lime"
    with pytest.raises(ValueError, match="'method'"): LMAC.from_pretrained(explainer.save_pretrained(tmp_path / "saved"))


def test_many_and_long_and_several_go_through_a_function(sound):
    explainer = explainer_for_function(band_share, ["band", "else"], RATE, 1., window_s=.5, window_hz=2000.)
    two = explainer.explain([sound, sound.flip(1)], RATE)
    assert len(two) == 2 and {ex.label for ex in two} == {"band"}
    both = explainer.explain(sound, RATE, targets=2)
    assert both.targets == ["band", "else"]
    with pytest.raises(ValueError, match="contrast"): explainer.explain(sound, RATE, contrast="else")
    long = explainer.explain(sound.repeat(1, 31), RATE)
    assert long.mask.shape[1] >= long.n_frames and long.window_s == 1.


def test_a_function_that_fails_says_how():
    for function, said in ((lambda x: x[:, :3], "must give scores"), (lambda x: np.full((len(x), 2), np.nan), "finite")):
        with pytest.raises(ValueError, match=said): explainer_for_function(function, ["a", "b"], RATE, 1.).classify(torch.zeros(1, RATE), RATE)
    for method in ("saliency", "gradcam"):
        with pytest.raises(ValueError, match="no gradients"): explainer_for_function(band_share, ["a", "b"], RATE, method=method)
    assert set(NO_GRADIENTS) >= {"occlusion", "lime", "kernel_shap", "freqrise"}


def test_captum_takes_an_explainer_for_one_of_its_own():
    explainer = LMAC.from_pretrained("esc10")
    method = LMACAttribution(explainer)
    assert isinstance(method, Attribution) and not method.has_convergence_delta()
    magnitude = torch.rand(2, 513, 313)
    mask = method.attribute(magnitude, target=3, threshold=.5)
    assert mask.shape == magnitude.shape and set(mask.unique().tolist()) <= {0., 1.}
    phase = torch.rand(2, 513, 313)
    assert torch.equal(method.attribute(magnitude, 3, phase), method.attribute((magnitude,), 3, (phase,))[0])


def test_quantus_gets_a_model_and_a_function():
    explainer = LMAC.from_pretrained("esc10")
    x = np.random.default_rng(0).random((2, 1, 513, 313), dtype=np.float32)
    with torch.no_grad(): assert quantus_model(explainer)(torch.as_tensor(x)).shape == (2, 10)
    mask = quantus_explain(None, x, np.array([0, 1]), explainer=explainer)
    assert mask.shape == x.shape and 0 <= mask.min() <= mask.max() <= 1


def test_freqrise_draws_the_same_masks_for_the_same_clip():
    explainer = LMAC.from_pretrained("esc10")
    magnitude = torch.rand(1, 513, 313)
    a, b = (FreqRise(explainer.classifier, n_samples=16).scores(magnitude, 0) for _ in range(2))
    assert torch.equal(a, b) and a.std() > 0
    assert torch.allclose(a, a[..., :1].expand_as(a), atol=1e-6)


def test_gradcam_plus_plus_is_that_of_the_package():
    from pytorch_grad_cam import GradCAMPlusPlus
    classifier, generator = LMAC.from_pretrained("esc10").classifier, torch.Generator().manual_seed(0)
    gradients, maps = .5 + torch.rand(2, 5, 4, 3, generator=generator), torch.rand(2, 5, 4, 3, generator=generator)
    gradients[0, 0] = 0.
    theirs = GradCAMPlusPlus.get_cam_weights(None, None, None, None, maps.numpy(), gradients.numpy())
    torch.testing.assert_close(GradCamPlusPlus(classifier).weights(gradients, maps)[..., 0, 0], torch.as_tensor(theirs), atol=1e-5, rtol=1e-4)
    magnitude = torch.rand(1, 513, 313, generator=generator)
    assert not torch.allclose(GradCam(classifier).scores(magnitude, 2), GradCamPlusPlus(classifier).scores(magnitude, 2))
