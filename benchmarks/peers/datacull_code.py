"""RCAP as its authors' package datacull has it, in a Lightning project.

Source: Hassan et al., RCAP, UAI 2025; https://pypi.org/project/datacull/. ``pip install datacull``.

Its ``pruning_rate`` is the share that is *kept*.
"""

from __future__ import annotations

import tempfile
from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from benchmarks.images.data import ImageData
from benchmarks.peers.schedule import ProgressModule

BETA = 1.0  # one of those that its documentation names


class RCAPData(pl.LightningDataModule):
    """The images, chosen anew each epoch by the losses that the one before wrote down.

    Args:
        data: The images.
        keep_ratio: Share of them that an epoch has, in (0, 1].

    Raises:
        ModuleNotFoundError: If datacull is not installed.
    """

    def __init__(self, data: ImageData, keep_ratio: float) -> None:
        super().__init__()
        from datacull import DCDataset, DCLogger, RCAPDataLoader, RCAPImportance

        self.data = data
        self._folder = tempfile.TemporaryDirectory()
        rows = DCDataset(data.train)
        self.losses = DCLogger(trajectory_dir=f"{self._folder.name}/")
        self.importance = RCAPImportance(rows, self.losses, beta=BETA)
        self.loader = RCAPDataLoader(rows, keep_ratio, batch_size=data.batch_size)

    def train_dataloader(self) -> DataLoader[Any]:
        self.loader.resample(self.importance.compute_importance())
        return self.loader

    def val_dataloader(self) -> DataLoader[Any]:
        return self.data.val_dataloader()

    def close(self) -> None:
        """Remove what was written down."""
        self._folder.cleanup()


class RCAPModule(ProgressModule):
    """The module, with the losses of the instances written down.

    Args:
        data: What is trained on.
        options: Of :class:`~benchmarks.peers.schedule.ProgressModule`.
    """

    def __init__(self, data: RCAPData, **options: Any) -> None:
        super().__init__(**options)
        self.losses = data.losses

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels, indices = batch
        losses = F.cross_entropy(self(images), labels, reduction="none")
        self.losses.log_metric(self.current_epoch, indices, losses.detach())
        return losses.mean()
