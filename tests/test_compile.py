"""torch.compile: one graph, no more of them than nn.Conv2d's, and in it the operators alone."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from derivatives import conv2d, depthwise_conv2d, every_layout, make
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func  # type: ignore[attr-defined]
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import dwconv

# Loosely typed: their annotations are tighter than what they take.
torch_compile: Callable[..., Any] = torch.compile
jvp: Callable[..., Any] = torch.func.jvp


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


class Graphs:
    """A backend that runs its graphs as they are: how many it was given, and our operators in them
    once autograd has been traced."""

    def __init__(self) -> None:
        self.count = 0
        self.operators: list[str] = []
        compiler: Any = self._keep
        self._trace: Any = aot_autograd(fw_compiler=compiler, bw_compiler=compiler)

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.count += 1
        return self._trace(graph, inputs)

    def _keep(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        targets = [str(node.target) for node in graph.graph.nodes]
        self.operators += [t.split(".")[1] for t in targets if t.startswith("dwconv.")]
        return make_boxed_func(graph.forward)


@pytest.fixture
def graphs() -> Graphs:
    return Graphs()


def gradients(function: Callable[..., Tensor], *given: Any) -> list[Tensor]:
    """The result, and the gradients of whatever wants one."""
    result = function(*given)
    leaves = [tensor for tensor in given if tensor.requires_grad]
    if isinstance(function, nn.Module):
        leaves += function.parameters()
    arriving = torch.linspace(-1, 1, result.numel(), dtype=result.dtype, device=result.device)
    return [result.detach(), *torch.autograd.grad(result, leaves, arriving.view(result.shape))]


def check_same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """In numbers, and in how they lie in memory."""
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
        assert mine.stride() == other.stride()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@every_layout
def test_one_graph(
    dynamic: bool, memory_format: torch.memory_format, device: torch.device, graphs: Graphs
) -> None:
    """Forward and backward, also when the size changes: results and their strides are eager's."""

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return depthwise_conv2d(torch.relu(x), w, b, stride=2, padding=1) * 2

    compiled = torch_compile(function, fullgraph=True, backend=graphs, dynamic=dynamic)
    _, w, b = make(device)
    for size in (6, 6, 9) if dynamic else (6,):
        x = torch.randn(2, 2, size, size + 1, dtype=w.dtype, device=device)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        check_same(gradients(compiled, x, w, b), gradients(function, x, w, b))
    assert graphs.count == 1
    assert sorted(graphs.operators) == ["backward_input", "backward_weight", "forward"]


