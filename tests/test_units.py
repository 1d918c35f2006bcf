"""Problems of many units of work: more units than blocks, and threads that take several columns."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from problems import (
    DTYPES,
    PASSES,
    Problem,
    check_all,
    make_data,
    poisoned_memory,
    run,
    run_pass,
)

from dwconv import _C

ForceKernel = Callable[[str | None], None]
every_pass = pytest.mark.parametrize("pass_", PASSES)


def many_planes(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int
) -> Problem:
    """Units of it hold several planes. Padded by half of what the filter spans."""
    rows, columns = (dilation * (length // 2) for length in kernel)
    return Problem(
        batch=64,
        channels=24,
        size=size,
        kernel=kernel,
        stride=(stride, stride),
        dilation=(dilation, dilation),
        padding=(rows, rows, columns, columns),
        bias=stride == 1,
    )


# Threads of the tile family take several columns of float32, which share what they read: filters
# of each width, strides, dilations, columns that are no multiple of theirs.
SHARED_COLUMNS = [
    many_planes(*shape)
    for shape in [
        ((29, 25), (3, 3), 1, 1),
        ((27, 51), (4, 4), 1, 1),
        ((31, 45), (5, 5), 1, 1),
        ((30, 35), (6, 6), 1, 1),
        ((29, 55), (7, 7), 1, 1),
        ((19, 38), (8, 8), 1, 1),
        ((31, 43), (9, 9), 1, 1),
        ((17, 29), (10, 10), 1, 1),
        ((59, 45), (11, 11), 1, 1),
        ((23, 39), (4, 11), 1, 1),
        ((40, 25), (11, 4), 1, 1),
        ((57, 59), (11, 11), 2, 1),
        ((27, 28), (7, 7), 1, 3),
        ((37, 32), (11, 11), 1, 2),
        ((35, 33), (5, 6), 1, 4),
    ]
]
# And fewer where a dilation leaves few, in 16 bits too.
FEW_COLUMNS = [
    many_planes(*shape)
    for shape in [
        ((33, 33), (3, 3), 1, 6),
        ((25, 31), (3, 3), 1, 12),
        ((67, 17), (5, 3), 1, 4),
        ((9, 52), (1, 3), 1, 3),
    ]
]
# Most rows of the filters meet no row of the image.
FEW_ROWS = [
    many_planes(*shape)
    for shape in [
        ((6, 52), (10, 11), 1, 3),
        ((5, 41), (11, 9), 1, 1),
        ((7, 30), (3, 3), 1, 5),
        ((4, 24), (7, 7), 1, 1),
    ]
]

# More units than blocks, which take them in turn.
MANY_UNITS = {
    "tile": Problem(batch=257, channels=24, size=(40, 41), padding=(1, 1, 1, 1), bias=True),
    "plane": Problem(batch=1031, channels=72, size=(14, 14), padding=(1, 1, 1, 1), bias=True),
    "toeplitz": Problem(batch=300, channels=24, size=(48, 48), padding=(1, 1, 1, 1), bias=True),
}

# Units that are claimed.
CLAIMED = {
    "1 x 11": (
        "float32",
        Problem(
            batch=128, channels=96, size=(56, 56), kernel=(1, 11), padding=(0, 0, 5, 5), bias=True
        ),
    ),
    "stride 2": (
        "float32",
        Problem(
            batch=128, channels=144, size=(56, 56), kernel=(5, 5), stride=(2, 2), padding=(2,) * 4
        ),
    ),
    "float16": (
        "float16",
        Problem(batch=256, channels=96, size=(56, 56), padding=(1, 1, 1, 1), bias=True),
    ),
}

# Weight gradients whose channels have a team of blocks each. Batches that are no multiple of what
# a team takes at a time, channels that are none of what a block has.
TEAMS = {
    "tile": (
        "float32",
        Problem(batch=61, channels=123, size=(28, 28), padding=(1, 1, 1, 1), bias=True),
    ),
    "plane": (
        "float16",
        Problem(
            batch=67, channels=123, size=(14, 14), kernel=(5, 5), padding=(2, 2, 2, 2), bias=True
        ),
    ),
    "toeplitz": (
        "bfloat16",
        Problem(
            batch=131, channels=65, size=(14, 14), kernel=(5, 5), padding=(2, 2, 2, 2), bias=True
        ),
    ),
}


def plan(problem: Problem, pass_: str, dtype: str, family: str, **device: int) -> dict[str, Any]:
    arguments = problem.plan_arguments(pass_, dtype, "nchw")
    on: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132, **device}
    return _C.plan(**arguments, kernel=f"{family}_{pass_}_{dtype}_nchw", **on)


def check(problem: Problem, pass_: str, dtype: str, family: str, force_kernel: ForceKernel) -> None:
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"), "nchw")
    force_kernel(f"{family}_{pass_}_{dtype}_nchw")
    with poisoned_memory():
        results = run(pass_, problem, data)
    check_all(pass_, problem, data, results)


@pytest.mark.parametrize("pass_", ["forward", "backward_weight"])
@pytest.mark.parametrize("problem", SHARED_COLUMNS, ids=lambda problem: problem.id)
def test_threads_take_several_columns(problem: Problem, pass_: str) -> None:
    """In float32; in 16 bits where tensor cores may not do, for the filter is wide and dilated."""
    assert plan(problem, pass_, "float32", "tile")["tiling"]["columns"] == 5
    too_wide = problem.dilation[1] > 1 and problem.kernel[1] >= 6
    columns = plan(problem, pass_, "float16", "tile")["tiling"]["columns"]
    assert columns == 5 if too_wide else columns in (1, 4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("pass_", ["forward", "backward_weight"])
def test_threads_take_few_columns(pass_: str, dtype: str) -> None:
    assert plan(FEW_COLUMNS[0], pass_, dtype, "tile")["tiling"]["columns"] == 3


@every_pass
@pytest.mark.parametrize("family", MANY_UNITS)
def test_whole_planes_are_taken_in_turn(family: str, pass_: str) -> None:
    """Blocks go through memory together; those of a weight gradient keep their channels."""
    problem = MANY_UNITS[family]
    answer = plan(problem, pass_, "float16" if family == "toeplitz" else "float32", family)
    assert answer["in_turn"] == (pass_ != "backward_weight")
    assert answer["sums_overlap"] == (answer["workspace_bytes"] > 0)
    tiling = answer["tiling"]
    units = -(-problem.channels // tiling["planes"]) * -(-problem.batch // tiling["images"])
    assert answer["blocks"] < units


@pytest.mark.parametrize("pass_", ["forward", "backward_input"])
@pytest.mark.parametrize("name", CLAIMED)
def test_units_are_claimed(name: str, pass_: str) -> None:
    """A queue has as many units as the others, and as many blocks."""
    dtype, problem = CLAIMED[name]
    answer = plan(problem, pass_, dtype, "tile")
    assert answer["in_turn"]
    tiling = answer["tiling"]
    units = -(-problem.channels // tiling["planes"]) * -(-problem.batch // tiling["images"])
    assert answer["queues"] > 0
    assert tiling["served"]
    assert answer["threads"] == tiling["threads"] + 32
    assert units % answer["queues"] == answer["blocks"] % answer["queues"] == 0
    assert units >= 6 * answer["blocks"]


@pytest.mark.parametrize("device", [{"compute_capability": 80}, {"compiled_for": 80}], ids=str)
@pytest.mark.parametrize("name", CLAIMED)
def test_older_code_claims_nothing(name: str, device: dict[str, int]) -> None:
    """Nor has it warps that serve."""
    dtype, problem = CLAIMED[name]
    answer = plan(problem, "forward", dtype, "tile", **device)
    assert answer["queues"] == 0
    assert not answer["tiling"]["served"]


@pytest.mark.gpu
@pytest.mark.parametrize("pass_", ["forward", "backward_input"])
@pytest.mark.parametrize("name", CLAIMED)
def test_claimed_units_are_exact(name: str, pass_: str, force_kernel: ForceKernel) -> None:
    """Once and again: a launch leaves its counters as it found them."""
    dtype, problem = CLAIMED[name]
    for _ in range(3):
        check(problem, pass_, dtype, "tile", force_kernel)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CLAIMED)
def test_launches_side_by_side_claim_their_own_units(name: str, force_kernel: ForceKernel) -> None:
    """On several streams, and in a graph that is replayed beside them."""
    dtype, problem = CLAIMED[name]
    problem = replace(problem, batch=problem.batch // 2)  # so that launches fit beside each other
    assert plan(problem, "forward", dtype, "tile")["queues"] > 0
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"), "nchw")
    force_kernel(f"tile_forward_{dtype}_nchw")
    expected = run_pass("forward", problem, data)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run_pass("forward", problem, data)
    streams = [torch.cuda.Stream() for _ in range(4)]  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    results = []
    for turn in range(12):
        with torch.cuda.stream(streams[turn % len(streams)]):
            if turn % len(streams) == 0:
                graph.replay()
            else:
                results.append(run_pass("forward", problem, data))
    torch.cuda.synchronize()
    for result in [captured, *results]:
        assert torch.equal(result, expected)


@pytest.mark.parametrize("family", TEAMS)
def test_channels_have_a_team_of_blocks(family: str) -> None:
    """Which adds up without a workspace, on devices whose blocks reach each other's memory."""
    dtype, problem = TEAMS[family]
    answer = plan(problem, "backward_weight", dtype, family)
    groups = -(-problem.channels // answer["tiling"]["planes"])
    assert answer["team"] > 1
    assert answer["blocks"] == answer["team"] * groups
    assert answer["workspace_bytes"] == 0


@pytest.mark.parametrize(
    ("problem", "pass_", "dtype", "family", "last"),
    [
        (TEAMS["tile"][1], "backward_weight", "float32", "tile", True),
        (TEAMS["tile"][1], "forward", "float32", "tile", True),
        (TEAMS["tile"][1], "backward_input", "float32", "tile", False),
        (
            Problem(batch=128, channels=144, size=(56, 56)),
            "backward_weight",
            "float32",
            "tile",
            False,
        ),
        (Problem(channels=9, size=(300, 300)), "backward_weight", "float32", "tile", False),
        (
            Problem(batch=64, channels=144, size=(56, 56), stride=(2, 2)),
            "forward",
            "float16",
            "toeplitz",
            True,
        ),
        (Problem(batch=64, channels=144, size=(56, 56)), "forward", "float16", "toeplitz", False),
    ],
    ids=["small", "forward", "input gradient", "large", "bands", "stride 2", "stride 1"],
)
def test_who_reads_for_the_last_time(
    problem: Problem, pass_: str, dtype: str, family: str, last: bool
) -> None:
    """Weight gradients and forward passes, of whole planes up to some size."""
    assert plan(problem, pass_, dtype, family)["last_use"] == last


@pytest.mark.parametrize("device", [{"compute_capability": 80}, {"compiled_for": 80}], ids=str)
@pytest.mark.parametrize("family", TEAMS)
def test_older_code_has_no_teams(family: str, device: dict[str, int]) -> None:
    """Nor do its kernels overlap, also where the driver translates it for a newer device."""
    dtype, problem = TEAMS[family]
    answer = plan(problem, "backward_weight", dtype, family, **device)
    assert answer["team"] == 1
    assert not answer["sums_overlap"]


@pytest.mark.gpu
@pytest.mark.parametrize("family", TEAMS)
def test_teams_are_exact_and_repeatable(family: str, force_kernel: ForceKernel) -> None:
    dtype, problem = TEAMS[family]
    check(problem, "backward_weight", dtype, family, force_kernel)
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"), "nchw")
    first, second = (run("backward_weight", problem, data) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@every_pass
@pytest.mark.parametrize("problem", SHARED_COLUMNS, ids=lambda problem: problem.id)
def test_several_columns_are_exact(problem: Problem, pass_: str, force_kernel: ForceKernel) -> None:
    check(problem, pass_, "float32", "tile", force_kernel)


@pytest.mark.gpu
@every_pass
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("problem", FEW_COLUMNS + FEW_ROWS, ids=lambda problem: problem.id)
def test_few_columns_and_rows_are_exact(
    problem: Problem, dtype: str, pass_: str, force_kernel: ForceKernel
) -> None:
    check(problem, pass_, dtype, "tile", force_kernel)


@pytest.mark.gpu
@every_pass
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", MANY_UNITS)
def test_units_in_turn_are_exact(
    family: str, dtype: str, pass_: str, force_kernel: ForceKernel
) -> None:
    if family == "toeplitz" and dtype == "float32":
        family = "tile"
    check(MANY_UNITS[family], pass_, dtype, family, force_kernel)
