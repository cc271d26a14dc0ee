"""Sharing an explainer: what would go to the hub, and what comes from a hub's cache."""
import json
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from torch import nn

from lmac.audio import make_scene, save_audio
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.explain import LMAC
from lmac.spectrogram import STFT, LogMel


def small(seed=0):
    torch.manual_seed(seed)
    stft, front_end = STFT(512, 128), LogMel(16000, 512, 40)
    classifier = TappedClassifier(Cnn14(3, 4, 40, 16), front_end, ['conv_block2', 'conv_block5'], ['a', 'b', 'c'], 16000, duration_s=1.)
    provenance = dict(trained_with=dict(epochs=3), test={'AI': 81.25, 'AD': 2.5})
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft), stft, provenance=provenance)


class Hub:
    "Takes what `HfApi` is asked to do, and keeps the files in a folder"
    def __init__(self, folder): self.folder, self.calls = folder, []

    def __call__(self, token=None):
        self.calls.append(('token', token))
        return self

    def create_repo(self, repo_id, private=None, exist_ok=False):
        self.calls.append(('create_repo', repo_id, private, exist_ok))
        return type('Url', (), dict(repo_id=repo_id))

    def upload_folder(self, repo_id, folder_path, commit_message, **kwargs):
        self.calls.append(('upload_folder', repo_id, kwargs))
        shutil.copytree(folder_path, self.folder / repo_id)
        return f'https://hub/{repo_id}/commit/1'


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / 'hub')
    monkeypatch.setattr(huggingface_hub, 'HfApi', hub)
    return hub


def test_push_sends_explainer_example_and_card(hub):
    explainer = small()
    assert explainer.push_to_hub('me/why', private=True, token='t', create_pr=True) == 'https://hub/me/why/commit/1'
    assert hub.calls == [('token', 't'), ('create_repo', 'me/why', True, True), ('upload_folder', 'me/why', dict(create_pr=True))]
    there = {str(p.relative_to(hub.folder / 'me/why')) for p in (hub.folder / 'me/why').rglob('*') if p.is_file()}
    assert {'config.json', 'classifier.safetensors', 'decoder.safetensors', 'README.md', 'sample/input.wav', 'sample/explanation.flac'} <= there
    magnitude = torch.rand(1, 257, 100)
    assert torch.equal(LMAC.from_pretrained(hub.folder / 'me/why').attribute(magnitude), explainer.attribute(magnitude))


def test_card_is_valid_and_tells_numbers(hub):
    small().push_to_hub('me/why', licence='cc-by-4.0')
    card = huggingface_hub.ModelCard.load(hub.folder / 'me/why' / 'README.md')
    assert card.data.license == 'cc-by-4.0' and card.data.library_name == 'lmac' and card.data.pipeline_tag == 'audio-classification'
    assert '| AI | 81.25 |' in card.text and 'sample/explanation.flac' in card.text and '"epochs": 3' in card.text


def test_example_of_ones_own_says_nothing_of_its_folder(hub, tmp_path):
    scene = make_scene({'siren': 0}, 1.)
    save_audio(tmp_path / 'siren.wav', scene.waveform, 16000)
    small().push_to_hub('me/why', example=tmp_path / 'siren.wav')
    summary = json.loads((hub.folder / 'me/why/sample/explanation.json').read_text())
    assert summary['source'] == 'siren.wav'
    for file in (hub.folder / 'me/why').rglob('*'):
        assert not file.is_file() or str(tmp_path).encode() not in file.read_bytes(), file


def test_failed_upload_leaves_no_files_behind(hub, monkeypatch, tmp_path):
    monkeypatch.setenv('TMPDIR', str(tmp_path / 'tmp'))
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', None)
    def fail(**kwargs): raise ConnectionError('no network')
    monkeypatch.setattr(hub, 'upload_folder', fail)
    with pytest.raises(ConnectionError): small().push_to_hub('me/why')
    assert not list((tmp_path / 'tmp').iterdir())


def test_classifier_may_stay_at_home(hub):
    explainer = small()
    explainer.push_to_hub('me/why', include_classifier=False)
    folder = hub.folder / 'me/why'
    assert not (folder / 'classifier.safetensors').exists() and 'classifier=yours' in (folder / 'README.md').read_text()
    with pytest.raises(ValueError, match='were left out'): LMAC.from_pretrained(folder)
    with pytest.raises(ValueError, match='The classifier handed in'): LMAC.from_pretrained(folder, classifier=small(1).classifier)
    magnitude = torch.rand(1, 257, 100)
    assert torch.equal(LMAC.from_pretrained(folder, classifier=explainer.classifier).attribute(magnitude), explainer.attribute(magnitude))


def test_saving_can_push(hub, tmp_path):
    small().save_pretrained(tmp_path / 'why', push_to_hub=True, repo_id='me/other', private=False)
    assert ('create_repo', 'me/other', False, True) in hub.calls and (tmp_path / 'why' / 'config.json').exists()


def test_explainer_comes_from_the_hubs_cache_without_network(tmp_path):
    "The layout of huggingface_hub's own cache, read in a process that is told to stay offline"
    explainer, revision = small(), 'a' * 40
    repo = tmp_path / 'hub' / 'models--me--why'
    explainer.write_share(repo / 'snapshots' / revision)
    (repo / 'refs').mkdir()
    (repo / 'refs' / 'main').write_text(revision)
    code = ("import torch; from lmac.explain import LMAC; e = LMAC.from_pretrained('me/why'); "
            "print(e.labels, float(e.attribute(torch.ones(1, 257, 100)).sum()))")
    env = dict(os.environ, HF_HUB_CACHE=str(tmp_path / 'hub'), HF_HUB_OFFLINE='1')
    res = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=120)
    assert res.returncode == 0, res.stderr[-800:]
    assert res.stdout.startswith("['a', 'b', 'c']")
    assert abs(float(res.stdout.split()[-1]) - explainer.attribute(torch.ones(1, 257, 100)).sum().item()) < 1e-2
    res = subprocess.run([sys.executable, '-c', code.replace('me/why', 'me/other')], env=env, capture_output=True, text=True, timeout=120)
    assert res.returncode != 0 and 'FileNotFoundError' in res.stderr


def test_network_with_tied_weights_is_saved():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv1d(40, 40, 1), nn.Conv1d(40, 40, 1), nn.Linear(40, 3)
            self.b.weight = self.a.weight
        def forward(self, x): return self.fc(self.b(self.a(x).relu()).relu().mean(2))
    import tempfile
    explainer = LMAC.for_classifier(Tied(), LogMel(16000, 512, 40), ['a', 'b'], list('abc'), stft=STFT(512, 128), duration_s=1.)
    with tempfile.TemporaryDirectory() as folder:
        explainer.save_pretrained(folder)
        assert LMAC.from_pretrained(folder, classifier=explainer.classifier).labels == list('abc')
