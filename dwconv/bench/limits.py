"""What a case could take at best, what it is asked to reach, and how exact it must be."""

import math
from collections.abc import Iterable

from dwconv.workloads import Workload

# Ceilings of an H100. 640 TFLOP/s is what mma.sync m16n8k16 was measured to reach there.
FMA_FLOPS = 67e12
TENSOR_FLOPS = 640e12
# Two FLOPs for each MAC, and a fifth of the work falls on the zeros of a banded Toeplitz operand.
TENSOR_FLOPS_PER_MAC = 2.5

SLOWER = 1.03  # a case is slower than PyTorch's best if it takes this many times as long
_LARGE_BYTES = 32e6

# Efficiency asked for on an H100, by class: (forward and input gradient, weight gradient).
_TARGETS = {
    "k<=5 large": (0.92, 0.88),
    "k<=5 small": (0.85, 0.65),
    "k<=11 large": (0.85, 0.78),
    "k<=11 small": (0.70, 0.60),
    "dilated": (0.70, 0.60),
    "k>11 large": (0.70, 0.60),
    "k>11 small": (0.55, 0.45),
}
_CHANNELS_LAST_DISCOUNT = 0.20  # for k>11


def fma_floor_us(macs: int) -> float:
    return 2 * macs / FMA_FLOPS * 1e6


def tensor_floor_us(macs: int, dtype: str) -> float | None:
    """None for float32: the tensor cores round it to TF32."""
    return None if dtype == "float32" else TENSOR_FLOPS_PER_MAC * macs / TENSOR_FLOPS * 1e6


def limit_us(copy_us: float, macs: int, dtype: str) -> float:
    """The longer of moving the data and doing the arithmetic on the faster unit that may do it."""
    tensor = tensor_floor_us(macs, dtype)
    fma = fma_floor_us(macs)
    return max(copy_us, fma if tensor is None else min(fma, tensor))


def case_class(workload: Workload, itemsize: int) -> str:
    """The row of the target table: by the longer side of the filter, dilation and bytes moved."""
    if workload.dilation > 1:
        return "dilated"
    k = max(workload.kernel)
    filter_class = "k<=5" if k <= 5 else "k<=11" if k <= 11 else "k>11"
    large = workload.bytes_moved(itemsize) >= _LARGE_BYTES
    return f"{filter_class} {'large' if large else 'small'}"


def target_efficiency(workload: Workload, itemsize: int, layout: str, pass_: str) -> float:
    name = case_class(workload, itemsize)
    target = _TARGETS[name][pass_ == "backward_weight"]
    if name.startswith("k>11") and layout == "nhwc":
        target -= _CHANNELS_LAST_DISCOUNT
    return round(target, 2)


def error_bound(rounding: float, dtype: str, pass_: str) -> float:
    """The largest ||out - ref|| / ||ref|| allowed; `rounding` is that of the rounded reference."""
    slack = 0.0
    if dtype == "float32":
        slack = 3e-6 if pass_ == "backward_weight" else 1e-6
    return 1.1 * rounding + slack


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None
