"""Random workloads: what the list of real layers may have missed."""

import math
import random
from collections.abc import Callable, Iterable, Sequence

from dwconv.bench.cases import Case
from dwconv.workloads import RANDOM, Workload

# What is drawn. Sizes, channels and images are spread evenly on a logarithmic scale.
ELEMENTS = (2**19, 2**24)  # of x: 1 to 64 MB

SIDES = (5, 130)  # of the image
KERNEL_SIDES = (1, 11)
CHANNELS = (1, 2048)

LARGE_SIDES = (7, 128)
LARGE_KERNEL_SIDES = (9, 63)
LARGE_CHANNELS = (1, 1024)
LARGE_IMAGES = (1, 128)


def random_workloads(count: int, seed: int, filters: str = "small") -> tuple[Workload, ...]:
    """The first `count` workloads of `seed`, with one of FILTERS: the same on every machine."""
    draw = _Draw(f"workloads {seed}")
    return tuple(_workload(draw, FILTERS[filters], f"random_{i:03d}") for i in range(count))


def random_cases(
    workloads: Iterable[Workload],
    dtypes: Sequence[str],
    passes: Iterable[str],
    layouts: Iterable[str],
) -> list[Case]:
    """One dtype for each workload and pass; whatever else is selected, it is the same one."""
    passes, layouts = tuple(passes), tuple(layouts)
    return [
        Case(workload, _Draw(f"{workload.shape} {pass_}").one_of(dtypes), pass_, layout)
        for workload in workloads
        for pass_ in passes
        for layout in layouts
    ]


class _Draw:
    """Draws by `random()` alone, whose numbers Python keeps the same for a seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def integer(self, bounds: tuple[int, int]) -> int:
        low, high = bounds
        return low + int(self._random() * (high - low + 1))

    def logarithmic(self, bounds: tuple[int, int]) -> int:
        low, high = (math.log(bound) for bound in bounds)
        return round(math.exp(low + self._random() * (high - low)))

    def one_of(self, choices: Sequence[str]) -> str:
        return choices[self.integer((0, len(choices) - 1))]


Candidate = Callable[[_Draw, str], Workload]


def _workload(draw: _Draw, candidate: Candidate, name: str) -> Workload:
    while True:
        workload = candidate(draw, name)
        low, high = ELEMENTS
        if low <= math.prod(workload.input_shape) <= high and min(workload.output_size) >= 1:
            return workload


def _small(draw: _Draw, name: str) -> Workload:
    """A quarter of the filters are rectangular, a quarter strided, an eighth dilated."""
    height, width = draw.logarithmic(SIDES), draw.logarithmic(SIDES)
    kernel_h = kernel_w = draw.integer(KERNEL_SIDES)
    if draw.chance(1 / 4):
        kernel_w = draw.integer(KERNEL_SIDES)
    stride = dilation = 1
    if draw.chance(1 / 4):
        stride = 2
    elif draw.chance(1 / 6):
        dilation = draw.integer((2, 3))
    padded = draw.chance(4 / 5)
    channels = draw.logarithmic(CHANNELS)
    images = draw.logarithmic(ELEMENTS) / (channels * height * width)
    return Workload(
        name=name,
        source=RANDOM,
        n=max(1, round(images)),
        c=channels,
        h=height,
        w=width,
        kernel=(kernel_h, kernel_w),
        stride=stride,
        padding=(dilation * (kernel_h - 1) // 2, dilation * (kernel_w - 1) // 2)
        if padded
        else (0, 0),
        dilation=dilation,
    )


def _large(draw: _Draw, name: str) -> Workload:
    """Half of the filters are rectangular; stride and dilation are 1."""
    height, width = draw.logarithmic(LARGE_SIDES), draw.logarithmic(LARGE_SIDES)
    kernel_h = kernel_w = draw.integer(LARGE_KERNEL_SIDES)
    if draw.chance(1 / 2):
        kernel_w = draw.integer(LARGE_KERNEL_SIDES)
    padded = draw.chance(4 / 5)
    return Workload(
        name=name,
        source=RANDOM,
        n=draw.logarithmic(LARGE_IMAGES),
        c=draw.logarithmic(LARGE_CHANNELS),
        h=height,
        w=width,
        kernel=(kernel_h, kernel_w),
        stride=1,
        padding=((kernel_h - 1) // 2, (kernel_w - 1) // 2) if padded else (0, 0),
        dilation=1,
    )


FILTERS: dict[str, Candidate] = {"small": _small, "large": _large}
