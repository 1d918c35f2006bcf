"""benchmarks/loss_curves.py: a whole run on the CPU, and what is made of the curves."""

import functools
from pathlib import Path
from typing import Any

import loss_curves
import pytest
import torch
from training_runs import ON_CPU, run, tiny_network

__all__ = ["tiny_network"]  # a fixture

record = functools.partial(run, loss_curves.main)


@pytest.mark.usefixtures("tiny_network")
class TestRun:
    def test_records_every_run(self, tmp_path: Path) -> None:
        before = torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark
        status, document = record(tmp_path / "a.json", *ON_CPU, "--steps", "9", "--lr", "1e-3")
        assert status == 0
        curves = {case["variant"]: case["losses"] for case in document["cases"]}
        assert list(curves) == list(loss_curves.RUNS)
        for losses in curves.values():
            assert len(losses) == 9
            # On a CPU all are PyTorch's convolution. Each batch is seen twice.
            assert losses == pytest.approx(curves["stock"], rel=1e-6)
            assert losses[4] < losses[0]
        found = document["summary"]["tiny float32 nchw"]
        assert found["agrees"] is True
        assert found["differences"].keys() == {"stock", "stock_default", "stock_native"}
        assert (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark) == before

    def test_a_loss_that_is_not_finite_is_an_error(self, tmp_path: Path) -> None:
        arguments = (*ON_CPU, "--variants", "stock", "--lr", "1e30")
        status, document = record(tmp_path / "a.json", *arguments)
        assert status == 1
        assert document["cases"][0]["error"] == "ArithmeticError: the loss is not finite"

    def test_resumes_no_other_rate(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = (*ON_CPU, "--variants", "stock", "--resume")
        record(tmp_path / "a.json", *arguments)
        status, _ = record(tmp_path / "a.json", *arguments, "--lr", "0.5")
        assert status == 2
        assert "measured with lr 1e-05, and this is 0.5" in capsys.readouterr().err

    @pytest.mark.gpu
    def test_runs_in_one_mode_agree_on_a_gpu(self, tmp_path: Path) -> None:
        """Ten steps of float32: long before rounding grows."""
        arguments = ("--dtypes", "float32", "--layouts", "nchw", "--steps", "10")
        status, document = record(tmp_path / "a.json", *arguments)
        assert status == 0
        assert document["summary"]["tiny float32 nchw"]["agrees"] is True


def agreement(dtype: str, **curves: list[float]) -> dict[str, Any]:
    records = [
        {
            "model": "a",
            "dtype": dtype,
            "layout": "nchw",
            "error": None,
            "variant": variant,
            "losses": losses,
        }
        for variant, losses in curves.items()
    ]
    (found,) = loss_curves.summarise(records).values()
    return dict(found)


class TestAgreement:
    def test_float32_has_a_bound(self) -> None:
        stock = [4.0, 2.0]
        within = agreement("float32", stock=stock, converted=[4.0, 2.00019])
        assert within == {"differences": {"stock": 9.5e-05}, "spread": None, "agrees": True}
        beyond = agreement("float32", stock=stock, converted=[4.00041, 2.0])
        assert beyond["agrees"] is False

    def test_16_bits_have_the_spread_of_stock(self) -> None:
        stock = {"stock": [4.0, 2.0], "stock_default": [4.0, 2.2]}
        within = agreement("bfloat16", **stock, converted=[4.0, 2.4])
        assert within["spread"] == pytest.approx(0.2 / 2.2, rel=1e-2)
        assert within["agrees"] is True
        beyond = agreement("bfloat16", **stock, converted=[4.0, 2.5])
        assert beyond["agrees"] is False

    def test_too_few_runs_say_nothing(self) -> None:
        assert agreement("bfloat16", stock=[4.0], converted=[4.0])["agrees"] is None
        assert agreement("float32", stock=[4.0], stock_default=[4.0])["agrees"] is None
