"""What constructors are given wrongly is refused in one line that says what to write."""

from __future__ import annotations

import contextlib
import inspect
from fractions import Fraction

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import (
    AutoAssistCallback,
    AutoAssistDataModule,
    AutoAssistPolicy,
    ClassQuotaPolicy,
    HybridAssistant,
    InfoBatchPolicy,
    LogisticAssistant,
    MemoryAssistant,
    MLPAssistant,
    ProportionalPolicy,
    RandomPolicy,
    SelectiveBackpropPolicy,
    ShrinkingBatchSampler,
    TextAssistant,
    TokenBatchSampler,
    diagnose,
)
from tests.helpers.ordinary import Classifier, ClustersData, trainer

pytestmark = pytest.mark.filterwarnings("ignore:this run trains on")

DATASET = TensorDataset(torch.rand(40, 3), torch.zeros(40).long())


def loader():
    return DataLoader(DATASET, batch_size=10)


def data(**options):
    return AutoAssistDataModule(loader(), **options)


def sampler(**options):
    return ShrinkingBatchSampler(**{"sampler": range(20), "batch_size": 4, **options})


def tokens(**options):
    return TokenBatchSampler(**{"sampler": range(20), "max_tokens": 10, "lengths": [2] * 20, **options})


# What takes a number, whole or not, by the argument's name.
NUMBERS = {
    data: ("budget",),
    AutoAssistCallback: ("unfiltered_tail",),
    AutoAssistPolicy: ("gamma", "accuracy_decay"),
    RandomPolicy: ("keep_rate",),
    ProportionalPolicy: ("keep_rate", "floor", "cap_quantile"),
    InfoBatchPolicy: ("prune_ratio",),
    SelectiveBackpropPolicy: ("beta", "floor"),
    ClassQuotaPolicy: ("min_rate", "decay"),
    LogisticAssistant: ("lr", "weight_decay", "mean_decay"),
    MemoryAssistant: ("mean_decay",),
    HybridAssistant: ("decay", "ridge", "mean_decay"),
    MLPAssistant: ("lr", "mean_decay", "damping", "step_ratio"),
    TextAssistant: ("lr", "weight_decay", "mean_decay"),
    sampler: ("budget",),
    tokens: ("budget", "total_tokens"),
}
WHOLE = {
    data: ("seed", "steps_per_epoch", "max_tokens"),
    AutoAssistCallback: ("max_features", "feature_memory", "lag", "exchange_every"),
    HybridAssistant: ("max_inputs",),
    MLPAssistant: ("num_hidden", "seed"),
    sampler: ("batch_size", "seed", "chunk_size"),
    tokens: ("max_tokens", "pool_batches", "seed", "chunk_size"),
    lambda **options: diagnose(Classifier(), ClustersData(), **options): ("num_steps",),
}
MAY_BE_NONE = {"unfiltered_tail", "seed", "steps_per_epoch", "max_tokens", "lag", "chunk_size", "total_tokens"}


def pairs(arguments):
    return [
        pytest.param(maker, name, id=f"{maker.__name__}-{name}") for maker in arguments for name in arguments[maker]
    ]


def refused(make, kind=(TypeError, ValueError)):
    """The line with which something is refused."""
    with pytest.raises(kind) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("maker", "name"), pairs(NUMBERS) + pairs(WHOLE))
def test_what_is_no_number_is_refused(maker, name):
    wrong = ["half", "0.5", True, np.True_, [0.5], (1,), {"a": 1}, float, LogisticAssistant(), torch.tensor(0.5), 0.5j]
    if name not in MAY_BE_NONE or maker is sampler:
        wrong += [] if name in MAY_BE_NONE - {"seed"} else [None]
    for value in wrong:
        line = refused(lambda value=value: maker(**{name: value}), TypeError)
        assert line.startswith(f"{'mean_decay' if name == 'mean_decay' else name} must be a ")
        assert "got " in line
        assert "; " in line
    assert refused(lambda: maker(**{name: "0.5"})).endswith(f"got the string '0.5'; write {name}=0.5")
    for value in (float("nan"), float("inf"), -1, np.float32("nan"), np.int64(-1)):
        line = refused(lambda value=value: maker(**{name: value}), ValueError)
        assert line.startswith(f"{name} must ")
        assert f"got {value}" in line


