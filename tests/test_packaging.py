"""What is installed, and how it is built: symbols, libraries, import, stubs, sdist, setup.py."""

import ast
import doctest
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import dwconv
from dwconv import _C

ROOT = Path(__file__).resolve().parent.parent
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
    assert sorted(info) == ["architectures", "nvcc", "torch_headers", "torch_target"]
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


# What a build leaves in the tree, and what tools do.
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", ".*_cache",
    ".hypothesis",
)  # fmt: skip
FRONT_FILES = [
    ".clang-format", ".gitignore", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile",
    "README.md", "pyproject.toml", "setup.py",
]  # fmt: skip


def test_sdist_is_complete(tmp_path: Path) -> None:
    """It holds every file of the tree and nothing built, so that a wheel from it is the same."""
    copy = tmp_path / "tree"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCE)
    (copy / "dwconv" / "_C.so").write_text("left by an editable install")
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (archive,) = (copy / "dist").glob("dwconv-*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {
            name.split("/", 1)[1]: tar.extractfile(name) for name in tar.getnames() if "/" in name
        }
        contents = {name: file.read() for name, file in packed.items() if file}
    kept = ["csrc", "dwconv", "tests", "examples", "benchmarks", ".github", ".ci"]
    wanted = [path for folder in kept for path in (ROOT / folder).rglob("*") if path.is_file()]
    wanted += [ROOT / name for name in FRONT_FILES]
    names = {path.relative_to(ROOT).as_posix(): path for path in wanted}
    ignored = re.compile(r"__pycache__|\.so$|\.DS_Store")
    expected = {name: path for name, path in names.items() if not ignored.search(name)}
    assert "csrc/kernels.inc" in expected
    assert sorted(expected.keys() - contents.keys()) == []
    assert [name for name, path in expected.items() if contents[name] != path.read_bytes()] == []
    assert [name for name in contents if name.endswith((".so", ".o", ".pyc"))] == []


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module setup.py, without the call of setup(), in an empty environment."""
    setuptools: Any = importlib.import_module("setuptools")  # it has no type stubs
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: None)
    monkeypatch.setattr(sys, "argv", ["setup.py", "sdist"])
    spec = importlib.util.spec_from_file_location("setup_under_test", ROOT / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(os, "environ", {"PATH": ""})
    return module


def make_toolkit(path: Path, library_dir: str = "lib64") -> Path:
    for name in ("bin/nvcc", f"{library_dir}/libcudart_static.a"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("")
    (path / "bin" / "nvcc").chmod(0o755)
    return path


def test_no_nvcc_is_one_sentence(setup_py: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to get one; sys.exit with a text prints that and no traceback."""
    monkeypatch.setattr(setup_py, "cuda_library_dir", lambda cuda: None)  # as if none were there
    with pytest.raises(SystemExit) as stopped:
        setup_py.find_cuda()
    sentence = str(stopped.value.code)
    assert "needs nvcc" in sentence
    assert "pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'" in sentence
    assert "\n" not in sentence


def test_toolkit_is_looked_for_in_order(
    setup_py: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """CUDA_HOME, CUDA_PATH, nvcc on PATH; a folder without nvcc or its runtime is passed over."""
    home, path, found = (make_toolkit(tmp_path / name) for name in ("home", "path", "found"))
    environment = os.environ
    environment.update(CUDA_HOME=str(home), CUDA_PATH=str(path), PATH=str(found / "bin"))
    assert setup_py.find_cuda() == home
    (home / "lib64" / "libcudart_static.a").unlink()
    assert setup_py.find_cuda() == path
    (path / "bin" / "nvcc").unlink()
    assert setup_py.find_cuda() == found


def test_toolkit_from_pypi_is_found(
    setup_py: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Under nvidia/cu13, which has lib and no lib64; the system's comes first."""
    toolkit = make_toolkit(tmp_path / "nvidia" / "cu13", "lib")
    package = ModuleType("nvidia")
    package.submodule_search_locations = [str(tmp_path / "nvidia")]  # type: ignore[attr-defined]
    monkeypatch.setattr(setup_py.importlib.util, "find_spec", lambda name: package)
    found = setup_py.find_cuda()
    assert found in (toolkit, Path("/usr/local/cuda"))
    assert setup_py.cuda_library_dir(toolkit) == toolkit / "lib"
    system_only = setup_py.cuda_library_dir
    monkeypatch.setattr(
        setup_py,
        "cuda_library_dir",
        lambda cuda: system_only(cuda) if tmp_path in cuda.parents else None,
    )
    assert setup_py.find_cuda() == toolkit


def test_architectures_are_the_callers(setup_py: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """TORCH_CUDA_ARCH_LIST is taken as it is, silently."""
    os.environ["TORCH_CUDA_ARCH_LIST"] = "7.5 12.0+PTX"
    assert setup_py.choose_architectures() == "7.5 12.0+PTX"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("visible", "chosen"), [("8.9 9.0", "8.9 9.0"), ("", "8.0+PTX 9.0")])
def test_architectures_by_default(
    visible: str,
    chosen: str,
    setup_py: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those of the visible GPUs, else a default; one line says which."""
    monkeypatch.setattr(setup_py, "visible_architectures", lambda: visible)
    assert setup_py.choose_architectures() == chosen
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == chosen
    (line,) = capsys.readouterr().out.splitlines()
    assert f"building for {chosen} " in line


def test_visible_architectures_of_a_machine_without_a_driver(setup_py: Any) -> None:
    """No nvidia-smi: none, and no error."""
    assert setup_py.visible_architectures() == ""


@pytest.mark.parametrize(
    ("cores", "gib", "jobs"), [(64, 1000, "64"), (64, 6, "4"), (1, 1000, "1"), (8, 0.5, "1")]
)
def test_jobs_are_bounded_by_cores_and_memory(
    cores: int, gib: float, jobs: str, setup_py: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One nvcc for each core, and for each 1.5 GiB that are free; at least one."""
    sizes = {"SC_AVPHYS_PAGES": int(gib * 2**18), "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    setup_py.limit_jobs()
    assert os.environ["MAX_JOBS"] == jobs
    os.environ["MAX_JOBS"] = "3"
    setup_py.limit_jobs()
    assert os.environ["MAX_JOBS"] == "3"


@pytest.mark.parametrize(
    ("command", "compiles"),
    [("sdist", False), ("egg_info", False), ("dist_info", False)]
    + [(name, True) for name in ("build_ext", "bdist_wheel", "editable_wheel", "develop")],
)
def test_only_commands_that_compile_look_for_nvcc(
    command: str, compiles: bool, setup_py: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An sdist is made on any machine."""
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    assert setup_py.compiles() == compiles
