"""``convert`` and ``restore``: a model's depthwise layers, in place, and back.

A layer changes its class and nothing else. So parameters, buffers, hooks, attributes and the object
itself stay what they are, for optimizers, DistributedDataParallel, EMA copies and whoever else
holds them.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from dwconv._ops import DTYPES
from dwconv.arguments import Around
from dwconv.functional import convolve
from dwconv.nn import DepthwiseConv2d

Skip: TypeAlias = Iterable[str] | Callable[[str, nn.Module], bool] | None


class ConvertedConv2d(DepthwiseConv2d):
    """What an ``nn.Conv2d`` is after ``convert``."""


class ConvertedConv2dSame(ConvertedConv2d):
    """What timm's ``Conv2dSame`` is after ``convert``: padded as TensorFlow's "SAME" is, so that
    the output has ``ceil(size / stride)`` elements, with the odd one at the bottom and right."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        def around(axis: int) -> tuple[int, int]:
            size, stride = input.shape[axis], self.stride[axis]
            spanned = self.dilation[axis] * (weight.shape[axis] - 1) + 1
            total = max((-(-size // stride) - 1) * stride + spanned - size, 0)
            return total // 2, total - total // 2

        padding = Around(*around(-2), *around(-1))
        return convolve(input, weight, bias, self.stride, padding, self.dilation, self.in_channels)


# What is converted, by its class's full name: these alone, for a subclass may compute anything.
_CONVERTED: dict[str, type[ConvertedConv2d]] = {
    "torch.nn.modules.conv.Conv2d": ConvertedConv2d,
    "timm.layers.conv2d_same.Conv2dSame": ConvertedConv2dSame,
}


@dataclass(frozen=True)
class Swapped:
    """A layer that runs dwconv's kernels now."""

    name: str
    problem: str


@dataclass(frozen=True)
class Skipped:
    """A depthwise layer that was left alone."""

    name: str
    reason: str


@dataclass(frozen=True, repr=False)
class Report:
    """What ``convert`` did; printed, a table."""

    swapped: tuple[Swapped, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        rows = [("swapped", "problem"), *((s.name, s.problem) for s in self.swapped)]
        if not self.swapped:
            rows = []
        if self.skipped:
            rows += [("skipped", "why"), *((s.name, s.reason) for s in self.skipped)]
        width = max((len(name) for name, _ in rows), default=0)
        layers = "layer" if len(self.swapped) == 1 else "layers"
        lines = [f"dwconv: {len(self.swapped)} {layers} swapped, {len(self.skipped)} skipped"]
        return "\n".join(lines + [f"  {name:{width}}  {text}" for name, text in rows])

    __repr__ = __str__


def convert(model: nn.Module, *, skip: Skip = None) -> Report:
    """Lets dwconv compute the depthwise layers of a model, in place.

    Every ``nn.Conv2d`` with ``groups == in_channels``, and timm's ``Conv2dSame``, becomes a
    ``DepthwiseConv2d``: the same object, with the same parameters, hooks and attributes and the
    same ``state_dict``. Works on models in any dtype, memory format and mode, on any device, before
    and after an optimizer, ``torch.compile``, DistributedDataParallel or ``fully_shard`` took them.
    A depthwise layer that ``fully_shard`` took by itself has another class since, and is skipped.
    What ``torch.compile`` has made so far, of any model, is made anew.

    Args:
        model: Any module, also a single layer.
        skip: Names of layers, or of modules that hold them, as in ``model.named_modules()``; or a
            function of a layer's name and the layer that says whether to leave it alone.

    Returns:
        What was swapped, and which depthwise layers were not, with the reason. Print it.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or a scripted one, or ``skip`` is neither.
        ValueError: ``skip`` names a module that the model does not have.

    Example:
        >>> report = dwconv.convert(model)
        >>> print(report)
        dwconv: 1 layer swapped, 0 skipped
          swapped  problem
          0        C32 k3x3 s1 p1x1 d1
    """
    _check_model(model)
    skips = _skips(model, skip)
    swapped, skipped = [], []
    for name, module in _layers(model):
        target = _CONVERTED.get(_full_name(type(module)))
        if skips(name, module):
            skipped.append(Skipped(name, "is left alone, as skip says"))
        elif reason := _refuse(module, target):
            skipped.append(Skipped(name, reason))
        else:
            assert target is not None  # or it was refused
            module.__class__ = target
            swapped.append(Swapped(name, _describe(cast(nn.Conv2d, module))))
    if swapped:
        _forget_compiled_code()
    return Report(tuple(swapped), tuple(skipped))


def restore(model: nn.Module) -> list[str]:
    """Undoes ``convert``: its layers have the class again that they had. Layers that were made as
    ``DepthwiseConv2d`` stay.

    Returns:
        The names of the layers that were restored.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
    """
    _check_model(model)
    classes = {converted: name for name, converted in _CONVERTED.items()}
    restored = []
    for name, module in model.named_modules():
        if type(module) in classes:
            module.__class__ = _class_of(classes[type(module)])
            restored.append(name)
    if restored:
        _forget_compiled_code()
    return restored


def _forget_compiled_code() -> None:
    """What ``torch.compile`` has made is for the classes of before, and not every release of torch
    asks whether they are still the same (2.13 does, 2.11 does not)."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_of(full_name: str) -> type:
    module, _, name = full_name.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model must be an eager nn.Module, got a scripted or traced one")


def _skips(model: nn.Module, skip: Skip) -> Callable[[str, nn.Module], bool]:
    """``skip`` as a function, whatever it was given as."""
    if callable(skip):
        return skip
    if isinstance(skip, str) or not (skip is None or isinstance(skip, Iterable)):
        raise TypeError(f"skip must be names of modules or a function, got {skip!r}")
    names = list(skip or ())
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"skip must hold names of modules, got {name!r}")
        if name not in known:
            raise ValueError(f"skip names {name!r}, which the model does not have")
    inside = {module for name in names for module in model.get_submodule(name).modules()}
    return lambda _, module: module in inside


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Depthwise layers that dwconv does not compute already, each once."""
    for name, module in model.named_modules():
        if isinstance(module, DepthwiseConv2d):
            continue
        quantised = type(module).__module__.startswith("torch.ao.nn.")
        if not isinstance(module, _ConvNd) and not quantised:
            continue
        groups = getattr(module, "groups", None)
        # A lazy layer's channels are not known: any with groups may become one.
        if groups == getattr(module, "in_channels", 0) or (_is_lazy(module) and groups != 1):
            yield name, module


def _is_lazy(module: Any) -> bool:
    return isinstance(module, LazyModuleMixin) and bool(module.has_uninitialized_params())  # type: ignore[misc]


def _refuse(module: Any, target: type[ConvertedConv2d] | None) -> str | None:
    """Why a depthwise layer cannot be swapped."""
    kind = type(module).__name__
    if _is_lazy(module):
        return "has no parameters yet: call the model once, and convert it then"
    if is_parametrized(module):
        return "is parametrized: its weight is computed anew for every call"
    if type(module).__module__.startswith("torch.ao.") or getattr(module, "qconfig", None):
        return f"is quantised, or about to be: a {kind}"
    if not isinstance(module, nn.Conv2d):
        return f"is a {kind}: dwconv convolves images forward alone"
    if target is None:
        return f"is a {kind}, a subclass of nn.Conv2d that may compute something else"
    if module.groups == 1:
        return "has one input channel in one group: an ordinary convolution"
    if {"forward", "_conv_forward"} & vars(module).keys():
        return "has a forward of its own, which somebody put into the object"
    weight = module._parameters.get("weight")
    if weight is None:
        return "has no parameter named weight: something computes it"
    if type(weight) is not nn.Parameter and type(weight).__name__ != "DTensor":  # of FSDP
        return f"has a weight of another kind than a plain tensor: a {type(weight).__name__}"
    if weight.dtype not in DTYPES:
        return f"has a weight of {weight.dtype}, which is none of {', '.join(map(str, DTYPES))}"
    return None


def _describe(module: nn.Conv2d) -> str:
    """A layer's problem, as the benchmarks write it."""

    def sides(value: Any) -> str:
        return value if isinstance(value, str) else "x".join(map(str, value))

    def side(value: tuple[int, ...]) -> str:
        return str(value[0]) if len(set(value)) == 1 else sides(value)

    multiplier = module.out_channels // module.in_channels
    padding = "same" if isinstance(module, ConvertedConv2dSame) else sides(module.padding)
    return " ".join(
        [
            f"C{module.in_channels}",
            *([f"M{multiplier}"] if multiplier > 1 else []),
            f"k{sides(module.kernel_size)}",
            f"s{side(module.stride)}",
            f"p{padding}",
            f"d{side(module.dilation)}",
            *([module.padding_mode] if module.padding_mode != "zeros" else []),
        ]
    )
