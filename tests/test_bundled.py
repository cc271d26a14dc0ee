"""The bundled weights are those that were trained, and the masks that they draw are those that they drew: bit by bit where it can be said, to 1e-5 elsewhere."""
import hashlib
import re
from pathlib import Path

import pytest
import torch

from lmac.data import has_dataset
from lmac.explain import LMAC, MaskedClips
from lmac.pretrained import WEIGHTS

FILES = {
    "esc10-classifier/classifier": "e31192a4d9dbd1cc2fbc03232f4c40e996509bd392b12aa520e85f739ec36098",
    "esc10/decoder": "eb9aea276311bee20baa43e8a04e08f937f5a8049b4d84ea9e0736c3fa84719f",
    "esc10-finetuned/decoder": "49e78577b759c95157e6cbc391586f8b2e4b1e4d759294c7bb9b02275b0770a0",
    "esc10-sources/decoder": "ce6fc2d636218fc367e4c02ed1325cb775ca698b2f688fdc462c8b985a4df217",
    "esc10-time-domain/decoder": "2b5d3ef3a2fd5d337aa7ebca11a7ace503a092ef9a1a76ced609fce82b30b347",
    "esc10-zero-shot/decoder": "2d179914f97d02eae8ac4572bd02a328c69e745498e6b9725e3e59ac974fc8db",
    "esc10-zero-shot/words": "3271a2630106c51f609c28418ddb7a2654cd336d98f4f28e7d75f11855eb1b54"}
STATISTICS = {"esc10": (0.2679804, 0.3633954), "esc10-finetuned": (0.3657792, 0.3861669), "esc10-sources": (0.1880195, 0.2462411), "esc10-time-domain": (0.2083588, 0.3090263), "esc10-zero-shot": (0.3286463, 0.3723719)}   # mean and deviation of the masks
# Of the masks' bytes, by one thread: they depend on processor and torch. Taken when batch norms were first folded for inference, which rounds otherwise in the last digits.
HASHES = {("2.14.1+cu130", "6 207"): {
    "esc10": "6cd19f7c865fc97bbbf4932cd5bbb8851197b05aec00f320cb75622e8907c10e",
    "esc10-finetuned": "f285574fb330f475dbb553bca826d8549e49e793a7dbb850ed69267c2ba9df9a",
    "esc10-sources": "0cca9879c60ed7fb08e37be10021119ff3fd4d48bf75280e4e54dadc8b034066"}}


def processor():
    "Family and model, as Linux numbers them; None elsewhere"
    try: text = Path("/proc/cpuinfo").read_text()
    except OSError: return None
    found = [re.search(rf"^{name}\s*: (\d+)$", text, re.MULTILINE) for name in ("cpu family", "model")]
    return " ".join(m[1] for m in found) if all(found) else None


@pytest.fixture
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.mark.parametrize("name", FILES)
def test_weights_are_those_that_were_trained(name):
    assert hashlib.sha256((WEIGHTS/f"{name}.safetensors").read_bytes()).hexdigest() == FILES[name]


@pytest.mark.parametrize("name", STATISTICS)
def test_masks_are_what_they_were(name, one_thread):
    "Three chirps that come and go, a mask for each of the ten classes"
    t = torch.arange(80000, dtype=torch.float64)/16000
    chirps = ((220., 3.), (900., 1.), (2500., 7.))
    waveform = sum(torch.sin(2*torch.pi*f*t*(1 + .1*t))*(torch.sin(2*torch.pi*r*t) > 0)/4 for f, r in chirps)[None].float()
    lmac = LMAC.from_pretrained(name)
    magnitude, phase = lmac.stft(waveform)
    masks = torch.stack([lmac.attribute(magnitude, target=k, phase=phase if lmac.needs_phase else None) for k in range(10)])
    assert (masks.double().mean().item(), masks.double().std().item()) == pytest.approx(STATISTICS[name], abs=1e-5)
    known = HASHES.get((torch.__version__, processor()))
    if known and name in known: assert hashlib.sha256(masks.numpy().tobytes()).hexdigest() == known[name]


@pytest.mark.data
@pytest.mark.skipif(not has_dataset("esc50"), reason="ESC-50 is not here")
@pytest.mark.parametrize("bundled", ["esc10", "esc10-sources"])
def test_verdicts_tell_explanations_from_random_masks(one_thread, bundled):
    "Fold 4, none of which the bundled explainers were trained on: masks that explain, and five random ones for each that keep as many bins"
    from lmac.data import esc50
    from lmac.explain import _of_equal_share
    from lmac.explanation import judge
    lmac, verdicts, good = LMAC.from_pretrained(bundled), dict(explanation=[], random=[]), []
    for i, waveform in enumerate(esc50("esc10", folds=4).waveforms.split(20)):
        found = lmac.masked_parts(waveform)
        magnitude, phase = lmac.magnitude_phase(waveform)
        masks = [("explanation", found["mask"]), *(("random", _of_equal_share(found["mask"], magnitude, 100 * seed + i)["random"]) for seed in range(5))]
        for name, mask in masks:
            parts = MaskedClips(lmac, torch.polar(magnitude, phase), mask, waveform.shape[1]).judge_parts()
            p, p_in, p_out = (x.gather(1, found["target"][:, None])[:, 0] for x in (found["probabilities"], *parts))
            rows = torch.stack([p, p_in, p_out, mask.mean((1, 2))], 1).tolist()
            verdicts[name] += [judge(*row) for row in rows]
            if name == "explanation": good += [p_in >= .9 * p and p_out <= .5 * p and kept <= .4 for p, p_in, p_out, kept in rows]
    explains = {name: torch.tensor([v == "explains" for v in vs]) for name, vs in verdicts.items()}
    assert explains["random"].float().mean() <= .05
    assert sum(good) >= 40 and explains["explanation"][torch.tensor(good)].float().mean() >= .95
