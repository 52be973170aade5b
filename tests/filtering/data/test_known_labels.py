"""Classes of instances that the model has not seen: where they are found, and whose word counts."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, PrioritizedPolicy
from lightning_autoassist.filtering.data.known_labels import labels_in
from lightning_autoassist.policies import ScheduledPolicy
from tests.helpers.ordinary import Classifier, ClustersData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]


class Listed(Dataset):
    """Must not be read."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __len__(self):
        return len(LABELS)

    def __getitem__(self, index):
        raise AssertionError("an instance was loaded")


BINARY = [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
TENSORS = TensorDataset(torch.rand(8, 2), torch.tensor(LABELS))
FOUND = {
    "targets": (Listed(targets=LABELS), LABELS),
    "labels": (Listed(labels=torch.tensor(LABELS)), LABELS),
    "a tensor": (TENSORS, LABELS),
    "not a weight": (TensorDataset(*TENSORS.tensors, torch.rand(8)), LABELS),
    "a subset": (Subset(TENSORS, [7, 0, 2, 5, 1, 3]), [1, 0, 2, 2, 1, 0]),
    "a subset of a subset": (Subset(Subset(Listed(targets=LABELS), [6, 7, 3, 4]), [3, 1, 0, 2]), [1, 1, 0, 0]),
    "several": (ConcatDataset([TENSORS, Listed(targets=LABELS)]), LABELS * 2),
    "one of several": (ConcatDataset([Listed(), TENSORS]), [-1] * 8 + LABELS),
    "binary targets": (TensorDataset(torch.rand(8, 2), torch.tensor(BINARY)), BINARY),
    "one of them a row": (Listed(targets=np.array(BINARY)[:, None]), BINARY),
    "a mask beside classes": (TensorDataset(*TENSORS.tensors, torch.tensor([0.0, 1] * 4)), LABELS),
    "between the classes": (Listed(targets=[0.0, 1, 0.5, 0, 1, 0, 1, 0]), None),
    "ones": (Listed(targets=[1.0] * 8), None),
    "truth values": (Listed(targets=[label > 0 for label in LABELS]), [min(label, 1) for label in LABELS]),
    "nothing": (Listed(), None),
    "texts": (Listed(targets=["a"] * 8), None),
    "names of instances": (Listed(labels=list(range(8))), None),
    "another length": (Listed(targets=LABELS[:7]), None),
    "several a row": (Listed(targets=torch.zeros(8, 2, dtype=torch.int64)), None),
    "an error": (Subset(SimpleNamespace(), [99]), None),
}


@pytest.mark.parametrize(("dataset", "expected"), FOUND.values(), ids=FOUND)
def test_labels_are_found_without_loading_an_instance(dataset, expected):
    found = labels_in(dataset)
    assert (None if found is None else found.tolist()) == expected


class Shifted(Dataset):
    """Tells other labels than it gives."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.targets = (dataset.tensors[1] + 1) % 3 if hasattr(dataset, "tensors") else (dataset.labels + 1) % 3

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


def fit(dataset, policy=None, **options):
    callback = AutoAssistCallback(policy or PrioritizedPolicy(0.15))
    data = AutoAssistDataModule(DataLoader(dataset, 10, shuffle=True), budget=0.5, **options)
    trainer(max_epochs=2, callbacks=[callback]).fit(Classifier(), datamodule=data)
    return callback


def test_labels_that_are_not_the_losses_are_dropped_with_a_warning():
    dataset = Shifted(ClustersData(300, 10).train_dataloader().dataset)
    with pytest.warns(UserWarning, match=r"not the targets of the loss.*AutoAssistDataModule\(data, labels="):
        callback = fit(dataset)
    labels, seen = callback.instances.labels, callback.instances.seen
    assert (labels[seen] == (dataset.targets[seen] + 2) % 3).all()
    assert (labels[~seen] == -1).all()


@pytest.mark.filterwarnings("ignore:this run trains on 300 instances")
def test_policies_that_judge_seen_instances_alone_do_not_look_into_the_data_set():
    callback = fit(Shifted(ClustersData(300, 10).train_dataloader().dataset), "class_quota")
    assert (callback.instances.labels[~callback.instances.seen] == -1).all()


@pytest.mark.parametrize("labels", [["a", "b"], [0.5, 1.0], 3, torch.zeros(3, 2)])
def test_labels_that_are_no_whole_numbers_are_refused(labels):
    with pytest.raises(TypeError, match="labels must be one whole number for each instance"):
        AutoAssistDataModule(DataLoader(TENSORS, 4), labels=labels)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TENSORS)


def test_labels_of_another_number_and_of_streams_are_refused():
    with pytest.raises(MisconfigurationException, match="holds 8 labels, and the train data set has 300"):
        fit(ClustersData(300, 10).train_dataloader().dataset, labels=LABELS)
    data = AutoAssistDataModule(DataLoader(Stream(), 4), steps_per_epoch=2, labels=LABELS)
    with pytest.raises(MisconfigurationException, match="the instances of a stream have no indices to find them by"):
        trainer(max_epochs=1, callbacks=[AutoAssistCallback("uniform")]).fit(Classifier(), datamodule=data)


def test_a_stream_refuses_a_policy_that_remembers_each_instance():
    data = AutoAssistDataModule(DataLoader(Stream(), 4), steps_per_epoch=2)
    with pytest.raises(MisconfigurationException, match="IESPolicy reads an instance's own 'losses'"):
        trainer(max_epochs=1, callbacks=[AutoAssistCallback("ies")]).fit(Classifier(), datamodule=data)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("policy", ["class_balanced", "class_budget", "class_quota"])
def test_policies_that_go_by_classes_warn_where_there_are_none(policy, wraps):
    class Regression(Classifier):
        def training_step(self, batch, batch_idx):
            features, _ = batch
            return torch.nn.functional.mse_loss(self.net(features), features[:, :1].expand(-1, 3).contiguous())

    loader = DataLoader(TensorDataset(torch.randn(300, 8), torch.rand(300)), 10, shuffle=True)
    run = trainer(max_epochs=3, callbacks=[AutoAssistCallback(ScheduledPolicy(policy) if wraps else policy)])
    with pytest.warns(UserWarning, match="goes by classes, and none are known"):
        run.fit(Regression(), datamodule=AutoAssistDataModule(loader, budget=0.9))


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:The dataloader")
@pytest.mark.parametrize("computes_target", [False, True])
def test_on_a_stream_such_a_policy_warns_where_the_batch_has_no_classes(computes_target):
    class Shifted(Classifier):
        def training_step(self, batch, batch_idx):
            features, labels = batch
            return torch.nn.functional.cross_entropy(self.net(features), (labels + computes_target) % 3)

    class Labelled(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([(torch.randn(8), index % 3) for index in range(400)])

    data = AutoAssistDataModule(DataLoader(Labelled(), 10), steps_per_epoch=10, budget=0.9)
    run = trainer(max_epochs=4, callbacks=[AutoAssistCallback("class_balanced", "logistic")])
    warns = pytest.warns(UserWarning, match="goes by classes, and none are known.*integers in the batch")
    with warns if computes_target else warnings.catch_warnings():
        run.fit(Shifted(), datamodule=data)
