"""What the training benchmarks share: their options, the loop over cases, and the JSON file."""

import argparse
import gc
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from itertools import product
from typing import Any

import networks
import torch
from training import Setting

import dwconv
from dwconv.bench.cases import DTYPES, LAYOUTS
from dwconv.bench.command import COMPLETE, INTERRUPTED, RUN_KEYS, environment
from dwconv.bench.options import count, names, output_file, positive
from dwconv.bench.report import SCHEMA, read_json, write_json
from dwconv.bench.runner import TIME_LIMIT, Stop

Record = dict[str, Any]  # of one case, as it is in the file


@dataclass(frozen=True)
class Case:
    model: str
    dtype: str
    layout: str
    variant: str

    @property
    def name(self) -> str:
        return " ".join((self.model, self.dtype, self.layout, self.variant))

    @property
    def compiled(self) -> bool:
        return self.variant.endswith("_compiled")

    def setting(self, device: torch.device, lr: float) -> Setting:
        memory_format = torch.channels_last if self.layout == "nhwc" else torch.contiguous_format
        return Setting(getattr(torch, self.dtype), memory_format, device, lr)


@dataclass(frozen=True)
class Benchmark:
    """What one script measures."""

    script: str
    facts: dict[str, Any]  # beside those of every benchmark: what resumed results have in common
    protocol: dict[str, Any]
    measure: Callable[[Case], Record]
    summarise: Callable[[list[Record]], dict[str, Any]]
    line: Callable[[Record], str]  # what to print of a case


def add_arguments(
    parser: argparse.ArgumentParser, variants: Sequence[str], images: int, steps: int
) -> None:
    choices = {
        "models": tuple(networks.NETWORKS),
        "dtypes": DTYPES,
        "layouts": LAYOUTS,
        "variants": tuple(variants),
    }
    add = parser.add_argument
    for name, allowed in choices.items():
        add(
            f"--{name}",
            type=names(allowed),
            default=allowed,
            metavar="A,B",
            help=f"which of {', '.join(allowed)} (default: all)",
        )
    add("--batch", type=count(2), default=images, metavar="N", help=f"images a step ({images})")
    add("--size", type=count(32), default=224, metavar="N", help="their height and width (224)")
    add("--steps", type=count(1), default=steps, metavar="N", help=f"of a case ({steps})")
    add("--device", choices=("cuda", "cpu"), help="by default cuda, where there is a GPU")
    add("--seconds", type=positive("seconds"), metavar="S", help="start no case later than that")
    add("--json", type=output_file, metavar="OUT", help="the file that holds every result so far")
    add("--resume", action="store_true", help="keep what --json holds, from the same machine")


