"""Times the training step of real networks, with PyTorch's depthwise layers and with dwconv's.

    python benchmarks/train_step.py --json out/train.json
    python benchmarks/train_step.py --chart out/train.png --from out/train.json

Variants: `stock`, as the network is; `converted`, by dwconv.convert; either under torch.compile;
and `free`, with a strided view in place of every depthwise layer, which no kernel can beat.
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chart
import networks
import torch
import training
from comparison import FREE_GAIN, SHARE, SLOWER, summarise, table
from networks import VARIANTS
from runs import (
    Benchmark,
    Case,
    Record,
    add_arguments,
    check_arguments,
    end_as_interrupted,
    run,
    tf32,
)

from dwconv.bench.options import output_file
from dwconv.bench.report import read_json

SCRIPT = Path(__file__).name
IMAGES = 128
STEPS = 20
LR = 1e-3


def protocol(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "step": "forward, backward, SGD with momentum; 16 bits under autocast, float16 with a "
        "GradScaler",
        "timer": "CUDA events around each step; median",
        "steps": f"{options.steps}, or as many as {training.STEPS_S:g} s allow, at least "
        f"{training.SLOW_STEPS}",
        "warm_up": f"{training.WARM_UP_STEPS} steps and {training.WARM_UP_S:g} s",
        "busy_ms": "kernels and copies of one step, by the profiler",
        "peak_mib": "torch.cuda.max_memory_allocated of the timed steps",
        "data": "one batch of normal noise on the device, 1000 classes, cross entropy",
        "weights": "the same for all variants of a network",
        "cudnn_benchmark": True,
        "tf32": tf32(),
        "free": "a strided view in place of every depthwise layer",
        "share": "of the way from stock to free that converted has come, where stock takes at "
        f"least {FREE_GAIN} times as long as free; to be at least {SHARE}",
        "slower": f"more than {SLOWER} times stock's time, or stock's under torch.compile",
    }


def measure(case: Case, options: argparse.Namespace) -> Record:
    setting = case.setting(options.device, LR)
    trainer = training.Trainer(networks.build(case.model, case.variant), setting, case.compiled)
    (batch,) = training.draw_batches(1, options.batch, options.size, setting)
    return training.measure(lambda: trainer.step(batch), options.steps, options.device)


def line(record: Record) -> str:
    memory = "" if record["peak_mib"] is None else f", {record['peak_mib']:.0f} MiB"
    return f"{record['step_ms']:.1f} ms{memory}, first step {record['first_step_s']:.1f} s"


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser, VARIANTS, IMAGES, STEPS)
    parser.add_argument("--chart", type=output_file, metavar="PNG", help="draw the results")
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="JSON", help="draw these, and measure nothing"
    )
    options = parser.parse_args(argv)
    if options.chart is not None and not importlib.util.find_spec("matplotlib"):
        parser.error("--chart needs matplotlib: pip install matplotlib")
    if options.source is None:
        check_arguments(parser, options)
    elif options.chart is None:
        parser.error("--from needs --chart, the picture to draw")
    elif not options.source.is_file():
        parser.error(f"--from: {options.source} is not a file")
    return options


def draw(records: list[Record], path: Path) -> int:
    try:
        chart.draw(records, path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    options = parse_arguments(argv)
    if options.source is not None:
        try:
            document = read_json(options.source, {"script": SCRIPT})
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2
        return draw(document["cases"], options.chart)
    end_as_interrupted()
    torch.backends.cudnn.benchmark = True  # PyTorch at its best
    benchmark = Benchmark(
        SCRIPT,
        {},
        protocol(options),
        functools.partial(measure, options=options),
        summarise,
        line,
    )
    status, records = run(benchmark, options)
    if records:
        print(f"\n{table(records)}")
    if options.chart is not None:
        status = draw(records, options.chart) or status
    return status


if __name__ == "__main__":
    sys.exit(main())
