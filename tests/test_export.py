"""torch.export and AOTInductor: a program that was exported computes what the model did."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import dwconv

# torch says so of its own code.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")

export: Any = torch.export.export
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DYNAMIC = {
    "batch": {0: Dim("batch", min=1, max=64)},
    "images": {0: Dim("batch", min=1, max=64), 2: Dim.AUTO, 3: Dim.AUTO},
}


class Block(nn.Module):
    """Some of the layer's arguments, and the function."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dwconv.DepthwiseConv2d(4, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False)
        dwconv.convert(self.second)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = dwconv.depthwise_conv2d(x, self.second.weight, None, stride=2, padding=2)
        result: Tensor = self.second(x) + y.cos()
        return result


@pytest.fixture
def block(device: torch.device) -> nn.Module:
    return Block().to(device)


def images(device: torch.device, *size: int, layout: str = "nchw") -> Tensor:
    return torch.randn(*size, device=device).contiguous(memory_format=LAYOUTS[layout])


def operators(program: Any) -> list[str]:
    """Ours, in the program's graph."""
    targets = [str(node.target) for node in program.graph.nodes]
    return [target.split(".")[1] for target in targets if target.startswith("dwconv.")]


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dynamic", [None, *DYNAMIC])
def test_program_computes_the_same(
    strict: bool, layout: str, dynamic: str | None, block: nn.Module, device: torch.device
) -> None:
    """Of other images too, where their sizes may change; before and after decompositions."""
    x = images(device, 2, 4, 12, 10, layout=layout)
    sizes = [(2, 4, 12, 10)]
    if dynamic:
        sizes += [(5, 4, 12, 10), (1, 4, 12, 10)]
    if dynamic == "images":
        sizes += [(3, 4, 17, 20)]
    shapes = {"x": DYNAMIC[dynamic]} if dynamic else None
    program = export(block, (x,), dynamic_shapes=shapes, strict=strict)
    assert operators(program) == ["depthwise_conv2d"] * 3
    lowered = program.run_decompositions()
    assert operators(lowered) == ["forward"] * 3
    for size in sizes:
        x = images(device, *size, layout=layout)
        expected = block(x)
        for module in (program.module(), lowered.module()):
            result = module(x)
            torch.testing.assert_close(result, expected)
            assert result.stride() == expected.stride()


def test_program_trains(block: nn.Module, device: torch.device) -> None:
    """It is differentiable, as the model was."""
    x = images(device, 2, 4, 12, 10)
    trained = export(block, (x,)).module()
    for module in (trained, block):
        torch.autograd.backward(module(x).square().sum())
    for mine, other in zip(trained.parameters(), block.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


def test_saved_and_loaded(block: nn.Module, device: torch.device) -> None:
    x = images(device, 2, 4, 12, 10)
    file = io.BytesIO()
    torch.export.save(export(block, (x,), dynamic_shapes={"x": DYNAMIC["batch"]}), file)
    file.seek(0)
    module = torch.export.load(file).module()
    for size in (2, 3):
        x = images(device, size, 4, 12, 10)
        torch.testing.assert_close(module(x), block(x))


@pytest.mark.parametrize("grad", [True, False])
def test_export_without_gradients(grad: bool, block: nn.Module, device: torch.device) -> None:
    """Of a model in evaluation, as most are."""
    x = images(device, 2, 4, 12, 10)
    with torch.set_grad_enabled(grad):
        program = export(block.eval().requires_grad_(False), (x,))
        torch.testing.assert_close(program.module()(x), block(x))


@pytest.mark.xfail(
    torch.__version__ < "2.12", reason="torch 2.11 crashes while it loads the package", run=False
)
@pytest.mark.slow
def test_aot_inductor(block: nn.Module, device: torch.device, tmp_path: Path) -> None:
    """A package, compiled ahead of time and loaded, without Python's part of the operators."""
    x = images(device, 2, 4, 12, 10)
    program = export(block, (x,), dynamic_shapes={"x": DYNAMIC["batch"]})
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "block.pt2")
    )
    compiled: Any = torch._inductor.aoti_load_package(path)
    for size in (2, 7):
        x = images(device, size, 4, 12, 10)
        torch.testing.assert_close(compiled(x), block(x), rtol=1e-5, atol=1e-5)
