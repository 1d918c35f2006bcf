"""Tensors past 2**31 elements and past 4 GiB: indices need 64 bits. Checked in a few places."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dwconv import depthwise_conv2d

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

# name: (size, dtype, layout). Each has an element whose index, or whose offset in bytes, does not
# fit 32 bits. A 3x3 convolution with padding 1 keeps the size.
CASES = {
    "2**31 elements, nchw": ((3, 8, 9473, 9473), torch.float16, "nchw"),
    "2**31 elements, nhwc": ((3, 8, 9473, 9473), torch.float16, "nhwc"),
    "2**31 elements in one image, nhwc": ((1, 2, 32800, 32800), torch.bfloat16, "nhwc"),
    "2**31 elements in one plane": ((1, 1, 46349, 46349), torch.bfloat16, "nchw"),
    "4 GiB of float32": ((2, 8, 8200, 8200), torch.float32, "nchw"),
}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# Of the output gradient, so that sums of billions of products stay far from float16's 65504.
GRADIENT_SCALE = 2.0**-6


@pytest.fixture(autouse=True)
def _memory_given_back() -> Iterator[None]:
    torch.cuda.empty_cache()
    yield
    torch.cuda.empty_cache()


def random_tensor(size: tuple[int, ...], dtype: torch.dtype, layout: str, scale: float) -> Tensor:
    tensor = torch.empty(size, dtype=dtype, device="cuda", memory_format=LAYOUTS[layout])
    return tensor.normal_(std=scale)


def places(size: tuple[int, ...], layout: str) -> list[tuple[int, int]]:
    """(image, row) of the first and the last element, and of those whose index is 2**30, 4 GiB into
    float32, and 2**31."""
    n, c, h, w = size
    found = [(0, 0), (n - 1, h - 1)]
    for element in (2**30, 2**31):
        if element < n * c * h * w:
            image, rest = divmod(element, c * h * w)
            found.append((image, rest // w % h if layout == "nchw" else rest // (w * c)))
    return found


def convolve_rows(x: Tensor, weight: Tensor, image: int, first: int, last: int) -> Tensor:
    """Rows [first, last) of the 3x3 convolution with padding 1 of one image, in float64."""
    low, high = max(first - 1, 0), min(last + 1, x.shape[2])
    rows = x[image : image + 1, :, low:high].double()
    # Above and below are either the image's neighbouring rows or its padding.
    rows = F.pad(rows, (1, 1, low - (first - 1), last + 1 - high))
    height, width = last - first, x.shape[3]
    filters = weight.double()
    taps = [
        rows[:, :, i : i + height, j : j + width] * filters[:, 0, i, j].view(1, -1, 1, 1)
        for i in range(3)
        for j in range(3)
    ]
    return torch.stack(taps).sum(0)


def assert_close(result: Tensor, exact: Tensor, sum_error: float) -> None:
    """An error of 1.1 times that of rounding, and for float32 of summing in it."""
    rounding = float((exact.to(result.dtype).double() - exact).norm())
    allowed = 1.1 * rounding + sum_error * float(exact.norm())
    assert float((result.double() - exact).norm()) <= allowed


def assert_rows_close(result: Tensor, source: Tensor, weight: Tensor, layout: str) -> None:
    height = source.shape[2]
    for image, row in places(tuple(source.shape), layout):
        first = max(0, min(row - 2, height - 4))
        exact = convolve_rows(source, weight, image, first, first + 4)
        ours = result[image : image + 1, :, first : first + 4]
        assert_close(ours, exact, 1e-6 if result.dtype == torch.float32 else 0)


def weight_gradient(x: Tensor, grad: Tensor, channel: int) -> tuple[Tensor, float]:
    """One channel's in float64, a run of rows at a time, and the root of its sum of squares."""
    height, width = x.shape[2:]
    step = max(1, 2**27 // width)  # a gigabyte in float64
    total = torch.zeros(9, dtype=torch.float64, device=x.device)
    for image in range(x.shape[0]):
        for first in range(0, height, step):
            last = min(first + step, height)
            low, high = max(first - 1, 0), min(last + 1, height)
            rows = x[image, channel, low:high].double()
            rows = F.pad(rows, (1, 1, low - (first - 1), last + 1 - high))
            g = grad[image, channel, first:last].double()
            total += torch.stack(
                [
                    (g * rows[i : i + last - first, j : j + width]).sum()
                    for i in range(3)
                    for j in range(3)
                ]
            )
    # What the gradient's norm is on average over random signs; the values are standard normal.
    expected_norm = GRADIENT_SCALE * (9 * x.shape[0] * height * width) ** 0.5
    return total.view(1, 3, 3), expected_norm


@pytest.mark.parametrize(("size", "dtype", "layout"), CASES.values(), ids=CASES)
def test_large_tensor(size: tuple[int, ...], dtype: torch.dtype, layout: str) -> None:
    """Forward, input gradient and weight gradient near the start, the limits and the end."""
    numel = torch.Size(size).numel()
    bytes_ = numel * dtype.itemsize
    assert numel > 2**31 or bytes_ > 2**32
    needed = 4 * bytes_ + 8 * 2**30  # input, output, both gradients, and room for the checks
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free")
    channels = size[1]
    x = random_tensor(size, dtype, layout, 1).requires_grad_()
    weight = torch.randn(channels, 1, 3, 3, device="cuda").to(dtype).requires_grad_()
    output = depthwise_conv2d(x, weight, padding=1)
    x_data, weight_data = x.detach(), weight.detach()
    assert output.is_contiguous(memory_format=LAYOUTS[layout])
    assert_rows_close(output.detach(), x_data, weight_data, layout)

    grad = random_tensor(size, dtype, layout, GRADIENT_SCALE)
    grad_x, grad_weight = torch.autograd.grad(output, (x, weight), grad)
    # The input gradient of such a convolution is the convolution with the filters turned round.
    assert_rows_close(grad_x, grad, weight_data.flip(2, 3), layout)
    for channel in {0, channels - 1}:
        exact, norm = weight_gradient(x_data, grad, channel)
        # Nine numbers: their rounding may be small by luck, so the float32 sum's error counts in
        # every dtype, relative to the norm they would have on average.
        sum_error = 3e-6 * max(1.0, norm / float(exact.norm()))
        assert_close(grad_weight[channel], exact, sum_error)
