"""Training steps of a network on random images, and their times."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from networks import CLASSES
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

cuda: Any = torch.cuda  # its Event class carries no annotations

MOMENTUM = 0.9
# At first. GradScaler's own 2**16 may overflow, and steps that it skips would look fast.
LOSS_SCALE = 2.0**10
WARM_UP_STEPS = 3
WARM_UP_S = 0.5  # until the GPU's clocks have settled
STEPS_S = 5.0  # what the timed steps may take together
SLOW_STEPS = 3  # but at least this many


@dataclass(frozen=True)
class Setting:
    """How a network is trained."""

    dtype: torch.dtype
    memory_format: torch.memory_format
    device: torch.device
    lr: float


@dataclass(frozen=True)
class Batch:
    images: Tensor  # (N, 3, H, W), float32
    labels: Tensor  # (N,)


def draw_batches(count: int, images: int, size: int, setting: Setting) -> list[Batch]:
    """The same every time: images of normal noise, with random labels."""
    generator = torch.Generator(setting.device).manual_seed(0)
    on: dict[str, Any] = {"generator": generator, "device": setting.device}
    return [
        Batch(
            torch.randn(images, 3, size, size, **on).to(memory_format=setting.memory_format),
            torch.randint(CLASSES, (images,), **on),
        )
        for _ in range(count)
    ]


class Trainer:
    """SGD with momentum, in float32 or, for 16 bits, under autocast."""

    def __init__(self, network: nn.Module, setting: Setting, compiled: bool = False) -> None:
        placed: Any = network.train().to(setting.device)  # `to` has no annotation for a format
        network = placed.to(memory_format=setting.memory_format)
        self._setting = setting
        self._optimizer = torch.optim.SGD(network.parameters(), lr=setting.lr, momentum=MOMENTUM)
        self._scaler = torch.amp.GradScaler(
            setting.device.type, LOSS_SCALE, enabled=setting.dtype == torch.float16
        )
        self._network = torch.compile(network) if compiled else network

    def step(self, batch: Batch) -> Tensor:
        """The loss before the step."""
        dtype = self._setting.dtype
        self._optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self._setting.device.type, dtype=dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(self._network(batch.images), batch.labels)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()


def timed(step: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Milliseconds of each of `count` steps, one right after the other."""
    if device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(count):
            step()
            marks.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in itertools.pairwise(marks)]
    events = [cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    cuda.synchronize()
    return [float(start.elapsed_time(end)) for start, end in itertools.pairwise(events)]


def busy_ms(step: Callable[[], object]) -> float:
    """What the kernels and copies of one step take on the GPU. In what is left of the step's time
    it waits for the host, on which no kernel has an influence."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        cuda.synchronize()
    on_gpu = (e for e in profiler.events() or () if e.device_type.name == "CUDA")
    return sum(float(event.time_range.elapsed_us()) for event in on_gpu) / 1e3


def measure(step: Callable[[], Tensor], steps: int, device: torch.device) -> dict[str, Any]:
    """The median time of a step, what of it the GPU is busy, and the most memory that it needs."""
    start = time.monotonic()
    (first_ms,) = timed(step, 1, device)  # compiles, lets cuDNN choose, allocates momentum
    for done in itertools.count(2):
        (step_ms,) = timed(step, 1, device)
        if done >= WARM_UP_STEPS and time.monotonic() - start >= WARM_UP_S + first_ms / 1e3:
            break
    if device.type == "cuda":
        cuda.reset_peak_memory_stats()
    times = timed(step, steps_for(step_ms, steps), device)
    peak = cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None
    busy = busy_ms(step) if device.type == "cuda" else None
    loss = float(step())
    return {
        "step_ms": round(statistics.median(times), 4),
        "busy_ms": None if busy is None else round(busy, 4),
        "steps": len(times),
        "peak_mib": None if peak is None else round(peak, 2),
        "first_step_s": round(first_ms / 1e3, 2),
        "loss": round(loss, 4) if math.isfinite(loss) else None,
    }


def steps_for(step_ms: float, steps: int) -> int:
    """How many steps to time: `steps`, fewer if they are slow."""
    return min(steps, max(SLOW_STEPS, int(STEPS_S * 1e3 / step_ms)))
