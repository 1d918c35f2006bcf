"""Remembered calls: what an earlier call was checked for is left to the operator, which refuses
what is wrong; and no other call passes for it."""

import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import dwconv
from dwconv import arguments, functional
from dwconv._ops import Geometry

# Loosely typed: these tests pass what the types forbid.
depthwise_conv2d: Any = dwconv.depthwise_conv2d
DepthwiseConv2d: Any = dwconv.DepthwiseConv2d


@pytest.fixture(autouse=True)
def _nothing_remembered() -> Iterator[None]:
    functional._geometries.clear()
    yield
    functional._geometries.clear()


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of each full check."""
    made = []
    check = arguments.check

    def noted(*given: Any) -> Geometry:
        made.append(given)
        return check(*given)

    monkeypatch.setattr(functional, "check", noted)
    return made


@pytest.fixture
def valid(device: torch.device) -> dict[str, Any]:
    return {
        "input": torch.randn(2, 3, 9, 8, device=device),
        "weight": torch.randn(6, 1, 3, 3, device=device),
        "bias": torch.randn(6, device=device),
        "stride": (1, 1),
        "padding": 1,
        "dilation": 1,
    }


def test_repeated_calls_are_checked_once(valid: dict[str, Any], checks: list[Any]) -> None:
    """Other numbers in the tensors, gradients wanted or not; the result is right each time."""
    for wanted in (False, True, False):
        for name in ("input", "weight", "bias"):
            valid[name] = torch.randn_like(valid[name]).requires_grad_(wanted)
        expected = F.conv2d(**valid, groups=3)
        torch.testing.assert_close(depthwise_conv2d(**valid), expected, rtol=1e-5, atol=1e-5)
    assert len(checks) == 1


def test_a_layer_is_checked_once(device: torch.device, checks: list[Any]) -> None:
    """And so is another of the same geometry."""
    layers = [DepthwiseConv2d(3, 6, 3, padding=(1, 0), device=device) for _ in range(2)]
    for _ in range(2):
        for layer in layers:
            layer(torch.randn(2, 3, 9, 8, device=device))
    assert len(checks) == 1


@pytest.mark.parametrize(
    "make",
    [lambda: 3, lambda: int("300"), lambda: tuple(map(int, "12")), lambda: "".join(["sa", "me"])],
    ids=["small", "large", "pair", "same"],
)
def test_equal_numbers_are_one_call(
    make: Callable[[], Any], device: torch.device, checks: list[Any]
) -> None:
    """Though they are another object each time."""
    x, w = torch.randn(2, 3, 9, 8, device=device), torch.randn(3, 1, 3, 3, device=device)
    for _ in range(2):
        depthwise_conv2d(x, w, padding=make())
    assert len(checks) == 1


CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    **{
        f"{name}: {kind}": lambda v, n=name, c=change: {n: c(v[n])}  # type: ignore[misc]
        for name in ("input", "weight", "bias")
        for kind, change in {
            "dtype": Tensor.double,
            "integer": Tensor.int,
            "device": lambda t: t.to("meta"),
            "sparse": Tensor.to_sparse,
            "list": Tensor.tolist,
            "size": lambda t: t[:0] if t.dim() == 1 else t[:, :0],
            "rank": lambda t: t[None, None],
        }.items()
    },
    **{
        f"{name}={value!r}": lambda v, n=name, x=value: {n: x}  # type: ignore[misc]
        for name in ("stride", "padding", "dilation")
        for value in (True, 1.0, (1, True), (True, 1), (1.0, 1), [1, True], -1, None, (1, 1, 1))
    },
    "stride of numbers": lambda v: {"stride": torch.ones(2)},
    "dilation too large": lambda v: {"dilation": 6},
}


@pytest.mark.filterwarnings("ignore")  # of prototypes: sparse tensors
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_call_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], valid: dict[str, Any]
) -> None:
    """Every error is raised after the valid call too, as if there had been none."""
    changed = {**valid, **change(valid)}
    with pytest.raises((TypeError, ValueError)) as first:
        depthwise_conv2d(**changed)
    for _ in range(2):
        depthwise_conv2d(**valid)
        with pytest.raises((TypeError, ValueError)) as again:
            depthwise_conv2d(**changed)
        assert type(again.value) is type(first.value)
        assert str(again.value) == str(first.value)
        assert again.value.__context__ is None or again.value.__suppress_context__


def test_each_argument_counts(valid: dict[str, Any]) -> None:
    """No result of one call for another: geometry, sizes, dtype, bias."""
    functions = depthwise_conv2d, lambda **arguments: F.conv2d(**arguments, groups=3)
    half = {name: valid[name].half() for name in ("input", "weight", "bias")}
    changes: list[dict[str, Any]] = [
        {},
        {"stride": 2},
        {"stride": (1, 2)},
        {"padding": 0},
        {"padding": (0, 1)},
        {"padding": "same"},
        {"padding": "valid"},
        {"dilation": (2, 1)},
        {"dilation": [1, 2]},
        {"stride": torch.Size([2, 2])},
        {"bias": None},
        {"input": valid["input"][0]},
        {"input": valid["input"][..., :5]},
        {"weight": valid["weight"][..., :2]},
        half,
    ]
    for change in (*changes, *reversed(changes)):
        ours, theirs = (function(**{**valid, **change}) for function in functions)
        tolerance = 1e-2 if change is half else 1e-5
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_layer_and_the_function_are_told_apart(device: torch.device) -> None:
    """Six channels are right for the weight, and wrong for the layer that holds it."""
    layer = DepthwiseConv2d(3, 6, 3, device=device)
    x = torch.randn(2, 6, 9, 8, device=device)
    for _ in range(2):
        assert depthwise_conv2d(x, layer.weight, layer.bias, (1, 1), (0, 0), (1, 1)).dim() == 4
        with pytest.raises(ValueError, match=r"input must have the shape \(N, 3, H, W\)"):
            layer(x)


def test_a_layer_that_is_changed(device: torch.device) -> None:
    """Networks are dilated after they were made."""
    layer = DepthwiseConv2d(3, 3, 3, padding=2, device=device)
    x = torch.randn(2, 3, 9, 9, device=device)
    assert layer(x).shape[2:] == (11, 11)
    layer.dilation = (2, 2)
    assert layer(x).shape[2:] == (9, 9)
    layer.dilation = (2, True)
    with pytest.raises(TypeError, match="dilation"):
        layer(x)
    layer.half()
    with pytest.raises(TypeError, match="weight must have input's dtype"):
        layer(x)


def test_layers_that_are_alike(device: torch.device, checks: list[Any]) -> None:
    """Of the first one is remembered what the others are told by: their numbers, at a glance."""
    layers = [DepthwiseConv2d(3, 3, 3, padding=[1, 1], device=device) for _ in range(2)]
    x = torch.randn(2, 3, 9, 9, device=device)
    layers[0](x)
    before = len(checks)
    copied = pickle.loads(pickle.dumps(layers[0]))
    for layer in (*layers, copied):
        assert torch.equal(layer(x), layer(x))
    assert len(checks) == before
    assert all(
        getattr(layers[0], name) is getattr(layers[1], name)
        for name in ("stride", "padding", "dilation")
    )


def test_autocast_and_back(valid: dict[str, Any], device: torch.device) -> None:
    """What is right inside stays wrong outside."""
    valid["weight"] = valid["weight"].bfloat16()
    for _ in range(2):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            assert depthwise_conv2d(**valid).dtype == torch.bfloat16
        with pytest.raises(TypeError, match="weight must have input's dtype"):
            depthwise_conv2d(**valid)


def test_not_many_are_remembered(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, checks: list[Any]
) -> None:
    """Numbers that never return do not fill the memory, nor sizes that "same" depends on."""
    monkeypatch.setattr(functional, "GEOMETRIES_KEPT", 3)
    x = torch.randn(1, 1, 8, 1, device=device)
    for size in range(1, 9):
        w = torch.randn(1, 1, size, 1, device=device)
        for _ in range(2):
            assert depthwise_conv2d(x, w).numel() == 9 - size
            assert depthwise_conv2d(x, w, padding="same").numel() == 8
            assert depthwise_conv2d(x, w, padding=(size, 0)).numel() == 9 + size
        assert 1 <= len(functional._geometries) <= 3


def test_tensors_are_not_kept(valid: dict[str, Any]) -> None:
    depthwise_conv2d(**valid)
    assert len(functional._geometries) == 1
    tensors = [weakref.ref(valid.pop(name)) for name in ("input", "weight", "bias")]
    gc.collect()
    assert [tensor() for tensor in tensors] == [None] * 3


def test_subclasses_are_checked(valid: dict[str, Any], checks: list[Any]) -> None:
    """And fake tensors, which are one: each time, and their sizes are not remembered."""

    class Mine(Tensor):
        pass

    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(valid[name]) for name in ("input", "weight", "bias")}
        assert depthwise_conv2d(**{**valid, **fake}).shape == (2, 6, 9, 8)
    assert not functional._geometries
    for name in ("input", "weight", "bias"):
        mine = {name: valid[name].as_subclass(Mine)}
        for _ in range(2):
            assert type(depthwise_conv2d(**{**valid, **mine})) is Mine
    assert len(checks) == 7


def test_other_failures_stay_what_they_are(
    valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the arguments are right, the operator's error is the user's."""
    depthwise_conv2d(**valid)

    def fails(*arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(functional, "_compute", fails)
    with pytest.raises(torch.OutOfMemoryError, match="no memory"):
        depthwise_conv2d(**valid)


def test_symbolic_sizes_are_not_remembered(valid: dict[str, Any]) -> None:
    """One graph serves every size, before and after eager calls of the same sizes."""
    graphs: Any = CompileCounter()
    torch._dynamo.reset()
    compiled: Any = torch.compile(depthwise_conv2d, fullgraph=True, backend=graphs, dynamic=True)
    for i, size in enumerate((9, 10, 12)):
        valid["input"] = torch.randn(2, 3, size, size + 3, device=valid["weight"].device)
        result = compiled(**valid)
        assert len(functional._geometries) == min(i, 1)  # of the eager calls below
        torch.testing.assert_close(result, depthwise_conv2d(**valid))
    assert graphs.frame_count == 1
