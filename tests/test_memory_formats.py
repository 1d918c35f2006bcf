"""channels_last through a whole network: who keeps it, what is copied on the way, and how the
weights' gradients lie."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import LAYOUTS, has_strides_of, random_tensor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from twin_networks import depthwise_layers, images, small, twins

import dwconv

every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_format_of_weight = pytest.mark.parametrize("of_weight", LAYOUTS)


def networks(device: torch.device, layout: str) -> tuple[nn.Module, nn.Module]:
    """Ours and the stock one, parameters in that format too."""
    ours, stock = twins(small().to(device))
    for network in (ours, stock):
        network.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    return ours, stock


def step(network: Callable[[Tensor], Any], x: Tensor) -> None:
    torch.autograd.backward(network(x).square().sum())


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the copies of images, by operator."""

    OPERATORS = ("aten::clone", "aten::_to_copy", "aten::copy_", "aten::contiguous")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func.name() in self.OPERATORS and args[0].dim() == 4:
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@every_layout
def test_every_layer_keeps_the_format(layout: str, device: torch.device) -> None:
    """Outputs have their input's, and so have input gradients, though the one of the mean over
    the image comes expanded."""
    network, _ = networks(device, layout)
    outputs: list[bool] = []
    gradients: list[bool] = []

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        outputs.append(has_strides_of(output, layout))
        inputs[0].register_hook(lambda grad: gradients.append(has_strides_of(grad, layout)))  # type: ignore[no-untyped-call]

    for layer in depthwise_layers(network):
        assert isinstance(layer, dwconv.DepthwiseConv2d)
        layer.register_forward_hook(note)
    x = images(device, LAYOUTS[layout]).requires_grad_()
    step(network, x)
    assert outputs == gradients == [True] * 3
    assert x.grad is not None
    assert has_strides_of(x.grad, layout)


@every_layout
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_nothing_is_copied_that_conv2d_does_not_copy(
    autocast: bool, layout: str, device: torch.device
) -> None:
    """Casts of autocast are copies as well."""
    counts = []
    x = images(device, LAYOUTS[layout])
    for network in networks(device, layout):
        with Copies() as copies, torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            step(network, x)
        counts.append(copies.counts)
    ours, stock = counts
    assert (ours["aten::_to_copy"] > 0) == autocast  # they are seen
    assert ours <= stock


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@every_layout
def test_nothing_is_copied_within_the_operators(layout: str, dtype: torch.dtype) -> None:
    """The profiler sees what the operators call, and which kernels run: no image is transposed."""
    device = torch.device("cuda")
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    x = images(device, LAYOUTS[layout], dtype=dtype)
    counts = []
    for network in networks(device, layout):
        network.to(dtype)
        step(network, x)  # kernels are loaded, cuDNN has chosen
        with torch.profiler.profile(activities=activities) as profile:
            step(network, x)
            torch.cuda.synchronize()
        names = [event.name for event in profile.events()]
        assert not any("transpose_" in name for name in names)
        counts.append(names.count("aten::copy_"))
    ours, stock = counts
    assert ours <= stock


@every_layout
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_in_the_other_format(stride: int, layout: str, device: torch.device) -> None:
    """Gives the bits that it gives in the right one, and gradients in the input's format."""
    layer = dwconv.DepthwiseConv2d(8, 16, 5, stride, padding=2, device=device)
    x = random_tensor([4, 8, 12, 13], torch.float32, device, layout).requires_grad_()
    y = layer(x)
    inputs = (x, *layer.parameters())
    grad = torch.randn_like(y)
    assert has_strides_of(grad, layout)
    (other,) = LAYOUTS.keys() - {layout}
    expected = torch.autograd.grad(y, inputs, grad, retain_graph=True)
    found = torch.autograd.grad(y, inputs, grad.contiguous(memory_format=LAYOUTS[other]))
    assert has_strides_of(found[0], layout)
    for ours, same in zip(found, expected, strict=True):
        assert torch.equal(ours, same)


@every_layout
@every_format_of_weight
@pytest.mark.parametrize("kernel", [3, (1, 5), (4, 1), 1], ids=str)
def test_weight_gradients_lie_as_their_weights(
    kernel: Any, of_weight: str, layout: str, device: torch.device
) -> None:
    """Strides of the axis of one element too, by which (C, 1, kh, kw) in channels_last differs from
    contiguous: DistributedDataParallel compares them all."""
    layer = dwconv.DepthwiseConv2d(8, 16, kernel, device=device)
    layer.to(memory_format=LAYOUTS[of_weight])  # type: ignore[call-overload]
    x = random_tensor([2, 8, 9, 9], torch.float32, device, layout)
    for autocast in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            loss = layer(x).float().square().sum()
        for create_graph in (True, False):
            (grad,) = torch.autograd.grad(loss, layer.weight, create_graph=create_graph)
            assert grad.stride() == layer.weight.stride()


@every_layout
@every_format_of_weight
def test_compiled_weight_gradients_lie_as_their_weights(
    of_weight: str, layout: str, device: torch.device
) -> None:
    layer = dwconv.DepthwiseConv2d(8, 16, 3, device=device)
    layer.to(memory_format=LAYOUTS[of_weight])  # type: ignore[call-overload]
    x = random_tensor([2, 8, 9, 9], torch.float32, device, layout)
    torch._dynamo.reset()
    step(torch.compile(layer, backend="aot_eager", fullgraph=True), x)
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == layer.weight.stride()
