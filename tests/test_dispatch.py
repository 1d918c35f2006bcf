"""The operators inside PyTorch: opcheck, fake tensors, streams, CUDA graphs, devices, bad calls."""

from typing import Any

import pytest
import torch
from problems import (
    DTYPES,
    LAYOUTS,
    PASSES,
    Data,
    Problem,
    check_close,
    has_strides_of,
    make_data,
    packed,
    run_pass,
)
from torch._subclasses.fake_tensor import FakeTensorMode

import dwconv
from dwconv import _ops

every_pass = pytest.mark.parametrize("pass_", PASSES)

SAMPLES = {
    "plain": Problem(),
    "multiplier and bias": Problem(multiplier=2, bias=True),
    "one channel": Problem(channels=1, size=(6, 6)),
    "asymmetric padding": Problem(kernel=(4, 2), padding=(1, 2, 0, 1)),
    "stride and dilation": Problem(size=(13, 11), stride=(2, 3), dilation=(2, 1)),
    "empty batch": Problem(batch=0, bias=True),
}
every_sample = pytest.mark.parametrize("problem", SAMPLES.values(), ids=SAMPLES)
every_layout = pytest.mark.parametrize("layout", LAYOUTS)


def operator_call(pass_: str, problem: Problem, data: Data) -> tuple[Any, tuple[Any, ...]]:
    """An operator and its arguments."""
    operator = getattr(torch.ops.dwconv, pass_).default
    if pass_ == "forward":
        return operator, (data.input, data.weight, data.bias, *problem.geometry)
    if pass_ == "backward_input":
        return operator, (data.grad_output, data.weight, problem.input_size, *problem.geometry)
    return operator, (data.grad_output, data.input, problem.weight_size, *problem.geometry)


@every_pass
@every_sample
@every_layout
def test_opcheck(pass_: str, problem: Problem, layout: str, device: torch.device) -> None:
    """Schema, fake kernel and AOT dispatch with dynamic shapes agree with the real operator."""
    data = make_data(problem, torch.float32, device, layout)
    operator, arguments = operator_call(pass_, problem, data)
    torch.library.opcheck(operator, arguments)


@every_pass
@every_sample
@every_layout
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_fake_result_is_like_the_real_one(
    pass_: str, problem: Problem, layout: str, dtype: torch.dtype, device: torch.device
) -> None:
    """Shape, dtype, device and strides."""
    data = make_data(problem, dtype, device, layout)
    real = run_pass(pass_, problem, data)
    with FakeTensorMode() as mode:
        fake = run_pass(pass_, problem, data.map(mode.from_tensor))
    assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
    fake_layout = "nchw" if fake.is_contiguous() else "nhwc"
    assert has_strides_of(real, fake_layout)


@every_sample
@every_layout
def test_packed_operators_are_the_others(
    problem: Problem, layout: str, device: torch.device
) -> None:
    """To the bit, but that the weight's kernel may be another with the bias beside it; and fake."""
    data = make_data(problem, torch.float32, device, layout)
    ops, geometry = torch.ops.dwconv, packed(problem)
    arguments = data.input, data.weight, data.bias, geometry
    assert torch.equal(ops.forward_packed(*arguments), run_pass("forward", problem, data))
    torch.library.opcheck(ops.forward_packed.default, arguments)
    tensors = data.grad_output, data.input, data.weight
    for wanted in range(8):
        gradients = ops.backward_packed(*tensors, geometry, wanted)
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(tensor) for tensor in tensors]
            fake_gradients = ops.backward_packed(*fakes, geometry, wanted)
        for i, (real, fake) in enumerate(zip(gradients, fake_gradients, strict=True)):
            assert (real is None) == (fake is None) == (not wanted & 1 << i)
            if real is not None:
                assert (fake.shape, fake.dtype, fake.device) == (
                    real.shape,
                    real.dtype,
                    real.device,
                )
                assert has_strides_of(real, "nchw" if fake.is_contiguous() else "nhwc")
        if wanted & 1:
            assert torch.equal(gradients[0], run_pass("backward_input", problem, data))
        if wanted & 2:
            check_close("backward_weight", problem, data, gradients[1])


@pytest.mark.parametrize(
    ("numbers", "fits"),
    [(((1, 127), (0, 1, 2, 3), (127, 1)), True), (((1, 1), (0, 0, 0, 128), (1, 1)), False)],
)
def test_packing(numbers: Any, fits: bool) -> None:
    """Eight numbers in one, if each is less than 128; and back."""
    geometry = _ops.Geometry(*numbers).pack()
    assert (geometry.packed is not None) == fits
    if geometry.packed is not None:
        assert 0 <= geometry.packed < 2**63
        assert _ops.unpack(geometry.packed) == geometry


def test_meta_tensors_give_shapes() -> None:
    """No data, no kernel: the whole function runs on the meta device."""
    x = torch.empty(2, 3, 9, 9, device="meta", requires_grad=True)
    w = torch.empty(6, 1, 3, 3, device="meta", requires_grad=True)
    y = dwconv.depthwise_conv2d(x, w, stride=2, padding=1)
    grad_x, grad_w = torch.autograd.grad(y.sum(), (x, w))
    assert y.shape == (2, 6, 5, 5)
    assert grad_x.shape == x.shape
    assert grad_w.shape == w.shape


