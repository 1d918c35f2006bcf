"""Small images of large batches, one for a lane each: what small problems do not reach."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from large_filters import padded_by_half
from problems import DTYPES, Problem, make_data, reference, run_pass, takes

from dwconv import _C

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
PASSES = ["forward", "backward_input", "backward_weight"]

# More units than all blocks hold at a time, the last of a group with fewer images, the last group
# with fewer channels; rows that quads fill and that they do not; as many warps as a block may have;
# dilations of which most rows of the filter meet nothing, and all columns of a tile the zeros
# between taps alone.
PROBLEMS = [
    padded_by_half(67, 1100, (7, 7), (13, 13)),
    padded_by_half(33, 1501, (8, 8), (15, 15)),
    padded_by_half(130, 300, (3, 5), (13, 3)),
    padded_by_half(64, 512, (14, 14), (27, 27)),
    padded_by_half(1, 700, (16, 32), (13, 13)),
    padded_by_half(300, 3, (7, 29), (5, 13)),
    padded_by_half(40, 5, (1, 128), (1, 63)),
    padded_by_half(70, 33, (64, 1), (63, 1)),
    replace(padded_by_half(40, 300, (14, 14), (13, 13)), padding=(0, 0, 0, 0)),
    replace(padded_by_half(40, 300, (6, 6), (12, 12)), padding=(12, 5, 5, 12)),
    replace(padded_by_half(70, 70, (6, 52), (10, 11)), dilation=(3, 3), padding=(13, 13, 15, 15)),
    replace(padded_by_half(70, 70, (9, 20), (2, 2)), dilation=(5, 13), padding=(0, 0, 0, 0)),
    replace(padded_by_half(35, 9, (30, 9), (9, 3)), dilation=(2, 4), padding=(8, 8, 4, 4)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_many_units(
    problem: Problem, pass_: str, force_kernel: Callable[[str | None], None]
) -> None:
    """The error is that of rounding, wherever a unit is; twice the same bits."""
    problem = replace(problem, bias=pass_ != "backward_input")
    data = make_data(problem, DTYPES["float32"], torch.device("cuda"))
    with torch.backends.cudnn.flags(enabled=False):
        exact = reference(pass_, problem, data, device="cuda")
    force_kernel(f"batched_{pass_}_float32_nchw")
    result, again = (run_pass(pass_, problem, data) for _ in range(2))
    bound = 3e-6 if pass_ == "backward_weight" else 1e-6
    assert float((result.double() - exact).norm() / exact.norm()) <= bound
    assert torch.equal(result, again)


@pytest.mark.gpu
def test_another_thread_takes_no_shared_memory_away(
    force_kernel: Callable[[str | None], None],
) -> None:
    """Autograd's, say, which starts the same kernel with less, but more than all kernels have."""
    large = padded_by_half(64, 512, (14, 14), (27, 27))  # 62 KiB
    small = padded_by_half(64, 1024, (7, 7), (13, 13))  # 60 KiB
    tilings = [plan(problem)["tiling"] for problem in (large, small)]
    assert len({(tiling["images"], tiling["columns"]) for tiling in tilings}) == 1
    force_kernel("batched_forward_float32_nchw")
    data = [make_data(problem, torch.float32, torch.device("cuda")) for problem in (large, small)]
    before = run_pass("forward", large, data[0])
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(run_pass, "forward", small, data[1]).result()
    assert torch.equal(run_pass("forward", large, data[0]), before)


def plan(problem: Problem, pass_: str = "forward", **options: Any) -> dict[str, Any]:
    arguments = problem.plan_arguments(pass_, "float32", "nchw")
    return _C.plan(**{**H100, **arguments, **options})


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    ("problem", "family"),
    [
        (padded_by_half(64, 512, (14, 14), (27, 27)), "batched"),
        (padded_by_half(64, 1024, (7, 7), (13, 13)), "batched"),
        (padded_by_half(2, 512, (14, 14), (27, 27)), "direct"),
        (padded_by_half(64, 256, (28, 28), (29, 29)), "direct"),
        (padded_by_half(64, 1024, (7, 7), (3, 3)), "plane"),
    ],
    ids=str,
)
def test_small_images_of_large_batches(problem: Problem, family: str, pass_: str) -> None:
    assert plan(problem, pass_)["kernel"].split("_")[0] == family


def test_strictly_where_the_filter_reaches_all() -> None:
    for kernel, family in ((13, 13), "batched"), ((13, 12), "direct"):
        problem = padded_by_half(64, 1024, (7, 7), kernel)
        assert plan(problem, strict_nonfinite=True)["kernel"].split("_")[0] == family


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("compute_capability", [75, 80, 86, 89, 90, 100, 120])
def test_units_cover_the_problem(problem: Problem, pass_: str, compute_capability: int) -> None:
    kernel = f"batched_{pass_}_float32_nchw"
    row = {"name": kernel, "pass": pass_, "dtype": "float32", "layout": "nchw"}
    if not takes(row, problem, compute_capability=compute_capability):
        assert compute_capability not in (90, 100)  # others have less shared memory
        return
    answer = plan(problem, pass_, kernel=kernel, compute_capability=compute_capability)
    tiling = answer["tiling"]
    assert tiling["images"] in (32, 64)
    groups, blocks = -(-problem.channels // tiling["planes"]), -(-problem.batch // tiling["images"])
    if pass_ == "backward_weight":
        assert answer["threads"] in (128, 256, 512)
        assert answer["slices"] <= blocks
        assert answer["blocks"] == groups * answer["slices"]
        return
    rows, columns = problem.output_size[2:] if pass_ == "forward" else problem.size
    assert (
        answer["threads"]
        == 32 * tiling["planes"] * -(-rows // 4) * -(-columns // tiling["columns"])
        <= 512
    )
    assert answer["blocks"] == groups * blocks


def test_an_image_between_two_rows_of_the_filter() -> None:
    """No row of the filter meets it, and the estimate is a number still."""
    problem = Problem(
        batch=40, channels=3, size=(1, 8), kernel=(2, 3), dilation=(5, 1), padding=(4, 4, 1, 1)
    )
    answer = plan(problem, "backward_weight", kernel="batched_backward_weight_float32_nchw")
    assert 0 < answer["estimate_us"] < 100


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"stride": (2, 1)}, "it takes stride 1"),
        ({"multiplier": 2}, "it takes one filter per channel"),
        ({"size": (65, 8)}, "it takes images that 16 warps have, 4 x 8 results each"),
        ({"size": (1030, 1)}, "are too large for it"),
        ({"size": (1, 128), "kernel": (1000, 1), "padding": (500, 500, 0, 0)}, "do not fit the"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusals_are_sentences(change: dict[str, Any], sentence: str) -> None:
    problem = replace(padded_by_half(2, 3, (14, 14), (13, 13)), **change)
    with pytest.raises(ValueError, match="cannot take the problem") as caught:
        plan(problem, kernel="batched_forward_float32_nchw")
    assert sentence in str(caught.value)
