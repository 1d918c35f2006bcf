"""Tries the wheel that is built without CUDA, as on Windows and macOS: `make check-cpu`.

No test of the suite, which runs on what is installed.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from stated import ROOT

(WHEEL,) = ROOT.glob("build/cpu/*.whl")

PROGRAM = """
import torch, dwconv
from dwconv import _C

assert _C.build_info()["architectures"] == _C.build_info()["nvcc"] == "none"
x = torch.randn(2, 6, 9, 10, requires_grad=True)
layer = dwconv.DepthwiseConv2d(6, 12, 3, stride=2, padding=1)
conv = torch.nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=6)
conv.load_state_dict(layer.state_dict())
given = torch.randn_like(conv(x))
parameters = [x, *layer.parameters()], [x, *conv.parameters()]
ours, theirs = (
    torch.autograd.grad(net(x), of, given) for net, of in zip((layer, conv), parameters)
)
for mine, other in zip((layer(x), *ours), (conv(x), *theirs)):
    torch.testing.assert_close(mine, other)
planned = _C.plan(
    pass_="forward", dtype="float32", layout="nchw", input_size=(2, 6, 9, 10), out_channels=6,
    kernel_size=(3, 3),
)
assert planned["blocks"] > 0
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(WHEEL) as archive:
        archive.extractall(folder)
    return folder


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P" if sys.version_info >= (3, 11) else "-B", *arguments],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_cpu_tensors_are_computed(site: Path) -> None:
    finished = python(site, "-c", PROGRAM)
    assert finished.returncode == 0, finished.stderr


def test_doctor_says_so(site: Path) -> None:
    finished = python(site, "-m", "dwconv", "doctor")
    assert "built       without CUDA, with PyTorch" in finished.stdout, finished.stderr
    assert "operators   loaded" in finished.stdout


def test_no_kernels_are_in_it(site: Path) -> None:
    (extension,) = (site / "dwconv").glob("_C.*.so")
    assert extension.stat().st_size < 2 * 2**20
    assert b".nv_fatbin" not in extension.read_bytes()
