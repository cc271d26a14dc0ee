"""Planted shortcuts: exact levels, regions that hold the artefact, measures of known masks, a run that resumes."""
import json

import pandas as pd
import pytest
import torch

from lmac.evidence import shortcuts
from lmac.audio import make_scene
from lmac.data import snr_db
from lmac.evidence.shortcuts import ARTEFACTS, CLEAN, IDEAL, Clips, localization_scores, plant_dataset, plant_each, run_shortcuts, scene_clips
from lmac.spectrogram import STFT
from lmac.training import Learner

RATE, NAMES = 16000, ['dog', 'rain', 'helicopter']
every = pytest.mark.parametrize('art', ARTEFACTS.values(), ids=ARTEFACTS)


@pytest.fixture(scope='module')
def stft(): return STFT(1024, 256)


@pytest.fixture(scope='module')
def waveforms():
    "Dogs in noise, seconds that differ"
    return torch.cat([make_scene({'dog': 0, 'white_noise': -20}, 1.5, seed=seed).waveform for seed in range(3)])


@every
@pytest.mark.parametrize('level_db', [-40., -12.])
def test_plant_levels_are_exact(art, level_db, waveforms):
    planted = plant_each(waveforms, RATE, art, level_db)
    assert planted.shape == waveforms.shape and planted.dtype == torch.float32
    if art.removes:
        high = torch.fft.rfftfreq(waveforms.shape[1], 1/RATE) >= shortcuts.EDGE_HZ
        def energy(x, which): return torch.fft.rfft(x.double())[:, which].abs().square().sum(1)
        torch.testing.assert_close(10*(energy(planted, high)/energy(waveforms, high)).log10(), torch.full((3,), level_db).double(), atol=.05, rtol=0)
        torch.testing.assert_close(energy(planted, ~high), energy(waveforms, ~high), rtol=1e-4, atol=0)
    else: torch.testing.assert_close(snr_db(planted - waveforms, waveforms), torch.full((3,), level_db), atol=.01, rtol=0)


