"""Regions of a mask: known answers, blocks against the whole, brute force, and the files that other programs read."""
import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lmac.audio import make_scene
from lmac.explain import LMAC
from lmac.explanation import RegionStream, region_files
from lmac.masking import DOMAINS
from lmac.scale.long import LongExplanation, explain_stream

COLUMNS = ['start_s', 'end_s', 'low_hz', 'high_hz', 'share', 'label']

def regions_of(mask, magnitude=None, block=None, duration_s=None, around=None, labels=None, **settings):
    "With 100 frames a second and, at 40 rows, 10 Hz from bin to bin"
    stream = RegionStream(780, 7.8, len(mask), **dict(gap_s=0, gap_hz=0, min_share=0) | settings)
    magnitude = mask if magnitude is None else magnitude
    for i, (m, x) in enumerate(zip(mask.split(block or 10**6, 1), magnitude.split(block or 10**6, 1))): stream.push(m, x, 'a' if labels is None else labels[i])
    return stream.finish(mask.shape[1] / 100 if duration_s is None else duration_s, around)

def boxes(*bins, shape=(40, 100)):
    "A mask of ones in boxes (first row, after the last, first frame, after the last)"
    mask = torch.zeros(shape)
    for a, b, c, d in bins: mask[a:b, c:d] = 1.
    return mask

def test_a_box_is_half_a_bin_and_half_a_frame_larger_than_the_middles_of_its_bins():
    found = regions_of(boxes((10, 20, 30, 40)))
    assert list(found) == COLUMNS and found.iloc[0, :5].tolist() == pytest.approx([.295, .395, 95, 195, 1]) and found.label.tolist() == ['a']
    found = regions_of(boxes((0, 40, 0, 100)))
    assert found.iloc[0, :4].tolist() == pytest.approx([0, .995, 0, 390])  # within the recording
    assert regions_of(boxes((0, 40, 0, 100)), duration_s=.7).end_s.tolist() == [.7]

def test_by_time_and_with_their_share():
    found = regions_of(3 * boxes((0, 2, 50, 60), (30, 34, 10, 20)) + boxes((10, 12, 90, 100)), threshold=.5)
    assert found.start_s.tolist() == pytest.approx([.095, .495, .895]) and found.share.tolist() == pytest.approx([36 / 56 * 10 / 10, 18 / 56, 2 / 56])
    assert len(regions_of(3 * boxes((0, 2, 50, 60)) + boxes((10, 12, 90, 100)), min_share=.2)) == 1

@pytest.mark.parametrize('gap, settings, n', [(1, {}, 2), (2, dict(gap_s=.02), 1), (3, dict(gap_s=.02), 2), (3, dict(gap_s=.03), 1)])
def test_gaps_in_time(gap, settings, n):
    assert len(regions_of(boxes((5, 6, 10, 20), (5, 6, 20 + gap, 30)), **settings)) == n

@pytest.mark.parametrize('gap, settings, n', [(1, {}, 2), (2, dict(gap_hz=20), 1), (3, dict(gap_hz=20), 2), (3, dict(gap_hz=30), 1)])
def test_gaps_in_frequency(gap, settings, n):
    assert len(regions_of(boxes((5, 10, 10, 20), (10 + gap, 20, 10, 20)), **settings)) == n

def test_bins_that_touch_at_a_corner_are_one_region():
    assert len(regions_of(boxes((5, 6, 5, 6), (6, 7, 6, 7)))) == 1 and len(regions_of(boxes((5, 6, 5, 6), (7, 8, 6, 7)))) == 2

