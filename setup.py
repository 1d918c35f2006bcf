"""Builds dwconv._C: CUDA kernels, planner and operators in one extension.

One wheel for every torch >= 2.10, with or without a GPU: only the LibTorch stable ABI is used, the
CUDA runtime is linked statically, and nothing depends on torch's CUDA libraries.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.sdist import sdist

TORCH_TARGET = "2.10"
TORCH_TARGET_VERSION = "0x020a000000000000"
DEFAULT_ARCHITECTURES = "8.0+PTX 9.0"
# What one compiler may need. The largest so far is bind.cpp with 0.43 GiB (g++ 12); templates grow.
GIB_PER_JOB = 1.5
# An sdist has no history: this file at its top says which commit it was made of.
COMMIT_FILE = "COMMIT"
RELEASE_SOURCE = "build/release.cpp"
# What only one of the two builds has, beside the kernels.
WITH_CUDA, WITHOUT_CUDA = "csrc/stream.cpp", "csrc/without_cuda.cpp"

CUDA_MAJOR = 13
NO_NVCC = (
    f"dwconv needs nvcc (CUDA {CUDA_MAJOR}) to build its kernels and found {{found}} in CUDA_HOME, "
    "CUDA_PATH, PATH, /usr/local/cuda or site-packages: install that CUDA toolkit, or run "
    "`pip install 'cuda-toolkit[nvcc,cccl]==13.0.*'`, or leave build isolation on, which does."
)


def wants_cuda() -> bool:
    """Whether kernels are compiled: on Linux, unless DWCONV_CUDA is 0. Elsewhere, and then, the
    extension takes CPU tensors, and says so of others."""
    return sys.platform == "linux" and os.environ.get("DWCONV_CUDA") != "0"


def cuda_library_dir(cuda: Path) -> Path | None:
    """Where a toolkit keeps its static runtime: lib64, or lib in the one from PyPI."""
    found = (
        cuda / name for name in ("lib64", "lib") if (cuda / name / "libcudart_static.a").is_file()
    )
    return next(found, None)


def cuda_major(cuda: Path) -> int | None:
    """The major version of a toolkit, by the header that tells its programs."""
    header = cuda / "include" / "cuda_runtime_api.h"
    text = header.read_text(errors="replace") if header.is_file() else ""
    version = re.search(r"^#define CUDART_VERSION +(\d+)", text, re.MULTILINE)
    return int(version[1]) // 1000 if version else None


def find_cuda() -> Path:
    """The CUDA toolkit to build with: the system's, else the one from PyPI. Those of another major
    version are passed over: kernels of a newer one need a newer driver, and older ones lack
    architectures."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    nvcc = shutil.which("nvcc")
    if nvcc:
        candidates.append(str(Path(nvcc).resolve().parent.parent))
    candidates.append("/usr/local/cuda")
    nvidia = importlib.util.find_spec("nvidia")
    for location in (nvidia.submodule_search_locations or []) if nvidia else []:
        candidates.append(os.path.join(location, "cu13"))
    others = []
    for candidate in candidates:
        if not candidate or not (Path(candidate) / "bin" / "nvcc").is_file():
            continue
        major = cuda_major(Path(candidate))
        if major != CUDA_MAJOR:
            others.append(f"that of CUDA {major or '(unknown version)'} in {candidate}")
        elif cuda_library_dir(Path(candidate)):
            return Path(candidate)
    sys.exit(NO_NVCC.format(found=" and ".join(others) or "none"))


def visible_architectures() -> str:
    """The compute capabilities of this machine's GPUs, or an empty string."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(sorted(set(listed.stdout.split())))


def choose_architectures() -> str:
    architectures = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not architectures:
        architectures = visible_architectures() or DEFAULT_ARCHITECTURES
        print(f"dwconv: building for {architectures} (TORCH_CUDA_ARCH_LIST is not set)", flush=True)
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
    return architectures


def limit_jobs() -> None:
    """Bounds parallel compilers by cores and memory, unless MAX_JOBS says otherwise."""
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        gib = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        jobs = min(jobs, int(gib / GIB_PER_JOB))
    except (AttributeError, OSError, ValueError):
        pass  # no such figure on this system: cores alone bound
    os.environ.setdefault("MAX_JOBS", str(max(1, jobs)))


def find_commit(root: Path) -> str:
    """The commit of a source tree, "-dirty" if tracked files differ from it, or "unknown"."""
    if (root / ".git").exists():  # not the repository of somebody who unpacked an sdist in it
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        try:
            said = subprocess.run(describe, cwd=root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.SubprocessError):
            return "unknown"
        return said.stdout.strip()
    recorded = root / COMMIT_FILE
    return recorded.read_text().strip() if recorded.is_file() else "unknown"


class SourceArchive(sdist):
    """An sdist that records its commit."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / COMMIT_FILE).write_text(find_commit(Path(__file__).parent) + "\n")


