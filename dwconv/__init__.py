"""Depthwise convolution for PyTorch."""

from typing import TYPE_CHECKING

from dwconv import requirements as _requirements

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

_unmet: ImportError | None = None
try:
    __version__ = _requirements.installed_version()
    _requirements.check(__version__)

    from dwconv._ops import is_strict_nonfinite, set_strict_nonfinite
    from dwconv.conversion import Report, convert, restore
    from dwconv.functional import depthwise_conv2d
    from dwconv.nn import DepthwiseConv2d
except Exception as error:
    _unmet = _requirements.unmet(error)

# `python -m dwconv doctor` imports this first, and has to run whatever is missing: so that is said
# when a name is used, not here.
if _unmet is not None and not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(str(_unmet)) from _unmet.__cause__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
