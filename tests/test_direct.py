"""Large filters by multiply-adds: what small problems do not reach, and what a plan says."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from large_filters import LARGE_FILTERS, large_filters, padded_by_half
from problems import DTYPES, PASSES, Problem, check_close, make_data, reference, run_pass

from dwconv import _C

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
PLANNED = ["float32", "float16", "bfloat16"]


same = partial(padded_by_half, bias=True)


# More units than blocks that run at a time; one to seven taps beyond the last 8, fewer than 8, and
# none; images that fill a warp's positions, share one, and are cut into segments and parts; filters
# of one tile of lanes, of several groups of a warp, and of several tiles; sums of a weight gradient
# that go to others on the way.
MANY_UNITS = [
    same(64, 32, (56, 56), (31, 31)),
    same(33, 40, (28, 28), (29, 25)),
    same(67, 64, (14, 14), (27, 26)),
    same(131, 96, (7, 7), (13, 13)),
    same(17, 60, (23, 55), (12, 12)),
    same(3, 90, (21, 61), (21, 3)),
    same(2, 70, (7, 121), (5, 17)),
    same(5, 40, (15, 39), (49, 52)),
    same(2, 30, (40, 130), (13, 63)),
    same(1, 9, (128, 128), (63, 63)),
    same(1, 3, (61, 1021), (15, 24)),
    same(1024, 3, (9, 31), (1, 22)),
    same(512, 2, (57, 24), (23, 1)),
    same(1, 300, (5, 5), (15, 14)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", PLANNED)
@pytest.mark.parametrize("problem", MANY_UNITS, ids=lambda problem: problem.id)
def test_many_units(
    problem: Problem, dtype: str, pass_: str, force_kernel: Callable[[str | None], None]
) -> None:
    """The error is that of rounding, or of summing in float32; twice the same bits."""
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"))
    with torch.backends.cudnn.flags(enabled=False):
        exact = reference(pass_, problem, data, device="cuda")
    force_kernel(f"direct_{pass_}_{dtype}_nchw")
    result, again = (run_pass(pass_, problem, data) for _ in range(2))
    rounding = float((exact.to(result.dtype).double() - exact).norm())
    summing = 3e-6 if pass_ == "backward_weight" else 1e-6
    bound = 1.1 * rounding + (summing * float(exact.norm()) if dtype == "float32" else 0)
    assert float((result.double() - exact).norm()) <= bound
    assert torch.equal(result, again)


@pytest.mark.gpu
@pytest.mark.parametrize("pass_", ["forward", "backward_input"])
@pytest.mark.parametrize("kernel", [(13, 12), (3, 16), (31, 31)], ids=str)
def test_nothing_spreads(
    kernel: tuple[int, int], pass_: str, force_kernel: Callable[[str | None], None]
) -> None:
    """No tap is made up: an Inf or NaN reaches what a direct sum takes it to, and no other."""
    problem = replace(same(3, 2, (40, 44), kernel), bias=False)
    data = make_data(problem, torch.float32, torch.device("cuda"))
    changed = data.input if pass_ == "forward" else data.grad_output
    for n, value in enumerate((float("inf"), float("-inf"), float("nan"))):
        changed[n, n % 2, 3 + 10 * n, 1 + 17 * n] = value
    expected = reference(pass_, problem, data)
    force_kernel(f"direct_{pass_}_float32_nchw")
    result = run_pass(pass_, problem, data).cpu()
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.isinf(), expected.isinf())


@pytest.mark.gpu
def test_long_sums_stay_exact(force_kernel: Callable[[str | None], None]) -> None:
    """A million products of a weight's gradient, in the bound of a few."""
    problem = Problem(batch=64, channels=2, size=(128, 128), kernel=(13, 3), padding=(6, 6, 1, 1))
    data = make_data(problem, torch.float32, torch.device("cuda"))
    force_kernel("direct_backward_weight_float32_nchw")
    check_close("backward_weight", problem, data, run_pass("backward_weight", problem, data))


def plan(problem: Problem, pass_: str, dtype: str = "float32", **options: Any) -> dict[str, Any]:
    arguments = problem.plan_arguments(pass_, dtype, "nchw")
    kernel = f"direct_{pass_}_{dtype}_nchw"
    return _C.plan(**{**H100, "kernel": kernel, **arguments, **options})


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@given(
    problem=st.one_of(st.sampled_from(LARGE_FILTERS), st.sampled_from(MANY_UNITS), large_filters()),
    pass_=st.sampled_from(PASSES),
    dtype=st.sampled_from(PLANNED),
    compute_capability=st.sampled_from([75, 80, 86, 89, 90, 100, 120]),
)
def test_units_cover_the_problem(
    problem: Problem, pass_: str, dtype: str, compute_capability: int
) -> None:
    """Every result, or tap, is some block's; on every architecture."""
    answer = plan(problem, pass_, dtype, compute_capability=compute_capability)
    tiling = answer["tiling"]
    assert answer["threads"] == 256
    assert 1 <= tiling["images"] <= problem.batch
    assert tiling["width"] % 8 == 0
    if pass_ == "backward_weight":
        tile = (4 * tiling["tile_rows"], 8 * tiling["columns"])
        assert tiling["tile_rows"] * tiling["columns"] <= 32
        # Of the filter, the taps that meet the image.
        met = [
            min(k, before + size) - max(0, before - result + 1)
            for k, before, size, result in zip(
                problem.kernel,
                problem.padding[::2],
                problem.size,
                problem.output_size[2:],
                strict=True,
            )
        ]
        tiles = ceil_div(max(met[0], 1), tile[0]) * ceil_div(max(met[1], 1), tile[1])
        assert answer["blocks"] == problem.channels * answer["slices"] * tiles
        sums = problem.kernel[0] * problem.kernel[1] + problem.bias
        partials = answer["slices"] > 1
        assert (
            answer["workspace_bytes"] == partials * 4 * answer["slices"] * problem.channels * sums
        )
        return
    rows, columns = problem.output_size[2:] if pass_ == "forward" else problem.size
    assert tiling["tile_rows"] in (1, 2, 4)
    assert answer["blocks"] == problem.channels * ceil_div(problem.batch, tiling["images"]) * (
        ceil_div(rows, min(tiling["rows"], rows)) * ceil_div(columns, tiling["width"])
    )


@pytest.mark.parametrize("pass_", PASSES)
def test_filters_that_others_take_are_theirs(pass_: str) -> None:
    """Up to 11 on either side; from 12 on either it is this family's in float32."""
    small = same(8, 64, (56, 56), (11, 11))
    for problem, family in [
        (small, "tile"),
        (replace(small, kernel=(12, 11)), "direct"),
        (replace(small, kernel=(3, 13)), "direct"),
    ]:
        answer = plan(problem, pass_, kernel=None)
        assert answer["kernel"].split("_")[0] == family


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (2, 1)}, "it takes stride 1"),
        ({"dilation": (1, 2)}, "it takes no dilation"),
        ({"multiplier": 2}, "it takes one filter per channel"),
        ({"size": (20_000, 56)}, "are too large for it"),
        ({"size": (600, 600), "kernel": (500, 500)}, "do not fit the shared memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_are_sentences(change: dict[str, Any], sentence: str, pass_: str) -> None:
    if "kernel" in change and pass_ == "backward_weight":
        plan(replace(Problem(), **change), pass_)  # tiles of its filter are as small as others'
        return
    with pytest.raises(ValueError, match="cannot take the problem") as caught:
        plan(replace(same(2, 3, (56, 56), (13, 13)), **change), pass_)
    assert sentence in str(caught.value)
