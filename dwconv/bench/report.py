"""Results of a benchmark run: one record a case, the table, the summary, the JSON file."""

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, TextIO

from dwconv.bench import limits
from dwconv.bench.cases import LAYOUTS, PASSES, TORCH_COLUMNS, Case
from dwconv.bench.check import Check
from dwconv.bench.timer import Timing
from dwconv.workloads import Workload

SCHEMA = 1


@dataclass
class Result:
    """What was measured of one case; a column that failed is missing from `timings`."""

    case: Case
    check: Check | None = None
    timings: dict[str, Timing] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # why a column of PyTorch's is missing
    failure: str | None = None  # dwconv raised: the first line of its message

    def us(self, column: str) -> float | None:
        timing = self.timings.get(column)
        return None if timing is None else timing.us

    @property
    def wrong(self) -> str | None:
        """What is wrong with dwconv's output, in words, or None."""
        if self.failure is not None:
            return self.failure
        return None if self.check is None else self.check.problem

    @property
    def torch_best_us(self) -> float | None:
        return min((t.us for c, t in self.timings.items() if c in TORCH_COLUMNS), default=None)

    @property
    def limit_us(self) -> float | None:
        copy_us = self.us("copy")
        if copy_us is None:
            return None
        return limits.limit_us(copy_us, self.case.workload.macs, self.case.dtype)

    @property
    def efficiency(self) -> float | None:
        return _ratio(self.limit_us, self.us("dwconv"))

    @property
    def speedup(self) -> float | None:
        return _ratio(self.torch_best_us, self.us("dwconv"))

    @property
    def slower(self) -> bool:
        """Slower than PyTorch's best, by more than the tolerance."""
        return self.speedup is not None and self.speedup * limits.SLOWER < 1

    @property
    def target(self) -> float:
        case = self.case
        itemsize = case.torch_dtype.itemsize
        return limits.target_efficiency(case.workload, itemsize, case.layout, case.pass_)

    @property
    def meets_target(self) -> bool:
        return self.efficiency is not None and self.efficiency >= self.target

    @property
    def below_half_target(self) -> bool:
        """Far from what is asked for: a class of problems that no kernel is made for, perhaps."""
        return self.efficiency is not None and self.efficiency < self.target / 2

    def to_json(self) -> dict[str, Any]:
        case, macs = self.case, self.case.workload.macs
        columns = ("dwconv", *TORCH_COLUMNS)
        record: dict[str, Any] = {
            "workload": case.workload.name,
            "shape": case.workload.shape,
            "dtype": case.dtype,
            "pass": case.pass_,
            "layout": case.layout,
            **{f"{column}_us": self.us(column) for column in columns},
            "torch_best_us": self.torch_best_us,
            "copy_us": self.us("copy"),
            "fma_floor_us": limits.fma_floor_us(macs),
            "tensor_floor_us": limits.tensor_floor_us(macs, case.dtype),
            "limit_us": self.limit_us,
            "efficiency": self.efficiency,
            "speedup": self.speedup,
            "slower_than_torch": self.slower,
            "class": limits.case_class(case.workload, case.torch_dtype.itemsize),
            "target": self.target,
            "meets_target": self.meets_target,
            "rel_error": self.check and self.check.rel_error,
            "error_bound": self.check and self.check.error_bound,
            "wrong": self.wrong,
            "repeats": {column: timing.repeats for column, timing in self.timings.items()},
            "host_behind": [c for c, timing in self.timings.items() if not timing.host_ahead],
            "notes": self.notes,
        }
        return {
            key: float(f"{value:.6g}") if isinstance(value, float) else value
            for key, value in record.items()
        }

    @classmethod
    def from_json(cls, record: dict[str, Any], workloads: Sequence[Workload]) -> "Result":
        """What `to_json` wrote, read back. Raises ValueError for a workload that is not listed."""
        workload = next((w for w in workloads if w.name == record["workload"]), None)
        # Early files do not state the shape. A random workload has another for another seed.
        if workload is None or record.get("shape", workload.shape) != workload.shape:
            raise ValueError(
                f"the workload {record['workload']} is not listed any more, or has another shape"
            )
        case = Case(workload, record["dtype"], record["pass"], record["layout"])
        check = None
        if record["error_bound"] is not None:
            check = Check(record["rel_error"], record["error_bound"], record["wrong"])
        timings = {
            column: Timing(record[f"{column}_us"], repeats, column not in record["host_behind"])
            for column, repeats in record["repeats"].items()
        }
        failure = record["wrong"] if check is None else None
        return cls(case, check, timings, record["notes"], failure)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or denominator is None else numerator / denominator


def label_width(cases: Iterable[Case]) -> int:
    """Of the table's first column."""
    return max([17, *(len(case.workload.label) for case in cases)]) + 2


