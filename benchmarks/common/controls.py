"""Controls for imbalanced classes: what practitioners do today, with plain Lightning and no Assistant.

Both train on as many batches an epoch as a policy of the same budget.

Shapes: N data set, B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, WeightedRandomSampler

from benchmarks.common.jobs import BALANCED, Method
from lightning_autoassist.filtering.sampling.candidates import batches_per_epoch

NEGATIVES_PER_POSITIVE = 10.0


class ControlledData(pl.LightningDataModule):
    """A data module whose train loader draws as a control does.

    Args:
        data: Its train loader's data set has the labels of all instances as ``targets``, shape ``(N,)``.
        method: A control: ``class_balanced_sampler``, or ``undersampled`` with ``ratio``, the instances of the other
            classes for each one of the rarest (10 where none is given).
        budget: Share of the full run's batches, in (0, 1].
    """

    def __init__(self, data: pl.LightningDataModule, method: Method, budget: float) -> None:
        super().__init__()
        self.data = data
        self.method = method
        self.budget = budget
        self._sampler: Sampler[int] | None = None

    def train_dataloader(self) -> DataLoader[Any]:
        loader = self.data.train_dataloader()
        if self._sampler is None:
            self._sampler = self._make_sampler(loader.dataset.targets, loader.batch_size)
        return DataLoader(
            loader.dataset,
            loader.batch_size,
            sampler=self._sampler,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            persistent_workers=loader.persistent_workers,
        )

    def val_dataloader(self) -> Any:
        return self.data.val_dataloader()

    def _make_sampler(self, labels: Tensor, batch_size: int) -> Sampler[int]:
        num_draws = batch_size * batches_per_epoch(len(labels), batch_size, self.budget)
        if self.method.name == BALANCED:
            weights = 1 / labels.bincount()[labels].double()
            return WeightedRandomSampler(weights.tolist(), num_draws, replacement=True)
        return PassesSampler(undersampled(labels, self.method.options.get("ratio", NEGATIVES_PER_POSITIVE)), num_draws)


class PassesSampler(Sampler[int]):
    """Shuffled passes over some instances, each epoch going on where the last one ended.

    Args:
        rows: Indices of the instances, shape ``(n,)``.
        num_draws: Instances an epoch.
    """

    def __init__(self, rows: Tensor, num_draws: int) -> None:
        self.rows = rows
        self.num_draws = num_draws
        self._left: list[int] = []

    def __len__(self) -> int:
        return self.num_draws

    def __iter__(self) -> Iterator[int]:
        for _ in range(self.num_draws):
            if not self._left:
                self._left = self.rows[torch.randperm(len(self.rows))].tolist()
            yield self._left.pop()


def undersampled(labels: Tensor, ratio: float) -> Tensor:
    """Indices of all instances of the rarest class, and of others drawn once without replacement.

    Args:
        labels: Shape ``(N,)``, integer.
        ratio: Others for each one of the rarest class, as far as there are so many; positive.

    Returns:
        Indices, shape ``(n,)``, in the data set's order.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> labels = torch.tensor([0, 0, 1, 0, 0])
        >>> chosen = undersampled(labels, ratio=2)
        >>> len(chosen), 2 in chosen
        (3, True)
    """
    is_rare = labels == labels.bincount().argmin()
    others = (~is_rare).nonzero().flatten()
    num_kept = min(len(others), round(ratio * int(is_rare.sum())))
    kept = others[torch.randperm(len(others))[:num_kept]]
    return torch.cat([is_rare.nonzero().flatten(), kept]).sort().values


def logit_correction(method: Method, labels: Tensor) -> float:
    r"""What the rare class's logit is off by, in nats, where the others were undersampled; else 0.

    Of two classes whose frequent one was kept with a share r, the odds of the rare one are 1/r times too high, so that
    :math:`\log r` belongs to its logit.

    Source: King & Zeng, Logistic Regression in Rare Events Data, Political Analysis 2001 (prior correction).

    Args:
        method: What trained.
        labels: Of the training instances, 0 or 1, shape ``(N,)``.
    """
    if not method.is_control or method.name == BALANCED:
        return 0.0
    ratio = method.options.get("ratio", NEGATIVES_PER_POSITIVE)
    num_rare = int(labels.sum())
    return math.log(min(1.0, ratio * num_rare / (len(labels) - num_rare)))
