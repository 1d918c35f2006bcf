"""What two processes do in test_distributed.py: training by halves of the same batches."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from problems import LAYOUTS
from processes import COUNT, device
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from twin_networks import Block, depthwise_layers, group_norm, images, small

import dwconv

STEPS = 3
IMAGES = 8  # of a batch, of all processes

# What DistributedDataParallel warns of, if it is of a depthwise weight's gradient. To gradients of
# other convolutions cuDNN gives strides of its own.
DEPTHWISE_STRIDES = r"(?s)strides do not match.*sizes\(\) = \[\d+, 1, "

Wrap = Callable[[nn.Module], nn.Module]


class Branches(nn.Module):
    """A network, and a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small(group_norm)
        self.unused = nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.network(x)
        return y


def network(
    where: torch.device, dtype: torch.dtype, layout: str, unused: bool = False
) -> nn.Module:
    """The same one in each process."""
    torch.manual_seed(1)
    made = Branches() if unused else small(group_norm)
    return made.to(where, dtype, memory_format=LAYOUTS[layout])  # type: ignore[call-overload,no-any-return]


def batches(where: torch.device, dtype: torch.dtype, layout: str) -> list[Tensor]:
    torch.manual_seed(2)
    return [images(where, LAYOUTS[layout], IMAGES, dtype) for _ in range(STEPS)]


def train(model: nn.Module, data: list[Tensor]) -> list[float]:
    """Steps of SGD; their losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for x in data:
        optimizer.zero_grad()
        loss = (model(x) - x.mean((1, 2, 3))[:, None]).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train_half(
    wrap: Wrap,
    dtype: torch.dtype,
    layout: str,
    of_images: str,
    convert_first: bool,
    unused: bool = False,
) -> dict[str, Any]:
    """With a converted model, wrapped before that or after. Losses are those of both processes."""
    model = network(device(), dtype, layout, unused)
    if convert_first:
        dwconv.convert(model)
    model = wrap(model)
    if not convert_first:
        dwconv.convert(model)
    layers = depthwise_layers(model)
    assert all(isinstance(layer, dwconv.DepthwiseConv2d) for layer in layers)
    share = IMAGES // COUNT
    first = dist.get_rank() * share
    data = [x[first : first + share] for x in batches(device(), dtype, of_images)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = torch.tensor(train(model, data), dtype=torch.float64, device=device())
    dist.all_reduce(losses)
    return {
        "losses": (losses / COUNT).tolist(),
        "state": {key: whole(value) for key, value in model.state_dict().items()},
        "strides": [
            (layer.weight.stride(), layer.weight.grad.stride())
            for layer in layers
            if layer.weight.grad is not None
        ],
        "warnings": [text for text in map(str, caught) if re.search(DEPTHWISE_STRIDES, text)],
    }


def whole(tensor: Any) -> Tensor:
    """On the CPU; a DTensor with the parts of all processes."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach().cpu()


def ddp(options: dict[str, Any], *arguments: Any) -> dict[str, Any]:
    def wrap(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, **options)

    return train_half(wrap, *arguments)


def shard(model: nn.Module, each_layer: bool = False, **options: Any) -> nn.Module:
    """By its blocks, as transformers are; or by every single layer."""
    mesh = init_device_mesh(device().type, (COUNT,))
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d if each_layer else Block):
            fully_shard(module, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    return model


def fsdp(each_layer: bool, *arguments: Any) -> dict[str, Any]:
    return train_half(lambda model: shard(model, each_layer), *arguments)


def skipped_by_convert() -> list[str]:
    """Why, in a model whose every layer is sharded by itself."""
    model = shard(network(device(), torch.float32, "nchw"), each_layer=True)
    return [layer.reason for layer in dwconv.convert(model).skipped]


def fsdp_in_bfloat16() -> dict[str, Any]:
    """Parameters and sums of gradients in float32, all else in bfloat16."""
    model = network(device(), torch.float32, "nchw")
    dwconv.convert(model)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    shard(model, mp_policy=policy)
    outputs: list[torch.dtype] = []
    for layer in depthwise_layers(model):
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output.dtype))
    losses = train(model, batches(device(), torch.float32, "nchw"))
    parameters = {(p.dtype, p.grad.dtype) for p in model.parameters() if p.grad is not None}
    return {"losses": losses, "outputs": set(outputs), "parameters": parameters}
