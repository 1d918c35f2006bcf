"""A small call whose derivatives, of any kind, are compared with those of PyTorch's convolution."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import dwconv

# Loosely typed, so that it takes *tensors.
depthwise_conv2d: Callable[..., Tensor] = dwconv.depthwise_conv2d

every_layout = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)


def make(
    device: torch.device,
    multiplier: int = 2,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
    kernel: tuple[int, int] = (2, 3),
) -> list[Tensor]:
    """input, weight and perhaps bias, all of which want gradients."""
    shapes = [(2, 2, 5, 6), (2 * multiplier, 1, *kernel), (2 * multiplier,)]
    tensors = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes[: 2 + bias]]
    tensors[0] = tensors[0].contiguous(memory_format=memory_format)
    return [tensor.requires_grad_() for tensor in tensors]


def conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, **geometry: Any) -> Tensor:
    """What depthwise_conv2d must equal."""
    return F.conv2d(input, weight, bias, groups=input.shape[1], **geometry)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operators that run, by name, and those of others; and the arguments of our last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.others: list[str] = []
        self.last: tuple[Any, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        if func.namespace == "dwconv":
            self.names.append(func.name().removeprefix("dwconv::"))
            self.last = args
        else:
            self.others.append(func.name())
        return func(*args, **(kwargs or {}))
