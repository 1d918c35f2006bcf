"""The project's own facts agree with each other: pins, version, targets."""

import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from stated import MAKEFILE, PYPROJECT, ROOT

from dwconv.requirements import CUDA, OLDEST_TORCH


def pins(*groups: str) -> list[str]:
    """The requirements that dependency groups state themselves."""
    stated = [entry for group in groups for entry in PYPROJECT["dependency-groups"][group]]
    return [entry for entry in stated if isinstance(entry, str)]


def test_isolated_builds_and_make_use_the_same_releases() -> None:
    assert sorted(PYPROJECT["build-system"]["requires"]) == sorted(pins("sdist", "build", "nvcc"))


def test_every_requirement_is_one_release() -> None:
    one_release = re.compile(r"[\w.-]+(\[[\w,]+\])?==\d+(\.\d+)*(; .+)?")
    assert [
        pin for pin in pins(*PYPROJECT["dependency-groups"]) if not one_release.fullmatch(pin)
    ] == []


def test_version_is_stated_once() -> None:
    stated: str = PYPROJECT["project"]["version"]
    assert version("dwconv") == stated
    sources = [ROOT / "setup.py", *ROOT.glob("dwconv/**/*.py"), *ROOT.glob("csrc/**/*.[chi]*")]
    assert [str(path) for path in sources if f'"{stated}"' in path.read_text()] == []


def test_every_package_is_installed() -> None:
    packages = {path.parent.relative_to(ROOT) for path in ROOT.glob("dwconv/**/__init__.py")}
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(".".join(package.parts) for package in packages)


def test_oldest_torch_is_the_one_the_operators_are_built_for() -> None:
    (oldest,) = re.findall(r"torch>=(\S+)", " ".join(PYPROJECT["project"]["dependencies"]))
    assert f'TORCH_TARGET = "{oldest}"' in (ROOT / "setup.py").read_text()
    assert tuple(map(int, oldest.split("."))) == OLDEST_TORCH


def test_the_driver_is_for_the_cuda_that_kernels_are_compiled_with() -> None:
    assert f"CUDA_MAJOR = {CUDA}\n" in (ROOT / "setup.py").read_text()
    assert f"CUDART_VERSION *{CUDA}..." in MAKEFILE


def run_make(*arguments: str, folder: Path = ROOT) -> str:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    # Not the flags of a make that runs these tests.
    environment = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    return subprocess.run(
        [make, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_make_help_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE.replace("\\\n", ""), re.MULTILINE)
    listed = re.findall(r"^make ([\w-]+) +\S", run_make("help"), re.MULTILINE)
    assert listed == phony.split()


def test_make_alone_prints_the_help() -> None:
    assert run_make() == run_make("help")


def test_a_release_has_the_tag_of_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a section of the changelog."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    version = PYPROJECT["project"]["version"]
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(f"## [{version}] - 2000-01-01\n")
    monkeypatch.setenv("TAG", f"v{version}")
    run_make("check-tag", folder=tmp_path)
    monkeypatch.setenv("TAG", version)
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        run_make("check-tag", folder=tmp_path)
    assert f"tag '{version}' is not v{version}" in stopped.value.stderr
    monkeypatch.setenv("TAG", f"v{version}")
    changelog.write_text("## [Unreleased]\n")
    with pytest.raises(subprocess.CalledProcessError) as stopped:
        run_make("check-tag", folder=tmp_path)
    assert f"no {version} in CHANGELOG.md" in stopped.value.stderr


def test_ci_runs_the_suite_last() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make lint\nmake test")
