"""Weight gradients of large filters that add over rows of images: what the planner makes of it."""

from dataclasses import replace
from typing import Any

import pytest
from large_filters import LARGE_FILTERS, padded_by_half
from problems import Problem

from dwconv import _C

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
ROW = "lines_backward_weight_float16_nchw"


def plan(problem: Problem, **options: Any) -> dict[str, Any]:
    arguments = problem.plan_arguments("backward_weight", "float16", "nchw")
    return _C.plan(**{**H100, **arguments, **options})


@pytest.mark.parametrize(
    ("problem", "family"),
    [
        # wide filters of few rows
        (padded_by_half(64, 124, (56, 56), (5, 51)), "lines"),
        # rows of an odd number of elements, many of them
        (padded_by_half(12, 133, (121, 87), (42, 33)), "lines"),
        # few rows, which a product takes of several images
        (padded_by_half(25, 223, (7, 81), (49, 39)), "lines"),
        (padded_by_half(64, 128, (56, 56), (31, 31)), "banded"),
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
    assert tiling["images"] in (1, 2, 4, 8, 16)
    assert tiling["images"] == 1 or tiling["rows"] == problem.output_size[2]
    units = -(-problem.batch // tiling["images"]) * -(-problem.output_size[2] // tiling["rows"])
    assert 1 <= answer["slices"] <= units
    assert answer["blocks"] % (problem.channels * answer["slices"]) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (2, 1)}, "it takes stride 1"),
        ({"dilation": (1, 2)}, "it takes no dilation"),
        ({"multiplier": 2}, "it takes one filter per channel"),
        ({"size": (20, 20_000)}, "images, batch or channels are too large for it"),
        ({"size": (20, 16_000)}, "its rows do not fit the shared memory of the device"),
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
