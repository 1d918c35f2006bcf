"""python -m dwconv doctor: what it finds out, of this machine and of made-up ones."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from installs import EXTENSION, Install

import dwconv
from dwconv import driver
from dwconv.__main__ import main
from dwconv.doctor import check as checks
from dwconv.doctor import probes
from dwconv.doctor.facts import Facts, Gpu
from dwconv.doctor.findings import findings

L4 = Gpu("NVIDIA L4", "8.9", "cuda:0")


@pytest.fixture
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(driver, "nvidia_smi", lambda *fields: [])
    monkeypatch.setattr(driver, "cuda_version", lambda: None)


@pytest.mark.usefixtures("no_driver")
def test_this_machine_without_its_gpus() -> None:
    """Every fact that this machine has, and right results on the CPU."""
    facts = probes.collect()
    assert findings(facts) == []
    assert (facts.dwconv, facts.torch) == (dwconv.__version__, torch.__version__)
    assert facts.build == dwconv._ops.build_info()
    assert [(c.device, c.dtype, c.problem) for c in facts.checks] == [
        ("cpu", "float32", None),
        ("cpu", "float16", None),
    ]
    assert set(facts.checks[0].errors) == set(checks.RESULTS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda y: y * 1.001, r"output has a relative error of 1\.\de-03, allowed is 1\.\de-06"),
        (lambda y: y + float("nan"), "output has a relative error of nan"),
        (lambda y: y.detach(), "does not require grad"),
        (lambda y: y + 1e-3 * (y - y.detach()), "input gradient has .*; bias gradient has"),
    ],
)
def test_wrong_results(
    change: Callable[[torch.Tensor], torch.Tensor], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the output or of a gradient, or none at all: what is wrong is named."""
    right = dwconv.depthwise_conv2d
    monkeypatch.setattr(dwconv, "depthwise_conv2d", lambda *a, **k: change(right(*a, **k)))
    check = checks.check("cpu", "float32")
    assert check.problem is not None
    assert re.search(problem, check.problem)
    json.dumps(check.errors, allow_nan=False)


@pytest.mark.usefixtures("no_driver")
def test_a_probe_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in turn; the others run."""
    for what in probes.PROBES:
        with monkeypatch.context() as patched:
            patched.setitem(probes.PROBES, what, lambda facts: 1 / 0)
            assert probes.collect().failed_probes == (f"{what} (division by zero)",)


def known(monkeypatch: pytest.MonkeyPatch, rows: dict[tuple[str, ...], list[list[str]]]) -> None:
    """Makes nvidia-smi answer these questions, and fail at others."""

    def nvidia_smi(*asked: str) -> list[list[str]]:
        if asked not in rows:
            raise RuntimeError("is not a valid field to query.\n")
        return rows[asked]

    monkeypatch.setattr(driver, "nvidia_smi", nvidia_smi)


def test_gpus_that_only_the_driver_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a torch for the CPU."""
    cards = [["580.65.06", "NVIDIA L4"], ["580.65.06", "Tesla T4"]]
    known(monkeypatch, {("driver_version", "name"): cards, ("compute_cap",): [["8.9"], ["7.5"]]})
    found = probes._driver(Facts())
    assert found == {
        "driver": "580.65.06",
        "gpus": (Gpu("NVIDIA L4", "8.9", None), Gpu("Tesla T4", "7.5", None)),
    }
    assert probes._driver(Facts(gpus=(L4,))) == {"driver": "580.65.06"}
    assert probes._driver(Facts(cuda_visible_devices="-1")) == {"driver": "580.65.06"}


def test_a_driver_that_knows_no_compute_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, {("driver_version", "name"): [["450.80", "Tesla T4"]]})
    assert probes._driver(Facts())["gpus"] == (Gpu("Tesla T4", None, None),)
    known(monkeypatch, {})
    assert probes._driver(Facts()) == {"driver_failure": "is not a valid field to query"}


