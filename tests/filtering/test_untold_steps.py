"""Steps whose losses cannot be told apart pass unfiltered, and filtering goes on."""

from __future__ import annotations

import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, diagnose
from lightning_autoassist.filtering.filter_status import FIRST_UNTOLD, MAX_UNTOLD
from tests.helpers.ordinary import Classifier, ClustersData, trainer

N, B = 120, 10


class ZeroOnce(Classifier):
    def training_step(self, batch, batch_idx):
        if self.trainer.current_epoch == 1 and batch_idx == 0:
            return 0.0 * self.net[1].weight.sum()
        return super().training_step(batch, batch_idx)


class ZeroFirst(Classifier):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 0:
            return 0.0 * self.net[1].weight.sum()
        return super().training_step(batch, batch_idx)


class BatchLevelEpoch(Classifier):
    """One epoch of a loss of the batch as a whole."""

    epoch = 1

    def training_step(self, batch, batch_idx):
        if self.trainer.current_epoch == self.epoch:
            return self.net(batch[0]).logsumexp((0, 1))
        return super().training_step(batch, batch_idx)


class BatchLevelFirstEpoch(BatchLevelEpoch):
    epoch = 0


class LabelledRows(Classifier):
    """Every third batch has an instance without a label."""

    def training_step(self, batch, batch_idx):
        features, labels = batch
        rows = torch.arange(len(labels)) < len(labels) - (batch_idx % 3 == 0)
        return F.cross_entropy(self.net(features)[rows], labels[rows])


class NeverAgain(Classifier):
    def training_step(self, batch, batch_idx):
        if self.trainer.global_step > 5:
            return self.net(batch[0]).logsumexp((0, 1))
        return super().training_step(batch, batch_idx)


class Never(Classifier):
    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).logsumexp((0, 1))


def fit(module, epochs=12, callback=None, **options):
    pl.seed_everything(0, verbose=False)
    callback = AutoAssistCallback(**options) if callback is None else callback
    run = trainer(max_epochs=epochs, callbacks=[callback])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(module, datamodule=AutoAssistDataModule(ClustersData(N, B), budget=0.6))
    return callback, [str(each.message) for each in caught if "assigned to instances" in str(each.message)]


@pytest.mark.parametrize("module", [ZeroOnce, BatchLevelEpoch, LabelledRows], ids=lambda module: module.__name__)
@pytest.mark.parametrize("options", [{}, {"update": "async"}], ids=str)
def test_filtering_goes_on_with_one_warning(module, options):
    callback, (message,) = fit(module(), **options)
    assert "Filtering goes on" in message
    assert f"{MAX_UNTOLD} of them in a row" in message
    assert f"{module.__name__}.training_step" in message
    assert callback._learner.is_filtering
    assert callback._learner.reason is None
    assert callback.summary()["keep_rate"] < 0.9


def test_a_first_step_that_cannot_be_told_apart_costs_nothing():
    callback, messages = fit(ZeroFirst())
    assert messages == []
    assert callback.summary()["keep_rate"] < 0.9


def test_a_first_epoch_of_another_loss_is_reported_and_filtering_begins_after_it():
    callback, (message,) = fit(BatchLevelFirstEpoch(), epochs=24)
    assert "AutoAssist stopped filtering" in message
    assert f"first {FIRST_UNTOLD} steps" in message
    assert callback.summary()["keep_rate"] < 0.9
    assert callback._learner.reason is None


def test_many_in_a_row_end_filtering_with_their_count():
    callback, messages = fit(NeverAgain())
    assert len(messages) == 2
    assert "Filtering goes on" in messages[0]
    assert "AutoAssist stopped filtering" in messages[1]
    assert f"losses of {MAX_UNTOLD} steps in a row" in messages[1]
    assert not callback._learner.is_filtering
    assert "logsumexp" not in callback._learner.reason


def test_a_module_that_is_never_told_apart_is_reported_once_and_early():
    class Counting(Never):
        steps = 0

        def training_step(self, batch, batch_idx):
            self.steps += 1
            return super().training_step(batch, batch_idx)

    steps, module = [], Counting()
    callback = AutoAssistCallback()
    pl.seed_everything(0, verbose=False)
    run = trainer(max_epochs=12, callbacks=[callback])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        show = warnings.showwarning
        warnings.filterwarnings("always", message="AutoAssist stopped filtering")
        warnings.showwarning = lambda *_, **__: steps.append(module.steps)
        try:
            run.fit(module, datamodule=AutoAssistDataModule(ClustersData(N, B), budget=0.6))
        finally:
            warnings.showwarning = show
    assert steps == [FIRST_UNTOLD]
    assert module.steps > MAX_UNTOLD
    assert not callback._learner.is_filtering  # it is not looked at any more
    assert callback.summary()["keep_rate"] == 1


def test_check_says_why_also_of_a_run_too_short_for_the_warning():
    for options in ({}, {"num_steps": 1}):
        found = diagnose(Never(), ClustersData(N, B), quiet=True, accelerator="cpu", **options)
        assert not found.is_filtered
        assert "Never.training_step" in found.reason


def test_the_count_goes_on_after_an_interruption(tmp_path):
    """Fifty in a row are fifty, wherever the run was interrupted."""

    class Watch(AutoAssistCallback):
        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            self.counts.append((self._learner.status._num_untold, self._learner.is_filtering))

    def run(epochs, **options):
        pl.seed_everything(0, verbose=False)
        callback = Watch()
        callback.counts = []
        fitted = trainer(max_epochs=epochs, callbacks=[callback])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted.fit(NeverAgain(), datamodule=AutoAssistDataModule(ClustersData(N, B), budget=0.6), **options)
            fitted.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return callback.counts

    whole, first = run(10), run(4)
    assert whole == first + run(10, ckpt_path=tmp_path / "4.ckpt")
    assert not whole[-1][1]


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("dtype", [torch.uint8])
@pytest.mark.parametrize("policy", ["proportional", "autoassist"])
def test_labels_of_every_type_that_cross_entropy_takes_filter_alike(dtype, policy):
    data = ClustersData(N, B).train_set
    rates = []
    for labels in (data.labels, data.labels.to(dtype)):
        pl.seed_everything(0, verbose=False)
        callback = AutoAssistCallback(policy=policy, reweighting="inverse_probability")
        loader = DataLoader(TensorDataset(data.features, labels), B, shuffle=True)
        module = Classifier()
        trainer(max_epochs=6, callbacks=[callback]).fit(module, datamodule=AutoAssistDataModule(loader, budget=0.6))
        rates.append((callback.summary()["keep_rate"], [p.sum().item() for p in module.parameters()]))
    assert rates[0] == rates[1]
    assert rates[0][0] < 1
