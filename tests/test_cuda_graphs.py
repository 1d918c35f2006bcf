"""CUDA graphs of whole training steps, calls on many streams at a time, and two GPUs."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from problems import LAYOUTS, PASSES, Problem, make_data, poisoned_memory, random_tensor, run_pass
from torch import Tensor, nn
from torch._dynamo.utils import counters
from twin_networks import depthwise_layers

import dwconv
from dwconv import _C

Stream: Any = torch.cuda.Stream
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float16"])

SIZE = [8, 32, 32, 32]  # of a batch
KERNELS = [(3, 1), (5, 2), (7, 1), (13, 1), (31, 1)]  # and strides


class Layers(nn.Sequential):
    """Depthwise layers alone: what other operators compute need not be the same bits again."""

    def __init__(self) -> None:
        kinds = ((kernel, stride, kernel // 2) for kernel, stride in KERNELS)
        super().__init__(*(dwconv.DepthwiseConv2d(32, 32, *kind) for kind in kinds))

    def forward(self, x: Tensor) -> Tensor:
        for layer in depthwise_layers(self):
            y = layer(x.to(layer.weight.device))
            x = x + y if x.shape == y.shape and x.device == y.device else y.relu()
        return x


def layers(layout: str, dtype: str, device: str = "cuda") -> Layers:
    made = Layers().to(device, getattr(torch, dtype))
    made.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    return made


def batch(layout: str, dtype: str, device: str = "cuda") -> Tensor:
    return random_tensor(SIZE, getattr(torch, dtype), torch.device(device), layout)


def check_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    """To the bit."""
    for ours, other in zip(found, expected, strict=True):
        assert torch.isfinite(ours).all()
        assert torch.equal(ours, other)


class Step:
    """A step of SGD, whose batch is copied to where the last one was."""

    def __init__(self, network: nn.Module, x: Tensor) -> None:
        self.network: Any = network
        self.x = x.clone().requires_grad_()
        self.optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        self.kept: list[Tensor] = []

    def forget(self) -> None:
        """What the last run left: gradients, and the graph with its nodes of that run's stream."""
        self.kept.clear()
        self.x.grad = None
        self.optimizer.zero_grad()

    def run(self) -> None:
        self.forget()
        output = self.network(self.x)
        loss = 4 * output.float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.kept = [loss, output]

    def train(self, batches: list[Tensor], run: Callable[[], None]) -> list[Tensor]:
        """Losses, outputs, gradients and parameters of each step."""
        found: list[Tensor] = []
        for x in batches:
            with torch.no_grad():
                self.x.copy_(x)
            run()
            of_parameters = (t for p in self.network.parameters() for t in (p, p.grad))
            left = [*self.kept, self.x.grad, *of_parameters]
            found += [tensor.detach().clone() for tensor in left if tensor is not None]
        return found


def captured(step: Step) -> Callable[[], None]:
    """Its graph's replay. The parameters that the warm-up has changed are as before."""
    before = copy.deepcopy(step.network.state_dict())
    side = Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step.run()
    torch.cuda.current_stream().wait_stream(side)
    step.forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    step.network.load_state_dict(before)
    return graph.replay


@every_layout
def test_layers_are_of_many_kinds(layout: str) -> None:
    """Kernels of several families; in channels_last some transpose, or add in a workspace."""
    plans, size = [], (SIZE[2], SIZE[3])
    for kernel, stride in KERNELS:
        around = kernel // 2
        problem = Problem(
            batch=SIZE[0],
            channels=SIZE[1],
            size=size,
            kernel=(kernel, kernel),
            stride=(stride, stride),
            padding=(around, around, around, around),
            bias=True,
        )
        size = (problem.output_size[2], problem.output_size[3])
        for pass_ in PASSES:
            for dtype in ("float32", "float16"):
                plans.append(_C.plan(**problem.plan_arguments(pass_, dtype, layout)))
    assert len({plan["kernel"].split("_")[0] for plan in plans}) >= 4
    if layout == "nhwc":
        assert any(plan["transposed"] for plan in plans)
        assert any(plan["workspace_bytes"] and not plan["transposed"] for plan in plans)


