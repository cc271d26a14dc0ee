"""The listening study: blinding, balance, answers that survive, and statistics whose truth is known."""
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import threading
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmac.audio import make_scene
from lmac.explain import LMAC
from lmac.listen.study import (ANCHOR, REFERENCE, Answers, ListeningSession, Study, agreement, build_study, check_answers, compare_opinions, _make_orders, _make_trials, opinion_scores,
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


def plain(folder, n_trials=2):
    "A study without sounds: what a file of answers needs"
    trials = _make_trials(range(n_trials), ["dog"] * n_trials, ["x", "y"], [], 0, seed=0)
    folder.mkdir(parents=True, exist_ok=True)
    return Study(folder, dict(id="abc", scales=dict(fit="?"), trials=trials, orders=_make_orders(trials, 4, seed=0)))


def scores_of(items): return {t: dict(fit=50) for t in items}


def test_a_line_that_was_cut_off_is_asked_again(study, tmp_path):
    answers = Answers(study, 0, tmp_path)
    answers.write(answers.next()[0], scores={}, seconds=1)
    trial, whole = answers.next()[0], answers.file.read_bytes() + b'{"study": "abc", "tri'
    answers.file.write_bytes(whole)
    assert answers.next()[0] == trial
    answers.write(trial, scores={}, seconds=1)
    assert answers.file.read_bytes().startswith(whole + b"\n")   # it only grows
    with pytest.warns(UserWarning, match=r"-000\.jsonl, line 2: was cut off"): assert [a["trial"] for a in answers.read()] == [step[0] for step in study.order(0)[:2]]


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_cut_at_any_byte_keeps_all_whole_answers(study, answered, tmp_path):
    "10,000 cuts, also within the nested braces of a line"
    cuts = 0
    for listener in range(4):
        answers = Answers(study, listener, answered)
        whole = answers.file.read_bytes()
        kept = [json.loads(line) for line in whole.splitlines()]
        ends = np.array([i for i, byte in enumerate(whole) if byte == ord("\n")])
        for n in range(len(whole), max(-1, len(whole) - 10_000 + cuts), -1):
            os.truncate(answers.file, n)
            found = answers.read()
            assert len(found) == (ends <= n).sum() and found == kept[:len(found)], n   # whole without its end of line, too
            cuts += 1
        answers.file.write_bytes(whole)
    assert cuts == 10_000


def test_the_analysis_goes_on_without_a_line_that_was_cut_off(study, answered):
    file, before = Answers(study, 0, answered).file, [len(t) for t in read_answers(study, answered, simulated=True)]
    whole = file.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for n in [n for n in range(last + 1, len(whole) - 2) if whole[n - 1:n] == b"}" or n % 20 == 0]:
        os.truncate(file, n)
        with pytest.warns(UserWarning, match=rf"{file.name}, line {whole.count(10)}: was cut off"): ratings, pairs = read_answers(study, answered, simulated=True)
        assert [len(ratings), len(pairs)] == [before[0], before[1] - 1]   # pairs come last
        file.write_bytes(whole)
    file.write_bytes(whole + bytes(7))   # what file systems leave that had made room
    with pytest.warns(UserWarning, match="was cut off"): assert len(read_answers(study, answered, simulated=True)[0]) == before[0]


def take_part(rounds, wait, count):
    "A session that answers whatever is next, round after round; counts what it wrote"
    for answers in rounds:
        wait()
        while step := answers.next():
            try: answers.write(step[0], scores=scores_of(step[1]), seconds=1, by=os.getpid())
            except ValueError: continue
            count()


@pytest.mark.parametrize("kind, n, rounds", [("processes", 2, 200), ("threads", 8, 20)])
def test_sessions_of_one_listener_at_once_lose_nothing(tmp_path, kind, n, rounds):
    if kind == "threads": module, start = threading, threading.Thread
    else: start = (module := multiprocessing.get_context("fork")).Process
    barrier, written = module.Barrier(n), multiprocessing.Value("i", 0)
    def count():
        with written.get_lock(): written.value += 1
    study = plain(tmp_path)
    all_rounds = [Answers(study, 0, tmp_path/str(k)) for k in range(rounds)]   # of threads, it is the same object; processes get copies
    sessions = [start(target=take_part, args=(pickle.loads(pickle.dumps(all_rounds)) if kind == "processes" else all_rounds, barrier.wait, count)) for _ in range(n)]
    for session in sessions: session.start()
    for session in sessions: session.join()
    order = [t for t, _ in study.order(0)]
    for k in range(rounds):
        lines = (tmp_path/str(k)/"abc-000.jsonl").read_text().splitlines()
        assert [json.loads(line)["trial"] for line in lines] == order
    assert written.value == rounds * len(order)


@pytest.mark.filterwarnings("ignore")
def test_what_was_answered_is_there_after_a_kill(tmp_path):
    "Ten times: a session is killed while it writes; all that it had written is in the file, and the next goes on"
    study, told = plain(tmp_path, 500), 0
    for k in range(10):
        source, sink = os.pipe()
        if not (child := os.fork()):
            answers = Answers(study, 1)
            while step := answers.next():
                answers.write(step[0], scores=scores_of(step[1]))
                os.write(sink, b".")
            os._exit(0)
        os.close(sink)
        for _ in range(random.Random(k).randrange(1, 12)): told += len(os.read(source, 1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(source, 1000): told += len(more)
        os.close(source)
        assert len(Answers(study, 1).read()) in range(told, told + k + 2)   # one that was written, but not told of


def test_two_sessions_in_notebooks_answer_a_trial_once(study, tmp_path):
    one, two = (ListeningSession(study, 9, tmp_path) for _ in range(2))
    for score, session in ((20, one), (80, two)):
        for control in session.controls.values(): control.value = score
        session.button.click()
    answer, = one.answers.read()
    assert {s for scores in answer["scores"].values() for s in scores.values()} == {20}
    assert two.trial["id"] == one.trial["id"] != answer["trial"] and "in another session" in two.head.value and "another session" not in one.head.value


def test_a_full_disk_keeps_the_trial(study, tmp_path, monkeypatch):
    session = ListeningSession(study, 9, tmp_path)
    for control in session.controls.values(): control.value = 20
    trial = session.trial["id"]
    def full(*_): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        session.button.click()
    assert session.trial["id"] == trial and "could not be written" in session.head.value
    session.button.click()
    assert session.trial["id"] != trial and len(session.answers.read()) == 1


def test_simulated_answers_are_never_taken_for_real_ones(study, answered):
    with pytest.raises(ValueError, match="never mixed"): read_answers(study, answered)
    real = Answers(study, 99, answered)
    real.write(real.next()[0], scores={}, seconds=1)
    with pytest.raises(ValueError, match="no simulated answers"): read_answers(study, answered, simulated=True)


def test_answers_to_another_study_are_refused(sessions, answered, tmp_path):
    other = build_study(sessions, tmp_path/"other", METHODS[:2])
    with pytest.raises(ValueError, match="answers another study"): read_answers(other, answered, simulated=True)


@pytest.fixture
def real(study, tmp_path):
    "Right answers of two listeners, and their lines"
    for listener in (0, 1):
        answers = Answers(study, listener, tmp_path/"real")
        for trial, items in study.order(listener):
            answers.write(trial, seconds=1, **(dict(choice=items[0]) if study.trial(trial)["kind"] == "pair" else dict(scores={t: dict(fit=50, quality=60.5) for t in items})))
    return answers.file, [json.loads(line) for line in answers.file.read_text().splitlines()]


def with_score(value):
    def change(line): next(iter(line["scores"].values()))["fit"] = value
    return change


TAMPERED = {   # what becomes of the second line (a rating), and what is said of it
    "score 1e9": (with_score(1e9), "less than or equal to 100"), "score -1": (with_score(-1), "greater than or equal to 0"), "NaN": (with_score(float("nan")), "finite number"),
    "infinite": (with_score(float("inf")), "finite number"), "text": (with_score("50"), "valid number"), "no score": (with_score(None), "valid number"), "true": (with_score(True), "valid number"),
    "unknown scale": (lambda line: next(iter(line["scores"].values())).update(beauty=3), "fit and quality.*beauty"),
    "one scale": (lambda line: next(iter(line["scores"].values())).pop("fit"), "fit and quality"),
    "half the sounds": (lambda line: line["scores"].pop(next(iter(line["scores"]))), "must score the 5 sounds.*4 of them"),
    "another sound": (lambda line: line["scores"].update(abc=line["scores"].popitem()[1]), "1 others"),
    "no scores": (lambda line: line.pop("scores"), "must have scores"), "a choice": (lambda line: line.update(choice=next(iter(line["scores"]))), "no choice"),
    "another listener": (lambda line: line.update(listener=7), "listener 7 in a file of listener 1"), "a listener -1": (lambda line: line.update(listener=-1), "listener: "),
    "no listener": (lambda line: line.pop("listener"), "listener: Field required"), "listener in words": (lambda line: line.update(listener="1"), "valid integer"),
    "no trial": (lambda line: line.pop("trial"), "trial: Field required"), "unknown trial": (lambda line: line.update(trial="r99"), "r99"), "trials": (lambda line: line.update(trial=["r01"]), "valid string"),
    "another study": (lambda line: line.update(study="abc"), "answers another study: abc"), "no study": (lambda line: line.pop("study"), "study: Field required"),
    "more": (lambda line: line.update(comment="nice"), "comment"), "no time": (lambda line: line.update(time=None), "time: "), "deep": (lambda line: line.update(scores=[[[1]]]), "scores: "),
}


@pytest.mark.parametrize("change, said", TAMPERED.values(), ids=TAMPERED)
def test_what_nobody_can_have_answered_is_refused(study, real, change, said):
    file, lines = real
    change(lines[1])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=rf"{file.name}, line 2: .*{said}"): read_answers(study, file.parent)
    found, = check_answers(study, file.parent).itertuples(index=False)
    assert found[:2] == (file.name, 2) and not found.skipped


@pytest.mark.parametrize("choice, said", [("abc", "Found: abc"), (None, "Found: None"), (3, "valid string")])
def test_a_choice_is_one_of_the_pair(study, real, choice, said):
    file, lines = real
    assert "choice" in lines[-1]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines[:-1], lines[-1] | dict(choice=choice)]))
    with pytest.raises(ValueError, match=rf"{file.name}, line {len(lines)}: .*{said}"): read_answers(study, file.parent)


