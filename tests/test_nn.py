"""DepthwiseConv2d against nn.Conv2d(groups=in_channels): same parameters, same numbers."""

import copy
import pickle
from typing import Any

import pytest
import torch
from problems import DTYPES
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.nn.utils.prune import l1_unstructured

import dwconv

# Loosely typed, so that they take *arguments.
DepthwiseConv2d: Any = dwconv.DepthwiseConv2d
Conv2d: Any = nn.Conv2d
pruned: Any = l1_unstructured

LAYERS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "plain": ((4, 4, 3), {}),
    "multiplier": ((4, 12, 3), {"padding": 1}),
    "no bias": ((4, 8, (3, 2)), {"bias": False, "padding": (1, 0)}),
    "stride": ((4, 4, 5), {"stride": (2, 3), "padding": 2}),
    "dilation": ((4, 4, 3), {"dilation": (2, 1), "padding": (2, 1)}),
    "valid": ((4, 4, 3), {"padding": "valid"}),
    "same": ((4, 4, (3, 5)), {"padding": "same"}),
    "same, even kernel": ((4, 4, (2, 4)), {"padding": "same"}),
    "same, dilated": ((4, 4, (4, 3)), {"padding": "same", "dilation": (3, 2)}),
    "one channel": ((1, 3, 3), {"padding": 1}),
}
every_layer = pytest.mark.parametrize("arguments", LAYERS.values(), ids=LAYERS)
every_mode = pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
same_even_kernel_warns = pytest.mark.filterwarnings("ignore:Using padding='same' with even")


def twins(
    *arguments: Any, device: torch.device | None = None, **options: Any
) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Our layer and PyTorch's, each made under the same seed."""
    torch.manual_seed(7)
    ours = DepthwiseConv2d(*arguments, device=device, **options)
    torch.manual_seed(7)
    return ours, Conv2d(*arguments, groups=arguments[0], device=device, **options)


@every_layer
@every_mode
def test_initialised_as_conv2d(
    arguments: tuple[tuple[Any, ...], dict[str, Any]], padding_mode: str, device: torch.device
) -> None:
    """The same parameters under the same seed, and the same numbers drawn after."""
    positional, options = arguments
    torch.manual_seed(7)
    ours = DepthwiseConv2d(*positional, padding_mode=padding_mode, device=device, **options)
    after = torch.rand(3, device=device)
    torch.manual_seed(7)
    theirs = Conv2d(
        *positional, groups=positional[0], padding_mode=padding_mode, device=device, **options
    )
    assert torch.equal(after, torch.rand(3, device=device))
    for (name, mine), (other_name, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(mine, other)


@same_even_kernel_warns
@every_layer
@every_mode
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
def test_computes_as_conv2d(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    padding_mode: str,
    batched: bool,
    device: torch.device,
) -> None:
    """Output and all gradients, in every padding mode."""
    positional, options = arguments
    ours, theirs = twins(*positional, padding_mode=padding_mode, device=device, **options)
    shape = (2, positional[0], 11, 12)[0 if batched else 1 :]
    x = torch.randn(shape, device=device, requires_grad=True)
    results = []
    for layer in (ours, theirs):
        output = layer(x)
        gradients = torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])
        results.append([output, *gradients])
    for mine, other in zip(*results, strict=True):
        assert mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_state_dict_goes_both_ways(device: torch.device) -> None:
    """Same keys, shapes and dtypes: a checkpoint of either layer loads into the other."""
    ours, theirs = twins(4, 8, 3, device=device)
    x = torch.randn(2, 4, 9, 9, device=device)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["weight", "bias"]
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(-2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


def test_is_a_conv2d_without_new_state() -> None:
    """Whatever looks for nn.Conv2d and its attributes finds them."""
    ours, theirs = twins(4, 8, (3, 5), stride=(2, 1), padding=(1, 2), dilation=2)
    assert isinstance(ours, nn.Conv2d)
    assert vars(ours).keys() == vars(theirs).keys()
    for name in nn.Conv2d.__constants__:
        assert getattr(ours, name) == getattr(theirs, name)


@every_layer
@every_mode
def test_repr_is_that_of_conv2d(
    arguments: tuple[tuple[Any, ...], dict[str, Any]], padding_mode: str
) -> None:
    """Under its own name."""
    positional, options = arguments
    ours, theirs = twins(*positional, padding_mode=padding_mode, **options)
    assert repr(ours) == repr(theirs).replace("Conv2d(", "DepthwiseConv2d(")


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_and_pickles(duplicate: Any, device: torch.device) -> None:
    """The copy computes the same with parameters of its own."""
    layer, _ = twins(4, 8, 3, padding=1, padding_mode="reflect", device=device)
    twin = duplicate(layer)
    x = torch.randn(2, 4, 9, 9, device=device)
    assert type(twin) is DepthwiseConv2d
    assert torch.equal(twin(x), layer(x))
    with torch.no_grad():
        twin.weight.zero_()
    assert not torch.equal(twin(x), layer(x))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: register_parametrization(layer, "weight", Doubled()),
        lambda layer: pruned(layer, "weight", amount=0.5),
        lambda layer: pruned(layer, "bias", amount=0.5),
    ],
    ids=["parametrization", "pruned weight", "pruned bias"],
)
def test_parameters_that_are_computed(change: Any, device: torch.device) -> None:
    """They are no longer among the layer's own."""
    layers = twins(4, 8, 3, device=device)
    x = torch.randn(2, 4, 9, 9, device=device)
    plain = layers[0](x)
    ours, theirs = (change(layer)(x) for layer in layers)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.equal(ours, plain)


