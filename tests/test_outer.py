"""Weight gradients of narrow images on the tensor cores: what small problems do not reach."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from large_filters import padded_by_half
from problems import DTYPES, Problem, make_data, reference, run, run_pass

from dwconv import _C

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
ROW = "outer_backward_weight_{}_nchw"


same = partial(padded_by_half, bias=True)


# More groups of channels than blocks that run at a time, several units of each, the last with fewer
# images; rows of an even and of an odd number of elements, of each number of columns that there are
# kernels for; filters of one warp and of many, higher than the image and lower; few channels, whose
# images blocks share; images of so many rows that sums are put down on the way.
PROBLEMS = [
    same(67, 1100, (7, 7), (13, 13)),
    same(33, 2300, (8, 6), (5, 15)),
    same(16, 700, (5, 8), (3, 3)),
    same(40, 530, (14, 14), (27, 27)),
    same(17, 601, (13, 15), (12, 31)),
    same(64, 300, (28, 28), (29, 29)),
    same(50, 277, (30, 31), (21, 17)),
    same(5, 403, (9, 29), (13, 5)),
    same(1, 300, (20, 17), (13, 13)),
    same(300, 3, (14, 13), (13, 12)),
    same(513, 2, (27, 32), (31, 63)),
    same(1601, 4, (8, 8), (14, 14)),
    same(40, 40, (90, 9), (51, 5)),
    replace(same(40, 300, (20, 20), (13, 13)), padding=(0, 0, 0, 0)),
    replace(same(40, 300, (6, 6), (12, 12)), padding=(20, 5, 5, 20)),
    replace(same(19, 70, (14, 14), (16, 16)), padding=(0, 15, 15, 0)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_gradients(
    problem: Problem, dtype: str, force_kernel: Callable[[str | None], None]
) -> None:
    """The error is that of rounding; the bias's is right as well; twice the same bits."""
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"))
    with torch.backends.cudnn.flags(enabled=False):
        exact = reference("backward_weight", replace(problem, bias=False), data, device="cuda")
    force_kernel(ROW.format(dtype))
    weight, bias = run("backward_weight", problem, data)
    again = run("backward_weight", problem, data)[0]
    for result, expected in (weight, exact), (bias, data.grad_output.double().sum((0, 2, 3))):
        rounding = float((expected.to(result.dtype).double() - expected).norm())
        assert float((result.double() - expected).norm()) <= 1.1 * rounding + 1e-4 * float(
            expected.norm()
        )
    assert torch.equal(weight, again)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(7, 7), (14, 13), (28, 30)], ids=str)
def test_only_rows_of_the_filter_spread(
    size: tuple[int, int], force_kernel: Callable[[str | None], None]
) -> None:
    """An Inf or NaN of the image reaches the taps that meet it; in their columns, others' too."""
    problem = replace(same(19, 2, size, (25, 27)), bias=False)
    data = make_data(problem, torch.float16, torch.device("cuda"))
    met = torch.zeros(problem.input_size, device="cuda")
    for n, value in (3, float("inf")), (17, float("nan")):
        data.input[n, n % 2, n % size[0], 2] = value
        met[n, n % 2, n % size[0], 2] = 1
    ones = data._replace(input=met, grad_output=torch.ones_like(data.grad_output).float())
    expected = reference("backward_weight", problem, ones, device="cuda") > 0
    force_kernel(ROW.format("float16"))
    reached = ~run_pass("backward_weight", problem, data).isfinite()
    assert torch.equal(reached & expected, expected)
    assert torch.equal(reached & expected.any(2, keepdim=True), reached)


def plan(problem: Problem, dtype: str = "float16", **options: Any) -> dict[str, Any]:
    arguments = problem.plan_arguments("backward_weight", dtype, "nchw")
    return _C.plan(**{**H100, **arguments, **options})


@pytest.mark.parametrize(
    ("problem", "family"),
    [
        (same(64, 512, (14, 14), (27, 27)), "outer"),
        (same(64, 1024, (7, 7), (13, 13)), "outer"),
        (same(64, 256, (28, 28), (29, 29)), "outer"),
        (same(64, 128, (56, 56), (31, 31)), "hankel"),
        (same(64, 256, (28, 28), (3, 3)), "toeplitz"),
    ],
    ids=str,
)
def test_narrow_images_with_large_filters(problem: Problem, family: str) -> None:
    assert plan(problem)["kernel"].split("_")[0] == family


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_units_cover_the_problem(problem: Problem) -> None:
    """A warp for each channel of a unit and each of the parts of its filter's rows."""
    answer = plan(problem, kernel=ROW.format("float16"))
    channels = answer["tiling"]["planes"]
    assert answer["tiling"]["images"] == 16
    assert answer["threads"] % (32 * channels) == 0
    groups = -(-problem.channels // channels)
    assert 1 <= answer["blocks"] <= groups * -(-problem.batch // 16) * 8


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (2, 1)}, "it takes stride 1"),
        ({"dilation": (1, 2)}, "it takes no dilation"),
        ({"multiplier": 2}, "it takes one filter per channel"),
        ({"size": (20, 33)}, "it takes images of up to 32 columns"),
        ({"size": (40, 32), "kernel": (51, 13)}, "its filters have too many rows for it"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_are_sentences(change: dict[str, Any], sentence: str) -> None:
    problem = replace(same(2, 3, (20, 20), (13, 13)), **change)
    with pytest.raises(ValueError, match="cannot take the problem") as caught:
        plan(problem, kernel=ROW.format("float16"))
    assert sentence in str(caught.value)
