"""Explainers and archives of strangers: what a configuration, weights or an archive may say, and what is refused, in one line that names it."""
import html
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load, save

from lmac import data
from lmac.audio import make_scene
from lmac.classifier import Cnn14, TappedClassifier
from lmac.decoder import MaskDecoder
from lmac.evidence.baselines import L2I
from lmac.evidence.recipes import read_config, train_explainer
from lmac.evidence.reference import ReferenceExplainer
from lmac.explain import LMAC
from lmac.models.checkpoints import read_checkpoint, read_hyperparams, state_dict_of
from lmac.models.time_domain import TimeDomainFolder
from lmac.models.zero_shot import ZeroShotFolder
from lmac.pretrained import WEIGHTS, ExplainerFolder, as_markdown, check_finite, load_classifier, model_card, parse_config, read_folder, save_classifier, sha256_of
from lmac.spectrogram import STFT, LogMel

pytestmark = pytest.mark.usefixtures('one_thread')
ROOT = Path(__file__).resolve().parent.parent


def small(seed=0, labels=('a', 'b', 'c')):
    torch.manual_seed(seed)
    stft = STFT(512, 128)
    classifier = TappedClassifier(Cnn14(3, 4, 40, 16), LogMel(16000, 512, 40), ['conv_block2', 'conv_block5'], list(labels), 16000, duration_s=.5)
    return LMAC(classifier, MaskDecoder.for_classifier(classifier, stft, channels=8, head_channels=4), stft, provenance=dict(test={'AI': 81.25}))

@pytest.fixture(scope='module')
def explainer(): return small()

@pytest.fixture
def folder(tmp_path, explainer): return explainer.save_pretrained(tmp_path/'explainer')

def edit(folder, where, value):
    "Set an entry of config.json, 'classifier.taps' say; no entry for the value `...`"
    config = json.loads((folder/'config.json').read_text())
    *path, last = where.split('.')
    at = config
    for part in path: at = at[part]
    if value is ...: del at[last]
    else: at[last] = value
    (folder/'config.json').write_text(json.dumps(config))

def refused(folder, *contains, **kwargs):
    start = time.monotonic()
    with pytest.raises(ValueError) as caught: LMAC.from_pretrained(folder, **kwargs)
    message = str(caught.value)
    assert type(caught.value) is ValueError and '\n' not in message and len(message) < 600
    for text in contains: assert text in message, message
    assert time.monotonic() - start < 5


# ---- 11. Files ----

@pytest.mark.parametrize('name', ['/dev/zero', '../../secret.safetensors', '../secret.safetensors', 'a/decoder.safetensors', '..', '.', '', 'notes.txt', 'config.json', 'C:decoder.safetensors',
                                  'a\\decoder.safetensors', 'a\0.safetensors', '/etc/passwd.safetensors'])
def test_a_decoder_lies_in_its_folder(folder, name):
    (folder.parent/'secret.safetensors').write_bytes((folder/'decoder.safetensors').read_bytes())
    edit(folder, 'decoder.file', name)
    refused(folder, 'config.json')

@pytest.mark.parametrize('name', ['../../a/classifier.safetensors', '../secret.safetensors', '/dev/zero', '../../classifier.safetensors', '../a/b/classifier.safetensors', '../..', '../../..', '../a/notes.txt'])
def test_a_shared_classifier_lies_in_a_folder_beside(folder, name):
    (folder.parent/'secret.safetensors').write_bytes((folder/'classifier.safetensors').read_bytes())
    edit(folder, 'classifier.file', name)
    refused(folder, '.safetensors file in the folder of their config.json, or in a folder beside it')

def test_a_classifier_from_far_away_is_handed_in(folder, explainer, tmp_path):
    "What was written before it had to lie beside the explainer, by itself"
    save_classifier(explainer.classifier, explainer.stft, tmp_path/'far/away')
    edit(folder, 'classifier.file', '../far/away/classifier.safetensors')
    refused(folder, 'classifier=load_classifier(its_folder)[0]')
    assert LMAC.from_pretrained(folder, classifier=load_classifier(tmp_path/'far/away')[0]).labels == explainer.labels

