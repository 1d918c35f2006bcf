"""The 1,797 handwritten digits that ship inside scikit-learn, as 32x32 images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

TRAINING_IMAGES = 1437  # the other 360 are held out
IMAGE_SIZE = 32
LARGEST_SHIFT = 3  # pixels; one pixel of the original 8x8 image is four here


@dataclass(frozen=True)
class Digits:
    images: Tensor  # (N, 1, 32, 32), values from -1 to 1
    labels: Tensor  # (N,)

    def accuracy(self, model: nn.Module) -> float:
        """The share of the images that the model recognises."""
        model.eval()
        with torch.no_grad():
            recognised = model(self.images).argmax(dim=1) == self.labels
        return float(recognised.double().mean())


def load(device: torch.device) -> tuple[Digits, Digits]:
    """The digits to train on and those held out: the same split every time."""
    pixels, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = pixels.float().reshape(-1, 1, 8, 8) / 8 - 1
    images = F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    # Stratified: every digit is as frequent in one part as in the other.
    rows = train_test_split(
        range(len(labels)), train_size=TRAINING_IMAGES, stratify=labels.numpy(), random_state=0
    )
    training, held_out = (Digits(images[part].to(device), labels[part].to(device)) for part in rows)
    return training, held_out


def shift(images: Tensor, offsets: Tensor) -> Tensor:
    """Every image moved by its own offset: an offset of LARGEST_SHIFT leaves it where it is."""
    padded = F.pad(images, [LARGEST_SHIFT] * 4, mode="replicate")
    pixels = torch.arange(IMAGE_SIZE, device=images.device)
    image = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
    row = (offsets[:, :1] + pixels).view(-1, 1, IMAGE_SIZE, 1)
    column = (offsets[:, 1:] + pixels).view(-1, 1, 1, IMAGE_SIZE)
    return padded[image, 0, row, column]


def draw_batches(
    batch_size: int, rank: int, processes: int, random: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """One process's share of every batch of an epoch: which images, and how to shift each.

    All processes draw the same batches, then each takes every N-th image of a batch.
    """
    order = torch.randperm(TRAINING_IMAGES, generator=random)
    offsets = torch.randint(2 * LARGEST_SHIFT + 1, (TRAINING_IMAGES, 2), generator=random)
    # A last batch that would be smaller is left out.
    for start in range(0, TRAINING_IMAGES - batch_size + 1, batch_size):
        share = slice(start + rank, start + batch_size, processes)
        yield order[share], offsets[share]
