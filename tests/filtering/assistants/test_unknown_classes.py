"""A class that is not known is -1 wherever labels are read, and is nobody's class."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from lightning_autoassist import ASSISTANTS, AutoAssistCallback, AutoAssistDataModule, Instances, LogisticAssistant
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.policies.class_quota import ClassQuotaPolicy
from tests.helpers.ordinary import Classifier, ClustersData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")


def test_the_store_knows_no_class_of_an_instance_that_nobody_saw():
    store = InstanceStore(4)
    store.put_labels(torch.tensor([2]), torch.tensor([0]))
    assert store.labels.tolist() == [-1, -1, 0, -1]


def test_class_quota_neither_counts_nor_raises_an_instance_without_a_class():
    policy, reference = ClassQuotaPolicy(min_rate=0.5), ClassQuotaPolicy(min_rate=0.5)
    probs, labels = torch.tensor([0.2, 0.9, 0.1, 0.3]), torch.tensor([0, -1, -1, 0])
    balanced = policy.balance(probs, labels)
    assert torch.equal(balanced[[0, 3]], reference.balance(probs[[0, 3]], labels[[0, 3]]))
    assert torch.equal(balanced[[1, 2]], probs[[1, 2]])
    assert torch.equal(policy.balance(probs, torch.full((4,), -1)), probs)


def batches(labels):
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        features, scores = torch.rand(64, 3, generator=generator), torch.rand(64, generator=generator)
        own = labels(64, generator)
        yield Instances(features, own, torch.rand(64), torch.zeros(64, dtype=torch.int32)), scores + (own == 0) * 2


@pytest.mark.parametrize("name", ["hybrid", "logistic", "mlp"])
def test_an_instance_without_a_class_is_not_taken_for_one_of_class_0(name):
    """Class 0 has high scores, and of class -1 none was ever seen."""
    assistant = LogisticAssistant(lr=1.0) if name == "logistic" else ASSISTANTS[name]()
    for instances, scores in batches(lambda count, generator: torch.randint(0, 3, (count,), generator=generator)):
        assistant.update(instances, scores)
    features, ages = torch.rand(100, 3), torch.zeros(100, dtype=torch.int32)

    def predicted(label):
        return assistant.predict(Instances(features, torch.full((100,), label), torch.full((100,), 0.5), ages)).mean()

    assert predicted(0) > predicted(1) + 0.1
    assert abs(predicted(-1) - predicted(0)) > 0.05
    assert predicted(-1).isfinite()


@pytest.mark.parametrize("name", ["hybrid", "logistic", "mlp"])
def test_learning_from_instances_without_a_class_teaches_nothing_about_class_0(name):
    assistant, other = ASSISTANTS[name](), ASSISTANTS[name]()
    label = torch.tensor([0, 1] * 32)
    for instances, scores in batches(lambda count, generator: torch.full((count,), -1)):
        assistant.update(instances, scores)
        other.update(instances._replace(labels=label), scores)
    if name == "logistic":
        assert assistant.bias.tolist() == [0.0]
        assert other.bias.abs().sum() > 0
    elif name == "hybrid":
        assert not len(assistant.class_means.counts)
    else:
        assert not assistant.weights["E"][:-1].any()
        assert other.weights["E"][:2].any()


def test_a_run_that_has_not_seen_every_instance_counts_no_class_for_the_others():
    """A Subset of the data is trained on: the others are of no class."""
    pl.seed_everything(0, verbose=False)
    data = ClustersData(200, 10, sampler=torch.utils.data.SubsetRandomSampler(range(1, 200, 3)), shuffle=False)
    callback = AutoAssistCallback(policy="class_quota")
    trainer(max_epochs=4, callbacks=[callback]).fit(Classifier(), datamodule=AutoAssistDataModule(data, budget=0.6))
    labels = callback.instances.labels
    assert set(labels[1::3].tolist()) == {1}
    assert set(labels[0::3].tolist()) == {-1}
    assert callback.policy.state_dict()["counts"][0] == 0
