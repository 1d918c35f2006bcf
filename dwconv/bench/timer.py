"""The timer of every benchmark: CUDA events around one call, the L2 flushed before each."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

cuda: Any = torch.cuda  # its Event and stream classes carry no annotations

REPEATS = 20
FLUSH_BYTES = 256 * 2**20  # several times the L2 of any GPU so far
COLUMN_MS = 500.0  # what the repeats of one call may take together
SLOW_REPEATS = 5  # but at least this many
_SLOW_CALL_MS = 5.0  # gives the host time enough to stay ahead, sleep or not
_BATCH = 32  # calls queued behind one sleep: far below the queue's 1,024 launches
_SLEEP_CYCLES = (10_000_000, 40_000_000)  # about 5 ms, and 20 ms for a host that needs longer


@dataclass(frozen=True)
class Timing:
    """The median time of one call, and how it was taken."""

    us: float
    repeats: int
    host_ahead: bool = True  # False: the GPU waited for the host, so `us` may hold launch gaps


Measure = Callable[[Callable[[], object]], Timing]


def repeats_for(call_ms: float, repeats: int = REPEATS, column_ms: float = COLUMN_MS) -> int:
    """How often to time a call of `call_ms`: `repeats` times, fewer if it is slow."""
    if call_ms * repeats <= column_ms:
        return repeats
    return min(repeats, max(SLOW_REPEATS, int(column_ms / call_ms)))


class CudaTimer:
    """Times calls on the current CUDA device and stream.

    The GPU sleeps first while the host queues everything, so that no launch gap falls between two
    events. Zeroing the flush buffer leaves the L2 full of dirty lines; their write-back is charged
    to the call, and equally to the copies that it is compared with.
    """

    def __init__(
        self, repeats: int = REPEATS, column_ms: float = COLUMN_MS, device: str = "cuda"
    ) -> None:
        self.repeats = repeats
        self.column_ms = column_ms
        self._flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device=device)
        self._events = [
            (cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)) for _ in range(_BATCH)
        ]
        self._awake = cuda.Event()

    def __call__(self, call: Callable[[], object]) -> Timing:
        call()  # loads kernels, lets cuDNN choose, fills the caching allocator's pool
        cuda.synchronize()
        estimate_ms = self._once(call)
        repeats = repeats_for(estimate_ms, self.repeats, self.column_ms)
        times: list[float] = []
        ahead = True
        while len(times) < repeats:
            batch, batch_ahead = self._batch(call, min(_BATCH, repeats - len(times)), estimate_ms)
            times += batch
            ahead = ahead and batch_ahead
        return Timing(statistics.median(times) * 1e3, repeats, ahead)

    def _once(self, call: Callable[[], object]) -> float:
        start, end = self._events[0]
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    def _batch(
        self, call: Callable[[], object], count: int, estimate_ms: float
    ) -> tuple[list[float], bool]:
        """Times `count` calls, in milliseconds; once more if the host fell behind."""
        for cycles in _SLEEP_CYCLES:
            events = self._events[:count]
            cuda._sleep(cycles)
            self._awake.record()
            for start, end in events:
                self._flush.zero_()
                start.record()
                call()
                end.record()
            ahead = estimate_ms > _SLOW_CALL_MS or not self._awake.query()
            cuda.synchronize()
            if ahead:
                break
        return [float(start.elapsed_time(end)) for start, end in events], ahead
