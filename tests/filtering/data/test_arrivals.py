"""Hooks between the loader and the step that put a batch's rows in another order."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import trainer

N, D, C = 60, 4, 3
pytestmark = [
    pytest.mark.filterwarnings("ignore:this run trains on"),
    pytest.mark.filterwarnings("ignore:You have overridden"),
]


class Plain(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(D, C)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Permuting(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        order = torch.randperm(len(batch[0]))
        return [part[order] for part in batch]


class PermutingEarly(Plain):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        order = batch[0][:, 0].argsort()
        return [part[order] for part in batch]


class PermutingNowAndThen(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [part.flip(0) for part in batch] if self.global_step % 3 == 2 else batch


class PermutingInPlace(Plain):
    def on_train_batch_start(self, batch, batch_idx):
        for part in batch:
            part.copy_(part.flip(0))


class PermutingOnItsWay(Plain):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return super().transfer_batch_to_device([part.flip(0) for part in batch], device, dataloader_idx)


class Augmenting(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + torch.randn_like(batch[0]), batch[1]]


class AugmentingInPlace(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch[0].add_(1.0)
        return batch


class Mixing(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        order = torch.randperm(len(x))
        return [0.7 * x + 0.3 * x[order], y, y[order]]

    def training_step(self, batch, batch_idx):
        out = self.net(batch[0])
        return 0.7 * F.cross_entropy(out, batch[1]) + 0.3 * F.cross_entropy(out, batch[2])


class Rotating(Plain):
    """Other targets than the labels, of the same classes: now and then they are a permutation of them."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        turns = torch.randint(0, C, (len(batch[0]),))
        return [batch[0] + turns[:, None], turns]


class Copying(Plain):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return [part.clone() for part in batch]


def keep_rate(module, batch_size, **options):
    pl.seed_everything(0, verbose=False)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)
    loader = DataLoader(TensorDataset(x, torch.arange(N) % C), batch_size, shuffle=True, **options)
    callback = AutoAssistCallback()
    run = trainer(max_epochs=4, callbacks=[callback])
    run.fit(module, datamodule=AutoAssistDataModule(loader, budget=0.6))
    return callback.summary()["keep_rate"]


PERMUTING = {
    Permuting: "on_after_batch_transfer",
    PermutingEarly: "on_before_batch_transfer",
    PermutingNowAndThen: "on_after_batch_transfer",
    PermutingInPlace: "on_train_batch_start",
    PermutingOnItsWay: "transfer_batch_to_device",
}


@pytest.mark.parametrize("module", PERMUTING, ids=lambda module: module.__name__)
@pytest.mark.parametrize("batch_size", [2, 6])
def test_hooks_that_permute_are_named(module, batch_size):
    with pytest.warns(UserWarning, match=f"stopped filtering.*another order.*{PERMUTING[module]}"):
        assert keep_rate(module(), batch_size) == 1


@pytest.mark.parametrize(
    "module", [Plain, Augmenting, AugmentingInPlace, Mixing, Copying], ids=lambda each: each.__name__
)
@pytest.mark.parametrize("batch_size", [2, 6])
def test_hooks_that_keep_the_order_are_not_refused(module, batch_size):
    assert keep_rate(module(), batch_size) < 1


def test_a_data_modules_hook_is_named():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.randn(N, D), torch.arange(N) % C), 6)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [part.roll(1, 0) for part in batch]

    run = trainer(max_epochs=4, callbacks=[AutoAssistCallback()])
    with pytest.warns(UserWarning, match=r"another order.*on_after_batch_transfer"):
        run.fit(Plain(), datamodule=AutoAssistDataModule(Data(), budget=0.6))


class PermutingLate(Plain):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [part.flip(0) for part in batch] if self.global_step >= 30 else batch


class SortingLate(Plain):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        if self.global_step >= 30:
            order = torch.randperm(len(labels))
            features, labels = features[order], labels[order]
        return F.cross_entropy(self.net(features), labels)


@pytest.mark.parametrize(
    ("module", "message"),
    [(PermutingLate, "on_after_batch_transfer"), (SortingLate, "in another order")],
    ids=lambda value: getattr(value, "__name__", "message"),
)
def test_rows_that_are_reordered_late_end_filtering(module, message):
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(N, D), torch.arange(N) % C), 10, shuffle=True)
    callback = AutoAssistCallback()
    with pytest.warns(UserWarning, match=message):
        trainer(max_epochs=60, callbacks=[callback]).fit(module(), datamodule=AutoAssistDataModule(loader, budget=0.6))
    assert callback.summary()["keep_rate"] > 0.7
