"""Where a channels_last problem runs contiguous kernels: because both formats lie the same, or by
transposing its images."""

from typing import Any

import pytest
import torch
from problems import (
    DTYPES,
    KERNELS,
    LAYOUTS,
    PASSES,
    Problem,
    check_all,
    has_strides_of,
    lies_the_same,
    make_data,
    poisoned_memory,
    run,
    takes,
)

from dwconv import _C


@pytest.mark.parametrize("pass_", PASSES)
def test_one_channel_has_the_kernels_of_both_layouts(pass_: str) -> None:
    """An image of one channel, or of one pixel, lies the same in both: contiguous has more kernels
    for those."""
    for problem in (
        Problem(batch=64, channels=1, size=(34, 7), kernel=(5, 5), padding=(2, 2, 2, 2)),
        Problem(channels=50, size=(1, 1), kernel=(1, 1)),
    ):
        assert lies_the_same(problem)
        contiguous, pixels = (
            _C.plan(**problem.plan_arguments(pass_, "float16", layout)) for layout in LAYOUTS
        )
        assert contiguous == pixels
    several = Problem(channels=2, size=(34, 7))
    assert not lies_the_same(several)
    plan = _C.plan(**several.plan_arguments(pass_, "float16", "nhwc"))
    assert plan["kernel"].endswith("_nhwc")


# A weight gradient for the tensor cores, where no kernel of channels_last is near them.
WORTH_IT = Problem(batch=256, channels=151, size=(52, 10), kernel=(10, 10), padding=(4, 5, 4, 5))


def test_images_are_transposed_where_that_is_faster() -> None:
    """The contiguous kernel's plan, with room for both images."""
    contiguous, chosen = (
        _C.plan(**WORTH_IT.plan_arguments("backward_weight", "float16", layout))
        for layout in ("nchw", "nhwc")
    )
    assert chosen["transposed"]
    assert not contiguous["transposed"]
    assert chosen["kernel"] == contiguous["kernel"]
    assert chosen["tiling"] == contiguous["tiling"]
    images = 2 * 256 * 151 * (52 * 10 + 52 * 10)
    assert chosen["workspace_bytes"] == contiguous["workspace_bytes"] + images
    assert chosen["estimate_us"] > contiguous["estimate_us"]


def test_transposed_images_are_computed_strictly_where_asked() -> None:
    """The contiguous kernels obey the policy like all others."""
    arguments = WORTH_IT.plan_arguments("backward_weight", "float16", "nhwc")
    plan = _C.plan(**arguments, strict_nonfinite=True)
    assert plan["kernel"].startswith("generic_")
    assert all(other["kernel"].startswith("generic_") for other in plan["runners_up"])


@pytest.mark.parametrize("pass_", PASSES)
def test_what_is_not_transposed(pass_: str) -> None:
    """Images of float64, and of a side that 32 bits do not count within a tile."""
    for dtype, problem in (
        ("float64", WORTH_IT),
        ("float32", Problem(batch=1, channels=2, size=(2**13, 2**11))),
        ("float32", Problem(batch=1, channels=2**24, size=(3, 3))),
    ):
        contiguous = f"generic_{pass_}_{dtype}_nchw"
        plan = _C.plan(**problem.plan_arguments(pass_, dtype, "nhwc"))
        assert not any(each["transposed"] for each in (plan, *plan["runners_up"]))
        with pytest.raises(ValueError, match="another pass, dtype or layout"):
            _C.plan(**problem.plan_arguments(pass_, dtype, "nhwc"), kernel=contiguous)


