"""Problems of small images and single taps, and which problems suit a row of the kernel table."""

from hypothesis import strategies as st
from large_filters import batches_of_images, large_filters, tiny_images
from problems import WORK, Problem, everyday_problems, problems
from wide_pixels import tall_filters, wide_pixels

# Whole small images with same padding: at, below and above the sides of a tile (7 and 8) and of
# two; some with more channels than a warp has lanes.
SMALL_IMAGES = [
    Problem(
        batch=batch, channels=channels, size=size, kernel=(k, k), padding=(k // 2,) * 4, bias=bias
    )
    for size, k, batch, channels, bias in [
        ((7, 7), 7, 37, 3, True),
        ((7, 7), 5, 3, 41, False),
        ((7, 7), 3, 1, 64, True),
        ((8, 8), 3, 5, 35, True),
        ((8, 8), 7, 67, 2, False),
        ((14, 14), 3, 11, 9, True),
        ((14, 14), 5, 131, 1, False),
        ((16, 16), 7, 3, 10, True),
        ((16, 16), 3, 41, 4, False),
        ((10, 10), 5, 5, 19, True),
        ((12, 12), 7, 7, 8, False),
        ((9, 13), 3, 4, 17, True),
        ((13, 9), 7, 4, 17, False),
        ((15, 11), 5, 13, 3, True),
        ((16, 8), 5, 3, 33, False),
        ((2, 16), 3, 101, 7, True),
        ((16, 1), 7, 19, 5, False),
        ((3, 4), 7, 509, 2, True),
        ((1, 1), 5, 1021, 3, False),
        ((6, 8), 3, 2, 131, True),
    ]
]


# Filters that reach far beyond all columns of an image: up to 8 results a row and 16 columns, where
# a window of the tensor cores holds the image; and one more of either.
NARROW_IMAGES = [
    Problem(
        batch=batch,
        channels=channels,
        size=size,
        kernel=kernel,
        dilation=dilation,
        padding=padding,
        bias=channels % 2 == 1,
    )
    for size, kernel, dilation, batch, channels, padding in [
        ((23, 7), (11, 11), (1, 1), 5, 3, (5, 5, 5, 5)),
        ((9, 8), (10, 10), (1, 1), 17, 2, (4, 4, 4, 5)),
        ((9, 8), (10, 10), (1, 1), 17, 2, (4, 4, 5, 4)),
        ((30, 6), (11, 5), (2, 3), 3, 5, (5, 5, 6, 6)),
        ((17, 5), (6, 9), (1, 2), 4, 9, (3, 2, 9, 7)),
        ((12, 16), (5, 10), (1, 1), 3, 7, (2, 2, 0, 0)),
        ((12, 16), (5, 11), (1, 1), 3, 4, (2, 2, 1, 0)),
        ((7, 16), (4, 4), (1, 3), 9, 8, (1, 2, 0, 0)),
        ((7, 17), (4, 11), (1, 1), 9, 8, (1, 2, 0, 1)),
        ((20, 2), (7, 11), (3, 1), 2, 19, (9, 9, 8, 8)),
        ((11, 1), (3, 32), (1, 1), 2, 3, (1, 1, 18, 20)),
        ((11, 4), (5, 33), (1, 1), 2, 2, (2, 2, 16, 16)),
        ((41, 8), (8, 7), (1, 5), 2, 17, (3, 4, 15, 15)),
    ]
]


@st.composite
def small_images(draw: st.DrawFn) -> Problem:
    """Problems of images up to 16 x 16 that keep their size: whole and halved planes of any fit."""
    k = draw(st.sampled_from([3, 5, 7]))
    side = st.one_of(st.integers(1, 16), st.sampled_from([7, 8, 14, 16]))
    rows = draw(side)
    columns = rows if draw(st.booleans()) else draw(side)
    channels = draw(st.one_of(st.integers(1, 8), st.integers(1, 130)))
    batch = draw(st.sampled_from([1, 2, 3, 5, 17, 300, 509]))
    while batch > 1 and batch * channels * rows * columns * k * k > 10 * WORK:
        batch //= 2
    return Problem(
        batch=batch,
        channels=channels,
        size=(rows, columns),
        kernel=(k, k),
        padding=(k // 2,) * 4,
        bias=draw(st.booleans()),
    )


# Filters of one element: strides of one, two and more axes, images of any sides, channels that have
# more elements than a block takes at a time.
SINGLE_TAPS = [
    Problem(
        batch=batch,
        channels=channels,
        size=size,
        kernel=(1, 1),
        stride=stride,
        bias=channels % 2 == 1,
    )
    for size, stride, batch, channels in [
        ((1, 1), (1, 1), 1, 1),
        ((1, 1), (2, 2), 513, 3),
        ((7, 5), (1, 1), 37, 41),
        ((6, 54), (2, 2), 5, 19),
        ((20, 6), (2, 2), 11, 73),
        ((63, 7), (1, 1), 3, 58),
        ((13, 17), (3, 3), 2, 33),
        ((13, 17), (1, 2), 7, 10),
        ((13, 17), (2, 1), 7, 11),
        ((41, 3), (5, 1), 4, 6),
        ((3, 41), (1, 5), 4, 7),
        ((19, 19), (50, 50), 3, 130),
        ((128, 131), (2, 2), 3, 2),
        ((61, 67), (1, 1), 5, 3),
        ((32, 64), (1, 1), 1, 5),
        ((32, 65), (1, 1), 1, 4),
        ((16, 16), (4, 4), 9, 31),
        ((86, 85), (2, 2), 2, 9),
        ((5, 103), (1, 1), 9, 12),
        ((90, 6), (1, 1), 3, 21),
        ((7, 86), (2, 3), 5, 8),
    ]
]


@st.composite
def single_taps(draw: st.DrawFn) -> Problem:
    """Problems of 1 x 1 filters without padding, with any stride."""
    side = st.one_of(st.integers(1, 16), st.integers(1, 130))
    step = st.one_of(st.integers(1, 2), st.integers(1, 7))
    rows, columns = draw(side), draw(side)
    channels = draw(st.one_of(st.integers(1, 8), st.integers(1, 130)))
    batch = draw(st.sampled_from([1, 2, 3, 5, 17, 300]))
    while batch > 1 and batch * channels * rows * columns > 10 * WORK:
        batch //= 2
    return Problem(
        batch=batch,
        channels=channels,
        size=(rows, columns),
        kernel=(1, 1),
        stride=(draw(step), draw(step)),
        bias=draw(st.booleans()),
    )


def problems_for(row: dict[str, str]) -> st.SearchStrategy[Problem]:
    """Problems of which a row of the kernel table takes many."""
    if row["name"].startswith("generic_"):
        return problems()
    if row["name"].startswith("pointwise_"):
        return single_taps()
    if row["name"].startswith("ring_"):
        return wide_pixels()
    if row["name"].startswith("diagonal_"):
        of_stride_1 = wide_pixels(filters=[(3, 3), (5, 5), (7, 7)], strides=[1])
        if row["pass"] != "forward":
            return of_stride_1
        return st.one_of(of_stride_1, wide_pixels(filters=[(5, 5), (7, 7)], strides=[1, 2]))
    if row["name"].startswith(("banded_", "columns_", "direct_", "hankel_")):
        return large_filters()
    if row["name"].startswith("outer_"):
        return large_filters(narrow=True)
    if row["name"].startswith("dense_"):
        return tiny_images()
    if row["name"].startswith("batched_"):
        return batches_of_images()
    if row["name"].startswith("toeplitz_") and row["layout"] == "nhwc":
        return tall_filters()
    return small_images() if row["name"].startswith("plane_") else everyday_problems()
