"""Times dwconv beside PyTorch on this GPU, and checks every output against float64.

CUDA events around one call, the median of at least 20, the L2 flushed before each, the host
running ahead of the GPU, TF32 off. A limit is the time of a device-to-device copy of as many
bytes, or of the arithmetic if that is longer; efficiency is limit over measured. Arithmetic limits
and targets are those of an H100. The host's time of a call on one small image is measured too.
"""

from dwconv.bench.command import run
from dwconv.bench.options import add_arguments

__all__ = ["add_arguments", "run"]
