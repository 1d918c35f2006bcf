"""What is installed: symbols, libraries, import, stubs, build facts."""

import ast
import doctest
import importlib
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import dwconv
from dwconv import _C

EXTENSION = Path(_C.__file__)
PACKAGE = Path(dwconv.__file__).parent


def binutil(name: str, *arguments: str) -> str:
    tool = shutil.which(name)
    assert tool, f"{name} is not installed: it comes with binutils"
    command = [tool, *arguments, str(EXTENSION)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# What may stay undefined: torch's stable C functions, Python, and the C and C++ runtimes: versioned
# symbols, and those of the namespaces std and __cxxabiv1, of which weak ones carry no version.
ALLOWED_SYMBOL = re.compile(
    r"(aoti_)?torch_\w+|_?Py\w+|\w+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\w.]+"
    r"|_Z(T[ISV])?N?K?[RO]?(St|10__cxxabiv1)\w+|__cxa_\w+|_ITM_\w+|__gmon_start__"
)


def test_undefined_symbols_are_stable_abi_only() -> None:
    """No C++ symbol of torch: the wheel runs on every torch from the one it targets on."""
    lines = binutil("nm", "-D", "--undefined-only").splitlines()
    symbols = [line.split()[-1] for line in lines]
    assert "torch_call_dispatcher" in symbols
    assert [symbol for symbol in symbols if not ALLOWED_SYMBOL.fullmatch(symbol)] == []


def test_the_stream_function_is_weak() -> None:
    """It lives in libtorch_cuda, which a CPU-only torch lacks."""
    lines = binutil("nm", "-D").splitlines()
    kinds = {line.split()[-1]: line.split()[-2] for line in lines}
    assert kinds["aoti_torch_get_current_cuda_stream"] == "w"


def test_exports_nothing_but_the_module() -> None:
    """The static CUDA runtime inside must not be found by another library."""
    lines = binutil("nm", "-D", "--defined-only", "--extern-only").splitlines()
    symbols = {line.split()[-1] for line in lines}
    assert "PyInit__C" in symbols
    assert [symbol for symbol in symbols if re.match(r"_*cu[A-Z]|_*cuda|nv", symbol)] == []


def test_needs_no_cuda_library() -> None:
    """It loads on a CPU-only torch and on a machine without a driver."""
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", binutil("readelf", "-d"))
    assert "libtorch.so" in needed
    torch_free = {name.split(".so")[0] for name in needed} - {"libtorch", "libtorch_cpu"}
    assert torch_free <= {
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "libpthread",
        "libdl",
        "librt",
    } | {name for name in torch_free if name.startswith("ld-linux")}


def run_python(code: str, **environment: str) -> str:
    """In a fresh interpreter that sees neither this folder nor PYTHONPATH."""
    command = [sys.executable, "-I", "-W", "error::UserWarning:dwconv", "-c", code]
    finished = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return finished.stdout


def test_imports_without_a_gpu() -> None:
    """With every device hidden, import and a call on the CPU work."""
    code = """
import torch, dwconv
print(tuple(dwconv.depthwise_conv2d(torch.ones(1, 2, 5, 5), torch.ones(4, 1, 3, 3)).shape))
"""
    assert run_python(code, CUDA_VISIBLE_DEVICES="").split("\n")[0] == "(1, 4, 3, 3)"


def test_import_starts_no_cuda_and_compiles_nothing() -> None:
    """A data loader's worker that imports dwconv must not take GPU memory, nor anybody wait."""
    code = """
import sys, torch, dwconv
print(torch.cuda.is_initialized(), "torch.utils.cpp_extension" in sys.modules,
      "torch._dynamo" in sys.modules, "dwconv.bench" in sys.modules,
      "dwconv.doctor" in sys.modules)
"""
    assert run_python(code).split() == ["False"] * 5


def test_version_is_that_of_the_metadata() -> None:
    """dwconv.__version__ and pip agree."""
    assert dwconv.__version__ == version("dwconv")
    assert re.fullmatch(r"\d+\.\d+\.\d+", dwconv.__version__)


def test_public_names() -> None:
    """__all__ is what the documentation shows, and exists."""
    assert sorted(dwconv.__all__) == [
        "DepthwiseConv2d",
        "Report",
        "__version__",
        "convert",
        "depthwise_conv2d",
        "is_strict_nonfinite",
        "restore",
        "set_strict_nonfinite",
    ]
    assert all(hasattr(dwconv, name) for name in dwconv.__all__)


def test_type_information_is_installed() -> None:
    """py.typed and the extension's stub, which lists each function that there is."""
    assert (PACKAGE / "py.typed").is_file()
    stub = ast.parse((PACKAGE / "_C.pyi").read_text())
    listed = {node.name for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert listed == {name for name in dir(_C) if not name.startswith("_")}


def test_names_no_folder_of_the_machine_that_built_it() -> None:
    """Error messages carry the names of source files, as they are in the sources."""
    named = re.findall(rb"[\w./-]*csrc/[\w./-]+", EXTENSION.read_bytes())
    assert b"csrc/tensor.h" in named
    assert all(name.startswith((b"csrc/", b"torch/csrc/")) for name in named)


def test_build_info_says_what_was_built() -> None:
    """Text for bug reports."""
    info = _C.build_info()
    assert list(info) == [
        "version",
        "commit",
        "nvcc",
        "architectures",
        "torch_headers",
        "torch_target",
    ]
    assert info["version"] == dwconv.__version__
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", info["commit"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", info["nvcc"])
    assert info["torch_target"] == "2.10"
    assert all(info.values())


@pytest.mark.parametrize("module", ["functional", "nn"])
def test_docstring_examples_run(module: str) -> None:
    """As a reader would run them: with torch and dwconv imported."""
    names = {"torch": torch, "dwconv": dwconv}
    found = importlib.import_module(f"dwconv.{module}")
    failed, tried = doctest.testmod(found, extraglobs=names)
    assert tried > 0
    assert failed == 0
