"""Convolution problems, their float64 reference, and how far a result may be from it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from dwconv import _C, _ops

Pair = tuple[int, int]

KERNELS = _C.kernels()
PASSES = sorted({row["pass"] for row in KERNELS})
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@dataclass(frozen=True)
class Problem:
    """A convolution without its data. Pairs are (h, w), padding is (top, bottom, left, right)."""

    batch: int = 2
    channels: int = 3
    multiplier: int = 1
    size: Pair = (7, 5)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    bias: bool = False

    @property
    def filters(self) -> int:
        return self.channels * self.multiplier

    @property
    def input_size(self) -> list[int]:
        return [self.batch, self.channels, *self.size]

    @property
    def weight_size(self) -> list[int]:
        return [self.filters, 1, *self.kernel]

    @property
    def output_size(self) -> list[int]:
        padded = (self.size[i] + self.padding[2 * i] + self.padding[2 * i + 1] for i in (0, 1))
        spatial = [
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, dilation, kernel, stride in zip(
                padded, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        return [self.batch, self.filters, *spatial]

    @property
    def geometry(self) -> tuple[list[int], list[int], list[int]]:
        """The last arguments of each operator."""
        return list(self.stride), list(self.padding), list(self.dilation)

    @property
    def id(self) -> str:
        """For pytest: what differs from the defaults."""
        fields = vars(self).items()
        named = [f"{k}={v}" for k, v in fields if v != getattr(Problem, k)]
        return " ".join(named).replace(", ", ",") or "default"

    def plan_arguments(self, pass_: str, dtype: str, layout: str) -> dict[str, Any]:
        """For ``_C.plan``."""
        stride, padding, dilation = self.geometry
        return {
            "pass_": pass_,
            "dtype": dtype,
            "layout": layout,
            "input_size": self.input_size,
            "out_channels": self.filters,
            "kernel_size": self.kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "bias": self.bias and pass_ != "backward_input",
        }


def takes(row: dict[str, str], problem: Problem, **device: Any) -> bool:
    """Whether a row of the kernel table takes a problem, on an H100 if nothing else is said."""
    arguments = problem.plan_arguments(row["pass"], row["dtype"], row["layout"])
    try:
        _C.plan(**arguments, kernel=row["name"], **device)
    except ValueError as error:
        assert "cannot take the problem" in str(error)  # noqa: PT017 (any other is a failure)
        return False
    return True


def lies_the_same(problem: Problem) -> bool:
    """Whether both layouts are one: contiguous kernels may take channels_last tensors."""
    return problem.filters == 1 or problem.input_size[2:] == problem.output_size[2:] == [1, 1]


class Data(NamedTuple):
    """The tensors of a problem; each operator reads some of them."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    grad_output: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Data":
        return Data(
            change(self.input),
            change(self.weight),
            None if self.bias is None else change(self.bias),
            change(self.grad_output),
        )

    def present(self) -> list[Tensor]:
        """All but a bias that is None."""
        return [tensor for tensor in self if tensor is not None]


def random_tensor(
    size: list[int],
    dtype: torch.dtype,
    device: torch.device,
    layout: str = "nchw",
    generator: torch.Generator | None = None,
) -> Tensor:
    values = torch.randn(size, generator=generator)
    # Not .contiguous(), which leaves a tensor of one channel in the strides that it has.
    result = torch.empty(size, dtype=dtype, device=device, memory_format=LAYOUTS[layout])
    return result.copy_(values)


def make_data(
    problem: Problem, dtype: torch.dtype, device: torch.device, layout: str = "nchw", seed: int = 0
) -> Data:
    """Normally distributed numbers, rounded to the dtype: the same ones on every device."""
    generator = torch.Generator().manual_seed(seed)
    bias = random_tensor([problem.filters], dtype, device, generator=generator, layout="nchw")
    return Data(
        input=random_tensor(problem.input_size, dtype, device, layout, generator),
        weight=random_tensor(problem.weight_size, dtype, device, generator=generator),
        bias=bias if problem.bias else None,
        grad_output=random_tensor(problem.output_size, dtype, device, layout, generator),
    )


def run_pass(pass_: str, problem: Problem, data: Data) -> Tensor:
    """One of ``torch.ops.dwconv.*``."""
    ops = torch.ops.dwconv
    if pass_ == "forward":
        result = ops.forward(data.input, data.weight, data.bias, *problem.geometry)
    elif pass_ == "backward_input":
        size = problem.input_size
        result = ops.backward_input(data.grad_output, data.weight, size, *problem.geometry)
    else:
        size = problem.weight_size
        result = ops.backward_weight(data.grad_output, data.input, size, *problem.geometry)
    assert isinstance(result, Tensor)
    return result