# Images that are a part of a tile, one tile, and several, along pixels and along channels; short
# rows, of a handful of channels or of pixels, and rows of any alignment; batches that tiles of
# several images do not divide.
TRANSPOSED = [
    Problem(batch=1, channels=3, size=(1, 2), kernel=(1, 1)),
    Problem(batch=67, channels=3, size=(5, 7), padding=(1, 1, 1, 1), bias=True),
    Problem(batch=2, channels=2, size=(101, 103), padding=(1, 1, 1, 1)),
    Problem(batch=131, channels=26, size=(3, 3), padding=(1, 1, 1, 1)),
    Problem(batch=3, channels=31, size=(29, 17), padding=(0, 1, 1, 0), bias=True),
    Problem(batch=2, channels=32, size=(61, 59), padding=(1, 1, 1, 1)),
    Problem(batch=5, channels=24, size=(23, 15), stride=(2, 2), padding=(1, 1, 1, 1)),
    Problem(batch=1, channels=1031, size=(3, 5), padding=(1, 1, 1, 1), bias=True),
    Problem(batch=2, channels=257, size=(13, 11), kernel=(5, 3), padding=(2, 2, 1, 1)),
    Problem(batch=1, channels=130, size=(45, 47), padding=(1, 1, 1, 1)),
    Problem(batch=2, channels=13, multiplier=3, size=(19, 23), padding=(1, 1, 1, 1), bias=True),
    Problem(batch=7, channels=8, size=(40, 33), dilation=(2, 3), padding=(2, 2, 3, 3)),
    # tiles of pairs, with as many as they hold, and one and two more: even and odd, of either
    Problem(batch=3, channels=64, size=(8, 8), padding=(1, 1, 1, 1)),
    Problem(batch=2, channels=66, size=(13, 5), padding=(1, 1, 1, 1), bias=True),
    Problem(batch=2, channels=65, size=(11, 6), padding=(1, 1, 1, 1)),
    Problem(batch=3, channels=32, size=(9, 14), padding=(1, 1, 1, 1)),
    Problem(batch=3, channels=33, size=(7, 7), padding=(1, 1, 1, 1), bias=True),
    Problem(batch=2, channels=129, size=(9, 15), padding=(1, 1, 1, 1)),
]
ROWS = [row for row in KERNELS if row["layout"] == "nchw" and row["dtype"] != "float64"]


@pytest.mark.gpu
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_transposed_images_give_what_contiguous_ones_do(
    row: dict[str, str], force_kernel: Any
) -> None:
    """Bit for bit, in the layout of the input, with bias and weight as they are."""
    force_kernel(row["name"])
    device, dtype = torch.device("cuda"), DTYPES[row["dtype"]]
    taken = [problem for problem in TRANSPOSED if takes(row, problem)]
    assert taken
    for problem in taken:
        data = {layout: make_data(problem, dtype, device, layout) for layout in LAYOUTS}
        with poisoned_memory():
            results = {layout: run(row["pass"], problem, data[layout]) for layout in LAYOUTS}
        check_all(row["pass"], problem, data["nhwc"], results["nhwc"])
        for ours, contiguous in zip(results["nhwc"], results["nchw"], strict=True):
            assert torch.equal(ours, contiguous), problem
        layout = "nchw" if row["pass"] == "backward_weight" else "nhwc"
        assert has_strides_of(results["nhwc"][0], layout)


# Rows and columns of an odd and an even number, which the last tiles are not full of.
@pytest.mark.gpu
@pytest.mark.parametrize(("channels", "size"), [(255, (15, 17)), (254, (15, 17)), (255, (2, 126))])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_images_of_more_tiles_than_multiprocessors(
    channels: int, size: tuple[int, int], dtype: str, force_kernel: Any
) -> None:
    """Which are larger then: bit for bit as contiguous ones."""
    force_kernel(f"generic_forward_{dtype}_nchw")
    problem = Problem(batch=100, channels=channels, size=size, padding=(1, 1, 1, 1))
    device = torch.device("cuda")
    nchw, nhwc = (make_data(problem, DTYPES[dtype], device, layout) for layout in LAYOUTS)
    with poisoned_memory():
        (contiguous,) = run("forward", problem, nchw)
        (transposed,) = run("forward", problem, nhwc)
    assert has_strides_of(transposed, "nhwc")
    assert torch.equal(transposed, contiguous)
