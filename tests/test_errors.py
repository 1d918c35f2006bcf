"""Every invalid call raises ValueError or TypeError with a sentence, and the next call is right."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dwconv

# Loosely typed: these tests pass what the types forbid.
depthwise_conv2d: Any = dwconv.depthwise_conv2d
DepthwiseConv2d: Any = dwconv.DepthwiseConv2d

# From a call's valid arguments to those that replace them.
Change = Callable[[dict[str, Any]], dict[str, Any]]


class Invalid(NamedTuple):
    """An invalid call, the error it must raise and what the message must contain."""

    change: Change
    error: type[Exception]
    says: tuple[str, ...]


def tensor_changed(name: str, change: Callable[[Tensor], Any]) -> Change:
    return lambda valid: {name: change(valid[name])}


def wrong_tensors(name: str) -> dict[str, Invalid]:
    """What can be wrong with any of the three tensors."""
    not_tensors: dict[str, Callable[[Tensor], Any]] = {
        "list": Tensor.tolist,
        "ndarray": lambda t: t.cpu().numpy(),
        "float": lambda t: 1.5,
    }
    dtypes = (
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex32,
        torch.float8_e5m2,
    )
    calls = {
        f"{name}: {given}": (change, f"{name} must be a Tensor", given)
        for given, change in not_tensors.items()
    }
    for dtype in dtypes:
        allowed = f"{name} must be float64, float32, float16 or bfloat16"
        calls[f"{name}: {dtype}"] = (partial(Tensor.to, dtype=dtype), allowed, str(dtype))
    dense = f"{name} must be a dense tensor"
    calls[f"{name}: sparse"] = (Tensor.to_sparse, dense, "torch.sparse_coo")
    return {
        key: Invalid(tensor_changed(name, change), TypeError, tuple(says))
        for key, (change, *says) in calls.items()
    }


def quantised(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(tensor))


def number(name: str, value: Any, error: type[Exception], *says: str) -> tuple[str, Invalid]:
    """An int or pair argument; the message repeats the value."""
    says = (name, *(says or ("an int or a pair of ints",)), repr(value))
    return f"{name}={value!r}", Invalid(lambda valid: {name: value}, error, says)


def wrong_numbers(name: str, least: int) -> dict[str, Invalid]:
    """What can be wrong with any int or pair."""
    bounds = f"at least {least} and less than 2**31"
    return dict(
        [
            number(name, True, TypeError),
            number(name, (1, False), TypeError),
            number(name, 1.0, TypeError),
            number(name, (1, 1.5), TypeError),
            number(name, None, TypeError),
            number(name, {1: 2}, TypeError),
            number(name, (1, 1, 1), ValueError),
            number(name, [], ValueError),
            number(name, least - 1, ValueError, bounds),
            number(name, -3, ValueError, bounds),
            number(name, (1, -1), ValueError, bounds),
            number(name, (least - 1, 1), ValueError, bounds),
            number(name, 2**31, ValueError, bounds),
            number(name, (1, 2**64), ValueError, bounds),
        ]
    )


CHANNELS_3 = (2, 3, 9, 8)  # the valid input's size; the weight's is (6, 1, 3, 3)

FUNCTION: dict[str, Invalid] = {
    **wrong_tensors("input"),
    **wrong_tensors("weight"),
    **wrong_tensors("bias"),
    **wrong_numbers("stride", 1),
    **wrong_numbers("padding", 0),
    **wrong_numbers("dilation", 1),
    **dict([number("stride", "same", TypeError), number("dilation", "1", TypeError)]),
    "input: None": Invalid(lambda v: {"input": None}, TypeError, ("input must be a Tensor",)),
    "weight: None": Invalid(lambda v: {"weight": None}, TypeError, ("weight must be a Tensor",)),
    "input: quantised": Invalid(
        tensor_changed("input", quantised), TypeError, ("input must be float64", "torch.qint8")
    ),
    "weight: quantised": Invalid(
        tensor_changed("weight", quantised), TypeError, ("weight must be float64", "torch.qint8")
    ),
    "input: nested": Invalid(
        tensor_changed("input", nested), TypeError, ("input must be a dense tensor", "nested")
    ),
    "input: CSR": Invalid(
        tensor_changed("input", lambda t: t[0, 0].to_sparse_csr()),
        TypeError,
        ("input must be a dense tensor", "torch.sparse_csr"),
    ),
    "input: rank 2": Invalid(
        tensor_changed("input", lambda t: t[0, 0]),
        ValueError,
        ("input must have the shape (N, C, H, W) or (C, H, W)", "(9, 8)"),
    ),
    "input: rank 5": Invalid(
        tensor_changed("input", lambda t: t[None]), ValueError, ("input", "(1, 2, 3, 9, 8)")
    ),
    "input: no channels": Invalid(
        tensor_changed("input", lambda t: t[:, :0]), ValueError, ("input", "(2, 0, 9, 8)")
    ),
    "input: no rows": Invalid(
        tensor_changed("input", lambda t: t[:, :, :0]), ValueError, ("input", "(2, 3, 0, 8)")
    ),
    "input: no columns": Invalid(
        tensor_changed("input", lambda t: t[..., :0]), ValueError, ("input", "(2, 3, 9, 0)")
    ),
    "weight: rank 3": Invalid(
        tensor_changed("weight", lambda t: t[0]),
        ValueError,
        ("weight", "(M*C, 1, kh, kw)", "3, 3)"),
    ),
    "weight: of a full convolution": Invalid(
        tensor_changed("weight", lambda t: t.expand(6, 3, 3, 3)),
        ValueError,
        ("weight must have the shape (M*C, 1, kh, kw)", "(6, 3, 3, 3)"),
    ),
    "weight: no taps": Invalid(
        tensor_changed("weight", lambda t: t[:, :, :0]), ValueError, ("weight", "(6, 1, 0, 3)")
    ),
    "weight: no filters": Invalid(
        tensor_changed("weight", lambda t: t[:0]), ValueError, ("weight", "(0, 1, 3, 3)")
    ),
    "weight: filters do not divide": Invalid(
        tensor_changed("weight", lambda t: t[:4]),
        ValueError,
        ("weight must have a multiple of input's 3 channels", "(4, 1, 3, 3)"),
    ),
    "weight: fewer filters than channels": Invalid(
        tensor_changed("weight", lambda t: t[:1]), ValueError, ("weight", "3 channels")
    ),
    "weight: another dtype": Invalid(
        tensor_changed("weight", Tensor.half),
        TypeError,
        ("weight must have input's dtype torch.float32", "torch.float16"),
    ),
    "weight: another device": Invalid(
        tensor_changed("weight", lambda t: t.to("meta")),
        ValueError,
        ("weight must be on input's device", "meta"),
    ),
    "bias: rank 2": Invalid(
        tensor_changed("bias", lambda t: t[None]), ValueError, ("bias", "(M*C,)", "(1, 6)")
    ),
    "bias: rank 0": Invalid(tensor_changed("bias", lambda t: t[0]), ValueError, ("bias", "()")),
    "bias: of another size": Invalid(
        tensor_changed("bias", lambda t: t[:3]),
        ValueError,
        ("bias must have the shape (6,)", "(3,)"),
    ),
    "bias: another dtype": Invalid(
        tensor_changed("bias", Tensor.double),
        TypeError,
        ("bias must have input's dtype torch.float32", "torch.float64"),
    ),
    "bias: another device": Invalid(
        tensor_changed("bias", lambda t: t.to("meta")), ValueError, ("bias must be on", "meta")
    ),
    "padding: unknown name": Invalid(
        lambda v: {"padding": "full"}, ValueError, ("padding", "'same' or 'valid'", "'full'")
    ),
    "padding: bytes": Invalid(lambda v: {"padding": b"same"}, TypeError, ("padding", "b'same'")),
    "padding: same with stride": Invalid(
        lambda v: {"padding": "same", "stride": (1, 2)},
        ValueError,
        ("padding='same' needs stride 1", "(1, 2)"),
    ),
    "weight: taller than the input": Invalid(
        tensor_changed("weight", lambda t: t.new_zeros(6, 1, 10, 3)),
        ValueError,
        ("weight must not span more than the padded input", "10 x 3", "9 x 8"),
    ),
    "weight: wider than the padded input": Invalid(
        lambda v: {"weight": v["weight"].new_zeros(6, 1, 3, 11), "padding": 1},
        ValueError,
        ("weight must not span", "3 x 11", "11 x 10"),
    ),
    "weight: wider with dilation": Invalid(
        lambda v: {"dilation": (1, 4)}, ValueError, ("weight must not span", "3 x 9", "dilation")
    ),
}


@pytest.fixture
def valid(device: torch.device) -> dict[str, Any]:
    return {
        "input": torch.randn(CHANNELS_3, device=device),
        "weight": torch.randn(6, 1, 3, 3, device=device),
        "bias": torch.randn(6, device=device),
    }


def assert_still_right(valid: dict[str, Any]) -> None:
    exact = {name: tensor.double() for name, tensor in valid.items()}
    expected = F.conv2d(**exact, groups=3)
    result = depthwise_conv2d(**valid)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)


def assert_raises(invalid: Invalid, call: Callable[[], Any]) -> None:
    """Exactly that exception, with a message of one line that contains all it must say."""
    with pytest.raises(invalid.error) as caught:
        call()
    assert type(caught.value) is invalid.error
    message = str(caught.value)
    assert "\n" not in message
    for part in invalid.says:
        assert part in message


@pytest.mark.filterwarnings("ignore")  # of prototypes: sparse CSR, nested, quantised, complex half
@pytest.mark.parametrize("invalid", FUNCTION.values(), ids=FUNCTION)
def test_invalid_call(invalid: Invalid, valid: dict[str, Any]) -> None:
    """The function names the argument, what was given and what is allowed."""
    assert_raises(invalid, lambda: depthwise_conv2d(**{**valid, **invalid.change(valid)}))
    assert_still_right(valid)


def test_more_taps_than_the_kernels_count() -> None:
    """Kernels count the taps of a filter in 32 bits."""
    x, weight = (torch.empty(1, 1, size, size, device="meta") for size in (60000, 50000))
    invalid = Invalid(lambda v: v, ValueError, ("weight", "2**31", "50000 x 50000"))
    assert_raises(invalid, lambda: depthwise_conv2d(x, weight))


def test_opaque_layout() -> None:
    """oneDNN's tensors exist on the CPU only."""
    x = torch.randn(2, 3, 9, 8).to_mkldnn()
    invalid = Invalid(lambda v: v, TypeError, ("input must be a dense tensor", "torch._mkldnn"))
    assert_raises(invalid, lambda: depthwise_conv2d(x, torch.randn(3, 1, 3, 3)))
    layer = DepthwiseConv2d(3, 3, 3, padding=1, padding_mode="reflect")
    assert_raises(invalid, lambda: layer(x))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_tensors_on_cpu_and_gpu(name: str) -> None:
    """The commonest mistake of all."""
    tensors = {"input": torch.randn(CHANNELS_3), "weight": torch.randn(6, 1, 3, 3)}
    tensors = {key: t.cuda() for key, t in {**tensors, "bias": torch.randn(6)}.items()}
    with pytest.raises(ValueError, match="must be on input's device"):
        depthwise_conv2d(**{**tensors, name: tensors[name].cpu()})
    assert_still_right(tensors)