def test_what_could_not_be_read_again_is_not_written(tmp_path, explainer):
    save_classifier(explainer.classifier, explainer.stft, tmp_path/'far/away')
    with pytest.raises(ValueError, match='in a folder beside it'): explainer.save_pretrained(tmp_path/'e', '../far/away/classifier.safetensors')
    assert not (tmp_path/'e').exists()
    with pytest.raises(ValueError, match='in a folder beside it'):  # before a second of training
        train_explainer(dict(data=None), tmp_path/'far/away', tmp_path/'runs/deep/e', share_classifier=True)

def test_a_link_of_the_owner_is_followed(folder, explainer):
    "As in the cache of huggingface_hub, whose snapshots are links"
    (folder.parent/'blobs').mkdir()
    for file in list(folder.iterdir()):
        file.rename(folder.parent/'blobs'/file.name)
        file.symlink_to(Path('../blobs')/file.name)
    assert LMAC.from_pretrained(folder).labels == explainer.labels

@pytest.mark.parametrize('file', ['config.json', 'decoder.safetensors', 'classifier.safetensors'])
@pytest.mark.parametrize('kind', ['pipe', 'device', 'folder', 'large'])
def test_what_is_no_regular_file_is_not_read(folder, file, kind):
    (folder/file).unlink()
    if kind == 'pipe': os.mkfifo(folder/file)
    elif kind == 'device': (folder/file).symlink_to('/dev/zero')
    elif kind == 'folder': (folder/file).mkdir()
    else:
        with open(folder/file, 'wb') as f: f.truncate(2**34)
    if file == 'config.json' and kind != 'large':
        with pytest.raises(FileNotFoundError, match='no config.json there'): LMAC.from_pretrained(folder)
        with pytest.raises(ValueError, match='config.json must be a regular file'): load_classifier(folder)
    else: refused(folder, file, 'must have at most' if kind == 'large' else 'must be a regular file')

def test_a_network_larger_than_its_file_is_not_made(folder):
    "The file is small; the configuration asks for 400 GB, and that takes no time and no memory"
    for where, value in {'classifier.network.max_width': 100_000, 'classifier.network.width': 100_000}.items(): edit(folder, where, value)
    refused(folder, 'do not fit the configuration beside them', 'Tensor')

@pytest.mark.parametrize('where, value', [('channels', 100_000), ('head_channels', 100_000), ('rank', 100_000), ('n_classes', 100_000)])
def test_a_decoder_larger_than_its_file_is_not_made(folder, where, value):
    edit(folder, f'decoder.{where}', value)
    refused(folder, 'do not fit the configuration beside them')


# ---- 12. Settings ----

BAD = {'stft.n_fft': [2**31, 0, -1, 1.5, '1024', True, None, [], 10**400], 'stft.hop_length': [0, 2**31, -1], 'stft.win_length': [-1, 2**20], 'stft.window': ['flat', 5], 'stft.pad_mode': ['x'], 'stft': [[], None, {}, 5],
       'classifier': [[], None, {}, 'x'], 'classifier.architecture': ['Cnn10', 5, ['Cnn14']], 'classifier.network': [None, [], {}], 'classifier.front_end': [None, []],
       'classifier.network.n_classes': [10**9, 0, -1, 2.5, '3'], 'classifier.network.width': [10**9, -1], 'classifier.network.dropout': [math.nan, 2, -1], 'classifier.front_end.n_mels': [10**9, 0], 'classifier.front_end.gain': [math.inf, -1, 0, math.nan],
       'classifier.front_end.f_min': [-1, 9000], 'classifier.front_end.f_max': [math.nan, 1e9, 0], 'classifier.front_end.sample_rate': [0, -16000, 1.5], 'classifier.taps': [[], 'conv_block2', [1], [[]], None, ['conv_block9'], ['conv_block2'] * 2],
       'classifier.labels': [['a', 'b', ['c']], ['a', 'b', 'a'], ['a', 'b', 3], ['a', 'b', ''], [], 'abc', None, {'a': 1}, ['a', 'b']], 'classifier.sample_rate': [0, -1, 10**12, math.inf, '16000', 16000.5],
       'classifier.map_layout': ['upside', None, 5, 'frames'], 'classifier.duration_s': [1e12, -1, 0, math.inf, math.nan, '5', 80_000], 'classifier.multi_label': ['yes', 1, None], 'classifier.sha256': ['', 'x' * 64, 5, 'A' * 64],
       'classifier.answer': [[], 'x', {'draws': 10**9}, {'draws': 64}, {'heard_s': -1}, {'notes': 'x'}, {'more': 1}], 'domain': ['x', None, 5, []], 'decoder': [[], None, {}], 'decoder.channels': [0, -1, 2**31, 8.0], 'decoder.dropout': [math.nan, 2],
       'decoder.n_classes': [-1, 10**9, '3', 4, 2], 'decoder.rank': [-1, 10**9, 2.5], 'decoder.file': [None, 5, []], 'decoder.sha256': [None], 'provenance': [[], 5, 'x'], 'format': [0, -1, '1', None, 1.5, 99, 10**30], 'lmac_version': [5, []], 'kind': ['l2i', 5]}

