"""The listening study: blinding, balance, answers that survive, and statistics whose truth is known."""
import json

import numpy as np
import pandas as pd
import pytest

from lmac.audio import make_scene
from lmac.explain import LMAC
from lmac.listen.study import (ANCHOR, REFERENCE, Answers, ListeningSession, Study, agreement, build_study, compare_opinions, _make_orders, _make_trials, opinion_scores,
                        preferences, read_answers, screen_listeners, simulate_answers, study_html)
from lmac.listen.widgets import ExplanationSession

METHODS = ["lmac", "gradcam", "energy"]
MERIT = dict(fit={REFERENCE: 85, "lmac": 75, "gradcam": 60, "energy": 60, ANCHOR: 20}, quality={REFERENCE: 96, "lmac": 55, "gradcam": 60, "energy": 50, ANCHOR: 15})


@pytest.fixture(scope="module")
def sessions():
    lmac = LMAC.from_pretrained()
    return [ExplanationSession(lmac, make_scene({name: 0, "rain": -8}, .6, seed=1).waveform, 16000, name=name) for name in ("dog", "rooster", "chainsaw", "sneezing")]


@pytest.fixture(scope="module")
def study(sessions, tmp_path_factory): return build_study(sessions, tmp_path_factory.mktemp("study"), METHODS, n_slots=20)


@pytest.fixture
def answered(study, tmp_path):
    simulate_answers(study, 20, MERIT, tmp_path, careless=[4], noise=3.)
    return tmp_path


def test_nothing_that_a_listener_gets_tells_what_it_is(study):
    names = [*METHODS, REFERENCE, ANCHOR, "rooster"]
    for text in ((study.folder/"study.json").read_text(), study_html(study)):
        found = [name for name in names if f'"{name}"' in text.replace('"label": "rooster"', "")]
        assert not found
    assert not any(name in p.name for p in (study.folder/"sounds").iterdir() for name in names)


def test_the_same_seed_makes_the_same_study(sessions, study, tmp_path):
    assert build_study(sessions, tmp_path/"a", METHODS, n_slots=20).plan == study.plan
    assert build_study(sessions, tmp_path/"b", METHODS, n_slots=20, seed=1).plan["orders"] != study.plan["orders"]


def test_each_condition_comes_first_as_often(study):
    key = study.key
    for trial in (t for t in study.plan["trials"] if t["kind"] == "rating"):
        first = [key[dict((t, tuple(i)) for t, i in order)[trial["id"]][0]]["condition"] for order in study.plan["orders"]]
        assert set(pd.Series(first).value_counts()) == {20 // 5}


def test_practice_comes_first_and_does_not_count(study, answered):
    assert all(study.trial(order[0][0])["practice"] for order in study.plan["orders"])
    ratings, pairs = read_answers(study, answered, simulated=True)
    assert "dog" not in set(ratings["clip"]) | set(pairs["clip"]) and len(ratings) == 20 * 3 * 5 * 2 and len(pairs) == 20 * 3 * 3


def test_a_session_goes_on_where_it_was(study, tmp_path):
    session = ListeningSession(study, 7, tmp_path)
    for control in session.controls.values(): control.value = 51
    session.button.click()
    trial = session.trial["id"]
    again = ListeningSession(study, 7, tmp_path)
    assert again.trial["id"] == trial and again.button.disabled
    assert len((tmp_path/session.answers.file.name).read_text().splitlines()) == 1


def test_next_waits_for_every_control(study, tmp_path):
    session = ListeningSession(study, 8, tmp_path)
    *most, last = session.controls.values()
    for control in most: control.value = 10
    assert session.button.disabled
    last.value = 10
    assert not session.button.disabled


def test_a_line_that_was_cut_off_is_asked_again(study, tmp_path):
    answers = Answers(study, 0, tmp_path)
    answers.write(answers.next()[0], scores={}, seconds=1)
    whole = answers.file.read_text()
    trial = answers.next()[0]
    answers.file.write_text(whole + '{"study": "abc", "tri')
    assert answers.next()[0] == trial
    answers.write(trial, scores={}, seconds=1)
    assert [json.loads(x)["trial"] for x in answers.file.read_text().splitlines()] == [json.loads(whole)["trial"], trial]


def test_simulated_answers_are_never_taken_for_real_ones(study, answered):
    with pytest.raises(ValueError, match="never mixed"): read_answers(study, answered)
    real = Answers(study, 99, answered)
    real.write(real.next()[0], scores={}, seconds=1)
    with pytest.raises(ValueError, match="no simulated answers"): read_answers(study, answered, simulated=True)


def test_answers_to_another_study_are_refused(sessions, answered, tmp_path):
    other = build_study(sessions, tmp_path/"other", METHODS[:2])
    with pytest.raises(ValueError, match="answers another study"): read_answers(other, answered, simulated=True)


def test_what_was_put_in_comes_out(study, answered):
    ratings, pairs = read_answers(study, answered, simulated=True)
    kept = screen_listeners(ratings, least=80).kept
    assert kept.index[~kept].tolist() == [4]
    ratings = ratings[ratings.listener.isin(kept.index[kept])]
    scores = opinion_scores(ratings).set_index(["scale", "condition"])
    for scale, merits in MERIT.items():
        for condition, merit in merits.items():
            row = scores.loc[scale, condition]
            assert row.low <= row["mean"] <= row.high and row["mean"] == pytest.approx(merit, abs=5) and row.listeners == 19
    compared = compare_opinions(ratings).set_index(["scale", "condition"])
    assert compared.loc["fit", "gradcam"].p_holm < .001 and compared.loc["fit", "gradcam"].effect == pytest.approx(15, abs=3)
    assert compared.loc["quality", "gradcam"].difference < 0
    assert agreement(ratings).W.fit > .5
    found = preferences(pairs[pairs.listener != 4]).set_index(["a", "b"])
    assert found.loc["lmac", "energy"].p < .001 and found.loc["gradcam", "energy"].p > .01


def test_kendalls_w_of_full_agreement_and_of_none():
    def table(orders): return pd.DataFrame([dict(listener=k, clip="x", condition=c, scale="fit", score=s) for k, o in enumerate(orders) for c, s in zip("abc", o)])
    assert agreement(table([(1, 2, 3)] * 5)).W.fit == pytest.approx(1)
    assert agreement(table([(1, 2, 3), (2, 3, 1), (3, 1, 2)])).W.fit == pytest.approx(0)
    with pytest.raises(ValueError, match="three methods or more"): agreement(table([(1, 2)] * 3))


@pytest.mark.parametrize("n_methods", [1, 2, 3, 4])
def test_orders_hold_every_trial_once(n_methods):
    methods = list("wxyz")[:n_methods]
    trials = _make_trials("abcd", "ABCD", [REFERENCE, *methods, ANCHOR], methods, 1, seed=3)
    for order in _make_orders(trials, 12, seed=3):
        assert sorted(t for t, _ in order) == sorted(t["id"] for t in trials)
        for t, items in order: assert sorted(items) == sorted(next(x for x in trials if x["id"] == t)["items"])


def test_a_folder_that_is_no_study(tmp_path):
    with pytest.raises(FileNotFoundError, match="no study.json"): Study.open(tmp_path)