LAYER: dict[str, Invalid] = {
    **{
        f"{name}={value!r}": Invalid(lambda v, n=name, x=value: {n: x}, error, (name, repr(value)))  # type: ignore[misc]
        for name in ("in_channels", "out_channels")
        for value, error in (
            (0, ValueError),
            (-2, ValueError),
            (2.0, TypeError),
            ("2", TypeError),
            (True, TypeError),
            (None, TypeError),
        )
    },
    "out_channels not a multiple": Invalid(
        lambda v: {"out_channels": 4},
        ValueError,
        ("out_channels must be a multiple of in_channels", "4", "in_channels=3"),
    ),
    "out_channels too few": Invalid(lambda v: {"out_channels": 1}, ValueError, ("out_channels",)),
    **wrong_numbers("kernel_size", 1),
    **wrong_numbers("stride", 1),
    **wrong_numbers("padding", 0),
    **wrong_numbers("dilation", 1),
    "padding: unknown name": Invalid(
        lambda v: {"padding": "full"}, ValueError, ("padding", "'full'")
    ),
    "padding: same with stride": Invalid(
        lambda v: {"padding": "same", "stride": 2}, ValueError, ("padding='same'", "(2, 2)")
    ),
    "padding_mode": Invalid(
        lambda v: {"padding_mode": "mirror"}, ValueError, ("padding_mode", "reflect", "'mirror'")
    ),
    **{
        f"dtype={dtype}": Invalid(
            lambda v, d=dtype: {"dtype": d},  # type: ignore[misc]
            TypeError,
            ("dtype must be float64, float32, float16 or bfloat16", str(dtype)),
        )
        for dtype in (torch.int32, torch.complex64, torch.bool, torch.float8_e5m2, "float32")
    },
}


