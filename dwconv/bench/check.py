"""Checks an output against a float64 reference."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dwconv.bench.cases import Case, Data, cudnn_flags, torch_call
from dwconv.bench.limits import error_bound

# Elements of the larger tensor that go into a reference (2 GB in float64). Larger cases are
# checked on images (weight gradients: on channels) spread evenly, the first and last among them.
REFERENCE_ELEMENTS = 2**28


# Terms may cancel in all of so few results by chance: then their norm is what it is on average over
# random signs, the root of the sum of the squares of all products.
FEW_RESULTS = 64


@dataclass(frozen=True)
class Reference:
    """PyTorch's own convolution in float64: `value` is what `index` picks along dimension 0."""

    index: Tensor
    value: Tensor
    norm: float
    rounding: float  # relative error of `value` rounded once to the case's dtype


@dataclass(frozen=True)
class Check:
    rel_error: float | None  # None: could not be computed
    error_bound: float
    problem: str | None  # a sentence; None: the output is right


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(t))


def _picks(count: int, elements_each: int, budget: int, device: torch.device) -> Tensor:
    picked = min(count, max(2, budget // elements_each))
    return torch.linspace(0, count - 1, picked, dtype=torch.float64).round().long().to(device)


def make_reference(case: Case, data: Data, budget: int = REFERENCE_ELEMENTS) -> Reference:
    """A weight gradient takes whole channels, so that its sums over N, H and W stay whole."""
    dim = 1 if case.pass_ == "backward_weight" else 0
    elements = max(data.x.numel(), data.grad.numel())
    count = data.x.size(dim)
    index = _picks(count, elements // count, budget, data.x.device)

    def exact(t: Tensor, dim: int | None) -> Tensor:
        t = t if dim is None else t.index_select(dim, index)
        return t.to(torch.float64, memory_format=torch.contiguous_format)

    part = Data(
        exact(data.x, dim),
        exact(data.weight, 0 if dim == 1 else None),
        exact(data.grad, dim),
    )
    with cudnn_flags(enabled=False, benchmark=False):
        value = torch_call(case.workload, case.pass_, part)()
        norm = _norm(value)
        if value.numel() < FEW_RESULTS:
            squares = Data(part.x.square(), part.weight.square(), part.grad.square())
            energy = torch_call(case.workload, case.pass_, squares)()
            norm = max(norm, math.sqrt(float(energy.sum())))
    rounding = _norm(value.to(case.torch_dtype).double().sub_(value)) / norm
    return Reference(index, value, norm, rounding)


def check(case: Case, out: Tensor, reference: Reference) -> Check:
    """`out` whole: its shape, dtype and layout, and no Inf or NaN; its error on the picked part."""
    bound = error_bound(reference.rounding, case.dtype, case.pass_)
    if out.shape != case.result_shape or out.dtype != case.torch_dtype:
        got = f"{tuple(out.shape)} {out.dtype}"
        return Check(None, bound, f"is {got}, not {case.result_shape} {case.torch_dtype}")
    part = out.index_select(0, reference.index).double()
    error = _norm(part.sub_(reference.value)) / reference.norm
    rel_error = error if math.isfinite(error) else None
    problem = None
    if not bool(torch.isfinite(out.sum(dtype=torch.float32))):
        problem = "holds Inf or NaN, or elements that were never written"
    elif rel_error is None or rel_error > bound:
        problem = f"relative error {error:.2e}, allowed {bound:.2e}"
    elif case.pass_ != "backward_weight" and not out.is_contiguous(
        memory_format=case.memory_format
    ):
        problem = f"not in the layout {case.layout}: strides {out.stride()}"
    return Check(rel_error, bound, problem)
