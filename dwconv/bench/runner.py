"""Measures one case: checks dwconv's output, times it, the copy and PyTorch's columns."""

from collections.abc import Callable

import torch

from dwconv.bench.cases import (
    TORCH_COLUMNS,
    Case,
    cudnn_flags,
    dwconv_call,
    in_fresh_thread,
    random_data,
    torch_call,
)
from dwconv.bench.check import Reference, check, make_reference
from dwconv.bench.report import Result
from dwconv.bench.timer import Measure, Timing

TIME_LIMIT = "the time limit was reached"
LARGE_COPY_BYTES = 2**32  # read and written together


class Stop(Exception):
    """Ends a run early; the message says why."""


class Runner:
    """Measures cases on `device`; `measure` times one call, `expired` says when to stop."""

    def __init__(self, measure: Measure, device: torch.device, expired: Callable[[], bool]) -> None:
        self._measure = measure
        self._device = device
        self._expired = expired
        self._copies: dict[int, Timing] = {}
        self._group = ""
        self._reference: Reference | None = None

    def _timed(self, call: Callable[[], object]) -> Timing:
        if self._expired():
            raise Stop(TIME_LIMIT)
        return self._measure(call)

    def copy(self, bytes_moved: int) -> Timing:
        """A device-to-device copy that reads half of `bytes_moved` and writes the other half."""
        if bytes_moved not in self._copies:
            source = torch.empty(bytes_moved // 2, dtype=torch.uint8, device=self._device).random_()
            target = torch.empty_like(source)
            self._copies[bytes_moved] = self._timed(lambda: target.copy_(source))
        return self._copies[bytes_moved]

    def bandwidth_gb_s(self, bytes_moved: int) -> float:
        return round(bytes_moved / self.copy(bytes_moved).us / 1e3, 1)

    def run(self, case: Case) -> Result:
        """Raises torch.OutOfMemoryError where the GPU cannot hold the case."""
        if self._expired():
            raise Stop(TIME_LIMIT)
        if case.group != self._group:
            self._group, self._reference = case.group, None
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        result = Result(case)
        data = random_data(case, self._device)
        if self._reference is None:
            self._reference = make_reference(case, data)
        call = dwconv_call(case, data)
        try:
            # The block freed here is the one the output gets: what it leaves unwritten is NaN.
            torch.full(case.result_shape, torch.nan, dtype=case.torch_dtype, device=self._device)
            result.check = check(case, call(), self._reference)
            result.timings["dwconv"] = self._timed(call)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            result.failure = _first_line(error)
            self._stop_if_gpu_is_lost(case)
            return result
        result.timings["copy"] = self.copy(case.bytes_moved)
        call = torch_call(case.workload, case.pass_, data)
        for column, flags in TORCH_COLUMNS.items():
            try:
                with cudnn_flags(**flags):
                    result.timings[column] = in_fresh_thread(lambda: self._timed(call))
            except RuntimeError as error:
                result.notes.append(f"{column}: {_first_line(error)}")
                self._stop_if_gpu_is_lost(case)
        return result

    def _stop_if_gpu_is_lost(self, case: Case) -> None:
        """After some errors every later call fails too."""
        if self._device.type == "cuda":
            try:
                torch.cuda.synchronize()
            except RuntimeError as error:
                raise Stop(f"the GPU was lost in {case.name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
