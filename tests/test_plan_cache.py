"""The planner's memory: calls are planned once."""

from typing import Any

import pytest
import torch
from problems import Problem, make_data, run_pass

from dwconv import _C


def test_introspection_leaves_the_cache_alone() -> None:
    """Asking for a plan is not planning a call."""
    _C.clear_plan_cache()
    _C.plan(**Problem().plan_arguments("forward", "float32", "nchw"))
    assert _C.plan_cache() == {"hits": 0, "misses": 0, "size": 0}


@pytest.mark.gpu
def test_plans_are_remembered(force_kernel: Any) -> None:
    """By problem and by policy: a second call is a hit, another shape or kernel a miss."""
    device = torch.device("cuda")
    problem = Problem()
    data = make_data(problem, torch.float32, device)
    _C.clear_plan_cache()
    run_pass("forward", problem, data)
    assert _C.plan_cache() == {"hits": 0, "misses": 1, "size": 1}
    run_pass("forward", problem, data)
    assert _C.plan_cache() == {"hits": 1, "misses": 1, "size": 1}
    run_pass("backward_weight", problem, data)
    assert _C.plan_cache() == {"hits": 1, "misses": 2, "size": 2}
    force_kernel("generic_forward_float32_nchw")
    run_pass("forward", problem, data)
    assert _C.plan_cache() == {"hits": 1, "misses": 3, "size": 3}
    _C.clear_plan_cache()
    assert _C.plan_cache() == {"hits": 0, "misses": 0, "size": 0}
    run_pass("forward", problem, data)
    assert _C.plan_cache()["misses"] == 1