@pytest.mark.parametrize(("maker", "name"), pairs(WHOLE))
def test_what_is_no_whole_number_is_refused(maker, name):
    assert refused(lambda: maker(**{name: 2.5}), ValueError).startswith(f"{name} must be a whole number, got 2.5; ")


def test_numbers_of_numpy_are_numbers():
    assert AutoAssistPolicy(gamma=np.float32(0.3)).gamma == 0.3  # and not 0.30000001
    assert data(budget=np.float64(0.5)).budget == 0.5
    assert data(budget=Fraction(1, 2)).budget == 0.5
    assert type(data(budget=1).budget) is int
    assert len(ShrinkingBatchSampler(range(1000), np.int64(10), budget=np.float32(0.6))) == 60
    callback = AutoAssistCallback(
        unfiltered_tail=np.float32(0.25), lag=np.int64(2), feature_memory=1e9, max_features=64.0
    )
    assert (callback.unfiltered_tail, callback.lag, callback.feature_memory, callback.max_features) == (
        0.25,
        2,
        10**9,
        64,
    )
    assert type(callback.lag) is type(callback.feature_memory) is type(callback.max_features) is int
    assert TextAssistant(pad_id=np.int64(3)).feature_extractor(None, 8).pad_ids == (3, 3)
    assert sampler(drop_last=np.True_).drop_last is True


FLAGS = {data: ("flatten",), AutoAssistPolicy: ("confidence_gate",), sampler: ("drop_last",), tokens: ("drop_last",)}


@pytest.mark.parametrize(("maker", "name"), pairs(FLAGS))
def test_what_is_neither_true_nor_false_is_refused(maker, name):
    for value in ("yes", None, 2, 0.5, [True], bool):
        line = refused(lambda value=value: maker(**{name: value}), TypeError)
        assert line.startswith(f"{name} must be True or False, got ")
        assert line.endswith(f"write {name}=True or {name}=False")


NAMES = {AutoAssistCallback: ("score", "reweighting", "update"), sampler: ("reweighting",), tokens: ("reweighting",)}


@pytest.mark.parametrize(("maker", "name"), pairs(NAMES))
def test_what_is_no_name_is_refused(maker, name):
    for value in (None, 1, True, ["sum"], str, LogisticAssistant):
        assert refused(lambda value=value: maker(**{name: value}), TypeError).startswith(f"{name} must be one of ")