@pytest.mark.gpu
@every_dtype
@every_layout
def test_a_captured_step(layout: str, dtype: str) -> None:
    """Five replays with data that change are five eager steps, to the bit."""
    batches = [batch(layout, dtype) for _ in range(5)]
    network = layers(layout, dtype)
    eager, graphed = (Step(copy.deepcopy(network), batches[0]) for _ in range(2))
    expected = eager.train(batches, eager.run)
    check_equal(graphed.train(batches, captured(graphed)), expected)


@pytest.mark.gpu
@every_layout
def test_two_captured_steps(layout: str) -> None:
    """Replayed in turns, and with eager steps of a third between: none disturbs another."""
    batches = [batch(layout, "float16") for _ in range(3)]
    steps = [Step(layers(layout, "float16"), batches[0]) for _ in range(3)]
    expected = []
    for step in steps:
        alone = Step(copy.deepcopy(step.network), batches[0])
        expected.append(alone.train(batches, alone.run))
    runs = [captured(steps[0]), captured(steps[1]), steps[2].run]
    found: list[list[Tensor]] = [[], [], []]
    for x in batches:
        for mine, step, run in zip(found, steps, runs, strict=True):
            mine += step.train([x], run)
    for ours, other in zip(found, expected, strict=True):
        check_equal(ours, other)


@pytest.mark.gpu
@every_dtype
@every_layout
def test_graphed_callables(layout: str, dtype: str) -> None:
    """torch.cuda.make_graphed_callables: a graph of the forward pass and one of the backward."""
    network = layers(layout, dtype)
    eager = copy.deepcopy(network)
    sample = batch(layout, dtype).requires_grad_()
    graphed: Any = torch.cuda.make_graphed_callables(network, (sample,))
    for _ in range(3):
        x = batch(layout, dtype).requires_grad_()
        results = []
        for module in (graphed, eager):
            y = module(x)
            found = torch.autograd.grad(y.float().square().mean(), (x, *module.parameters()))
            results.append([y.detach().clone(), *(t.clone() for t in found)])
        check_equal(*results)


@pytest.mark.gpu
@pytest.mark.slow
@every_layout
def test_compiled_with_cuda_graphs(layout: str) -> None:
    """torch.compile(mode="reduce-overhead"): nothing keeps it from capturing the operators."""
    pytest.importorskip("triton")
    batches = [batch(layout, "float32") for _ in range(5)]
    network = layers(layout, "float32")
    eager, compiled = (Step(copy.deepcopy(network), batches[0]) for _ in range(2))
    expected = eager.train(batches, eager.run)
    torch._dynamo.reset()
    counters.clear()
    compiled.network = torch.compile(compiled.network, mode="reduce-overhead", fullgraph=True)
    for ours, other in zip(compiled.train(batches, compiled.run), expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-5)
    assert counters["inductor"]["cudagraph_skips"] == 0


# Its blocks claim their units, by counters that each stream has of its own, and a graph has not.
CLAIMED = Problem(
    batch=128, channels=32, size=(56, 56), stride=(2, 2), padding=(1, 1, 1, 1), bias=True
)


def test_units_are_claimed() -> None:
    assert _C.plan(**CLAIMED.plan_arguments("forward", "float32", "nchw"))["queues"] > 0


@pytest.mark.gpu
def test_layers_on_streams_of_their_own() -> None:
    """Forward and backward of each, all at a time, joined by events."""

    def trained(layer: nn.Module, x: Tensor) -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y.float().square().mean(), (x, *layer.parameters()))]

    calls = [
        partial(trained, layer, batch(layout, dtype).requires_grad_())
        for layout in LAYOUTS
        for dtype in ("float32", "float16")
        for layer in depthwise_layers(layers(layout, dtype))
    ]
    expected = [call() for call in calls]
    current = torch.cuda.current_stream()
    for _ in range(3):
        found, events = [], []
        for call in calls:
            stream = Stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                found.append(call())
                events.append(stream.record_event())
        for event in events:
            current.wait_event(event)
        for ours, other in zip(found, expected, strict=True):
            check_equal(ours, other)
        torch.cuda.synchronize()  # before memory of the streams is given back


