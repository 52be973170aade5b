"""Data that lie on the device, in batches that are gathered there.

Shapes: N instances, B batch, C channels, H and W height and width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, ...]


class OnDevice(Dataset[Batch]):
    """Columns of instances on a device; a batch of them is one gathering for each column.

    Args:
        columns: Each of N instances, of one device.
        augments: Whether the first column, images of shape ``(N, C, H, W)``, is flipped and shifted at random.

    Attributes:
        num_loaded: How many instances were asked for.
    """

    def __init__(self, *columns: Tensor, augments: bool = False) -> None:
        self.columns = columns
        self.augments = augments
        self.num_loaded = 0

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Batch:
        return tuple(column[0] for column in self.__getitems__([index]))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The batch of some instances, which DataLoader asks for where there is this method."""
        self.num_loaded += len(indices)
        first = self.columns[0]
        places = torch.tensor(indices)
        if first.is_cuda:
            places = places.pin_memory().to(first.device, non_blocking=True)
        batch = [column[places] for column in self.columns]
        return (augmented(batch[0]), *batch[1:]) if self.augments else tuple(batch)


def augmented(images: Tensor) -> Tensor:
    """Images flipped at random, and shifted by up to an eighth, shape ``(B, C, H, W)``."""
    count, _, height, width = images.shape
    margin, device = height // 8, images.device
    padded = torch.nn.functional.pad(images, [margin] * 4)
    shifts = torch.randint(2 * margin + 1, (2, count, 1), device=device)
    rows = shifts[0] + torch.arange(height, device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    flips = torch.rand(count, 1, device=device) < 0.5
    columns = shifts[1] + torch.where(flips, width - 1 - columns, columns)
    return padded[torch.arange(count, device=device)[:, None, None], :, rows[:, :, None], columns[:, None, :]].movedim(
        3, 1
    )


def as_it_is(batch: Any) -> Any:
    """What collates batches that are batches already."""
    return batch


class DeviceData(pl.LightningDataModule):
    """A shuffled train loader, and one to measure on.

    Args:
        train: To train on.
        held_out: To measure on; None: nothing.
        batch_size: B.
    """

    def __init__(self, train: OnDevice, held_out: OnDevice | None, batch_size: int) -> None:
        super().__init__()
        self.train, self.held_out, self.batch_size = train, held_out, batch_size

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(self.train, self.batch_size, shuffle=True, collate_fn=as_it_is)

    def val_dataloader(self) -> Any:
        return [] if self.held_out is None else DataLoader(self.held_out, 2000, collate_fn=as_it_is)
