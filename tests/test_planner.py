"""The planner, on any machine: its table, its choices for stated devices, its refusals."""

from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import (
    DTYPES,
    KERNELS,
    LAYOUTS,
    PASSES,
    TINY_IMAGES,
    Problem,
    everyday_problems,
    lies_the_same,
    problems,
    takes,
)
from small_images import problems_for
from wide_pixels import FILTERS

from dwconv import _C, _ops

H100: dict[str, Any] = {"compute_capability": 90, "multiprocessors": 132}
SMALL_GPU: dict[str, Any] = {"compute_capability": 80, "multiprocessors": 4}


def plan(
    problem: Problem,
    pass_: str = "forward",
    dtype: str = "float32",
    layout: str = "nchw",
    **options: Any,
) -> dict[str, Any]:
    arguments = problem.plan_arguments(pass_, dtype, layout)
    return _C.plan(**{**H100, **arguments, **options})


def launch_of(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    return tuple(answer[key] for key in ("blocks", "threads", "slices", "workspace_bytes"))


def test_table_is_well_formed() -> None:
    """Names are unique and say what the row is for; each class of problems has the fallback."""
    names = [row["name"] for row in KERNELS]
    assert len(set(names)) == len(names)
    for row in KERNELS:
        family = row["name"].removesuffix(f"_{row['pass']}_{row['dtype']}_{row['layout']}")
        assert family.isidentifier()
        assert family != row["name"]
        assert row["dtype"] in DTYPES
        assert row["layout"] in LAYOUTS
    fallbacks = Counter(
        (row["pass"], row["dtype"], row["layout"])
        for row in KERNELS
        if row["name"].startswith("generic_")
    )
    assert set(fallbacks.values()) == {1}
    assert len(fallbacks) == len(PASSES) * len(DTYPES) * len(LAYOUTS)


@given(problem=problems(), row=st.sampled_from(KERNELS), multiprocessors=st.integers(1, 200))
def test_every_problem_gets_a_plan(
    problem: Problem, row: dict[str, str], multiprocessors: int
) -> None:
    """Of its own class, with a launch that CUDA takes and a workspace that is bounded."""
    answer = plan(
        problem, row["pass"], row["dtype"], row["layout"], multiprocessors=multiprocessors
    )
    chosen = next(kernel for kernel in KERNELS if kernel["name"] == answer["kernel"])
    assert (chosen["pass"], chosen["dtype"]) == (row["pass"], row["dtype"])
    assert chosen["layout"] == row["layout"] or lies_the_same(problem) or answer["transposed"]
    assert 1 <= answer["blocks"] < 2**31
    assert 32 <= answer["threads"] <= 1024
    assert answer["threads"] % 32 == 0
    assert answer["estimate_us"] > 0
    partial_bytes = problem.filters * problem.kernel[0] * problem.kernel[1]
    partial_bytes *= 8 if row["dtype"] == "float64" else 4
    assert answer["workspace_bytes"] <= max(64 << 20, partial_bytes)


@given(problem=problems())
def test_output_size_is_the_same_in_python_and_cpp(problem: Problem) -> None:
    """The fake kernels' formula is that of csrc/problem.h, and that of PyTorch."""
    size = _ops.output_size(problem.size, problem.kernel, *problem.geometry)
    assert size == plan(problem)["output_size"]
    assert list(size) == problem.output_size[2:]


# Blocks, threads, slices and workspace of the generic kernels, worked out by hand from
# families/generic.
GOLDEN: dict[str, tuple[Problem, dict[str, Any], tuple[int, int, int, int]]] = {
    # One thread for each of the 2 * 3 * 5 * 3 = 90 outputs, in blocks of 256.
    "forward": (Problem(size=(7, 5)), {}, (1, 256, 1, 0)),
    # 64 * 128 * 254 * 510 / 256 = 4 145 280.
    "forward of the seed problem": (
        Problem(batch=64, channels=128, size=(256, 512)),
        {},
        (4_145_280, 256, 1, 0),
    ),
    # One thread for each input: 64 * 128 * 256 * 512 / 256 = 4 194 304.
    "backward_input of the seed problem": (
        Problem(batch=64, channels=128, size=(256, 512)),
        {"pass_": "backward_input"},
        (4_194_304, 256, 1, 0),
    ),
    # 9 taps, 9 warps. 4 filters, 4 groups; 4 multiprocessors want 64 blocks, 16 slices, but the 2
    # images have 3 output rows each: 6 slices of 4 * 9 sums in 4 bytes.
    "backward_weight of few rows": (
        Problem(channels=4, size=(5, 5)),
        {"pass_": "backward_weight", **SMALL_GPU},
        (24, 288, 6, 864),
    ),
    # 49 taps take 4 rounds of up to 16 warps: 13 warps. 1 group: the 64 blocks are 64 of 67 rows.
    "backward_weight of many taps": (
        Problem(batch=1, channels=1, size=(73, 9), kernel=(7, 7)),
        {"pass_": "backward_weight", **SMALL_GPU},
        (64, 416, 64, 64 * 49 * 4),
    ),
    # In channels_last 32 filters share a warp: 40 filters are 2 groups, so 32 slices; float64 sums.
    "backward_weight in channels_last": (
        Problem(batch=1, channels=20, multiplier=2, size=(52, 7)),
        {"pass_": "backward_weight", "dtype": "float64", "layout": "nhwc", **SMALL_GPU},
        (64, 288, 32, 32 * 40 * 9 * 8),
    ),
    # 8192 filters of 31 x 31: one slice's sums are 31.5 MB, and 2 of them fit 64 MiB.
    "backward_weight within its workspace": (
        Problem(batch=8, channels=8192, size=(64, 64), kernel=(31, 31)),
        {"pass_": "backward_weight"},
        (2 * 8192, 16 * 32, 2, 2 * 8192 * 961 * 4),
    ),
}


@pytest.mark.parametrize(("problem", "options", "launch"), GOLDEN.values(), ids=GOLDEN)
def test_golden_plans(
    problem: Problem, options: dict[str, Any], launch: tuple[int, int, int, int]
) -> None:
    """Launches change on purpose only."""
    row = {"pass_": "forward", "dtype": "float32", "layout": "nchw", **options}
    generic = f"generic_{row['pass_']}_{row['dtype']}_{row['layout']}"
    assert launch_of(plan(problem, **options, kernel=generic)) == launch


EVERYDAY = Problem(batch=8, channels=64, size=(56, 56), kernel=(7, 7), padding=(3, 3, 3, 3))

MANY = replace(EVERYDAY, batch=64)
LARGE = replace(MANY, kernel=(31, 31), padding=(15,) * 4)
CHOICES: dict[str, tuple[Problem, dict[str, Any], str]] = {
    "float32": (EVERYDAY, {}, "tile"),
    "float16": (EVERYDAY, {"dtype": "float16"}, "toeplitz"),
    "bfloat16": (EVERYDAY, {"dtype": "bfloat16"}, "toeplitz"),
    "tensor cores too old": (EVERYDAY, {"dtype": "float16", "compute_capability": 75}, "tile"),
    "strict": (EVERYDAY, {"dtype": "float16", "strict_nonfinite": True}, "tile"),
    "stride 2": (replace(EVERYDAY, batch=64, stride=(2, 2)), {"dtype": "float16"}, "toeplitz"),
    "stride 3": (replace(EVERYDAY, stride=(3, 3)), {}, "generic"),
    "float64": (EVERYDAY, {"dtype": "float64"}, "generic"),
    "channels_last": (MANY, {"layout": "nhwc"}, "ring"),
    "channels_last in 16 bits": (MANY, {"layout": "nhwc", "dtype": "float16"}, "diagonal"),
    "channels_last in 16 bits, strict": (
        MANY,
        {"layout": "nhwc", "dtype": "float16", "strict_nonfinite": True},
        "ring",
    ),
    "channels_last, odd": (replace(EVERYDAY, channels=65), {"layout": "nhwc"}, "strip"),
    "channels_last, older": (EVERYDAY, {"layout": "nhwc", "compute_capability": 80}, "strip"),
    "channels_last, float64": (EVERYDAY, {"layout": "nhwc", "dtype": "float64"}, "generic"),
    "multiplier": (replace(EVERYDAY, multiplier=2), {}, "generic"),
    "small images": (replace(EVERYDAY, batch=128, channels=768, size=(7, 7)), {}, "plane"),
    "large kernel": (LARGE, {}, "direct"),
    "large kernel in 16 bits": (LARGE, {"dtype": "bfloat16"}, "banded"),
    "large kernel, strict": (LARGE, {"dtype": "float16", "strict_nonfinite": True}, "direct"),
    "large kernel, channels_last": (LARGE, {"dtype": "float16", "layout": "nhwc"}, "banded"),
}


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(("problem", "options", "family"), CHOICES.values(), ids=CHOICES)
def test_golden_choices(problem: Problem, options: dict[str, Any], family: str, pass_: str) -> None:
    """Which family computes what; runners-up are slower, and each refusal is a sentence."""
    if pass_ == "backward_weight":
        family = "hankel" if family == "banded" else family
        if options.get("strict_nonfinite"):
            family = "generic"  # the tile family's zeros meet the input
    answer = plan(problem, pass_, **options)
    assert answer["kernel"].split("_")[0] == family
    estimates = [answer["estimate_us"], *(other["estimate_us"] for other in answer["runners_up"])]
    assert estimates == sorted(estimates)
    for reason in answer["refusals"].values():
        assert " " in reason


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("problem", TINY_IMAGES, ids=lambda problem: problem.id)
def test_units_hold_several_tiny_images(problem: Problem, dtype: str, pass_: str) -> None:
    """All channels of each, and the last unit holds fewer."""
    problem = replace(problem, batch=2039)  # so many that a block has more than a unit of one image
    tiling = plan(problem, pass_, dtype, kernel=f"tile_{pass_}_{dtype}_nchw")["tiling"]
    assert tiling["images"] > 1
    assert tiling["planes"] == problem.channels
    assert problem.batch % tiling["images"] != 0


@given(problem=everyday_problems(), pass_=st.sampled_from(PASSES))
def test_units_of_several_images_are_whole(problem: Problem, pass_: str) -> None:
    """Their planes follow each other in memory: all channels, all rows."""
    tiling = plan(problem, pass_, kernel=f"tile_{pass_}_float32_nchw")["tiling"]
    if tiling["images"] > 1:
        assert tiling["images"] <= problem.batch
        assert tiling["planes"] == problem.channels
        assert tiling["rows"] >= problem.output_size[2] or pass_ == "backward_input"


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_no_images_need_no_blocks(dtype: str, pass_: str) -> None:
    """Nor a workspace; the operators do not ask."""
    answer = plan(Problem(batch=0, padding=(1, 1, 1, 1)), pass_, dtype)
    assert launch_of(answer)[0] == 0
    assert answer["workspace_bytes"] == 0


@pytest.mark.parametrize("family", ["ring", "strip"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sums_of_channels_last_stay_short(dtype: str, family: str) -> None:
    """Whatever the problem, a thread adds up few enough products to keep the promised error."""
    problem = Problem(batch=4096, channels=2048, size=(28, 28), padding=(1, 1, 1, 1))
    kernel = f"{family}_backward_weight_{dtype}_nhwc"
    answer = plan(problem, "backward_weight", dtype, "nhwc", kernel=kernel)
    groups = -(-problem.channels // answer["tiling"]["planes"])
    threads = answer["threads"] * answer["blocks"] / groups  # that share a group's channels
    channels = 1 if (family, dtype) == ("ring", "float32") else 2  # of a thread
    products = 4096 * 28 * 28 * answer["tiling"]["planes"] / threads / channels
    assert products <= 12288


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensor_cores_add_up_short_sums(dtype: str) -> None:
    """They cut what they add to a sum: of a gradient, a warp has few enough elements."""
    problem = Problem(batch=2048, channels=96, size=(56, 56), kernel=(7, 7), padding=(3, 3, 3, 3))
    kernel = f"diagonal_backward_weight_{dtype}_nhwc"
    answer = plan(problem, "backward_weight", dtype, "nhwc", kernel=kernel)
    warps = answer["threads"] / 32 * answer["blocks"] / (problem.channels / 8)  # of 8 channels
    assert problem.batch * 56 * 56 / warps <= 4096


RELEASE_ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)


# Those whose blocks go through units of work; of others each block has one share of the results.
TUNED = [row for row in KERNELS if not row["name"].startswith(("generic_", "pointwise_"))]


@given(
    drawn=st.sampled_from(TUNED).flatmap(lambda row: st.tuples(st.just(row), problems_for(row))),
    compute_capability=st.sampled_from(RELEASE_ARCHITECTURES),
)
def test_everyday_problems_are_planned_for_every_architecture(
    drawn: tuple[dict[str, str], Problem], compute_capability: int
) -> None:
    """The tuned families take them wherever they can run, with a launch that the device takes."""
    row, problem = drawn
    if not takes(row, problem, compute_capability=compute_capability):
        if row["name"].startswith(("ring_", "diagonal_")):
            both = problem.stride != (1, 1) and problem.dilation != (1, 1)
            assert compute_capability < 90 or (row["pass"] == "backward_input" and both)
            return
        columns = 7 * problem.stride[1] + problem.dilation[1] * (problem.kernel[1] - 1) + 1
        beyond = {
            **dict.fromkeys(("banded", "hankel"), False),
            "columns": max(problem.size[0], problem.output_size[2]) > 64,
            "batched": True,  # each of its blocks has one unit, which may be too large
            "dense": prod(problem.output_size[2:]) > 208,
            "outer": problem.kernel[0] > 32,
            "toeplitz": columns > 32 or (row["layout"] == "nhwc" and problem.kernel[0] < 6),
        }[row["name"].split("_")[0]]
        assert compute_capability < 80 or beyond
        return
    options = {"kernel": row["name"], "compute_capability": compute_capability}
    answer = plan(problem, row["pass"], row["dtype"], row["layout"], **options)
    assert 1 <= answer["blocks"] <= 132 * 32
    large = ("diagonal_", "banded_", "outer_", "dense_", "batched_")  # all registers for a block
    assert answer["threads"] in range(32, (768 if row["name"].startswith(large) else 256) + 1, 32)


def test_large_problems_fit_the_launch() -> None:
    """Numbers past 2**31 and 2**32 are counted in 64 bits."""
    problem = Problem(batch=1, channels=2, size=(70_000, 70_000), padding=(1, 1, 1, 1))
    generic = plan(problem, kernel="generic_forward_float32_nchw")
    assert generic["blocks"] == -(-2 * 70_000 * 70_000 // 256)
    assert plan(problem)["output_size"] == (70_000, 70_000)
    assert 1 <= plan(problem, "backward_weight")["slices"] <= 70_000


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_of_a_large_image_do_not_wrap_around(pass_: str, dtype: str) -> None:
    """A plane of 2**31 bytes does not fit shared memory, and three of its rows do not."""
    row = {"pass": pass_, "dtype": dtype, "layout": "nchw", "name": f"tile_{pass_}_{dtype}_nchw"}
    size = (32768, 16384 if dtype == "float32" else 32768)
    assert not takes(row, Problem(batch=1, channels=1, size=size, padding=(1, 1, 1, 1)))
    single = Problem(batch=1, channels=1, size=size, kernel=(1, 1))
    if takes(row, single):
        assert plan(single, pass_, dtype, kernel=row["name"])["tiling"]["rows"] == 1


@pytest.mark.parametrize("family", ["tile", "toeplitz"])
@pytest.mark.parametrize("padding", [(3, 0, 0, 0), (0, 3, 0, 0), (0, 0, 3, 0), (0, 0, 0, 3)])
def test_results_in_the_padding_are_left_to_others(
    family: str, padding: tuple[int, int, int, int]
) -> None:
    """Bands and strips of them would have nothing to load."""
    problem = Problem(size=(9, 8), padding=padding)
    row = {"pass": "forward", "dtype": "float16", "layout": "nchw"}
    assert not takes({**row, "name": f"{family}_forward_float16_nchw"}, problem)
    assert takes({**row, "name": "generic_forward_float16_nchw"}, problem)


@pytest.mark.parametrize("row", KERNELS, ids=lambda row: row["name"])
def test_forced_kernel_is_taken(row: dict[str, str]) -> None:
    """For its own class of problems."""
    problem = Problem(channels=8, kernel=(7, 7), padding=(3, 3, 3, 3))
    if row["name"].startswith("pointwise_"):
        problem = Problem(kernel=(1, 1))
    answer = plan(problem, row["pass"], row["dtype"], row["layout"], kernel=row["name"])
    assert answer["kernel"] == row["name"]
    assert answer["runners_up"] == []
    assert answer["refusals"] == {}


@pytest.mark.parametrize("family", ["ring", "diagonal"])
@pytest.mark.parametrize("pass_", PASSES)
def test_families_of_some_filters_refuse_others(pass_: str, family: str) -> None:
    """Those that they are not compiled for, square ones as well: they would compute nothing."""
    compiled = FILTERS if family == "ring" else [(3, 3), (5, 5), (7, 7)]
    sizes = [(h, w) for h in range(1, 13) for w in range(1, 13)]
    row = {"pass": pass_, "dtype": "float16", "layout": "nhwc"}
    row["name"] = f"{family}_{pass_}_float16_nhwc"
    taken = [k for k in sizes if takes(row, Problem(channels=8, size=(20, 20), kernel=k))]
    assert sorted(taken) == sorted(compiled)


@pytest.mark.parametrize("row", KERNELS, ids=lambda row: row["name"])
def test_forced_kernel_refuses_other_problems(row: dict[str, str]) -> None:
    """With a sentence that names the kernel and the problem. Images of another layout are
    transposed for a contiguous kernel, but not in float64."""
    other_layout = "nhwc" if row["layout"] == "nchw" else "nchw"
    dtype = row["dtype"] if row["layout"] == "nhwc" else "float64"
    with pytest.raises(ValueError, match="another pass, dtype or layout") as caught:
        plan(Problem(), row["pass"], dtype, other_layout, kernel=row["name"])
    assert row["name"] in str(caught.value)
    assert f"{row['pass']} {dtype} {other_layout} N2 C3 M1 H7" in str(caught.value)


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "batch": ({"input_size": [-1, 3, 7, 5]}, "batch must not be negative"),
    "channels": ({"input_size": [2, 0, 7, 5]}, "out_channels must be a positive multiple"),
    "out_channels": ({"out_channels": 4}, "out_channels must be a positive multiple"),
    "no out_channels": ({"out_channels": 0}, "out_channels must be a positive multiple"),
    "rows": ({"input_size": [2, 3, 0, 5]}, "input size along H must be positive, got 0"),
    "columns": ({"input_size": [2, 3, 7, -5]}, "input size along W must be positive, got -5"),
    "kernel": ({"kernel_size": [3, 0]}, "kernel size along W must be positive, got 0"),
    "stride": ({"stride": [0, 1]}, "stride along H must be positive, got 0"),
    "dilation": ({"dilation": [1, -2]}, "dilation along W must be positive, got -2"),
    "padding": ({"padding": [0, -1, 0, 0]}, "padding along H must not be negative, got 0 and -1"),
    "extent": (
        {"dilation": [1, 3]},
        "the kernel spans 7 elements along W, more than the padded input of 5",
    ),
    "huge": ({"stride": [2**31, 1]}, "stride and dilation along H must be below 2^31"),
    "taps": (
        {"input_size": [1, 3, 2**16, 2**16], "kernel_size": [2**16, 2**15]},
        "the filter has 2147483648 taps, and must have fewer than 2^31",
    ),
    "pass": ({"pass_": "sideways"}, "pass has no value 'sideways'"),
    "dtype": ({"dtype": "int8"}, "dtype has no value 'int8'"),
    "layout": ({"layout": "chwn"}, "layout has no value 'chwn'"),
    "kernel name": ({"kernel": "fastest"}, "there is no kernel 'fastest'"),
}


@pytest.mark.parametrize(("change", "sentence"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_problem_raises(change: dict[str, Any], sentence: str) -> None:
    """A sentence that names the number, and the next problem is planned."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (its text is compared below)
        plan(Problem(), **change)
    assert sentence in str(caught.value)
    assert plan(Problem())["blocks"] == 1


def test_forcing_an_unknown_kernel_raises() -> None:
    """And leaves the policy as it was."""
    with pytest.raises(ValueError, match="there is no kernel 'fastest'"):
        _C.force_kernel("fastest")
