"""Weights of policies that need no scores: they enter the gradient all the same, or training is unfiltered."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, ClassQuotaPolicy, Policy, RandomPolicy
from tests.helpers.loaders import current_draw
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, index_of, trainer


class EverySecond(Policy):
    """A user's rule that reads no scores: keeps by the position among the candidates."""

    needs_scores = False

    def keep_probability(self, scores):
        return torch.where(torch.arange(len(scores)) % 2 == 0, 1.0, 0.25)


class Linear(Classifier):
    """Never moves, and notes each step's gradient beside that of its instances alone."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 3)
        self.noted = []

    def training_step(self, batch, batch_idx):
        self.batch = batch
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_before_optimizer_step(self, optimizer):
        draw = self.trainer.datamodule.last
        features, labels = self.batch
        weights = torch.ones(len(labels)) if draw.weights is None else torch.from_numpy(draw.weights)
        losses = F.cross_entropy(self.net(features), labels, reduction="none")
        (expected,) = torch.autograd.grad((weights * losses).mean(), self.net.weight)
        torch.testing.assert_close(self.net.weight.grad, expected)
        self.noted.append(weights)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Remembering(AutoAssistDataModule):
    """Keeps the draw that a step is trained on."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        self.__dict__["last"] = current_draw(self.trainer)
        return batch


class Rows(IterableDataset):
    def __init__(self):
        self.source = CountingDataset(100)

    def __len__(self):
        return 100

    def __iter__(self):
        return (self.source[index] for index in range(100))


def fit(module, policy, reweighting="inverse_probability", data=None, **options):
    callback = AutoAssistCallback(policy=policy, reweighting=reweighting, unfiltered_tail=0)
    run = trainer(**{"max_epochs": 6, "limit_val_batches": 0, **options}, callbacks=[callback])
    wrapped = Remembering(data or ClustersData(100, 10), budget=0.6, seed=0)
    pl.seed_everything(0, verbose=False)
    run.fit(module, datamodule=wrapped)
    return callback, wrapped


@pytest.mark.parametrize("reweighting", ["inverse_probability", "normalized"])
@pytest.mark.parametrize("policy", [lambda: RandomPolicy(0.4), EverySecond], ids=["random", "a user's"])
def test_weights_enter_the_gradient(policy, reweighting):
    module = Linear()
    callback, data = fit(module, policy(), reweighting)
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered
    assert callback.instances is None
    if reweighting == "inverse_probability":
        assert torch.cat(module.noted[-6:]).max() > 2


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_on_a_stream_too():
    module = Linear()
    _, data = fit(module, RandomPolicy(0.4), data=DataLoader(Rows(), batch_size=10))
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered
    assert torch.cat(module.noted[-6:]).max() > 2


def test_without_weights_nothing_is_captured():
    class Asking(Linear):
        def instance_loss(self, batch, outputs):
            raise AssertionError("nobody needs it")

    _, data = fit(Asking(), "random", "none")
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered
    fit(Asking(), "uniform", "inverse_probability")  # its weights are 1


def test_where_losses_cannot_be_captured_training_is_unfiltered_with_one_warning():
    class Opaque(Classifier):
        def training_step(self, batch, batch_idx):
            return sum(parameter.square().sum() for parameter in self.parameters())

    with pytest.warns(UserWarning, match="stopped filtering, and training goes on") as caught:
        _, data = fit(Opaque(), "random")
    assert sum("stopped filtering" in str(one.message) for one in caught) == 1
    assert data.candidate_stream.num_kept == data.candidate_stream.num_considered


def test_other_terms_of_the_loss_fall_to_normalized_weights():
    class Regularised(Classifier):
        def training_step(self, batch, batch_idx):
            penalty = sum(parameter.square().sum() for parameter in self.parameters())
            return super().training_step(batch, batch_idx) + 1e-3 * penalty

    with pytest.warns(UserWarning, match='reweighting="normalized" is used'):
        callback, data = fit(Regularised(), "random")
    assert callback.reweighting == data.candidate_stream.reweighting == "normalized"


def test_a_quota_over_a_blind_rule_holds():
    """The labels that it needs come with the losses."""

    class Unequal(ClustersData):
        def train_dataloader(self):
            self.train_set.labels = (index_of(self.train_set.features) % 10 == 0).long()
            return super().train_dataloader()

    callback, data = fit(Classifier(), ClassQuotaPolicy(RandomPolicy(0.1), min_rate=0.6), "none", Unequal(100, 10))
    stream = data.candidate_stream
    assert callback.instances.labels is not None
    assert stream.prob_sum / stream.num_considered > 0.55


def test_a_resumed_run_keeps_its_weights(tmp_path):
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=20, save_top_k=-1)
    whole = AutoAssistCallback(policy="random", reweighting="inverse_probability")
    module = Linear()
    run = trainer(max_epochs=6, limit_val_batches=0, callbacks=[whole, saver], enable_checkpointing=True)
    run.fit(module, datamodule=Remembering(ClustersData(100, 10), budget=0.6, seed=0))
    again, resumed = AutoAssistCallback(policy="random", reweighting="inverse_probability"), Linear()
    run = trainer(max_epochs=6, limit_val_batches=0, callbacks=[again])
    data = Remembering(ClustersData(100, 10), budget=0.6, seed=0)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        run.fit(resumed, datamodule=data, ckpt_path=tmp_path / "step=20.ckpt")
    assert torch.equal(torch.stack(module.noted[20:]), torch.stack(resumed.noted))


def test_settings_that_nobody_reads_are_named():
    run = trainer(
        max_epochs=4,
        limit_val_batches=0,
        callbacks=[AutoAssistCallback(assistant="mlp", policy="random", score="loss")],
    )
    data = AutoAssistDataModule(ClustersData(100, 10), budget=0.6)
    with pytest.warns(UserWarning, match="RandomPolicy needs no scores, so assistant=, score= are not") as caught:
        run.fit(Classifier(), datamodule=data)
    assert sum("needs no scores" in str(one.message) for one in caught) == 1
