"""``DepthwiseConv2d``: the module."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dwconv._ops import DTYPES
from dwconv.arguments import IntOrPair, check_input, paddings, pair
from dwconv.functional import convolve

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]


@lru_cache(maxsize=1024)
def _shared(numbers: tuple[int, int]) -> tuple[int, int]:
    """One object for equal pairs: so calls of layers that are alike are told by identity."""
    return numbers


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution layer: ``nn.Conv2d`` with ``groups == in_channels``.

    Initialised as ``nn.Conv2d`` is under the same seed; the ``state_dict`` of either loads into the
    other. Runs :func:`dwconv.depthwise_conv2d`.

    Args:
        in_channels: C, channels of the input.
        out_channels: A multiple of ``in_channels``.
        kernel_size: Height and width of the filters, an int or a pair.
        stride: Elements between two outputs, an int or a pair, at least 1.
        padding: Elements added around the input, an int or a pair, ``"same"`` (stride 1 only) or
            ``"valid"``.
        dilation: Elements between two taps, an int or a pair, at least 1.
        bias: Whether to learn a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: Where the parameters live.
        dtype: float64, float32, float16 or bfloat16; torch's default dtype when None.

    Shape:
        ``(N, C, H, W)`` or ``(C, H, W)`` to ``(N, out_channels, H_out, W_out)`` or without N.

    Raises:
        TypeError, ValueError: An argument is not as above; the sentence names it.

    Example:
        >>> layer = dwconv.DepthwiseConv2d(32, 64, kernel_size=3, padding=1)
        >>> layer(torch.randn(8, 32, 56, 56)).shape
        torch.Size([8, 64, 56, 56])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: str | IntOrPair = 0,
        dilation: IntOrPair = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if out_channels % in_channels != 0:
            raise ValueError(
                f"out_channels must be a multiple of in_channels, got {out_channels} for "
                f"in_channels={in_channels}"
            )
        if padding_mode not in get_args(PaddingMode):
            raise ValueError(
                f"padding_mode must be one of {get_args(PaddingMode)}, got {padding_mode!r}"
            )
        if dtype is not None and dtype not in DTYPES:
            raise TypeError(f"dtype must be float64, float32, float16 or bfloat16, got {dtype!r}")
        kernel_sizes = pair(kernel_size, "kernel_size", 1)
        strides = pair(stride, "stride", 1)
        dilations = pair(dilation, "dilation", 1)
        paddings(padding, kernel_sizes, strides, dilations)  # raises what is wrong with it
        super().__init__(
            in_channels,
            out_channels,
            kernel_sizes,
            _shared(strides),
            padding if isinstance(padding, str) else _shared(pair(padding, "padding", 0)),
            _shared(dilations),
            groups=in_channels,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Conv2d``, past ``Module.__getattr__``, which takes as long as all our checks."""
        own: Any = self._parameters
        if "weight" in own and "bias" in own:
            return self._conv_forward(input, own["weight"], own["bias"])
        return super().forward(input)  # a parametrization, say, computes them

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            check_input(input, self.in_channels)
            # As nn.Conv2d: [left, right, top, bottom].
            around = self._reversed_padding_repeated_twice
            self._check_room(input, around)
            input = F.pad(input, around, mode=self.padding_mode)
            padding = 0
        return convolve(input, weight, bias, self.stride, padding, self.dilation, self.in_channels)

    def _check_room(self, input: Tensor, around: Sequence[int]) -> None:
        """What F.pad refuses, as errors that name the argument."""
        height, width = input.shape[-2:]
        # reflect repeats no border element; circular wraps round once at most.
        spare = {"reflect": 1, "circular": 0, "replicate": None}[self.padding_mode]
        if height < 1 or width < 1:
            raise ValueError(f"input must have height and width, got {tuple(input.shape)}")
        if spare is not None and (
            max(around[:2]) > width - spare or max(around[2:]) > height - spare
        ):
            raise ValueError(
                f"padding must not exceed the input with padding_mode={self.padding_mode!r}: "
                f"{tuple(around)} (left, right, top, bottom) against {height} x {width}"
            )
