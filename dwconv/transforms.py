"""The operators once more, with what is asked of them beside a result: derivatives to any order and
in both modes, and ``vmap``.

The dispatcher has it all. So autograd, ``torch.func`` and dual numbers find it, ``torch.compile``
and ``torch.export`` too. These operators are Python, and take the host its time. They call those of
``_ops``, which alone are left in a compiled graph, and which eager calls record by themselves.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch._C import (
    DispatchKeySet,
    _after_autograd_keyset,
    _any_requires_grad,
    _are_functorch_transforms_active,
    _AutoDispatchBelowAutograd,
    _is_fwd_grad_enabled,
)
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled, unpack_dual
from torch.autograd.function import _SingleLevelFunction

from dwconv import _ops
from dwconv._ops import Ints

Tensors = Sequence[Tensor | None]  # input, weight, output, bias
Dims = Sequence[int | None]  # where vmap's examples lie in each; None: they have it in common
Lists = Sequence[Ints]  # stride, padding, dilation


def active() -> bool:
    """Whether a call is inside ``torch.func``'s transformations or a level of dual numbers."""
    level: int = forward_ad._current_level
    return level >= 0 or _are_functorch_transforms_active()


# The operators and those that they call, with how `convolve` is given their arguments.
_OPERATORS: dict[str, tuple[Any, Callable[..., tuple[Any, Any, Any]]]] = {
    "depthwise_conv2d": (
        _ops.forward,
        lambda input, weight, bias, *lists: ((input, weight, None, bias), (), lists),
    ),
    "depthwise_conv2d_input": (
        _ops.backward_input,
        lambda output, weight, size, *lists: ((None, weight, output, None), size, lists),
    ),
    "depthwise_conv2d_weight": (
        _ops.backward_weight,
        lambda output, input, size, *lists: ((input, None, output, None), size, lists),
    ),
}
_library: Any = torch.library.Library("dwconv", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, (_called, _) in _OPERATORS.items():
    _library.define(str(_called._schema).replace(_called.name(), _name))

forward = torch.ops.dwconv.depthwise_conv2d.default
backward_input = torch.ops.dwconv.depthwise_conv2d_input.default
backward_weight = torch.ops.dwconv.depthwise_conv2d_weight.default


def convolve(tensors: Tensors, size: Ints, lists: Lists) -> Tensor:
    """The one of input, weight and output that is None. ``size`` is its own; an output has none.

    Depthwise convolution is linear in its input and in its weight: ``sum(output * grad_output)`` is
    linear in three tensors, and the operators are its derivatives by each.
    """
    input, weight, output, bias = tensors
    result: Tensor
    if output is None:
        result = forward(input, weight, bias, *lists)
    elif input is None:
        result = backward_input(output, weight, size, *lists)
    else:
        result = backward_weight(output, input, size, *lists)
    return result


def gradients(
    grad: Tensor, tensors: Tensors, wanted: Sequence[bool], like: torch.memory_format, lists: Lists
) -> tuple[Tensor | None, ...]:
    """Those of the four tensors: ``grad`` takes the place of the one that was computed."""
    input, weight, output, _ = tensors
    if weight is None:
        weight = grad
    else:
        # All of a call is in the memory format of its input, and gradients arrive in any.
        grad = _ops.contiguous(grad, like)
        input, output = (grad if tensor is None else tensor for tensor in (input, output))
    assert input is not None
    need_input, need_weight, need_output, need_bias = wanted
    of_weight = None
    if need_weight:
        of_weight = convolve((input, None, output, None), weight.shape, lists)
        of_weight = _ops.lying_as(of_weight, weight)
    return (
        convolve((None, weight, output, None), input.shape, lists) if need_input else None,
        of_weight,
        convolve((input, weight, None, None), (), lists) if need_output else None,
        grad.sum((0, 2, 3)) if need_bias else None,
    )


def _primal(tensor: Tensor) -> Tensor:
    """It without its tangent of this level."""
    primal: Tensor = unpack_dual(tensor).primal  # type: ignore[no-untyped-call]
    return primal


class _Convolution(_SingleLevelFunction):
    """``convolve`` for autograd. The derivatives of each operator are the other two, so it is its
    own backward. Of one level, since the dispatcher goes through the transformations."""

    @staticmethod
    def forward(compute: Callable[[], Tensor], *arguments: Any) -> Tensor:
        return compute()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *tensors, _bias, ctx.size, ctx.lists = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)  # a tangent that is not there would cost a convolution
        ctx.memory_format = _ops.memory_format_of(tensors[2] if tensors[0] is None else tensors[0])
        ctx.result_size = output.shape

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 7
        tensors, wanted = (*ctx.saved_tensors, None), ctx.needs_input_grad[1:5]
        found = gradients(grad, tensors, wanted, ctx.memory_format, ctx.lists)
        return None, *found, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """It is linear in each tensor, so each tangent takes its tensor's place."""
        _, *of_tensors, of_bias, _, _ = tangents
        # In here torch takes no forward-mode derivatives; but an outer jvp wants those of this one.
        with _set_fwd_grad_enabled(True):
            primals = [None if t is None else _primal(t) for t in ctx.saved_tensors]
            terms = [
                convolve([*primals[:i], tangent, *primals[i + 1 :], None], ctx.size, ctx.lists)
                for i, tangent in enumerate(of_tensors)
                if tangent is not None
            ]
            if of_bias is not None:
                terms.append(of_bias[:, None, None].expand(ctx.result_size))
            return reduce(torch.add, terms)


