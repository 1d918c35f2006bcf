"""What ``python -m dwconv bench`` does: the loop over its cases."""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

import dwconv
from dwconv import driver
from dwconv.bench import limits, overhead, timer
from dwconv.bench.cases import Case
from dwconv.bench.check import REFERENCE_ELEMENTS
from dwconv.bench.options import command_line, selected_cases, selected_workloads
from dwconv.bench.report import (
    SCHEMA,
    Progress,
    Result,
    label_width,
    read_json,
    summarise,
    summary_table,
    table_head,
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
        "driver": driver.version(),
        "gpu": gpu.name,
        "sm_count": gpu.multi_processor_count,
        "python": sys.version.split()[0],
    }


def protocol(repeats: int, column_ms: float) -> dict[str, Any]:
    return {
        "timer": "CUDA events around one call; median",
        "repeats": repeats,
        "slow_calls": f"repeated as {column_ms:g} ms allow, at least {timer.SLOW_REPEATS} times",
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
    measure_overhead: Callable[[torch.device], dict[str, Any]] = overhead.measure,
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
    cases = [case for case in selected_cases(options, workloads) if case not in known]
    skipped: dict[Case, str] = {}
    bandwidth: float | None = None
    host_time: dict[str, Any] | None = earlier.get("overhead")
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
            "overhead": host_time,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command_line(options),
            "status": status,
            "seconds": round(clock() - start, 1),
            "protocol": protocol(options.repeats, options.column_ms),
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
        print(f"{facts.get('gpu')}: a large copy moves {bandwidth:.0f} GB/s")
        if not options.no_overhead:
            host_time = measure_overhead(device)
            print(overhead.sentence(host_time))
        width = label_width(cases)
        print(table_head(width))
        for done, case in enumerate(cases):
            progress.show(done, case.name)
            try:
                results.append(runner.run(case))
                row = table_row(results[-1], width)
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
            case = result.case
            print(f"  {case.name} ({case.workload.shape}): {result.wrong}", file=sys.stderr)
    if status == INTERRUPTED:
        return 130
    return 1 if wrong or status not in (COMPLETE, TIME_LIMIT) else 0


def run(options: argparse.Namespace) -> int:
    if options.list:
        print(workload_table(options))
        return 0
    if not torch.cuda.is_available():
        print("dwconv bench needs an NVIDIA GPU, and PyTorch sees none here.", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    measure = timer.CudaTimer(options.repeats, options.column_ms)
    workloads = selected_workloads(options)
    return bench(options, measure, torch.device("cuda"), environment(), workloads)


def workload_table(options: argparse.Namespace) -> str:
    cases = selected_cases(options, selected_workloads(options))
    lines = [
        f"{'name':<19}{'N':>7}{'C':>6}{'H':>5}{'W':>5}{'kernel':>8}{'stride':>7}{'padding':>8}"
        f"{'dilation':>9}{'GMAC':>8}{'MB fp32':>9}  source"
    ]
    for w in dict.fromkeys(case.workload for case in cases):
        kernel, padding = ("x".join(map(str, pair)) for pair in (w.kernel, w.padding))
        lines.append(
            f"{w.name:<19}{w.n:>7}{w.c:>6}{w.h:>5}{w.w:>5}{kernel:>8}{w.stride:>7}{padding:>8}"
            f"{w.dilation:>9}{w.macs / 1e9:>8.2f}{w.bytes_moved(4) / 1e6:>9.1f}  {w.source}"
        )
    dtypes = "a dtype for each pass" if options.sweep else "dtypes x passes"
    lines.append(f"{len(cases)} cases: workloads x {dtypes} x layouts")
    return "\n".join(lines)
