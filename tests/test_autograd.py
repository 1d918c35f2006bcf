"""Gradients of depthwise_conv2d: right to the second order, and no more work than asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from derivatives import Calls, conv2d, depthwise_conv2d, every_layout, make
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

GEOMETRIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "padding": {"padding": (1, 2)},
    "stride": {"stride": (2, 3), "padding": 1},
    "dilation": {"dilation": (2, 1), "padding": (2, 1)},
    "stride and dilation": {"stride": 2, "dilation": 2, "padding": 3},
    "same": {"padding": "same", "dilation": (1, 3)},
}
every_geometry = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)


@every_geometry
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_gradients_match_differences(
    geometry: dict[str, Any], multiplier: int, bias: bool, device: torch.device
) -> None:
    """First and second derivatives against finite differences, in float64."""
    tensors = make(device, multiplier, bias)

    def function(*inputs: Tensor) -> Tensor:
        return depthwise_conv2d(*inputs, **geometry)

    assert gradcheck(function, tensors, nondet_tol=0.0, fast_mode=True)
    assert gradgradcheck(function, tensors, nondet_tol=0.0, fast_mode=True)


def test_gradients_match_differences_one_by_one(device: torch.device) -> None:
    """The slow mode of gradcheck, which compares every entry of the Jacobian."""
    tensors = make(device)
    assert gradcheck(lambda *t: depthwise_conv2d(*t, stride=2, padding=1), tensors)
    assert gradgradcheck(lambda *t: depthwise_conv2d(*t, stride=2, padding=1), tensors)


# PyTorch says so of "same" where the padding is asymmetric.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@every_geometry
@every_layout
def test_double_backward_equals_conv2d(
    geometry: dict[str, Any], memory_format: torch.memory_format, device: torch.device
) -> None:
    """A gradient penalty, as in WGAN-GP, trains every tensor as with PyTorch's convolution."""
    tensors = make(device, memory_format=memory_format)

    def penalty_gradients(function: Callable[..., Tensor]) -> list[Tensor | None]:
        output = function(*tensors, **geometry)
        first = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in first]).sum()
        return list(torch.autograd.grad(penalty, tensors))

    ours = penalty_gradients(depthwise_conv2d)
    theirs = penalty_gradients(conv2d)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_third_order(device: torch.device) -> None:
    """The function is its own backward, to any order."""
    x, w = make(device, bias=False)

    def third(function: Callable[..., Tensor]) -> Tensor:
        (first,) = torch.autograd.grad(function(x, w).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), w, create_graph=True)
        (result,) = torch.autograd.grad(second.pow(2).sum(), x)
        return result

    torch.testing.assert_close(third(depthwise_conv2d), third(conv2d))


@pytest.mark.parametrize("wanted", range(8), ids=lambda wanted: f"{wanted:03b}")
def test_only_gradients_asked_for_are_computed(wanted: int, device: torch.device) -> None:
    """Each subset of input, weight and bias, by one operator; none at all records no graph."""
    tensors = [
        tensor.detach().requires_grad_(bool(wanted & 1 << i))
        for i, tensor in enumerate(make(device))
    ]
    with Calls() as calls:
        output = depthwise_conv2d(*tensors)
        assert calls.names == ["forward_packed"]
        assert output.requires_grad == (wanted != 0)
        if wanted:
            torch.autograd.backward(output, torch.ones_like(output))
            assert calls.names == ["forward_packed", "backward_packed"]
            assert calls.last[-1] == wanted
    for i, tensor in enumerate(tensors):
        assert (tensor.grad is not None) == bool(wanted & 1 << i)


@pytest.mark.parametrize("padding", [127, 128])
def test_numbers_that_are_too_large_to_pack(padding: int, device: torch.device) -> None:
    """They go to the operators as lists, with the same results."""
    x, w, b = make(device)
    with Calls() as calls:
        ours = torch.autograd.grad(depthwise_conv2d(x, w, b, padding=padding).sum(), (x, w, b))
    assert calls.names[0] == ("forward_packed" if padding < 128 else "forward")
    theirs = torch.autograd.grad(conv2d(x, w, b, padding=padding).sum(), (x, w, b))
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected)


def test_second_order_computes_only_what_is_asked_for(device: torch.device) -> None:
    """The input gradient's derivative by the output gradient alone is one forward."""
    x, w = make(device, bias=False)
    output = depthwise_conv2d(x, w.detach())
    grad = torch.randn_like(output, requires_grad=True)
    (grad_x,) = torch.autograd.grad(output, x, grad, create_graph=True)
    with Calls() as calls:
        torch.autograd.grad(grad_x.sum(), grad)
    assert calls.names == ["forward"]


