"""Loaders that cannot be filtered are trained on as they are, with one warning."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from lightning_autoassist import diagnose
from lightning_autoassist.filtering.sampling.indexed_data import UnfilterableError, indexed_data
from tests.helpers.loaders import Multiscale, Order, Remembering, Rows, fit, multiscale, rows, shuffled
from tests.helpers.ordinary import Classifier, trainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:this run trains on", "ignore:max_steps=", "ignore:You defined a `validation_step` but have no"
)


class Repeats:
    def __init__(self, batches):
        self.sampler = batches

    def __iter__(self):
        while True:
            yield from self.sampler


class Reused(DataLoader):
    """Keeps its workers over epochs by one iteration that never ends, as timm's and ultralytics' loaders do."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        object.__setattr__(self, "batch_sampler", Repeats(self.batch_sampler))
        self.iteration = super().__iter__()

    def __len__(self):
        return len(self.batch_sampler.sampler)

    def __iter__(self):
        for _ in range(len(self)):
            yield next(self.iteration)


class Early(DataLoader):
    """The same over an ordinary batch sampler."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.iteration = super().__iter__()

    def __iter__(self):
        yield from self.iteration
        self.iteration = super().__iter__()


class OddBatches(BatchSampler):
    pass


class Whole(Rows):
    """A data set of whole batches."""

    def __getitem__(self, index):
        return [self.rows.features[10 * index : 10 * index + 10], self.rows.labels[10 * index : 10 * index + 10]]


PASSED_ON = {
    "tuples": (lambda: multiscale([(index, 224) for index in range(200)]), r"keys of type tuple \(\(0, 224\)\)"),
    "strings": (lambda: multiscale([f"id{index}" for index in range(200)]), "keys of type str"),
    "a subset of strings": (
        lambda: DataLoader(Multiscale(200), 10, sampler=SubsetRandomSampler([f"id{index}" for index in range(200)])),
        "keys of type str",
    ),
    "reals": (lambda: multiscale([index + 0.5 for index in range(200)]), "keys of type float"),
    "huge": (lambda: DataLoader(Modulo(200), 10, sampler=Order(lambda: [2**70] * 200, 200)), "keys of type int"),
    "no length": (lambda: rows(shuffle=None, sampler=Order(shuffled(0, 200))), "no length, .*steps_per_epoch=..."),
    "reused": (lambda: Reused(Rows(200), 10, shuffle=True), "Reused takes its batches from an iteration"),
    "early": (lambda: Early(Rows(200), 10, shuffle=True), "Early takes its batches from an iteration"),
    "its own length": (lambda: Shortened(Rows(200), 5, shuffle=True), "Shortened has 20 batches by its own __len__"),
    "own batches": (
        lambda: DataLoader(Rows(200), batch_sampler=OddBatches(SequentialSampler(range(200)), 10, False)),
        "OddBatches decides which instances share a batch.*max_tokens=.*flatten=True",
    ),
    "list of batches": (
        lambda: DataLoader(Rows(200), batch_sampler=torch.arange(200).view(20, 10).tolist()),
        "list decides which instances share a batch",
    ),
    "whole batches": (lambda: DataLoader(Whole(20), batch_size=None, shuffle=True), "batch_size=None"),
    "neither has a length": (
        lambda: DataLoader(Rows(None), 10, sampler=Order(shuffled(0, 200))),
        "neither the data set .Rows. nor the sampler .Order. has a length",
    ),
    "the only batch is short": (lambda: DataLoader(Rows(7), 10), "7 instances a pass, fewer than one batch of 10"),
}


class Modulo(Rows):
    def __getitem__(self, index):
        return super().__getitem__(index % 200)


class Shortened(DataLoader):
    def __len__(self):
        return 20


@pytest.mark.parametrize(("make_loader", "message"), PASSED_ON.values(), ids=PASSED_ON)
def test_a_loader_that_cannot_be_filtered_is_trained_on_as_it_is(make_loader, message):
    pl.seed_everything(0, verbose=False)
    plain = Remembering()
    trainer(max_epochs=2).fit(plain, make_loader())
    with pytest.warns(UserWarning, match=f"(?i)unfiltered.*budget=0.6 saves nothing.*{message}") as caught:
        _, module, data, callback = fit(make_loader, max_epochs=2)
    assert sum("unfiltered" in str(warning.message) for warning in caught) == 1
    assert module.steps == plain.steps
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), plain.parameters(), strict=True))
    assert data.candidate_stream is None
    summary = callback.summary()
    assert summary["saved_ratio"] == 0
    assert summary["keep_rate"] == 1
    assert summary["instances_seen"] == sum(map(len, plain.steps))


class Several(pl.LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.loaders = loaders

    def train_dataloader(self):
        return self.loaders


class TakesSeveral(Classifier):
    def training_step(self, batch, batch_idx):
        batches = list(batch.values()) if isinstance(batch, dict) else batch
        return sum(super(TakesSeveral, self).training_step(one, batch_idx) for one in batches)


@pytest.mark.parametrize(
    "loaders",
    [
        lambda: [rows(), rows(batch_size=20)],
        lambda: {"a": rows(), "b": rows(batch_size=20)},
        lambda: CombinedLoader([rows(), rows(batch_size=20)], "min_size"),
        lambda: (rows(), rows()),
    ],
    ids=["list", "dict", "combined", "tuple"],
)
def test_several_train_loaders_are_trained_on_as_they_are(loaders):
    pl.seed_everything(0, verbose=False)
    plain, plain_run = TakesSeveral(), trainer(max_epochs=2)
    plain_run.fit(plain, datamodule=Several(loaders()))
    with pytest.warns(UserWarning, match="unfiltered.*needs one torch DataLoader to train on, got a") as caught:
        run, module, *_ = fit(Several(loaders()), module=TakesSeveral, max_epochs=2)
    assert sum("unfiltered" in str(warning.message) for warning in caught) == 1
    assert run.global_step == plain_run.global_step
    assert all(torch.equal(*pair) for pair in zip(module.parameters(), plain.parameters(), strict=True))


def test_diagnose_says_that_a_loader_is_passed_on():
    loader = DataLoader(Rows(200), batch_sampler=OddBatches(SequentialSampler(range(200)), 10, False))
    diagnosis = diagnose(Classifier(), loader, quiet=True)
    assert "OddBatches decides which instances share a batch" in str(diagnosis)
    assert "would train it unfiltered" in str(diagnosis)


def test_it_is_said_once_however_often_the_loader_is_made():
    class Again(Several):
        def train_dataloader(self):
            return [rows(), rows()]

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Again(None), module=TakesSeveral(), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert sum("unfiltered" in str(warning.message) for warning in caught) == 1


def test_a_data_set_too_large_to_remember():
    with pytest.raises(UnfilterableError, match="1,000,000,000 instances, of which more than 100,000,000 are not rem"):
        indexed_data(DataLoader(Rows(10**9), 10), by_tokens=False, flatten=False)
    with pytest.warns(UserWarning, match="unfiltered.*as an IterableDataset it is filtered"):
        run, *_ = fit(DataLoader(Modulo(10**12), 10), max_epochs=-1, max_steps=5)
    assert run.global_step == 5


def test_a_batch_that_nobody_asked_for_is_trained_on_unfiltered():
    class Doubled(DataLoader):
        def __iter__(self):
            for batch in super().__iter__():
                yield batch
                yield batch

    loader = Doubled(Rows(200), 10, shuffle=True)
    with pytest.warns(UserWarning, match="gives batches that it was not asked for") as caught:
        run, *_ = fit(loader, module=Classifier(), policy="proportional")
    assert sum("was not asked for" in str(warning.message) for warning in caught) == 1
    assert run.global_step == 5 * 12


def test_looking_at_the_first_key_leaves_no_trace():
    class Own(Sampler):
        def __init__(self):
            self.epoch, self.items = 0, list(range(50))
            self.torchs, self.numpys = torch.Generator().manual_seed(1), np.random.default_rng(1)
            self.old, self.pythons = np.random.RandomState(1), random.Random(1)

        def __iter__(self):
            self.epoch += 1
            random.shuffle(self.items)
            draws = (
                self.pythons.random(),
                self.numpys.random(),
                self.old.rand(),
                torch.rand((), generator=self.torchs),
            )
            yield from self.items[: 40 + int(sum(draws))]

        def __len__(self):
            return 40

    pl.seed_everything(0, verbose=False)
    expected, sampler = list(Own()), Own()
    pl.seed_everything(0, verbose=False)
    indexed_data(DataLoader(Rows(50), 10, sampler=sampler), by_tokens=False, flatten=False)
    assert sampler.epoch == 0
    assert list(sampler) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_torchdatas_stateful_loader_is_filtered(num_workers, shuffle):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata's own
    loader = stateful.StatefulDataLoader(Rows(200), 10, shuffle=shuffle, num_workers=num_workers)
    _, module, _, callback = fit(loader)
    assert len(module.steps) == 5 * 12
    assert callback.summary()["keep_rate"] < 1
    assert sorted(index for step in module.steps[:20] for index in step) == list(range(200))
