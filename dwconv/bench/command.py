"""The command line of ``python -m dwconv bench``, and the loop over its cases."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import dwconv
from dwconv.bench import limits, timer
from dwconv.bench.cases import DTYPES, LAYOUTS, PASSES, Case, select
from dwconv.bench.check import REFERENCE_ELEMENTS
from dwconv.bench.report import (
    SCHEMA,
    TABLE_HEAD,
    Progress,
    Result,
    read_json,
    summarise,
    summary_table,
    table_row,
    write_json,
)
from dwconv.bench.runner import LARGE_COPY_BYTES, TIME_LIMIT, Runner, Stop
from dwconv.workloads import WORKLOADS, Workload

# How a run may end, in the words of the report; more in runner.py.
COMPLETE = "complete"
INTERRUPTED = "interrupted"
NO_MEMORY = "the GPU has too little memory"

# What the report says of a run, and keeps of each that it resumes.
RUN_KEYS = ("date", "command", "status", "seconds")

_SAVE_EVERY_S = 10.0  # a killed run loses no more than this


def environment() -> dict[str, Any]:
    """The versions and the GPU that a result depends on."""
    cudnn: Any = torch.backends.cudnn
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "dwconv": dwconv.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "driver": _driver_version(),
        "gpu": gpu.name,
        "sm_count": gpu.multi_processor_count,
        "python": sys.version.split()[0],
    }


def _driver_version() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    lines = answer.stdout.split()
    return lines[0] if answer.returncode == 0 and lines else None


def protocol(repeats: int) -> dict[str, Any]:
    return {
        "timer": "CUDA events around one call; median",
        "repeats": repeats,
        "slow_calls": f"calls over {timer.SLOW_CALL_MS:g} ms: what {timer.COLUMN_MS:g} ms allow, "
        f"at least {timer.SLOW_REPEATS}",
        "before_each_call": f"{timer.FLUSH_BYTES // 2**20} MiB zeroed, which flushes the L2",
        "host": "queues calls while the GPU sleeps",
        "data": "standard normal, one seed for each workload, dtype and pass; no bias",
        "tf32": False,
        "torch_best": "fastest of the three PyTorch columns, same dtype and layout",
        "copy": "device-to-device copy that moves as many bytes as the pass has to",
        "reference": f"float64, at most {REFERENCE_ELEMENTS} elements of a case",
        "fma_flops": limits.FMA_FLOPS,
        "tensor_flops": limits.TENSOR_FLOPS,
        "tensor_flops_per_mac": limits.TENSOR_FLOPS_PER_MAC,
        "slower_tolerance": limits.SLOWER,
    }


def bench(
    options: argparse.Namespace,
    measure: timer.Measure,
    device: torch.device,
    facts: dict[str, Any],
    workloads: Sequence[Workload] = WORKLOADS,
    clock: Callable[[], float] = time.monotonic,
    large_copy_bytes: int = LARGE_COPY_BYTES,
) -> int:
    """Runs the cases that `options` select; returns the exit status."""
    start = saved = clock()
    earlier: dict[str, Any] = {}
    results: list[Result] = []
    if options.resume and options.json is not None and options.json.exists():
        try:
            earlier = read_json(options.json, facts)
            results = [Result.from_json(record, workloads) for record in earlier["cases"]]
        except ValueError as error:
            print(f"dwconv bench cannot resume: {error}.", file=sys.stderr)
            return 2
    known = {result.case for result in results}
    cases = [case for case in _selected(options, workloads) if case not in known]
    skipped: dict[Case, str] = {}
    bandwidth: float | None = None
    status = "failed"  # by an exception that nobody expected

    def expired() -> bool:
        return options.time_limit is not None and clock() - start >= options.time_limit

    def save(status: str) -> None:
        if options.json is None:
            return
        done = {result.case for result in results}
        document = {
            "schema": SCHEMA,
            **facts,
            "copy_bandwidth_gb_s": bandwidth,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command_line(options),
            "status": status,
            "seconds": round(clock() - start, 1),
            "protocol": protocol(options.repeats),
            "earlier_runs": [
                *earlier.get("earlier_runs", []),
                *([{key: earlier[key] for key in RUN_KEYS}] if earlier else []),
            ],
            "summary": summarise(results),
            "cases": [result.to_json() for result in results],
            "not_run": [
                {"case": case.name, "why": skipped.get(case, status)}
                for case in cases
                if case not in done
            ],
        }
        write_json(options.json, document)

    progress = Progress(len(cases))
    runner = Runner(measure, device, expired)
    try:
        bandwidth = runner.bandwidth_gb_s(large_copy_bytes)
        print(f"{facts.get('gpu')}: a large copy moves {bandwidth:.0f} GB/s\n{TABLE_HEAD}")
        for done, case in enumerate(cases):
            progress.show(done, case.name)
            try:
                results.append(runner.run(case))
                row = table_row(results[-1])
            except torch.OutOfMemoryError:
                skipped[case] = NO_MEMORY
                row = f"{case.name}: not run, {skipped[case]}"
            progress.clear()
            print(row, flush=True)
            if clock() - saved >= _SAVE_EVERY_S:
                saved = clock()
                save("running")
        status = COMPLETE
    except Stop as stop:
        status = str(stop)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except torch.OutOfMemoryError:
        status = NO_MEMORY
    finally:
        progress.clear()
        save(status)
    return _finish(status, cases, results)


def _finish(status: str, cases: Sequence[Case], results: Sequence[Result]) -> int:
    print(f"\n{summary_table(results)}" if results else "\nNothing was measured.")
    missing = len(set(cases) - {result.case for result in results})
    if missing:
        print(f"Not run: {missing} of {len(cases)} cases ({status}).")
    behind = sum(not timing.host_ahead for r in results for timing in r.timings.values())
    if behind:
        print(f"The host fell behind in {behind} columns: their times may hold launch gaps.")
    wrong = [result for result in results if result.wrong]
    if wrong:
        print(f"\nWRONG RESULTS in {len(wrong)} of {len(results)} cases:", file=sys.stderr)
        for result in wrong:
            print(f"  {result.case.name}: {result.wrong}", file=sys.stderr)
    if status == INTERRUPTED:
        return 130
    return 1 if wrong or status not in (COMPLETE, TIME_LIMIT) else 0


def _selected(options: argparse.Namespace, workloads: Sequence[Workload]) -> list[Case]:
    chosen = [w for w in workloads if options.only is None or w.name in options.only]
    return select(chosen, options.dtypes, options.passes, options.layouts)


def command_line(options: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = ["python -m dwconv bench"]
    for name in ("dtypes", "layouts", "passes", "only"):
        value = getattr(options, name)
        words += [f"--{name} {','.join(value)}"] if value else []
    words.append(f"--repeats {options.repeats}")
    words += [f"--time-limit {options.time_limit:g}"] if options.time_limit is not None else []
    words += ["--resume"] if options.resume else []
    return " ".join(words)


def _names(allowed: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
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


def _repeats(text: str) -> int:
    if not text.isdecimal() or int(text) < timer.REPEATS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a count of {timer.REPEATS} or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that can be written")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name, allowed in (("dtypes", DTYPES), ("layouts", LAYOUTS), ("passes", PASSES)):
        parser.add_argument(
            f"--{name}",
            type=_names(allowed),
            default=allowed,
            metavar="A,B",
            help=f"which of {', '.join(allowed)} (default: all)",
        )
    parser.add_argument(
        "--only",
        type=_names([workload.name for workload in WORKLOADS]),
        metavar="NAME,NAME",
        help="only these workloads; --list shows them",
    )
    parser.add_argument(
        "--json", type=_output, metavar="OUT", help="write the results to this file"
    )
    parser.add_argument(
        "--time-limit",
        type=_seconds,
        metavar="S",
        help="start no measurement later than S seconds into the run",
    )
    parser.add_argument(
        "--repeats",
        type=_repeats,
        default=timer.REPEATS,
        metavar="N",
        help=f"time each call N times, at least {timer.REPEATS} (the default); slow calls fewer",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the cases that the --json file already holds, from the same GPU and versions",
    )
    parser.add_argument("--list", action="store_true", help="list the workloads and exit")


def run(options: argparse.Namespace) -> int:
    if options.list:
        print(workload_table(options))
        return 0
    if not torch.cuda.is_available():
        print("dwconv bench needs an NVIDIA GPU, and PyTorch sees none here.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    return bench(options, timer.CudaTimer(options.repeats), torch.device("cuda"), environment())


def workload_table(options: argparse.Namespace) -> str:
    cases = _selected(options, WORKLOADS)
    lines = [
        f"{'name':<19}{'N':>5}{'C':>6}{'H':>5}{'W':>5}{'kernel':>8}{'stride':>7}{'padding':>8}"
        f"{'dilation':>9}{'GMAC':>8}{'MB fp32':>9}  source"
    ]
    for w in dict.fromkeys(case.workload for case in cases):
        kernel, padding = ("x".join(map(str, pair)) for pair in (w.kernel, w.padding))
        lines.append(
            f"{w.name:<19}{w.n:>5}{w.c:>6}{w.h:>5}{w.w:>5}{kernel:>8}{w.stride:>7}{padding:>8}"
            f"{w.dilation:>9}{w.macs / 1e9:>8.2f}{w.bytes_moved(4) / 1e6:>9.1f}  {w.source}"
        )
    lines.append(f"{len(cases)} cases: workloads x dtypes x passes x layouts")
    return "\n".join(lines)
