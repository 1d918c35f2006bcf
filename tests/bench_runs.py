"""Whole runs of the benchmark on the CPU, with made-up times."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dwconv.__main__ import parser
from dwconv.bench import command
from dwconv.bench.timer import Timing
from dwconv.workloads import Workload

CPU = torch.device("cpu")
SMALL = Workload("small", "test", 5, 6, 9, 8, (3, 5), 2, (1, 2), 1)


class FakeTimer:
    """Runs each call once and takes one second; 10 us for dwconv and copies, 30 for PyTorch."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self.main = threading.get_ident()

    def __call__(self, call: Callable[[], object]) -> Timing:
        call()
        self.calls += 1
        self.seconds += 1
        return Timing(10.0 if threading.get_ident() == self.main else 30.0, 20)


OVERHEAD = {
    "input": "an image",
    "forward_us": {"dwconv": 9.06, "torch": 10.0},
    "forward_backward_us": {"dwconv": 70.0, "torch": 80.0},
}


def run(
    *arguments: str,
    timer: FakeTimer | None = None,
    json_file: Path | None = None,
    gpu: str = "none",
    workloads: Sequence[Workload] = (SMALL,),
) -> tuple[int, dict[str, Any]]:
    timer = timer or FakeTimer()
    words = ["bench", "--dtypes", "float32", *arguments]
    words += ["--json", str(json_file)] if json_file else []
    status = command.bench(
        parser("bench").parse_args(words),
        timer,
        CPU,
        {"gpu": gpu},
        workloads=workloads,
        clock=lambda: timer.seconds,
        large_copy_bytes=2**20,
        measure_overhead=lambda device: OVERHEAD,
    )
    return status, json.loads(json_file.read_text()) if json_file else {}