MODES: dict[str, Callable[[], Any]] = {
    "with gradients": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_a_compiled_forward_is_one_operator(
    mode: Callable[[], Any], device: torch.device, graphs: Graphs
) -> None:
    layer = dwconv.DepthwiseConv2d(4, 8, 3, padding=1, device=device).requires_grad_(False)
    compiled = torch_compile(layer, fullgraph=True, backend=graphs)
    x = torch.randn(2, 4, 9, 8, device=device)
    with mode():
        torch.testing.assert_close(compiled(x), layer(x))
    assert graphs.operators == ["forward"]


def network(ours: bool, device: torch.device) -> nn.Sequential:
    """Depthwise layers among others, of ours or of PyTorch's; the same parameters."""

    def depthwise(channels: int, out: int, kernel: Any, **named: Any) -> nn.Module:
        if ours:
            return dwconv.DepthwiseConv2d(channels, out, kernel, **named)
        return nn.Conv2d(channels, out, kernel, groups=channels, **named)

    torch.manual_seed(0)
    return nn.Sequential(
        depthwise(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        depthwise(8, 8, (5, 3), stride=2, padding=(2, 1), bias=False),
        depthwise(8, 8, 3, padding="same", dilation=2),
    ).to(device)


SIZES = [(2, 12, 13), (3, 12, 13), (5, 12, 13), (5, 17, 14), (4, 20, 18), (1, 20, 18), (7, 9, 30)]


@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
@every_layout
def test_no_more_graphs_than_conv2d(
    dynamic: bool | None, memory_format: torch.memory_format, device: torch.device
) -> None:
    """Under changing batch and image sizes, training."""
    results, counts = [], []
    for ours in (True, False):
        torch._dynamo.reset()
        graphs = Graphs()
        net = network(ours, device)
        compiled = torch_compile(net, fullgraph=True, backend=graphs, dynamic=dynamic)
        steps = []
        for n, h, w in SIZES:
            x = torch.linspace(-1, 1, n * 4 * h * w, device=device).view(n, 4, h, w)
            x = x.contiguous(memory_format=memory_format).requires_grad_()
            steps += gradients(compiled, x)
        counts.append(graphs.count)
        results.append(steps)
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
    assert counts[0] <= counts[1]


@every_layout
def test_inductor_keeps_the_layout(
    memory_format: torch.memory_format, device: torch.device
) -> None:
    """Fused neighbours on both sides; results and gradients lie in memory as eager's do."""
    layer = dwconv.DepthwiseConv2d(4, 4, 3, padding=1, device=device)

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return depthwise_conv2d(x.sin(), w, b, padding=1).cos()

    x = torch.randn(2, 4, 9, 8, device=device).contiguous(memory_format=memory_format)
    given = x.requires_grad_(), layer.weight, layer.bias
    compiled = torch_compile(function, fullgraph=True)
    check_same(gradients(compiled, *given), gradients(function, *given))


@pytest.mark.gpu
def test_cuda_graphs() -> None:
    """Compiled for the least host time: recorded once, and played again for other numbers."""
    net = network(True, torch.device("cuda"))
    compiled = torch_compile(net, mode="reduce-overhead", fullgraph=True)
    for _ in range(4):
        x = torch.randn(2, 4, 12, 13, device="cuda", requires_grad=True)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        mine = [tensor.clone() for tensor in gradients(compiled, x)]
        check_same(mine, gradients(net, x))


def test_nothing_is_warned_of(device: torch.device) -> None:
    """But what torch warns of itself, of its own layers as well."""
    heard: list[set[str]] = []
    for ours in (False, True):
        net = network(ours, device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            gradients(
                torch_compile(net, backend=Graphs()), torch.randn(2, 4, 12, 13, device=device)
            )
        heard.append({str(warning.message) for warning in caught})
    assert heard[1] <= heard[0]


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode: Any, device: torch.device, graphs: Graphs) -> None:
    """The layer's own checks are traced away."""
    layer = dwconv.DepthwiseConv2d(4, 8, 3, padding=1, padding_mode=mode, device=device)
    compiled = torch_compile(layer, fullgraph=True, backend=graphs, dynamic=True)
    for size in (8, 9, 11):
        x = torch.randn(2, 4, size, size + 2, device=device)
        check_same(gradients(compiled, x), gradients(layer, x))
    assert graphs.count == 1


def test_autocast(device: torch.device, graphs: Graphs) -> None:
    """The casts are traced too, and the gradients have the dtypes of what they are of."""
    tensors = make(device, dtype=torch.float32)
    compiled = torch_compile(depthwise_conv2d, fullgraph=True, backend=graphs)
    results = []
    for function in (compiled, depthwise_conv2d):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            results.append(gradients(function, *tensors))
    assert results[0][0].dtype == torch.bfloat16
    check_same(*results)


def test_a_model_is_converted_before_and_after(device: torch.device, graphs: Graphs) -> None:
    """What was compiled follows the layer's class, there and back."""
    net = network(False, device)
    x = torch.randn(2, 4, 12, 13, device=device)
    expected = gradients(net, x)
    compiled = torch_compile(net, fullgraph=True, backend=graphs)

    check_same(gradients(compiled, x), expected)
    assert not graphs.operators
    dwconv.convert(net)
    check_same(gradients(compiled, x), expected)
    assert graphs.operators.count("forward") == 3
    graphs.operators.clear()
    dwconv.restore(net)
    check_same(gradients(compiled, x), expected)
    assert not graphs.operators
    dwconv.convert(net)
    torch._dynamo.reset()
    check_same(gradients(torch_compile(net, fullgraph=True, backend=graphs), x), expected)
    assert graphs.operators.count("forward") == 3


def test_checkpointing(device: torch.device, graphs: Graphs) -> None:
    """The forward pass twice, the second time in the backward."""
    layer = dwconv.DepthwiseConv2d(4, 8, 3, padding=1, device=device)
    x = torch.randn(2, 4, 9, 8, device=device, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        result: Tensor = checkpoint(lambda x: layer(x.sin()).cos(), x, use_reentrant=False)
        return result

    check_same(
        gradients(torch_compile(block, fullgraph=True, backend=graphs), x), gradients(block, x)
    )
    assert graphs.operators.count("forward") == 2


def test_compiled_backward_of_an_eager_forward(device: torch.device) -> None:
    """Compiled autograd, in one graph."""
    tensors = make(device)
    expected = gradients(depthwise_conv2d, *tensors)
    with compiled_autograd._enable(torch_compile(backend="aot_eager", fullgraph=True)):
        check_same(gradients(depthwise_conv2d, *tensors), expected)


Function = Callable[..., Any]
TRANSFORMED: dict[str, Callable[[Function], Function]] = {
    "vmap": lambda f: lambda x, w: vmap(partial(f, padding=1), (0, None))(x, w[0]),
    "vmap of filters": lambda f: lambda x, w: vmap(f)(x, w),
    "grad": lambda f: lambda x, w: grad(lambda w: f(x[0], w).square().sum())(w[0]),
    "gradients of samples": lambda f: (
        lambda x, w: vmap(grad(lambda w, x: f(x, w).square().sum()), (None, 0))(w[0], x)
    ),
    "jvp": lambda f: lambda x, w: jvp(lambda w: f(x[0], w).square(), (w[0],), (w[1],))[1],
}


@pytest.mark.parametrize("wanted", [False, True], ids=["", "differentiated"])
@pytest.mark.parametrize("transformed", TRANSFORMED.values(), ids=TRANSFORMED)
def test_transformations_inside(
    transformed: Callable[[Function], Function],
    wanted: bool,
    device: torch.device,
    graphs: Graphs,
) -> None:
    """torch.func in a compiled function, and gradients of what it gives."""
    x = torch.randn(3, 2, 4, 6, 7, device=device, requires_grad=wanted)
    w = torch.randn(3, 8, 1, 3, 3, device=device, requires_grad=wanted)
    compiled = torch_compile(transformed(depthwise_conv2d), fullgraph=True, backend=graphs)
    run = gradients if wanted else lambda function, *given: [function(*given)]
    ours, theirs = run(compiled, x, w), run(transformed(conv2d), x, w)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)
    assert graphs.operators
    assert {"forward", "backward_input", "backward_weight"} >= set(graphs.operators)
