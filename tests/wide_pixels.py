"""Problems for kernels of channels_last: those that copy pixels of whole 16 bytes, channels in
eights; and those that take any channels, but tall filters."""

from collections.abc import Sequence

from hypothesis import strategies as st
from problems import WORK, Pair, Problem

# The filters that such kernels are compiled for.
FILTERS = [(3, 3), (5, 5), (7, 7), (1, 11)]

Padding = tuple[int, int, int, int]
Listed = tuple[Pair, Pair, int, int, int, Padding, Pair]


def _problems(biased: int, listed: Sequence[Listed]) -> list[Problem]:
    """With a bias where channels are a multiple of `biased`."""
    return [
        Problem(
            batch=batch,
            channels=channels,
            size=size,
            kernel=kernel,
            stride=(stride, stride),
            padding=padding,
            dilation=dilation,
            bias=channels % biased == 0,
        )
        for size, kernel, batch, channels, stride, padding, dilation in listed
    ]


# Channels below, at and above those of a block; images of one tile and of several, at odd sizes;
# batches that a unit of several images does not divide; rows of padding on one side alone;
# dilations that leave classes of one row.
WIDE_PIXELS = _problems(
    16,
    [
        ((7, 7), (3, 3), 17, 72, 1, (1, 1, 1, 1), (1, 1)),
        ((7, 7), (7, 7), 5, 40, 1, (3, 3, 3, 3), (1, 1)),
        ((14, 14), (5, 5), 3, 136, 1, (2, 2, 2, 2), (1, 1)),
        ((14, 13), (7, 7), 2, 64, 1, (3, 3, 3, 3), (1, 1)),
        ((28, 29), (3, 3), 2, 80, 1, (1, 1, 1, 1), (1, 1)),
        ((57, 61), (3, 3), 1, 24, 1, (0, 2, 2, 0), (1, 1)),
        ((37, 53), (7, 7), 1, 16, 1, (0, 3, 6, 1), (1, 1)),
        ((19, 127), (5, 5), 1, 8, 1, (4, 0, 0, 4), (1, 1)),
        ((3, 301), (3, 3), 1, 8, 1, (1, 1, 1, 1), (1, 1)),
        ((301, 3), (3, 3), 1, 8, 1, (1, 1, 1, 1), (1, 1)),
        ((1, 1), (5, 5), 67, 264, 1, (2, 2, 2, 2), (1, 1)),
        ((2, 3), (7, 7), 131, 8, 1, (3, 3, 3, 3), (1, 1)),
        ((7, 7), (7, 7), 3, 8, 1, (0, 0, 0, 0), (1, 1)),
        ((11, 56), (1, 11), 3, 96, 1, (0, 0, 5, 5), (1, 1)),
        ((5, 23), (1, 11), 7, 40, 1, (0, 0, 10, 0), (1, 1)),
        ((33, 33), (3, 3), 1, 72, 1, (6, 6, 6, 6), (6, 6)),
        ((28, 28), (7, 7), 1, 32, 1, (9, 9, 9, 9), (3, 3)),
        ((13, 17), (3, 3), 5, 16, 1, (8, 8, 8, 8), (8, 8)),
        ((9, 40), (5, 5), 2, 24, 1, (2, 2, 8, 4), (1, 3)),
        ((40, 9), (5, 5), 2, 24, 1, (20, 20, 2, 2), (11, 1)),
        ((6, 38), (5, 5), 3, 8, 1, (6, 6, 6, 6), (3, 3)),
        ((10, 30), (1, 11), 2, 16, 1, (0, 0, 10, 10), (4, 2)),
        ((5, 17), (3, 3), 2, 16, 1, (6, 6, 1, 1), (8, 1)),  # a single row of results
        ((28, 31), (3, 3), 2, 88, 2, (1, 1, 1, 1), (1, 1)),
        ((57, 57), (3, 3), 1, 32, 2, (0, 1, 1, 0), (1, 1)),
        ((56, 56), (5, 5), 1, 48, 2, (2, 2, 2, 2), (1, 1)),
        ((15, 14), (7, 7), 3, 40, 2, (3, 3, 2, 3), (1, 1)),
        ((9, 45), (1, 11), 2, 24, 2, (0, 0, 5, 5), (1, 1)),
        ((14, 14), (3, 3), 17, 136, 2, (1, 1, 1, 1), (1, 1)),
        ((29, 28), (7, 7), 2, 72, 2, (6, 0, 0, 6), (1, 1)),
        ((2, 5), (5, 5), 67, 16, 2, (2, 2, 2, 2), (1, 1)),
        ((23, 29), (3, 3), 2, 16, 2, (2, 2, 2, 2), (2, 2)),
        ((31, 26), (5, 5), 1, 8, 2, (5, 6, 0, 6), (3, 2)),
    ],
)


def _fitting(draw: st.DrawFn, kernel: Pair, dilation: Pair) -> tuple[Pair, Padding]:
    """An image that the kernel fits, and padding, of no more than it reaches over."""
    side = st.one_of(st.integers(1, 20), st.integers(1, 130), st.sampled_from([7, 14, 28, 56]))
    size, padding = [], []
    for k, d in zip(kernel, dilation, strict=True):
        span = d * (k - 1)
        before, after = draw(st.integers(0, span)), draw(st.integers(0, span))
        size.append(max(draw(side), span + 1 - before - after))
        padding += [before, after]
    top, bottom, left, right = padding
    return (size[0], size[1]), (top, bottom, left, right)


