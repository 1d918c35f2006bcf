"""The arguments of a call: what they must be, in sentences, and stride, padding and dilation in the
form that the operators take."""

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dwconv._ops import DTYPES, Geometry

IntOrPair = int | Sequence[int]


class Around(NamedTuple):
    """Padding of each side: more than a caller may ask for, but not than the kernels take."""

    top: int
    bottom: int
    left: int
    right: int


def pair(value: IntOrPair, name: str, least: int) -> tuple[int, int]:
    """``value`` as (h, w), each from ``least`` to 2**31 - 1. Raises TypeError or ValueError."""
    values = value if isinstance(value, (tuple, list, torch.Size)) else (value,)
    if len(values) not in (1, 2):
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    if any(isinstance(v, bool) for v in values):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    try:
        numbers = tuple(operator.index(v) for v in values)
    except TypeError:
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}") from None
    if min(numbers) < least or max(numbers) >= 2**31:
        raise ValueError(f"{name} must be at least {least} and less than 2**31, got {value!r}")
    return numbers[0], numbers[-1]


def paddings(
    value: str | IntOrPair,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int, int]:
    """``value`` as (top, bottom, left, right). Raises TypeError or ValueError."""
    if isinstance(value, Around):
        return value
    if not isinstance(value, str):
        h, w = pair(value, "padding", 0)
        return h, h, w, w
    if value == "valid":
        return 0, 0, 0, 0
    if value != "same":
        raise ValueError(
            f"padding must be an int, a pair of ints, 'same' or 'valid', got {value!r}"
        )
    if stride[0] != 1 or stride[1] != 1:
        raise ValueError(f"padding='same' needs stride 1, got stride={tuple(stride)}")
    # Where the total is odd, the extra element goes to the bottom and to the right.
    h, w = (d * (k - 1) for k, d in zip(kernel_size, dilation, strict=True))
    return h // 2, h - h // 2, w // 2, w - w // 2


def check_input(input: Any, channels: int | None) -> None:
    """What can be wrong with the input alone; ``channels`` are those of a layer, or None."""
    c = "C" if channels is None else channels
    shape = f"(N, {c}, H, W) or ({c}, H, W)"
    check_tensor(input, "input", (3, 4), shape)
    if channels is not None and input.shape[-3] != channels:
        raise ValueError(f"input must have the shape {shape}, got {tuple(input.shape)}")


def check_tensor(tensor: Any, name: str, dims: tuple[int, ...], shape: str) -> None:
    """What can be wrong with one tensor. ``shape`` is what the message says of ``dims``."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested tensor")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, float16 or bfloat16, got dtype {tensor.dtype}"
        )
    if tensor.dim() not in dims:
        raise ValueError(f"{name} must have the shape {shape}, got {tuple(tensor.shape)}")


def _check_like_input(tensor: Tensor, name: str, input: Tensor) -> None:
    if tensor.dtype != input.dtype:
        raise TypeError(f"{name} must have input's dtype {input.dtype}, got {tensor.dtype}")
    if tensor.device != input.device:
        raise ValueError(f"{name} must be on input's device {input.device}, got {tensor.device}")


def _check_tensors(
    input: Tensor, weight: Tensor, bias: Tensor | None, channels: int | None
) -> None:
    """Everything that can be wrong with the tensors themselves."""
    check_input(input, channels)
    check_tensor(weight, "weight", (4,), "(M*C, 1, kh, kw)")
    _check_like_input(weight, "weight", input)
    channels, height, width = input.shape[-3:]
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"input must have channels, height and width, got {tuple(input.shape)}")
    filters, one, kernel_h, kernel_w = weight.shape
    if one != 1 or kernel_h < 1 or kernel_w < 1:
        raise ValueError(f"weight must have the shape (M*C, 1, kh, kw), got {tuple(weight.shape)}")
    if kernel_h * kernel_w >= 2**31:
        raise ValueError(
            f"weight must have fewer than 2**31 taps in a filter, got {kernel_h} x {kernel_w}"
        )
    if filters < 1 or filters % channels != 0:
        raise ValueError(
            f"weight must have a multiple of input's {channels} channels as its first size, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None:
        check_tensor(bias, "bias", (1,), "(M*C,)")
        _check_like_input(bias, "bias", input)
        if bias.shape[0] != filters:
            raise ValueError(f"bias must have the shape ({filters},), got {tuple(bias.shape)}")


def _check_fits(input: Tensor, weight: Tensor, geometry: Geometry) -> None:
    """The kernel must fit the padded input."""
    height, width = input.shape[-2:]
    kernel_h, kernel_w = weight.shape[2:]
    top, bottom, left, right = geometry.padding
    extent_h = geometry.dilation[0] * (kernel_h - 1) + 1
    extent_w = geometry.dilation[1] * (kernel_w - 1) + 1
    if extent_h > height + top + bottom or extent_w > width + left + right:
        raise ValueError(
            f"weight must not span more than the padded input: {extent_h} x {extent_w} elements "
            f"with dilation, against {height + top + bottom} x {width + left + right}"
        )


def check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
    channels: int | None,
) -> Geometry:
    """Everything that can be wrong with a call."""
    _check_tensors(input, weight, bias, channels)
    strides = pair(stride, "stride", 1)
    dilations = pair(dilation, "dilation", 1)
    padded = paddings(padding, weight.shape[2:], strides, dilations)
    geometry = Geometry(strides, padded, dilations)
    _check_fits(input, weight, geometry)
    return geometry
