"""``depthwise_conv2d``: one differentiable function, behind checks of its arguments that calls like
an earlier one do without."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active, _is_any_autocast_enabled
from torch._C._functorch import unwrap_if_dead
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from dwconv import _ops, transforms
from dwconv._ops import Geometry
from dwconv.arguments import Around, IntOrPair, check, check_input


class _DepthwiseConv2d(Function):
    """The packed operators. Gradients that have derivatives themselves are of the other operators,
    to which transforms.py gives them.

    Every Python call counts here: in the autograd thread, which wakes up for each, it takes several
    times as long as in a loop. torch.func, which wants a ``setup_context``, never comes this way.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        result: Tensor = _ops.forward_packed(input, weight, bias, geometry.packed)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight = ctx.saved_tensors
        need_input, need_weight, need_bias, _ = ctx.needs_input_grad
        geometry = ctx.geometry
        if (
            torch.is_grad_enabled()
            or _are_functorch_transforms_active()
            or forward_ad._current_level >= 0
            or is_dynamo_compiling()
        ):
            tensors = input, weight, None, None
            needed = need_input, need_weight, False, need_bias
            like = _ops.memory_format_of(input)
            found = transforms.gradients(grad, tensors, needed, like, geometry[:3])
            of_input, of_weight, _, of_bias = found
        else:
            of_input, of_weight, of_bias = _ops.backward_packed(
                grad, input, weight, geometry.packed, need_input | need_weight << 1 | need_bias << 2
            )
        return of_input, of_weight, of_bias, None


# What `_DepthwiseConv2d.apply` ends in where dynamo and torch.func have no part in it. First that
# looks up the signature of `forward`, every time, which takes longer than all the rest, and goes
# through all arguments for tensors.
_apply: Callable[..., Tensor] = super(Function, _DepthwiseConv2d).apply


def _compute(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """By the packed operator if the geometry is packed, and recorded if a gradient is wanted."""
    result: Tensor
    if geometry.packed is None:
        result = transforms.forward(input, weight, bias, *geometry[:3])
    elif torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        bias = None if bias is None else unwrap_if_dead(bias)
        result = _apply(unwrap_if_dead(input), unwrap_if_dead(weight), bias, geometry)
    else:
        result = _ops.forward_packed(input, weight, bias, geometry.packed)
    return result


# What stride, padding and dilation came to in earlier calls.
GEOMETRIES_KEPT = 1024
_geometries: dict[Hashable, tuple[Geometry, tuple[Any, Any, Any]]] = {}
_PLAIN = (Tensor, Parameter)  # a subclass may have symbolic sizes


def _key(
    weight: Tensor, stride: IntOrPair, padding: str | IntOrPair, dilation: IntOrPair
) -> Hashable:
    """What a call is remembered by; "same" depends on the filters' size as well, and four numbers
    are no padding unless they are an ``Around``."""
    kind = type(padding)
    return stride, padding, dilation, weight.shape if kind is str else kind


def _keep(
    geometry: Geometry, weight: Tensor, given: tuple[IntOrPair, str | IntOrPair, IntOrPair]
) -> Geometry:
    """Packed and remembered, if such calls can be told apart (1 from True, and sizes at all) and
    nobody but autograd asks for their derivatives."""
    if (
        is_dynamo_compiling()
        or transforms.active()
        or type(weight) not in _PLAIN
        or not _exact(*given)
    ):
        return geometry
    if len(_geometries) >= GEOMETRIES_KEPT:
        _geometries.clear()
    geometry = geometry.pack()
    _geometries[_key(weight, *given)] = geometry, given
    return geometry


def _kept(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: IntOrPair,
    padding: str | IntOrPair,
    dilation: IntOrPair,
    channels: int | None,
) -> Geometry | None:
    """The geometry of a call of which no more is to be checked than what the operator checks. That
    takes a tenth of the time of ``check``."""
    if (
        is_dynamo_compiling()
        or _are_functorch_transforms_active()  # as `transforms.active`, which takes twice the time
        or forward_ad._current_level >= 0
        or type(input) not in _PLAIN
        or type(weight) not in _PLAIN
        or not (bias is None or type(bias) in _PLAIN)
        or input.is_meta  # for which the operator checks little
    ):
        return None
    try:
        size = input.shape
        kept = _geometries.get(_key(weight, stride, padding, dilation))
    except (RuntimeError, TypeError):  # a nested tensor has no shape, a list no hash
        return None
    if kept is None or len(size) != 4 or not (channels is None or channels == size[1]):
        return None
    geometry, (strides, padded, dilations) = kept
    if stride is strides and padding is padded and dilation is dilations:
        return geometry
    return geometry if _exact(stride, padding, dilation) else None


def _exact(*numbers: Any) -> bool:
    """Whether equal numbers are the same arguments. A dict takes True and 1.0 for 1, we do not."""
    for number in numbers:
        kind = type(number)
        if kind is tuple or kind is Around:  # of a pair, or of one number: others were refused
            if type(number[0]) is not int or type(number[-1]) is not int:
                return False
        elif kind is not int and kind is not str:
            return False
    return True


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
    geometry = _kept(input, weight, bias, stride, padding, dilation, channels)
    if geometry is not None:
        try:
            if geometry.packed is not None and not torch.is_grad_enabled():
                result: Tensor = _ops.forward_packed(input, weight, bias, geometry.packed)
                return result
            return _compute(input, weight, bias, geometry)
        except RuntimeError as error:
            failure = error
        # Either an argument is wrong, which is better said here, or CUDA failed.
        check(input, weight, bias, stride, padding, dilation, channels)
        raise failure
    geometry = check(input, weight, bias, stride, padding, dilation, channels)
    geometry = _keep(geometry, weight, (stride, padding, dilation))
    if input.dim() == 4:
        return _compute(input, weight, bias, geometry)
    return _compute(input.unsqueeze(0), weight, bias, geometry).squeeze(0)


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
