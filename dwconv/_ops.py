"""The operators ``torch.ops.dwconv.*``: importing ``dwconv._C`` registers their schemas and CUDA
kernels, this module their fake and CPU implementations. What autocast does to their arguments, and
the extension's switch for Inf and NaN, are here too.

All tensors are 4-D, of one dtype and on one device. ``stride`` and ``dilation`` are ``[h, w]``,
``padding`` is ``[top, bottom, left, right]``. Results have the memory format of the first tensor;
weight gradients are contiguous.

``forward_packed`` and ``backward_packed`` are what eager calls use: they take stride, padding and
dilation as one number, see ``Geometry``, and the second computes all gradients that are wanted, the
weight's with the strides of the weight. On an H100 a list costs as much host time as a tensor's
allocation, and another call twice that.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from dwconv import _C, requirements

requirements.check_built(_C.build_info().get("version"))

forward = torch.ops.dwconv.forward.default
backward_input = torch.ops.dwconv.backward_input.default
backward_weight = torch.ops.dwconv.backward_weight.default
# What OpOverload.__call__ calls, and nothing else: 0.4 us of a call's 12.
forward_packed = torch.ops.dwconv.forward_packed.default._op
backward_packed = torch.ops.dwconv.backward_packed.default._op

build_info = _C.build_info

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

Ints = Sequence[int]
F = TypeVar("F", bound=Callable[..., Any])

# torch's decorators carry no annotations.
register_fake: Callable[[str], Callable[[F], F]] = torch.library.register_fake
register: Callable[..., Callable[[F], F]] = torch.library.impl  # type: ignore[assignment]


class Geometry(NamedTuple):
    """What a convolution is beside its tensors.

    Operators take the first three, as `[:3]`: torch 2.10 compiles no property of a named tuple.
    """

    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]
    packed: int | None = None  # all of them in one number: see `pack`

    def pack(self) -> "Geometry":
        """With them packed, unless one is too large: a byte each, stride's first. Unpacked by
        tensor.h, and by `unpack`."""
        numbers = (*self.stride, *self.padding, *self.dilation)
        return self._replace(
            packed=int.from_bytes(numbers, "little") if max(numbers) < 2**7 else None
        )


def unpack(packed: int) -> Geometry:
    a, b, top, bottom, left, right, c, d = packed.to_bytes(8, "little")
    return Geometry((a, b), (top, bottom, left, right), (c, d), packed)


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


def contiguous(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
    """``Tensor.contiguous``, which under vmap knows one memory format only."""
    if memory_format == torch.contiguous_format:
        return tensor.contiguous()
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def lying_as(grad_weight: Tensor, weight: Tensor) -> Tensor:
    """The gradient, contiguous so far, with the strides of a weight in channels_last if it is one.

    With one channel in a filter, the formats differ in the stride along that axis alone, which
    addresses nothing. But DistributedDataParallel compares all strides, and warns.
    """
    if weight.stride(1) != 1:
        return grad_weight
    filters, _, height, width = weight.shape
    return grad_weight.view(filters, height, width, 1).movedim(3, 1)


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
    outputs of the same row and of the same window of 16 columns (under filters above 11 x 11, up to
    22 columns further than these reach, or all of an image of up to 208 elements), of channels_last
    tensors also those of 8 neighbouring channels, may be NaN where ``nn.Conv2d`` has finite ones.
    They never hide an Inf or a NaN.

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


def _check_device(first: Tensor, *others: Tensor | None) -> None:
    """One tensor on the meta device sends a call here, wherever the others are."""
    if any(other is not None and other.device != first.device for other in others):
        raise RuntimeError("dwconv: tensors must be on one device")


@register_fake("dwconv::forward")
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    _check_device(input, weight, bias)
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
    _check_device(grad_output, weight)
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
    _check_device(grad_output, input)
    return torch.empty(weight_size, dtype=grad_output.dtype, device=grad_output.device)


# CPU implementations: ATen's convolution. It knows symmetric padding only, so what one side has
# more than the other is padded, or cut off, around it.


def _checked_and_wide(function: F) -> F:
    """Refuses what CUDA's operators refuse and ATen does not. Sums of 16-bit numbers are in
    float32, as ours are; ATen's CPU kernels keep some in 16 bits."""

    @functools.wraps(function)
    def wide(first: Tensor, *others: Any) -> Any:
        dtype = first.dtype
        if dtype not in DTYPES or any(isinstance(o, Tensor) and o.dtype != dtype for o in others):
            raise RuntimeError(f"dwconv: tensors must be of one dtype, and that one of {DTYPES}")
        if dtype not in (torch.float16, torch.bfloat16):
            return function(first, *others)
        widened = (o.float() if isinstance(o, Tensor) else o for o in others)
        return function(first.float(), *widened).to(dtype)

    return wide  # type: ignore[return-value]


