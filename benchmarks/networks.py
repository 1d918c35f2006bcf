"""The networks that are trained, and the variants of each."""

import copy
import functools
import importlib.util
from collections.abc import Callable, Iterable

import torch
from replknet import RepLKNet
from torch import Tensor, nn

import dwconv

TIMM = (
    "convnext_tiny",
    "mobilenetv2_100",
    "efficientnet_b0",
    "inception_next_tiny",
    "mambaout_tiny",
    "caformer_s18",
)
CLASSES = 1000

# PyTorch's layers or ours, each as it is and under torch.compile; and layers that cost nothing.
VARIANTS = ("stock", "stock_compiled", "converted", "converted_compiled", "free")


def timm_network(name: str) -> nn.Module:
    import timm  # here, since the other networks do without

    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES)
    return network


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: functools.partial(timm_network, name) for name in TIMM},
    "replknet_31b": functools.partial(RepLKNet, classes=CLASSES),
}


def unavailable(names: Iterable[str]) -> str | None:
    """Why some of these networks cannot be built, as a sentence, or None."""
    wanted = [name for name in names if name in TIMM]
    if not wanted or importlib.util.find_spec("timm"):
        return None
    return f"timm, which builds {', '.join(wanted)}, is not installed: pip install timm"


@functools.cache
def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def build(name: str, variant: str) -> nn.Module:
    """A network on the CPU that shares nothing; the same weights for every variant."""
    network = copy.deepcopy(_built(name))
    if variant == "free":
        make_free(network)
    elif variant.startswith("converted"):
        report = dwconv.convert(network)
        if report.skipped:
            raise RuntimeError(f"{report.skipped[0].name} {report.skipped[0].reason}")
    return network


def depthwise_layers(network: nn.Module) -> list[tuple[str, nn.Conv2d]]:
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
    ]


class Free(nn.Module):
    """In place of a depthwise layer: a strided view of the input, of the output's size."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        if layer.out_channels != layer.in_channels:
            raise ValueError(
                "layer must have as many output channels as input channels, got "
                f"{layer.out_channels} for {layer.in_channels}"
            )
        # Registered, but unused: their gradients stay None.
        self.weight, self.bias = layer.weight, layer.bias
        left, right, top, bottom = layer._reversed_padding_repeated_twice
        # By how much a side grows, before its stride divides it.
        self._growth = [
            around - dilation * (kernel - 1)
            for around, dilation, kernel in zip(
                (top + bottom, left + right), layer.dilation, layer.kernel_size, strict=True
            )
        ]
        self._stride = layer.stride

    def forward(self, x: Tensor) -> Tensor:
        down, right = self._stride
        rows, columns = (
            (side + growth - 1) // stride + 1
            for side, growth, stride in zip(x.shape[-2:], self._growth, self._stride, strict=True)
        )
        view = x[..., : rows * down : down, : columns * right : right]
        if view.shape[-2:] != (rows, columns):  # more than there are: one element for all
            view = x[..., :1, :1].expand(*x.shape[:-2], rows, columns)
        return view


def make_free(network: nn.Module) -> None:
    """Replaces every depthwise layer, in place."""
    for name, layer in depthwise_layers(network):
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, Free(layer))
