"""Each row of the kernel table, forced, against float64; on the CPU, the same through ATen."""

import zlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from large_filters import LARGE_FILTERS
from problems import (
    DTYPES,
    KERNELS,
    LAYOUTS,
    PASSES,
    TINY_IMAGES,
    Data,
    Problem,
    check_all,
    check_close,
    first_tensor,
    has_strides_of,
    make_data,
    poisoned_memory,
    random_tensor,
    reference,
    run,
    run_pass,
    takes,
)
from small_images import NARROW_IMAGES, SINGLE_TAPS, SMALL_IMAGES, problems_for
from torch import Tensor
from wide_pixels import PLANES, WIDE_PIXELS

Row = dict[str, str]
ForceKernel = Callable[[str | None], None]

every_row = pytest.mark.parametrize("row", KERNELS, ids=lambda row: row["name"])

# On the CPU ATen computes the same whichever kernel is forced: there one row of each pass, dtype
# and layout is enough.
every_row_where_it_matters = pytest.mark.parametrize(
    ("row", "device"),
    [
        pytest.param(row, device, id=f"{device}-{row['name']}", marks=marks)
        for device, marks in (("cpu", ()), ("cuda", pytest.mark.gpu))
        for row in KERNELS
        if device == "cuda" or row["name"].startswith("generic_")
    ],
    indirect=["device"],
)

every_pass = pytest.mark.parametrize("pass_", PASSES)

# Random problems for each row of the table.
EXAMPLES = {"cuda": 100, "cpu": 30}

