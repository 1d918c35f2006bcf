"""Autocast through a converted network: dtypes, memory and steps as with nn.Conv2d."""

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from problems import LAYOUTS
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from twin_networks import depthwise_layers, group_norm, images, small, twins

every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@pytest.fixture(autouse=True)
def _repeatable_cudnn() -> Iterator[None]:
    """For the layers beside ours, of which some tests want the same bits again."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = before


def outputs_of_layers(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Those of the depthwise layers, and last the network's own."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
        for layer in depthwise_layers(network)
    ]
    outputs.append(network(x))
    for hook in hooks:
        hook.remove()
    return outputs


def flat(tensors: Iterable[Tensor | None]) -> Tensor:
    """All numbers of all tensors that there are."""
    return torch.cat([t.detach().double().flatten() for t in tensors if t is not None])


def check_rounding(ours: Tensor, stock: Tensor, exact: Tensor) -> None:
    """Ours are as near to float64's numbers as the stock network's are, or nearly."""
    assert ours.dtype == stock.dtype
    exact = exact.detach().double()
    error, allowed = (float((t.detach().double() - exact).norm()) for t in (ours, stock))
    assert error <= 1.5 * allowed


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_as_with_conv2d(layout: str, dtype: torch.dtype, device: torch.device) -> None:
    """Outputs in autocast's dtype, gradients in the parameters'."""
    x = images(device, LAYOUTS[layout])
    ours, stock = twins(small(group_norm).to(device, memory_format=LAYOUTS[layout]))  # type: ignore[call-overload]
    results: list[list[Tensor]] = []
    for network in (ours, stock, copy.deepcopy(stock).double()):
        exact = len(results) == 2
        with torch.autocast(device.type, dtype, enabled=not exact):
            outputs = outputs_of_layers(network, x.double() if exact else x)
        torch.autograd.backward(outputs[-1].float().square().sum())
        gradients = [p.grad for p in network.parameters()]
        assert {p.dtype for p in gradients if p is not None} == {next(network.parameters()).dtype}
        results.append([*outputs, flat(gradients)])
    assert {output.dtype for output in results[0][:3]} == {dtype}  # of the depthwise layers
    for mine, other, truth in zip(*results, strict=True):
        check_rounding(mine, other, truth)


@every_dtype
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "plain"])
def test_what_is_saved_is_what_conv2d_saves(
    autocast: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """For the backward: as many tensors, of the same sizes and dtypes, and no byte more."""
    x = images(device).requires_grad_()
    results = []
    for network in twins(small().to(device)):
        saved: list[Tensor] = []

        def pack(tensor: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(tensor)
            return tensor

        with (
            torch.autocast(device.type, dtype, enabled=autocast),
            saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            network(x)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        results.append((sum(storages.values()), sorted((str(t.dtype), t.shape) for t in saved)))
    assert results[0] == results[1]


def dtypes_in_turn(
    layer: nn.Module, x: Tensor, regions: list[torch.dtype | None]
) -> list[torch.dtype]:
    """Of outputs in regions of autocast, one within the other, and on the way out. None: off."""
    found = [layer(x).dtype]
    if regions:
        dtype, *others = regions
        with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
            found += dtypes_in_turn(layer, x, others)
        found.append(layer(x).dtype)
    return found


@every_dtype
def test_nested(dtype: torch.dtype, device: torch.device) -> None:
    """Off within, and on again; and in another dtype, in which nn.Conv2d would be given the weight
    that autocast keeps in the first."""
    layers = twins(nn.Conv2d(8, 8, 3, groups=8, device=device))
    x = torch.randn(2, 8, 9, 9, device=device)
    (other,) = {torch.bfloat16, torch.float16} - {dtype}
    there = [torch.float32, dtype, torch.float32, dtype]
    for layer in layers:
        assert dtypes_in_turn(layer, x, [dtype, None, dtype]) == [*there, *there[-2::-1]]
    assert dtypes_in_turn(layers[0], x, [dtype, other])[:4] == [torch.float32, dtype, other, dtype]


def test_float64_is_left_alone(device: torch.device) -> None:
    """In all of a network; and mixed with float32 it is refused, as by nn.Conv2d."""
    x = images(device, dtype=torch.float64)
    results: list[list[Tensor]] = []
    for network in twins(small(group_norm).to(device, torch.float64)):
        with torch.autocast(device.type, torch.bfloat16):
            results.append(outputs_of_layers(network, x))
    for ours, stock in zip(*results, strict=True):
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, stock)
    for layer in twins(nn.Conv2d(3, 3, 3, groups=3, device=device)):
        with (
            torch.autocast(device.type, torch.bfloat16),
            pytest.raises((TypeError, RuntimeError), match=r"dtype|type"),
        ):
            layer(x)


def scaled_steps(network: nn.Module, batches: list[Tensor], dtype: torch.dtype) -> list[float]:
    """A step of SGD for each batch; the scale after each."""
    device = batches[0].device.type
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=2)
    scales = []
    for x in batches:
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            loss = network(x).float().square().mean()
        torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@every_dtype
def test_steps_under_a_gradient_scaler(dtype: torch.dtype, device: torch.device) -> None:
    """An image that is not finite makes both skip the step and halve the scale."""
    batches = [images(device) for _ in range(4)]
    batches[1][0, 0, 0, 0] = torch.inf
    ours, stock = twins(small(group_norm).to(device))
    exact, before = copy.deepcopy(stock).double(), flat(stock.parameters())
    for network in (ours, stock):
        assert scaled_steps(network, batches, dtype) == [1024, 512, 512, 1024]
    finite = [batches[i].double() for i in (0, 2, 3)]
    scaled_steps(exact, finite, dtype)  # autocast leaves float64 alone
    updates = [flat(network.parameters()) - before for network in (ours, stock, exact)]
    check_rounding(*updates)


@every_dtype
@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "hooks"])
def test_checkpointing(
    reentrant: bool, inside: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """What is computed again is in the same dtype: gradients agree to the bit with those of a
    network that keeps its activations."""
    network, _ = twins(small(group_norm).to(device))
    x = images(device).requires_grad_()

    def under_autocast(x: Tensor) -> Any:
        with torch.autocast(device.type, dtype):
            return network(x)

    results = []
    for run in (
        under_autocast,
        lambda x: checkpoint(under_autocast if inside else network, x, use_reentrant=reentrant),
    ):
        with torch.autocast(device.type, dtype, enabled=not inside):
            output = run(x)
        assert output.dtype == dtype
        torch.autograd.backward(output.float().square().sum())
        results.append([output, x.grad, *(p.grad for p in network.parameters())])
        x.grad = None
        network.zero_grad()
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
