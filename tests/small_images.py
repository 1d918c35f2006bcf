"""Problems of small images, and which problems suit a row of the kernel table."""

from hypothesis import strategies as st
from problems import WORK, Problem, everyday_problems, problems

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


def problems_for(row: dict[str, str]) -> st.SearchStrategy[Problem]:
    """Problems of which a row of the kernel table takes many."""
    if row["name"].startswith("generic_"):
        return problems()
    return small_images() if row["name"].startswith("plane_") else everyday_problems()
