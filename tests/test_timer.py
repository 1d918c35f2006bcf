"""The benchmarks' timer, on a simulated GPU."""

import pytest

from dwconv.bench import timer
from dwconv.bench.timer import CudaTimer, Timing, repeats_for


@pytest.mark.parametrize(
    ("call_ms", "repeats", "expected"),
    [(0.01, 20, 20), (5, 20, 20), (30, 20, 16), (100, 20, 5), (388, 20, 5), (5, 100, 100)],
)
def test_repeats(call_ms: float, repeats: int, expected: int) -> None:
    assert repeats_for(call_ms, repeats) == expected


@pytest.mark.parametrize(
    ("call_ms", "column_ms", "expected"), [(0.01, 50, 20), (2.5, 50, 20), (4, 50, 12), (30, 50, 5)]
)
def test_repeats_of_a_shorter_column(call_ms: float, column_ms: float, expected: int) -> None:
    assert repeats_for(call_ms, 20, column_ms) == expected


class FakeGpu:
    """Stands for torch.cuda: launches take host time, run in order, and events read both clocks."""

    def __init__(self, host_ms: float) -> None:
        self.host_ms, self.host, self.gpu, self.sleeps = host_ms, 0.0, 0.0, 0

    def launch(self, ms: float) -> None:
        self.host += self.host_ms
        self.gpu = max(self.gpu, self.host) + ms

    def _sleep(self, cycles: int) -> None:
        self.sleeps += 1
        self.launch(cycles / 2e6)

    def synchronize(self) -> None:
        self.host = max(self.host, self.gpu)

    def Event(self, enable_timing: bool = False) -> "FakeEvent":
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = max(self._gpu.gpu, self._gpu.host)

    def query(self) -> bool:
        return self.at <= self._gpu.host

    def synchronize(self) -> None:
        self._gpu.synchronize()

    def elapsed_time(self, end: "FakeEvent") -> float:
        return end.at - self.at


def simulated(
    monkeypatch: pytest.MonkeyPatch, host_ms: float, call_ms: float, repeats: int = 20
) -> tuple[Timing, FakeGpu]:
    gpu = FakeGpu(host_ms)
    monkeypatch.setattr(timer, "cuda", gpu)
    monkeypatch.setattr(timer, "FLUSH_BYTES", 64)
    return CudaTimer(repeats, device="cpu")(lambda: gpu.launch(call_ms)), gpu


def test_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, gpu = simulated(monkeypatch, host_ms=0.03, call_ms=0.1)
    assert (round(timing.us), timing.repeats) == (100, 20)
    assert timing.host_ahead
    assert gpu.sleeps == 1


def test_timer_splits_long_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, gpu = simulated(monkeypatch, host_ms=0.03, call_ms=0.1, repeats=70)
    assert (round(timing.us), timing.repeats) == (100, 70)
    assert timing.host_ahead
    assert gpu.sleeps == 3


def test_timer_sleeps_longer_for_a_slow_host(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, gpu = simulated(monkeypatch, host_ms=0.5, call_ms=0.01)
    assert (round(timing.us), timing.repeats) == (10, 20)
    assert timing.host_ahead
    assert gpu.sleeps == 2
    timing, gpu = simulated(monkeypatch, host_ms=3.0, call_ms=0.01)
    assert not timing.host_ahead
    assert gpu.sleeps == 2


def test_timer_keeps_to_its_column(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(0.03)
    monkeypatch.setattr(timer, "cuda", gpu)
    monkeypatch.setattr(timer, "FLUSH_BYTES", 64)
    timing = CudaTimer(column_ms=41, device="cpu")(lambda: gpu.launch(4))
    assert (round(timing.us), timing.repeats) == (4000, 10)


def test_timer_repeats_slow_calls_less(monkeypatch: pytest.MonkeyPatch) -> None:
    timing, gpu = simulated(monkeypatch, host_ms=0.5, call_ms=100.0)
    assert (round(timing.us), timing.repeats) == (100000, 5)
    assert timing.host_ahead
    assert gpu.sleeps == 1
