"""Problems of filters above 11 x 11, up to 63 on a side."""

from dataclasses import replace

from hypothesis import strategies as st
from problems import WORK, Problem

# Images of one block of 8 columns, of two, four, seven, eight, more and more than sixteen; rows of
# 16, 8, 4 and 2 bytes at a time; batches of one, below and above 16, that a unit divides and not;
# filters that reach over the whole image and beyond; all of the padding, none, more on one side,
# more than the filter's.
LARGE_FILTERS = [
    Problem(
        batch=batch,
        channels=channels,
        size=size,
        kernel=kernel,
        padding=padding,
        bias=channels % 2 == 1,
    )
    for size, kernel, batch, channels, padding in [
        ((7, 7), (13, 13), 37, 5, (6, 6, 6, 6)),
        ((8, 5), (15, 9), 67, 2, (7, 7, 4, 4)),
        ((14, 14), (27, 27), 17, 1, (13, 13, 13, 13)),
        ((14, 13), (13, 21), 1, 5, (6, 6, 10, 10)),
        ((28, 28), (29, 29), 2, 1, (14, 14, 14, 14)),
        ((29, 30), (17, 13), 2, 3, (8, 8, 6, 6)),
        ((56, 56), (31, 31), 1, 1, (15, 15, 15, 15)),
        ((56, 56), (51, 5), 1, 3, (25, 25, 2, 2)),
        ((56, 56), (5, 51), 1, 3, (2, 2, 25, 25)),
        ((31, 57), (13, 13), 3, 1, (6, 6, 6, 6)),
        ((64, 60), (21, 1), 17, 1, (10, 10, 0, 0)),
        ((9, 64), (1, 21), 17, 4, (0, 0, 10, 10)),
        ((20, 72), (9, 63), 1, 1, (4, 4, 31, 31)),
        ((24, 128), (13, 35), 1, 1, (6, 6, 17, 17)),
        ((17, 131), (5, 14), 2, 1, (2, 2, 6, 7)),
        ((19, 260), (3, 49), 1, 2, (1, 1, 24, 24)),
        ((5, 333), (4, 12), 3, 1, (3, 0, 0, 11)),
        ((300, 12), (63, 11), 1, 1, (31, 31, 5, 5)),
        ((9, 264), (13, 35), 2, 1, (6, 6, 17, 17)),
        ((280, 16), (25, 13), 1, 1, (12, 12, 6, 6)),
        ((40, 40), (31, 31), 2, 1, (0, 0, 0, 0)),
        ((33, 45), (32, 16), 3, 1, (15, 16, 7, 8)),
        ((33, 45), (16, 32), 3, 1, (0, 15, 31, 0)),
        ((20, 20), (13, 13), 2, 3, (12, 12, 12, 12)),
        ((6, 6), (12, 12), 4, 3, (20, 5, 5, 20)),
        ((7, 7), (63, 63), 3, 2, (31, 31, 31, 31)),
    ]
]


def padded_by_half(
    batch: int,
    channels: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    bias: bool = False,
) -> Problem:
    """With half of the filter on either side of the image."""
    h, w = (k // 2 for k in kernel)
    return Problem(
        batch=batch, channels=channels, size=size, kernel=kernel, padding=(h, h, w, w), bias=bias
    )


@st.composite
def large_filters(draw: st.DrawFn, narrow: bool = False) -> Problem:
    """Filters of any size up to 63 x 63, one side of them above 11, on images of up to 130 rows and
    columns; every fourth padding is none, or anything. If `narrow`, images have up to 31 columns
    but for their padding, half of the filter.
    """
    kernel = [draw(st.integers(12, 63)), draw(st.one_of(st.integers(1, 11), st.integers(12, 63)))]
    if draw(st.booleans()):
        kernel.reverse()
    side = st.one_of(st.integers(1, 30), st.integers(1, 130), st.sampled_from([7, 14, 28, 56]))
    size, padding = [], []
    for axis, k in enumerate(kernel):
        same = narrow or draw(st.sampled_from([True, True, True, False]))
        before, after = (
            (k // 2, k // 2) if same else (draw(st.integers(0, k)), draw(st.integers(0, k)))
        )
        length = draw(st.integers(1, 31) if narrow and axis == 1 else side)
        size.append(max(length, k - before - after))
        padding += [before, after]
    channels = draw(st.integers(1, 9))
    batch = draw(st.sampled_from([1, 2, 3, 5, 15, 17, 40, 131]))
    while batch * channels * size[0] * size[1] * kernel[0] * kernel[1] > 20 * WORK:
        if batch == 1 and channels == 1:
            break
        batch, channels = max(1, batch // 2), max(1, channels // 2)
    top, bottom, left, right = padding
    return Problem(
        batch=batch,
        channels=channels,
        size=(size[0], size[1]),
        kernel=(kernel[0], kernel[1]),
        padding=(top, bottom, left, right),
        bias=draw(st.booleans()),
    )


@st.composite
def tiny_images(draw: st.DrawFn) -> Problem:
    """Filters as above on images of up to 208 elements, padded by half of them."""
    problem = draw(large_filters(narrow=True))
    rows = draw(st.integers(1, 26))
    columns = draw(st.integers(1, min(208 // rows, 40)))
    batch = draw(st.sampled_from([1, 2, 15, 16, 17, 40, 131]))
    return replace(problem, batch=batch, size=(rows, columns))


@st.composite
def batches_of_images(draw: st.DrawFn) -> Problem:
    """Filters as above, or smaller ones with a dilation, on images of up to 16 tiles of 4 x 8."""
    problem = draw(large_filters(narrow=True))
    tiles = draw(st.integers(1, 16))
    rows = draw(st.integers(1, min(4 * tiles, 40)))
    columns = draw(st.integers(1, min(8 * (tiles // -(-rows // 4)), 40)))
    batch = draw(st.sampled_from([1, 2, 31, 33, 64, 65, 131]))
    problem = replace(problem, batch=batch, size=(rows, columns))
    if draw(st.booleans()):
        return problem
    dilation = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    kernel = (draw(st.integers(1, 11)), draw(st.integers(1, 11)))
    h, w = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    padding = (h, h + dilation[0], w, w + dilation[1])
    return replace(problem, kernel=kernel, dilation=dilation, padding=padding)
