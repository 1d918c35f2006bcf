"""Fixtures for every test file. Shared helpers are in problems.py."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from dwconv import _C

settings.register_profile(
    "dwconv",
    deadline=None,  # the first call of a kernel loads it
    derandomize=True,  # the same problems on every machine
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("dwconv")
torch.set_num_threads(1)  # most tensors here are small: threads would only wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each test that takes it runs on the CPU and, where there is one, on the GPU."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    """PyTorch's own float32 convolutions, which results are compared with, must not use TF32."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def force_kernel() -> Iterator[Callable[[str | None], None]]:
    """Makes the operators run one row of the kernel table, until the test ends."""
    yield _C.force_kernel
    _C.force_kernel(None)
