"""The benchmark's cases, their random data, and the calls that are timed side by side."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from dwconv.workloads import Shape, Workload

DTYPES = ("float32", "float16", "bfloat16")
LAYOUTS = ("nchw", "nhwc")
PASSES = ("forward", "backward_input", "backward_weight")

# PyTorch's columns, and the cuDNN flags under which each is timed.
TORCH_COLUMNS = {
    "torch_default": {"enabled": True, "benchmark": False},
    "torch_cudnn_benchmark": {"enabled": True, "benchmark": True},
    "torch_native": {"enabled": False, "benchmark": False},
}

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """One pass of one workload in one dtype and memory layout."""

    workload: Workload
    dtype: str
    pass_: str
    layout: str

    @property
    def name(self) -> str:
        return f"{self.group} {self.layout}"

    @property
    def group(self) -> str:
        """Cases of one group have the same numbers in another layout, and share a reference."""
        return f"{self.workload.name} {self.dtype} {self.pass_}"

    @property
    def torch_dtype(self) -> torch.dtype:
        return cast(torch.dtype, getattr(torch, self.dtype))

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "nhwc" else torch.contiguous_format

    @property
    def bytes_moved(self) -> int:
        return self.workload.bytes_moved(self.torch_dtype.itemsize)

    @property
    def result_shape(self) -> Shape:
        if self.pass_ == "forward":
            return self.workload.output_shape
        if self.pass_ == "backward_input":
            return self.workload.input_shape
        return self.workload.weight_shape


def select(
    workloads: Iterable[Workload],
    dtypes: Iterable[str] = DTYPES,
    passes: Iterable[str] = PASSES,
    layouts: Iterable[str] = LAYOUTS,
) -> list[Case]:
    """The layouts come last, so that the cases of a group follow each other."""
    return [Case(*key) for key in product(workloads, dtypes, passes, layouts)]


@dataclass(frozen=True)
class Data:
    """Input, weight and output gradient of a case, in its dtype and layout."""

    x: Tensor
    weight: Tensor
    grad: Tensor


def random_data(case: Case, device: torch.device) -> Data:
    """The same numbers for every layout of a group."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(case.group.encode()))

    def draw(shape: Shape) -> Tensor:
        t = torch.randn(shape, generator=generator, device=device, dtype=case.torch_dtype)
        return t.to(memory_format=case.memory_format)

    workload = case.workload
    return Data(
        draw(workload.input_shape), draw(workload.weight_shape), draw(workload.output_shape)
    )


def dwconv_call(case: Case, data: Data) -> Callable[[], Tensor]:
    ops, geometry = torch.ops.dwconv, case.workload.geometry
    if case.pass_ == "forward":
        return lambda: cast(Tensor, ops.forward(data.x, data.weight, None, *geometry))
    shape = list(case.result_shape)
    if case.pass_ == "backward_input":
        return lambda: cast(Tensor, ops.backward_input(data.grad, data.weight, shape, *geometry))
    return lambda: cast(Tensor, ops.backward_weight(data.grad, data.x, shape, *geometry))


def torch_call(workload: Workload, pass_: str, data: Data) -> Callable[[], Tensor]:
    """PyTorch's own convolution; as many channels as `data` has."""
    aten: Any = torch.ops.aten
    stride, _, dilation = workload.geometry
    geometry = (
        stride,
        list(workload.padding),
        dilation,
        False,  # transposed
        [0, 0],  # output padding
        data.weight.size(0),  # groups
    )
    if pass_ == "forward":
        return lambda: cast(Tensor, aten.convolution.default(data.x, data.weight, None, *geometry))
    index = 0 if pass_ == "backward_input" else 1
    mask = [index == 0, index == 1, False]
    tensors = (data.grad, data.x, data.weight, None)
    return lambda: cast(Tensor, aten.convolution_backward.default(*tensors, *geometry, mask)[index])


@contextmanager
def cudnn_flags(enabled: bool, benchmark: bool) -> Iterator[None]:
    """Sets PyTorch's cuDNN flags, TF32 off, and restores them."""
    cudnn: Any = torch.backends.cudnn
    with cudnn.flags(enabled=enabled, benchmark=benchmark, allow_tf32=False):
        yield


def in_fresh_thread(function: Callable[[], T]) -> T:
    """Runs `function` in a new thread.

    PyTorch keeps cuDNN's plans per thread, under a key that leaves out `cudnn.benchmark`: in one
    thread the default and the benchmark column would time whichever plan was chosen first.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()