@pytest.mark.parametrize("raw, said", [(b"\xef\xbb\xbf%s", "byte order mark"), (b"%s%s", "no JSON"), (b"garbage", "no JSON"), (b"[%s]", "no JSON object"), (b"\xff\xfe\0", "no JSON"), (b"[" * 100_000, "no JSON"), (b"7", "no JSON object")])
def test_a_line_that_is_no_answer_is_refused(study, real, raw, said):
    file, lines = real
    whole = file.read_bytes().splitlines(keepends=True)
    whole[1] = raw.replace(b"%s", whole[1].rstrip()) + b"\n"
    file.write_bytes(b"".join(whole))
    with pytest.raises(ValueError, match=rf"{file.name}, line 2: .*{said}"): read_answers(study, file.parent)


def test_all_faults_are_shown_at_once(study, real, commands):
    file, lines = real
    folder, n = file.parent, len(lines)
    other = folder/file.name.replace("-001", "-000")
    lines[1]["listener"], later = 0, lines[0] | dict(time=lines[0]["time"] + 9, scores={t: dict(fit=0, quality=0) for t in lines[0]["scores"]})
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, later]) + '{"study": "')
    other.write_bytes(b"\xef\xbb\xbf" + other.read_bytes())
    (folder/"zz.txt").write_text("")
    found = check_answers(study, folder)
    assert found[["file", "line", "skipped"]].values.tolist() == [[other.name, 1, False], [file.name, 2, False], [file.name, n + 1, True], [file.name, n + 2, True], ["zz.txt", 0, True]]
    run, = commands(1, "lmac-study", "check", study.folder, "--answers", folder)
    run.failed("Found: 2 that are not")
    assert run.out.splitlines() == [f"{r.file}{f', line {r.line}' if r.line else ''}: {r.fault}" for r in found.itertuples()]
    with pytest.raises(ValueError, match=f"{other.name}, line 1: .*Found: 2 such lines"): read_answers(study, folder)


