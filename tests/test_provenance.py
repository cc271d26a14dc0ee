"""Records of where numbers come from: they are right or None, and they give nobody away."""
import json
import platform
import re
import subprocess
import sys

import pytest

from lmac.evidence.record import command_line, git_revision, machine, origin


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
    made = origin()
    assert made["command"] == "lmac-evaluate --out r.json" and origin("by hand")["command"] == "by hand"
    assert json.loads(json.dumps(made)) == made and set(made["versions"]) == {"lmac", "torch", "torchaudio", "python"}
    assert made["date"].endswith("+00:00") and platform.node() not in made["machine"].values()