HARD_PROBLEMS = [
    Problem(),
    Problem(bias=True),
    # channels and multipliers
    Problem(channels=1, bias=True),
    Problem(channels=37, multiplier=1),
    Problem(channels=1, multiplier=3),
    Problem(channels=3, multiplier=2, bias=True),
    Problem(channels=37, multiplier=3, size=(5, 4)),
    # batches
    Problem(batch=1, channels=1),
    Problem(batch=5, size=(11, 13), bias=True),
    # kernels
    Problem(kernel=(1, 1)),
    Problem(kernel=(2, 2)),
    Problem(kernel=(1, 7), size=(5, 17)),
    Problem(kernel=(7, 1), size=(17, 5), bias=True),
    Problem(kernel=(5, 4), size=(9, 11)),
    Problem(kernel=(13, 13), size=(19, 23), padding=(6, 6, 6, 6)),
    Problem(kernel=(1, 21), size=(3, 43), padding=(0, 0, 10, 10)),
    Problem(kernel=(9, 8), size=(5, 5), padding=(1, 3, 2, 1)),  # as large as the padded input
    Problem(kernel=(7, 5), size=(7, 5), channels=1, multiplier=2, bias=True),  # as the input
    # strides
    Problem(stride=(2, 2), size=(13, 11)),
    Problem(stride=(3, 3), size=(17, 19), multiplier=2),
    Problem(stride=(2, 1), size=(13, 11), padding=(1, 1, 1, 1)),
    Problem(stride=(5, 4), kernel=(2, 3), size=(23, 19)),  # past the kernel
    Problem(stride=(7, 7), kernel=(1, 1), size=(23, 19), bias=True),
    Problem(stride=(50, 50), size=(13, 11)),  # past the input
    # dilations
    Problem(dilation=(2, 2), size=(13, 11)),
    Problem(dilation=(3, 3), size=(17, 19), padding=(3, 3, 3, 3), bias=True),
    Problem(dilation=(1, 4), size=(11, 17)),
    # stride and dilation with and without a common factor
    Problem(stride=(2, 2), dilation=(2, 2), size=(13, 11), padding=(1, 1, 1, 1)),
    Problem(stride=(4, 4), dilation=(6, 6), size=(29, 31), padding=(5, 5, 5, 5)),
    Problem(stride=(6, 6), dilation=(4, 4), size=(29, 31), kernel=(5, 5), padding=(3, 4, 3, 4)),
    Problem(stride=(3, 2), dilation=(2, 3), size=(19, 23), kernel=(4, 5), multiplier=2),
    # padding
    Problem(padding=(5, 5, 7, 7)),  # past the kernel: results that meet no input
    Problem(padding=(0, 1, 0, 1), kernel=(2, 2), bias=True),
    Problem(padding=(3, 0, 0, 2), stride=(2, 2), dilation=(1, 2)),
    Problem(padding=(1, 1, 1, 1), size=(1, 1), channels=5),
    # where the tuned families begin a new tile, strip, band, group or run; odd and prime sizes
    Problem(channels=11, size=(7, 7), padding=(1, 1, 1, 1), batch=17, bias=True),
    Problem(channels=9, size=(14, 14), kernel=(7, 7), padding=(3, 3, 3, 3), batch=5),
    Problem(channels=5, size=(28, 28), kernel=(5, 5), padding=(2, 2, 2, 2), bias=True),
    Problem(channels=3, size=(56, 56), kernel=(7, 7), padding=(3, 3, 3, 3)),
    Problem(batch=1, channels=3, size=(61, 127), padding=(1, 1, 1, 1), bias=True),
    Problem(channels=2, size=(61, 67), kernel=(11, 11), padding=(5, 5, 5, 5)),
    Problem(channels=4, size=(23, 29), kernel=(1, 11), padding=(0, 0, 5, 5)),
    Problem(channels=4, size=(29, 23), kernel=(11, 1), padding=(5, 5, 0, 0)),
    Problem(channels=4, size=(31, 37), kernel=(3, 7), padding=(1, 1, 3, 3), bias=True),
    Problem(channels=4, size=(37, 31), kernel=(9, 9), padding=(8, 0, 0, 8)),
    Problem(channels=7, size=(33, 33), dilation=(6, 6), padding=(6, 6, 6, 6)),
    Problem(channels=2, size=(28, 29), kernel=(7, 7), dilation=(3, 3), padding=(9, 9, 9, 9)),
    Problem(channels=7, size=(57, 57), stride=(2, 2), padding=(1, 1, 1, 1), bias=True),
    Problem(channels=7, size=(28, 31), kernel=(5, 5), stride=(2, 2), padding=(2, 2, 2, 2)),
    Problem(channels=3, size=(40, 41), kernel=(6, 4), stride=(2, 2), padding=(5, 3, 0, 2)),
    # rows of 4 n elements whose results are not, and the other way round
    Problem(channels=4, size=(9, 8), kernel=(5, 5), padding=(2, 2, 2, 4)),
    Problem(channels=4, size=(9, 6), kernel=(5, 5), padding=(2, 2, 2, 4)),
    Problem(channels=4, size=(9, 16), kernel=(7, 7), padding=(3, 3, 3, 1)),
    Problem(channels=150, size=(5, 3), padding=(1, 1, 1, 1), batch=1),
    Problem(batch=1, channels=2, size=(9, 400), padding=(0, 40, 0, 40)),  # past the lower edge
    Problem(batch=1, size=(31, 300), kernel=(2, 2), stride=(2, 2), padding=(1, 0, 0, 1)),
    Problem(channels=2, size=(5, 30), dilation=(40, 1), padding=(40, 40, 1, 1)),
    Problem(channels=1, batch=1, size=(3, 1021), padding=(1, 1, 1, 1)),
    # outputs of 1 x 1, and more than one block of rows, columns, filters
    Problem(kernel=(7, 5), channels=5, batch=3),
    Problem(channels=67, size=(41, 35), padding=(1, 1, 1, 1), bias=True),
    Problem(batch=3, size=(67, 131), kernel=(5, 5), padding=(2, 2, 2, 2)),
    *TINY_IMAGES,
    *SMALL_IMAGES,
    *NARROW_IMAGES,
    *SINGLE_TAPS,
    *WIDE_PIXELS,
    *PLANES,
    *LARGE_FILTERS,
]


def is_ambiguous(row: Row, data: Data) -> bool:
    """Whether the data cannot be in the row's layout: N x 1 x 1 x 1 counts as contiguous."""
    return row["layout"] == "nhwc" and first_tensor(row["pass"], data).shape[1:].numel() == 1


@every_row_where_it_matters
@pytest.mark.parametrize("problem", HARD_PROBLEMS, ids=lambda problem: problem.id)
def test_kernel_is_exact_on_hard_problems(
    row: Row, problem: Problem, device: torch.device, force_kernel: ForceKernel
) -> None:
    """Each kernel's error is that of rounding; it writes all of its result and nothing else.
    Where it cannot take the problem, the operator says so."""
    data = make_data(problem, DTYPES[row["dtype"]], device, row["layout"])
    before = data.map(torch.clone)
    ambiguous = is_ambiguous(row, data)
    force_kernel(None if ambiguous else row["name"])
    if device.type == "cuda" and not ambiguous and not takes(row, problem):
        with pytest.raises(ValueError, match="cannot take the problem"):
            run(row["pass"], problem, data)
        return
    with poisoned_memory():
        results = run(row["pass"], problem, data)
    check_all(row["pass"], problem, data, results)
    for tensor, original in zip(data.present(), before.present(), strict=True):
        assert torch.equal(tensor, original)