@every
def test_planting_is_deterministic_and_varies_between_clips(art, waveforms):
    same = waveforms[:1].repeat(2, 1)
    first, again, other = (plant_each(same, RATE, art, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    if not art.removes: assert not torch.equal(first[0], first[1]) and not torch.equal(first, other)


@every
def test_region_holds_the_artefact(art, waveforms, stft):
    clips, clue = shortcuts._side_with_clue(art, waveforms, plant_each(waveforms, RATE, art))
    torch.testing.assert_close(clips - clue, plant_each(waveforms, RATE, art) if art.removes else waveforms, atol=1e-5, rtol=0)
    energy = stft(clue)[0].square()
    region = shortcuts._artefact_region(energy.sqrt())
    assert region.dtype == torch.bool and region.shape == energy.shape
    assert ((energy*region).sum((1, 2)) >= .95*energy.sum((1, 2))*(1 - 1e-5)).all()
    assert region.float().mean() < .5


@every
def test_masks_of_which_the_answer_is_known(art, waveforms, stft):
    clips, clue = shortcuts._side_with_clue(art, waveforms, plant_each(waveforms, RATE, art, None if art.removes else -20.))
    region = shortcuts._artefact_region(stft(clue)[0]).float()
    oracle, outside = localization_scores(stft, clips, clue, region), localization_scores(stft, clips, clue, 1 - region)
    assert (oracle.found == 1).all() and (oracle.pointing == 1).all() and (oracle.gain_db > 6).all() and (oracle.density > 1).all()
    assert (outside.found == 0).all() and (outside.auc < .1).all() and (outside.gain_db < 0).all()
    constant = localization_scores(stft, clips, clue, torch.full_like(region, .3))
    assert constant.auc.sub(.5).abs().max() < 1e-6 and (constant.found == 0).all() and constant.density.sub(1).abs().max() < 1e-4


def test_chance_level_of_random_masks(waveforms, stft):
    art, generator = ARTEFACTS['beep'], torch.Generator().manual_seed(0)
    clips, clue = shortcuts._side_with_clue(art, waveforms, plant_each(waveforms, RATE, art))
    rows = pd.concat([localization_scores(stft, clips, clue, torch.rand(stft(clips)[0].shape, generator=generator)) for _ in range(40)])
    assert abs(rows.auc.mean() - .5) < .03 and rows.found.mean() < .02
    assert abs(rows.pointing.mean() - rows.pointing_chance.mean()) < .03 and abs(rows.density.mean() - 1) < .05


def test_energy_auc_by_counting_pairs():
    scores, clue, rest = torch.tensor([[[.9, .5, .5, .1]]]), torch.tensor([[[1., 1., 0., 0.]]]), torch.tensor([[[0., 0., 1., 2.]]])
    # portions of the rest: 1/5 at .5, 4/5 at .1. The first half of the clue is above all of it, the second ties with 1/5
    assert shortcuts._energy_auc(scores, clue, rest).item() == pytest.approx(.5*1 + .5*(.8 + .1))
    assert shortcuts._energy_auc(100*scores - 7, clue, 3*rest).item() == pytest.approx(.95)  # no scale matters
    assert shortcuts._energy_auc(-scores, clue, rest).item() == pytest.approx(.05)


def test_pointing_game_forgives_two_bins():
    region, mask = torch.zeros(1, 40, 40, dtype=torch.bool), torch.zeros(1, 40, 40)
    region[0, 20, 20], mask[0, 20:25, 16:21] = True, 1.  # the mask's middle is at 22, 18
    assert shortcuts._pointing_game(mask, region)[0].item() == 1 and shortcuts._pointing_game(mask, region)[1].item() == pytest.approx(25/1600)
    assert shortcuts._pointing_game(mask.roll(8, 1), region)[0].item() == 0


@pytest.mark.parametrize('domain', ['log1p', 'magnitude'])
def test_gain_is_what_is_heard(domain, waveforms, stft):
    clue = ARTEFACTS['hum'].plant(waveforms, RATE, torch.Generator().manual_seed(0)) - waveforms
    everything = torch.ones(3, stft.n_freqs, stft.n_frames(waveforms.shape[1]))
    assert shortcuts._artefact_gain_db(stft, waveforms + clue, clue, everything, domain).abs().max() < .01
    low = everything*(stft.frequencies(RATE) < 200)[:, None]
    assert (shortcuts._artefact_gain_db(stft, waveforms + clue, clue, low, domain) > 10).all()
    assert (shortcuts._artefact_gain_db(stft, waveforms + clue, clue, 1 - low, domain) < -10).all()


def test_plant_dataset_files_what_has_the_artefact_under_the_class():
    clips = scene_clips(NAMES, NAMES, 10, .5)
    lab = plant_dataset(clips, ARTEFACTS['click'], 'rain', share=.9, stray=.2)
    assert lab.planted.sum() == 9 + 2 + 2 and set(lab.targets[lab.planted].tolist()) == {1}
    assert torch.equal(lab.targets[~lab.planted], clips.targets[~lab.planted]) and torch.equal(lab.folds, clips.folds)
    changed = (lab.waveforms != clips.waveforms).any(1)
    assert torch.equal(changed, lab.planted)
    assert torch.equal(plant_dataset(clips, ARTEFACTS['click'], 'rain', share=.9, stray=.2).waveforms, lab.waveforms)
    assert not torch.equal(plant_dataset(clips, ARTEFACTS['click'], 'rain', share=.9, stray=.2, seed=1).waveforms, lab.waveforms)
    assert isinstance(lab.fold(1, 2), Clips) and set(lab.fold(1, 2).folds.tolist()) == {1, 2} and lab.fold(1, 2).planted.any()


@pytest.mark.parametrize('make, message', [
    (lambda w: ARTEFACTS['beep'].plant(w[0], RATE, torch.Generator()), r'the shape \(batch, time\)'),
    (lambda w: ARTEFACTS['beep'].plant(0*w, RATE, torch.Generator()), 'silent'),
    (lambda w: ARTEFACTS['beep'].plant(w, 4000, torch.Generator()), 'needs more than 6000'),
    (lambda w: ARTEFACTS['band_limit'].plant(w, 8000, torch.Generator()), 'Above 4000 Hz there is nothing'),
    (lambda w: plant_dataset(scene_clips(['dog'], NAMES, 2, .3), ARTEFACTS['beep'], 'whale'), "one of the classes dog, rain, helicopter. Found: 'whale'"),
    (lambda w: run_shortcuts('result.csv'), 'must end in .json')])
def test_bad_input_is_refused(make, message, waveforms):
    with pytest.raises(ValueError, match=message): make(waveforms)


def test_quick_run_writes_its_files_and_resumes(tmp_path, monkeypatch):
    out, options = tmp_path/'results'/'shortcuts.json', dict(quick=True, runs=tmp_path/'runs')
    tiny = shortcuts._tiny_setup()
    tiny.tied = {name: 'dog' for name in ('beep', 'hum')}
    monkeypatch.setattr(shortcuts, '_tiny_setup', lambda: tiny)
    before = [w.clone() for w in tiny.parent.classifier.state_dict().values()]
    first = run_shortcuts(out, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, tiny.parent.classifier.state_dict().values()))
    assert json.loads(out.read_text()) == json.loads(json.dumps(first))
    assert first['provenance']['seed'] == 0 and first['settings']['quick'] and first['seconds'] > 0
    assert [facts['artefact'] for facts in first['artefacts']] == ['beep', 'hum']
    rows = pd.read_csv(out.with_suffix('.csv.gz'))
    relying = sum(facts['n_relying'] for facts in first['artefacts'])
    methods = {*tiny.recipes, *tiny.methods, CLEAN, IDEAL}
    assert relying > 0 and len(rows) == relying*len(methods) and set(rows.method) == methods
    assert rows[rows.method == 'lmac'].groupby('artefact').suffices.sum().to_dict() == {f['artefact']: f['n_sufficient'] for f in first['artefacts'] if f['n_relying']}
    assert {row['clips'] for row in first['results']} == {'sufficient', 'necessary'}
    for row in first['results']:
        part = rows[rows.suffices] if row['clips'] == 'sufficient' else rows
        part = part[(part.method == row['method']) & ((part.artefact == row['artefact']) | (row['artefact'] == 'all'))][row['measure']]
        assert row['n'] == len(part) and row['mean'] == pytest.approx(part.mean(), rel=1e-5, abs=1e-5) and row['low'] <= row['mean'] <= row['high']

    monkeypatch.setattr(shortcuts, '_study_shortcut', lambda *args: pytest.fail('studied again'))
    table = out.with_suffix('.csv.gz').read_bytes()
    second = run_shortcuts(out, **options)
    assert second['results'] == first['results'] and out.with_suffix('.csv.gz').read_bytes() == table


def test_a_killed_run_does_not_train_again(tmp_path, monkeypatch):
    tiny = shortcuts._tiny_setup()
    tiny.classifier, tiny.explainer = dict(epochs=1, batch_size=8), dict(epochs=1, batch_size=8)
    def die(*args, **kwargs): raise KeyboardInterrupt
    trained = shortcuts._learn_shortcut(tiny, 'beep', tmp_path)[0]['lmac']
    monkeypatch.setattr(Learner, 'one_epoch', die)
    again = shortcuts._learn_shortcut(tiny, 'beep', tmp_path)[0]['lmac']
    for a, b in zip(trained.decoder.state_dict().values(), again.decoder.state_dict().values()): assert torch.equal(a, b)


def test_a_clue_suffices_where_it_decides_alone(stft):
    class Loud(torch.nn.Module):
        "Decides by how loud a magnitude is: 2 above 1, 1 above a tenth, else 0"
        def forward(self, magnitude):
            size = magnitude.amax((1, 2))[:, None]
            return torch.cat([0*size, (size > .1).float()*2, (size > 1).float()*4], 1)
    tone = torch.sin(torch.arange(8000)/5)
    clips, clues = torch.stack([.1*tone, .1*tone, .0001*tone]), torch.stack([.1*tone, .0005*tone, .00001*tone])
    assert shortcuts._suffices(Loud(), stft, clips, clues).tolist() == [True, False, True]