def test_no_graph_where_none_is_wanted(device: torch.device) -> None:
    """Under no_grad and inference_mode nothing is recorded, though parameters want gradients."""
    tensors = make(device)
    with torch.no_grad():
        assert depthwise_conv2d(*tensors).grad_fn is None
    with torch.inference_mode():
        output = depthwise_conv2d(*tensors)
    assert output.is_inference()
    plain = [tensor.detach() for tensor in tensors]
    assert depthwise_conv2d(*plain).grad_fn is None


@every_layout
def test_saves_input_and_weight_and_nothing_else(
    memory_format: torch.memory_format, device: torch.device
) -> None:
    """The tensors themselves, not copies: no memory beyond the output."""
    x, w, b = make(device, memory_format=memory_format)
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        depthwise_conv2d(x, w, b, padding=1)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr(), w.data_ptr()]


def test_saved_tensor_changed_in_place_is_noticed(device: torch.device) -> None:
    """Autograd's version check works: no silent wrong gradient."""
    x, w = make(device, bias=False)
    output = depthwise_conv2d(x, w)
    with torch.no_grad():
        w.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(output.sum())


@every_layout
def test_gradients_have_the_memory_format_of_their_tensors(
    memory_format: torch.memory_format, device: torch.device
) -> None:
    """Whatever the strides of the gradient that arrives: expanded, as sum() gives, or the other."""
    x, w, b = make(device, memory_format=memory_format)
    output = depthwise_conv2d(x, w, b, padding=1)
    other = torch.randn(output.shape[::-1], dtype=output.dtype, device=device).permute(3, 2, 1, 0)
    for gradient in (torch.ones((), device=device, dtype=x.dtype).expand_as(output), other):
        ours = torch.autograd.grad(output, (x, w, b), gradient, retain_graph=True)
        theirs = torch.autograd.grad(conv2d(x, w, b, padding=1), (x, w, b), gradient)
        assert ours[0].is_contiguous(memory_format=memory_format)
        assert ours[1].is_contiguous()
        for mine, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.float16], ids=str)
def test_autocast_as_conv2d(dtype: torch.dtype, given: torch.dtype, device: torch.device) -> None:
    """Same dtypes of output and gradients as PyTorch's convolution, the same numbers nearly;
    float64 stays as it is."""
    tensors = make(device, dtype=given)
    results = []
    for function in (depthwise_conv2d, conv2d):
        with torch.autocast(device.type, dtype=dtype):
            output = function(*tensors, padding=1)
            with torch.autocast(device.type, enabled=False):
                inner = function(*tensors, padding=1)
        assert inner.dtype == given
        gradients = torch.autograd.grad(output.float().square().sum(), tensors)
        results.append([output, *gradients])
    assert results[0][0].dtype == (torch.float64 if given == torch.float64 else dtype)
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        tolerance = 0.05 if theirs.dtype != torch.float64 else 1e-6
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)


def test_autocast_takes_mixed_dtypes(device: torch.device) -> None:
    """A float32 layer after a float16 one, as autocast makes them."""
    x, w, b = make(device, dtype=torch.float32)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = depthwise_conv2d(x.half(), w, b.bfloat16())
    assert output.dtype == torch.bfloat16


def test_deterministic_mode_accepts_all_passes(device: torch.device) -> None:
    """use_deterministic_algorithms(True) raises for operators that are not."""
    tensors = make(device)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [
            torch.autograd.grad(depthwise_conv2d(*tensors).square().sum(), tensors)
            for _ in range(2)
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant: bool, device: torch.device) -> None:
    """Recomputed in the backward, to the same bits."""
    tensors = make(device)
    plain = torch.autograd.grad(depthwise_conv2d(*tensors).square().sum(), tensors)
    output: Tensor = checkpoint(depthwise_conv2d, *tensors, use_reentrant=reentrant)
    torch.autograd.backward(output.square().sum())
    for tensor, expected in zip(tensors, plain, strict=True):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, expected)


def test_empty_batch_trains(device: torch.device) -> None:
    """No images: gradients of the right shapes, of the parameters zero."""
    x, w, b = make(device)
    x = x.detach()[:0].requires_grad_()
    torch.autograd.backward(depthwise_conv2d(x, w, b).sum())
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in (w, b):
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
