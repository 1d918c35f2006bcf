"""A converted network in the modes of training: checkpointing, no_grad and inference mode,
deterministic algorithms; and its memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from problems import LAYOUTS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from twin_networks import Block, depthwise_layers, group_norm, images, mobilenet_v2, small, twins

from dwconv import functional

every_layout = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def step(network: Callable[[Tensor], Any], x: Tensor, layers: nn.Module) -> list[Tensor]:
    """Output, input gradient, parameter gradients, which are cleared again."""
    x = x.detach().requires_grad_()
    output = network(x)
    output.square().sum().backward()
    found = [output.detach(), x.grad, *(p.grad for p in layers.parameters())]
    layers.zero_grad()
    return [tensor for tensor in found if tensor is not None]


def check_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    """To the bit."""
    for ours, other in zip(found, expected, strict=True):
        assert torch.equal(ours, other)


@every_layout
def test_trains_as_the_stock_network(layout: str, device: torch.device) -> None:
    """Steps of SGD in float64, where sums in another order make no difference to speak of; the
    buffers of the normalisation too."""
    batches = [images(device, LAYOUTS[layout], dtype=torch.float64) for _ in range(3)]
    results = []
    for network in twins(small().to(device, torch.float64, memory_format=LAYOUTS[layout])):  # type: ignore[call-overload]
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
        for x in batches:
            optimizer.zero_grad()
            torch.autograd.backward(network(x).square().mean())
            optimizer.step()
        results.append([*network.state_dict().values(), network.eval()(batches[0])])
    for ours, stock in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-9, atol=1e-9)


class Checkpointed(nn.Module):
    """A network whose blocks compute their activations again in the backward."""

    def __init__(self, network: nn.Sequential, **options: Any) -> None:
        super().__init__()
        self.network = network
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.network:
            x = checkpoint(layer, x, **self.options) if isinstance(layer, Block) else layer(x)
        return x.mean((2, 3))


CHECKPOINTS: dict[str, Callable[[nn.Module], Callable[[Tensor], Any]]] = {
    "blocks": lambda network: Checkpointed(network, use_reentrant=False),  # type: ignore[arg-type]
    "blocks, reentrant": lambda network: Checkpointed(network, use_reentrant=True),  # type: ignore[arg-type]
    "all": lambda network: lambda x: checkpoint(network, x, use_reentrant=False),
    "all, reentrant": lambda network: lambda x: checkpoint(network, x, use_reentrant=True),
}


@every_layout
@pytest.mark.parametrize("wrap", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpointing(
    wrap: Callable[[nn.Module], Callable[[Tensor], Any]],
    layout: str,
    device: torch.device,
    deterministic: None,
) -> None:
    """Gradients to the bit as without it."""
    network, _ = twins(small().to(device))
    x = images(device, LAYOUTS[layout])
    check_equal(step(wrap(network), x, network), step(network, x, network))


@every_layout
def test_two_runs_agree_in_deterministic_mode(
    layout: str, device: torch.device, deterministic: None
) -> None:
    """No operator is refused, and memory that starts as NaN is written in full."""
    network, _ = twins(small().to(device))
    x = images(device, LAYOUTS[layout])
    check_equal(step(network, x, network), step(network, x, network))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_without_gradients(mode: Any, training: bool, device: torch.device) -> None:
    """Nothing is recorded in any layer, and the result is that of the stock network."""
    ours, stock = (network.train(training) for network in twins(small().to(device, torch.float64)))
    outputs: list[Tensor] = []
    for layer in depthwise_layers(ours):
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output))
    x = images(device, dtype=torch.float64)
    with mode():
        found, expected = ours(x), stock(x)
    torch.testing.assert_close(found, expected)
    assert len(outputs) == 3
    for output in (*outputs, found):
        assert not output.requires_grad
        assert output.grad_fn is None
        assert output.is_inference() == expected.is_inference()


def test_training_after_inference_mode(device: torch.device, deterministic: None) -> None:
    """What an earlier call left behind, such as the geometry of each layer, is no tensor of
    inference mode: neither in this network nor in the next one of the same shape."""
    network, _ = twins(small(group_norm).to(device))
    x = images(device)
    expected = step(network, x, network)
    functional._geometries.clear()
    with torch.inference_mode():
        network(x)
    check_equal(step(network, x, network), expected)
    with torch.inference_mode():
        network(x)
        with torch.inference_mode(False):
            check_equal(step(network, x.clone(), network), expected)


def test_tensors_of_inference_mode_are_not_trained_on(device: torch.device) -> None:
    """The error is that of nn.Conv2d, of a call that is new and of one that is known."""
    with torch.inference_mode():
        x = torch.randn(1, 8, 5, 5, device=device)
    for layer in twins(nn.Conv2d(8, 8, 3, groups=8, device=device)):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
                layer(x)
        layer.requires_grad_(False)
        assert not layer(x).requires_grad


def test_frozen_layers(device: torch.device) -> None:
    """Gradients go through them, and into none of them."""
    results = []
    x = images(device, dtype=torch.float64)
    for network in twins(small(group_norm).to(device, torch.float64)):
        layers = depthwise_layers(network)
        for layer in layers:
            layer.requires_grad_(False)
        results.append(step(network, x, network))
        assert all(layer.weight.grad is None for layer in layers)
    for ours, stock in zip(*results, strict=True):
        torch.testing.assert_close(ours, stock)


def test_a_layer_that_is_called_twice(device: torch.device) -> None:
    """Before its backward, as where a network shares it: the gradients of both calls are added."""
    layers = twins(nn.Conv2d(8, 8, 3, padding=1, groups=8, device=device, dtype=torch.float64))
    x = torch.randn(2, 8, 6, 7, device=device, dtype=torch.float64)
    found, expected = (step(lambda x, f=f: f(f(x)), x, f) for f in layers)  # type: ignore[misc]
    for ours, stock in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, stock)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@every_layout
def test_peak_memory_is_not_above_that_of_conv2d(layout: str, dtype: torch.dtype) -> None:
    """Of a step of MobileNetV2. Partial sums of a weight gradient, some 0.7 MB for one of these
    layers and for a short time, may come on top."""
    device = torch.device("cuda")
    x = torch.randn(16, 3, 224, 224, dtype=dtype, device=device)
    x = x.contiguous(memory_format=LAYOUTS[layout])
    peaks = []
    for network in twins(mobilenet_v2().to(device, dtype, memory_format=LAYOUTS[layout])):  # type: ignore[call-overload]
        for _ in range(2):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.autograd.backward(network(x).float().square().mean())
            network.zero_grad()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    ours, stock = peaks
    assert ours <= stock + 2**20