WRITE = {
    "a class of policies": (lambda: AutoAssistCallback(policy=InfoBatchPolicy), "write policy=InfoBatchPolicy()"),
    "a class of Assistants": (lambda: AutoAssistCallback(assistant=MLPAssistant), "write assistant=MLPAssistant()"),
    "a class in a quota": (lambda: ClassQuotaPolicy(RandomPolicy), "write policy=RandomPolicy()"),
    "no policy": (lambda: AutoAssistCallback(policy=None), "got None; leave it out, or write policy='autoassist'"),
    "no assistant": (
        lambda: AutoAssistCallback(assistant=None),
        "got None; leave it out, or write assistant='logistic'",
    ),
    "a function": (lambda: AutoAssistCallback(policy=lambda scores: scores), "got a function; leave it out"),
    "a number": (lambda: AutoAssistCallback(0.6), "got the number 0.6; leave it out"),
    "a policy at the Assistant's place": (
        lambda: AutoAssistCallback(assistant=InfoBatchPolicy()),
        "got an InfoBatchPolicy, which is a policy; write policy=InfoBatchPolicy(...)",
    ),
    "a policy's name there": (
        lambda: AutoAssistCallback(assistant="infobatch"),
        "which is a policy; write policy='infobatch'",
    ),
    "an Assistant's name": (lambda: AutoAssistCallback(policy="mlp"), "which is an assistant; write assistant='mlp'"),
    "a typo": (lambda: AutoAssistCallback(policy="InfoBach"), "got 'InfoBach'; write policy='infobatch'"),
    "a hyphen": (lambda: AutoAssistCallback(policy="class-quota"), "write policy='class_quota'"),
    "another typo": (
        lambda: AutoAssistCallback(reweighting="inverse_probabilty"),
        "got 'inverse_probabilty'; write reweighting='inverse_probability'",
    ),
    "features": (lambda: AutoAssistCallback(features="x"), "write features=lambda batch: batch[0]"),
    "a class of features": (lambda: AutoAssistCallback(features=torch.nn.Flatten), "write features=Flatten(...)"),
    "decode": (lambda: AutoAssistCallback(decode=3), "write decode=lambda instance: str(instance)"),
    "keep_probability": (lambda: sampler(keep_probability=0.5), "write keep_probability=lambda indices, pass_index:"),
    "a pad id": (lambda: TextAssistant(pad_id="0"), "got '0'; write pad_id=0, or (0, 0)"),
    "a bool for a pad id": (lambda: TextAssistant(pad_id=True), "write pad_id=0, or (0, 0)"),
    "a loader for a sampler": (lambda: sampler(sampler=loader()), "got a DataLoader; write RandomSampler(dataset)"),
    "no sampler": (lambda: tokens(sampler=None), "got None; write RandomSampler(dataset)"),
    "a class of samplers": (lambda: sampler(sampler=torch.utils.data.RandomSampler), "write RandomSampler(dataset)"),
    "lengths": (lambda: data(max_tokens=10, lengths="lengths"), "write lengths=lambda instance: len(instance[0])"),
    "pad values": (lambda: data(pad_values="0"), 'write pad_values=0, or pad_values={"ids": 0}'),
    "pad values by name": (lambda: data(pad_values={"ids": None, "x": "0"}), "got the string '0'; write pad_values=0"),
    "a data set": (
        lambda: AutoAssistDataModule(DATASET),
        "which is a data set; write AutoAssistDataModule(DataLoader(",
    ),
    "a tensor": (lambda: AutoAssistDataModule(torch.rand(3, 2)), "write AutoAssistDataModule(DataLoader(TensorDataset"),
    "a class of data": (lambda: AutoAssistDataModule(ClustersData), "write AutoAssistDataModule(ClustersData(...))"),
    "a class of modules": (lambda: AutoAssistDataModule(Classifier), "write AutoAssistDataModule(Classifier(...))"),
    "a class of loaders": (lambda: AutoAssistDataModule(DataLoader), "write AutoAssistDataModule(DataLoader(...))"),
    "a string": (lambda: AutoAssistDataModule("mnist"), "got the string 'mnist'; write AutoAssistDataModule("),
    "no data": (lambda: AutoAssistDataModule(None), "got None; write AutoAssistDataModule("),
    "wrapped twice": (lambda: AutoAssistDataModule(data()), "already; give it to the Trainer as it is: trainer.fit("),
    "a data module for validation": (
        lambda: data(val_dataloaders=ClustersData()),
        "got a ClustersData; write val_dataloaders=data.val_dataloader()",
    ),
    "a string for tests": (lambda: data(test_dataloaders="test"), "write test_dataloaders=DataLoader(dataset"),
    "a class for diagnose": (lambda: diagnose(Classifier), "got the class Classifier; write diagnose(Classifier(...))"),
    "the other way round": (lambda: diagnose(ClustersData()), "write diagnose(MyModule(), MyDataModule())"),
    "quiet": (lambda: diagnose(Classifier(), quiet="no"), "write quiet=True or quiet=False"),
    "data for diagnose": (lambda: diagnose(Classifier(), DATASET), "which is a data set; write AutoAssistDataModule("),
}


@pytest.mark.parametrize("name", WRITE)
def test_a_line_says_what_to_write(name):
    make, written = WRITE[name]
    assert written in refused(make)