def cuda(**functions: Any) -> Any:
    """What is imported as torch."""
    return SimpleNamespace(cuda=SimpleNamespace(init=lambda: None, **functions))


def test_gpus_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="NVIDIA L4", major=8, minor=9)
    fake = cuda(device_count=lambda: 2, get_device_properties=lambda index: card)
    monkeypatch.setitem(sys.modules, "torch", fake)
    found = probes._torch_gpus(Facts(torch_cuda="13.0"))
    assert found == {"gpus": tuple(Gpu("NVIDIA L4", "8.9", f"cuda:{i}") for i in range(2))}
    fake.cuda.init = lambda: 1 / 0
    assert probes._torch_gpus(Facts(torch_cuda="13.0")) == {"cuda_failure": "division by zero"}
    assert probes._torch_gpus(Facts()) == {}
    assert probes._torch_gpus(Facts(torch_cuda="13.0", cuda_visible_devices="")) == {}


# Whole runs in a process of their own


def broken(install: Install, *options: str, real_torch: bool = False) -> str:
    finished = install.python("-m", "dwconv", "doctor", *options, real_torch=real_torch)
    assert (finished.returncode, finished.stderr) == (1, "")
    return finished.stdout


def test_no_torch(tmp_path: Path) -> None:
    shown = broken(Install(tmp_path))
    assert f"dwconv      {version('dwconv')}, in {tmp_path}" in shown
    assert "PyTorch     none\n" in shown
    assert "operators   not loaded\n" in shown
    assert "1 problem:\n- dwconv needs PyTorch, which is not installed for" in shown


def test_too_old_torch(tmp_path: Path) -> None:
    install = Install(tmp_path)
    install.add_torch('__version__ = "2.9.1"')
    document = json.loads(broken(install, "--json"))
    assert (document["torch"], document["build"], document["checks"]) == ("2.9.1", None, [])
    (sentence,) = document["findings"]
    assert "needs PyTorch 2.10 or newer, and 2.9.1 is installed" in sentence


def test_extension_that_does_not_load(tmp_path: Path) -> None:
    install = Install(tmp_path)
    (install.package / EXTENSION.name).write_text("not a library")
    document = json.loads(broken(install, "--json", real_torch=True))
    assert document["torch"] == torch.__version__
    (sentence,) = document["findings"]
    assert f"({install.package / EXTENSION.name}: " in sentence


def test_extension_missing(tmp_path: Path) -> None:
    install = Install(tmp_path)
    install.add_torch('__version__ = "2.10.0"')
    assert "without its extension dwconv._C: install dwconv again.\n" in broken(install)


def test_commands_without_torch(tmp_path: Path) -> None:
    """They are listed; one that needs torch says so, in one sentence."""
    install = Install(tmp_path)
    shown = install.python("-m", "dwconv", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "doctor" in shown.stdout
    refused = install.python("-m", "dwconv", "bench", "--list")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"dwconv needs PyTorch, .*\.\n", refused.stderr)


def test_all_is_well(tmp_path: Path) -> None:
    """From the command line to the exit status, with what is installed."""
    finished = subprocess.run(
        [sys.executable, "-m", "dwconv", "doctor"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "check       float16 on cpu: right\n\nNo problem found.\nNote: CUDA_" in finished.stdout


@pytest.mark.gpu
def test_on_the_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Every GPU has code, and computes what it should."""
    status = main(["doctor", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["findings"] == []
    assert status == 0
    assert document["torch_cuda"] == torch.version.cuda
    assert float(document["driver_cuda"]) >= 13
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    assert [gpu["device"] for gpu in document["gpus"]] == devices
    assert all("for " in gpu["code"] for gpu in document["gpus"])
    assert {check["device"] for check in document["checks"]} == {"cpu", *devices}
    assert all(set(check["errors"]) == set(checks.RESULTS) for check in document["checks"])