@pytest.mark.parametrize('gap_s, gap_hz', [(0, 0), (.02, 0), (0, 30), (.03, 20), (.1, 100)])
@pytest.mark.parametrize('block', [None, 1, 2, 5, 33])
def test_against_brute_force(gap_s, gap_hz, block):
    "Two open bins are of one region if there is a way of steps that are no wider than the gaps"
    g = torch.Generator().manual_seed(int(1000 * gap_s + gap_hz))
    mask, magnitude = (torch.rand(40, 100, generator=g) > .985).float(), torch.rand(40, 100, generator=g)
    bins = mask.nonzero().numpy()
    near = (abs(bins[:, None] - bins[None]) <= [gap_hz // 10 + 1, round(gap_s * 100) + 1]).all(-1)
    part = np.arange(len(bins))
    for _ in bins: part = np.where(near, part[None], len(bins)).min(1)
    expected = []
    for k in set(part.tolist()):
        f, t = bins[part == k].T
        expected.append([max(0, (t.min() - .5) / 100), (t.max() + .5) / 100, max(0, 10 * (f.min() - .5)), min(390, 10 * (f.max() + .5)), magnitude[f, t].square().sum().item()])
    found = regions_of(mask, magnitude, block, gap_s=gap_s, gap_hz=gap_hz)
    assert len(found) == len(expected)
    total = magnitude.square().sum().item()
    assert found.iloc[:, :5].values == pytest.approx(np.array([[*e[:4], e[4] / total] for e in sorted(expected, key=lambda e: (e[0], e[2]))]), rel=1e-5, abs=1e-9)

def test_a_region_ends_where_the_label_changes():
    found = regions_of(boxes((5, 6, 10, 90)), block=25, labels=['a', 'a', 'b', 'b'], gap_s=.1)
    assert found.label.tolist() == ['a', 'b'] and found.start_s.tolist() == pytest.approx([.095, .495]) and found.end_s.tolist() == pytest.approx([.495, .895])

def test_soft_ones_far_from_a_loud_one():
    mask = boxes((5, 6, 10, 20), (5, 6, 80, 90))
    magnitude = mask.clone()
    magnitude[:, 80:90] *= 100
    assert len(regions_of(mask, magnitude, min_share=.01)) == 1 and len(regions_of(mask, magnitude, min_share=.01, around=30)) == 2
    pd.testing.assert_frame_equal(regions_of(mask, magnitude, 7, min_share=.01, around=30), regions_of(mask, magnitude, min_share=.01, around=30))

@pytest.mark.parametrize('settings, message', [(dict(threshold=1.1), 'threshold must be between 0 and 1. Found: 1.1'), (dict(gap_s=-.1), 'not be negative, nor without end. Found: -0.1 s'),
                                               (dict(gap_hz=-1), '-1 Hz'), (dict(min_share=-1), 'Found: .*-1'), (dict(gap_s=float('nan')), 'nan'), (dict(gap_hz=float('nan')), 'nan Hz'), (dict(gap_s=float('inf')), 'inf s')])
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message): RegionStream(16000, 256, 513, **settings)

def test_nothing():
    for found in (regions_of(torch.zeros(40, 100)), regions_of(torch.ones(40, 100), torch.zeros(40, 100)), RegionStream(780, 7.8, 40).finish(0.)):
        assert found.empty and list(found) == COLUMNS
        assert list(pd.read_csv(io.BytesIO(region_files(found)['regions.csv']))) == COLUMNS and region_files(found)['regions.txt'] == b''


# ---- of explanations ----

@pytest.fixture(scope='module')
def bundled(): return LMAC.from_pretrained()

@pytest.fixture(scope='module')
def dog(bundled): return bundled.explain(make_scene({'dog': 0, 'rain': -8}, 5.).waveform, 16000)

@pytest.mark.parametrize('domain', DOMAINS)
def test_shares_add_up_in_each_domain(dog, domain):
    found = replace(dog, domain=domain).regions(min_share=0, threshold=0)
    assert found.share.sum() <= 1 + 1e-6 and found.share.sum() > .99
    assert (found.start_s < found.end_s).all() and (found.low_hz < found.high_hz).all() and found.end_s.max() <= 5 and found.high_hz.max() <= 8000

def test_a_rounded_mask_has_the_same_regions_at_any_threshold(dog):
    hard = replace(dog, mask=(dog.mask > .5).float())
    pd.testing.assert_frame_equal(hard.regions(), hard.regions(threshold=.9))
    assert len(hard.regions()) == len(dog.regions())

def test_nothing_beyond_what_is_heard(dog):
    found = replace(dog, mask=torch.ones_like(dog.mask), heard_s=2.).regions()
    assert found.iloc[0, :5].tolist() == pytest.approx([0, 2, 0, 8000, 1])
    assert replace(dog, heard_s=2.).regions().end_s.max() <= 2 < dog.regions().end_s.max()

def test_padding_has_no_regions(bundled):
    short = bundled.explain(make_scene({'siren': 0}, 1.003).waveform, 16000)
    found = replace(short, mask=torch.ones_like(short.mask)).regions()
    assert found.end_s.tolist() == pytest.approx([1.003], abs=.008) and found.end_s.max() <= short.duration_s

def test_a_recording_of_one_window_has_the_regions_of_the_clip(bundled, dog, tmp_path):
    long = explain_stream(bundled, dog.waveform, tmp_path/'out', 16000, progress=False)
    pd.testing.assert_frame_equal(long.regions(), dog.regions(), rtol=1e-3)
    other = explain_stream(bundled, dog.waveform, tmp_path/'out', 16000, progress=False, regions=dict(threshold=.8), block_s=.7)
    pd.testing.assert_frame_equal(other.regions(), dog.regions(threshold=.8), rtol=1e-3)

def test_long_regions_do_not_depend_on_blocks(bundled, tmp_path):
    sound = torch.cat([make_scene({name: 0}, 7.).waveform for name in ('dog', 'rooster', 'siren')], 1)
    found = [explain_stream(bundled, sound, tmp_path/str(i), 16000, progress=False, **settings) for i, settings in enumerate((dict(block_s=30.), dict(block_s=.5), dict(batch_size=1), dict(native_rate=True)))]
    for other in found[1:]: pd.testing.assert_frame_equal(other.regions(), found[0].regions(), rtol=1e-3)
    parts, windows = found[0].segments(), found[0].regions()
    for r in windows.itertuples():  # within the stretches of their class
        assert any(p.label == r.label and p.start_s - .02 <= r.start_s and r.end_s <= p.end_s + .02 for p in parts.itertuples()), r

def test_a_long_explanation_of_before_there_were_regions(bundled, tmp_path):
    explain_stream(bundled, make_scene({'dog': 0}, 6.).waveform, tmp_path/'out', 16000, progress=False)
    (tmp_path/'out/regions.csv').unlink()
    old = LongExplanation.load(tmp_path/'out')
    old.save()
    with pytest.raises(ValueError, match='No regions.csv in .*out.*Explain the recording again'): old.regions()


# ---- files ----

def test_labels_for_audacity_and_selections_for_raven():
    regions = pd.DataFrame(dict(start_s=[.5, 2.], end_s=[1., 3.25], low_hz=[0., 1000.], high_hz=[8000., 2000.5], share=[.75, .25], label=['a\tdog', 'Bark, "loud"']))
    files = region_files(regions, ['x.wav', 'y.wav'], [0., 10.])
    assert files['regions.txt'].decode() == ('0.500000\t1.000000\ta dog\n\\\t0.000000\t8000.000000\n'
                                             '12.000000\t13.250000\tBark, "loud"\n\\\t1000.000000\t2000.500000\n')
    assert files['regions.selections.txt'].decode().splitlines()[1:] == [
        '1\tSpectrogram 1\t1\t0.500000\t1.000000\t0.000\t8000.000\tx.wav\t0.500000\ta dog\t0.750000',
        '2\tSpectrogram 1\t1\t12.000000\t13.250000\t1000.000\t2000.500\ty.wav\t2.000000\tBark, "loud"\t0.250000']
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(files['regions.csv'])), regions)