def test_of_two_answers_to_a_trial_the_first_counts(study, real):
    file, lines = real
    before = read_answers(study, file.parent)
    changed = [line | dict(time=line["time"] + 9, **({} if "choice" in line else dict(scores={t: dict(fit=0, quality=0) for t in line["scores"]}))) for line in lines]
    (file.parent/f"{file.stem} (1).jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))   # sorts before it
    with pytest.warns(UserWarning, match=f"answers trial .* again.*Found: {len(lines)} such lines"): found = read_answers(study, file.parent)
    for a, b in zip(found, before): pd.testing.assert_frame_equal(a, b)


def test_a_file_may_have_another_name_but_not_another_listener(study, real):
    file, lines = real
    file.rename(renamed := file.with_name("from Anna.jsonl"))
    assert {0, 1} == set(read_answers(study, file.parent)[0].listener)
    with open(renamed, "a") as f: f.write(json.dumps(lines[0] | dict(listener=3)) + "\n")
    with pytest.raises(ValueError, match=f"{renamed.name}, line {len(lines) + 1}: .*listener 3 in a file of listener 1"): read_answers(study, file.parent)


def test_answers_count_without_what_systems_put_beside_them(study, real):
    file, lines = real
    for name in ("._x.jsonl", ".DS_Store"): (file.parent/name).write_bytes(b"\0\1")
    (file.parent/"folder.jsonl").mkdir()
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")   # as Windows ends lines
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_answers(study, file.parent)[0]) == 2 * 3 * 5 * 2
    os.rename(bytes(file), bytes(file.parent) + b"/\xff.jsonl")   # no name in UTF-8
    assert len(read_answers(study, file.parent)[0]) == 2 * 3 * 5 * 2
    Path(os.fsdecode(bytes(file.parent) + b"/\xff.jsonl")).write_text("7\n")
    assert check_answers(study, file.parent).file.tolist() == [r"\udcff.jsonl"]
    with pytest.raises(FileNotFoundError, match="no folder"): read_answers(study, file.parent/"elsewhere")