@pytest.mark.parametrize('where', BAD)
def test_settings_out_of_bounds(folder, where):
    before = (folder/'config.json').read_bytes()
    for value in BAD[where]:
        edit(folder, where, value)
        refused(folder)
        (folder/'config.json').write_bytes(before)

@pytest.mark.parametrize('where', ['format', 'stft', 'stft.n_fft', 'classifier', 'classifier.taps', 'classifier.labels', 'classifier.sample_rate', 'classifier.sha256', 'classifier.network', 'classifier.map_layout', 'domain', 'decoder.channels', 'decoder.file'])
def test_the_entry_is_named(folder, where):
    edit(folder, where, ...)
    refused(folder, 'config.json', where, 'Field required')
    edit(folder, where, {'a': [1]})
    refused(folder, 'config.json', where)

@pytest.mark.parametrize('where', ['more', 'stft.more', 'classifier.more', 'classifier.network.more', 'decoder.more'])
def test_an_entry_that_is_not_known_is_refused(folder, where):
    "It may change what is computed"
    edit(folder, where, 1)
    refused(folder, f"entry '{where}': this lmac knows no such entry; if a later one wrote it, update lmac")

def test_provenance_may_say_anything(folder):
    edit(folder, 'provenance', {'x': [None, math.nan, {'y': 10**30}], 'test': {'AD': math.nan, 'note': 'x', 'of': [1]}})
    found = LMAC.from_pretrained(folder)
    assert '| AD | nan |' in model_card(found.classifier, found.provenance)
    edit(folder, 'provenance', None)
    assert LMAC.from_pretrained(folder).provenance == {}

def test_a_later_format(folder):
    edit(folder, 'format', 99)
    edit(folder, 'stft', 'of another kind')
    refused(folder, 'written by a later lmac, in format 99', 'Update lmac')

@pytest.mark.parametrize('deep', [b'[', b'{"a":'])
def test_deep_nesting(folder, deep):
    whole = (folder/'config.json').read_bytes()
    for n in (250, 100_000):
        (folder/'config.json').write_bytes(whole.replace(b'"provenance": {', b'"provenance": {"x": ' + deep * n))
        refused(folder, 'config.json', 'recursion limit exceeded')

@pytest.mark.parametrize('text', [b'\xff\xfe', b'\x00', b'{"format": 1' + b'1' * 5000 + b'}', b'[' * 10, b'1', b'"x"'])
def test_what_is_no_configuration(folder, text):
    (folder/'config.json').write_bytes(text)
    refused(folder, 'config.json is not the configuration of an explainer')

def test_a_clip_has_its_bounds(folder, explainer):
    edit(folder, 'classifier.duration_s', 3000.)
    refused(folder, 'must ask for at most', 'bins in the spectrogram of a clip')
    edit(folder, 'stft', dict(n_fft=2**17, hop_length=1))
    with pytest.raises(ValueError, match='must ask for at most'): LMAC.from_pretrained(folder, classifier=explainer.classifier)