def _split_padding(padding: Ints) -> tuple[list[int], list[int]]:
    """The symmetric part ``[h, w]``, and the rest as torch.nn.functional.pad takes it."""
    top, bottom, left, right = padding
    h, w = min(top, bottom), min(left, right)
    return [h, w], [left - w, right - w, top - h, bottom - h]


def _pad(tensor: Tensor, rest: list[int]) -> Tensor:
    return torch.constant_pad_nd(tensor, rest) if any(rest) else tensor


@register("dwconv::forward", "CPU")
@_checked_and_wide
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints
) -> Tensor:
    symmetric, rest = _split_padding(padding)
    output: Tensor = torch.ops.aten.convolution(
        _pad(input, rest), weight, bias, stride, symmetric, dilation, False, [0, 0], input.shape[1]
    )
    return output.contiguous(memory_format=suggest_memory_format(input))


@register("dwconv::backward_input", "CPU")
@_checked_and_wide
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


# Products of a tap that ATen adds up in float32 at most; sums of more are in float64 from there on.
# Of 89,100 (N300 C2 11x27 with 1 x 1) the error was 9e-6 of the gradient, and 3e-6 is the promise.
# As many as those of CUDA's kernels.
_MOST_PRODUCTS = 12288


@register("dwconv::backward_weight", "CPU")
@_checked_and_wide
def _(
    grad_output: Tensor,
    input: Tensor,
    weight_size: Ints,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
) -> Tensor:
    symmetric, rest = _split_padding(padding)
    # Where filters are larger than images, oneDNN writes beyond its memory (torch 2.11 and 2.13:
    # N40 C1 14x1 with 60 x 11 aborts the process). It does not take float64.
    dtype = grad_output.dtype
    larger = any(k > s for k, s in zip(weight_size[2:], input.shape[2:], strict=True))
    wide = torch.float64 if larger else dtype
    weight = torch.empty(weight_size, dtype=wide)

    def of_images(grad_output: Tensor, input: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten.convolution_backward(
            grad_output.to(wide), _pad(input.to(wide), rest), weight, None, stride, symmetric,
            dilation, False, [0, 0], input.shape[1], [False, True, False],
        )[1]  # fmt: skip
        return result

    images = max(1, _MOST_PRODUCTS // max(1, grad_output.shape[2] * grad_output.shape[3]))
    if len(grad_output) <= images or wide == torch.float64:
        grad_weight = of_images(grad_output, input)
    else:
        grad_weight = torch.zeros(weight_size, dtype=torch.float64)
        for first in range(0, len(grad_output), images):
            part = slice(first, first + images)
            grad_weight += of_images(grad_output[part], input[part])
    # Flat in between: along the axis of one element ATen's stride may be that of channels_last.
    return grad_weight.to(dtype).reshape(-1).view(weight_size)


# The packed operators in terms of the others, wherever those are written in Python.


def forward_unpacked(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: int) -> Tensor:
    output: Tensor = forward(input, weight, bias, *unpack(geometry)[:3])
    return output


def backward_unpacked(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: int, wanted: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    given = unpack(geometry)[:3]
    grad = grad_output.contiguous(memory_format=suggest_memory_format(input))
    return (
        backward_input(grad, weight, input.shape, *given) if wanted & 1 else None,
        lying_as(backward_weight(grad, input, weight.shape, *given), weight)
        if wanted & 2
        else None,
        grad.sum((0, 2, 3)) if wanted & 4 else None,
    )


for key in ("CPU", "Meta"):
    register("dwconv::forward_packed", key)(forward_unpacked)
    register("dwconv::backward_packed", key)(backward_unpacked)
