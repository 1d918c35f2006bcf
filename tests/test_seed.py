"""The seed problem, N64 C128 H256 W512 k3, against nn.Conv2d: at full size on a GPU, else small."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from dwconv import DepthwiseConv2d

SIZES = {"cuda": (64, 128, 256, 512), "cpu": (2, 8, 32, 64)}


@pytest.fixture
def layers(device: torch.device) -> tuple[nn.Conv2d, nn.Conv2d]:
    channels = SIZES[device.type][1]
    theirs = nn.Conv2d(channels, channels, 3, groups=channels, bias=False, device=device)
    ours = DepthwiseConv2d(channels, channels, 3, bias=False, device=device)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.fixture
def x(device: torch.device) -> Iterator[Tensor]:
    yield torch.randn(SIZES[device.type], device=device, requires_grad=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # gigabytes, which other tests may want in other sizes


def relative_difference(result: Tensor, expected: Tensor) -> float:
    """Of the norms, summed in float64 image by image."""
    difference = norm = 0.0
    for ours, theirs in zip(result.detach(), expected.detach(), strict=True):
        difference += float((ours.double() - theirs.double()).square().sum())
        norm += float(theirs.double().square().sum())
    return math.sqrt(difference / norm)


def weight_gradient(x: Tensor, grad: Tensor, channel: int) -> Tensor:
    """In float64, one tap at a time: the sum over all images of grad times the shifted input."""
    x, grad = x.detach()[:, channel].double(), grad[:, channel].double()
    h, w = grad.shape[1:]
    taps = [(grad * x[:, i : i + h, j : j + w]).sum() for i in range(3) for j in range(3)]
    return torch.stack(taps).view(1, 3, 3)


def test_seed_problem(layers: tuple[nn.Conv2d, nn.Conv2d], x: Tensor) -> None:
    """Forward, input gradient and weight gradient in float32, TF32 off."""
    ours, theirs = layers
    output, expected = ours(x), theirs(x)
    assert output.shape == (*x.shape[:2], x.shape[2] - 2, x.shape[3] - 2)
    assert relative_difference(output, expected) < 1e-6
    grad = torch.randn_like(output)
    grad_x, grad_weight = torch.autograd.grad(output, (x, ours.weight), grad)
    expected_x, expected_weight = torch.autograd.grad(expected, (x, theirs.weight), grad)
    assert relative_difference(grad_x, expected_x) < 1e-6
    # Millions of products in each sum: PyTorch's own rounds too, so the two differ by more than
    # ours may differ from float64.
    assert relative_difference(grad_weight, expected_weight) < 1e-4
    channels = [0, 1, x.shape[1] // 2, x.shape[1] - 1]
    exact = torch.stack([weight_gradient(x, grad, channel) for channel in channels])
    assert relative_difference(grad_weight[channels], exact) < 3e-6
