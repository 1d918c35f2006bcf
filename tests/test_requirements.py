"""What import says where something is missing: one sentence, when a name of dwconv is used."""

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from installs import EXTENSION, Install

import dwconv
from dwconv import requirements
from dwconv.requirements import PYTHON, Unmet, check, first_line, numbers, unmet

OURS = version("dwconv")


@pytest.fixture
def install(tmp_path: Path) -> Install:
    return Install(tmp_path)


def last_line(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 1
    return finished.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "use",
    [
        "import dwconv; dwconv.convert",
        "from dwconv import DepthwiseConv2d",
        "from dwconv import *",
    ],
)
def test_no_torch(use: str, install: Install) -> None:
    """Any use of a name says so, and how to get it."""
    assert last_line(install.python("-c", use)) == (
        f"ImportError: dwconv needs PyTorch, which is not installed for {sys.executable}: "
        "run `pip install 'torch>=2.10'`"
    )


def test_import_itself_works_without_torch(install: Install) -> None:
    """For the doctor. The version is known, and names that are none of dwconv's stay so."""
    code = "import dwconv; print(dwconv.__version__, hasattr(dwconv, 'nothing'))"
    assert install.python("-c", code).stdout.split() == [OURS, "False"]


def test_too_old_torch(install: Install) -> None:
    """Both versions are named, and the extension is not even loaded."""
    install.add_torch('__version__ = "2.9.1+cu130"')
    (install.package / EXTENSION.name).write_text("not a library")
    assert last_line(install.python("-c", "from dwconv import convert")) == (
        f"ImportError: dwconv {OURS} needs PyTorch 2.10 or newer, and 2.9.1+cu130 is installed: "
        "run `pip install --upgrade 'torch>=2.10'`"
    )


def test_broken_torch(install: Install) -> None:
    """Its own reason is told: not that it is missing."""
    install.add_torch('raise OSError("libcudart.so.13: cannot open shared object file.\\nMore")')
    assert last_line(install.python("-c", "from dwconv import convert")) == (
        "ImportError: PyTorch is installed but cannot be imported (libcudart.so.13: cannot open "
        "shared object file): run `pip install --force-reinstall torch`"
    )


def test_torch_without_a_package_of_its_own(install: Install) -> None:
    """It is not torch that is missing."""
    install.add_torch("import typing_extensions")
    assert "cannot be imported (No module named 'typing_extensions')" in last_line(
        install.python("-c", "from dwconv import convert")
    )


def test_a_folder_named_torch(install: Install) -> None:
    """Python takes any folder for a package."""
    folder = install.site / "torch"
    folder.mkdir()
    sentence = last_line(install.python("-c", "from dwconv import convert"))
    assert f"what Python finds as torch is not it ({folder})" in sentence


def test_no_extension(install: Install) -> None:
    install.add_torch('__version__ = "2.10.0"')
    assert last_line(install.python("-c", "from dwconv import convert")) == (
        f"ImportError: {install.package} holds dwconv without its extension dwconv._C: "
        "install dwconv again"
    )


def test_extension_for_another_python(install: Install) -> None:
    install.add_torch('__version__ = "2.10.0"')
    (install.package / "_C.cpython-39-x86_64-linux-gnu.so").touch()
    sentence = last_line(install.python("-c", "from dwconv import convert"))
    assert "compiled for another Python" in sentence
    assert f"than {PYTHON} (_C.cpython-39-x86_64-linux-gnu.so)" in sentence


def test_sources_instead_of_an_installation(install: Install) -> None:
    """As in a checkout, where Python finds the sources first."""
    install.add_torch('__version__ = "2.10.0"')
    (install.site / "csrc").mkdir()
    sentence = last_line(install.python("-c", "from dwconv import convert"))
    assert f"imported from its sources in {install.site}" in sentence
    assert "start Python in another folder" in sentence


def test_no_metadata(install: Install) -> None:
    (install.metadata / "METADATA").unlink()
    install.metadata.rmdir()
    sentence = last_line(install.python("-c", "from dwconv import convert"))
    assert sentence.endswith("holds dwconv without its metadata: install dwconv again")


def test_extension_that_does_not_load(install: Install) -> None:
    """The loader's reason is told, and the versions that matter to it."""
    (install.package / EXTENSION.name).write_text("not a library")
    sentence = last_line(install.python("-c", "import dwconv; dwconv.convert", real_torch=True))
    assert sentence.startswith("ImportError: dwconv cannot be imported with PyTorch 2.")
    assert f"and Python {PYTHON} ({install.package / EXTENSION.name}: " in sentence
    assert sentence.endswith("install dwconv again, compiled for this machine")


def test_two_versions_over_each_other(install: Install) -> None:
    """As `pip install --target` leaves them: Python files of one, the extension of the other."""
    shutil.copy(EXTENSION, install.package)
    other = install.site / "dwconv-9.9.9.dist-info"
    install.metadata.rename(other)
    metadata = (other / "METADATA").read_text()
    (other / "METADATA").write_text(metadata.replace(OURS, "9.9.9"))
    sentence = last_line(install.python("-c", "import dwconv; dwconv.convert", real_torch=True))
    assert sentence == (
        f"ImportError: dwconv 9.9.9 is installed over the extension of dwconv {OURS}: "
        "run `pip uninstall dwconv` until there is none, and install it again"
    )


def test_other_failures_of_an_import() -> None:
    """Whatever it was, the sentence tells it, and the traceback goes on with it."""
    error = AttributeError("'_OpNamespace' 'dwconv' object has no attribute 'forward'")
    said = unmet(error)
    assert "('_OpNamespace' 'dwconv' object has no attribute 'forward'): install" in str(said)
    assert said.__cause__ is error


def test_nothing_is_in_the_way_where_all_is_well() -> None:
    assert dwconv._unmet is None
    assert "__getattr__" not in vars(dwconv)
    with pytest.raises(AttributeError, match="'dwconv' has no attribute 'nothing'"):
        getattr(dwconv, "nothing")  # noqa: B009 (mypy knows that it is not there)


@pytest.mark.parametrize(
    ("theirs", "fits"),
    [
        ("2.10.0", True),
        ("2.10.0a0+b4e4ee81d3.nv25.12", True),
        ("2.15.0+cu132", True),
        ("3.0.0", True),
        ("unversioned", True),
        ("2.9.1", False),
        ("1.13.1", False),
    ],
)
def test_versions_of_torch(theirs: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are compared, not text; what is no number is not refused."""
    torch = ModuleType("torch")
    torch.__version__ = theirs  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    if fits:
        check(OURS)
    else:
        with pytest.raises(Unmet, match=f"and {theirs} is installed"):
            check(OURS)


def test_numbers() -> None:
    assert numbers("580.65.06") == (580, 65)
    assert numbers("2.10.0+cu130") == (2, 10)
    assert numbers("[N/A]") is None


def test_first_line() -> None:
    assert first_line(ValueError("\n One sentence. \n another")) == "One sentence"
    assert first_line(ValueError()) == "ValueError"


def test_it_needs_nothing_itself() -> None:
    """Only the standard library is imported with it."""
    code = f"""
import runpy, sys
before = set(sys.modules)
runpy.run_path({requirements.__file__!r})
print(*{{name.split(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names)
"""
    finished = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.split() == []
