"""What cannot work is refused before training starts; what goes wrong later costs no run."""

from __future__ import annotations

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule, LogisticAssistant
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, index_of, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:this run trains on"),
]


class Untrained(Classifier):
    """Training must not begin."""

    def training_step(self, batch, batch_idx):
        raise AssertionError("the error came too late")


def loader_of(num_instances=100, **options):
    data = CountingDataset(num_instances)
    return DataLoader(TensorDataset(data.features, data.labels), **{"batch_size": 10, **options})


class OddBatches(BatchSampler):
    pass


def test_an_empty_data_set():
    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    with pytest.raises(MisconfigurationException, match="the data set is empty"):
        run.fit(Untrained(), datamodule=AutoAssistDataModule(loader_of(0)))


@pytest.mark.parametrize("loaders", [lambda: [loader_of(), loader_of()], lambda: {"a": loader_of()}])
def test_several_train_loaders_cannot_be_given(loaders):
    with pytest.raises(TypeError, match="several train loaders cannot be filtered, so pass one of them"):
        AutoAssistDataModule(loaders())


def test_a_custom_batch_sampler_is_flattened_on_request():
    batches = OddBatches(SequentialSampler(range(50)), 10, False)
    data = AutoAssistDataModule(DataLoader(CountingDataset(50), batch_sampler=batches), budget=1.0, flatten=True)
    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    run.fit(Classifier(), datamodule=data)
    assert sorted(data.wrapped.dataset.loads) == list(range(50))


@pytest.mark.parametrize("budget", [0, -0.5, 1.01])
def test_budget_outside_its_range(budget):
    with pytest.raises(ValueError, match=r"budget must be in \(0, 1\]"):
        AutoAssistDataModule(ClustersData(), budget=budget)


def test_loaders_beside_a_data_module():
    with pytest.raises(
        TypeError, match="val_dataloaders= can be given beside a train DataLoader only; ClustersData brings its own"
    ):
        AutoAssistDataModule(ClustersData(), val_dataloaders=loader_of())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "best"}, "policy must be one of autoassist, .* or an object, got 'best'"),
        ({"assistant": "big"}, "assistant must be one of logistic, memory, .* or an object, got 'big'"),
        ({"score": "margin"}, "score must be one of auto, gradient_norm, layer_gradient_norm, loss, got 'margin'"),
        ({"reweighting": "all"}, "reweighting must be one of auto, none, inverse_probability, normalized, got 'all'"),
        ({"unfiltered_tail": 1.0}, r"tail must be in \[0, 1\), got 1.0"),
        ({"lag": -1}, "lag must not be negative, got -1"),
        ({"max_features": 0}, "max_features must be at least 1, got 0"),
    ],
)
def test_callback_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoAssistCallback(**arguments)


def test_callback_without_data_module_shows_the_two_lines():
    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    two_lines = r"(?s)this fit trains on a ClustersData.*callbacks=\[AutoAssistCallback\(\)\].*datamodule="
    with pytest.raises(MisconfigurationException, match=two_lines):
        run.fit(Untrained(), datamodule=ClustersData())
    with pytest.raises(MisconfigurationException, match="this fit trains on a DataLoader"):
        run.fit(Untrained(), train_dataloaders=loader_of())


def test_data_module_without_callback_shows_the_two_lines():
    two_lines = (
        r"(?s)AutoAssistDataModule needs an AutoAssistCallback.*callbacks=\[AutoAssistCallback\(\)\].*datamodule="
    )
    with pytest.raises(MisconfigurationException, match=two_lines):
        trainer(max_epochs=1).fit(Untrained(), datamodule=AutoAssistDataModule(ClustersData()))


def test_data_module_without_callback_still_validates_and_tests():
    class Tested(ClustersData):
        test_dataloader = ClustersData.val_dataloader

    class TestedClassifier(Classifier):
        test_step = Classifier.validation_step

    data = AutoAssistDataModule(Tested())
    assert trainer().validate(TestedClassifier(), datamodule=data, verbose=False)[0]["val_loss"] > 0
    assert trainer().test(TestedClassifier(), datamodule=data, verbose=False)[0]["val_loss"] > 0


def test_two_callbacks():
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `AutoAssistCallback`"):
        trainer(max_epochs=1, callbacks=[AutoAssistCallback(), AutoAssistCallback(policy="uniform")])


def test_a_fit_without_the_data_module_of_an_earlier_fit():
    run = trainer(max_epochs=4, callbacks=[AutoAssistCallback()])
    run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(100, 10)))
    with pytest.raises(MisconfigurationException, match="this fit trains on a DataLoader"):
        run.fit(Untrained(), train_dataloaders=loader_of())


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_a_step_that_takes_its_batches_by_itself():
    class Iterating(Untrained):
        def training_step(self, dataloader_iter):
            raise AssertionError("the error came too late")

    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    with pytest.raises(MisconfigurationException, match=r"write training_step\(batch, batch_idx\)"):
        run.fit(Iterating(), datamodule=AutoAssistDataModule(ClustersData()))