@st.composite
def wide_pixels(
    draw: st.DrawFn,
    filters: Sequence[tuple[int, int]] = FILTERS,
    strides: Sequence[int] = (1, 1, 1, 2),
) -> Problem:
    """Problems of which such kernels take all, but for input gradients with stride 2 and a
    dilation."""
    kernel = draw(st.sampled_from(filters))
    stride = draw(st.sampled_from(strides))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 1), (1, 4), (9, 8)]))
    size, padding = _fitting(draw, kernel, dilation)
    channels = 8 * draw(st.one_of(st.integers(1, 5), st.integers(1, 40)))
    batch = draw(st.sampled_from([1, 2, 3, 5, 17, 131]))
    while batch * channels * size[0] * size[1] * kernel[0] * kernel[1] > 10 * WORK:
        if batch == 1 and channels == 8:
            break
        batch, channels = max(1, batch // 2), 8 * max(1, channels // 16)
    return Problem(
        batch=batch,
        channels=channels,
        size=size,
        kernel=kernel,
        stride=(stride, stride),
        padding=padding,
        dilation=dilation,
        bias=draw(st.booleans()),
    )


# For kernels that make planes of pixels in shared memory: channels that are odd, two, four and
# eight to a word, a group's and one more; rows that are odd, padding that is; an odd number of
# elements in all; bands, several images to a unit; windows of 16 columns and of 32.
PLANES = _problems(
    3,
    [
        ((5, 7), (4, 3), 1, 3, 1, (1, 2, 1, 1), (1, 1)),
        ((7, 7), (7, 7), 37, 21, 1, (3, 3, 3, 3), (1, 1)),
        ((7, 8), (5, 5), 19, 26, 1, (2, 2, 2, 2), (1, 1)),
        ((13, 10), (10, 10), 3, 51, 1, (4, 5, 4, 5), (1, 1)),
        ((21, 13), (10, 10), 5, 26, 1, (4, 4, 4, 4), (1, 1)),
        ((9, 130), (11, 11), 1, 13, 1, (5, 5, 5, 5), (1, 1)),
        ((130, 9), (9, 9), 1, 12, 1, (4, 4, 4, 4), (1, 1)),
        ((59, 89), (11, 11), 1, 5, 1, (5, 5, 5, 5), (1, 1)),
        ((11, 31), (6, 4), 2, 129, 1, (2, 3, 0, 0), (1, 1)),
        ((40, 41), (8, 6), 1, 66, 1, (0, 7, 5, 0), (1, 1)),
        ((17, 39), (4, 6), 3, 2, 1, (6, 6, 5, 5), (2, 2)),
        ((28, 28), (7, 7), 1, 40, 1, (9, 9, 9, 9), (3, 3)),
        ((6, 26), (4, 10), 9, 50, 1, (1, 1, 9, 9), (2, 2)),
        ((12, 73), (9, 1), 2, 64, 1, (4, 4, 0, 0), (1, 1)),
        ((9, 46), (5, 16), 2, 7, 1, (2, 2, 15, 0), (1, 1)),
        ((20, 11), (8, 8), 19, 2, 2, (3, 3, 3, 3), (1, 1)),
        ((37, 16), (5, 5), 2, 77, 2, (2, 2, 2, 2), (1, 1)),
        ((48, 21), (10, 10), 2, 19, 2, (4, 4, 4, 4), (1, 1)),
        ((36, 98), (9, 9), 1, 8, 2, (4, 4, 4, 4), (1, 1)),
        ((15, 14), (7, 7), 5, 43, 2, (3, 3, 2, 3), (1, 1)),
        ((9, 45), (11, 11), 2, 24, 2, (10, 1, 0, 10), (1, 1)),
        ((2, 5), (4, 4), 67, 11, 2, (2, 2, 2, 2), (1, 1)),
    ],
)


@st.composite
def tall_filters(draw: st.DrawFn) -> Problem:
    """Problems of filters of 4 to 11 rows, of which kernels that make planes take most."""
    kernel = (draw(st.integers(4, 11)), draw(st.integers(1, 12)))
    stride = draw(st.sampled_from([1, 1, 1, 2]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 2), (3, 1), (1, 3)]))
    if stride == 2:
        dilation = (1, 1)
    size, padding = _fitting(draw, kernel, dilation)
    channels = draw(st.one_of(st.integers(1, 9), st.integers(1, 70), st.integers(1, 300)))
    batch = draw(st.sampled_from([1, 2, 3, 5, 17, 131]))
    while batch * channels * size[0] * size[1] * kernel[0] * kernel[1] > 10 * WORK:
        if batch == 1 and channels == 1:
            break
        batch, channels = max(1, batch // 2), max(1, channels * 2 // 3)
    return Problem(
        batch=batch,
        channels=channels,
        size=size,
        kernel=kernel,
        stride=(stride, stride),
        padding=padding,
        dilation=dilation,
        bias=draw(st.booleans()),
    )
