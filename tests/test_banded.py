"""Large filters on the tensor cores: what small problems do not reach."""

from collections.abc import Callable

import pytest
import torch
from large_filters import padded_by_half
from problems import DTYPES, PASSES, Problem, make_data, reference, run_pass

pytestmark = pytest.mark.gpu

# More units than all blocks hold at a time, so that each stage of shared memory is filled again.
# Rows come 16, 8, 4 and 2 bytes at a time, in tiles of one block of columns to sixteen; those of 39
# and 55 elements were once told of by a barrier at whichever address came of dividing a warp.
MANY_UNITS = [
    padded_by_half(batch, channels, size, kernel)
    for batch, channels, size, kernel in [
        (6, 956, (15, 39), (49, 52)),
        (40, 300, (23, 55), (12, 12)),
        (33, 600, (9, 7), (13, 13)),
        (64, 512, (14, 14), (27, 27)),
        (17, 700, (12, 28), (5, 29)),
        (16, 300, (56, 56), (31, 31)),
        (3, 900, (21, 61), (21, 3)),
        (2, 1024, (7, 121), (5, 17)),
        (1, 700, (40, 130), (13, 63)),
    ]
]


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("problem", MANY_UNITS, ids=lambda problem: problem.id)
def test_many_units(
    problem: Problem, dtype: str, pass_: str, force_kernel: Callable[[str | None], None]
) -> None:
    """The error is that of rounding, wherever a unit is in a block's turn; twice the same bits."""
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"))
    with torch.backends.cudnn.flags(enabled=False):
        exact = reference(pass_, problem, data, device="cuda")
    force_kernel(f"banded_{pass_}_{dtype}_nchw")
    result, again = (run_pass(pass_, problem, data) for _ in range(2))
    rounding = float((exact.to(result.dtype).double() - exact).norm())
    assert float((result.double() - exact).norm()) <= 1.1 * rounding
    assert torch.equal(result, again)
