"""Inf and NaN: where they spread, and the switch that says how exactly."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from large_filters import padded_by_half
from problems import DTYPES, make_data, reference, run_pass
from torch import Tensor

import dwconv

# Loosely typed: these tests pass what the types forbid.
set_strict_nonfinite: Any = dwconv.set_strict_nonfinite


@pytest.fixture
def switch() -> Iterator[Any]:
    yield set_strict_nonfinite
    set_strict_nonfinite(False)


@pytest.mark.parametrize("given", [1, 0, None, "yes", torch.tensor(True)], ids=repr)
def test_only_a_bool_is_taken(given: Any) -> None:
    with pytest.raises(TypeError, match="enabled must be a bool, got") as caught:
        set_strict_nonfinite(given)
    assert repr(given) in str(caught.value)


def test_off_until_it_is_set(switch: Any) -> None:
    assert dwconv.is_strict_nonfinite() is False
    for enabled in (True, True, False, True):
        assert switch(enabled) is None
        assert dwconv.is_strict_nonfinite() is enabled


def test_one_switch_for_the_process(switch: Any) -> None:
    """Set in one thread, it holds in another: the backward runs in threads of its own."""
    seen: list[bool] = []
    for enabled in (True, False):
        thread = threading.Thread(target=switch, args=(enabled,))
        thread.start()
        thread.join()
        seen.append(dwconv.is_strict_nonfinite())
    assert seen == [True, False]


def scattered(shape: tuple[int, ...], border: int) -> Tensor:
    """Random numbers, in each image one that is not finite, the first of them at the border."""
    values = torch.randn(shape)
    for n, value in enumerate((float("inf"), float("-inf"), float("nan"), float("inf"))):
        values[n, 2 * n, border + 7 * n, border + 11 * n] = value
    return values


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "default"])
@pytest.mark.parametrize("kernel", [3, 7, 11])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_spreads_as_conv2d(
    strict: bool,
    kernel: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    switch: Any,
    device: torch.device,
) -> None:
    """Strict: to the same elements, Inf as Inf. By default to no fewer, and to more only in a row
    and a window of 16 columns that hold one already; channels_last, in one of 8 channels."""
    switch(strict)
    shape, padding = (4, 8, 40, 56), kernel // 2
    # Whether Inf times the padding counts is up to the kernel that PyTorch chooses.
    x, grad = (scattered(shape, border).to(dtype) for border in (0, 6))
    w = torch.randn(8, 1, kernel, kernel).to(dtype)

    def passes(function: Any, *tensors: Tensor) -> list[Tensor]:
        inputs, weight, gradient = tensors
        inputs, weight = (t.detach().requires_grad_() for t in (inputs, weight))
        y = function(inputs, weight)
        return [y.detach(), *torch.autograd.grad(y, (inputs, weight), gradient)]

    theirs = passes(
        lambda x, w: F.conv2d(x, w, padding=padding, groups=8), *(t.double() for t in (x, w, grad))
    )
    ours = passes(
        lambda x, w: dwconv.depthwise_conv2d(x, w, padding=padding),
        *(t.to(device).contiguous(memory_format=memory_format) for t in (x, w, grad)),
    )
    for mine, other in zip((t.cpu() for t in ours), theirs, strict=True):
        if strict:
            assert torch.equal(mine.isnan(), other.isnan())
            assert torch.equal(mine.isinf(), other.isinf())
        else:
            assert bool(((~mine.isfinite()) | other.isfinite()).all())
            if mine.shape == x.shape:
                bad = (~other.isfinite()).double()
                if memory_format == torch.channels_last:
                    bad = bad.amax(1, keepdim=True).expand_as(bad)  # there are 8
                near = F.max_pool1d(bad.flatten(0, 2), 31, 1, 15).view_as(bad)
                assert not bool((~mine.isfinite() & (near == 0)).any())


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(7, 7), (8, 6), (14, 14)], ids=str)
@pytest.mark.parametrize(("family", "dtype"), [("dense", "float16"), ("batched", "float32")])
def test_no_other_image_is_reached(
    family: str, dtype: str, size: tuple[int, int], force_kernel: Callable[[str | None], None]
) -> None:
    """An Inf or NaN stays in its image, of all of which filters as large as these make results."""
    problem = padded_by_half(37, 3, size, (27, 27))
    data = make_data(problem, DTYPES[dtype], torch.device("cuda"))
    expected = torch.zeros(problem.output_size, dtype=torch.bool, device="cuda")
    for n, value in (3, float("inf")), (35, float("nan")):
        data.input[n, n % 3, 1, 2] = value
        expected[n, n % 3] = True
    force_kernel(f"{family}_forward_{dtype}_nchw")
    assert torch.equal(~run_pass("forward", problem, data).isfinite(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(14, 13), (30, 31), (46, 40), (150, 24)], ids=str)
def test_columns_reach_no_further_than_they_may(
    size: tuple[int, int], force_kernel: Callable[[str | None], None]
) -> None:
    """An Inf or NaN reaches the columns that a direct sum has it reach, and 30 rows more."""
    problem = padded_by_half(5, 3, size, (13, 15))
    data = make_data(problem, torch.float16, torch.device("cuda"))
    data.input[0, 1, size[0] // 2, 3] = float("inf")
    data.input[4, 2, 0, size[1] - 1] = float("nan")
    with torch.backends.cudnn.flags(enabled=False):
        direct = ~reference("forward", problem, data, device="cuda").isfinite()
    force_kernel("columns_forward_float16_nchw")
    ours = ~run_pass("forward", problem, data).isfinite()
    near = F.max_pool2d(direct.double(), (61, 1), 1, (30, 0)) > 0
    assert bool((ours | ~direct).all())
    assert not bool((ours & ~near).any())