def test_folders_of_other_kinds(folder, explainer, tmp_path):
    reference = json.loads((folder/'config.json').read_text()) | dict(kind='reference', decoder=dict(dim=10**9, file='decoder.safetensors', sha256='0' * 64))
    (folder/'config.json').write_text(json.dumps(reference))
    with pytest.raises(ValueError, match="entry 'decoder.dim': Input should be less"): ReferenceExplainer.from_folder(folder)
    reference['decoder']['dim'] = 2**16
    (folder/'config.json').write_text(json.dumps(reference))
    with pytest.raises(ValueError, match='decoder.safetensors (is damaged|must have)|taps'): ReferenceExplainer.from_folder(folder)
    refused(folder, "not the configuration of an explainer, but of 'reference'")
    l2i = {k: v for k, v in reference.items() if k not in ('decoder', 'domain', 'lmac_version')} | dict(kind='l2i', sha256='0' * 64, settings={}, best={})
    for network, message in ((dict(n_freqs=10**9), 'n_freqs'), (dict(n_classes=7), 'network.n_classes must be 3 for this classifier. Found: 7'), (dict(channels=50_000), 'l2i.safetensors'), (dict(more=1), 'network.more')):
        whole = dict(tap_channels=[8, 16], n_freqs=257, n_classes=3, n_components=4, channels=64, rows=8)
        (folder/'config.json').write_text(json.dumps(l2i | dict(network=whole | network)))
        (folder/'l2i.safetensors').write_bytes(b'x')
        with pytest.raises(ValueError, match=message): L2I.from_folder(folder, explainer.classifier)


# ---- 13. Weights and labels ----

def rewrite(folder, part, tensors):
    data = tensors if isinstance(tensors, bytes) else save(tensors)
    (folder/f'{part}.safetensors').write_bytes(data)
    edit(folder, f'{part}.sha256', sha256_of(data))

@pytest.mark.parametrize('part, name', [('classifier', 'fc.weight'), ('classifier', 'bn0.running_var'), ('decoder', 'sum.bias'), ('decoder', 'standardize.0.running_mean')])
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite(folder, part, name, value):
    tensors = load((folder/f'{part}.safetensors').read_bytes())
    tensors[name].view(-1)[-1] = value
    rewrite(folder, part, tensors)
    refused(folder, f'The tensor {name!r} in', f'{part}.safetensors must hold finite numbers')

@pytest.mark.parametrize('dtype', [torch.int64, torch.complex64, torch.float64, torch.float16, torch.bool, torch.uint8])
def test_weights_of_another_type(folder, dtype):
    for part, name in (('classifier', 'fc.weight'), ('decoder', 'sum.bias')):
        before = load((folder/f'{part}.safetensors').read_bytes())
        rewrite(folder, part, before | {name: before[name].to(dtype)})
        refused(folder, f'Tensor {name!r}: expected [torch.float32', f'found [{dtype}')
        rewrite(folder, part, before)
    tensors = load((folder/'classifier.safetensors').read_bytes())
    rewrite(folder, 'classifier', tensors | {'bn0.num_batches_tracked': torch.tensor(3.)})
    refused(folder, "Tensor 'bn0.num_batches_tracked': expected [torch.int64]")

def test_weights_whose_results_are_not_finite(folder):
    "Each of them is a number: a variance below zero, or one so large that sums overflow"
    for part, name, value in (('classifier', 'bn0.running_var', -1.), ('decoder', 'standardize.0.running_var', -1.), ('classifier', 'fc.weight', 3e38)):
        before = load((folder/f'{part}.safetensors').read_bytes())
        rewrite(folder, part, before | {name: torch.full_like(before[name], value)})
        refused(folder, f'The {part} must give finite numbers')
        rewrite(folder, part, before)

def test_nan_is_not_the_recordings_fault():
    explainer = small()
    scene = make_scene({'dog': 0}, .5)
    with torch.no_grad(): explainer.classifier.model.fc.bias[0] = math.nan
    with pytest.raises(ValueError, match="The classifier must give numbers. Found: NaN.*its weights first") as caught: explainer.explain(scene.waveform, 16000)
    assert 'waveform' not in str(caught.value)

