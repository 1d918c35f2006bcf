"""Host time of a call on one small image, where the GPU has next to nothing to do."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import dwconv
from dwconv.workloads import Workload

WORKLOAD = Workload("one_small_image", "host time", 1, 32, 8, 8, (3, 3), 1, (1, 1), 1)
BATCHES = 101  # of 21, the medians of two runs on a shared host differ by 5 %
# Calls in a batch, which is queued without waiting. With its backward a call launches some ten
# kernels, and a queue holds 1,024.
FORWARD_CALLS = 200
FORWARD_BACKWARD_CALLS = 50

Call = Callable[[], object]
Clock = Callable[[], float]


def batch_us(call: Call, count: int, synchronize: Call, clock: Clock) -> float:
    """Microseconds of the host for one of `count` calls; the GPU is idle before."""
    synchronize()
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count * 1e6


def compare(
    candidates: dict[str, Call], count: int, synchronize: Call, clock: Clock
) -> dict[str, float]:
    """The median batch of each. They take turns, and the last of a round begins the next."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    for call in candidates.values():
        batch_us(call, count, synchronize, clock)  # loads kernels, and lets cuDNN choose
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(BATCHES):
            for name in order:
                times[name].append(batch_us(candidates[name], count, synchronize, clock))
            order.reverse()
    finally:
        if collecting:
            gc.enable()
    return {name: round(statistics.median(taken), 2) for name, taken in times.items()}


def measure(device: torch.device, clock: Clock = time.perf_counter) -> dict[str, Any]:
    """Of both layers; the entry `overhead` of the JSON file."""
    w = WORKLOAD
    layers: dict[str, nn.Module] = {
        "dwconv": dwconv.DepthwiseConv2d(w.c, w.c, w.kernel, padding=w.padding, device=device),
        "torch": nn.Conv2d(w.c, w.c, w.kernel, padding=w.padding, groups=w.c, device=device),
    }
    x = torch.randn(w.input_shape, device=device, requires_grad=True)
    grad = torch.randn(w.output_shape, device=device)

    def forward(layer: nn.Module) -> Call:
        return lambda: layer(x)

    def forward_backward(layer: nn.Module) -> Call:
        inputs = (x, *layer.parameters())
        return lambda: torch.autograd.grad(layer(x), inputs, grad)

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def both(timed: Callable[[nn.Module], Call], count: int) -> dict[str, float]:
        calls = {name: timed(layer) for name, layer in layers.items()}
        return compare(calls, count, synchronize, clock)

    with torch.no_grad():
        forward_us = both(forward, FORWARD_CALLS)
    return {
        "input": f"{w.shape} float32 nchw, with a bias",
        "forward_us": forward_us,
        "forward_backward_us": both(forward_backward, FORWARD_BACKWARD_CALLS),
    }


def sentence(overhead: dict[str, Any]) -> str:
    forward, backward_too = overhead["forward_us"], overhead["forward_backward_us"]
    return (
        f"Host time of a call on {overhead['input']}: "
        f"forward {forward['dwconv']:.1f} us (PyTorch {forward['torch']:.1f}), "
        f"with backward {backward_too['dwconv']:.1f} us (PyTorch {backward_too['torch']:.1f})"
    )
