"""Random workloads: reproducible, valid, of the kinds they should be; a run of them and the rest of
one."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from bench_runs import FakeTimer, run

from dwconv.__main__ import main, parser
from dwconv.bench import command, limits, sweep
from dwconv.bench.cases import DTYPES, LAYOUTS, PASSES
from dwconv.bench.options import command_line, selected_workloads
from dwconv.bench.sweep import random_cases, random_workloads
from dwconv.bench.timer import Timing

MANY = random_workloads(800, seed=5)


def test_a_seed_draws_the_same_workloads() -> None:
    """On every machine, and however many are drawn."""
    assert random_workloads(3, 5) == MANY[:3]
    assert random_workloads(3, 6) != MANY[:3]
    assert [workload.name for workload in MANY[:2]] == ["random_000", "random_001"]
    assert [workload.shape for workload in random_workloads(3, 0)] == [
        "N5 C1649 21x18 k6x6 s1 p2x2 d1",
        "N190 C17 73x44 k1x7 s1 p0x3 d1",
        "N23 C116 55x98 k9x9 s1 p0x0 d1",
    ]


def test_workloads_are_as_announced() -> None:
    for w in MANY:
        assert 5 <= min(w.h, w.w) <= max(w.h, w.w) <= 130
        assert 1 <= min(w.kernel) <= max(w.kernel) <= 11
        assert 1 <= w.c <= 2048
        assert w.n >= 1
        assert 2**19 <= math.prod(w.input_shape) <= 2**24
        assert w.stride == 1 or w.dilation == 1
        assert w.padding in ((0, 0), tuple(w.dilation * (k - 1) // 2 for k in w.kernel))
        x, weight = (torch.empty(s, device="meta") for s in (w.input_shape, w.weight_shape))
        y = torch.nn.functional.conv2d(x, weight, None, w.stride, w.padding, w.dilation, w.c)
        assert w.output_shape == y.shape


def test_workloads_of_each_kind() -> None:
    """The shares, and every class that a target is set for, up to 11 x 11."""
    share = {
        "rectangular": sum(w.kernel[0] != w.kernel[1] for w in MANY),
        "strided": sum(w.stride == 2 for w in MANY),
        "dilated": sum(w.dilation > 1 for w in MANY),
        "padded": sum(w.padding != (0, 0) for w in MANY),
    }
    expected = {"rectangular": 0.23, "strided": 0.25, "dilated": 0.125, "padded": 0.75}
    assert {kind: count / len(MANY) for kind, count in share.items()} == pytest.approx(
        expected, abs=0.05
    )
    classes = Counter(limits.case_class(w, 2) for w in MANY)
    assert set(classes) == {"k<=5 large", "k<=5 small", "k<=11 large", "k<=11 small", "dilated"}
    assert min(classes.values()) > 40
    assert min(w.c for w in MANY) < 4
    assert max(w.c for w in MANY) > 1024


LARGE = random_workloads(400, seed=5, filters="large")


def test_workloads_of_large_filters() -> None:
    assert random_workloads(3, 5, "large") == LARGE[:3]
    for w in LARGE:
        assert 7 <= min(w.h, w.w) <= max(w.h, w.w) <= 128
        assert 9 <= min(w.kernel) <= max(w.kernel) <= 63
        assert 1 <= w.c <= 1024
        assert 1 <= w.n <= 128
        assert 2**19 <= math.prod(w.input_shape) <= 2**24
        assert (w.stride, w.dilation) == (1, 1)
        assert w.padding in ((0, 0), tuple((k - 1) // 2 for k in w.kernel))
        assert min(w.output_size) >= 1
    rectangular = sum(w.kernel[0] != w.kernel[1] for w in LARGE)
    assert rectangular / len(LARGE) == pytest.approx(0.49, abs=0.07)
    classes = Counter(limits.case_class(w, 2) for w in LARGE)
    assert (
        {"k>11 large", "k>11 small"}
        <= set(classes)
        <= {"k>11 large", "k>11 small", "k<=11 large", "k<=11 small"}
    )
    assert min(classes["k>11 large"], classes["k>11 small"]) > 40


def test_one_dtype_for_each_pass() -> None:
    cases = random_cases(MANY[:150], DTYPES, PASSES, ("nchw",))
    assert len(cases) == 450
    assert min(Counter(case.dtype for case in cases).values()) > 120
    both = random_cases(MANY[:150], DTYPES, PASSES, LAYOUTS)
    assert both[::2] == cases
    assert all(c.group == other.group for c, other in zip(both[::2], both[1::2], strict=True))
    weights = random_cases(MANY[:150], DTYPES, ["backward_weight"], ("nchw",))
    assert weights == [case for case in cases if case.pass_ == "backward_weight"]
    assert {c.dtype for c in random_cases(MANY, ["float16"], PASSES, LAYOUTS)} == {"float16"}


# Whole runs


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "ELEMENTS", (2**8, 2**12))


@pytest.mark.usefixtures("_small")
def test_a_sweep_and_the_rest_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = ("--sweep", "3", "--seed", "7", "--layouts", "nchw", "--dtypes", "float32,float16")
    workloads = random_workloads(3, 7)
    _, first = run(*words, "--time-limit", "12", json_file=out, workloads=workloads)
    assert 1 <= len(first["cases"]) < 9
    status, second = run(*words, "--resume", json_file=out, workloads=workloads)
    assert status == 0
    assert second["cases"][: len(first["cases"])] == first["cases"]
    assert (len(second["cases"]), second["not_run"]) == (9, [])
    assert "--sweep 3 --seed 7 --repeats 20 --resume" in second["command"]
    shapes = {case["workload"]: case["shape"] for case in second["cases"]}
    assert shapes == {workload.name: workload.shape for workload in workloads}
    assert {case["dtype"] for case in second["cases"]} == {"float32", "float16"}
    printed = capsys.readouterr().out
    assert printed.count(f"\n{workloads[0].shape}  ") == 3
    assert printed.count("below half") == 2

    other = random_workloads(3, 8)
    status, third = run(*words, "--resume", json_file=out, workloads=other)
    assert (status, third) == (2, second)
    assert "random_000 is not listed any more, or has another shape" in capsys.readouterr().err


@pytest.mark.usefixtures("_small")
def test_cases_far_below_their_target_are_counted(tmp_path: Path) -> None:
    class Slow(FakeTimer):
        def __call__(self, call: object) -> Timing:
            timing = super().__call__(call)  # type: ignore[arg-type]
            return Timing(timing.us * (1 + 3 * (self.calls % 5 == 2)), 20)

    _, document = run(
        *("--sweep", "2", "--passes", "forward", "--layouts", "nchw", "--no-overhead"),
        timer=Slow(),
        json_file=tmp_path / "out.json",
        workloads=random_workloads(2, 7),
    )
    efficiencies = [case["efficiency"] for case in document["cases"]]
    assert document["summary"][-1]["below_half_target"] == sum(e < 0.3 for e in efficiencies) == 2
    assert document["overhead"] is None
    assert "--no-overhead" in document["command"]


def test_list_of_random_workloads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--sweep", "2", "--layouts", "nhwc"]) == 0
    printed = capsys.readouterr().out
    assert "random_001" in printed
    assert "6 cases: workloads x a dtype for each pass x layouts" in printed


def test_what_a_command_measures() -> None:
    """--only is of the listed workloads."""
    options = parser("bench").parse_args(
        ["bench", "--sweep", "4", "--seed", "2", "--column-ms", "50"]
    )
    assert "--sweep 4 --seed 2 --repeats 20 --column-ms 50" in command_line(options)
    assert "--filters" not in command_line(options)
    large = parser("bench").parse_args(["bench", "--sweep", "4", "--filters", "large"])
    assert "--sweep 4 --seed 0 --filters large" in command_line(large)
    assert selected_workloads(large) == random_workloads(4, 0, "large")
    assert json.dumps(command.protocol(20, 50)).count("50 ms") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "--sweep", "2", "--only", "kb82_k3"])
