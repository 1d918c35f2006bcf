"""Build facts and the planner. Importing it registers ``torch.ops.dwconv.*``."""

from collections.abc import Sequence
from typing import Any

def build_info() -> dict[str, str]:
    """What this library was built with: version, commit, nvcc, architectures, torch_headers and
    torch_target.

    ``commit`` ends in "-dirty" where sources differed from it, and is "unknown" without a history.
    """

def kernels() -> list[dict[str, str]]:
    """The table of kernels: name, pass, dtype and layout of each row."""

def plan(
    *,
    pass_: str,
    dtype: str,
    layout: str,
    input_size: Sequence[int],
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    bias: bool = False,
    compute_capability: int = 90,
    multiprocessors: int = 132,
    compiled_for: int | None = None,
    kernel: str | None = None,
    strict_nonfinite: bool = False,
) -> dict[str, Any]:
    """The planner's choice for a problem on a stated device, with runners-up and refusals.

    ``compiled_for`` is the compute capability that the kernels were compiled for, where the driver
    translates them; the device's when None.

    Raises ValueError for a malformed problem, or when ``kernel`` is forced and cannot take it.
    """

def force_kernel(kernel: str | None) -> None:
    """Makes the operators run this row of the table, or choose again (None). For tests."""

def plan_cache() -> dict[str, int]:
    """hits, misses and size of the cache of plans."""

def clear_plan_cache() -> None:
    """Forgets all plans."""

def set_strict_nonfinite(enabled: bool) -> None:
    """Makes the planner refuse kernels that do not spread Inf and NaN as nn.Conv2d does."""

def strict_nonfinite() -> bool:
    """Whether it does so."""
