"""What dwconv needs of the machine, and what it says where that is missing: one sentence with a
cure.

Standard library only, so that it can be said whatever is missing.
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

OLDEST_TORCH = (2, 10)
OLDEST_GPU = (7, 5)  # compute capability: CUDA 13 compiles for no older ones
CUDA = 13  # major version: of the driver, too
OLDEST_DRIVER = 580  # of that CUDA

PYTHON = "{}.{}".format(*sys.version_info[:2])
FOLDER = Path(__file__).parent


class Unmet(ImportError):
    """Its message is one sentence that says what is missing, and what to do about it."""


def numbers(text: str) -> tuple[int, int] | None:
    """The first two of a version, such as "2.10.0+cu130"."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def first_line(error: BaseException) -> str:
    """What an exception says, in one line that has no full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def installed_version() -> str:
    """dwconv's own."""
    try:
        return version("dwconv")
    except PackageNotFoundError:
        raise Unmet(_not_installed("its metadata")) from None


def check(ours: str) -> None:
    """Raises Unmet unless dwconv, of this version, finds all that it imports."""
    _check_torch(ours)
    _check_extension()


def _check_torch(ours: str) -> None:
    oldest = "{}.{}".format(*OLDEST_TORCH)
    try:
        import torch
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            raise Unmet(
                f"dwconv needs PyTorch, which is not installed for {sys.executable}: "
                f"run `pip install 'torch>={oldest}'`"
            ) from error
        raise Unmet(
            f"PyTorch is installed but cannot be imported ({first_line(error)}): "
            "run `pip install --force-reinstall torch`"
        ) from error
    theirs = getattr(torch, "__version__", None)
    if theirs is None:
        where = getattr(torch, "__file__", None) or next(iter(torch.__path__))
        raise Unmet(
            f"dwconv needs PyTorch, and what Python finds as torch is not it ({where}): "
            f"move that away, and run `pip install 'torch>={oldest}'`"
        )
    found = numbers(theirs)
    if found is not None and found < OLDEST_TORCH:
        raise Unmet(
            f"dwconv {ours} needs PyTorch {oldest} or newer, and {theirs} is installed: "
            f"run `pip install --upgrade 'torch>={oldest}'`"
        )


def _check_extension() -> None:
    if find_spec("dwconv._C") is not None:
        return
    others = sorted(path.name for path in FOLDER.glob("_C.*") if path.suffix in (".so", ".pyd"))
    if others:
        raise Unmet(
            f"dwconv's extension is compiled for another Python than {PYTHON} ({others[0]}): "
            f"install dwconv again, with `{sys.executable} -m pip`"
        )
    raise Unmet(_not_installed("its extension dwconv._C"))


def check_built(built: str | None) -> None:
    """Raises Unmet unless the extension, built for this version, is that of the Python files."""
    ours = installed_version()
    if built != ours:
        raise Unmet(
            f"dwconv {ours} is installed over the extension of dwconv {built or '(unknown)'}: run "
            "`pip uninstall dwconv` until there is none, and install it again"
        )


def _not_installed(missing: str) -> str:
    root = FOLDER.parent
    if (root / "csrc").is_dir():
        return (
            f"dwconv was imported from its sources in {root}, without {missing}: run "
            f"`pip install {root}`, and start Python in another folder"
        )
    return f"{FOLDER} holds dwconv without {missing}: install dwconv again"


def unmet(error: Exception) -> Unmet:
    """What kept dwconv from being imported, as a sentence."""
    if isinstance(error, Unmet):
        return error
    torch = getattr(sys.modules.get("torch"), "__version__", "missing")
    said = Unmet(
        f"dwconv cannot be imported with PyTorch {torch} and Python {PYTHON} "
        f"({first_line(error)}): install dwconv again, compiled for this machine"
    )
    said.__cause__ = error
    return said