def check_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Fills in the device; ends the program where the options cannot run."""
    found = torch.cuda.is_available()
    if options.device == "cuda" and not found:
        parser.error("--device cuda needs an NVIDIA GPU, and PyTorch sees none here")
    options.device = torch.device(options.device or ("cuda" if found else "cpu"))
    if options.resume and options.json is None:
        parser.error("--resume needs --json, the file to go on with")
    problem = networks.unavailable(options.models)
    if problem:
        parser.error(f"--models: {problem}")


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """The versions, the machine and the images that a result depends on."""
    machine = {"dwconv": dwconv.__version__, "torch": torch.__version__, "gpu": None}
    timm = [d.version for d in metadata.distributions(name="timm")]
    return {
        **(environment() if options.device.type == "cuda" else machine),
        "timm": timm[0] if timm else None,
        "batch": options.batch,
        "size": options.size,
    }


def tf32() -> dict[str, bool]:
    """Where PyTorch may round float32 to TF32."""
    backends: Any = torch.backends
    return {"cudnn": backends.cudnn.allow_tf32, "matmul": backends.cuda.matmul.allow_tf32}


def run(benchmark: Benchmark, options: argparse.Namespace) -> tuple[int, list[Record]]:
    """Measures the cases that `options` select; returns the exit status and all records.

    The file is written after every case. Cases that failed are measured again by `--resume`.
    """
    start = time.monotonic()
    stated = {"script": benchmark.script, **facts(options), **benchmark.facts}
    earlier: dict[str, Any] = {}
    records: list[Record] = []
    if options.resume and options.json.exists():
        try:
            earlier = read_json(options.json, stated)
        except ValueError as error:
            print(f"cannot resume: {error}", file=sys.stderr)
            return 2, []
        records = [record for record in earlier["cases"] if record["error"] is None]
    known = {case_of(record) for record in records}
    # Whole panels of the chart one after the other, so that a run cut short has some.
    wanted = product(options.dtypes, options.layouts, options.models, options.variants)
    cases = [Case(m, d, y, v) for d, y, m, v in wanted if Case(m, d, y, v) not in known]

    def save(status: str) -> None:
        if options.json is None:
            return
        document = {
            "schema": SCHEMA,
            **stated,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command_line(benchmark.script, options),
            "status": status,
            "seconds": round(time.monotonic() - start, 1),
            "protocol": benchmark.protocol,
            "earlier_runs": [
                *earlier.get("earlier_runs", []),
                *([{key: earlier[key] for key in RUN_KEYS}] if earlier else []),
            ],
            "summary": benchmark.summarise(records),
            "cases": records,
        }
        write_json(options.json, document)

    status = "failed"  # by an exception that nobody expected
    try:
        for done, case in enumerate(cases, start=1):
            if options.seconds is not None and time.monotonic() - start >= options.seconds:
                raise Stop(TIME_LIMIT)
            record = _attempt(benchmark.measure, case)
            records.append(record)
            text = record["error"] or benchmark.line(record)
            print(f"[{done}/{len(cases)}] {case.name}: {text}", flush=True)
            save("running")
            _forget(case, options.device)
        status = COMPLETE
    except Stop as stop:
        status = str(stop)
    except KeyboardInterrupt:
        status = INTERRUPTED
    finally:
        save(status)
    if status != COMPLETE:
        print(f"Not all of {len(cases)} cases were measured: {status}.", file=sys.stderr)
    if status == INTERRUPTED:
        return 130, records
    failed = any(record["error"] for record in records)
    return int(failed or status not in (COMPLETE, TIME_LIMIT)), records


def _attempt(measure: Callable[[Case], Record], case: Case) -> Record:
    try:
        return {**asdict(case), **measure(case), "error": None}
    except torch.OutOfMemoryError:
        error = "out of memory"
    except Exception as exception:  # of any kind, from a compiler; the other cases go on
        first_line = (str(exception).splitlines() or [""])[0]
        error = f"{type(exception).__name__}: {first_line}"
    return {**asdict(case), "error": error}


def _forget(case: Case, device: torch.device) -> None:
    """Frees what a case held, in memory and in compilers' caches."""
    if case.compiled:
        torch.compiler.reset()
    gc.collect()  # networks hold themselves in circles
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:  # after some errors every later call fails too
            raise Stop(f"the GPU was lost in {case.name}") from error
        torch.cuda.empty_cache()


def case_of(record: Record) -> Case:
    return Case(record["model"], record["dtype"], record["layout"], record["variant"])


def command_line(script: str, options: argparse.Namespace) -> str:
    """The command that measures the same again."""
    words = [f"python benchmarks/{script}"]
    for name in ("models", "dtypes", "layouts", "variants"):
        words.append(f"--{name} {','.join(getattr(options, name))}")
    words += [f"--{name} {getattr(options, name)}" for name in ("batch", "size", "steps", "device")]
    words += [f"--seconds {options.seconds:g}"] if options.seconds is not None else []
    words += ["--resume"] * options.resume
    return " ".join(words)


def end_as_interrupted() -> None:
    """Lets SIGTERM end a run as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
