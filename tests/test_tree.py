"""The shape of the source tree: who may include or import whom, and what stays out of it."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from problems import KERNELS

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "dwconv"


def relative(paths: list[Path], to: Path) -> list[str]:
    return sorted(path.relative_to(to).as_posix() for path in paths)


CPP_FILES = relative(
    [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh", ".inc"}], CSRC
)
TABLE = re.findall(
    r"^DWCONV_KERNEL\((\w+), *(\w+), *(\w+), *(\w+)\)", (CSRC / "kernels.inc").read_text(), re.M
)
FAMILIES = sorted({row[0] for row in TABLE})


def family_of(path: str) -> str | None:
    """The kernel family that a file belongs to, if any, by the start of its name."""
    stem = Path(path).stem
    owners = [name for name in FAMILIES if stem == name or stem.startswith(f"{name}_")]
    return max(owners, key=len) if owners else None


def kind_of_header(name: str) -> str:
    """std, torch, pybind11 or cuda."""
    if name.startswith(("torch/", "ATen/", "c10/", "caffe2/")):
        return "torch"
    if name.startswith("pybind11/"):
        return "pybind11"
    return "cuda" if re.match(r"(cuda|cub/|cute/|cutlass/|cooperative_groups|mma)", name) else "std"


def includes(path: str) -> tuple[list[str], set[str]]:
    """Files of csrc that a file includes, and the kinds of other headers."""
    text = (CSRC / path).read_text()
    ours = [
        (CSRC / path).parent.joinpath(name).resolve()
        for name in re.findall(r'^\s*#\s*include "([^"]+)"', text, re.M)
    ]
    for file in ours:
        assert file.is_file(), f"{path} includes {file}, which does not exist"
    kinds = {kind_of_header(name) for name in re.findall(r"^\s*#\s*include <([^>]+)>", text, re.M)}
    return relative(ours, CSRC), kinds - {"std"}


# The first pattern that matches a file says which files of csrc and which other headers it may
# include. No torch header is below ops.cpp, and no CUDA header outside cuda/.
INCLUDE_RULES: list[tuple[str, list[str], set[str]]] = [
    ("problem.h", [], set()),
    ("problem_text.h", ["problem.h"], set()),
    ("problem.cpp", ["problem_text.h"], set()),
    ("plan.h", ["problem.h"], set()),
    ("planner.h", ["plan.h"], set()),
    ("transpose.h", ["problem.h"], set()),
    (
        "planner.cpp",
        ["planner.h", "problem_text.h", "kernels.inc", "transpose.h", "families/family.h"],
        set(),
    ),
    ("kernels.inc", [], set()),
    ("families/*", ["problem.h", "plan.h", "families/*"], set()),
    ("tensor.h", ["problem_text.h"], {"torch"}),
    ("ops.cpp", ["tensor.h", "planner.h", "stream.h", "cuda/launch.h"], {"torch"}),
    ("stream.h", [], set()),
    ("stream.cpp", ["stream.h"], {"torch"}),
    ("without_cuda.cpp", ["stream.h", "cuda/launch.h"], set()),
    ("bind.cpp", ["planner.h", "problem_text.h", "cuda/launch.h"], {"pybind11"}),
    ("cuda/launch.h", ["plan.h"], set()),
    ("cuda/launcher.h", ["cuda/launch.h"], {"cuda"}),
    (
        "cuda/launch.cu",
        [
            "kernels.inc",
            "cuda/launch.h",
            "cuda/check.cuh",
            "cuda/transpose.h",
            *(f"cuda/{f}.h" for f in FAMILIES),
        ],
        {"cuda"},
    ),
    ("cuda/check.cu", ["cuda/check.cuh"], {"cuda"}),
    ("cuda/transpose*", ["transpose.h", "cuda/transpose.h", "cuda/*.cuh"], {"cuda"}),
    (
        "cuda/claim_counters.*",
        ["plan.h", "families/unit.h", "cuda/*.h", "cuda/check.cuh"],
        {"cuda"},
    ),
    *((f"cuda/{family}.h", ["cuda/launcher.h"], set()) for family in FAMILIES),
    ("cuda/instances/*.cu", [f"cuda/{family}*.cuh" for family in FAMILIES], set()),
    ("cuda/*.cuh", ["problem.h", "plan.h", "families/*.h", "cuda/*"], {"cuda"}),
]


def test_table_of_kernels_was_read() -> None:
    """The patterns above find what they look for."""
    assert len(TABLE) >= 24
    assert "generic" in FAMILIES
    assert "cuda/generic.cuh" in CPP_FILES


@pytest.mark.parametrize("path", CPP_FILES)
def test_includes_point_one_way(path: str) -> None:
    """Problem, plan, planner; tensors and operators above; CUDA behind launch.h."""
    rules = [rule for rule in INCLUDE_RULES if fnmatch(path, rule[0])]
    assert rules, f"no rule says what csrc/{path} may include"
    _, allowed, allowed_kinds = rules[0]
    ours, kinds = includes(path)
    assert [file for file in ours if not any(fnmatch(file, rule) for rule in allowed)] == []
    assert kinds <= allowed_kinds


@pytest.mark.parametrize("path", [p for p in CPP_FILES if p.startswith("cuda/instances/")])
def test_kernels_have_no_costly_headers(path: str) -> None:
    """nvcc goes through them three times for each of fifty files, and took 3.4 seconds, not 2.1."""
    costly = {"functional", "iostream", "map", "memory", "mutex", "optional", "shared_mutex"}
    costly |= {"sstream", "stdexcept", "string", "string_view", "unordered_map", "vector"}
    seen, waiting = set[str](), [path]
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting += includes(file)[0]
    assert len(seen) > 5
    for file in seen:
        text = (CSRC / file).read_text()
        assert costly.isdisjoint(re.findall(r"^\s*#\s*include <([^>]+)>", text, re.M)), file


@pytest.mark.parametrize("path", [path for path in CPP_FILES if family_of(path)])
def test_kernel_families_do_not_include_each_other(path: str) -> None:
    """A family includes helpers, and files of its own."""
    ours, _ = includes(path)
    assert {family_of(file) for file in ours} <= {None, family_of(path)}


def test_helpers_do_not_include_families() -> None:
    """The planner and the launcher reach families through one header each."""
    helpers = [p for p in CPP_FILES if p.startswith(("cuda/", "families/")) and not family_of(p)]
    helpers.remove("cuda/launch.cu")
    for path in helpers:
        assert {family_of(file) for file in includes(path)[0]} <= {None}


def test_every_row_of_the_table_is_instantiated_once() -> None:
    """Under cuda/instances, in the namespace of its family."""
    found = []
    for path in CSRC.glob("cuda/instances/*.cu"):
        text = path.read_text()
        (family,) = re.findall(r"^namespace dwconv::(\w+) \{", text, re.M)
        instances = re.findall(
            r"^template .*?\blaunch<Pass::(\w+), DType::(\w+), Layout::(\w+)>", text, re.M | re.S
        )
        found += [(family, *instance) for instance in instances]
    assert sorted(found) == sorted(TABLE)


# Together the last of all files would take a core 95 seconds, while the other has 25 left to do.
APART = {"toeplitz_wgrad_float16", "toeplitz_wgrad_bfloat16"}


@pytest.mark.parametrize("path", [*CSRC.glob("cuda/instances/*.cu")], ids=lambda path: path.stem)
def test_both_16_bit_types_are_compiled_together(path: Path) -> None:
    """Their machine code is nearly the same: apart it takes a third more of a wheel."""
    dtypes = set(re.findall(r"\bDType::(\w+)", path.read_text()))
    assert ("float16" in dtypes) == ("bfloat16" in dtypes) or path.stem in APART


def test_installed_extension_has_the_table_of_this_tree() -> None:
    """The suite tests what is installed: it must be built from here."""
    assert [row["name"] for row in KERNELS] == ["_".join(row) for row in TABLE]


ATOMIC = r"\batomic(Add|Sub|Exch|Min|Max|CAS|And|Or|Xor|Inc|Dec)\w*\("
# Which block computes a unit may differ from run to run; no sum goes over units that are claimed.
CLAIMS = "cuda/claims.cuh"
# Nor over tasks that a block's warps draw.
TASKS = "cuda/banded.cuh"


@pytest.mark.parametrize(
    ("banned", "excepted", "why"),
    [
        (r"\bgetenv\b", [], "settings come from the caller, not from the environment"),
        (ATOMIC, [TASKS, CLAIMS], "two runs must agree"),
        (r"\bred\.global|\batom\.", [], "two runs must agree"),
        (r"\bat::|\bc10::|torch/extension\.h", [], "only the stable ABI is used"),
    ],
)
def test_sources_do_without(banned: str, excepted: list[str], why: str) -> None:
    """House bans that a regular expression can see."""
    using = [path for path in CPP_FILES if re.search(banned, (CSRC / path).read_text())]
    assert using == excepted, why


def test_only_convolutions_claim() -> None:
    """A weight gradient's blocks have their units dealt out, in an order that is fixed."""
    users = [path for path in CPP_FILES if "claims.cuh" in (CSRC / path).read_text()]
    assert users == ["cuda/walk.cuh"]
    walks = [path for path in CPP_FILES if '"walk.cuh"' in (CSRC / path).read_text()]
    assert walks == ["cuda/tile.cuh", "cuda/tile_phases.cuh"]


