"""Networks in blocks, as users write them, and small runs over them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.ordinary import trainer

NUM_CLASSES, SIZE = 4, 8
BLOCKS = ["block1", "block2", "block3"]


def images(num_instances: int = 96, seed: int = 0) -> TensorDataset:
    """Images of one bright quarter among four, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(NUM_CLASSES, (num_instances,), generator=generator)
    pictures = torch.randn(num_instances, 1, SIZE, SIZE, generator=generator)
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        picture[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1.0
    return TensorDataset(pictures, labels)


def convolutions(before: int, after: int, *, dropout: float = 0.0, stride: int = 1) -> nn.Sequential:
    """A block of two convolutions, with in-place operations."""
    layers: list[nn.Module] = [
        nn.Conv2d(before, after, 3, stride, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
        nn.Conv2d(after, after, 3, 1, 1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


class Blocks(pl.LightningModule):
    """Four blocks of convolutions, or three and a classifier."""

    def __init__(self, *, dropout: float = 0.0, optimizer: str = "sgd", skip: bool = False, width: int = 8) -> None:
        super().__init__()
        self.optimizer, self.skip = optimizer, skip
        self.block1 = convolutions(1, width, dropout=dropout)
        self.block2 = convolutions(width, width, dropout=dropout)
        self.block3 = convolutions(width, 2 * width, dropout=dropout, stride=2)
        self.classifier = nn.Linear(2 * width, NUM_CLASSES)
        self.losses: list[float] = []

    def forward(self, pictures: Tensor) -> Tensor:
        first = self.block1(pictures)
        second = self.block2(first)
        third = self.block3(second + first if self.skip else second)
        return self.classifier(third.mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pictures, labels = batch
        loss = F.cross_entropy(self(pictures), labels, label_smoothing=0.1)
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pictures, labels = batch
        logits = self(pictures)
        self.log("val_loss", F.cross_entropy(logits, labels))
        self.log("val_accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        if self.optimizer == "adamw":
            return torch.optim.AdamW(self.parameters(), lr=3e-3)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    module: pl.LightningModule,
    *callbacks: Any,
    num_instances: int = 90,
    epochs: int = 2,
    shuffle: bool = True,
    resume: Any = None,
    **options: Any,
) -> Any:
    """One fit on batches of 16, the last one shorter; returns the Trainer."""
    run = trainer(**{"max_epochs": epochs, "callbacks": list(callbacks), **options})
    train = DataLoader(images(num_instances), 16, shuffle=shuffle)
    run.fit(module, train, DataLoader(images(32, seed=1), 16), ckpt_path=resume)
    return run


def made(seed: int = 0, **options: Any) -> Blocks:
    """A module with weights of a seed."""
    pl.seed_everything(seed, verbose=False)
    return Blocks(**options)
