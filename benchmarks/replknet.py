"""RepLKNet: the network of "Scaling Up Your Kernels to 31x31" (Ding et al., CVPR 2022, arXiv
2203.06717), as its section 4 and its table describe it, without drop path."""

from collections.abc import Sequence

from torch import Tensor, nn

SMALL_KERNEL = 5  # of the parallel branch, which is merged into the large filters after training
EXPANSION = 4  # of a ConvFFN's channels


def convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, depthwise: bool = False
) -> nn.Sequential:
    """A convolution that keeps the size, or divides it by the stride, and its BatchNorm."""
    groups = in_channels if depthwise else 1
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    )


class LargeKernel(nn.Module):
    """A depthwise convolution with large filters, plus one with small filters."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.large = convolution(channels, channels, kernel, depthwise=True)
        self.small = convolution(channels, channels, SMALL_KERNEL, depthwise=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.large(x) + self.small(x)
        return out


class Residual(nn.Module):
    """Adds to its input what `layers` make of it, normalised."""

    def __init__(self, channels: int, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(channels), *layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


def large_kernel_block(channels: int, kernel: int) -> Residual:
    """The paper's RepLK block."""
    return Residual(
        channels,
        convolution(channels, channels, 1),
        nn.ReLU(),
        LargeKernel(channels, kernel),
        nn.ReLU(),
        convolution(channels, channels, 1),
    )


def feed_forward_block(channels: int) -> Residual:
    """The paper's ConvFFN block."""
    return Residual(
        channels,
        convolution(channels, EXPANSION * channels, 1),
        nn.GELU(),
        convolution(EXPANSION * channels, channels, 1),
    )


def stem(channels: int) -> nn.Sequential:
    """From an image to a quarter of its size."""
    return nn.Sequential(
        convolution(3, channels, 3, stride=2),
        nn.ReLU(),
        convolution(channels, channels, 3, depthwise=True),
        nn.ReLU(),
        convolution(channels, channels, 1),
        nn.ReLU(),
        convolution(channels, channels, 3, stride=2, depthwise=True),
        nn.ReLU(),
    )


def transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """Between two stages: more channels, half the size."""
    return nn.Sequential(
        convolution(in_channels, out_channels, 1),
        nn.ReLU(),
        convolution(out_channels, out_channels, 3, stride=2, depthwise=True),
        nn.ReLU(),
    )


class RepLKNet(nn.Module):
    """Classifies images: ``(N, 3, H, W)`` to ``(N, classes)``.

    Each stage has its number of blocks, a RepLK block and a ConvFFN block each, with filters and
    channels of its own. 31B is the paper's base network.
    """

    def __init__(
        self,
        kernels: Sequence[int] = (31, 29, 27, 13),
        channels: Sequence[int] = (128, 256, 512, 1024),
        blocks: Sequence[int] = (2, 2, 18, 2),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [stem(channels[0])]
        for stage, (kernel, width, count) in enumerate(zip(kernels, channels, blocks, strict=True)):
            if stage > 0:
                layers.append(transition(channels[stage - 1], width))
            for _ in range(count):
                layers += [large_kernel_block(width, kernel), feed_forward_block(width)]
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels[-1]))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.pool(self.features(images)).flatten(1))
        return scores
