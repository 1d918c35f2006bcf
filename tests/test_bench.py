"""The benchmark: its data and checks, whole runs on the CPU with made-up times, its options."""

import argparse
import json
import threading
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_runs import CPU, OVERHEAD, SMALL, FakeTimer, run
from torch import Tensor

from dwconv.__main__ import main, parser
from dwconv.bench import runner
from dwconv.bench.cases import (
    PASSES,
    Case,
    Data,
    cudnn_flags,
    dwconv_call,
    in_fresh_thread,
    random_data,
    torch_call,
)
from dwconv.bench.check import check, make_reference
from dwconv.bench.options import command_line
from dwconv.bench.report import Progress, write_json
from dwconv.bench.timer import Timing
from dwconv.workloads import Workload

# Data, calls and checks


def case_of(pass_: str, dtype: str = "float32", layout: str = "nchw") -> Case:
    return Case(SMALL, dtype, pass_, layout)


def test_layouts_of_a_group_hold_the_same_numbers() -> None:
    nchw, nhwc = (
        random_data(case_of("forward", layout=layout), CPU) for layout in ("nchw", "nhwc")
    )
    assert torch.equal(nchw.x, nhwc.x)
    assert torch.equal(nchw.grad, nhwc.grad)
    assert nhwc.x.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(nchw.x, random_data(case_of("backward_input"), CPU).x)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("pass_", PASSES)
def test_reference_and_check(pass_: str, layout: str) -> None:
    case = case_of(pass_, layout=layout)
    data = random_data(case, CPU)
    x, weight = data.x.double().requires_grad_(), data.weight.double().requires_grad_()
    y = torch.nn.functional.conv2d(
        x, weight, None, SMALL.stride, SMALL.padding, SMALL.dilation, SMALL.c
    )
    grads = torch.autograd.grad(y, (x, weight), data.grad.double())
    exact = dict(zip(PASSES, (y.detach(), *grads), strict=True))[pass_]
    whole, part = make_reference(case, data), make_reference(case, data, budget=1)
    torch.testing.assert_close(whole.value, exact)
    last = exact.size(0) - 1
    assert part.index.tolist() == [0, last]
    torch.testing.assert_close(part.value, exact[[0, last]])
    out = dwconv_call(case, data)()
    assert check(case, out, part).problem is None
    assert check(case, out, whole).problem is None
    assert check(case, torch_call(SMALL, pass_, data)(), whole).problem is None

    def problem(change: Callable[[Tensor], Tensor]) -> str:
        return str(check(case, change(out.clone()), part).problem)

    assert "relative error" in problem(lambda t: t * 1.0001)
    assert "never written" in problem(lambda t: t.index_fill(0, torch.tensor([1]), torch.nan))
    assert "float16" in problem(lambda t: t.half())
    assert "not (" in problem(lambda t: t[:-1])


def test_few_results_may_cancel() -> None:
    """Then an error is measured against what the results are on average, not against their sum."""
    workload = Workload("pair", "", 1, 1, 1, 2, (1, 1), 1, (0, 0), 1)
    case = Case(workload, "float32", "backward_weight", "nchw")
    data = Data(
        x=torch.tensor([[[[1.0, 1.0]]]]),
        weight=torch.ones(1, 1, 1, 1),
        grad=torch.tensor([[[[1.0, -1.0 + 2**-20]]]]),
    )
    reference = make_reference(case, data)
    assert abs(reference.norm - 2**0.5) < 1e-5
    assert check(case, torch.full((1, 1, 1, 1), 2**-20 + 1e-7), reference).problem is None
    assert check(case, torch.full((1, 1, 1, 1), 2**-20 + 1e-5), reference).problem is not None


def test_check_reports_another_layout() -> None:
    case = case_of("forward", layout="nhwc")
    data = random_data(case, CPU)
    out = dwconv_call(case, data)().contiguous()
    assert "layout nhwc" in str(check(case, out, make_reference(case, data)).problem)


