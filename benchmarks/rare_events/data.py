"""Two classes, one of them rare: a forest cover type against the other six.

Shapes: N instances, F features, B batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common.covtype import CoverTypes, cover_types
from benchmarks.common.training import LoadCounter

COVTYPE_SETS = {"covtype-4": 4, "covtype-5": 5, "covtype-7": 7}  # 0.5, 1.6 and 3.5 % positives
MADE = "made"
RARE_SETS = (*COVTYPE_SETS, MADE)
# Of all instances: to train on, to choose rates on; the rest is for testing.
TRAIN_RATIO, HELD_OUT_RATIO = 400_000 / 581_012, 40_000 / 581_012
EVAL_BATCH_SIZE = 8192


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


def load_events(name: str, data_dir: Path, *, choosing: bool) -> EventSplit:
    """A data set, split by a fixed seed. The training instances are the same in both phases.

    Args:
        name: In ``RARE_SETS``.
        data_dir: Where the data are, or are downloaded to.
        choosing: Whether to choose learning rates: then the held-out instances take the test instances' place.

    Raises:
        FileNotFoundError: If the data are not there and cannot be downloaded.
    """
    features, is_rare = made() if name == MADE else _of_class(cover_types(data_dir), COVTYPE_SETS[name])
    order = np.random.default_rng(0).permutation(len(features))
    num_train, num_held_out = (round(len(features) * ratio) for ratio in (TRAIN_RATIO, HELD_OUT_RATIO))
    train, held_out, test = np.split(order, [num_train, num_train + num_held_out])
    mean, deviation = features[train].mean(0), features[train].std(0)
    scaled = (features - mean) / np.where(deviation > 0, deviation, 1)
    return EventSplit(_rows(scaled, is_rare, train), _rows(scaled, is_rare, held_out if choosing else test))


def made() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Two Gaussian clouds that overlap, 2,400 instances of 10 features, 6 % rare: the same at each call."""
    rng = np.random.default_rng(0)
    is_rare = rng.random(2_400) < 0.06
    features = rng.normal(size=(2_400, 10)) + 0.8 * is_rare[:, None]
    return features.astype(np.float32), is_rare


def _of_class(data: CoverTypes, positive: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    return data.features, data.classes == positive


def _rows(features: npt.NDArray[np.float32], is_rare: npt.NDArray[np.bool_], chosen: npt.NDArray[np.int64]) -> Events:
    return Events(torch.from_numpy(features[chosen]), torch.from_numpy(is_rare[chosen].astype(np.int64)))


class EventRows(Dataset[tuple[Tensor, Tensor]]):
    """Instances that are read a batch at a time, counting how many were.

    Args:
        events: The data.

    Attributes:
        targets: The labels, shape ``(N,)``.
    """

    def __init__(self, events: Events) -> None:
        self.events = events
        self.targets = events.labels
        self.loads = LoadCounter()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.loads.add()
        return self.events.features[index], self.events.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        self.loads.add(len(indices))
        rows = torch.tensor(indices)
        return self.events.features[rows], self.events.labels[rows]


class EventData(pl.LightningDataModule):
    """A shuffled train loader of full batches, and one of the instances that are measured on.

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
