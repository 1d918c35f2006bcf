"""Large filters on the tensor cores: what small problems do not reach."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.gpu

PASSES = ["forward", "backward_input", "backward_weight"]

# More units than all blocks hold at a time, so that each stage of shared memory is filled again:
# images x channels x height x width, filter. Rows come 16, 8, 4 and 2 bytes at a time, in tiles of
# one block of columns to sixteen; those of 39 and 55 elements were once told of by a barrier at
# whichever address came of dividing a warp.
MANY_UNITS = [
    ((6, 956, 15, 39), (49, 52)),
    ((40, 300, 23, 55), (12, 12)),
    ((33, 600, 9, 7), (13, 13)),
    ((64, 512, 14, 14), (27, 27)),
    ((17, 700, 12, 28), (5, 29)),
    ((16, 300, 56, 56), (31, 31)),
    ((3, 900, 21, 61), (21, 3)),
    ((2, 1024, 7, 121), (5, 17)),
    ((1, 700, 40, 130), (13, 63)),
]


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("size", "kernel"), MANY_UNITS, ids=str)
def test_many_units(
    size: tuple[int, ...],
    kernel: tuple[int, int],
    dtype: torch.dtype,
    pass_: str,
    force_kernel: Callable[[str | None], None],
) -> None:
    """The error is that of rounding, wherever a unit is in a block's turn; twice the same bits."""
    generator = torch.Generator("cuda").manual_seed(0)
    channels, padding = size[1], (kernel[0] // 2, kernel[1] // 2)
    pads = [padding[0], padding[0], padding[1], padding[1]]

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    x, w = draw(size), draw((channels, 1, *kernel))
    exact_x, exact_w = (t.double().requires_grad_() for t in (x, w))
    with torch.backends.cudnn.flags(enabled=False):
        y = F.conv2d(exact_x, exact_w, padding=padding, groups=channels)
        grad = draw(tuple(y.shape))
        gradients = torch.autograd.grad(y, (exact_x, exact_w), grad.double())
    exact = dict(zip(PASSES, (y.detach(), *gradients), strict=True))[pass_]

    ops, geometry = torch.ops.dwconv, ([1, 1], pads, [1, 1])
    force_kernel(f"banded_{pass_}_{str(dtype).removeprefix('torch.')}_nchw")
    results = []
    for _ in range(2):
        if pass_ == "forward":
            results.append(ops.forward(x, w, None, *geometry))
        elif pass_ == "backward_input":
            results.append(ops.backward_input(grad, w, list(x.shape), *geometry))
        else:
            results.append(ops.backward_weight(grad, x, list(w.shape), *geometry))
    rounding = float((exact.to(dtype).double() - exact).norm())
    assert float((results[0].double() - exact).norm()) <= 1.1 * rounding
    assert torch.equal(results[0], results[1])
