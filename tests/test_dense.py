"""Large filters of small images as one matrix: what small problems do not reach."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from large_filters import padded_by_half
from problems import DTYPES, Problem, make_data, reference, run_pass

from dwconv import _C

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
PASSES = ["forward", "backward_input"]


# More units than all blocks hold at a time, the last of a group with fewer images, the last group
# with fewer channels; planes of an even and of an odd number of elements, of one product's elements
# and of all that there are kernels for; more results than elements, and fewer.
PROBLEMS = [
    padded_by_half(67, 1100, (7, 7), (13, 13)),
    padded_by_half(33, 1501, (8, 8), (15, 15)),
    padded_by_half(130, 300, (3, 5), (13, 3)),
    padded_by_half(64, 512, (14, 14), (27, 27)),
    padded_by_half(33, 333, (13, 15), (13, 31)),
    padded_by_half(1, 700, (13, 16), (13, 13)),
    padded_by_half(300, 3, (7, 29), (5, 13)),
    padded_by_half(5, 5, (1, 200), (1, 63)),
    replace(padded_by_half(40, 300, (14, 14), (13, 13)), padding=(0, 0, 0, 0)),
    replace(padded_by_half(40, 300, (6, 6), (12, 12)), padding=(12, 5, 5, 12)),
    replace(padded_by_half(19, 70, (14, 14), (16, 16)), padding=(0, 15, 15, 0)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_many_units(
    problem: Problem, dtype: str, pass_: str, force_kernel: Callable[[str | None], None]
) -> None:
    """The error is that of rounding, wherever a unit is in a block's run; twice the same bits."""
    problem = replace(problem, bias=pass_ == "forward")
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"))
    with torch.backends.cudnn.flags(enabled=False):
        exact = reference(pass_, problem, data, device="cuda")
    force_kernel(f"dense_{pass_}_{dtype}_nchw")
    result, again = (run_pass(pass_, problem, data) for _ in range(2))
    rounding = float((exact.to(result.dtype).double() - exact).norm())
    assert float((result.double() - exact).norm()) <= 1.1 * rounding
    assert torch.equal(result, again)


def plan(problem: Problem, pass_: str = "forward", **options: Any) -> dict[str, Any]:
    arguments = problem.plan_arguments(pass_, "float16", "nchw")
    return _C.plan(**{**H100, **arguments, **options})


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    ("problem", "family"),
    [
        (padded_by_half(64, 512, (14, 14), (27, 27)), "dense"),
        (padded_by_half(64, 1024, (7, 7), (13, 13)), "dense"),
        (padded_by_half(64, 256, (28, 28), (29, 29)), "banded"),
        (padded_by_half(3, 512, (14, 14), (13, 13)), "banded"),
        (padded_by_half(64, 1024, (7, 7), (3, 3)), "plane"),
    ],
    ids=str,
)
def test_small_images_with_large_filters(problem: Problem, family: str, pass_: str) -> None:
    assert plan(problem, pass_)["kernel"].split("_")[0] == family


def test_strictly_where_the_filter_reaches_all() -> None:
    for kernel, family in ((13, 13), "dense"), ((13, 12), "direct"):
        problem = padded_by_half(64, 1024, (7, 7), kernel)
        assert plan(problem, strict_nonfinite=True)["kernel"].split("_")[0] == family


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (2, 1)}, "it takes stride 1"),
        ({"dilation": (1, 2)}, "it takes no dilation"),
        ({"multiplier": 2}, "it takes one filter per channel"),
        ({"size": (15, 14)}, "it takes images of up to 208 elements"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_are_sentences(change: dict[str, Any], sentence: str) -> None:
    problem = replace(padded_by_half(2, 3, (14, 14), (13, 13)), **change)
    with pytest.raises(ValueError, match="cannot take the problem") as caught:
        plan(problem, kernel="dense_forward_float16_nchw")
    assert sentence in str(caught.value)
