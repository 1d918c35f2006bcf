"""The workloads, and what each of their cases could reach and is asked to reach."""

import pytest
import torch

from dwconv.bench import limits
from dwconv.bench.cases import PASSES, select
from dwconv.workloads import WORKLOADS, Workload

BY_NAME = {workload.name: workload for workload in WORKLOADS}


def test_workload_figures() -> None:
    assert len(WORKLOADS) == len(BY_NAME) == 23
    seed = BY_NAME["seed_kb84_k3"]
    assert seed.output_shape == (64, 128, 254, 510)
    assert seed.macs == 9_550_725_120
    assert seed.bytes_moved(4) == 8_539_734_016
    assert BY_NAME["slak_56_c124_51x5"].weight_shape == (124, 1, 51, 5)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: str(workload.name))
def test_output_shape_is_that_of_pytorch(workload: Workload) -> None:
    x = torch.empty(workload.input_shape, device="meta")
    weight = torch.empty(workload.weight_shape, device="meta")
    y = torch.nn.functional.conv2d(
        x, weight, None, workload.stride, workload.padding, workload.dilation, workload.c
    )
    assert workload.output_shape == y.shape


def test_select() -> None:
    cases = select(WORKLOADS)
    assert len(cases) == len(set(cases)) == 414
    assert cases[0].group == cases[1].group != cases[2].group
    assert len(select(WORKLOADS, ["float16"], ["forward"], ["nhwc"])) == 23


# Limits and targets


def test_limits() -> None:
    seed, k7, k31 = (BY_NAME[n] for n in ("seed_kb84_k3", "cnxt_56_c96_k7", "replk_56_c128_k31"))
    assert limits.fma_floor_us(seed.macs) == pytest.approx(285.1, abs=0.05)
    assert limits.tensor_floor_us(k31.macs, "float16") == pytest.approx(96.4, abs=0.05)
    assert limits.tensor_floor_us(k31.macs, "float32") is None
    assert limits.limit_us(2820.4, seed.macs, "float32") == 2820.4
    assert limits.limit_us(72.6, k31.macs, "float32") == pytest.approx(737.0, abs=0.05)
    assert limits.limit_us(39.3, k31.macs, "bfloat16") == pytest.approx(96.4, abs=0.05)
    assert limits.limit_us(56.2, k7.macs, "float16") == 56.2


@pytest.mark.parametrize(
    ("name", "itemsize", "layout", "forward", "weight"),
    [
        ("seed_kb84_k3", 4, "nchw", 0.92, 0.88),
        ("effb0_7_c1152_k5", 2, "nhwc", 0.85, 0.65),
        ("cnxt_56_c96_k7", 2, "nhwc", 0.85, 0.78),
        ("incnxt_56_c96_1x11", 4, "nchw", 0.85, 0.78),
        ("cnxt_7_c768_k7", 4, "nchw", 0.85, 0.78),
        ("cnxt_7_c768_k7", 2, "nchw", 0.70, 0.60),
        ("van_28_c160_k7d3", 4, "nchw", 0.70, 0.60),
        ("aspp_33_c2048_k3d6", 2, "nhwc", 0.70, 0.60),
        ("replk_56_c128_k31", 4, "nchw", 0.70, 0.60),
        ("slak_56_c124_51x5", 4, "nhwc", 0.50, 0.40),
        ("replk_7_c1024_k13", 4, "nchw", 0.55, 0.45),
        ("replk_7_c1024_k13", 4, "nhwc", 0.35, 0.25),
    ],
)
def test_targets(name: str, itemsize: int, layout: str, forward: float, weight: float) -> None:
    got = [limits.target_efficiency(BY_NAME[name], itemsize, layout, pass_) for pass_ in PASSES]
    assert got == [forward, forward, weight]


def test_error_bound_and_mean() -> None:
    assert limits.error_bound(2e-4, "float16", "backward_weight") == pytest.approx(2.2e-4)
    assert limits.error_bound(2e-8, "float32", "forward") == pytest.approx(1.022e-6)
    assert limits.error_bound(2e-8, "float32", "backward_weight") == pytest.approx(3.022e-6)
    assert limits.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert limits.geometric_mean([]) is None
