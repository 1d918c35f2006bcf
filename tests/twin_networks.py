"""Networks with depthwise layers, small and of a real size, each beside its converted twin."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import dwconv

Norm = Callable[[int], nn.Module]


def conv(channels: int, out: int, kernel: int, norm: Norm, **arguments: Any) -> list[nn.Module]:
    layer = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False, **arguments)
    return [layer, norm(out)]


class Block(nn.Module):
    """The inverted residual of MobileNetV2."""

    def __init__(
        self, channels: int, out: int, stride: int, expand: int, kernel: int, norm: Norm
    ) -> None:
        super().__init__()
        wide = channels * expand
        self.residual = stride == 1 and channels == out
        self.layers = nn.Sequential(
            *([*conv(channels, wide, 1, norm), nn.ReLU6(inplace=True)] if expand > 1 else []),
            *conv(wide, wide, kernel, norm, stride=stride, groups=wide),
            nn.ReLU6(inplace=True),
            *conv(wide, out, 1, norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class Classifier(nn.Sequential):
    """The mean over an image, as a sum of a fixed order: adaptive pooling has none in CUDA."""

    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = layer(input)
        return input.mean((2, 3))


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(4, channels)


def small(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """Three depthwise layers, one of them with a stride, one within a residual; images of some 12
    pixels on a side."""
    return Classifier(
        *conv(3, 8, 3, norm),
        nn.ReLU6(inplace=True),
        Block(8, 16, stride=1, expand=1, kernel=3, norm=norm),
        Block(16, 16, stride=1, expand=2, kernel=7, norm=norm),
        Block(16, 24, stride=2, expand=2, kernel=5, norm=norm),
        nn.Conv2d(24, 10, 1),
    )


# Expansion, channels, blocks and stride of the first one: table 2 of the MobileNetV2 paper.
MOBILENET_V2 = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def mobilenet_v2() -> nn.Module:
    """17 depthwise layers."""
    layers = [*conv(3, 32, 3, nn.BatchNorm2d, stride=2), nn.ReLU6(inplace=True)]
    channels = 32
    for expand, out, blocks, first_stride in MOBILENET_V2:
        for i in range(blocks):
            stride = first_stride if i == 0 else 1
            layers.append(Block(channels, out, stride, expand, 3, nn.BatchNorm2d))
            channels = out
    layers += [*conv(channels, 1280, 1, nn.BatchNorm2d), nn.ReLU6(inplace=True)]
    return Classifier(*layers, nn.Conv2d(1280, 1000, 1))


def twins(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The network, converted, and a copy that is not."""
    stock = copy.deepcopy(network)
    dwconv.convert(network)
    return network, stock


def depthwise_layers(network: nn.Module) -> list[nn.Conv2d]:
    """Converted or not."""
    convs = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    return [layer for layer in convs if layer.groups > 1]


def images(
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
    count: int = 4,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """A batch for `small`."""
    x = torch.randn(count, 3, 12, 13, dtype=dtype)
    return x.to(device).contiguous(memory_format=memory_format)
