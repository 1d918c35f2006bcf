"""Runs of the training benchmarks with a network that a CPU trains in no time."""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
import training
from replknet import RepLKNet

ON_CPU = ("--device", "cpu", "--dtypes", "float32", "--layouts", "nchw")


def tiny() -> RepLKNet:
    return RepLKNet((7, 5), (4, 8), (1, 1), classes=networks.CLASSES)


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `tiny` a network to choose, and its runs short."""
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)
    monkeypatch.setattr(training, "WARM_UP_S", 0.0)
    # The default, inductor, needs half a minute on a CPU.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # runs change it


def run(
    main: Callable[[Sequence[str]], int], file: Path, *arguments: str
) -> tuple[int, dict[str, Any]]:
    """The exit status, and what the file holds."""
    words = ["--models", "tiny", "--batch", "2", "--size", "32", "--steps", "3"]
    status = main([*words, "--json", str(file), *arguments])
    return status, json.loads(file.read_text())
