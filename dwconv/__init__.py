"""Depthwise convolution for PyTorch."""

from importlib.metadata import version as _version

from dwconv.functional import depthwise_conv2d
from dwconv.nn import DepthwiseConv2d

__version__ = _version("dwconv")
__all__ = ["DepthwiseConv2d", "__version__", "depthwise_conv2d"]
