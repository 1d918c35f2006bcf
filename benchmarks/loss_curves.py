"""Records the losses of networks that train with PyTorch's depthwise layers and with dwconv's.

    python benchmarks/loss_curves.py --dtypes float32,bfloat16 --layouts nchw --json out/loss.json

Runs: `stock`, with cudnn.benchmark; `stock_default` without it and `stock_native` without cuDNN,
which sum in other orders and so show how far apart equals may come; and `converted`, by
dwconv.convert. All start from the same weights and see the same batches in the same order.
"""

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import networks
import torch
from runs import (
    Benchmark,
    Case,
    Record,
    add_arguments,
    check_arguments,
    end_as_interrupted,
    run,
)
from training import MOMENTUM, Trainer, draw_batches

from dwconv.bench.cases import TORCH_COLUMNS, cudnn_flags, in_fresh_thread
from dwconv.bench.options import positive

# Under which of the bench's cuDNN flags each run trains.
RUNS = {
    "stock": "torch_cudnn_benchmark",
    "stock_default": "torch_default",
    "stock_native": "torch_native",
    "converted": "torch_cudnn_benchmark",
}
SCRIPT = Path(__file__).name
IMAGES = 32
STEPS = 200
BATCHES = 4  # that come round again and again
# Small: a ReLU whose input is rounded to the other side of zero changes gradients by far more than
# rounding does. At 1e-4, a small RepLKNet passed FLOAT32_BOUND within 20 steps on a CPU, between
# PyTorch's float32 convolution and its float64 one.
LR = 1e-5
FLOAT32_BOUND = 1e-4  # relative


def protocol(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": f"{BATCHES} batches of normal noise in turn, 1000 classes, cross entropy",
        "optimizer": f"SGD, momentum {MOMENTUM}",
        "runs": {name: TORCH_COLUMNS[flags] for name, flags in RUNS.items()},
        "tf32": False,
        "difference": "of two losses, relative: the largest of all steps",
        "spread": "the largest difference of two stock runs",
        "agrees": f"float32: differs from stock by at most {FLOAT32_BOUND:g}; 16 bits: from the "
        "nearest stock run by at most their spread",
    }


def measure(case: Case, options: argparse.Namespace) -> Record:
    setting = case.setting(options.device, options.lr)
    batches = draw_batches(BATCHES, options.batch, options.size, setting)
    trainer = Trainer(networks.build(case.model, case.variant), setting)

    def train() -> list[float]:
        # PyTorch keeps cuDNN's plans per thread: the backward pass must stay in this one.
        with torch.autograd.set_multithreading_enabled(False):
            losses = [trainer.step(batches[i % BATCHES]) for i in range(options.steps)]
        return [float(loss) for loss in losses]

    with cudnn_flags(**TORCH_COLUMNS[RUNS[case.variant]]):
        losses = in_fresh_thread(train)
    if not all(map(math.isfinite, losses)):
        raise ArithmeticError("the loss is not finite")
    return {"losses": [float(f"{loss:.8g}") for loss in losses]}


def line(record: Record) -> str:
    losses = record["losses"]
    return f"loss from {losses[0]:.4f} to {losses[-1]:.4f}"


def difference(losses: Sequence[float], others: Sequence[float]) -> float:
    """The largest of all steps, relative."""
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


def summarise(records: Iterable[Record]) -> dict[str, Any]:
    """For each network, dtype and layout: how far its runs are apart, and whether that is right."""
    curves: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record["error"] is None:
            name = f"{record['model']} {record['dtype']} {record['layout']}"
            curves.setdefault(name, {})[record["variant"]] = record["losses"]
    return {name: _compare(name, runs) for name, runs in curves.items()}


def _compare(name: str, runs: dict[str, list[float]]) -> dict[str, Any]:
    ours = runs.get("converted")
    stock = {run: losses for run, losses in runs.items() if run != "converted"}
    pairs = itertools.combinations(stock.values(), 2)
    spread = max((difference(*pair) for pair in pairs), default=None)
    differences = {run: difference(ours, losses) for run, losses in stock.items()} if ours else {}
    bound, found = spread, min(differences.values(), default=None)
    if " float32 " in name:
        bound, found = FLOAT32_BOUND, differences.get("stock")
    return {
        "differences": {run: float(f"{value:.3g}") for run, value in differences.items()},
        "spread": None if spread is None else float(f"{spread:.3g}"),
        "agrees": None if bound is None or found is None else found <= bound,
    }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, tuple(RUNS), IMAGES, STEPS)
    parser.add_argument(
        "--lr", type=positive("units"), default=LR, metavar="R", help=f"learning rate ({LR:g})"
    )
    options = parser.parse_args(argv)
    check_arguments(parser, options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    end_as_interrupted()
    benchmark = Benchmark(
        SCRIPT,
        {"steps": options.steps, "lr": options.lr},
        protocol(options),
        functools.partial(measure, options=options),
        summarise,
        line,
    )
    status, records = run(benchmark, options)
    for name, found in summarise(records).items():
        print(f"{name}: {found}")
    return status


if __name__ == "__main__":
    sys.exit(main())
