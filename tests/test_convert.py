"""`dwconv.convert` and `dwconv.restore`: the same model, the same numbers, other kernels."""

import copy
import io
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dwconv


def depthwise(channels: int = 8, **arguments: Any) -> nn.Conv2d:
    arguments = {"kernel_size": 3, "padding": 1, **arguments}
    return nn.Conv2d(channels, arguments.pop("out", channels), groups=channels, **arguments)


def model() -> nn.Sequential:
    """Three depthwise layers, one of which appears twice and one within another module."""
    shared = depthwise()
    inner = nn.Sequential(OrderedDict(dw=depthwise(stride=2), pw=nn.Conv2d(8, 8, 1)))
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 3),
            first=shared,
            norm=nn.BatchNorm2d(8),
            again=shared,
            block=inner,
            last=depthwise(out=16, kernel_size=(3, 5), padding="same", bias=False),
        )
    )


DEPTHWISE = ["first", "block.dw", "last"]


def names(report: dwconv.Report) -> list[str]:
    return [layer.name for layer in report.swapped]


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, input gradient and parameter gradients of one step."""
    x = x.detach().requires_grad_()
    y = module(x)
    y.float().square().sum().backward()
    found = [y.detach(), x.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    return [t for t in found if t is not None]


def test_depthwise_layers_are_swapped_in_place(device: torch.device) -> None:
    net = model().to(device)
    layers = {name: net.get_submodule(name) for name in DEPTHWISE}
    parameters = dict(net.named_parameters())
    state = {key: value.clone() for key, value in net.state_dict().items()}
    x = torch.randn(2, 3, 17, 19, device=device)
    net.eval()
    expected = gradients(net, x)

    report = dwconv.convert(net)

    assert names(report) == DEPTHWISE
    assert not report.skipped
    for name, layer in layers.items():
        assert net.get_submodule(name) is layer
        assert isinstance(layer, dwconv.DepthwiseConv2d)
    assert net.get_submodule("again") is layers["first"]
    assert all(parameters[name] is p for name, p in net.named_parameters())
    assert list(net.state_dict()) == list(state)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key])
    for ours, theirs in zip(gradients(net, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_everything_in_the_object_stays() -> None:
    layer = depthwise().eval()
    calls: list[str] = []
    layer.register_forward_pre_hook(lambda *_: calls.append("pre"))
    layer.register_forward_hook(lambda *_: calls.append("forward"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    vars(layer)["tag"] = "mine"
    before = dict(vars(layer))
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    net = nn.Sequential(layer)
    assert names(dwconv.convert(net)) == ["0"]
    assert vars(layer) == before
    assert not layer.training
    weight = layer.weight.detach().clone()
    net(torch.randn(1, 8, 5, 5, requires_grad=True)).sum().backward()
    assert calls == ["pre", "forward", "backward"]
    optimizer.step()
    assert not torch.equal(layer.weight, weight)


@pytest.mark.parametrize(
    "layer",
    [
        depthwise(5, kernel_size=(1, 4), padding=(0, 2)),
        depthwise(6, stride=(2, 1), dilation=2, padding=3),
        depthwise(6, out=12, kernel_size=4, padding="same", dilation=(1, 2)),
        depthwise(6, padding="valid", bias=False),
        depthwise(6, padding=(2, 1), padding_mode="reflect"),
        depthwise(6, padding="same", padding_mode="circular", kernel_size=(4, 3)),
        depthwise(6, padding=2, padding_mode="replicate", stride=3),
    ],
    ids=str,
)
def test_layers_compute_what_they_did(layer: nn.Conv2d, device: torch.device) -> None:
    layer = copy.deepcopy(layer).to(device)
    x = torch.randn(2, layer.in_channels, 13, 11, device=device)
    expected = gradients(layer, x)
    assert names(dwconv.convert(layer)) == [""]
    for ours, theirs in zip(gradients(layer, x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("converted_first", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.to(memory_format=torch.channels_last),
        lambda net: net.bfloat16(),
        lambda net: net.double(),
    ],
    ids=["channels_last", "bfloat16", "double"],
)
def test_before_and_after_changes_of_the_model(
    converted_first: bool, change: Callable[[nn.Module], nn.Module], device: torch.device
) -> None:
    torch.manual_seed(0)
    net = model().to(device).eval()
    stock = change(copy.deepcopy(net))
    if converted_first:
        dwconv.convert(net)
    change(net)
    if not converted_first:
        dwconv.convert(net)
    x = torch.randn(2, 3, 9, 9, device=device, dtype=next(net.parameters()).dtype)
    if next(net.parameters()).is_contiguous(memory_format=torch.channels_last):
        x = x.to(memory_format=torch.channels_last)
    ours, theirs = net(x), stock(x)
    assert ours.stride() == theirs.stride()
    tolerance = 0.05 if x.dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_checkpoints_move_both_ways() -> None:
    stock, converted = model(), model()
    dwconv.convert(converted)
    x = torch.randn(1, 3, 9, 9)
    for source, target in ((stock, converted), (converted, stock)):
        for parameter in source.parameters():
            nn.init.normal_(parameter)
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file))
        torch.testing.assert_close(target.eval()(x), source.eval()(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_restore_undoes_it(copied: Callable[[nn.Module], nn.Module]) -> None:
    net = model()
    net.add_module("ours", dwconv.DepthwiseConv2d(16, 16, 3))
    types = [type(module) for module in net.modules()]
    contents = [dict(vars(module)) for module in net.modules()]
    dwconv.convert(net)
    copy_of_it = copied(net)
    assert dwconv.restore(net) == DEPTHWISE
    assert [type(module) for module in net.modules()] == types
    assert [dict(vars(module)) for module in net.modules()] == contents
    assert dwconv.restore(net) == []
    assert dwconv.restore(copy_of_it) == DEPTHWISE
    assert [type(module) for module in copy_of_it.modules()] == types


def test_to_convert_twice_changes_nothing() -> None:
    net = model()
    dwconv.convert(net)
    types = [type(module) for module in net.modules()]
    report = dwconv.convert(net)
    assert not report.swapped
    assert not report.skipped
    assert [type(module) for module in net.modules()] == types


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        (["first"], ["first"]),
        (["again"], ["first"]),
        (("block",), ["block.dw"]),
        ({"block.pw"}, []),
        ([""], DEPTHWISE),
        (lambda name, layer: layer.bias is None, ["last"]),
        (lambda name, layer: name.startswith("b"), ["block.dw"]),
    ],
)
def test_what_skip_says_is_left_alone(skip: Any, left: list[str]) -> None:
    net = model()
    report = dwconv.convert(net, skip=skip)
    assert [layer.name for layer in report.skipped] == left
    assert names(report) == [name for name in DEPTHWISE if name not in left]
    assert all(type(net.get_submodule(name)) is nn.Conv2d for name in left)


class Subclass(nn.Conv2d):
    pass


quantised: Any = torch.ao.nn.quantized.Conv2d
trace: Any = torch.jit.trace


def with_own_forward() -> nn.Conv2d:
    layer = depthwise()
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def with_weight_that_is_no_parameter() -> nn.Module:
    layer = depthwise()
    del layer._parameters["weight"]
    vars(layer)["weight"] = torch.ones(8, 1, 3, 3)
    return layer


def prepared_for_quantisation() -> nn.Conv2d:
    layer = depthwise()
    vars(layer)["qconfig"] = torch.ao.quantization.default_qconfig
    return layer


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: parametrizations.weight_norm(depthwise()), "is parametrized: its weight is"),
        (lambda: nn.LazyConv2d(8, 3, groups=8), "has no parameters yet: call the model once"),
        (lambda: Subclass(8, 8, 3, groups=8), "is a Subclass, a subclass of nn.Conv2d"),
        (lambda: nn.Conv1d(8, 8, 3, groups=8), "is a Conv1d"),
        (lambda: nn.Conv3d(8, 8, 3, groups=8), "is a Conv3d"),
        (lambda: nn.ConvTranspose2d(8, 8, 3, groups=8), "is a ConvTranspose2d"),
        (lambda: nn.Conv2d(1, 8, 3), "has one input channel in one group"),
        (lambda: depthwise(dtype=torch.complex64), "has a weight of torch.complex64"),
        (lambda: quantised(8, 8, 3, groups=8), "is quantised"),
        (prepared_for_quantisation, "is quantised, or about to be"),
        (with_own_forward, "has a forward of its own"),
        (with_weight_that_is_no_parameter, "has no parameter named weight"),
    ],
)
def test_layers_that_are_refused(make: Callable[[], nn.Module], reason: str) -> None:
    layer = make()
    kind = type(layer)
    report = dwconv.convert(nn.Sequential(layer))
    assert not report.swapped
    assert [skipped.name for skipped in report.skipped] == ["0"]
    assert report.skipped[0].reason.startswith(reason)
    assert type(layer) is kind


def test_other_layers_are_not_mentioned() -> None:
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Linear(3, 3))
    assert dwconv.convert(net) == dwconv.Report((), ())


def test_a_lazy_layer_is_swapped_once_it_has_parameters() -> None:
    net = nn.Sequential(nn.LazyConv2d(8, 3, groups=8))
    assert not dwconv.convert(net).swapped
    net(torch.randn(1, 8, 5, 5))
    assert names(dwconv.convert(net)) == ["0"]


def test_the_report_is_a_table() -> None:
    net = nn.Sequential(
        OrderedDict(
            a=depthwise(32),
            much_longer=depthwise(8, out=16, kernel_size=(3, 5), stride=2, padding="valid"),
            mode=depthwise(8, padding_mode="reflect", dilation=(1, 2)),
            subclass=Subclass(8, 8, 3, groups=8),
        )
    )
    report = dwconv.convert(net)
    assert str(report) == repr(report)
    assert str(report) == "\n".join(
        [
            "dwconv: 3 layers swapped, 1 skipped",
            "  swapped      problem",
            "  a            C32 k3x3 s1 p1x1 d1",
            "  much_longer  C8 M2 k3x5 s2 pvalid d1",
            "  mode         C8 k3x3 s1 p1x1 d1x2 reflect",
            "  skipped      why",
            "  subclass     is a Subclass, a subclass of nn.Conv2d that may compute something else",
        ]
    )
    assert str(dwconv.convert(nn.Sequential(depthwise(4)))).startswith("dwconv: 1 layer swapped")
    assert str(dwconv.convert(nn.ReLU())) == "dwconv: 0 layers swapped, 0 skipped"


@pytest.fixture
def same_padded(monkeypatch: pytest.MonkeyPatch) -> type[nn.Conv2d]:
    """A class that has the name of timm's and computes what timm's does."""

    class Conv2dSame(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            around: list[int] = []
            for axis in (1, 0):
                size, stride = input.shape[2 + axis], self.stride[axis]
                reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
                total = max((-(-size // stride) - 1) * stride + reach - size, 0)
                around += [total // 2, total - total // 2]
            padded = F.pad(input, around)
            return F.conv2d(
                padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
            )

    home = ModuleType("timm.layers.conv2d_same")
    home.Conv2dSame = Conv2dSame  # type: ignore[attr-defined]
    Conv2dSame.__module__, Conv2dSame.__qualname__ = home.__name__, "Conv2dSame"
    for name in ("timm", "timm.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, home.__name__, home)
    return Conv2dSame


@pytest.mark.parametrize("size", [(14, 14), (15, 14), (9, 12), (3, 3)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), ((2, 3), 1), (1, 2)])
def test_same_padding_of_timm(
    same_padded: type[nn.Conv2d],
    size: tuple[int, int],
    stride: Any,
    dilation: int,
    device: torch.device,
) -> None:
    layer = same_padded(6, 6, (3, 4), stride, 0, dilation, groups=6).to(device)
    net, x = nn.Sequential(layer), torch.randn(2, 6, *size, device=device)
    expected = gradients(net, x)
    report = dwconv.convert(net)
    assert "psame" in report.swapped[0].problem
    for _ in range(2):  # the second time the geometry is remembered
        for ours, theirs in zip(gradients(net, x), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert dwconv.restore(net) == ["0"]
    assert type(layer) is same_padded


def test_four_paddings_are_for_no_caller() -> None:
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 3, 3)
    from dwconv.arguments import Around
    from dwconv.functional import convolve

    convolve(x, weight, None, 1, Around(1, 2, 1, 2), 1, None)
    with pytest.raises(ValueError, match="padding must be an int or a pair"):
        dwconv.depthwise_conv2d(x, weight, padding=(1, 2, 1, 2))


@pytest.mark.parametrize("function", [dwconv.convert, dwconv.restore])
@pytest.mark.parametrize("given", [None, torch.ones(3), nn.Conv2d])
def test_what_is_no_model_is_refused(function: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be an nn\.Module"):
        function(given)


def test_a_scripted_model_is_refused() -> None:
    with pytest.raises(TypeError, match="model must be an eager"):
        dwconv.convert(trace(depthwise(), torch.randn(1, 8, 5, 5)))


@pytest.mark.parametrize(
    ("skip", "error", "sentence"),
    [
        ("first", TypeError, "skip must be names of modules or a function, got 'first'"),
        (3, TypeError, "skip must be names of modules or a function, got 3"),
        ([3], TypeError, "skip must hold names of modules, got 3"),
        (["nowhere"], ValueError, "skip names 'nowhere', which the model does not have"),
    ],
)
def test_a_wrong_skip_is_refused(skip: Any, error: type[Exception], sentence: str) -> None:
    net = model()
    with pytest.raises(error, match=sentence):
        dwconv.convert(net, skip=skip)
    assert not any(isinstance(module, dwconv.DepthwiseConv2d) for module in net.modules())
