"""Tests the wheel in dist/ beside several releases of torch, each in an environment of its own.

python tests/matrix.py 2.10.0 2.15.0 -- arguments for pytest

An environment that passed is removed. pip's settings decide which builds of torch these are.
"""

import os
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "matrix"


@dataclass(frozen=True)
class Row:
    """What became of the suite beside one torch."""

    torch: str
    passed: int
    skipped: int
    failed: int
    seconds: float
    status: str

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def find_wheel() -> Path:
    """The one that `make wheel` left in dist/."""
    wheels = sorted((ROOT / "dist").glob("dwconv-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"dist/ must hold one wheel of dwconv, and holds {len(wheels)}: run make wheel")
    return wheels[0]


def install(environment: Path, wheel: Path, torch: str) -> None:
    """Into a new environment: a torch, the wheel as it is, and what the tests need."""
    shutil.rmtree(environment, ignore_errors=True)
    venv.create(environment, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet"]
    # The tests of the sdist want setuptools, of which each torch takes other releases.
    wanted = [f"torch=={torch}", str(wheel), "setuptools", "--group", f"{ROOT}/pyproject.toml:test"]
    subprocess.run([*pip, *wanted], cwd=ROOT, check=True)


def count(report: Path) -> dict[str, int]:
    """Tests, failures, errors and skipped of pytest's report; nothing if it wrote none."""
    if not report.is_file():
        return {}
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    return {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}


def run_suite(environment: Path, torch: str, arguments: list[str]) -> Row:
    """What needs no GPU, with the pytest of the environment."""
    report = environment / "report.xml"
    # Not `python -m pytest`, which would import the sources in place of the wheel.
    command = [str(environment / "bin" / "pytest"), "-m", "not gpu", f"--junit-xml={report}"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    begin = time.monotonic()
    finished = subprocess.run([*command, *arguments], cwd=ROOT, env=variables, check=False)
    seconds = time.monotonic() - begin
    found = count(report)
    failed = found.get("failures", 0) + found.get("errors", 0)
    skipped = found.get("skipped", 0)
    passed = found.get("tests", 0) - failed - skipped
    status = "ok" if finished.returncode == 0 and passed else f"pytest: {finished.returncode}"
    return Row(torch, passed, skipped, failed, seconds, status)


def check(torch: str, wheel: Path, arguments: list[str]) -> Row:
    print(f"\n== {wheel.name} beside torch {torch}", flush=True)
    environment = FOLDER / torch
    begin = time.monotonic()
    try:
        install(environment, wheel, torch)
    except subprocess.CalledProcessError:
        return Row(torch, 0, 0, 0, time.monotonic() - begin, "not installed")
    row = run_suite(environment, torch, arguments)
    if row.ok:
        shutil.rmtree(environment)
    return row


def table(rows: list[Row]) -> str:
    lines = [f"{'torch':<10} {'passed':>7} {'skipped':>7} {'failed':>7} {'seconds':>8}  status"]
    for row in rows:
        counts = f"{row.passed:>7} {row.skipped:>7} {row.failed:>7} {row.seconds:>8.0f}"
        lines.append(f"{row.torch:<10} {counts}  {row.status}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    split = arguments.index("--") if "--" in arguments else len(arguments)
    releases = arguments[:split]
    if not releases:
        sys.exit(__doc__)
    wheel = find_wheel()
    rows = [check(torch, wheel, arguments[split + 1 :]) for torch in releases]
    print(f"\n{wheel.name}\n{table(rows)}")
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