def test_files_are_short() -> None:
    """400 lines at most: a longer file is two."""
    sources = [CSRC / path for path in CPP_FILES]
    for folder in ("dwconv", "tests", "examples", "benchmarks"):
        sources += (ROOT / folder).rglob("*.py")
    sources += [ROOT / "setup.py", ROOT / "Makefile"]
    assert [str(path) for path in sources if len(path.read_text().splitlines()) > 400] == []


MODULES = {
    ".".join(("dwconv", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in PACKAGE.rglob("*.py")
}
# The library, lowest first: each imports from those before it. Everything else is a tool.
LIBRARY = [
    "dwconv._ops",
    "dwconv.arguments",
    "dwconv.transforms",
    "dwconv.functional",
    "dwconv.nn",
    "dwconv.conversion",
    "dwconv.requirements",
    "dwconv",
]


def imports(module: str) -> set[str]:
    """Modules of this package that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if name in MODULES or name == "dwconv._C"}
            found |= submodules
            if len(submodules) < len(names):
                found.add(str(node.module))
    return {name for name in found if name.split(".")[0] == "dwconv"}


def test_library_imports_point_downward() -> None:
    """__init__ -> conversion -> nn -> functional -> transforms -> _ops -> _C, and never a tool;
    what is missing, anybody may say."""
    assert imports("dwconv._ops") == {"dwconv._C", "dwconv.requirements"}
    assert imports("dwconv.requirements") == set()
    for i, module in enumerate(LIBRARY[1:], start=1):
        assert imports(module) <= set(LIBRARY[:i])


def test_only_ops_imports_the_extension() -> None:
    """_C is what registers the operators; one module imports it."""
    assert [module for module in MODULES if "dwconv._C" in imports(module)] == ["dwconv._ops"]


def test_imports_have_no_cycle() -> None:
    """Tools included: modules can be put in an order in which each imports earlier ones only."""
    waiting = {module: imports(module) & MODULES.keys() - {module} for module in MODULES}
    while waiting:
        ready = [module for module, needs in waiting.items() if not needs & waiting.keys()]
        assert ready, f"imports in a circle: {sorted(waiting)}"
        for module in ready:
            del waiting[module]