def settings_of(kind):
    return set(inspect.signature(kind).parameters) - {"data"}


@pytest.mark.parametrize(
    ("kind", "other"), [(AutoAssistCallback, AutoAssistDataModule), (AutoAssistDataModule, AutoAssistCallback)]
)
def test_a_setting_of_the_other_class_is_told_where_it_goes(kind, other):
    given = [loader()] * (kind is AutoAssistDataModule)
    assert {"budget", "policy"} <= settings_of(kind) | settings_of(other)
    for name in settings_of(other) - settings_of(kind):
        assert refused(lambda name=name: kind(*given, **{name: 1}), TypeError) == (
            f"{kind.__name__} does not take {name}=, which is a setting of {other.__name__}; "
            f"write {other.__name__}(..., {name}=...)"
        )
    assert "unexpected keyword argument 'neither'" in refused(lambda: kind(*given, neither=1), TypeError)


def test_a_class_of_the_users_own_may_take_the_others_settings():
    class WithBudget(AutoAssistCallback):
        def __init__(self, budget, **settings):
            super().__init__(**settings)
            self.budget = budget

    assert WithBudget(budget=0.5, policy="uniform").budget == 0.5
    assert "write AutoAssistDataModule(..., seed=...)" in refused(lambda: WithBudget(budget=0.5, seed=1), TypeError)


def test_a_class_without_a_call_is_a_function():
    assert AutoAssistCallback(decode=str).decode is str


def test_two_callbacks_that_the_trainer_does_not_count():
    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    run.callbacks.append(AutoAssistCallback())
    assert "has 2 AutoAssistCallbacks; write one" in refused(
        lambda: run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData())),
        pl.utilities.exceptions.MisconfigurationException,
    )


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`", "ignore:`LightningModule.configure_optimizers`")
@pytest.mark.parametrize("flavour", [pl, lightning.pytorch], ids=["pytorch_lightning", "lightning"])
def test_a_data_module_in_the_loaders_place_without_a_callback(flavour):
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    run = flavour.Trainer(max_epochs=1, **options)

    class Plain(flavour.LightningModule):
        training_step = Classifier.training_step

        def configure_optimizers(self):
            return None

    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="needs an AutoAssistCallback in"):
        run.fit(Plain(), AutoAssistDataModule(loader()))


SAVED = {
    "epochs": ({"max_epochs": 5}, 0.4),
    "steps": ({"max_epochs": -1, "max_steps": 20}, 0.0),
    "steps and epochs": ({"max_epochs": 50, "max_steps": 20}, 0.0),
    "steps that do not end it": ({"max_epochs": 5, "max_steps": 1000}, 0.4),
    "steps that would end the full run": ({"max_epochs": 5, "max_steps": 40}, 0.25),
    "steps and accumulation": ({"max_epochs": -1, "max_steps": 8, "accumulate_grad_batches": 2}, 0.0),
    "batches": ({"max_epochs": 5, "limit_train_batches": 6}, 0.0),
    "some batches": ({"max_epochs": 5, "limit_train_batches": 8}, 0.25),
    "many batches": ({"max_epochs": 5, "limit_train_batches": 80}, 0.4),
    "half of them": ({"max_epochs": 5, "limit_train_batches": 0.5}, 0.4),
    "time": ({"max_epochs": 5, "max_time": "00:01:00:00"}, 0.0),
}


@pytest.mark.parametrize("name", SAVED)
def test_saved_ratio_is_of_what_the_full_run_would_take(name):
    options, saved = SAVED[name]
    callback = AutoAssistCallback()
    run = trainer(callbacks=[callback], limit_val_batches=0, **options)
    with pytest.warns(UserWarning, match="filtering saves no") if saved == 0 else contextlib.nullcontext():
        run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(100, 10), budget=0.6))
    assert callback.summary()["saved_ratio"] == pytest.approx(saved)
    assert run.callback_metrics["autoassist/saved_ratio"] == pytest.approx(saved)