@pytest.mark.parametrize("invalid", LAYER.values(), ids=LAYER)
def test_invalid_layer(invalid: Invalid) -> None:
    """The constructor checks as the function does: a bad layer is never made."""
    valid = {"in_channels": 3, "out_channels": 6, "kernel_size": 3}
    assert_raises(invalid, lambda: DepthwiseConv2d(**{**valid, **invalid.change(valid)}))
    assert DepthwiseConv2d(**valid)(torch.randn(CHANNELS_3)).shape == (2, 6, 7, 6)


LAYER_INPUTS: dict[str, Invalid] = {
    **wrong_tensors("input"),
    "another channel count": Invalid(
        tensor_changed("input", lambda t: t[:, :2]),
        ValueError,
        ("input must have the shape (N, 3, H, W) or (3, H, W)", "(2, 2, 9, 8)"),
    ),
    "a multiple of the channels": Invalid(
        tensor_changed("input", lambda t: torch.cat([t, t], 1)), ValueError, ("(2, 6, 9, 8)",)
    ),
    "rank 2": Invalid(tensor_changed("input", lambda t: t[0, 0]), ValueError, ("(9, 8)",)),
    "no rows": Invalid(
        tensor_changed("input", lambda t: t[:, :, :0]), ValueError, ("(2, 3, 0, 8)",)
    ),
    "another dtype": Invalid(
        tensor_changed("input", Tensor.half), TypeError, ("weight", "torch.float16")
    ),
    "another device": Invalid(
        tensor_changed("input", lambda t: t.to("meta")), ValueError, ("weight", "meta")
    ),
}


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("invalid", LAYER_INPUTS.values(), ids=LAYER_INPUTS)
def test_invalid_layer_input(invalid: Invalid, padding_mode: str, device: torch.device) -> None:
    """In every padding mode the same sentence: none comes from F.pad."""
    layer = DepthwiseConv2d(3, 6, 3, padding=1, padding_mode=padding_mode, device=device)
    x = torch.randn(CHANNELS_3, device=device)
    assert_raises(invalid, lambda: layer(**invalid.change({"input": x})))
    assert layer(x).shape == (2, 6, 9, 8)


@pytest.mark.parametrize(
    ("padding_mode", "padding", "fits"),
    [("reflect", (0, 3), (9, 4)), ("reflect", (4, 0), (5, 9)), ("circular", (0, 4), (9, 4))],
)
def test_padding_larger_than_the_input(
    padding_mode: str, padding: tuple[int, int], fits: tuple[int, int], device: torch.device
) -> None:
    """reflect needs one element more than the padding, circular as many."""
    layer = DepthwiseConv2d(3, 3, 3, padding=padding, padding_mode=padding_mode, device=device)
    h, w = fits
    assert layer(torch.randn(2, 3, h, w, device=device)).dim() == 4
    small = torch.randn(2, 3, h - (padding[0] > 0), w - (padding[1] > 0), device=device)
    with pytest.raises(ValueError, match=rf"padding must not exceed .*'{padding_mode}'"):
        layer(small)