def test_saved_beside_the_explanation(dog, tmp_path):
    replace(dog, source='somewhere/dog.wav').save(tmp_path, threshold=.9)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'regions.csv'), dog.regions(threshold=.9), atol=1e-6)
    assert set(pd.read_csv(tmp_path/'regions.selections.txt', sep='\t')['Begin File']) == {'dog.wav'}
    page = (tmp_path/'report.html').read_text()
    assert page.count('<div style="left:') == len(dog.regions(threshold=.9)) and 'Where it is' in page

def test_of_several_classes_each_has_its_own(tmp_path):
    found = LMAC.from_pretrained('esc10-sources').explain(make_scene({'dog': 0, 'rain': 0}, 3.).waveform, 16000, targets=['dog', 'rain'])
    where = found.regions(threshold=.6)
    for ex in found: pd.testing.assert_frame_equal(where[where.label == ex.label].reset_index(drop=True), ex.regions(threshold=.6))
    found.save(tmp_path, threshold=.6)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'regions.csv'), where, atol=1e-6)
    page = (tmp_path/'report.html').read_text()
    assert [page.count(f'<div data-class="{i}" style="left:') for i in (0, 1)] == [len(ex.regions(threshold=.6)) for ex in found] and len(set(where.label)) == 2
    silent = LMAC.from_pretrained('esc10-sources').explain(torch.zeros(1, 16000), 16000, targets=2)
    assert list(silent.regions()) == COLUMNS and silent.regions().empty and 'Where it is' not in silent.report()
