"""The whole pipeline, callback and data module in a Trainer, is equal to the plain loop of ``autoassist_loop.py``."""

from __future__ import annotations

import copy
from collections import Counter
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.policies import POLICIES, PrioritizedPolicy
from tests.helpers.ordinary import trainer
from tests.helpers.paths import ROOT
from tests.reference.autoassist_loop import Logistic, Memory, autoassist
from tests.reference.policy_rules import FEW, rule_of

# 50 instances are no multiple of the batch: some are judged in the second pass before the model has seen them.
NUM_INSTANCES, BATCH_SIZE, NUM_CLASSES, NUM_EPOCHS = 50, 8, 3, 12


class Model(pl.LightningModule):
    def __init__(self, net):
        super().__init__()
        self.net, self.batches = net, []

    def training_step(self, batch, batch_idx):
        features, labels = batch
        self.batches.append(features[:, 0].mul(64).int().tolist())
        return F.cross_entropy(self.net(features), labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Shuffled:
    """Another order in each pass; an object of its own for each run, so that both runs see the same orders."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __iter__(self):
        return iter(torch.randperm(NUM_INSTANCES, generator=self.generator).tolist())

    def __len__(self):
        return NUM_INSTANCES


def instances():
    """Overlapping classes; numbers that half precision holds exactly, and the first of each is 1/64 of its index."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_CLASSES, (NUM_INSTANCES,), generator=generator)
    features = torch.randn(NUM_INSTANCES, 5, generator=generator) + labels[:, None]
    features = features.mul(64).round().div(64)
    features[:, 0] = torch.arange(NUM_INSTANCES) / 64
    return TensorDataset(features, labels)


@pytest.mark.parametrize("policy", [*POLICIES, FEW])
def test_the_pipeline_equals_the_plain_loop(policy):
    torch.manual_seed(0)
    data, net = instances(), nn.Linear(5, NUM_CLASSES)
    model, optimizer = Model(net), torch.optim.SGD((reference := copy.deepcopy(net)).parameters(), lr=0.1)
    loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=Shuffled())
    callback = AutoAssistCallback(PrioritizedPolicy(0.15) if policy == FEW else policy)
    run = trainer(max_epochs=NUM_EPOCHS, callbacks=[callback])
    run.fit(model, datamodule=AutoAssistDataModule(loader, seed=3))

    rule, assistant = rule_of(policy, NUM_INSTANCES), Logistic() if policy == "autoassist" else Memory()
    expected = autoassist(reference, optimizer, data, Shuffled(), rule, assistant, BATCH_SIZE, NUM_EPOCHS, seed=3)
    assert model.batches == expected
    num_trained = Counter(chain.from_iterable(expected)).values()
    # Of 12 epochs of so few instances no loss is settled.
    assert policy in ("uniform", "ies") or max(num_trained) - min(num_trained) > 1, "nothing was dropped"
    for mine, plain in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_the_loop_can_be_read_at_once():
    assert len((ROOT / "tests/reference/autoassist_loop.py").read_text(encoding="utf-8").splitlines()) <= 100
