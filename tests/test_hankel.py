"""Weight gradients of large filters, row by row: what the planner makes of it."""

from dataclasses import replace
from typing import Any

import pytest
from large_filters import LARGE_FILTERS, padded_by_half
from problems import Problem

from dwconv import _C

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
ROW = "hankel_backward_weight_float16_nchw"


def plan(problem: Problem, **options: Any) -> dict[str, Any]:
    arguments = problem.plan_arguments("backward_weight", "float16", "nchw")
    return _C.plan(**{**H100, **arguments, **options})


@pytest.mark.parametrize(
    ("problem", "family"),
    [
        # wide filters of few rows
        (padded_by_half(64, 124, (56, 56), (5, 51)), "hankel"),
        # rows of an odd number of elements, many of them
        (padded_by_half(12, 133, (121, 87), (42, 33)), "hankel"),
        # rows of more than one unit
        (padded_by_half(2, 64, (512, 1024), (31, 31)), "hankel"),
        (padded_by_half(64, 128, (56, 56), (31, 31)), "hankel"),
        (padded_by_half(64, 256, (28, 28), (29, 29)), "outer"),
        (padded_by_half(64, 256, (28, 28), (7, 7)), "toeplitz"),
    ],
    ids=str,
)
def test_where_it_is_chosen(problem: Problem, family: str) -> None:
    assert plan(problem)["kernel"].split("_")[0] == family


@pytest.mark.parametrize("problem", LARGE_FILTERS, ids=lambda problem: problem.id)
def test_units_cover_the_problem(problem: Problem) -> None:
    """A block has a channel, or a tile of its filter, and a share of the units."""
    answer = plan(problem, kernel=ROW)
    tiling = answer["tiling"]
    assert tiling["images"] in (1, 2, 4, 8)
    assert tiling["images"] == 1 or tiling["rows"] >= problem.size[0]
    bands = -(-problem.size[0] // tiling["rows"])
    spans = -(-problem.output_size[3] // 192) if tiling["served"] else 1  # as wide as a box holds
    units = -(-problem.batch // tiling["images"]) * bands * spans
    assert 1 <= answer["slices"] <= units
    assert answer["blocks"] % (problem.channels * answer["slices"]) == 0


@pytest.mark.parametrize(
    ("columns", "kernel", "compute_capability", "served"),
    [
        (56, 31, 90, True),
        (1024, 31, 100, True),
        (56, 30, 90, False),  # the output gradient has 57
        (28, 31, 90, False),
        (56, 31, 80, False),
    ],
)
def test_the_copy_engine_brings_whole_pieces(
    columns: int, kernel: int, compute_capability: int, served: bool
) -> None:
    """Rows of multiples of 16 bytes, from sm_90 on."""
    problem = padded_by_half(16, 256, (64, columns), (31, kernel))
    answer = plan(problem, kernel=ROW, compute_capability=compute_capability)
    assert answer["tiling"]["served"] is served


def test_images_larger_than_any_shared_memory() -> None:
    """What eight of them would take is beyond 32 bits."""
    tiling = plan(padded_by_half(8, 1, (9000, 9000), (31, 31)), kernel=ROW)["tiling"]
    assert tiling["images"] == 1
    assert tiling["rows"] < 200


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (2, 1)}, "it takes stride 1"),
        ({"dilation": (1, 2)}, "it takes no dilation"),
        ({"multiplier": 2}, "it takes one filter per channel"),
        ({"size": (20, 20_000)}, "images, batch or channels are too large for it"),
        ({"size": (20, 15_999)}, "its rows do not fit the shared memory of the device"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_are_sentences(change: dict[str, Any], sentence: str) -> None:
    problem = replace(padded_by_half(2, 3, (20, 20), (13, 13)), **change)
    with pytest.raises(ValueError, match="cannot take the problem") as caught:
        plan(problem, kernel=ROW)
    assert sentence in str(caught.value)


def test_older_devices_have_no_tensor_cores_for_it() -> None:
    with pytest.raises(ValueError, match="it needs the tensor cores of sm_80 or newer"):
        plan(padded_by_half(2, 3, (20, 20), (13, 13)), kernel=ROW, compute_capability=75)