def packed(problem: Problem) -> int:
    """The geometry as the packed operators take it."""
    stride, padding, dilation = (tuple(numbers) for numbers in problem.geometry)
    number = _ops.Geometry(stride, padding, dilation).pack().packed  # type: ignore[arg-type]
    assert number is not None
    return number


def run(pass_: str, problem: Problem, data: Data) -> tuple[Tensor, ...]:
    """All that a pass gives: a weight gradient with a bias has that of the bias as well."""
    if pass_ != "backward_weight" or not problem.bias:
        return (run_pass(pass_, problem, data),)
    of_input, *gradients = torch.ops.dwconv.backward_packed(
        data.grad_output, data.input, data.weight, packed(problem), 2 | 4
    )
    assert of_input is None
    return tuple(gradients)


def reference(pass_: str, problem: Problem, data: Data, device: str = "cpu") -> Tensor:
    """The result in float64: PyTorch's convolution of an explicitly padded input."""
    exact = data.map(lambda tensor: tensor.detach().to(device, torch.float64).contiguous())
    top, bottom, left, right = problem.padding
    input = exact.input.requires_grad_(pass_ == "backward_input")
    weight = exact.weight.requires_grad_(pass_ == "backward_weight")
    output = F.conv2d(
        F.pad(input, (left, right, top, bottom)),
        weight,
        exact.bias,
        problem.stride,
        dilation=problem.dilation,
        groups=problem.channels,
    )
    if pass_ == "forward":
        return output
    wanted = input if pass_ == "backward_input" else weight
    (gradient,) = torch.autograd.grad(output, wanted, exact.grad_output)
    return gradient


def first_tensor(pass_: str, data: Data) -> Tensor:
    """The one whose memory format the pass follows."""
    return data.input if pass_ == "forward" else data.grad_output


# Results of fewer numbers than this may be close to zero as a whole.
FEW = 64


def check_close(pass_: str, problem: Problem, data: Data, result: Tensor) -> None:
    """The promise: an error of 1.1 times that of rounding the exact result once; for float32 that
    of summing in it comes on top.

    Where the result is a handful of numbers, terms may cancel in all of them by chance, or each
    number lie close to one of its dtype, and either makes a bound relative to the result as small
    as luck wants. There, the result's norm is replaced by what it is on average over random signs,
    the root of the sum of squares of all products, and the error of the float32 sum behind a 16-bit
    result counts too: rounded(sum) is off by no more than rounding the exact result, plus twice
    the sum's own error.
    """
    exact = reference(pass_, problem, data)
    assert list(result.shape) == list(exact.shape)
    assert result.dtype == first_tensor(pass_, data).dtype

    def energy() -> Tensor:
        return reference(pass_, problem, data.map(torch.Tensor.double).map(torch.square))

    sum_error = 3e-6 if pass_ == "backward_weight" else 1e-6
    _check_error(result, exact, energy, sum_error, f"{pass_} {result.dtype} of {problem}")


def check_all(pass_: str, problem: Problem, data: Data, results: tuple[Tensor, ...]) -> None:
    """What `run` has returned. The bias's gradient is a sum of as many terms as the weight's."""
    first, *others = results
    check_close(pass_, problem, data, first)
    if not others:
        return
    (of_bias,) = others
    grad = data.grad_output.detach().to("cpu", torch.float64)
    assert list(of_bias.shape) == [problem.filters]
    assert of_bias.dtype == data.grad_output.dtype
    name = f"bias gradient {of_bias.dtype} of {problem}"
    exact = grad.sum((0, 2, 3))
    _check_error(of_bias, exact, lambda: grad.square().sum((0, 2, 3)), 3e-6, name)


def _check_error(
    result: Tensor, exact: Tensor, energy: Callable[[], Tensor], sum_error: float, name: str
) -> None:
    rounding = float((exact.to(result.dtype).double() - exact).norm())
    few = int(exact.count_nonzero()) < FEW
    norm = float(exact.norm())
    if few:
        norm = max(norm, float(energy().sum().sqrt()))
    if result.device.type == "cpu":
        # ATen's sums, which are not ours to better: of 10,210 products they are off by 3.1e-6.
        sum_error *= 2
    if result.dtype == torch.float64:
        sum_error = 1e-14
    elif result.dtype != torch.float32:
        sum_error = sum_error if few else 0
    bound = 1.1 * rounding + sum_error * norm
    error = float((result.detach().double().cpu() - exact).norm())
    assert error <= bound, f"{name}: error {error:.3e}, allowed {bound:.3e}, norm {norm:.3e}"


