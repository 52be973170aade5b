"""Image data sets of the benchmark, what is held out of them to choose learning rates, and a count of what is loaded.

Every split is fixed: seeds change the network's parameters and the order of the instances, never the data.

Shapes: N instances, C classes, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from benchmarks.common.training import LoadCounter
from lightning_autoassist.demo.data import digits, fashion_mnist

NUM_CLASSES = 10
# Of each class's training images, this share never enters training while learning rates are chosen.
HELD_OUT_RATIO = 1 / 6
IMBALANCE = 0.01
NOISE_RATIO = 0.2


class Images(NamedTuple):
    """Images, shape ``(N, channels, H, W)``, float32, and labels, shape ``(N,)``, int64."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ImageSet:
    """A data set of the benchmark.

    Args:
        load: Reads training and test images; gets the folder for downloads.
        num_instances: Training images by default, balanced over the classes; None: all.
        is_long_tailed: Cut class k to a share of 0.01^(k/9).
        has_noise: Give 20 % of the training images a wrong label. Test labels stay right.
    """

    load: Callable[[Path], tuple[Images, Images]]
    num_instances: int | None = None
    is_long_tailed: bool = False
    has_noise: bool = False


def _fashion_mnist(data_dir: Path) -> tuple[Images, Images]:
    split = fashion_mnist(data_dir)
    return Images(*split.train.tensors), Images(*split.held_out.tensors)


def _digits(data_dir: Path) -> tuple[Images, Images]:
    split = digits(data_dir)
    return Images(*split.train.tensors), Images(*split.held_out.tensors)


def _cifar10(data_dir: Path) -> tuple[Images, Images]:
    from torchvision.datasets import CIFAR10

    def images(is_train: bool) -> Images:
        data = CIFAR10(str(data_dir.expanduser()), train=is_train)
        pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous() / 255
        return Images(pixels, torch.tensor(data.targets))

    return images(True), images(False)


IMAGE_SETS = {
    "fashion-mnist": ImageSet(_fashion_mnist, num_instances=30_000),
    "long-tail": ImageSet(_fashion_mnist, is_long_tailed=True),
    "label-noise": ImageSet(_fashion_mnist, num_instances=30_000, has_noise=True),
    "digits": ImageSet(_digits),
    "cifar10": ImageSet(_cifar10),
}


def load_images(
    name: str, data_dir: Path, *, choosing: bool, num_instances: int | None = None, size: int | None = None
) -> tuple[Images, Images]:
    """What to train on, and what to measure accuracy on.

    Args:
        name: In ``IMAGE_SETS``.
        data_dir: Folder for downloads.
        choosing: Whether to choose learning rates: then a part of the training images takes the test images' place.
        num_instances: Training images, balanced over the classes; 0: all; None: the data set's own number.
        size: Height and width that images are scaled to; None: as they are.
    """
    settings = IMAGE_SETS[name]
    train, test = settings.load(data_dir)
    labels = train.labels.numpy()
    rng = np.random.default_rng(0)
    by_class = [rng.permutation(np.flatnonzero(labels == k)) for k in range(NUM_CLASSES)]
    if settings.has_noise:
        labels = _with_noise(labels, rng)
    num_held_out = [round(len(rows) * HELD_OUT_RATIO) for rows in by_class]
    pools = [rows[:-held] if choosing else rows for rows, held in zip(by_class, num_held_out, strict=True)]
    most = settings.num_instances if num_instances is None else num_instances
    if most:
        pools = [rows[: most // NUM_CLASSES] for rows in pools]
    if settings.is_long_tailed:
        largest = max(len(rows) for rows in by_class)
        pools = [rows[: int(largest * IMBALANCE ** (k / (NUM_CLASSES - 1)) + 1e-9)] for k, rows in enumerate(pools)]
    noisy = Images(train.images, torch.from_numpy(labels))
    held_out = test
    if choosing:
        held_out = _rows(noisy, [rows[-held:] for rows, held in zip(by_class, num_held_out, strict=True)])
    return _scaled(_rows(noisy, pools), size), _scaled(held_out, size)


def _with_noise(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A copy where a share of the labels is another class, each of them as likely."""
    wrong = rng.random(len(labels)) < NOISE_RATIO
    shifts = rng.integers(1, NUM_CLASSES, len(labels))
    return np.where(wrong, (labels + shifts) % NUM_CLASSES, labels)


def _rows(images: Images, rows: list[npt.NDArray[np.int64]]) -> Images:
    # In the data set's own order: the shuffling is the loader's.
    chosen = torch.from_numpy(np.sort(np.concatenate(rows)))
    return Images(images.images[chosen], images.labels[chosen])


def _scaled(images: Images, size: int | None) -> Images:
    if size is None:
        return images
    return images._replace(images=F.interpolate(images.images, (size, size), mode="bilinear", align_corners=False))


class CountedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images one by one, counting how many were loaded, in whichever process.

    Args:
        images: The data.
        augment: Flip at random, and shift by up to an eighth.
    """

    def __init__(self, images: Images, augment: bool = False) -> None:
        self.images = images
        self.targets = images.labels
        self.augment = augment
        self.loads = LoadCounter()

    def __len__(self) -> int:
        return len(self.images.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.loads.add()
        image = self.images.images[index]
        return (_augmented(image) if self.augment else image), self.images.labels[index]


def _augmented(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    margin = height // 8
    top, left, flip = torch.randint(2 * margin + 1, (3,)).tolist()
    shifted = F.pad(image, [margin] * 4)[..., top : top + height, left : left + width]
    return shifted.flip(-1) if flip % 2 else shifted


class ImageData(pl.LightningDataModule):
    """A shuffled train loader, and one of the images that measure accuracy.

    Args:
        train: To train on.
        held_out: To measure accuracy on.
        batch_size: B.
        augment: Flip and shift the training images.
        num_workers: Processes that load.
    """

    def __init__(
        self, train: Images, held_out: Images, batch_size: int, augment: bool = False, num_workers: int = 0
    ) -> None:
        super().__init__()
        self.train = CountedImages(train, augment)
        self.held_out = TensorDataset(*held_out)
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self.train,
            self.batch_size,
            shuffle=True,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, 500)