@every_row
def test_hard_problems_reach_every_kernel(row: Row) -> None:
    """Each takes a good part of them, so that the test above is one of it."""
    taken = sum(takes(row, problem) for problem in HARD_PROBLEMS)
    assert taken >= 20


@every_row
def test_kernel_is_exact_on_random_problems(
    row: Row, device: torch.device, force_kernel: ForceKernel
) -> None:
    """The same on problems that hypothesis draws."""
    examples = EXAMPLES[device.type]
    tried = []

    @seed(zlib.crc32(row["name"].encode()))  # other problems for each row
    @settings(max_examples=examples)
    @given(problem=problems_for(row), data_seed=st.integers(0, 2**32 - 1))
    def check(problem: Problem, data_seed: int) -> None:
        if not takes(row, problem):
            return
        tried.append(problem)
        data = make_data(problem, DTYPES[row["dtype"]], device, row["layout"], data_seed)
        force_kernel(None if is_ambiguous(row, data) else row["name"])
        with poisoned_memory():
            results = run(row["pass"], problem, data)
        check_all(row["pass"], problem, data, results)

    check()
    assert len(tried) >= examples // 5  # of the others, the kernel may refuse some


def test_filters_far_larger_than_images_on_a_cpu() -> None:
    """ATen's own convolution aborts the process after some of these."""
    problem = Problem(
        batch=40, channels=1, size=(14, 1), kernel=(60, 11), padding=(30, 30, 5, 5), bias=True
    )
    for data_seed in range(50):
        data = make_data(problem, torch.float32, torch.device("cpu"), seed=data_seed)
        check_all("backward_weight", problem, data, run("backward_weight", problem, data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("images", [1, 44, 83, 300])
def test_long_sums_on_a_cpu(images: int, dtype: torch.dtype) -> None:
    """ATen's own, of 89,100 products, may be off by three times what is allowed."""
    problem = Problem(batch=images, channels=2, size=(11, 27), kernel=(1, 1), bias=True)
    for data_seed in range(8):
        data = make_data(problem, dtype, torch.device("cpu"), seed=data_seed)
        check_all("backward_weight", problem, data, run("backward_weight", problem, data))


def test_random_problems_are_two_thousand_on_a_gpu() -> None:
    """The table has enough rows for it."""
    assert len(KERNELS) * EXAMPLES["cuda"] >= 2000


# Ways in which a tensor may lie in memory: each makes one of the given size.
def _sliced(size: list[int], layout: str, make: Callable[[list[int], str], Tensor]) -> Tensor:
    n, c, h, w = size
    return make([n + 1, c + 2, h + 3, w + 2], layout)[1:, 1:-1, 2:-1, :-2]


VIEWS: dict[str, tuple[str, Callable[[list[int], Callable[[list[int], str], Tensor]], Tensor]]] = {
    # name: (the layout that results must have, how to make it)
    "contiguous": ("nchw", lambda size, make: make(size, "nchw")),
    "channels_last": ("nhwc", lambda size, make: make(size, "nhwc")),
    "sliced": ("nchw", lambda size, make: _sliced(size, "nchw", make)),
    "channels_last sliced": ("nhwc", lambda size, make: _sliced(size, "nhwc", make)),
    "stepped": (
        "nchw",
        lambda size, make: make([*size[:2], 2 * size[2], 3 * size[3]], "nchw")[:, :, ::2, ::3],
    ),
    "transposed": (
        "nchw",
        lambda size, make: make([*size[:2], size[3], size[2]], "nchw").transpose(2, 3),
    ),
    "batch innermost": (
        "nchw",
        lambda size, make: make([*size[1:], size[0]], "nchw").permute(3, 0, 1, 2),
    ),
    "expanded batch": ("nchw", lambda size, make: make([1, *size[1:]], "nchw").expand(size)),
    "expanded channels": (
        "nchw",
        lambda size, make: make([size[0], 1, *size[2:]], "nchw").expand(size),
    ),
    "all strides zero": ("nchw", lambda size, make: make([1, 1, 1, 1], "nchw").expand(size)),
    "with an offset": (
        "nchw",
        lambda size, make: (
            make([1, 1, 1, torch.Size(size).numel() + 3], "nchw").flatten()[3:].view(size)
        ),
    ),
}


@every_pass
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(pass_: str, view: str, dtype: torch.dtype, device: torch.device) -> None:
    """Right results whatever the strides of the tensors, in the memory format of the first one."""
    problem = Problem(batch=3, channels=4, multiplier=2, size=(9, 8), padding=(1, 1, 1, 1))
    layout, lay_out = VIEWS[view]

    def make(size: list[int], layout: str) -> Tensor:
        return random_tensor(size, dtype, device, layout)

    plain = make_data(problem, dtype, device)
    data = Data(
        input=lay_out(problem.input_size, make),
        weight=lay_out(problem.weight_size, make),
        bias=make([2 * problem.filters], "nchw")[::2],
        grad_output=lay_out(problem.output_size, make),
    )
    # All tensors in these strides; then each of them beside plain ones.
    for mixed in (
        data,
        plain._replace(weight=data.weight, bias=data.bias),
        plain._replace(input=data.input),
        plain._replace(grad_output=data.grad_output),
    ):
        first = first_tensor(pass_, mixed)
        expected = layout if first is first_tensor(pass_, data) else "nchw"
        if pass_ == "backward_weight":
            expected = "nchw"
        result = run_pass(pass_, problem, mixed)
        check_close(pass_, problem, mixed, result)
        assert has_strides_of(result, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(5, 5), (1, 6), (5, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 4])
def test_memory_format_is_that_of_the_input(
    channels: int, size: tuple[int, int], layout: str, device: torch.device
) -> None:
    """Where an axis has one element, strides alone hardly tell the formats apart."""
    problem = Problem(channels=channels, size=size, kernel=(1, 1))
    data = make_data(problem, torch.float32, device, layout)
    if channels == 1 and size == (1, 1):
        layout = "nchw"  # the formats are one
    for pass_ in ("forward", "backward_input"):
        result = run_pass(pass_, problem, data)
        check_close(pass_, problem, data, result)
        assert has_strides_of(result, layout)


@every_pass
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_empty_batch(pass_: str, layout: str, dtype: torch.dtype, device: torch.device) -> None:
    """No images: empty results, and weight gradients of zero."""
    problem = Problem(batch=0, multiplier=2, bias=True)
    data = make_data(problem, dtype, device, layout)
    with poisoned_memory():
        result = run_pass(pass_, problem, data)
    assert list(result.shape) == list(reference(pass_, problem, data).shape)
    assert result.dtype == dtype
    assert torch.equal(result, torch.zeros_like(result))


@every_row
def test_two_runs_agree_to_the_bit(
    row: Row, device: torch.device, force_kernel: ForceKernel
) -> None:
    """No sum depends on which thread comes first, weight gradients over many slices included."""
    large = Problem(batch=7, channels=10, size=(61, 67), kernel=(5, 3), bias=True)
    small = Problem(batch=209, size=(14, 13), kernel=(5, 5), padding=(2, 2, 2, 2), bias=True)
    single = Problem(batch=7, channels=10, size=(61, 67), kernel=(1, 1), bias=True)
    wide = Problem(batch=7, channels=16, size=(61, 67), kernel=(5, 5), bias=True)
    tall = Problem(batch=7, channels=10, size=(61, 67), kernel=(8, 5), bias=True)
    candidates = (large, small, single, wide, tall)
    problem = next(problem for problem in candidates if takes(row, problem))
    data = make_data(problem, DTYPES[row["dtype"]], device, row["layout"])
    force_kernel(row["name"])
    first, second = (run(row["pass"], problem, data) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@every_pass
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_non_finite_numbers_spread_as_in_conv2d(
    pass_: str, layout: str, value: float, dtype: torch.dtype, device: torch.device
) -> None:
    """An Inf or NaN reaches the results that PyTorch's convolution takes it to, and no other."""
    problem = Problem(
        batch=2, channels=3, multiplier=2, size=(12, 11), stride=(2, 1), padding=(1, 1, 1, 1)
    )
    data = make_data(problem, dtype, device, layout)
    changed = data.grad_output if pass_ == "backward_input" else data.input
    changed[0, 1, 3, 4] = value
    changed[1, 2, 0, 0] = value
    expected = reference(pass_, problem, data)
    result = run_pass(pass_, problem, data).cpu()
    assert not expected.isfinite().all()
    assert torch.equal(result.isnan(), expected.isnan())
    assert torch.equal(result.isposinf(), expected.isposinf())
    assert torch.equal(result.isneginf(), expected.isneginf())
