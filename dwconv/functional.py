"""``depthwise_conv2d``: checks its arguments, then runs one differentiable function."""

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _is_any_autocast_enabled
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from dwconv import _ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

IntOrPair = int | Sequence[int]


class Geometry(NamedTuple):
    """What a convolution is beside its data."""

    input_size: tuple[int, ...]  # N, C, H, W
    weight_size: tuple[int, ...]  # M*C, 1, kh, kw
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]


class Call(NamedTuple):
    """A call whose arguments are right."""

    geometry: Geometry
    batched: bool
    given: tuple[Any, Any, Any]  # stride, padding and dilation themselves


class _DepthwiseConv2d(Function):
    """Computes one of ``input``, ``weight``, ``output`` (the one that is None) from the others.

    Depthwise convolution is linear in its input and in its weight: ``sum(output * grad_output)`` is
    linear in three tensors, and forward, input gradient and weight gradient are its derivatives by
    each. So the derivatives of each pass are the other two, and the function is its own backward,
    to any order.
    """

    @staticmethod
    def forward(
        input: Tensor | None,
        weight: Tensor | None,
        output: Tensor | None,
        bias: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        return _compute(input, weight, output, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, given_output, _, geometry = inputs
        ctx.save_for_backward(input, weight, given_output)
        ctx.geometry = geometry
        # All of a call is in the memory format of its input, and gradients arrive in any.
        ctx.memory_format = _ops.memory_format_of(given_output if input is None else input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, output = ctx.saved_tensors
        need_input, need_weight, need_output, need_bias, _ = ctx.needs_input_grad
        geometry = ctx.geometry
        # The gradient takes the place of the tensor that was computed.
        if weight is None:
            weight = grad
        else:
            grad = grad.contiguous(memory_format=ctx.memory_format)
            if input is None:
                input = grad
            else:
                output = grad
        return (
            _apply(None, weight, output, None, geometry) if need_input else None,
            _apply(input, None, output, None, geometry) if need_weight else None,
            _apply(input, weight, None, None, geometry) if need_output else None,
            grad.sum((0, 2, 3)) if need_bias else None,
            None,
        )


_apply_function: Callable[..., Tensor] = _DepthwiseConv2d.apply
_apply_eagerly: Callable[..., Tensor] = super(Function, _DepthwiseConv2d).apply


def _differentiable(*inputs: Any) -> Tensor:
    """``_DepthwiseConv2d.apply``, by a short cut where dynamo and torch.func have no part in it.

    There ``apply`` ends in the same two calls. But first it looks up the signature of ``forward``,
    every time, which takes longer than all the rest.
    """
    if is_dynamo_compiling() or _are_functorch_transforms_active():
        return _apply_function(*inputs)
    return _apply_eagerly(*unwrap_dead_wrappers(inputs))


def _compute(
    input: Tensor | None,
    weight: Tensor | None,
    output: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    input_size, weight_size, stride, padding, dilation = geometry
    result: Tensor
    if output is None:
        result = _ops.forward(input, weight, bias, stride, padding, dilation)
    elif input is None:
        result = _ops.backward_input(output, weight, input_size, stride, padding, dilation)
    else:
        result = _ops.backward_weight(output, input, weight_size, stride, padding, dilation)
    return result


def _apply(
    input: Tensor | None,
    weight: Tensor | None,
    output: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """``_DepthwiseConv2d``, without its cost where no gradient is wanted."""
    if torch.is_grad_enabled():
        for tensor in (input, weight, output, bias):
            if tensor is not None and tensor.requires_grad:
                return _differentiable(input, weight, output, bias, geometry)
    return _compute(input, weight, output, bias, geometry)


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


def _check_fits(geometry: Geometry) -> None:
    """The kernel must fit the padded input."""
    _, _, height, width = geometry.input_size
    _, _, kernel_h, kernel_w = geometry.weight_size
    top, bottom, left, right = geometry.padding
    extent_h = geometry.dilation[0] * (kernel_h - 1) + 1
    extent_w = geometry.dilation[1] * (kernel_w - 1) + 1
    if extent_h > height + top + bottom or extent_w > width + left + right:
        raise ValueError(
            f"weight must not span more than the padded input: {extent_h} x {extent_w} elements "
            f"with dilation, against {height + top + bottom} x {width + left + right}"
        )


def _check(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
    channels: int | None,
) -> Call:
    """Everything that can be wrong with a call."""
    _check_tensors(input, weight, bias, channels)
    strides = pair(stride, "stride", 1)
    dilations = pair(dilation, "dilation", 1)
    batched = input.dim() == 4
    geometry = Geometry(
        tuple(input.shape) if batched else (1, *input.shape),
        tuple(weight.shape),
        strides,
        paddings(padding, weight.shape[2:], strides, dilations),
        dilations,
    )
    _check_fits(geometry)
    return Call(geometry, batched, (stride, padding, dilation))


# Most calls repeat an earlier one with other numbers in the tensors. What the checks look at, of
# calls that passed them, and what they returned.
CALLS_KEPT = 1024
_calls: dict[Hashable, Call] = {}
_PLAIN = (Tensor, Parameter)  # a subclass may have symbolic sizes


def _checked(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
    channels: int | None,
) -> Call:
    """``_check``, or what it returned for the same arguments before."""
    key: Hashable = None
    if (
        not is_dynamo_compiling()
        and type(input) in _PLAIN
        and type(weight) in _PLAIN
        and (bias is None or type(bias) in _PLAIN)
    ):
        try:
            key = (
                input.shape, input.dtype, input.device, input.layout,
                weight.shape, weight.dtype, weight.device, weight.layout,
                None if bias is None else (bias.shape, bias.dtype, bias.device, bias.layout),
                stride, padding, dilation, channels,
            )  # fmt: skip
            call = _calls.get(key)
        except (RuntimeError, TypeError):  # a nested tensor has no shape, a list no hash
            key = call = None
        if call is not None:
            strides, padded, dilations = call.given
            if stride is strides and padding is padded and dilation is dilations:
                return call
            if _exact(stride, padding, dilation):
                return call
    call = _check(input, weight, bias, stride, padding, dilation, channels)
    if key is not None and _exact(stride, padding, dilation):
        if len(_calls) >= CALLS_KEPT:
            _calls.clear()
        _calls[key] = call
    return call


def _exact(*numbers: Any) -> bool:
    """Whether equal numbers are the same arguments. A dict takes True and 1.0 for 1, we do not."""
    return all(
        type(number) in (int, str)
        or (type(number) is tuple and all(type(one) is int for one in number))
        for number in numbers
    )


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
    channels: int | None,
) -> Tensor:
    """``depthwise_conv2d``, of an input that must have ``channels`` where they are stated."""
    if _is_any_autocast_enabled():
        if channels is not None:
            check_input(input, channels)  # as it is: autocast casts more than a layer takes
        input, weight, bias = _ops.autocast(input, weight, bias)
    call = _checked(input, weight, bias, stride, padding, dilation, channels)
    if call.batched:
        return _apply(input, weight, None, bias, call.geometry)
    return _apply(input.unsqueeze(0), weight, None, bias, call.geometry).squeeze(0)


def depthwise_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: str | IntOrPair = 0,
    dilation: IntOrPair = 1,
) -> Tensor:
    """Convolves each input channel with filters of its own.

    The same as ``torch.nn.functional.conv2d(..., groups=C)``, differentiable to any order. Sums are
    kept in float32, for float64 in float64, and gradients are computed without atomics: two runs
    agree to the bit.

    Args:
        input: ``(N, C, H, W)`` or ``(C, H, W)``; float64, float32, float16 or bfloat16. N may be 0.
            Any strides; contiguous and channels_last are read without a copy.
        weight: ``(M*C, 1, kh, kw)``, where filter ``c*M + m`` belongs to input channel ``c``.
            ``M`` is the channel multiplier. Dtype and device of ``input``.
        bias: ``(M*C,)``, added to the output, or None.
        stride: Elements between two outputs, an int or a pair (h, w), at least 1.
        padding: Zeros around the input, an int or a pair (h, w), at least 0; ``"valid"`` for none,
            ``"same"`` for an output of the input's size (stride 1 only; where the total is odd, the
            bottom and the right get one more).
        dilation: Elements between two taps, an int or a pair (h, w), at least 1.

    Returns:
        ``(N, M*C, H_out, W_out)`` or ``(M*C, H_out, W_out)``, with
        ``H_out = (H + padding - dilation * (kh - 1) - 1) // stride + 1`` (padding of both sides),
        in the memory format of ``input``. Under autocast, in autocast's dtype.

    Raises:
        TypeError: An argument has the wrong type, dtype or tensor layout, or weight and bias
            another dtype than input.
        ValueError: A size, a device or a number is out of range, or the kernel with its dilation
            spans more than the padded input.

    Example:
        >>> x = torch.randn(8, 32, 56, 56)
        >>> w = torch.randn(64, 1, 7, 7)
        >>> dwconv.depthwise_conv2d(x, w, stride=2, padding=3).shape
        torch.Size([8, 64, 28, 28])
    """
    return convolve(input, weight, bias, stride, padding, dilation, None)