@pytest.mark.gpu
@every_pass
def test_runs_on_the_current_stream(pass_: str) -> None:
    """The kernels wait for what their stream did before, and for no other stream."""
    problem = Problem(size=(33, 35), bias=True)
    data = make_data(problem, torch.float32, torch.device("cuda"))
    late = data.map(torch.zeros_like)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10**8)  # type: ignore[no-untyped-call]  # tens of milliseconds
        for tensor, values in zip(late.present(), data.present(), strict=True):
            tensor.copy_(values)
        result = run_pass(pass_, problem, late)
    stream.synchronize()
    check_close(pass_, problem, data, result)


@pytest.mark.gpu
@every_layout
def test_cuda_graph_of_forward_and_backward(layout: str) -> None:
    """Captured once, replayed on other numbers."""
    device = torch.device("cuda")
    problem = Problem(channels=5, multiplier=2, size=(33, 35), padding=(1, 1, 1, 1), bias=True)
    static = make_data(problem, torch.float32, device, layout)
    *parameters, _ = static.present()
    for tensor in parameters:
        tensor.requires_grad_()

    def step() -> list[torch.Tensor]:
        output = dwconv.depthwise_conv2d(static.input, static.weight, static.bias, padding=1)
        return [output, *torch.autograd.grad(output, parameters, static.grad_output)]

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # loads the kernels, which a capture may not
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    other = make_data(problem, torch.float32, device, layout, seed=1)
    with torch.no_grad():
        for tensor, values in zip(static.present(), other.present(), strict=True):
            tensor.copy_(values)
    graph.replay()
    replayed = [tensor.clone() for tensor in captured]
    for eager, replay in zip(step(), replayed, strict=True):
        assert torch.equal(eager, replay)


@pytest.mark.gpu
@every_pass
def test_tensors_on_another_device_than_the_current_one(pass_: str) -> None:
    """The kernel runs where its tensors are, and the current device stays."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs a second CUDA device")
    problem = Problem(bias=True)
    with torch.cuda.device(0):
        for index in (1, 0, 1):
            data = make_data(problem, torch.float32, torch.device("cuda", index))
            result = run_pass(pass_, problem, data)
            assert result.device.index == index
            assert torch.cuda.current_device() == 0
            check_close(pass_, problem, data, result)


BAD_CALLS: dict[str, Any] = {
    # name: what to change of the operator's arguments, by position
    "a first tensor of 3 dimensions": lambda a: (a[0][0], *a[1:]),
    "a second tensor of 3 dimensions": lambda a: (a[0], a[1][0], *a[2:]),
    "channels that do not divide the filters": lambda a: (a[0][:, :3], *a[1:]),
    "a second tensor of another dtype": lambda a: (a[0], a[1].double(), *a[2:]),
    "integers": lambda a: (a[0].int(), a[1].int(), *a[2:]),
    "one stride": lambda a: (*a[:3], [1], *a[4:]),
    "a stride of zero": lambda a: (*a[:3], [1, 0], *a[4:]),
    "a negative dilation": lambda a: (*a[:5], [-1, 1]),
    "a dilation past the input": lambda a: (*a[:5], [100, 1]),
    "two paddings": lambda a: (*a[:4], [1, 1], a[5]),
    "a negative padding": lambda a: (*a[:4], [-1, 0, 0, 0], a[5]),
}


@pytest.mark.gpu
@every_pass
@pytest.mark.parametrize("bad", BAD_CALLS)
def test_bad_direct_call_raises(pass_: str, bad: str) -> None:
    """An operator called past the Python checks reads nothing astray: it raises, and the next call
    is right."""
    problem = Problem(channels=4, multiplier=2)
    data = make_data(problem, torch.float32, torch.device("cuda"))
    operator, arguments = operator_call(pass_, problem, data)
    with pytest.raises(RuntimeError):
        operator(*BAD_CALLS[bad](arguments))
    torch.cuda.synchronize()
    check_close(pass_, problem, data, run_pass(pass_, problem, data))


@pytest.mark.gpu
@pytest.mark.parametrize("numbers", [0, 2**62], ids=["zeros", "no stride"])
def test_a_bad_packed_geometry_raises(numbers: int) -> None:
    data = make_data(Problem(), torch.float32, torch.device("cuda"))
    with pytest.raises(RuntimeError):
        torch.ops.dwconv.forward_packed(data.input, data.weight, None, numbers)
    for grad in (
        data.grad_output,
        data.grad_output[0],
        data.grad_output[:, :, 1:],
        data.grad_output.cpu(),
    ):
        with pytest.raises(RuntimeError):
            torch.ops.dwconv.backward_packed(grad, data.input, data.weight, numbers, 7)


@pytest.mark.gpu
@every_pass
def test_bad_sizes_in_a_direct_call_raise(pass_: str) -> None:
    """Sizes, tensors and bias that do not belong together, and tensors on two devices."""
    problem = Problem(channels=4, multiplier=2, bias=True)
    data = make_data(problem, torch.float32, torch.device("cuda"))
    operator, arguments = operator_call(pass_, problem, data)
    first, second, third, *geometry = arguments
    if pass_ == "forward":
        wrong = [third[:-1], third.double(), third.cpu(), third[None]]
    else:
        wrong = [third[:-1], [*third[:-1], third[-1] + 1], [0, *third[1:]], [-1, *third[1:]]]
    for bad in wrong:
        with pytest.raises(RuntimeError):
            operator(first, second, bad, *geometry)
    with pytest.raises(RuntimeError):
        operator(first, second.cpu(), third, *geometry)
    torch.cuda.synchronize()
    check_close(pass_, problem, data, run_pass(pass_, problem, data))
