"""Images turned round for the tensor cores: what the planner makes of it."""

from dataclasses import replace
from typing import Any

import pytest
from large_filters import LARGE_FILTERS, padded_by_half
from problems import Problem

from dwconv import _C

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
CONVOLUTIONS = ["forward", "backward_input"]


def plan(problem: Problem, pass_: str, **options: Any) -> dict[str, Any]:
    arguments = problem.plan_arguments(pass_, "float16", "nchw")
    return _C.plan(**{**H100, **arguments, **options})


def forced(problem: Problem, pass_: str, **options: Any) -> dict[str, Any]:
    return plan(problem, pass_, kernel=f"columns_{pass_}_float16_nchw", **options)


@pytest.mark.parametrize(
    ("problem", "convolution", "weight"),
    [
        # high filters of few columns
        (padded_by_half(64, 124, (56, 56), (51, 5)), "columns", "columns"),
        # rows of an odd number of elements
        (padded_by_half(64, 300, (31, 31), (15, 15)), "columns", "columns"),
        (padded_by_half(12, 133, (121, 87), (42, 33)), "columns", "hankel"),
        # few images
        (padded_by_half(2, 281, (25, 67), (57, 27)), "columns", "columns"),
        # a weight gradient of few columns
        (padded_by_half(19, 262, (45, 18), (34, 24)), "columns", "columns"),
        # many images in whole pieces; few rows
        (padded_by_half(64, 128, (56, 56), (31, 31)), "banded", "hankel"),
        (padded_by_half(64, 512, (14, 14), (27, 27)), "dense", "outer"),
        (padded_by_half(64, 256, (28, 28), (7, 7)), "toeplitz", "toeplitz"),
    ],
    ids=str,
)
def test_where_it_is_chosen(problem: Problem, convolution: str, weight: str) -> None:
    for pass_ in CONVOLUTIONS:
        assert plan(problem, pass_)["kernel"].split("_")[0] == convolution
    assert plan(problem, "backward_weight")["kernel"].split("_")[0] == weight


@pytest.mark.parametrize("pass_", CONVOLUTIONS)
@pytest.mark.parametrize("problem", LARGE_FILTERS, ids=lambda problem: problem.id)
def test_units_cover_the_problem(problem: Problem, pass_: str) -> None:
    """Some channels of some images, or a band of rows of one channel's: never more blocks."""
    answer = forced(problem, pass_)
    tiling = answer["tiling"]
    rows = (problem.output_size if pass_ == "forward" else problem.input_size)[2]
    bands = -(-rows // tiling["rows"])
    assert bands == 1 or tiling["planes"] == 1
    assert tiling["columns"] <= tiling["images"]
    units = -(-problem.batch // tiling["images"]) * -(-problem.channels // tiling["planes"]) * bands
    assert 1 <= answer["blocks"] <= units


@pytest.mark.parametrize("problem", LARGE_FILTERS, ids=lambda problem: problem.id)
def test_slices_cover_the_images(problem: Problem) -> None:
    """A block has some of a filter's columns, of one channel, and a share of the images."""
    if max(problem.size[0], problem.output_size[2]) > 64:
        with pytest.raises(ValueError, match="it takes images of up to 64 rows"):
            forced(problem, "backward_weight")
        return
    answer = forced(problem, "backward_weight")
    assert 1 <= answer["slices"] <= -(-problem.batch // answer["tiling"]["images"])
    assert answer["blocks"] % (problem.channels * answer["slices"]) == 0


@pytest.mark.parametrize("pass_", [*CONVOLUTIONS, "backward_weight"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (2, 1)}, "it takes stride 1"),
        ({"dilation": (1, 2)}, "it takes no dilation"),
        ({"multiplier": 2}, "it takes one filter per channel"),
        ({"size": (20, 20_000)}, "images, batch or channels are too large for it"),
        ({"size": (20, 16_000)}, "do not fit the shared memory of the device"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_are_sentences(change: dict[str, Any], sentence: str, pass_: str) -> None:
    problem = replace(padded_by_half(2, 3, (20, 20), (13, 13)), **change)
    with pytest.raises(ValueError, match="cannot take the problem") as caught:
        forced(problem, pass_)
    assert sentence in str(caught.value)


def test_strictly_where_the_filter_reaches_all() -> None:
    """No zero of a matrix meets a number of the image then."""
    assert forced(padded_by_half(64, 4, (7, 7), (13, 13)), "forward", strict_nonfinite=True)
    for pass_, kernel in ("forward", (13, 12)), ("backward_weight", (13, 13)):
        with pytest.raises(ValueError, match="it may spread Inf and NaN further"):
            forced(padded_by_half(64, 4, (7, 7), kernel), pass_, strict_nonfinite=True)
