"""Records of where numbers come from: they are right or None, and they give nobody away."""
import json
import platform
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from lmac.evidence.record import Record, command_line, git_revision, load_or_compute, machine, run_metadata, settings_hash


@pytest.mark.parametrize("argv, expected", [
    (["/usr/local/bin/lmac-evaluate", "--out", "/a/b/r.json"], "lmac-evaluate --out r.json"),
    (["lmac-evaluate", "--out=/a b/r.json", "esc10"], "lmac-evaluate --out=r.json esc10"),
    (["C:\\env\\lmac-evaluate.exe", "nbs/results/r.json"], "lmac-evaluate.exe nbs/results/r.json"),
    (["lmac-evaluate", "~/models/mine", "--fold", "5"], "lmac-evaluate mine --fold 5"),
    (["lmac-evaluate", "two words"], "lmac-evaluate 'two words'")])
def test_commands_lose_their_absolute_folders(argv, expected): assert command_line(argv) == expected


def test_git_revision(tmp_path):
    def git(*args): subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *args], check=True, capture_output=True)
    assert git_revision(tmp_path) is None
    git("init")
    package = tmp_path/"package"
    package.mkdir()
    (package/"__init__.py").write_text("")
    assert git_revision(package) is None   # in somebody's checkout, but not part of it
    git("add", "-A")
    assert git_revision(package) is None   # no commit yet
    git("commit", "-m", "first")
    clean = git_revision(package)
    assert re.fullmatch(r"[0-9a-f]{40}", clean["revision"]) and clean["dirty"] is False
    (tmp_path/"result.json").write_text("{}")
    assert git_revision(package) == clean   # a result file does not change the code
    (package/"__init__.py").write_text("x = 1")
    assert git_revision(package) == clean | dict(dirty=True)


def test_no_revision_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() is None


def test_machine_names_a_processor(): assert set(machine()) == {"cpu", "cores_used", "system"}


def test_origin_is_plain_and_tells_nothing_private(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/lmac-evaluate", "--out", "/somewhere/r.json"])
    made = run_metadata()
    assert made["command"] == "lmac-evaluate --out r.json" and run_metadata("by hand")["command"] == "by hand"
    assert json.loads(json.dumps(made)) == made and set(made["versions"]) == {"lmac", "torch", "torchaudio", "python"}
    assert made["date"].endswith("+00:00") and platform.node() not in made["machine"].values()


def table(): return pd.DataFrame(dict(clip=["007", "8"], AD=[1 / 3, float("nan")], correct=[True, False]))


def test_parts_come_back_as_they_were_made(tmp_path):
    file = tmp_path/"deeper"/"part.json.gz"
    first = load_or_compute(file, lambda: dict(rows=[table()], mean=torch.tensor([.5]).double(), n=np.int64(3)))
    second = load_or_compute(file, lambda: pytest.fail("computed again"))
    for found in (first, second):
        pd.testing.assert_frame_equal(found["rows"][0], table())
        assert (found["mean"], found["n"]) == ([.5], 3)


def test_what_fails_leaves_no_part(tmp_path):
    with pytest.raises(OSError): load_or_compute(tmp_path/"part.json.gz", lambda: (_ for _ in ()).throw(OSError("no")))
    assert not list(tmp_path.iterdir())


def test_parts_belong_to_their_settings(tmp_path):
    record = Record(tmp_path/"r.json", tmp_path/"runs")
    made = [record.part("lmac:a b", dict(seed=seed), lambda: seed) for seed in (0, 1, 0)]
    assert made == [0, 1, 0] and len(list((tmp_path/"runs"/"r").iterdir())) == 2
    assert record.part_folder("decoder", dict(seed=0)) != record.part_folder("decoder", dict(seed=1))
    assert settings_hash(dict(a=1, b=[2])) == settings_hash(dict(b=[2], a=1)) != settings_hash(dict(a=1, b=[3]))


@pytest.mark.parametrize("runs", [True, False])
def test_the_result_is_written_and_only_temporary_parts_go(tmp_path, runs):
    record = Record(tmp_path/"results"/"r.json", tmp_path/"runs" if runs else None)
    record.part("a", {}, lambda: 1)
    result = record.write(table(), results=[dict(mean=.5)], pair=(1, 2))
    assert result == json.loads(record.out.read_text()) and result["pair"] == [1, 2]
    assert result["provenance"].keys() == run_metadata().keys() and result["seconds"] >= 0
    assert pd.read_csv(record.out.with_suffix(".csv.gz"), dtype=dict(clip=str)).AD[0] == 0.333333
    assert record.folder.exists() == runs
    again = Record(record.out.with_name("again.json")).write(table())
    assert again.keys() == {"seconds", "provenance"}
    assert record.out.with_suffix(".csv.gz").read_bytes() == record.out.with_name("again.csv.gz").read_bytes()


def test_results_go_to_json_files_only(tmp_path):
    with pytest.raises(ValueError, match="must end in .json. Found: r.txt"): Record(tmp_path/"r.txt")
    (tmp_path/"file").write_text("")
    with pytest.raises(OSError): Record(tmp_path/"file"/"r.json")
