"""Where the memory formats are one, as kernels see it."""

import pytest
from problems import LAYOUTS, PASSES, Problem, lies_the_same

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