def stated_version(root: Path) -> str:
    """That of the package, which is stated in one place."""
    (version,) = re.findall(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.M)
    return str(version)


def write_release_source(root: Path) -> str:
    """The one source that knows version and commit: as flags, each commit would compile all."""
    source = root / RELEASE_SOURCE
    facts = {"dwconv_version": stated_version(root), "dwconv_commit": find_commit(root)}
    text = "".join(
        f'extern const char {name}[];\nconst char {name}[] = "{fact}";\n'
        for name, fact in facts.items()
    )
    if not source.is_file() or source.read_text() != text:
        source.parent.mkdir(exist_ok=True)
        source.write_text(text)
    return RELEASE_SOURCE


def find_sources(root: Path, cuda: bool) -> list[str]:
    """All that is compiled, but for the one with the commit."""
    patterns = ("*.cpp", "*.cu") if cuda else ("*.cpp",)
    found = {
        path.relative_to(root).as_posix()
        for pattern in patterns
        for path in root.glob(f"csrc/**/{pattern}")
    }
    return sorted(found - {WITHOUT_CUDA if cuda else WITH_CUDA})


def build_arguments() -> dict[str, object]:
    cuda = find_cuda() if wants_cuda() else None
    if cuda:
        os.environ["CUDA_HOME"] = str(cuda)

    import pybind11
    import torch
    from torch.utils import cpp_extension

    limit_jobs()
    root = Path(__file__).parent
    sources = [*find_sources(root, cuda is not None), write_release_source(root)]
    define = [
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        f'-DDWCONV_TORCH_TARGET="{TORCH_TARGET}"',
        f'-DDWCONV_TORCH_HEADERS="{torch.__version__}"',
        f'-DDWCONV_ARCHITECTURES="{choose_architectures() if cuda else "none"}"',
    ]
    # Error messages carry file names: those of the sources, not of the machine that built them.
    headers = Path(torch.__file__).parent / "include"
    neutral = [f"-ffile-prefix-map={folder}/=" for folder in (root.resolve(), headers)]
    flags = {"cxx": ["-std=c++20", "-O2", "-g0", "-fvisibility=hidden", *neutral, *define]}
    if sys.platform == "win32":
        flags["cxx"] = ["/std:c++20", "/O2", *define]
    libraries = ["torch", "torch_cpu"]
    make_extension = cpp_extension.CppExtension
    if cuda:
        cpp_extension.CUDA_HOME = str(cuda)  # None under a CPU-only torch
        flags["nvcc"] = [
            "-std=c++20",
            "-O2",  # of host code; device code is optimized in any case
            "-Xfatbin=-compress-all",
            # Architectures of a file by two: the last one takes minutes for those of a release.
            "--threads=2",
            "-Xcompiler=-fvisibility=hidden",
            *define,
        ]
        libraries += ["cudart_static", "rt", "pthread", "dl"]
        make_extension = cpp_extension.CUDAExtension
    extension = make_extension(
        "dwconv._C", sources, include_dirs=[pybind11.get_include()], extra_compile_args=flags
    )
    if cuda:
        extension.library_dirs.append(str(cuda_library_dir(cuda)))
    # Not the libraries that torch adds: no CUDA's, and of its own those with a stable ABI.
    extension.libraries = [] if sys.platform == "linux" else libraries
    if sys.platform == "linux":
        # torch loads its libraries RTLD_LOCAL, so weak symbols resolve only through our own
        # dependencies: torch must stay one even where no strong symbol asks for it.
        extension.extra_link_args = [
            "-Wl,--no-as-needed",
            "-Wl,--exclude-libs,ALL",
            "-Wl,--strip-all",
            *(f"-l{name}" for name in libraries),
        ]
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension, "sdist": SourceArchive},
    }


def compiles() -> bool:
    """Whether this command compiles; an sdist, for one, needs neither nvcc nor torch."""
    commands = {"build", "build_ext", "bdist_wheel", "editable_wheel", "develop", "install"}
    return not commands.isdisjoint(sys.argv)


setup(**(build_arguments() if compiles() else {"cmdclass": {"sdist": SourceArchive}}))