def test_writing_does_not_depend_on_what_else_is_in_the_file(study, tmp_path):
    answers = Answers(study, 0, tmp_path)
    answers.file.write_bytes(b'garbage\n\xff\n{"study": 7}\n[1]\n{"listener": 0, "trial": []}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers.write(answers.next()[0], scores={})
    assert answers.next()[0] == study.order(0)[1][0]


def test_what_was_collected_is_never_replaced(sessions, tmp_path):
    study = build_study(sessions[:2], tmp_path, ["lmac"])
    answers = Answers(study, 0)
    answers.write(answers.next()[0], scores={})
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert build_study(sessions[:2], tmp_path, ["lmac"]).plan == study.plan   # the very same may be made again
    with pytest.raises(ValueError, match="answers to another study"): build_study(sessions[:2], tmp_path, ["energy"])
    with pytest.raises(ValueError, match="must not hold real answers"): simulate_answers(study, 2, MERIT, tmp_path/"answers")
    assert all(p.read_bytes() == data for p, data in files.items())
    (tmp_path/"study.json").write_text("{")   # what is lost is made again, from the same seed
    build_study(sessions[:2], tmp_path, ["lmac"])
    assert all(p.read_bytes() == data for p, data in files.items())


@pytest.mark.parametrize("name", ["study.json", "key.json"])
@pytest.mark.parametrize("text, said", [("{", "is damaged"), ("[]", "Missing: all"), ("{}", "Missing: "), ("[" * 100_000, "is damaged")])
def test_a_study_that_is_damaged_says_which_file(study, tmp_path, name, text, said):
    for file in ("study.json", "key.json"): shutil.copy(study.folder/file, tmp_path)
    (tmp_path/name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}.*{said}"): read_answers(Study.open(tmp_path))


def test_the_command_writes_the_page(study, tmp_path, commands):
    run, = commands(1, "lmac-study", "page", study.folder, "--out", tmp_path/"x.html")
    run.ok()
    assert (tmp_path/"x.html").read_text() == study_html(study)
    commands(1, "lmac-study", "check", tmp_path)[0].failed("no study.json")
    commands(1, "lmac-study", "check", study.folder, "--answers", tmp_path/"nowhere")[0].failed("no folder")
    assert commands(1, "lmac-study", "check", study.folder)[0].ok().out == "Nothing is wrong with the answers.\n"


def test_a_study_is_made_from_a_shell(tmp_path, commands):
    run, = commands(1, "lmac-study", "make", tmp_path/"study", "--data", "scenes", "--methods", "lmac", "energy", "--n", "2")
    run.ok()
    made = Study.open(tmp_path/"study")
    assert [trial["kind"] for trial in made.plan["trials"]].count("rating") == 3 and (tmp_path/"study/study.html").read_text() == study_html(made)
    assert {x["condition"] for x in made.key.values()} == {"lmac", "energy", REFERENCE, ANCHOR}


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