def test_validation_interval_longer_than_an_epoch():
    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()], val_check_interval=8)
    with pytest.raises(MisconfigurationException, match="val_check_interval=6 or less"):
        run.fit(Untrained(), datamodule=AutoAssistDataModule(ClustersData(100, 10), budget=0.6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 12}, "max_steps=12 fixes the number of optimizer steps, so filtering saves none"),
        ({"max_epochs": 4, "max_time": {"hours": 1}}, "max_time ends this run, so filtering saves no time"),
        (
            {"max_epochs": 4, "limit_train_batches": 6},
            "limit_train_batches=6 fixes the number of training batches",
        ),
        ({"max_epochs": 2}, "trains on 120 instances, less than two passes over 100"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_settings_that_defeat_filtering_are_warned_of(options, message):
    run = trainer(callbacks=[AutoAssistCallback()], **options)
    with pytest.warns(UserWarning, match=message):
        run.fit(Classifier(), datamodule=AutoAssistDataModule(ClustersData(100, 10), budget=0.6))


def test_a_schedule_that_would_not_end_is_warned_of():
    class Scheduled(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    run = trainer(max_epochs=4, callbacks=[AutoAssistCallback()])
    with pytest.warns(UserWarning, match=r"CosineAnnealingLR\(T_max=40\) is longer than this run's 24 steps"):
        run.fit(Scheduled(), datamodule=AutoAssistDataModule(ClustersData(100, 10), budget=0.6))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_instances_with_nonfinite_losses_are_neither_learnt_from_nor_dropped(bad):
    """Every fifth instance has a loss that is no number: counted, kept at every pass, unknown to the Assistant."""
    source = ClustersData(100, 10)

    class Bad(Classifier):
        def training_step(self, batch, batch_idx):
            features, labels = batch
            losses = F.cross_entropy(self.net(features), labels, reduction="none")
            losses = torch.where(index_of(features) % 5 == 0, bad, losses)
            return {"loss": losses[losses.isfinite()].mean(), "instance_loss": losses}

    callback = AutoAssistCallback(policy="autoassist")
    data = AutoAssistDataModule(source, budget=1.0)
    trainer(max_epochs=4, callbacks=[callback]).fit(Bad(), datamodule=data)
    assert not callback.instances.seen[::5].any()
    assert callback.instances.scores.isfinite().all()
    assert callback.assistant.weight.isfinite().all()
    loads = torch.bincount(torch.tensor(source.train_set.loads), minlength=100).float()
    assert callback.summary()["nonfinite_instances"] == loads[::5].sum()
    assert callback.summary()["keep_rate"] < 1
    passes = data.candidate_stream.num_considered // 100
    assert loads[::5].min() >= passes


class FailingAssistant(LogisticAssistant):
    def predict(self, instances):
        raise ArithmeticError("no prediction today")


class ForgetfulAssistant(LogisticAssistant):
    def update(self, instances, scores):
        raise ArithmeticError("nothing learnt today")


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: AutoAssistCallback(assistant=FailingAssistant()), "ArithmeticError: no prediction today"),
        (lambda: AutoAssistCallback(assistant=ForgetfulAssistant()), "ArithmeticError: nothing learnt today"),
        (
            lambda: AutoAssistCallback(policy="autoassist", features=lambda batch: batch[0][:3]),
            r"features= must return shape \(10, F\)",
        ),
    ],
    ids=["predict", "update", "features"],
)
def test_a_failing_assistant_costs_no_run(callback, message):
    run = trainer(max_epochs=6, callbacks=[callback()])
    data = AutoAssistDataModule(ClustersData(100, 10), budget=0.6)
    with pytest.warns(UserWarning, match=f"stopped filtering, and training goes on.*{message}") as caught:
        run.fit(Classifier(), datamodule=data)
    assert sum("stopped filtering" in str(warning.message) for warning in caught) == 1
    assert run.global_step == 36


def test_a_module_without_a_readable_loss_trains_unfiltered_with_one_warning():
    class Opaque(Classifier):
        def training_step(self, batch, batch_idx):
            return sum(parameter.square().sum() for parameter in self.parameters())

    run = trainer(max_epochs=4, callbacks=[AutoAssistCallback()])
    data = AutoAssistDataModule(ClustersData(100, 10), budget=0.6)
    with pytest.warns(UserWarning, match="stopped filtering, and training goes on") as caught:
        run.fit(Opaque(), datamodule=data)
    assert sum("stopped filtering" in str(warning.message) for warning in caught) == 1
    assert data.candidate_stream.num_kept == data.candidate_stream.num_considered


def test_a_loss_with_other_terms_falls_to_mean_weights_with_a_warning():
    class Regularised(Classifier):
        def training_step(self, batch, batch_idx):
            penalty = sum(parameter.square().sum() for parameter in self.parameters())
            return super().training_step(batch, batch_idx) + 1e-3 * penalty

    run = trainer(max_epochs=6, callbacks=[AutoAssistCallback("proportional")])
    data = AutoAssistDataModule(ClustersData(100, 10), budget=0.6)
    with pytest.warns(
        UserWarning, match='terms beside the instances\' own.*reweighting="normalized" is used'
    ) as caught:
        run.fit(Regularised(), datamodule=data)
    assert sum("terms beside" in str(warning.message) for warning in caught) == 1
    assert data.candidate_stream.reweighting == "normalized"
    assert data.candidate_stream.num_kept < data.candidate_stream.num_considered


def test_a_refusal_leaves_nothing_behind_in_torchs_loader():
    """Lightning patches the class while it asks for a loader, and forgets that where asking raises."""
    before = dict(vars(torch.utils.data.DataLoader))
    data = AutoAssistDataModule(ClustersData(), budget=0.5)
    with pytest.raises(MisconfigurationException, match="val_check_interval=8"):
        trainer(max_epochs=1, callbacks=[AutoAssistCallback()], val_check_interval=8).fit(Classifier(), datamodule=data)
    with pytest.raises(MisconfigurationException, match="needs an AutoAssistCallback"):
        trainer(max_epochs=1).fit(Classifier(), datamodule=data)
    assert dict(vars(torch.utils.data.DataLoader)) == before
