from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, diagnose
from lightning_autoassist.filtering.diagnosis import _watched
from tests.end_to_end.test_streaming_runs import Stream
from tests.helpers.ordinary import Classifier, ClustersData


class TwoLosses(Classifier):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        logits = self.net(features)
        return F.cross_entropy(logits, labels) + 0.3 * F.mse_loss(logits, torch.zeros_like(logits), reduction="sum")


class Opaque(Classifier):
    def training_step(self, batch, batch_idx):
        return sum(parameter.square().sum() for parameter in self.parameters())


def test_the_table_names_call_folding_coefficient_and_cost(capsys):
    diagnosis = diagnose(TwoLosses(), ClustersData(100, 10))
    assert diagnosis.is_filtered
    assert [loss.reduction for loss in diagnosis.losses] == ["mean", "sum"]
    assert [loss.coefficient for loss in diagnosis.losses] == pytest.approx([1.0, 0.3])
    assert all("test_diagnosis.py:" in loss.source for loss in diagnosis.losses)
    assert 0 < diagnosis.plain_ms < 1000
    assert 0 < diagnosis.captured_ms < 1000
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].startswith("TwoLosses: AutoAssistCallback can filter its training, ")
    assert "cross_entropy at test_diagnosis.py" in printed
    assert "one row each" in printed
    assert "ms with capture and Assistant" in printed


def test_each_step_that_is_timed_with_the_assistant_is_learnt_from_in_it():
    watching = _watched(pl, Classifier(), ClustersData(200, 10), 14, {})
    assert watching._learner.store.num_batches == len(watching.milliseconds[True]) + 1 == 7  # one to warm up


def test_a_loss_that_cannot_be_read_is_explained(capsys):
    diagnosis = diagnose(Opaque(), ClustersData(100, 10))
    assert not diagnosis.is_filtered
    assert diagnosis.losses == []
    printed = capsys.readouterr().out
    assert "Opaque: AutoAssistCallback would train it unfiltered. " in printed
    assert "Opaque.training_step" in printed
    assert "instance_loss" in printed


def test_the_module_stays_as_it_is_and_quiet_is_quiet(capsys):
    module = Classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    diagnose(module, ClustersData(100, 10), quiet=True)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module._trainer is None
    assert capsys.readouterr().out == ""


class Observes(Classifier):
    def configure_callbacks(self):
        return [AutoAssistCallback(policy="uniform", dynamics=True)]


def test_a_callback_of_the_modules_own_is_left_out_and_what_it_does_is_said():
    said = (
        "The check left out the AutoAssistCallback with UniformPolicy. It keeps every candidate, and filters nothing."
    )
    for module, callbacks in ((Observes(), None), (Classifier(), [AutoAssistCallback(policy="uniform")])):
        diagnosis = diagnose(module, ClustersData(100, 10), quiet=True, callbacks=callbacks)
        assert diagnosis.is_filtered
        assert str(diagnosis).splitlines()[-1] == said


def test_something_else_than_a_module_is_refused():
    with pytest.raises(TypeError, match="module must be a LightningModule, got a Linear"):
        diagnose(torch.nn.Linear(1, 1), ClustersData())


def test_a_stream_without_a_length_is_told_its_steps():
    stream = DataLoader(Stream(100), batch_size=10)
    assert diagnose(Classifier(), AutoAssistDataModule(stream, steps_per_epoch=5), quiet=True).is_filtered
    unfiltered = diagnose(Classifier(), stream, quiet=True)
    assert not unfiltered.is_filtered
    assert "steps_per_epoch=" in unfiltered.reason


def test_a_module_that_keeps_a_result_of_its_last_step_is_copied_all_the_same():
    module = Classifier()
    module.kept = module.net(torch.zeros(2, 8))
    assert diagnose(module, ClustersData(200, 10), quiet=True, accelerator="cpu").is_filtered
    assert module.kept.requires_grad
