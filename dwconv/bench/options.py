"""The options of ``python -m dwconv bench``, and the workloads and cases that they select."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dwconv.bench import timer
from dwconv.bench.cases import DTYPES, LAYOUTS, PASSES, Case, select
from dwconv.bench.sweep import FILTERS, random_cases, random_workloads
from dwconv.workloads import WORKLOADS, Workload


def selected_workloads(options: argparse.Namespace) -> Sequence[Workload]:
    if not options.sweep:
        return WORKLOADS
    return random_workloads(options.sweep, options.seed, options.filters)


def selected_cases(options: argparse.Namespace, workloads: Sequence[Workload]) -> list[Case]:
    if options.sweep:
        return random_cases(workloads, options.dtypes, options.passes, options.layouts)
    chosen = [w for w in workloads if options.only is None or w.name in options.only]
    return select(chosen, options.dtypes, options.passes, options.layouts)


def command_line(options: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = ["python -m dwconv bench"]
    for name in ("dtypes", "layouts", "passes", "only"):
        value = getattr(options, name)
        words += [f"--{name} {','.join(value)}"] if value else []
    words += [f"--sweep {options.sweep} --seed {options.seed}"] if options.sweep else []
    words += [f"--filters {options.filters}"] * (options.filters != "small")
    words.append(f"--repeats {options.repeats}")
    words += [f"--column-ms {options.column_ms:g}"] * (options.column_ms != timer.COLUMN_MS)
    words += [f"--time-limit {options.time_limit:g}"] if options.time_limit is not None else []
    words += ["--no-overhead"] * options.no_overhead
    words += ["--resume"] * options.resume
    return " ".join(words)


def names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Reads a comma-separated list; the order is that of `allowed`."""

    def parse(text: str) -> tuple[str, ...]:
        given = text.split(",")
        unknown = [name for name in given if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"{unknown[0]!r} is unknown; choose from {', '.join(allowed)}"
            )
        return tuple(name for name in allowed if name in given)

    return parse


def count(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a count of {least} or more")
        return int(text)

    return parse


def positive(unit: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not number > 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of {unit}")
        return number

    return parse


def output_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that can be written")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, allowed in (("dtypes", DTYPES), ("layouts", LAYOUTS), ("passes", PASSES)):
        parser.add_argument(
            f"--{name}",
            type=names(allowed),
            default=allowed,
            metavar="A,B",
            help=f"which of {', '.join(allowed)} (default: all)",
        )
    workloads = parser.add_mutually_exclusive_group()
    workloads.add_argument(
        "--only",
        type=names([workload.name for workload in WORKLOADS]),
        metavar="NAME,NAME",
        help="only these workloads; --list shows them",
    )
    workloads.add_argument(
        "--sweep",
        type=count(1),
        metavar="N",
        help="N random workloads instead of the listed ones, each pass in one of the dtypes",
    )
    parser.add_argument(
        "--seed",
        type=count(0),
        default=0,
        metavar="S",
        help="another seed draws other random workloads (default: 0)",
    )
    parser.add_argument(
        "--filters",
        choices=FILTERS,
        default="small",
        help="of random workloads: up to 11 x 11 (the default), or 9 to 63 on a side",
    )
    parser.add_argument(
        "--json", type=output_file, metavar="OUT", help="write the results to this file"
    )
    parser.add_argument(
        "--time-limit",
        type=positive("seconds"),
        metavar="S",
        help="start no measurement later than S seconds into the run",
    )
    parser.add_argument(
        "--repeats",
        type=count(timer.REPEATS),
        default=timer.REPEATS,
        metavar="N",
        help=f"time each call N times, at least {timer.REPEATS} (the default); slow calls fewer",
    )
    parser.add_argument(
        "--column-ms",
        type=positive("milliseconds"),
        default=timer.COLUMN_MS,
        metavar="MS",
        help="repeat a slow call as often as this allows, at least "
        f"{timer.SLOW_REPEATS} times (default: {timer.COLUMN_MS:g})",
    )
    parser.add_argument(
        "--no-overhead",
        action="store_true",
        help="leave out the host time of a call on one small image",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the cases that the --json file already holds, from the same GPU and versions",
    )
    parser.add_argument("--list", action="store_true", help="list the workloads and exit")
