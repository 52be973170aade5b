"""Candidates are judged for several batches at once, and batches are learnt from together: seldom, and unnoticed."""

from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, LogisticAssistant, ShrinkingBatchSampler
from lightning_autoassist.filtering import selector as selector_module
from lightning_autoassist.filtering.sampling.index_batches import BATCHES_AHEAD
from tests.helpers.ordinary import Classifier, ClustersData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


@pytest.mark.parametrize("keep_rate", [1.0, 0.5, 0.1])
def test_candidates_are_judged_as_many_at_once_as_four_batches_need(keep_rate):
    """However few are kept: ten candidates for one that is kept are no ten times as many calls."""
    sizes = []

    def judge(indices, pass_index):
        sizes.append(len(indices))
        return np.full(len(indices), keep_rate)

    sampler = ShrinkingBatchSampler(range(100_000), 50, budget=1.0, keep_probability=judge)
    num_batches = 200
    for number, draw in enumerate(sampler.draws(num_batches)):
        sampler.mark_consumed(draw)
        waiting = sampler._batcher.num_waiting
        assert waiting < (BATCHES_AHEAD + 2) * 50, number
    assert len(sizes) < num_batches / 2
    assert max(sizes) <= 1.2 * BATCHES_AHEAD * 50 / keep_rate


def test_without_anything_to_judge_none_is_considered_ahead():
    sampler = ShrinkingBatchSampler(range(1000), 50, budget=1.0)
    next(sampler.draws())
    assert sampler.num_considered == 50


def fit(monkeypatch, together, **options):
    monkeypatch.setattr(selector_module, "LEARNT_TOGETHER", together)
    pl.seed_everything(0, verbose=False)
    callback, module = AutoAssistCallback(**options), Classifier()
    trainer(max_epochs=4, callbacks=[callback]).fit(
        module, datamodule=AutoAssistDataModule(ClustersData(200, 10), budget=0.6)
    )
    return callback, module


@pytest.mark.parametrize("options", [{}, {"lag": 3}, {"policy": "autoassist"}, {"assistant": "hybrid"}], ids=str)
def test_batches_that_are_learnt_from_together_give_the_run_of_one_at_a_time(options, monkeypatch):
    one, together = fit(monkeypatch, 1, **options), fit(monkeypatch, 8, **options)
    for name, values in one[1].state_dict().items():
        assert torch.equal(values, together[1].state_dict()[name]), name
    assert torch.equal(one[0].instances.scores, together[0].instances.scores)
    assert one[0].summary()["assistant_loss"] == together[0].summary()["assistant_loss"]


def test_who_asks_in_the_middle_of_training_sees_every_batch_so_far():
    class Asking(pl.Callback):
        num_seen = 0

        def on_train_batch_end(self, run, module, outputs, batch, batch_idx):
            callback = run.callbacks[0]
            self.num_seen += 1
            assert callback.instances.num_batches == self.num_seen
            assert callback.state_dict()["selector"]["store"]["num_batches"] == self.num_seen

    asking = Asking()
    callbacks = [AutoAssistCallback(), asking]
    data = AutoAssistDataModule(ClustersData(200, 10), budget=0.6)
    trainer(max_epochs=4, callbacks=callbacks).fit(Classifier(), datamodule=data)
    assert asking.num_seen == 48


def test_an_assistant_that_fails_later_costs_no_run_either():
    class Failing(LogisticAssistant):
        num_updates = 0

        def update(self, instances, scores):
            self.num_updates += 1
            if self.num_updates == 27:
                raise ArithmeticError("no opinion")
            return super().update(instances, scores)

    assistant = Failing()
    data = AutoAssistDataModule(ClustersData(200, 10), budget=0.6)
    with pytest.warns(UserWarning, match="training goes on with every instance.*no opinion") as caught:
        trainer(max_epochs=5, callbacks=[AutoAssistCallback(assistant=assistant)]).fit(Classifier(), datamodule=data)
    assert sum("stopped filtering" in str(one.message) for one in caught) == 1
    assert assistant.num_updates == 27