_apply: Callable[..., Tensor] = _Convolution.apply  # type: ignore[attr-defined]


def _over_examples(
    examples: int, dims: Dims, tensors: Tensors, size: Ints, lists: Lists
) -> tuple[Tensor, int]:
    """The results of all examples by one convolution, and the dimension in which they lie."""
    _, of_weight, _, of_bias = dims
    if tensors[1] is None or of_weight is not None or of_bias is not None:
        return _as_channels(examples, dims, tensors, size, lists)
    return _as_images(dims, tensors, size, lists)


def _as_images(dims: Dims, tensors: Tensors, size: Ints, lists: Lists) -> tuple[Tensor, int]:
    """Examples that have the filters in common are that many more images."""
    folded = list(tensors)
    given = 0 if dims[0] is not None else 2  # the input or the output
    images, dim = folded[given], dims[given]
    assert images is not None
    assert dim is not None
    images = images.movedim(dim, 0)
    inner = images.stride(0) < images.stride(1)
    if inner:  # in memory examples lie within images: they need no copy in this order
        images = images.transpose(0, 1)
    folded[given] = images.flatten(0, 1)
    outermost, next_ = images.shape[:2]
    result = convolve(folded, [outermost * next_, *size[1:]] if size else size, lists)
    return torch.unflatten(result, 0, (outermost, next_)), int(inner)


_CHANNELS = (1, 0, 1, 0)  # the dimension of channels or filters in each tensor


def _as_channels(
    examples: int, dims: Dims, tensors: Tensors, size: Ints, lists: Lists
) -> tuple[Tensor, int]:
    """Examples with filters of their own are that many more channels."""
    folded = [
        tensor if tensor is None else _fold(tensor, dim, channels, examples)
        for tensor, dim, channels in zip(tensors, dims, _CHANNELS, strict=True)
    ]
    channels = _CHANNELS[[tensor is None for tensor in tensors].index(True)]
    size = [n * examples if i == channels else n for i, n in enumerate(size)]
    result = convolve(folded, size, lists)
    return torch.unflatten(result, channels, (examples, -1)), channels


def _fold(tensor: Tensor, dim: int | None, channels: int, examples: int) -> Tensor:
    """Filter ``c * M + m`` of an example comes after all filters of the examples before."""
    if dim is None:
        size = tensor.shape
        tensor = tensor.unsqueeze(channels)
        tensor = tensor.expand(*size[:channels], examples, *size[channels:])
    else:
        tensor = tensor.movedim(dim, channels)
    return tensor.flatten(channels, channels + 1)


def _register(name: str, called: Any, arguments: Callable[..., tuple[Any, Any, Any]]) -> None:
    operator: Any = getattr(torch.ops.dwconv, name).default

    def differentiable(keys: DispatchKeySet, *given: Any) -> Any:
        grad, forward_grad = torch.is_grad_enabled(), _is_fwd_grad_enabled()

        def compute() -> Any:
            with _AutoDispatchBelowAutograd():
                if not _are_functorch_transforms_active():
                    return called(*given)
                # For the next transformation, whose derivatives Function has turned off as well.
                with torch.set_grad_enabled(grad), _set_fwd_grad_enabled(forward_grad):
                    return operator.redispatch(keys & _after_autograd_keyset, *given)

        if not active() and not (grad and _any_requires_grad(*given)):
            return compute()
        tensors, size, lists = arguments(*given)
        with enable_single_level_autograd_function():
            return _apply(compute, *tensors, size, lists)

    def batched(info: Any, dims: tuple[Any, ...], *given: Any) -> tuple[Tensor, int]:
        return _over_examples(info.batch_size, arguments(*dims)[0], *arguments(*given))

    _library.impl(name, differentiable, "Autograd", with_keyset=True)
    _library.impl(name, called, "CompositeExplicitAutograd")
    _ops.register_fake(f"dwconv::{name}")(called)
    torch.library.register_vmap(f"dwconv::{name}", batched)


for _name, (_called, _arguments) in _OPERATORS.items():
    _register(_name, _called, _arguments)