def test_flags_are_restored_and_threads_are_new() -> None:
    cudnn: Any = torch.backends.cudnn
    before = cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32
    with cudnn_flags(enabled=False, benchmark=True):
        assert (cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32) == (False, True, False)
    assert (cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32) == before
    assert in_fresh_thread(threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        in_fresh_thread(lambda: 1 // 0)


# Whole runs on the CPU, with made-up times


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, document = run("--passes", "backward_weight,forward", json_file=tmp_path / "out.json")
    assert status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert document["schema"] == 1
    assert document["status"] == "complete"
    assert document["not_run"] == []
    assert document["copy_bandwidth_gb_s"] == pytest.approx(2**20 / 10e-6 / 1e9, abs=0.1)
    assert "--passes forward,backward_weight" in document["command"]
    assert str(tmp_path) not in json.dumps(document)
    assert [(c["pass"], c["layout"]) for c in document["cases"]] == [
        ("forward", "nchw"),
        ("forward", "nhwc"),
        ("backward_weight", "nchw"),
        ("backward_weight", "nhwc"),
    ]
    first = document["cases"][0]
    assert first["torch_default_us"] == first["torch_native_us"] == first["torch_best_us"] == 30
    assert (first["limit_us"], first["efficiency"], first["speedup"]) == (10, 1, 3)
    assert (first["target"], first["meets_target"], first["slower_than_torch"]) == (
        0.85,
        True,
        False,
    )
    assert first["rel_error"] < first["error_bound"]
    assert first["wrong"] is None
    assert first["shape"] == "N5 C6 9x8 k3x5 s2 p1x2 d1"
    assert first["repeats"]["torch_cudnn_benchmark"] == 20
    assert [row["cases"] for row in document["summary"]] == [1, 1, 1, 1, 4]
    assert document["summary"][-1]["speedup"] == pytest.approx(3)
    assert document["summary"][-1]["below_half_target"] == 0
    assert document["overhead"] == OVERHEAD
    printed = capsys.readouterr().out
    assert "a call on an image: forward 9.1 us (PyTorch 10.0), with backward 70.0 us" in printed
    assert printed.count("\nsmall ") == 4
    assert "slower than PyTorch" in printed


def test_resume_keeps_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    _, first = run("--passes", "forward", "--time-limit", "6", json_file=out)
    assert (len(first["cases"]), len(first["not_run"])) == (1, 1)
    status, second = run("--passes", "forward", "--resume", json_file=out)
    assert status == 0
    assert second["cases"][0] == first["cases"][0]
    assert [case["layout"] for case in second["cases"]] == ["nchw", "nhwc"]
    assert (second["status"], second["not_run"]) == ("complete", [])
    assert [run["status"] for run in second["earlier_runs"]] == [first["status"]]
    assert second["summary"][-1]["cases"] == 2


def test_resume_refuses_another_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    _, first = run("--passes", "forward", json_file=out)
    status, second = run("--passes", "forward", "--resume", json_file=out, gpu="another")
    assert (status, second) == (2, first)
    assert "was measured with gpu none, and this is another" in capsys.readouterr().err


def test_time_limit_keeps_what_was_measured(tmp_path: Path) -> None:
    status, document = run("--time-limit", "8", json_file=tmp_path / "out.json")
    assert status == 0
    assert len(document["cases"]) == 1
    assert len(document["not_run"]) == 5
    assert document["not_run"][0]["case"] == "small float32 forward nhwc"
    assert document["status"] == document["not_run"][0]["why"] == "the time limit was reached"


def test_interrupt_keeps_what_was_measured(tmp_path: Path) -> None:
    class Interrupted(FakeTimer):
        def __call__(self, call: Callable[[], object]) -> Timing:
            if self.calls == 8:
                raise KeyboardInterrupt
            return super().__call__(call)

    status, document = run(timer=Interrupted(), json_file=tmp_path / "out.json")
    assert status == 130
    assert (len(document["cases"]), len(document["not_run"])) == (1, 5)
    assert document["status"] == "interrupted"


def test_a_run_is_saved_while_it_goes(tmp_path: Path) -> None:
    out = tmp_path / "out.json"

    class Watching(FakeTimer):
        def __call__(self, call: Callable[[], object]) -> Timing:
            if self.calls == 15:
                document = json.loads(out.read_text())
                assert document["status"] == "running"
                assert len(document["cases"]) >= 2
            return super().__call__(call)

    assert run(timer=Watching(), json_file=out)[1]["status"] == "complete"


@pytest.mark.parametrize("kind", ["wrong", "raises", "memory"])
def test_failures_of_dwconv(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(case: Case, data: Data) -> Callable[[], Tensor]:
        if case.pass_ != "forward":
            return dwconv_call(case, data)

        def call() -> Tensor:
            if kind == "raises":
                raise RuntimeError("no such kernel\nmore")
            if kind == "memory":
                raise torch.OutOfMemoryError("out of memory")
            return dwconv_call(case, data)() * 1.01

        return call

    monkeypatch.setattr(runner, "dwconv_call", broken)
    status, document = run(json_file=tmp_path / "out.json")
    errors = capsys.readouterr().err
    if kind == "memory":
        assert status == 0
        assert [row["why"] for row in document["not_run"]] == ["the GPU has too little memory"] * 2
        return
    assert status == 1
    assert "WRONG RESULTS in 2 of 6 cases" in errors
    assert "small float32 forward nchw" in errors
    first = document["cases"][0]
    assert first["wrong"] == "no such kernel" if kind == "raises" else "relative" in first["wrong"]
    assert (first["dwconv_us"] is None) == (kind == "raises")
    assert document["summary"][-1]["wrong"] == 2


def test_a_failing_column_of_pytorch_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(workload: Workload, pass_: str, data: Data) -> Callable[[], Tensor]:
        def call() -> Tensor:
            if not torch.backends.cudnn.enabled:
                raise RuntimeError("not here")
            return torch_call(workload, pass_, data)()

        return call

    monkeypatch.setattr(runner, "torch_call", broken)
    status, document = run(json_file=tmp_path / "out.json")
    assert status == 0
    assert document["cases"][0]["notes"] == ["torch_native: not here"]
    assert document["cases"][0]["torch_native_us"] is None
    assert document["cases"][0]["torch_best_us"] == 30


def test_json_round_trip(tmp_path: Path) -> None:
    document = {"schema": 1, "cases": [{"a": None, "b": [1.5]}, {"c": "@cases"}], "not_run": []}
    write_json(tmp_path / "out.json", document)
    assert json.loads((tmp_path / "out.json").read_text()) == document


def test_progress_on_a_terminal() -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal, plain = Terminal(), StringIO()
    Progress(4, terminal).show(2, "a case")
    Progress(4, plain).show(2, "a case")
    assert "[##########..........] 2/4" in terminal.getvalue()
    assert plain.getvalue() == ""


# The command line


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "bench" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "--help"])
    assert "--time-limit" in capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--only", "kb82_k3", "--layouts", "nhwc"]) == 0
    printed = capsys.readouterr().out
    assert "KernelBench level 1 problem 82" in printed
    assert "9 cases" in printed


def test_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["bench"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "dwconv bench needs an NVIDIA GPU, and PyTorch sees none here.\n"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--only", "nonsense", "'nonsense' is unknown; choose from seed_kb84_k3"),
        ("--dtypes", "float32,fp16", "'fp16' is unknown; choose from float32, float16, bfloat16"),
        ("--repeats", "3", "'3' is not a count of 20 or more"),
        ("--time-limit", "-1", "'-1' is not a positive number"),
        ("--json", "/nowhere/at/all.json", "not a file in a folder that can be written"),
    ],
)
def test_bad_options(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", f"{option}={value}"])
    assert message in capsys.readouterr().err


def test_command_line() -> None:
    options: argparse.Namespace = parser("bench").parse_args(
        ["bench", "--only", "kb82_k3", "--dtypes", "bfloat16,float32", "--time-limit", "90"]
    )
    line = command_line(options)
    assert "--dtypes float32,bfloat16 " in line
    assert line.endswith("--only kb82_k3 --repeats 20 --time-limit 90")


@pytest.mark.gpu
def test_bench_on_the_gpu(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = ["bench", "--only", "mbv2_7_c960_s1", "--dtypes", "float16", "--json", str(out)]
    assert main(words) == 0, capfd.readouterr().err
    document = json.loads(out.read_text())
    assert document["status"] == "complete"
    assert document["copy_bandwidth_gb_s"] > 10
    assert len(document["cases"]) == 6
    for case in document["cases"]:
        assert case["wrong"] is None
        assert case["notes"] == []
        assert min(case[f"{column}_us"] for column in ("dwconv", "copy", "torch_best")) > 1
        assert set(case["repeats"].values()) == {20}