def test_weights_by_other_names(folder):
    tensors = load((folder/'decoder.safetensors').read_bytes())
    for change, message in (({'more': torch.zeros(1)}, "Tensor 'more': expected none"), ({'sum.bias': torch.zeros(2)}, "Tensor 'sum.bias'")):
        rewrite(folder, 'decoder', tensors | change)
        refused(folder, message, 'made for another classifier')
    del tensors['sum.bias']
    rewrite(folder, 'decoder', tensors)
    refused(folder, "Tensor 'sum.bias'", 'found none')

@pytest.mark.parametrize('data', [b'', b'x' * 7, b'\0' * 8, struct.pack('<Q', 2**63) + b'{}', struct.pack('<Q', 2) + b'{}', struct.pack('<Q', 4) + b'null', b'PK\3\4' + bytes(100),
                                  (lambda head: struct.pack('<Q', len(head)) + head)(b'{"a":{"dtype":"F32","shape":[9223372036854775807],"data_offsets":[0,4]}}xxxx'),
                                  (lambda head: struct.pack('<Q', len(head)) + head)(b'[' * 1000)])
def test_garbage_for_weights(folder, data, tmp_path):
    rewrite(folder, 'decoder', data)
    refused(folder, 'decoder.safetensors')
    (tmp_path/'garbage.safetensors').write_bytes(data)
    if data[8:] != b'{}' or len(data) != 10 or data[0] != 2:
        with pytest.raises(ValueError, match='garbage.safetensors is no checkpoint'): read_checkpoint(tmp_path/'garbage.safetensors')

def test_checkpoints_of_others_hold_numbers(tmp_path):
    torch.save({'model': {'fc.weight': torch.tensor([1., math.nan])}}, tmp_path/'x.pth')
    with pytest.raises(ValueError, match="The tensor 'fc.weight' in .*x.pth must hold finite numbers"): state_dict_of(tmp_path/'x.pth')
    assert check_finite({'n': torch.tensor(3)}, 'x')

@pytest.mark.parametrize('labels, message', [(['a', 'a', 'b'], "Found twice: 'a'"), (['a', 2, 'b'], 'as text. Found: 2'), ([['a'], 'b', 'c'], "Found: ['a']"), (['a', ' ', 'c'], "Found: ' '")])
def test_labels_made_by_hand(labels, message):
    with pytest.raises(ValueError, match=re.escape(message)): small(labels=labels)


# ---- what there is loads as before ----

def test_bundled_and_saved_explainers_are_in_order():
    for folder in [p.parent for root in (WEIGHTS, ROOT/'nbs'/'tutorials'/'explainers') for p in sorted(root.glob('*/config.json'))]:
        config = read_folder(folder)
        if 'decoder' not in config: continue
        parse_config((folder/'config.json').read_bytes(), dict(time_domain=TimeDomainFolder, zero_shot=ZeroShotFolder).get(config.get('kind'), ExplainerFolder))
        assert check_finite(load((folder/'decoder.safetensors').read_bytes()), folder) and config['decoder']['sha256'] == sha256_of((folder/'decoder.safetensors').read_bytes())

def test_the_same_bits(folder, explainer):
    magnitude = torch.rand(1, 257, 63)
    found = LMAC.from_pretrained(folder)
    for name in ('classifier', 'decoder'):
        a, b = getattr(explainer, name).state_dict(), getattr(found, name).state_dict()
        assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(found.attribute(magnitude), explainer.attribute(magnitude))


# ---- 14. Archives, yaml, cards ----

def tar_of(names, mode='w:gz', kinds=None):
    with io.BytesIO() as buffer:
        with tarfile.open(fileobj=buffer, mode=mode) as archive:
            for name in names:
                info = tarfile.TarInfo(name.rstrip('/'))
                info.type, info.size = (tarfile.DIRTYPE, 0) if name.endswith('/') else (tarfile.REGTYPE, 4)
                archive.addfile(info, io.BytesIO(b'abcd'))
        return buffer.getvalue()

def zip_of(names, **kwargs):
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, 'w') as archive:
            for name in names: archive.writestr(name, b'abcd', **kwargs)
        return buffer.getvalue()

def patched(data, at, value):
    "A zip of one member with other bytes in its two headers"
    data, central = bytearray(data), data.index(b'PK\1\2')
    data[6 + at:6 + at + len(value)] = value
    data[central + 8 + at:central + 8 + at + len(value)] = value
    return bytes(data)

