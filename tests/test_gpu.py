"""The promises about accelerators, on one: masks and decisions of the CPU, batches of any size, training that is repeatable. Skipped where there is none."""
import pytest
import torch

from lmac.audio import SOURCES, make_scene
from lmac.explain import LMAC, choose_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(choose_device('auto').type == 'cpu', reason='no accelerator')]


@pytest.fixture(scope='module')
def sounds(): return torch.cat([make_scene({name: 0, 'white_noise': -20}, 5., seed=i).waveform for i, name in enumerate(SOURCES)])

@pytest.fixture(scope='module')
def fast(): return LMAC.from_pretrained(device='auto')


def test_masks_are_those_of_the_cpu(fast, sounds):
    a, b = LMAC.from_pretrained(device='cpu').masked_parts(sounds), fast.masked_parts(sounds.to(fast.device))
    torch.testing.assert_close(b['mask'].cpu(), a['mask'], atol=1e-4, rtol=0)
    assert torch.equal(b['target'].cpu(), a['target'])
    torch.testing.assert_close(b['audio_in'].cpu(), a['audio_in'], atol=1e-4, rtol=0)

def test_a_clip_alone_is_the_clip_in_a_batch(fast, sounds):
    together = fast.explain(sounds[:, None], 16000, batch_size=len(sounds))
    for x, ex in zip(sounds, together):
        torch.testing.assert_close(fast.explain(x[None], 16000).mask, ex.mask, atol=1e-4, rtol=0)
        assert ex.mask.device.type == ex.complete().audio.device.type == 'cpu'

def test_a_tone_at_full_scale_is_finite_in_half_precision(fast):
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(80000) / 16000)[None]
    with torch.autocast(fast.device.type, dtype=torch.float16): assert fast.explain(tone, 16000).complete().mask.isfinite().all()

@pytest.mark.skipif(choose_device('auto').type != 'cuda', reason='no NVIDIA device')
def test_two_trainings_are_one(fast, sounds, tmp_path):
    from lmac.decoder import MaskDecoder
    from lmac.training import ExplainerTask, fit_task
    def weights(folder):
        torch.manual_seed(0)
        decoder = MaskDecoder.for_classifier(fast.classifier, fast.stft)
        task = ExplainerTask(fast.classifier, decoder, fast.stft).to(fast.device)
        data = torch.utils.data.TensorDataset(sounds, torch.zeros(len(sounds), dtype=torch.long))
        return fit_task(task, data, data, epochs=2, batch_size=4, folder=tmp_path/folder).task.trained.state_dict()
    a, b = weights('a'), weights('b')
    assert all(torch.equal(a[k], b[k]) for k in a)
