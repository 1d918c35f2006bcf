"""How it is built: the sdist, and what setup.py finds out about a machine and a source tree."""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from stated import PYPROJECT, ROOT

PATH = os.environ["PATH"]

# What a build leaves in the tree, and what tools do; and what an sdist has more than the tree.
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "build", "dist", "runs", "*.egg-info", "*.so", "__pycache__", ".*_cache",
    ".hypothesis", "COMMIT",
)  # fmt: skip
FRONT_FILES = [
    ".clang-format", ".gitignore", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "Makefile",
    "README.md", "pyproject.toml", "setup.py",
]  # fmt: skip


def make_sdist(tree: Path) -> Path:
    code = "from setuptools.build_meta import build_sdist; build_sdist('dist')"
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    (archive,) = (tree / "dist").glob("dwconv-*.tar.gz")
    return archive


def test_sdist_is_complete(tmp_path: Path) -> None:
    """It holds every file of the tree and nothing built, so that a wheel from it is the same."""
    copy = tmp_path / "tree"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCE)
    (copy / "dwconv" / "_C.so").write_text("left by an editable install")
    with tarfile.open(make_sdist(copy)) as tar:
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
    assert contents["COMMIT"] == b"unknown\n"  # the copy has no history


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


def make_toolkit(path: Path, library_dir: str = "lib64", version: int = 13000) -> Path:
    header = f"#define CUDART_VERSION  {version}\n"
    contents = {
        "bin/nvcc": "",
        f"{library_dir}/libcudart_static.a": "",
        "include/cuda_runtime_api.h": f"/* what it is */\n{header}",
    }
    for name, text in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
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


def test_another_cuda_is_passed_over(
    setup_py: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By setup.py, which names it where there is no other, and by make."""
    old = make_toolkit(tmp_path / "old", version=12080)
    new = make_toolkit(tmp_path / "new")
    os.environ.update(CUDA_HOME=str(old), CUDA_PATH=str(new))
    assert setup_py.find_cuda() == new
    command = ["make", "--eval", "told: ; @echo $(CUDA)", "told"]
    homes = {"CUDA_HOME": str(old), "CUDA_PATH": str(new), "PATH": PATH}
    told = subprocess.run(command, cwd=ROOT, env=homes, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [str(new / "lib64" / "libcudart_static.a")]

    del os.environ["CUDA_PATH"]
    monkeypatch.setattr(setup_py, "CUDA_MAJOR", 99)  # as if no machine had it
    with pytest.raises(SystemExit, match=f"found that of CUDA 12 in {old}"):
        setup_py.find_cuda()


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


@pytest.mark.parametrize(
    ("platform", "asked", "wanted"),
    [
        ("linux", None, True),
        ("linux", "1", True),
        ("linux", "0", False),
        ("darwin", None, False),
        ("win32", "1", False),
    ],
)
def test_kernels_are_for_linux(
    setup_py: Any, monkeypatch: pytest.MonkeyPatch, platform: str, asked: str | None, wanted: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    if asked is not None:
        os.environ["DWCONV_CUDA"] = asked
    assert setup_py.wants_cuda() is wanted


def test_sources_without_cuda(setup_py: Any) -> None:
    """What they lack, one of them stands in for."""
    with_cuda, without = (set(setup_py.find_sources(ROOT, cuda)) for cuda in (True, False))
    assert without - with_cuda == {"csrc/without_cuda.cpp"}
    lacking = with_cuda - without
    assert "csrc/stream.cpp" in lacking
    assert all(name.endswith(".cu") for name in lacking - {"csrc/stream.cpp"})


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


def git(tree: Path, *arguments: str) -> str:
    tool = shutil.which("git")
    assert tool, "git is not installed"
    command = [tool, "-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    finished = subprocess.run(
        [*command, *arguments], cwd=tree, capture_output=True, text=True, check=True
    )
    return finished.stdout.strip()


@pytest.fixture
def checkout(setup_py: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository of two tracked files with one commit."""
    monkeypatch.setenv("PATH", PATH)
    tree = tmp_path / "checkout"
    tree.mkdir()
    (tree / "tracked").write_text("1")
    (tree / ".gitignore").write_text("/build/\n")
    git(tree, "init", "--quiet")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "first")
    return tree


def test_commit_is_that_of_the_checkout(setup_py: Any, checkout: Path) -> None:
    """Whatever tags there are; changes count in tracked files only, staged or not."""
    commit = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1.0.0")
    (checkout / "untracked").write_text("1")
    assert setup_py.find_commit(checkout) == commit
    (checkout / "tracked").write_text("2")
    assert setup_py.find_commit(checkout) == f"{commit}-dirty"
    git(checkout, "add", "tracked")
    assert setup_py.find_commit(checkout) == f"{commit}-dirty"


def test_commit_without_a_history(setup_py: Any, checkout: Path) -> None:
    """What an sdist recorded, and never that of a repository which it was unpacked in."""
    unpacked = checkout / "dwconv-0.1.0"
    unpacked.mkdir()
    assert setup_py.find_commit(unpacked) == "unknown"
    (unpacked / "COMMIT").write_text("recorded\n")
    assert setup_py.find_commit(unpacked) == "recorded"


def test_commit_without_git(setup_py: Any, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build does not need it."""
    monkeypatch.setenv("PATH", "")
    assert setup_py.find_commit(checkout) == "unknown"


def test_a_commit_compiles_two_lines_again(setup_py: Any, checkout: Path) -> None:
    """It is in a source of its own, which is left alone while the commit is the same."""
    shutil.copy(ROOT / "pyproject.toml", checkout)
    source = checkout / setup_py.write_release_source(checkout)
    assert f'"{setup_py.find_commit(checkout)}"' in source.read_text()
    assert f'"{PYPROJECT["project"]["version"]}"' in source.read_text()
    os.utime(source, (0, 0))
    setup_py.write_release_source(checkout)
    assert source.stat().st_mtime == 0
    (checkout / "tracked").write_text("2")
    setup_py.write_release_source(checkout)
    assert "-dirty" in source.read_text()


def test_sdist_records_the_commit(checkout: Path) -> None:
    """So that a wheel made of it says the same as one made of the checkout."""
    shutil.copytree(ROOT, checkout, ignore=NOT_SOURCE, dirs_exist_ok=True)
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "--message", "second")
    with tarfile.open(make_sdist(checkout)) as tar:
        (name,) = [name for name in tar.getnames() if name.endswith("/COMMIT")]
        recorded = tar.extractfile(name)
        assert recorded
        assert recorded.read().decode().strip() == git(checkout, "rev-parse", "HEAD")
