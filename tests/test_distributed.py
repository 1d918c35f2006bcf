"""Two processes train a converted model as one process trains the stock one: DDP and FSDP2, by gloo
on the CPU and by NCCL on two GPUs."""

from collections.abc import Iterator
from typing import Any

import parallel
import pytest
import torch
from problems import LAYOUTS
from processes import Pair
from torch import Tensor

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_order = pytest.mark.parametrize("convert_first", [True, False], ids=["before", "after"])


@pytest.fixture(
    scope="module", params=["gloo", pytest.param("nccl", marks=[pytest.mark.gpu, two_gpus])]
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    processes = Pair(request.param)
    yield processes
    processes.stop()


@pytest.fixture
def where(pair: Pair) -> tuple[torch.device, torch.dtype]:
    """One process's device; and a dtype: float64 tells rounding from all else, but runs kernels
    that few will train with."""
    if pair.backend == "nccl":
        return torch.device("cuda"), torch.float32
    return torch.device("cpu"), torch.float64


def alone(
    where: tuple[torch.device, torch.dtype], layout: str, of_images: str, unused: bool = False
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of the stock model, trained on whole batches."""
    model = parallel.network(*where, layout, unused)
    losses = parallel.train(model, parallel.batches(*where, of_images))
    return losses, {key: value.cpu() for key, value in model.state_dict().items()}


def check(
    results: list[dict[str, Any]], expected: tuple[list[float], dict[str, Tensor]], prefix: str = ""
) -> None:
    """Both processes end with what one does; and with a state that loads into the stock model."""
    losses, state = expected
    assert losses[-1] < losses[0]
    for result in results:
        tolerance = 1e-9 if next(iter(state.values())).dtype == torch.float64 else 1e-5
        assert result["losses"] == pytest.approx(losses, rel=tolerance)
        assert list(result["state"]) == [prefix + key for key in state]
        for key, value in state.items():
            torch.testing.assert_close(result["state"][prefix + key], value)


@every_layout
@every_order
@pytest.mark.parametrize("of_images", LAYOUTS)
def test_ddp(convert_first: bool, of_images: str, layout: str, pair: Pair, where: Any) -> None:
    """Without a warning, such as that strides of gradients are not those of its buckets."""
    results = pair.run(parallel.ddp, {}, where[1], layout, of_images, convert_first)
    check(results, alone(where, layout, of_images), prefix="module.")
    for result in results:
        assert result["warnings"] == []
        assert len(result["strides"]) == 3
        assert all(of_weight == of_grad for of_weight, of_grad in result["strides"])


@every_layout
@pytest.mark.parametrize(
    "options",
    [
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"gradient_as_bucket_view": True, "static_graph": True, "bucket_cap_mb": 0.001},
    ],
    ids=" ".join,
)
def test_ddp_with_options(options: dict[str, Any], layout: str, pair: Pair, where: Any) -> None:
    unused = "find_unused_parameters" in options
    results = pair.run(parallel.ddp, options, where[1], layout, layout, True, unused)
    check(results, alone(where, layout, layout, unused), prefix="module.")
    for result in results:
        assert result["warnings"] == []


@every_order
@pytest.mark.parametrize("of_images", LAYOUTS)
def test_fully_shard(convert_first: bool, of_images: str, pair: Pair, where: Any) -> None:
    """FSDP2 by blocks. It takes no parameters in channels_last, whose layers they may be."""
    results = pair.run(parallel.fsdp, False, where[1], "nchw", of_images, convert_first)
    check(results, alone(where, "nchw", of_images))


def test_fully_shard_of_each_layer(pair: Pair, where: Any) -> None:
    """Also of a depthwise one, whose class it replaces: by one that is not converted any more."""
    results = pair.run(parallel.fsdp, True, where[1], "nchw", "nchw", True)
    check(results, alone(where, "nchw", "nchw"))
    for reasons in pair.run(parallel.skipped_by_convert):
        assert len(reasons) == 3
        assert all(reason.startswith("is a FSDPConv2d, a subclass") for reason in reasons)


def test_fully_shard_in_bfloat16(pair: Pair) -> None:
    for result in pair.run(parallel.fsdp_in_bfloat16):
        assert result["outputs"] == {torch.bfloat16}
        assert result["parameters"] == {(torch.float32, torch.float32)}
        assert result["losses"][-1] < result["losses"][0]
