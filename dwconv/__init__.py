"""Depthwise convolution for PyTorch."""

from importlib.metadata import version as _version

from dwconv._ops import is_strict_nonfinite, set_strict_nonfinite
from dwconv.conversion import Report, convert, restore
from dwconv.functional import depthwise_conv2d
from dwconv.nn import DepthwiseConv2d

__version__ = _version("dwconv")
__all__ = [
    "DepthwiseConv2d",
    "Report",
    "__version__",
    "convert",
    "depthwise_conv2d",
    "is_strict_nonfinite",
    "restore",
    "set_strict_nonfinite",
]
