"""The list of workloads: depthwise layers of real models, batch size included."""

import math
from dataclasses import dataclass

from dwconv._ops import output_size

Shape = tuple[int, int, int, int]

RANDOM = "random"  # the source of a workload that no model has


@dataclass(frozen=True)
class Workload:
    """One depthwise layer: channel multiplier 1, no bias, one stride and dilation for both axes."""

    name: str
    source: str
    n: int
    c: int
    h: int
    w: int
    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int]
    dilation: int

    @property
    def shape(self) -> str:
        """All of it but its name, in a line."""
        (kernel_h, kernel_w), (top, left) = self.kernel, self.padding
        return (
            f"N{self.n} C{self.c} {self.h}x{self.w} k{kernel_h}x{kernel_w} s{self.stride} "
            f"p{top}x{left} d{self.dilation}"
        )

    @property
    def label(self) -> str:
        """What a table calls it: the name of a random one says nothing."""
        return self.shape if self.source == RANDOM else self.name

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """Stride, padding and dilation as the operators take them."""
        top, left = self.padding
        return [self.stride] * 2, [top, top, left, left], [self.dilation] * 2

    @property
    def output_size(self) -> tuple[int, int]:
        return output_size((self.h, self.w), self.kernel, *self.geometry)

    @property
    def input_shape(self) -> Shape:
        return self.n, self.c, self.h, self.w

    @property
    def weight_shape(self) -> Shape:
        return self.c, 1, self.kernel[0], self.kernel[1]

    @property
    def output_shape(self) -> Shape:
        return self.n, self.c, *self.output_size

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one pass, whichever of the three; padding counts as work."""
        return math.prod(self.output_shape) * math.prod(self.kernel)

    def bytes_moved(self, itemsize: int) -> int:
        """Each pass moves x-sized plus y-sized data once; the filter is small beside them."""
        return (math.prod(self.input_shape) + math.prod(self.output_shape)) * itemsize


_TABLE = """
name                  n    c    h    w kernel stride padding dilation source
seed_kb84_k3         64  128  256  512   3x3     1     0x0      1     KernelBench level 1 problem 84
kb82_k3              16   64  512  512   3x3     1     0x0      1     KernelBench level 1 problem 82
mbv2_112_c32_s1     128   32  112  112   3x3     1     1x1      1     MobileNetV2 1.0
mbv2_112_c96_s2     128   96  112  112   3x3     2     1x1      1     MobileNetV2 1.0
mbv2_56_c144_s1     128  144   56   56   3x3     1     1x1      1     MobileNetV2 1.0
mbv2_28_c192_s1     128  192   28   28   3x3     1     1x1      1     MobileNetV2 1.0
mbv2_14_c576_s1     128  576   14   14   3x3     1     1x1      1     MobileNetV2 1.0
mbv2_7_c960_s1      128  960    7    7   3x3     1     1x1      1     MobileNetV2 1.0
effb0_56_c144_k5s2  128  144   56   56   5x5     2     2x2      1     EfficientNet-B0
effb0_14_c480_k5    128  480   14   14   5x5     1     2x2      1     EfficientNet-B0
effb0_7_c1152_k5    128 1152    7    7   5x5     1     2x2      1     EfficientNet-B0
cnxt_56_c96_k7      128   96   56   56   7x7     1     3x3      1     ConvNeXt-T
cnxt_28_c192_k7     128  192   28   28   7x7     1     3x3      1     ConvNeXt-T
cnxt_14_c384_k7     128  384   14   14   7x7     1     3x3      1     ConvNeXt-T
cnxt_7_c768_k7      128  768    7    7   7x7     1     3x3      1     ConvNeXt-T
van_28_c160_k7d3    128  160   28   28   7x7     1     9x9      3     VAN large-kernel attention
aspp_33_c2048_k3d6   16 2048   33   33   3x3     1     6x6      6     DeepLabV3+ separable ASPP
incnxt_56_c96_1x11  128   96   56   56  1x11     1     0x5      1     InceptionNeXt-T band kernel
replk_56_c128_k31    64  128   56   56 31x31     1   15x15      1     RepLKNet-31B
replk_28_c256_k29    64  256   28   28 29x29     1   14x14      1     RepLKNet-31B
replk_14_c512_k27    64  512   14   14 27x27     1   13x13      1     RepLKNet-31B
replk_7_c1024_k13    64 1024    7    7 13x13     1     6x6      1     RepLKNet-31B
slak_56_c124_51x5    64  124   56   56  51x5     1    25x2      1     SLaK-T
"""


def _pair(text: str) -> tuple[int, int]:
    first, second = text.split("x")
    return int(first), int(second)


def _workload(line: str) -> Workload:
    name, n, c, h, w, kernel, stride, padding, dilation, source = line.split(maxsplit=9)
    return Workload(
        name=name,
        source=source,
        n=int(n),
        c=int(c),
        h=int(h),
        w=int(w),
        kernel=_pair(kernel),
        stride=int(stride),
        padding=_pair(padding),
        dilation=int(dilation),
    )


WORKLOADS: tuple[Workload, ...] = tuple(map(_workload, _TABLE.strip().splitlines()[1:]))
