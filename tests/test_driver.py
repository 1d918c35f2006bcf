"""What the driver is asked, with a driver that is made up."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dwconv import driver

Answer = Callable[[str], None]


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answer:
    """Makes a script that does what it is told the only program on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def answer(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return answer


def test_rows(nvidia_smi: Answer) -> None:
    nvidia_smi('echo "$1 $2"; echo "580.65.06, NVIDIA L4"')
    asked, row = driver.nvidia_smi("driver_version", "name")
    assert asked == ["--query-gpu=driver_version", "name --format=csv", "noheader"]
    assert row == ["580.65.06", "NVIDIA L4"]
    assert driver.version() == "--query-gpu=driver_version --format=csv"


def test_no_driver(nvidia_smi: Answer) -> None:
    assert driver.nvidia_smi("name") == []
    assert driver.version() is None


def test_no_gpu(nvidia_smi: Answer) -> None:
    """A machine may have the driver alone."""
    nvidia_smi("echo No devices were found; exit 6")
    assert driver.nvidia_smi("name") == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo Failed to initialize NVML: Driver/library version mismatch; exit 18",
            "Failed to initialize NVML: Driver/library version mismatch",
        ),
        ("echo trouble >&2; exit 1", "trouble"),
        ("exit 9", "exit status 9"),
    ],
)
def test_failure(script: str, reason: str, nvidia_smi: Answer) -> None:
    """It is an error, but for who only asks for the version."""
    nvidia_smi(script)
    with pytest.raises(RuntimeError, match=reason):
        driver.nvidia_smi("name")
    assert driver.version() is None


def test_no_answer(nvidia_smi: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hung driver does not hang us."""
    nvidia_smi("")

    def run(command: list[str], *, timeout: float, **options: Any) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match="timed out after 30 seconds"):
        driver.nvidia_smi("name")


@pytest.mark.parametrize(
    ("number", "status", "said"), [(13000, 0, "13.0"), (12080, 0, "12.8"), (0, 100, None)]
)
def test_cuda_version(
    number: int, status: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As cuDriverGetVersion writes it: 1000 for each major version."""

    class Library:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, pointer: Any) -> int:
            pointer._obj.value = number
            return status

    monkeypatch.setattr(ctypes, "CDLL", Library)
    assert driver.cuda_version() == said


def test_no_cuda_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert driver.cuda_version() is None
