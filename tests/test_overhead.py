"""The host time of a call: who is timed when, with a clock and a GPU that are made up."""

import gc

import pytest
import torch
from torch import nn

import dwconv
from dwconv.bench import overhead


class FakeHost:
    """Its calls take time; waiting for the GPU takes more, and must not be charged."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        return self.now

    def synchronize(self) -> None:
        self.now += 1.0
        self.calls.append("wait")

    def call(self, name: str, us: float) -> overhead.Call:
        def run() -> None:
            assert not gc.isenabled() or self.calls.count("wait") <= 2  # the first batch of each
            self.now += us * 1e-6
            self.calls.append(name)

        return run


def test_the_median_of_batches_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "BATCHES", 3)
    host = FakeHost()
    candidates = {"dwconv": host.call("a", 7.0), "torch": host.call("b", 9.5)}
    assert gc.isenabled()
    result = overhead.compare(candidates, 2, host.synchronize, host.clock)
    assert result == {"dwconv": 7.0, "torch": 9.5}
    assert gc.isenabled()
    batches = "".join(host.calls).replace("wait", " ").split()
    assert batches == ["aa", "bb", "aa", "bb", "bb", "aa", "aa", "bb"]


def test_one_slow_batch_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overhead, "BATCHES", 5)
    host = FakeHost()
    calls = 0

    def disturbed() -> None:
        nonlocal calls
        calls += 1
        host.now += 1e-3 if calls == 3 else 5e-6

    assert overhead.compare({"it": disturbed}, 1, host.synchronize, host.clock) == {"it": 5.0}


def test_layers_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: both layers, both ways, gradients in the second only."""
    for name, value in {"BATCHES": 1, "FORWARD_CALLS": 2, "FORWARD_BACKWARD_CALLS": 3}.items():
        monkeypatch.setattr(overhead, name, value)
    seen: list[tuple[type[nn.Module], bool]] = []
    forward = nn.Conv2d._conv_forward
    ours = dwconv.DepthwiseConv2d._conv_forward

    def noted(layer: nn.Conv2d, *arguments: torch.Tensor) -> torch.Tensor:
        seen.append((type(layer), torch.is_grad_enabled()))
        mine = isinstance(layer, dwconv.DepthwiseConv2d)
        return (ours if mine else forward)(layer, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", noted)
    monkeypatch.setattr(dwconv.DepthwiseConv2d, "_conv_forward", noted)
    result = overhead.measure(torch.device("cpu"))
    assert result["input"].startswith("N1 C32 8x8 k3x3 s1 p1x1 d1 float32")
    for key, calls in (("forward_us", 2), ("forward_backward_us", 3)):
        assert set(result[key]) == {"dwconv", "torch"}
        assert min(result[key].values()) > 0
        for layer in (dwconv.DepthwiseConv2d, nn.Conv2d):
            assert seen.count((layer, key == "forward_backward_us")) == 2 * calls
    assert "with backward" in overhead.sentence(result)


@pytest.mark.gpu
def test_overhead_on_the_gpu() -> None:
    result = overhead.measure(torch.device("cuda"))
    assert 0 < result["forward_us"]["dwconv"] < result["forward_backward_us"]["dwconv"]