@pytest.mark.gpu
def test_more_streams_than_have_counters() -> None:
    """At 64 of them there is no room for more: units are dealt out."""
    data = make_data(CLAIMED, torch.float32, torch.device("cuda"))
    expected = run_pass("forward", CLAIMED, data)
    streams = [Stream(priority=p) for p in (0, -1, -2) for _ in range(32)]
    assert len({stream.cuda_stream for stream in streams}) > 64
    torch.cuda.synchronize()
    for _ in range(2):
        found = []
        with poisoned_memory():
            for stream in streams:
                with torch.cuda.stream(stream):
                    found.append(run_pass("forward", CLAIMED, data))
        torch.cuda.synchronize()
        for output in found:
            assert torch.equal(output, expected)


@pytest.mark.gpu
def test_graphs_that_run_at_a_time() -> None:
    """Two replays on two streams, beside eager calls on the stream that they were captured on."""
    device = torch.device("cuda")
    datas = [make_data(CLAIMED, torch.float32, device, seed=seed) for seed in range(3)]
    expected = [run_pass("forward", CLAIMED, data) for data in datas]
    outputs: list[list[Tensor]] = [[], [], []]

    def calls(index: int) -> None:
        outputs[index] = [run_pass("forward", CLAIMED, datas[index]) for _ in range(4)]

    streams = [Stream() for _ in range(3)]
    with poisoned_memory():
        graphs = []
        for index in (0, 1):
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=streams[2]):
                calls(index)
            graphs.append(graph)
        for _ in range(5):
            for graph, stream in zip(graphs, streams, strict=False):
                with torch.cuda.stream(stream):
                    graph.replay()
            with torch.cuda.stream(streams[2]):
                calls(2)
            torch.cuda.synchronize()
            for found, truth in zip(outputs, expected, strict=True):
                check_equal(found, [truth] * 4)


@pytest.mark.gpu
@two_gpus
@every_layout
def test_two_gpus_in_one_process(layout: str) -> None:
    """The other device need not be the current one, which stays what it is. Plans and counters of
    one are not taken for the other's."""
    results = []
    network, x = layers(layout, "float16", "cpu"), batch(layout, "float16", "cpu")
    for device in ("cuda:1", "cuda:0", "cuda:1"):
        torch.cuda.set_device(0)
        step = Step(copy.deepcopy(network).to(device), x.to(device))
        found = step.train([x], step.run)
        assert {str(tensor.device) for tensor in found} == {device}
        assert torch.cuda.current_device() == 0
        results.append([tensor.cpu() for tensor in found])
    for others in results[1:]:
        check_equal(others, results[0])
    data = [make_data(CLAIMED, torch.float32, torch.device("cuda", index)) for index in (0, 1)]
    for _ in range(3):
        first, second = (run_pass("forward", CLAIMED, each).cpu() for each in data)
        assert torch.equal(first, second)


@pytest.mark.gpu
@two_gpus
@every_layout
def test_a_network_on_two_gpus(layout: str) -> None:
    """Its second half on the second; and all of it on both, as nn.DataParallel has it."""
    whole, x = layers(layout, "float32"), batch(layout, "float32")
    split, replicated = copy.deepcopy(whole), nn.DataParallel(copy.deepcopy(whole), [0, 1])
    for layer in depthwise_layers(split)[1:]:  # from the one that has a stride
        layer.to("cuda:1")
    for network in (whole, split, replicated):
        network(x).square().mean().backward()
    for others in (split, replicated):
        for ours, other in zip(others.parameters(), whole.parameters(), strict=True):
            assert ours.grad is not None
            assert other.grad is not None
            grad = ours.grad.to(other.grad.device)
            torch.testing.assert_close(grad, other.grad, rtol=1e-4, atol=1e-6)