def test_functional_call(device: torch.device) -> None:
    """Parameters that stand in for the layer's own."""
    layers = twins(4, 8, 3, device=device)
    x = torch.randn(2, 4, 9, 9, device=device)
    others = {name: torch.randn_like(p) for name, p in layers[0].named_parameters()}
    ours, theirs = (torch.func.functional_call(layer, others, x) for layer in layers)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_dtype_and_device_arguments(dtype: torch.dtype, device: torch.device) -> None:
    """Parameters are made there, and the output follows; .to() moves them later."""
    layer = DepthwiseConv2d(4, 8, 3, device=device, dtype=dtype)
    assert {(p.dtype, p.device.type) for p in layer.parameters()} == {(dtype, device.type)}
    x = torch.randn(2, 4, 9, 9, dtype=dtype, device=device)
    assert layer(x).dtype == dtype
    moved = DepthwiseConv2d(4, 8, 3).to(device, dtype)
    assert moved(x).dtype == dtype


def test_half_as_conv2d(device: torch.device) -> None:
    """.half() of the layer computes what .half() of nn.Conv2d does."""
    ours, theirs = (layer.half() for layer in twins(4, 8, 3, padding=1, device=device))
    x = torch.randn(2, 4, 9, 9, dtype=torch.float16, device=device)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-2, atol=1e-2)


def test_meta_device() -> None:
    """Shapes without memory, then real parameters: as large models are loaded."""
    layer = DepthwiseConv2d(4, 8, 3, padding="same", device="meta")
    assert layer(torch.empty(2, 4, 9, 9, device="meta")).shape == (2, 8, 9, 9)
    real, _ = twins(4, 8, 3, padding="same")
    layer.load_state_dict(real.state_dict(), assign=True)
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(layer(x), real(x))


def test_channels_last_layer_and_input(device: torch.device) -> None:
    """.to(memory_format=...) permutes the weight's strides; results follow the input's format."""
    ours, theirs = twins(4, 8, 3, padding=1, device=device)
    x = torch.randn(2, 4, 9, 10, device=device)
    expected = theirs(x)
    for layer_format in (torch.contiguous_format, torch.channels_last):
        layer = copy.deepcopy(ours).to(memory_format=layer_format)  # type: ignore[call-overload]
        for input_format in (torch.contiguous_format, torch.channels_last):
            output = layer(x.contiguous(memory_format=input_format))
            assert output.is_contiguous(memory_format=input_format)
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def train(layers: list[nn.Conv2d], data: Tensor) -> list[Tensor]:
    """Three steps of SGD on a stack of layers: the losses and the final parameters."""
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = (model(data) - data.mean()).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.detach())
    return [*losses, *(parameter.detach() for parameter in model.parameters())]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_trains_as_conv2d(memory_format: torch.memory_format, device: torch.device) -> None:
    """The same losses and parameters after three steps."""
    first = twins(4, 8, 3, padding=1, device=device)
    second = twins(8, 8, 5, stride=2, padding="valid", device=device)
    data = torch.randn(3, 4, 12, 13, device=device).contiguous(memory_format=memory_format)
    results = [train(list(layers), data) for layers in zip(first, second, strict=True)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