def has_strides_of(tensor: Tensor, layout: str) -> bool:
    """Whether a dense tensor lies in memory as a new one of that layout would; the stride along an
    axis of one element means nothing."""
    like = torch.empty(tensor.shape, device="meta", memory_format=LAYOUTS[layout])
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    return all(size <= 1 or ours == theirs for size, ours, theirs in strides)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every tensor that torch allocates inside starts as NaN (bytes: 255), so that a result that is
    not written in full shows."""
    before = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


# Few channels and many tiny images, of which a unit of work holds several; prime numbers of images,
# so that the last unit holds fewer.
TINY_IMAGES = [
    Problem(batch=1021, channels=1, size=(6, 6), kernel=(1, 1)),
    Problem(batch=1021, channels=9, size=(7, 5), kernel=(1, 1), stride=(2, 2), bias=True),
    Problem(batch=509, channels=3, size=(13, 6), kernel=(4, 4), padding=(1, 1, 1, 1)),
    Problem(batch=509, channels=1, size=(14, 7), kernel=(5, 5), padding=(2, 2, 2, 2), bias=True),
    Problem(batch=1021, channels=2, size=(3, 3), kernel=(2, 2), stride=(2, 2)),
    Problem(batch=509, channels=16, size=(4, 4), padding=(1, 1, 1, 1), bias=True),
    Problem(batch=1021, channels=4, size=(5, 8), stride=(2, 2), padding=(1, 1, 1, 1)),
    Problem(batch=509, channels=2, size=(9, 7), dilation=(2, 2), padding=(2, 2, 2, 2)),
]


# The multiply-adds of a drawn problem, at most: a few milliseconds for the reference.
WORK = 400_000


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Any well-formed problem of moderate size."""
    axis = st.tuples(
        st.one_of(st.integers(1, 5), st.integers(1, 17)),  # kernel
        st.integers(1, 5),  # stride
        st.integers(1, 5),  # dilation
        st.integers(0, 7),  # padding before
        st.integers(0, 7),  # padding after
        st.integers(1, 33),  # outputs
        st.integers(0, 4),  # input elements that no output reaches
    )
    sizes, kernels, strides, paddings, dilations = [], [], [], [], []
    work = 1
    for _ in range(2):
        kernel, stride, dilation, before, after, outputs, spare = draw(axis)
        span = (outputs - 1) * stride + dilation * (kernel - 1) + 1
        sizes.append(max(1, span - before - after + spare))
        kernels.append(kernel)
        strides.append(stride)
        dilations.append(dilation)
        paddings += [before, after]
        work *= outputs * kernel
    batch = draw(st.integers(1, 4))
    channels = draw(st.one_of(st.integers(1, 8), st.sampled_from([16, 17, 31, 32, 33, 37, 64])))
    multiplier = draw(st.integers(1, 3))
    while batch * channels * multiplier * work > WORK and batch * channels * multiplier > 1:
        if batch > 1:
            batch -= 1
        elif multiplier > 1:
            multiplier -= 1
        else:
            channels = channels // 2
    top, bottom, left, right = paddings
    return Problem(
        batch=batch,
        channels=channels,
        multiplier=multiplier,
        size=(sizes[0], sizes[1]),
        kernel=(kernels[0], kernels[1]),
        stride=(strides[0], strides[1]),
        padding=(top, bottom, left, right),
        dilation=(dilations[0], dilations[1]),
        bias=draw(st.booleans()),
    )


@st.composite
def everyday_problems(draw: st.DrawFn) -> Problem:
    """Problems that the tuned families are for: one filter per channel, small kernels, stride 1 and
    2, padding below the kernel's span; sizes from below one tile to several bands, and batches of
    many tiny images."""
    kernel = draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    if draw(st.booleans()):
        kernel = (kernel[0], kernel[0])
    stride = draw(st.sampled_from([1, 1, 2]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 1), (1, 4)]))
    dilation = (1, 1) if stride == 2 else dilation
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    tiny = draw(st.integers(0, 3)) == 0
    side = st.one_of(st.integers(1, 20), st.integers(1, 90), st.sampled_from([7, 14, 28, 56]))
    if tiny:
        side = st.integers(1, 9)
    size, padding = [], []
    for span in spans:
        before, after = draw(st.integers(0, span)), draw(st.integers(0, span))
        size.append(max(draw(side), span + 1 - before - after))
        padding += [before, after]
    channels = draw(st.one_of(st.integers(1, 8), st.sampled_from([31, 37, 64, 130])))
    batch = draw(st.sampled_from([300, 509, 1021] if tiny else [1, 2, 3, 5, 17]))
    while batch * channels * size[0] * size[1] * kernel[0] * kernel[1] > 10 * WORK:
        if batch == 1 and channels == 1:
            break
        batch, channels = max(1, batch // 2), max(1, channels // 2)
    top, bottom, left, right = padding
    return Problem(
        batch=batch,
        channels=channels,
        size=(size[0], size[1]),
        kernel=kernel,
        stride=(stride, stride),
        padding=(top, bottom, left, right),
        dilation=dilation,
        bias=draw(st.booleans()),
    )
