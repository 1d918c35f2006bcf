"""Installations of dwconv in folders of their own, in which this or that is wrong."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import dwconv
from dwconv import _C

PACKAGE = Path(dwconv.__file__).parent
EXTENSION = Path(_C.__file__)


class Install:
    """A copy of the installed Python sources, with its metadata and no extension."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site"
        self.package = self.site / "dwconv"
        self.elsewhere = folder / "elsewhere"
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(PACKAGE, self.package, ignore=ignored)
        self.elsewhere.mkdir()
        self.metadata = self.site / f"dwconv-{version('dwconv')}.dist-info"
        self.metadata.mkdir()
        stated = f"Metadata-Version: 2.1\nName: dwconv\nVersion: {version('dwconv')}\n"
        (self.metadata / "METADATA").write_text(stated)

    def add_torch(self, source: str) -> None:
        """Something that is imported as torch."""
        (self.site / "torch").mkdir()
        (self.site / "torch" / "__init__.py").write_text(source)

    def python(self, *arguments: str, real_torch: bool = False) -> subprocess.CompletedProcess[str]:
        """Runs a Python that finds this, and all other packages only with ``real_torch``."""
        only = [] if real_torch else ["-S"]
        environment = {**os.environ, "PYTHONPATH": str(self.site), "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [sys.executable, "-B", *only, *arguments],
            cwd=self.elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
