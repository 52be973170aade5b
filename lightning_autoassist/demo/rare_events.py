"""A project with rare events as a user has it: a small network on rows of a table; it knows nothing of AutoAssist.

Shapes: N instances, F features, B batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAveragePrecision

from lightning_autoassist.demo.covtype import cover_types

# Of all instances: to train on, to choose rates on; the rest is for testing.
TRAIN_RATIO, HELD_OUT_RATIO = 400_000 / 581_012, 40_000 / 581_012
EVAL_BATCH_SIZE = 8192
WIDTH = 128


class Events(NamedTuple):
    """Instances of two classes.

    Attributes:
        features: Shape ``(N, F)``, float32; mean 0 and standard deviation 1 over the training instances.
        labels: Shape ``(N,)``, int64: 1 is the rare class.
    """

    features: Tensor
    labels: Tensor


class EventSplit(NamedTuple):
    """What to train on, and what to measure on."""

    train: Events
    held_out: Events


def load_cover_type(positive: int, data_dir: Path, *, choosing: bool = False) -> EventSplit:
    """Forest cover types, one against the other six: 400,000 rows to train on, 141,012 to test on.

    Args:
        positive: The rare cover type, 1 to 7.
        data_dir: Where the data are, or are downloaded to.
        choosing: Whether to choose learning rates: then 40,000 other instances take the test instances' place.

    Raises:
        FileNotFoundError: If the data are not there and cannot be downloaded.
    """
    data = cover_types(data_dir)
    return split_events(data.features, data.classes == positive, choosing=choosing)


def split_events(features: npt.NDArray[np.float32], is_rare: npt.NDArray[np.bool_], *, choosing: bool) -> EventSplit:
    """Split by a fixed seed; the training instances are the same in both phases.

    Args:
        features: Shape ``(N, F)``.
        is_rare: Shape ``(N,)``.
        choosing: Whether the held-out instances take the test instances' place.
    """
    train, held_out, test = split_rows(len(features))
    mean, deviation = features[train].mean(0), features[train].std(0)
    scaled = (features - mean) / np.where(deviation > 0, deviation, 1)
    return EventSplit(_rows(scaled, is_rare, train), _rows(scaled, is_rare, held_out if choosing else test))


def split_rows(num_rows: int) -> list[npt.NDArray[np.int64]]:
    """Rows to train on, to choose rates on and to test on, by a fixed seed."""
    order = np.random.default_rng(0).permutation(num_rows)
    num_train, num_held_out = (round(num_rows * ratio) for ratio in (TRAIN_RATIO, HELD_OUT_RATIO))
    return np.split(order, [num_train, num_train + num_held_out])


def _rows(features: npt.NDArray[np.float32], is_rare: npt.NDArray[np.bool_], chosen: npt.NDArray[np.int64]) -> Events:
    return Events(torch.from_numpy(features[chosen]), torch.from_numpy(is_rare[chosen].astype(np.int64)))


class EventRows(Dataset[tuple[Tensor, Tensor]]):
    """Instances that are read a batch at a time.

    Args:
        events: The data.

    Attributes:
        targets: The labels, shape ``(N,)``.
    """

    def __init__(self, events: Events) -> None:
        self.events = events
        self.targets = events.labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.events.features[index], self.events.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)
        return self.events.features[rows], self.events.labels[rows]


class EventData(pl.LightningDataModule):
    """A shuffled train loader, and one of the instances that are measured on.

    Args:
        split: The instances.
        batch_size: B.
    """

    def __init__(self, split: EventSplit, batch_size: int) -> None:
        super().__init__()
        self.train = EventRows(split.train)
        self.held_out = EventRows(split.held_out)
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True, collate_fn=_as_it_is)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.held_out, EVAL_BATCH_SIZE, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch


def event_net(num_features: int, width: int = WIDTH) -> nn.Sequential:
    """Two hidden layers with batch normalisation: ``(B, F)`` features in, ``(B, 2)`` logits out.

    Args:
        num_features: F.
        width: Units of a hidden layer.
    """
    layers: list[nn.Module] = []
    for num_inputs in (num_features, width):
        layers += [nn.Linear(num_inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 2))


class EventClassifier(pl.LightningModule):
    """Cross-entropy, SGD with Nesterov momentum, and a OneCycle schedule over all the Trainer's steps.

    Args:
        net: Features in, two logits out.
        learning_rate: Peak of the schedule.
    """

    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate
        self.metrics = MetricCollection({"average_precision": BinaryAveragePrecision()}, prefix="val_")

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.net(features)
        return logits

    def log_odds(self, features: Tensor) -> Tensor:
        """Of the rare class, ``(B,)``, in double precision: float32 has many ties near probabilities of 0 and 1."""
        logits = self.forward(features)
        return (logits[:, 1] - logits[:, 0]).double()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        loss = F.cross_entropy(self(features), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        features, labels = batch
        self.metrics.update(torch.sigmoid(self.log_odds(features)), labels)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.metrics.compute())
        self.metrics.reset()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(
            self.parameters(), self.learning_rate, momentum=0.9, weight_decay=1e-5, nesterov=True
        )
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
