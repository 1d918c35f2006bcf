"""`make test-matrix`: what it installs, what it keeps, and when it fails."""

import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matrix
import pytest

REPORT = '<testsuites><testsuite tests="9" failures="{}" errors="0" skipped="2"/></testsuites>'


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that it would run, in a folder with one wheel; torch 2.11.0 fails a test."""
    seen: list[list[str]] = []

    def run(command: list[str], check: bool, **_: Any) -> SimpleNamespace:
        seen.append(command)
        if "torch==9.9" in command:
            raise subprocess.CalledProcessError(1, command)
        failed = not check and "2.11.0" in command[0]
        for argument in command:
            if argument.startswith("--junit-xml="):
                Path(argument.split("=")[1]).write_text(REPORT.format(int(failed)))
        return SimpleNamespace(returncode=int(failed))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(venv, "create", lambda path, **_: path.mkdir(parents=True))
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.setattr(matrix, "FOLDER", tmp_path / "build" / "matrix")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "dwconv-0.1.0-cp3-linux.whl").touch()
    return seen


def test_each_torch_gets_the_same_wheel(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And pytest the arguments; environments that passed are gone; a table ends the output."""
    assert matrix.main(["2.10.0", "2.15.0", "--", "-k", "planner"]) == 0
    installs, suites = commands[::2], commands[1::2]
    wheel = str(tmp_path / "dist" / "dwconv-0.1.0-cp3-linux.whl")
    for torch, install, suite in zip(["2.10.0", "2.15.0"], installs, suites, strict=True):
        assert install[0] == sys.executable
        assert {f"torch=={torch}", wheel} <= set(install)
        assert suite[:3] == [str(tmp_path / f"build/matrix/{torch}/bin/pytest"), "-m", "not gpu"]
        assert suite[-2:] == ["-k", "planner"]
    assert list((tmp_path / "build" / "matrix").iterdir()) == []
    header, *rows = capsys.readouterr().out.splitlines()[-3:]
    assert header.split() == ["torch", "passed", "skipped", "failed", "seconds", "status"]
    assert [row.split() for row in rows] == [
        ["2.10.0", "7", "2", "0", "0", "ok"],
        ["2.15.0", "7", "2", "0", "0", "ok"],
    ]


def test_a_failure_is_one_of_all(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are tried; what failed stays, to be looked into."""
    assert matrix.main(["9.9", "2.11.0", "2.15.0"]) == 1
    rows = [row.split() for row in capsys.readouterr().out.splitlines()[-3:]]
    assert rows[0] == ["9.9", "0", "0", "0", "0", "not", "installed"]
    assert rows[1] == ["2.11.0", "6", "2", "1", "0", "pytest:", "1"]
    assert rows[2][-1] == "ok"
    kept = sorted(path.name for path in (tmp_path / "build" / "matrix").iterdir())
    assert kept == ["2.11.0", "9.9"]


def test_no_test_at_all_is_a_failure(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A suite that was skipped, or never wrote its report, has not passed."""
    monkeypatch.setitem(globals(), "REPORT", "<testsuite tests='2' skipped='2' failures='{}'/>")
    assert matrix.main(["2.10.0"]) == 1
    assert matrix.count(tmp_path / "report.xml") == {}


@pytest.mark.parametrize("wheels", [0, 2])
def test_there_must_be_one_wheel(wheels: int, commands: list[list[str]], tmp_path: Path) -> None:
    """Of two, which would be tested?"""
    (tmp_path / "dist" / "dwconv-0.1.0-cp3-linux.whl").unlink()
    for i in range(wheels):
        (tmp_path / "dist" / f"dwconv-{i}.whl").touch()
    with pytest.raises(SystemExit, match=f"must hold one wheel of dwconv, and holds {wheels}"):
        matrix.main(["2.10.0"])
    assert commands == []