def table_head(width: int) -> str:
    return (
        "Times in microseconds; default, bench, native: PyTorch's.\n"
        f"{'workload':<{width}}{'dtype':<9}{'pass':<16}{'layout':<7}{'dwconv':>9}{'default':>10}"
        f"{'bench':>10}{'native':>10}{'copy':>9}{'limit':>9}{'effic.':>8}{'target':>7}"
        f"{'speed-up':>9}{'error':>9}{'bound':>9}"
    )


def table_row(result: Result, width: int) -> str:
    def cell(value: float | None, width: int, digits: str) -> str:
        return f"{'-' if value is None else format(value, digits):>{width}}"

    case, check = result.case, result.check
    marks = [f"  WRONG: {result.wrong}"] if result.wrong else []
    marks += ["  slower"] * result.slower
    return "".join(
        [
            f"{case.workload.label:<{width}}{case.dtype:<9}{case.pass_:<16}{case.layout:<7}",
            cell(result.us("dwconv"), 9, ".1f"),
            *(cell(result.us(column), 10, ".1f") for column in TORCH_COLUMNS),
            cell(result.us("copy"), 9, ".1f"),
            cell(result.limit_us, 9, ".1f"),
            cell(result.efficiency, 8, ".3f"),
            cell(result.target, 7, ".2f"),
            cell(result.speedup, 9, ".2f"),
            cell(None if check is None else check.rel_error, 9, ".1e"),
            cell(None if check is None else check.error_bound, 9, ".1e"),
            *marks,
        ]
    )


def summarise(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row for each layout and pass that ran, then one for all."""
    rows = []
    for layout, pass_ in (*product(LAYOUTS, PASSES), ("all", "all")):
        part = [
            r
            for r in results
            if layout == "all" or (r.case.layout, r.case.pass_) == (layout, pass_)
        ]
        if part:
            rows.append({"layout": layout, "pass": pass_, **_summary(part)})
    return rows


def _summary(results: Iterable[Result]) -> dict[str, Any]:
    results = list(results)
    return {
        "cases": len(results),
        "efficiency": limits.geometric_mean(r.efficiency for r in results if r.efficiency),
        "speedup": limits.geometric_mean(r.speedup for r in results if r.speedup),
        "slower_than_torch": sum(r.slower for r in results),
        "meets_target": sum(r.meets_target for r in results),
        "below_half_target": sum(r.below_half_target for r in results),
        "wrong": sum(r.wrong is not None for r in results),
    }


def summary_table(results: Sequence[Result]) -> str:
    lines = [
        f"{'layout':<8}{'pass':<17}{'cases':>5}{'efficiency':>12}{'speed-up':>10}"
        f"{'slower than PyTorch':>21}{'target met':>12}{'below half':>12}{'wrong':>7}"
    ]
    for row in summarise(results):
        efficiency, speedup = (
            "-" if row[key] is None else f"{row[key]:.3f}" for key in ("efficiency", "speedup")
        )
        lines.append(
            f"{row['layout']:<8}{row['pass']:<17}{row['cases']:>5}{efficiency:>12}{speedup:>10}"
            f"{row['slower_than_torch']:>21}{row['meets_target']:>12}"
            f"{row['below_half_target']:>12}{row['wrong']:>7}"
        )
    return "\n".join(lines)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes `document` with one line a case, atomically: readers see the old file or the new."""
    rows = ",\n".join("    " + json.dumps(case, allow_nan=False) for case in document["cases"])
    mark = "@cases"
    text = json.dumps({**document, "cases": mark}, indent=2, allow_nan=False)
    text = text.replace(f'"{mark}"', f"[\n{rows}\n  ]" if rows else "[]", 1)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def read_json(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """A document that `write_json` wrote with the same `facts`. Raises ValueError otherwise."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not a file of results: {error}") from None
    if document.get("schema") != SCHEMA:
        raise ValueError(f"{path} has the schema {document.get('schema')}, not {SCHEMA}")
    for name, value in facts.items():
        if document.get(name) != value:
            raise ValueError(
                f"{path} was measured with {name} {document.get(name)}, and this is {value}"
            )
    return document


class Progress:
    """One line on a terminal, rewritten; elsewhere a line each half minute."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._start = self._shown = time.monotonic()

    def show(self, done: int, what: str) -> None:
        now = time.monotonic()
        if not self._live and now - self._shown < 30:
            return
        self._shown = now
        elapsed = now - self._start
        left = f", about {elapsed / done * (self._total - done):.0f} s left" if done else ""
        bar = ("#" * (20 * done // self._total)).ljust(20, ".")
        line = f"[{bar}] {done}/{self._total} {elapsed:.0f} s{left}: {what}"
        self._stream.write(f"\r\x1b[K{line[:99]}" if self._live else f"{line}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Makes room for other output on the same terminal."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
