"""A small convolution and its gradients, against PyTorch's in float64 on the CPU."""

import math
from typing import TYPE_CHECKING

from dwconv.doctor.facts import Check
from dwconv.requirements import first_line

if TYPE_CHECKING:
    from torch import Tensor

DTYPES = ("float32", "float16")
RESULTS = ("output", "input gradient", "weight gradient", "bias gradient")


def check(device: str, dtype: str) -> Check:
    """Never raises: what goes wrong is the result."""
    try:
        errors, problem = _compare(device, dtype)
    except Exception as error:
        return Check(device, dtype, first_line(error))
    return Check(device, dtype, problem, errors)


def _compare(device: str, dtype: str) -> tuple[dict[str, float | None], str | None]:
    import torch
    from torch.nn.functional import conv2d

    from dwconv import depthwise_conv2d
    from dwconv.bench.limits import error_bound

    generator = torch.Generator().manual_seed(0)
    kind: torch.dtype = getattr(torch, dtype)

    def random(*size: int) -> "Tensor":
        return torch.randn(size, generator=generator, dtype=torch.float64).to(kind)

    tensors = random(2, 8, 15, 14), random(8, 1, 3, 3), random(8)
    grad = random(2, 8, 15, 14)
    ours = [tensor.to(device).requires_grad_() for tensor in tensors]
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    x, weight, bias = ours
    output = depthwise_conv2d(x, weight, bias, padding=1)
    x, weight, bias = exact
    expected = conv2d(x, weight, bias, padding=1, groups=8)
    found = output, *torch.autograd.grad(output, ours, grad.to(device))
    wanted = expected.detach(), *torch.autograd.grad(expected, exact, grad.double())

    errors: dict[str, float | None] = {}
    wrong = []
    for name, got, want in zip(RESULTS, found, wanted, strict=True):
        norm = float(want.norm())
        error = float((got.detach().cpu().double() - want).norm()) / norm
        rounding = float((want.to(kind).double() - want).norm()) / norm
        sums = "backward_weight" if name.startswith(("weight", "bias")) else "forward"
        bound = error_bound(rounding, dtype, sums)
        errors[name] = error if math.isfinite(error) else None
        if not error <= bound:  # nor NaN
            wrong.append(f"{name} has a relative error of {error:.1e}, allowed is {bound:.1e}")
    return errors, "; ".join(wrong) or None
