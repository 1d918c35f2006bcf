"""Looks into the wheels under dist/, before anybody installs one: `make check-wheel`.

No test of the suite, which runs on what is installed, and needs neither torch nor dwconv.
"""

import json
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from stated import PYPROJECT, ROOT

PROJECT = PYPROJECT["project"]
WHEELS = sorted(ROOT.glob("dist/**/*.whl"))
MIB = 2**20

every_wheel = pytest.mark.parametrize("wheel", WHEELS, ids=lambda path: path.name)


def run(tool: str, *arguments: str) -> str:
    """A tool of this environment, or of the system; its words are the assertion's when it fails."""
    beside = Path(sys.executable).parent / tool
    command = [str(beside) if beside.is_file() else tool, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def unpack(wheel: Path, folder: Path) -> Path:
    """The package of a wheel as a folder."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "dwconv"


def read(wheel: Path, name: str) -> Message:
    """METADATA or WHEEL."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [path for path in archive.namelist() if path.endswith(f".dist-info/{name}")]
        return message_from_string(archive.read(path).decode())


def test_there_is_a_wheel() -> None:
    """The tests below have one to look into."""
    assert WHEELS, "dist/ holds no wheel: run make wheel"


@every_wheel
def test_size(wheel: Path) -> None:
    """PyPI takes 100 MB; every installation downloads it."""
    assert wheel.stat().st_size <= 60 * MIB


@every_wheel
def test_contents(wheel: Path) -> None:
    """The Python files of this tree, one extension, the licence, and no library of others."""
    run("check-wheel-contents", "--toplevel", "dwconv", str(wheel))
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]  # no folders
        packed = {name for name in files if ".dist-info/" not in name}
        assert [name for name in files if name.endswith("/licenses/LICENSE")]
    sources = [
        path for path in ROOT.glob("dwconv/**/*") if re.search(r"\.(pyi?|typed)$", path.name)
    ]
    extensions = {name for name in packed if re.fullmatch(r"dwconv/_C\.[\w-]+\.so", name)}
    assert len(extensions) == 1
    assert packed - extensions == {path.relative_to(ROOT).as_posix() for path in sources}


@every_wheel
def test_metadata(wheel: Path) -> None:
    """One wheel for a Python, whatever torch: the version is the project's alone."""
    metadata = read(wheel, "METADATA")
    assert metadata["Version"] == PROJECT["version"]
    assert metadata.get_all("Requires-Dist") == PROJECT["dependencies"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    tags = read(wheel, "WHEEL").get_all("Tag")
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert python == abi
    assert {f"{python}-{abi}-{name}" for name in platform.split(".")} == set(tags or [])


@every_wheel
def test_torch_abi_is_the_stable_one(wheel: Path, tmp_path: Path) -> None:
    """By the lists of symbols that torch-abi-audit has of each release of torch."""
    (oldest,) = re.findall(r"torch>=([\d.]+)", " ".join(PROJECT["dependencies"]))
    package = str(unpack(wheel, tmp_path))
    said = run("torch-abi-audit", "--check", "torch", "--verbose", package)
    (needed,) = re.findall(r"Min torch: +(\S+)", said)
    assert f"{needed}.".startswith(f"{oldest}."), said


@every_wheel
def test_libraries(wheel: Path, tmp_path: Path) -> None:
    """From outside come torch and what every Linux has: no CUDA library, no folder of a builder."""
    (extension,) = unpack(wheel, tmp_path).glob("_C.*.so")
    dynamic = run("readelf", "--dynamic", "--wide", str(extension))
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert "libtorch.so" in needed
    assert [name for name in needed if re.match(r"lib(cu|nv|torch_cuda|c10)", name)] == []
    assert re.findall(r"\((RPATH|RUNPATH)\)", dynamic) == []


@every_wheel
def test_platform(wheel: Path) -> None:
    """A manylinux wheel needs no newer C library than its name says, and only torch beside it."""
    report = json.loads(run("auditwheel", "show", "--json", str(wheel)))
    assert sorted(report["external_libs"]) == ["libtorch.so", "libtorch_cpu.so"]
    needed = re.fullmatch(r"manylinux_2_(\d+)_\w+", report["sym_tag"])
    assert needed, report
    promised = re.findall(r"manylinux_2_(\d+)_", wheel.name)
    assert all(int(needed[1]) <= int(minor) for minor in promised)
    assert promised or wheel.parent.name != "release"
