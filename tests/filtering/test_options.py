"""What the user gave stays as it was given; what is in force in a run is resolved for each fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.options import resolve
from lightning_autoassist.policies import ScheduledPolicy
from lightning_autoassist.trainer_support.executors import InlineExecutor, UpdateThread
from tests.helpers.ordinary import Classifier, ClustersData, trainer


def trainer_on(device, precision="32-true"):
    """What is read of a Trainer, of one on a device that this machine may not have."""
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), precision=precision)


def fit(callback, module=None, **options):
    run = trainer(**{"max_epochs": 4, "callbacks": [callback], **options})
    run.fit(module or Classifier(), datamodule=AutoAssistDataModule(ClustersData(), budget=0.6))


@pytest.mark.parametrize(
    ("device", "lag", "update", "expected"),
    [
        ("cpu", None, "auto", (0, False)),
        ("cpu", None, "async", (0, True)),
        ("cpu", 3, "auto", (3, False)),
        ("cuda", None, "auto", (4, True)),
        ("cuda", 0, "auto", (0, True)),
        ("cuda", None, "sync", (4, False)),
    ],
)
def test_lag_and_thread_suit_the_device(device, lag, update, expected):
    options = resolve(lag, update, trainer_on(device))
    assert (options.lag, options.is_beside) == expected


@pytest.mark.parametrize(("precision", "is_beside"), [("bf16-true", False), ("bf16-mixed", True), ("32-true", True)])
def test_true_precisions_have_no_thread(precision, is_beside):
    assert resolve(None, "async", trainer_on("cpu", precision)).is_beside is is_beside


def test_the_executor_is_what_was_resolved():
    beside = resolve(2, "async", trainer_on("cpu")).executor()
    assert (type(beside), beside.draws_ahead) == (UpdateThread, 1)
    beside.close()
    assert type(resolve(0, "sync", trainer_on("cpu")).executor()) is InlineExecutor


def test_a_lag_that_is_left_open_stays_open_and_what_is_in_force_is_logged():
    callback = AutoAssistCallback()
    fit(callback)
    assert callback.lag is None
    assert callback.filter_settings["lag"] == 0


def test_a_callback_is_resolved_anew_for_another_device():
    callback = AutoAssistCallback()
    fit(callback)
    assert resolve(callback.lag, callback.update, trainer_on("cuda")).lag == 4


def test_a_lag_that_was_given_is_logged_before_a_fit():
    assert AutoAssistCallback(lag=2).filter_settings["lag"] == 2


def test_weights_that_fell_to_mean_stay_so_in_the_next_fit_without_another_warning():
    class Penalized(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 1e-3 * sum((p**2).sum() for p in self.parameters())

    callback = AutoAssistCallback(reweighting="inverse_probability")
    with pytest.warns(UserWarning, match='reweighting="normalized" is used'):
        fit(callback, Penalized())
    assert callback.reweighting == callback.filter_settings["reweighting"] == "normalized"
    fit(callback, Penalized())  # warnings are errors
    assert callback.reweighting == "normalized"


@pytest.mark.parametrize(
    ("policy", "options", "problem"),
    [
        ("threshold", {"assistant": "logistic"}, "LogisticAssistant predicts how likely"),
        (ScheduledPolicy("ies"), {"assistant": "logistic"}, "LogisticAssistant predicts how likely"),
        ("threshold", {"score": "gradient_norm"}, "score='gradient_norm' is none"),
    ],
    ids=("name", "wrapped", "score"),
)
def test_policies_that_read_losses_refuse_other_numbers(policy, options, problem):
    with pytest.raises(ValueError, match=f"compares an instance's loss with a number, and {problem}"):
        AutoAssistCallback(policy, **options)


class Rows(IterableDataset):
    def __iter__(self):
        return iter([(torch.randn(8), index % 3) for index in range(40)])


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_on_a_stream_too_where_another_assistant_is_taken():
    """Its predictions are below every threshold: the floor would be all that is kept."""
    data = AutoAssistDataModule(DataLoader(Rows(), 10), steps_per_epoch=4)
    with pytest.raises(ValueError, match=r"LogisticAssistant predicts.*on a stream a policy that"):
        trainer(max_epochs=1, callbacks=[AutoAssistCallback("threshold")]).fit(Classifier(), datamodule=data)
