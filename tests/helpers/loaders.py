"""Data sets and samplers whose runs are watched batch by batch."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    Sampler,
)

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import Classifier, CountingDataset, index_of, trainer


def current_draw(trainer):
    """What the batch that is trained on was drawn with; None where AutoAssist drew none."""
    return next((each._steps.draw for each in trainer.callbacks if isinstance(each, AutoAssistCallback)), None)


class Remembering(Classifier):
    """Notes the instances of each step, and that they are those that were drawn."""

    def __init__(self, **options):
        super().__init__(**options)
        self.steps = []

    def training_step(self, batch, batch_idx):
        indices = index_of(batch[0])
        self.steps.append(indices.tolist())
        drawn = current_draw(self.trainer)
        if drawn is not None:
            assert (drawn.indices % NUM_ROWS).tolist() == indices.tolist()
        return super().training_step(batch, batch_idx)


NUM_ROWS = 1000


class Rows(Dataset):
    """Instances of :class:`CountingDataset`, by position; of any length it likes to tell, or none."""

    def __init__(self, length=None):
        self.rows = CountingDataset(NUM_ROWS)
        self.length = length

    def __getitem__(self, index):
        return self.rows.features[index], self.rows.labels[index]

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length


class Order(Sampler):
    """Indices from a function, in a new order each time; of a length, or none."""

    def __init__(self, indices, length=None):
        self.indices, self.length = indices, length

    def __iter__(self):
        return iter(self.indices())

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length


def shuffled(low, high):
    return lambda: (low + torch.randperm(high - low)).tolist()


def fit(loader, *callbacks, module=None, policy="autoassist", data_options=None, update="sync", **options):
    pl.seed_everything(0, verbose=False)
    module = Remembering() if module is None else module() if isinstance(module, type) else module
    callback = AutoAssistCallback(policy=policy, update=update)
    data = AutoAssistDataModule(loader() if callable(loader) else loader, **(data_options or {}))
    run = trainer(**{"max_epochs": 5, "callbacks": [callback, *callbacks], **options})
    run.fit(module, datamodule=data)
    return run, module, data, callback


class Multiscale(Rows):
    def __getitem__(self, key):
        return super().__getitem__(key[0] if isinstance(key, tuple) else int(float(str(key).removeprefix("id"))))


def rows(**options):
    return DataLoader(Rows(200), **{"batch_size": 10, "shuffle": True, **options})


def multiscale(keys, **options):
    return DataLoader(Multiscale(200), batch_size=10, sampler=Order(lambda: keys, len(keys)), **options)
