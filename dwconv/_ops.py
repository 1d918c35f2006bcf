"""The operators ``torch.ops.dwconv.*``: importing ``dwconv._C`` registers their schemas and CUDA
kernels, this module their fake and CPU implementations. What autocast does to their arguments, and
the extension's switch for Inf and NaN, are here too.

All tensors are 4-D, of one dtype and on one device. ``stride`` and ``dilation`` are ``[h, w]``,
``padding`` is ``[top, bottom, left, right]``. Results have the memory format of the first tensor;
weight gradients are contiguous.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from dwconv import _C

forward = torch.ops.dwconv.forward.default
backward_input = torch.ops.dwconv.backward_input.default
backward_weight = torch.ops.dwconv.backward_weight.default

Ints = Sequence[int]
F = TypeVar("F", bound=Callable[..., Any])

# torch's decorators carry no annotations.
register_fake: Callable[[str], Callable[[F], F]] = torch.library.register_fake
register: Callable[..., Callable[[F], F]] = torch.library.impl  # type: ignore[assignment]


def output_size(
    input_size: Ints, kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints
) -> tuple[int, int]:
    """Height and width of the output; the sizes may be symbolic. ``Axis::output()`` in Python."""
    top, bottom, left, right = padding
    height = input_size[0] + top + bottom - dilation[0] * (kernel_size[0] - 1) - 1
    width = input_size[1] + left + right - dilation[1] * (kernel_size[1] - 1) - 1
    return height // stride[0] + 1, width // stride[1] + 1


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """``suggest_memory_format``, in a tenth of the time for what is plainly not channels_last."""
    strides = tensor.stride()
    return torch.contiguous_format if strides[1] > strides[3] else suggest_memory_format(tensor)


def autocast(input: Any, *others: Any) -> tuple[Any, ...]:
    """The tensors as autocast hands them to conv2d: floating point but float64 in its dtype."""
    device_type = input.device.type if isinstance(input, Tensor) else "meta"
    # The meta device knows no autocast; to ask torch which devices do breaks a compiled graph.
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return input, *others
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        tensor.to(dtype)
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.dtype != torch.float64
        and tensor.device.type == device_type
        else tensor
        for tensor in (input, *others)
    )


def set_strict_nonfinite(enabled: bool) -> None:
    """Chooses how Inf and NaN spread in CUDA kernels, for the whole process.

    With True only kernels run that spread them exactly as ``nn.Conv2d`` does. With False, the
    default, kernels on tensor cores may run as well. Those multiply what is not finite by zeros:
    outputs of the same row and of the same window of 16 columns may be NaN where ``nn.Conv2d`` has
    finite ones. They never hide an Inf or a NaN.

    Raises:
        TypeError: ``enabled`` is no bool.
    """
    if not isinstance(enabled, bool):
        raise TypeError(f"enabled must be a bool, got {enabled!r}")
    _C.set_strict_nonfinite(enabled)


def is_strict_nonfinite() -> bool:
    """Whether only kernels run that spread Inf and NaN exactly as ``nn.Conv2d`` does."""
    return _C.strict_nonfinite()


# Fake implementations: shapes and strides, no data.


@register_fake("dwconv::forward")
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return torch.empty(
        (input.shape[0], weight.shape[0], *size),
        dtype=input.dtype,
        device=input.device,
        memory_format=suggest_memory_format(input),
    )


@register_fake("dwconv::backward_input")
def _(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    return torch.empty(
        input_size,
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=suggest_memory_format(grad_output),
    )


@register_fake("dwconv::backward_weight")
def _(
    grad_output: Tensor,
    input: Tensor,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    return torch.empty(weight_size, dtype=grad_output.dtype, device=grad_output.device)


# CPU implementations: ATen's convolution. It knows symmetric padding only, so what one side has
# more than the other is padded, or cut off, around it.


def _summed_in_float32(function: F) -> F:
    """ATen's CPU kernels keep some sums of 16-bit numbers in 16 bits; ours never do."""

    @functools.wraps(function)
    def wide(first: Tensor, *others: Any) -> Any:
        if first.dtype not in (torch.float16, torch.bfloat16):
            return function(first, *others)
        widened = (o.float() if isinstance(o, Tensor) else o for o in others)
        return function(first.float(), *widened).to(first.dtype)

    return wide  # type: ignore[return-value]


def _split_padding(padding: Ints) -> tuple[list[int], list[int]]:
    """The symmetric part ``[h, w]``, and the rest as torch.nn.functional.pad takes it."""
    top, bottom, left, right = padding
    h, w = min(top, bottom), min(left, right)
    return [h, w], [left - w, right - w, top - h, bottom - h]


def _pad(tensor: Tensor, rest: list[int]) -> Tensor:
    return torch.constant_pad_nd(tensor, rest) if any(rest) else tensor


@register("dwconv::forward", "CPU")
@_summed_in_float32
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    symmetric, rest = _split_padding(padding)
    output: Tensor = torch.ops.aten.convolution(
        _pad(input, rest), weight, bias, stride, symmetric, dilation, False, [0, 0], input.shape[1]
    )
    return output.contiguous(memory_format=suggest_memory_format(input))


@register("dwconv::backward_input", "CPU")
@_summed_in_float32
def _(
    grad_output: Tensor,
    weight: Tensor,
    input_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    memory_format = suggest_memory_format(grad_output)
    symmetric, rest = _split_padding(padding)
    left, right, top, bottom = rest
    batch, channels, height, width = input_size
    padded = torch.empty(
        (batch, channels, height + top + bottom, width + left + right),
        dtype=grad_output.dtype,
        memory_format=memory_format,
    )
    grad_input: Tensor
    grad_input, _, _ = torch.ops.aten.convolution_backward(
        grad_output, padded, weight, None, stride, symmetric, dilation, False, [0, 0], channels,
        [True, False, False],
    )  # fmt: skip
    grad_input = grad_input[:, :, top : top + height, left : left + width]
    return grad_input.contiguous(memory_format=memory_format)


@register("dwconv::backward_weight", "CPU")
@_summed_in_float32
def _(
    grad_output: Tensor,
    input: Tensor,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    symmetric, rest = _split_padding(padding)
    weight = torch.empty(weight_size, dtype=grad_output.dtype)
    grad_weight: Tensor
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output, _pad(input, rest), weight, None, stride, symmetric, dilation, False, [0, 0],
        input.shape[1], [False, True, False],
    )  # fmt: skip
    return grad_weight.contiguous()
