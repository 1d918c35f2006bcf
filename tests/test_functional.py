"""depthwise_conv2d's arguments: every form of each, against PyTorch's conv2d."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dwconv import depthwise_conv2d

ARGUMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "ints": {"stride": 2, "padding": 1, "dilation": 2},
    "tuples": {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
    "lists": {"stride": [1, 3], "padding": [2, 1], "dilation": [2, 1]},
    "sizes": {"stride": torch.Size([2, 2]), "padding": torch.Size([1, 1])},
    "pairs of one": {"stride": (2,), "padding": (1,), "dilation": (1,)},
    "valid": {"padding": "valid", "stride": 2},
    "same": {"padding": "same", "dilation": 2},
}
every_argument = pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)


@every_argument
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_arguments_as_conv2d(
    arguments: dict[str, Any], batched: bool, bias: bool, device: torch.device
) -> None:
    """Ints, pairs, names; with and without N; with and without bias."""
    x = torch.randn((2, 3, 13, 12)[0 if batched else 1 :], dtype=torch.float64, device=device)
    w = torch.randn(6, 1, 3, 3, dtype=torch.float64, device=device)
    b = torch.randn(6, dtype=torch.float64, device=device) if bias else None
    result = depthwise_conv2d(x, w, b, **arguments)
    torch.testing.assert_close(result, F.conv2d(x, w, b, groups=3, **arguments))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (4, 3), (1, 6), (5, 2)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_keeps_the_size(kernel: tuple[int, int], dilation: int, device: torch.device) -> None:
    """Even kernels pad one more at the bottom and the right, as PyTorch does."""
    x = torch.randn(2, 3, 9, 10, dtype=torch.float64, device=device)
    w = torch.randn(3, 1, *kernel, dtype=torch.float64, device=device)
    result = depthwise_conv2d(x, w, padding="same", dilation=dilation)
    assert result.shape == x.shape
    expected = F.conv2d(x, w, padding="same", dilation=dilation, groups=3)
    torch.testing.assert_close(result, expected)


def test_whatever_has_an_index_is_an_int(device: torch.device) -> None:
    """NumPy's integers, say; here a tensor of one."""
    x, w = torch.randn(2, 3, 9, 9, device=device), torch.randn(3, 1, 3, 3, device=device)
    two = torch.tensor(2)
    result = depthwise_conv2d(x, w, stride=two)  # type: ignore[arg-type]
    assert torch.equal(result, depthwise_conv2d(x, w, stride=2))


@pytest.mark.parametrize("multiplier", [1, 2, 5])
def test_filters_belong_to_channels_in_order(multiplier: int, device: torch.device) -> None:
    """Filter c * M + m reads channel c."""
    x = torch.arange(1.0, 4.0, device=device).view(1, 3, 1, 1)
    w = torch.arange(1.0, 3.0 * multiplier + 1, device=device).view(-1, 1, 1, 1)
    expected = [(c + 1) * (c * multiplier + m + 1) for c in range(3) for m in range(multiplier)]
    assert depthwise_conv2d(x, w).flatten().tolist() == expected


def test_a_result_by_hand(device: torch.device) -> None:
    """A cross-correlation: the filter is not flipped."""
    x = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]]], device=device)
    w = torch.tensor([[[[1.0, 10.0]]]], device=device)
    b = torch.tensor([0.5], device=device)
    assert depthwise_conv2d(x, w, b).tolist() == [[[[21.5, 32.5], [54.5, 65.5]]]]
    wide = depthwise_conv2d(x, w, b, padding=(0, 1), stride=2)
    assert wide.tolist() == [[[[10.5, 32.5]]]]


def test_unbatched_channels_last_like(device: torch.device) -> None:
    """A (C, H, W) view of a channels_last image is right too."""
    batch = torch.randn(1, 3, 9, 8, device=device).contiguous(memory_format=torch.channels_last)
    w = torch.randn(3, 1, 3, 3, device=device)
    torch.testing.assert_close(depthwise_conv2d(batch[0], w), depthwise_conv2d(batch, w)[0])
