"""Large filters on the tensor cores: what small problems do not reach."""

from collections.abc import Callable

import pytest
import torch
from large_filters import padded_by_half
from problems import DTYPES, PASSES, Data, Problem, make_data, reference, run_pass

pytestmark = pytest.mark.gpu

ForceKernel = Callable[[str | None], None]

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
        (2, 300, (24, 264), (31, 33)),
    ]
]


KERNELS = [
    *(f"columns_{pass_}" for pass_ in PASSES),
    "banded_forward",
    "banded_backward_input",
    "hankel_backward_weight",
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS)


def check(kernel: str, problem: Problem, data: Data, force_kernel: ForceKernel) -> None:
    """The error is that of rounding; twice the same bits."""
    pass_ = kernel.split("_", 1)[1]
    with torch.backends.cudnn.flags(enabled=False):
        exact = reference(pass_, problem, data, device="cuda")
    dtype = str(data.input.dtype).removeprefix("torch.")
    force_kernel(f"{kernel}_{dtype}_nchw")
    result, again = (run_pass(pass_, problem, data) for _ in range(2))
    rounding = float((exact.to(result.dtype).double() - exact).norm())
    assert float((result.double() - exact).norm()) <= 1.1 * rounding
    assert torch.equal(result, again)


@every_kernel
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("problem", MANY_UNITS, ids=lambda problem: problem.id)
def test_many_units(problem: Problem, dtype: str, kernel: str, force_kernel: ForceKernel) -> None:
    """Wherever a unit is in a block's turn."""
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"))
    check(kernel, problem, data, force_kernel)


@every_kernel
@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("columns", [29, 30, 32, 56, 61, 64])
def test_rows_begin_anywhere(
    columns: int, offset: int, kernel: str, force_kernel: ForceKernel
) -> None:
    """Rows of any length behind an address that is a multiple of 2, 4 or 8 bytes alone."""
    problem = padded_by_half(3, 5, (19, columns), (13, 17))

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        room = torch.full((tensor.numel() + offset,), torch.nan, dtype=tensor.dtype, device="cuda")
        return room[offset:].view(tensor.shape).copy_(tensor)

    data = make_data(problem, torch.float16, torch.device("cuda")).map(moved)
    assert data.input.data_ptr() % 16 == 2 * offset
    check(kernel, problem, data, force_kernel)
