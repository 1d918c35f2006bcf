"""Trains a small network of depthwise-separable blocks, with dwconv and then with nn.Conv2d.

    python examples/train.py
    torchrun --nproc-per-node 2 examples/train.py

Both runs start from the same weights and see the same batches: their losses differ by rounding.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import digits
import numpy
import torch
import torch.distributed as dist

# Before a process group exists: this module's functions keep the one they find as a default
# argument. DistributedDataParallel imports it, and the threads of a group that is kept outlive
# destroy_process_group; one that still frees a tensor when Python has ended aborts the process.
import torch.distributed.nn
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import dwconv


def dwconv_layer(channels: int, stride: int) -> nn.Conv2d:
    return dwconv.DepthwiseConv2d(channels, channels, 3, stride, padding=1, bias=False)


def torch_layer(channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False, groups=channels)


DepthwiseLayer = Callable[[int, int], nn.Conv2d]
LAYERS: dict[str, DepthwiseLayer] = {
    "dwconv.DepthwiseConv2d": dwconv_layer,
    "torch.nn.Conv2d": torch_layer,
}


def normalised(convolution: nn.Conv2d) -> nn.Sequential:
    # GroupNorm looks at one image at a time, so that N processes which share a batch compute what
    # one process would. BatchNorm would see a share only, and SyncBatchNorm needs GPUs.
    # SiLU has a smooth gradient. That of ReLU jumps at zero: an image on the other side of a jump
    # turns a difference of 1e-7 between two runs into one of 0.05 within six epochs.
    return nn.Sequential(convolution, nn.GroupNorm(8, convolution.out_channels), nn.SiLU())


def separable_block(
    depthwise: DepthwiseLayer, channels: int, out_channels: int, stride: int
) -> nn.Sequential:
    return nn.Sequential(
        normalised(depthwise(channels, stride)),
        normalised(nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)),
    )


def build_network(depthwise: DepthwiseLayer) -> nn.Sequential:
    return nn.Sequential(
        normalised(nn.Conv2d(1, 32, kernel_size=3, stride=2, padding=1, bias=False)),  # 16 x 16
        separable_block(depthwise, 32, 64, stride=2),  # 8 x 8
        separable_block(depthwise, 64, 64, stride=1),
        separable_block(depthwise, 64, 128, stride=2),  # 4 x 4
        separable_block(depthwise, 128, 128, stride=1),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 10),
    )


@dataclass(frozen=True)
class Process:
    rank: int
    count: int
    device: torch.device


@contextmanager
def join_processes(device_type: str) -> Iterator[Process]:
    """This process alone, or its place among those that torchrun started."""
    if "LOCAL_RANK" not in os.environ:
        yield Process(rank=0, count=1, device=torch.device(device_type))
        return
    if device_type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    try:
        yield Process(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Run:
    network: nn.Module
    losses: list[float]  # one for each batch
    seconds: float


def train(name: str, data: digits.Digits, process: Process, args: argparse.Namespace) -> Run:
    torch.manual_seed(args.seed)
    network = build_network(LAYERS[name]).to(process.device)
    model: nn.Module = DistributedDataParallel(network) if dist.is_initialized() else network
    steps = args.epochs * (digits.TRAINING_IMAGES // args.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    # One untimed pass: the first run should not pay for loading libraries and starting threads.
    model(data.images[: args.batch_size]).sum().backward()
    if process.device.type == "cuda":
        torch.cuda.synchronize()

    random = torch.Generator().manual_seed(args.seed)
    losses: list[float] = []
    start = time.perf_counter()
    with tqdm(total=steps, desc=name, unit="batch", disable=process.rank != 0) as bar:
        for _ in range(args.epochs):
            shares = []
            epoch = digits.draw_batches(args.batch_size, process.rank, process.count, random)
            for rows, offsets in epoch:
                scores = model(digits.shift(data.images[rows], offsets.to(process.device)))
                # Summed over the share, divided by the batch: shares may differ by one image.
                loss = F.cross_entropy(scores, data.labels[rows], reduction="sum") / args.batch_size
                optimizer.zero_grad()
                # DistributedDataParallel averages gradients; those of the batch are the sum.
                (loss * process.count).backward()
                optimizer.step()
                schedule.step()
                shares.append(loss.detach())
                bar.update()
            batches = torch.stack(shares)
            if dist.is_initialized():
                dist.all_reduce(batches)  # adds up the shares
            losses += batches.tolist()  # once an epoch, since it waits for the GPU
            bar.set_postfix(loss=f"{float(batches.mean()):.4f}")
    return Run(network, losses, time.perf_counter() - start)


def plot(runs: dict[str, Run], differences: list[float], path: Path) -> None:
    figure = Figure(figsize=(8, 6), layout="constrained")
    curves, difference = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    steps = range(1, len(differences) + 1)
    # The second curve covers the first, so the first is drawn wide and pale.
    for (name, run), width, opacity in zip(runs.items(), [4, 1], [0.4, 1], strict=True):
        curves.semilogy(steps, run.losses, linewidth=width, alpha=opacity, label=name)
    curves.set(title="Two runs from the same weights, on the same batches", ylabel="training loss")
    curves.legend()
    difference.plot(steps, differences, color="black", linewidth=1)
    # Never below the rounding of float32, where equal curves are a flat line too.
    limit = 1.1 * max(1e-7, *map(abs, differences))
    difference.set(xlabel="batch", ylabel="difference", ylim=(-limit, limit))
    difference.ticklabel_format(axis="y", scilimits=(0, 0))
    for axes in (curves, difference):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def report(runs: dict[str, Run], held_out: digits.Digits, out: Path) -> float:
    """Prints the table, writes the losses and their picture, and returns dwconv's accuracy."""
    accuracies = [held_out.accuracy(run.network) for run in runs.values()]
    print(f"\n{'':24}{'held-out accuracy':>18}{'training time':>16}")
    for (name, run), accuracy in zip(runs.items(), accuracies, strict=True):
        print(f"{name:24}{accuracy:>18.2%}{run.seconds:>14.1f} s")
    losses = numpy.array([run.losses for run in runs.values()])
    differences = (losses[0] - losses[1]).tolist()
    print(f"largest difference of the two loss curves: {max(map(abs, differences)):.1e}")

    numpy.savetxt(out / "loss.csv", losses.T, header=",".join(runs), delimiter=",", comments="")
    plot(runs, differences, out / "loss.png")
    print(f"wrote {out / 'loss.csv'} and {out / 'loss.png'}")
    return accuracies[0]