def flipped(data, at): return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:] if at + 1 else data[:at] + bytes([data[at] ^ 1])

ARCHIVES = {'encrypted': (patched(zip_of(['a.txt']), 0, b'\1\0'), 'is encrypted'), 'unknown compression': (patched(zip_of(['a.txt']), 2, b'\x63\0'), 'compression'), 'wrong sum in a zip': (zip_of(['a.txt']).replace(b'abcd', b'abce'), 'CRC'),
            'twice in a zip': (None, 'there twice'), 'file and folder in a zip': (zip_of(['a', 'a/b']), 'a file and a folder'), 'the other way round': (zip_of(['a/b', 'a']), 'a file and a folder'), 'twice in a tar': (tar_of(['a', 'a']), 'there twice'),
            'another way of writing it': (tar_of(['a', './a']), 'there twice'), 'file and folder in a tar': (tar_of(['a', 'a/b']), 'a file and a folder'), 'outside a zip': (zip_of(['../a']), 'no file or folder inside'),
            'wrong sum in a tar.gz': (flipped(tar_of(['a', 'b']), -8), 'CRC check failed'), 'wrong length in a tar.gz': (flipped(tar_of(['a', 'b']), -4), 'ncorrect length'), 'cut tar.gz': (tar_of(['a', 'b'])[:-4], 'ended'),
            'wrong sum in a tar.bz2': (flipped(tar_of(['a'], 'w:bz2'), -4), 'cannot be unpacked'), 'wrong sum in a tar.xz': (flipped(tar_of(['a'], 'w:xz'), -12), 'cannot be unpacked'), 'garbage after a tar.gz': (tar_of(['a']) + b'garbage', 'cannot be unpacked'),
            'nothing': (b'', 'cannot be unpacked'), 'garbage': (os.urandom(1000), 'cannot be unpacked')}

@pytest.mark.filterwarnings('ignore:Duplicate name')
@pytest.mark.parametrize('kind', ARCHIVES)
def test_archives_that_are_refused(tmp_path, kind):
    "A documented error of one line, and nothing is unpacked"
    contents, message = ARCHIVES[kind]
    if contents is None: contents = zip_of(['a', 'a'])
    (tmp_path/'archive').write_bytes(contents)
    with pytest.raises(ValueError, match=message) as caught: data._unpack(tmp_path/'archive', tmp_path/'inside')
    assert 'archive cannot be unpacked' in str(caught.value) and '\n' not in str(caught.value)
    assert kind in ('wrong sum in a zip', 'unknown compression') or not list((tmp_path/'inside').rglob('*'))

@pytest.mark.parametrize('contents', [tar_of(['x/', 'x/a', 'x/y/b', 'x/']), tar_of(['x/a'], 'w'), tar_of(['x/a'], 'w:bz2'), tar_of(['x/a'], 'w:xz'), zip_of(['x/', 'x/a', 'x/y/b'])])
def test_archives_in_order(tmp_path, contents):
    (tmp_path/'archive').write_bytes(contents)
    data._unpack(tmp_path/'archive', tmp_path/'inside')
    assert (tmp_path/'inside/x/a').read_bytes() == b'abcd'

CONFIG = 'data: {dataset: esc10, train: [1], valid: [2]}\ntraining: {epochs: 1}\n'