def load_back(checkpoint: Path, layer: DepthwiseLayer, held_out: digits.Digits) -> float:
    """The accuracy of a network with saved weights: one checkpoint serves both kinds of layer."""
    network = build_network(layer).to(held_out.images.device)
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    return held_out.accuracy(network)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on digits with dwconv and nn.Conv2d.")
    add = parser.add_argument
    add("--epochs", type=int, default=12, help="passes over the training images (12)")
    add("--batch-size", type=int, default=64, help="images of all processes together (64)")
    add("--lr", type=float, default=2e-3, help="learning rate at the start (0.002)")
    add("--seed", type=int, default=0, help="of the weights, the order and the shifts (0)")
    add("--device", choices=["cuda", "cpu"], help="by default cuda, where there is a GPU")
    add("--out", type=Path, default=Path("out"), help="the folder to write to (out)")
    add("--min-accuracy", type=float, default=0.97, help="to fail below, held-out (0.97)")
    args = parser.parse_args(argv)

    gpus = torch.cuda.device_count()
    args.device = args.device or ("cuda" if gpus else "cpu")
    least, most = int(os.environ.get("WORLD_SIZE", 1)), digits.TRAINING_IMAGES
    if args.device == "cuda" and gpus < int(os.environ.get("LOCAL_WORLD_SIZE", 1)):
        parser.error(f"each process needs a GPU of its own, found {gpus}; there is --device cpu")
    if not least <= args.batch_size <= most:
        parser.error(f"--batch-size must be from {least} to {most}, got {args.batch_size}")
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, got {args.epochs}")
    if not args.lr > 0:
        parser.error(f"--lr must be above 0, got {args.lr}")
    if not 0 <= args.min_accuracy <= 1:
        parser.error(f"--min-accuracy must be from 0 to 1, got {args.min_accuracy}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    # Small tensors: a second thread saves a quarter on idle cores, costs twentyfold on busy ones.
    torch.set_num_threads(1)
    # Repeatable, and in float32 throughout: cuDNN may otherwise round its inputs to TF32.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    with join_processes(args.device) as process:
        training, held_out = digits.load(process.device)
        if process.rank == 0:
            args.out.mkdir(parents=True, exist_ok=True)
            print(f"{len(training.labels)} digits, {args.device}, processes: {process.count}")
        runs = {name: train(name, training, process, args) for name in LAYERS}
    if process.rank != 0:
        return 0

    accuracy = report(runs, held_out, args.out)
    checkpoint = args.out / "digits.pt"
    torch.save(runs["dwconv.DepthwiseConv2d"].network.state_dict(), checkpoint)
    for name, layer in LAYERS.items():
        loaded = load_back(checkpoint, layer, held_out)
        if loaded != accuracy:
            problem = f"{checkpoint} gives {loaded:.2%} with {name}, not the {accuracy:.2%} above."
            print(problem, file=sys.stderr)
            return 1
    print(f"wrote {checkpoint}, which loads back into both networks with the same accuracy")
    if accuracy < args.min_accuracy:
        print(f"The accuracy is {accuracy:.2%}, below {args.min_accuracy:.2%}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