@pytest.mark.parametrize('text, message', [('[' * 10_000, 'recursion'), ('a: ' + '{b: ' * 10_000, 'recursion'), ('&a [*a]', 'contains itself'), ('a: 2024-01-02', 'a date'), ('a: 2024-99-99', 'month'), ('a: !!binary aGk=', 'a bytes'),
                                           ('a: !!python/object/apply:os.system [ls]', 'could not determine a constructor'), ('a: !!int ""', 'not valid yaml'), ('a: [', 'not valid yaml'), ('\x07', 'not valid yaml'),
                                           ('a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(f'{y}: &{y} [{", ".join(["*" + x] * 9)}]\n' for x, y in zip('abcdefgh', 'bcdefghi')), '10,000 values')])
def test_yaml_of_strangers(tmp_path, text, message):
    (tmp_path/'c.yaml').write_text(text)
    with pytest.raises(ValueError, match=message) as caught: read_config(tmp_path/'c.yaml')
    assert 'c.yaml is not valid yaml' in str(caught.value) and '\n' not in str(caught.value)

def test_yaml_with_aliases_is_in_order(tmp_path):
    (tmp_path/'c.yaml').write_text(CONFIG + 'loss: &loss {weight_in: 1.0}\nsources: {single: *loss}\n')
    assert read_config(tmp_path/'c.yaml')['sources'] == dict(single=dict(weight_in=1.))
    (tmp_path/'c.yaml').write_bytes(b'\xff' + CONFIG.encode())
    with pytest.raises(ValueError, match='c.yaml is not valid yaml'): read_config(tmp_path/'c.yaml')

@pytest.mark.parametrize('text, message', [('[' * 10_000, 'RecursionError'), ('n_fft: <a>\na: <n_fft>', 'n_fft'), ('sample_rate: ["x"]', 'sample_rate'), ('hop_length: .inf', 'hop_length'), ('win_length: -1', 'win_length')])
def test_hyperparameters_of_strangers(tmp_path, text, message):
    (tmp_path/'h.yaml').write_text(text)
    with pytest.raises(ValueError, match=message): read_hyperparams(tmp_path/'h.yaml')

HOSTILE = ['<script>alert(1)</script>', '](https://example.org)![x', 'sea_waves\n# Title', '`code`', '*bold* **x**', 'a|b', '\u202egnp', '{first}', '$$', '&amp;', 'x' * 300]

def test_cards_show_labels_as_they_are(tmp_path):
    for hostile in HOSTILE:
        explainer = small(labels=[hostile, 'b', 'c'])
        explainer.provenance = {'test': {f'AI {hostile}': 1.}, 'note': '```\n# Out'}
        card = model_card(explainer.classifier, explainer.provenance, licence='mit\nlibrary_name: other')
        _, head, body = card.split('---\n', 2)
        assert yaml.safe_load(head) == dict(library_name='lmac', license='mit\nlibrary_name: other', pipeline_tag='audio-classification', tags=['audio', 'interpretability', 'listenable-maps'])
        assert sum(line.startswith('# Title') for line in body.splitlines()) == 0 and '````json' in body
        assert '<script' not in body and '![x' not in body and '\u202e' not in body

def test_card_as_html():
    "What a reader of markdown makes of it: the label's own characters, and no element of its own"
    pandoc = pytest.importorskip('pypandoc')
    for hostile in HOSTILE:
        found = pandoc.convert_text(f'# Why “{as_markdown(hostile)}”?\n\n- {as_markdown(hostile)}', 'html', format='gfm', extra_args=['--wrap=none'])
        assert set(re.findall(r'<(\w+)', found)) == {'h1', 'ul', 'li'}, found
        shown = re.search('<li>(.*)</li>', found)[1]
        assert html.unescape(shown) == ' '.join(hostile.replace('\u202e', ' ').split())

def test_pictures_and_files_of_hostile_labels(tmp_path):
    scene = make_scene({'dog': 0}, .5)
    for hostile in ('$$', '$\\frac$', '../x', 'x' * 300, '<script>alert(1)</script>'):
        explainer = small(labels=[hostile, 'b', hostile + '!'])
        for k, options in enumerate((dict(target=0), dict(targets=[0, 2]))):
            folder = explainer.explain(scene.waveform, 16000, **options).save(tmp_path/f'{k}')
            assert '<script>alert' not in (folder/'report.html').read_text() and (folder/'mask.png').stat().st_size
    assert sorted(p.name for p in tmp_path.iterdir()) == ['0', '1']


# ---- all of it, at random ----

def test_mutated_explainers():
    "100 of those that `python tests/fuzz.py explainers` makes"
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]))
    res = subprocess.run([sys.executable, ROOT/'tests'/'fuzz.py', 'explainers', '--n', '100', '--first', '5000'], env=env, capture_output=True, text=True, timeout=300)
    assert res.returncode == 0, res.stdout[-2000:] + res.stderr[-2000:]
    counts = json.loads(res.stdout.splitlines()[-1])
    assert counts['cases'] == 100 == counts['used'] + counts['refused'] and counts['used'] > 3
