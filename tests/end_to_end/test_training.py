"""Whole runs with a real Trainer: what the user was promised."""

from __future__ import annotations

import csv
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_autoassist import (
    ASSISTANTS,
    POLICIES,
    Assistant,
    AutoAssistCallback,
    AutoAssistDataModule,
    AutoAssistPolicy,
    ClassQuotaPolicy,
    LogisticAssistant,
    ProportionalPolicy,
    UpdateResult,
)
from tests.helpers.loaders import current_draw
from tests.helpers.ordinary import Classifier, ClustersData, CountingDataset, ModuleLossClassifier, index_of, trainer
from tests.helpers.texts import BagOfWords, TextsData

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:this run trains on"),
]


def parameters_after(make_module, data, *callbacks, seed=0, **options):
    pl.seed_everything(seed, verbose=False)
    module = make_module()
    run = trainer(callbacks=list(callbacks), **options)
    run.fit(module, datamodule=data)
    return {name: value.clone() for name, value in module.state_dict().items()}, run


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


# ---- nothing filtered, nothing changed

BIT_IDENTICAL = {
    "uniform": lambda: AutoAssistCallback(policy="uniform", reweighting="none"),
    "assistant that keeps all": lambda: AutoAssistCallback(policy=AutoAssistPolicy(gamma=1.0)),
}


@pytest.mark.parametrize("make_callback", BIT_IDENTICAL.values(), ids=BIT_IDENTICAL)
@pytest.mark.parametrize(
    "loader_options",
    [
        {},
        {"drop_last": True},
        {"shuffle": False},
        {"num_workers": 2},
        {"num_workers": 2, "persistent_workers": True},
    ],
    ids=str,
)
def test_a_run_that_keeps_everything_is_plain_lightning_bit_for_bit(make_callback, loader_options):
    expected, plain = parameters_after(Classifier, ClustersData(103, 10, **loader_options), max_epochs=3)
    data = AutoAssistDataModule(ClustersData(103, 10, **loader_options), budget=1.0)
    found, run = parameters_after(Classifier, data, make_callback(), max_epochs=3)
    assert run.global_step == plain.global_step
    assert_equal(found, expected)


def test_bit_identical_where_hooks_draw_from_the_global_rng():
    class Drawing(Classifier):
        def on_train_start(self):
            torch.rand(3)

        def on_train_epoch_start(self):
            torch.rand(1)

    expected, _ = parameters_after(Drawing, ClustersData(103, 10, num_workers=2), max_epochs=3)
    data = AutoAssistDataModule(ClustersData(103, 10, num_workers=2), budget=1.0)
    found, _ = parameters_after(Drawing, data, AutoAssistCallback(policy="uniform"), max_epochs=3)
    assert_equal(found, expected)


def test_overfit_batches_is_plain_lightning_bit_for_bit():
    with pytest.warns(UserWarning, match="overfit"):
        expected, _ = parameters_after(Classifier, ClustersData(), max_epochs=3, overfit_batches=2)
    data = AutoAssistDataModule(ClustersData(), budget=0.6)
    with pytest.warns(UserWarning, match="nothing is filtered"):
        found, _ = parameters_after(Classifier, data, AutoAssistCallback(), max_epochs=3, overfit_batches=2)
    assert_equal(found, expected)


@pytest.mark.parametrize("seed_workers", [False, True])
def test_random_augmentation_in_workers_stays_as_it_was(seed_workers, monkeypatch):
    class Noisy(CountingDataset):
        def __getitem__(self, index):
            features, label = super().__getitem__(index)
            return features + torch.rand(8), label

    def run(wrap, *callbacks):
        monkeypatch.setenv("PL_SEED_WORKERS", "0")
        pl.seed_everything(0, workers=seed_workers, verbose=False)
        data = ClustersData(60, 10, num_workers=2)
        data.train_set = Noisy(60)
        module = Classifier()
        trainer(max_epochs=2, callbacks=list(callbacks)).fit(module, datamodule=wrap(data))
        return module.state_dict()

    expected = run(lambda data: data)
    found = run(lambda data: AutoAssistDataModule(data, budget=1.0), AutoAssistCallback(policy="uniform"))
    assert_equal(found, expected)


# ---- filtering


@pytest.mark.parametrize("make_module", [Classifier, ModuleLossClassifier])
def test_an_unmodified_module_trains_with_filtering(make_module):
    callback = AutoAssistCallback()
    data = AutoAssistDataModule(ClustersData(300, 10), budget=0.6)
    parameters, run = parameters_after(make_module, data, callback, max_epochs=6)
    assert run.global_step == 6 * 18
    assert run.callback_metrics["val_loss"] < 0.8
    summary = callback.summary()
    assert summary["optimizer_steps"] == 6 * 18
    assert summary["instances_seen"] == 6 * 18 * 10
    assert summary["candidates_seen"] > summary["instances_seen"] + 100
    assert 0.3 < summary["keep_rate"] < 1
    assert all(value.isfinite().all() for value in parameters.values())


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs():
    def run(seed):
        data = AutoAssistDataModule(ClustersData(300, 10), budget=0.6)
        return parameters_after(Classifier, data, AutoAssistCallback(), seed=seed, max_epochs=3)[0]

    assert_equal(run(1), run(1))
    assert not torch.equal(run(1)["net.1.weight"], run(2)["net.1.weight"])


def test_informative_instances_are_kept_more_often():
    """Half of the data is trivial: the Assistant finds out which, and they are seen less."""
    features = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    easy = torch.arange(400) % 2 == 0
    features[:, 3] = easy.float()
    labels = torch.where(easy, 0, torch.randint(1, 3, (400,), generator=torch.Generator().manual_seed(1)))
    seen = torch.zeros(400)

    class Counting(Classifier):
        def training_step(self, batch, batch_idx):
            seen[torch.from_numpy(current_draw(self.trainer).indices)] += 1
            return super().training_step(batch, batch_idx)

    loader = DataLoader(TensorDataset(features, labels), batch_size=20, shuffle=True)
    data = AutoAssistDataModule(loader, budget=0.6)
    callback = AutoAssistCallback(assistant=LogisticAssistant(lr=1.0))
    parameters_after(lambda: Counting(4), data, callback, max_epochs=30)
    assert seen[~easy].mean() > 1.3 * seen[easy].mean()
    assert seen.min() > 0


def test_60_000_instances_at_budget_0_6():
    sizes, validations, rates = [], [], []

    class Scheduled(Classifier):
        def training_step(self, batch, batch_idx):
            sizes.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

        def on_validation_end(self):
            validations.append(self.trainer.current_epoch)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            steps = self.trainer.estimated_stepping_batches
            assert steps == 3 * 282
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            return [optimizer], [{"scheduler": self.schedule, "interval": "step"}]

        def on_train_epoch_end(self):
            rates.append(self.schedule.get_last_lr()[0])

    data = CountingDataset(60_000)
    loader = DataLoader(TensorDataset(data.features, data.labels), batch_size=128, shuffle=True)
    val = DataLoader(TensorDataset(data.features[:100], data.labels[:100]), batch_size=100)
    wrapped = AutoAssistDataModule(loader, budget=0.6, val_dataloaders=val)
    _, run = parameters_after(Scheduled, wrapped, AutoAssistCallback(), max_epochs=3)
    module = run.lightning_module
    assert run.num_training_batches == 282
    assert sizes == [128] * (3 * 282)
    assert validations == [0, 1, 2]
    assert run.global_step == run.estimated_stepping_batches == 3 * 282
    assert module.schedule.last_epoch == run.global_step
    assert rates[-1] < 1e-4 * 0.1 < max(rates)


# ---- the right indices, always


class Watching(Classifier):
    """Compares each batch with the indices it was drawn by."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def training_step(self, batch, batch_idx):
        drawn = current_draw(self.trainer).indices
        assert index_of(batch[0]).tolist() == drawn.tolist()
        self.batches += 1
        return super().training_step(batch, batch_idx)


CONFIGURATIONS = {
    "plain": ({}, {}),
    "2 workers": ({"num_workers": 2}, {}),
    "2 persistent workers": ({"num_workers": 2, "persistent_workers": True, "prefetch_factor": 4}, {}),
    "accumulate": ({}, {"accumulate_grad_batches": 4}),
    "limit": ({"num_workers": 2}, {"limit_train_batches": 0.5}),
    "overfit": ({"shuffle": False}, {"overfit_batches": 3}),
    "fast_dev_run": ({}, {"fast_dev_run": 3}),
    "val_check_interval": ({"num_workers": 2}, {"val_check_interval": 5}),
    "reload": ({"num_workers": 2}, {"reload_dataloaders_every_n_epochs": 1}),
    "reload persistent": (
        {"num_workers": 2, "persistent_workers": True},
        {"reload_dataloaders_every_n_epochs": 2},
    ),
}


@pytest.mark.parametrize(("loader_options", "options"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_indices_are_those_of_the_batch(loader_options, options):
    callback = AutoAssistCallback(policy="autoassist")
    data = AutoAssistDataModule(ClustersData(200, 10, **loader_options), budget=0.6)
    module = Watching()
    run = trainer(max_epochs=4, callbacks=[callback], **options)
    run.fit(module, datamodule=data)
    assert module.batches >= 3
    # What the callback learnt: the features it remembers for an instance are that instance's.
    rows = callback.instances.seen.nonzero().flatten()
    assert len(rows) >= 20
    assert index_of(callback.instances.features[rows]).tolist() == rows.tolist()
    assert callback.instances.labels[rows].tolist() == (rows % 3).tolist()


def test_indices_are_those_of_the_batch_in_a_second_fit():
    callback, module = AutoAssistCallback(), Watching()
    data = AutoAssistDataModule(ClustersData(200, 10, num_workers=2), budget=0.6)
    run = trainer(max_epochs=2, callbacks=[callback])
    run.fit(module, datamodule=data)
    run.fit_loop.max_epochs = 4
    run.fit(module, datamodule=data)
    assert module.batches == 4 * 12
    assert callback.summary()["instances_seen"] == 4 * 120
    assert data.candidate_stream.pass_index >= 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_indices_are_those_of_the_batch_when_an_epoch_is_cut_short(num_workers):
    class Cutting(Watching):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 4 else None

    module = Cutting()
    data = AutoAssistDataModule(ClustersData(200, 10, num_workers=num_workers), budget=0.6)
    trainer(max_epochs=4, callbacks=[AutoAssistCallback()]).fit(module, datamodule=data)
    assert module.batches == 4 * 4


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_trains(policy):
    callback = AutoAssistCallback(policy=policy)
    data = AutoAssistDataModule(ClustersData(300, 10), budget=0.6)
    _, run = parameters_after(lambda: Classifier(lr=0.01), data, callback, max_epochs=8)
    assert run.global_step == 8 * 18
    assert run.callback_metrics["val_loss"] < 0.7
    considered, kept = data.candidate_stream.num_considered, data.candidate_stream.num_kept
    if policy not in ("ies", "class_balanced"):  # no loss is settled so soon, and the classes are nearly balanced
        assert considered == kept if policy == "uniform" else considered > 1.1 * kept


@pytest.mark.parametrize("assistant", ASSISTANTS)
def test_every_assistant_trains(assistant):
    callback = AutoAssistCallback(assistant=assistant, policy="proportional")
    reads_text = "tokens" in callback.assistant.required_columns
    data = AutoAssistDataModule(TextsData(300, 10) if reads_text else ClustersData(300, 10), budget=0.6)
    make = BagOfWords if reads_text else lambda: Classifier(lr=0.01)
    _, run = parameters_after(make, data, callback, max_epochs=8)
    assert run.global_step == 8 * 18
    assert run.callback_metrics["val_loss"] < 0.7
    assert data.candidate_stream.num_considered > 1.1 * data.candidate_stream.num_kept


def test_a_class_quota_is_met_in_training():
    callback = AutoAssistCallback(
        policy=ClassQuotaPolicy(ProportionalPolicy(0.3, 0.1), min_rate=0.5), unfiltered_tail=0
    )
    data = AutoAssistDataModule(ClustersData(300, 10), budget=0.6)
    parameters_after(Classifier, data, callback, max_epochs=8)
    probs, labels = torch.from_numpy(callback.keep_probability(range(300))), callback.instances.labels
    assert all(probs[labels == label].mean() > 0.45 for label in labels.unique())
    assert 0.45 < callback.summary()["mean_keep_prob"] < 0.9


def test_the_tail_keeps_everything():
    source = ClustersData(300, 10)
    data = AutoAssistDataModule(source, budget=0.6)
    rates = []

    class Watching(pl.Callback):
        def on_train_epoch_end(self, run, module):
            rates.append(run.callback_metrics["autoassist/keep_rate"].item())

    parameters_after(
        Classifier, data, AutoAssistCallback(policy="infobatch", unfiltered_tail=0.25), Watching(), max_epochs=8
    )
    assert max(rates[3:5]) < 0.9
    assert rates[-1] == 1.0


def test_a_policy_given_as_an_object_filters_as_it_was_made():
    by_name, given = AutoAssistCallback(policy="proportional"), AutoAssistCallback(policy=ProportionalPolicy(0.8, 0.6))
    for callback in (by_name, given):
        data = AutoAssistDataModule(ClustersData(200, 10), budget=0.4)
        trainer(max_epochs=6, callbacks=[callback]).fit(Classifier(), datamodule=data)
    assert (by_name.policy.keep_rate, by_name.policy.floor) == (0.5, 0.2)
    assert (given.policy.keep_rate, given.policy.floor) == (0.8, 0.6)
    assert by_name.summary()["keep_rate"] < given.summary()["keep_rate"]


def test_filtered_instances_are_never_loaded():
    callback, source = AutoAssistCallback(), ClustersData(300, 10)
    data = AutoAssistDataModule(source, budget=0.6)
    trainer(max_epochs=6, callbacks=[callback]).fit(Classifier(), datamodule=data)
    summary = callback.summary()
    assert len(source.train_set.loads) == summary["instances_seen"] == 6 * 180
    assert summary["candidates_seen"] > 1.2 * len(source.train_set.loads)


def test_the_first_pass_keeps_everything():
    source = ClustersData(300, 10)
    data = AutoAssistDataModule(source, budget=1.0)
    trainer(max_epochs=1, callbacks=[AutoAssistCallback()]).fit(Classifier(), datamodule=data)
    assert sorted(source.train_set.loads) == list(range(300))


class EvenOnes(Assistant):
    """Knows beforehand that every second instance is worth nothing."""

    required_columns = ("indices",)
    scores_unseen = True

    def predict(self, instances):
        return (instances.indices % 2 == 0).float()

    def update(self, instances, scores):
        return UpdateResult(0.0, self.predict(instances), scores > 0)

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_an_assistant_that_judges_unseen_instances_filters_the_first_pass():
    source = ClustersData(300, 10)
    callback = AutoAssistCallback(AutoAssistPolicy(gamma=0.1), EvenOnes())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "this run trains on .* less than two passes")
        run = trainer(max_epochs=1, callbacks=[callback])
        run.fit(Classifier(), datamodule=AutoAssistDataModule(source, budget=0.4))
    loads = torch.tensor(source.train_set.loads)
    assert len(loads) == 120
    assert (loads % 2 == 0).sum() > 90
    assert callback.summary()["keep_rate"] == pytest.approx(0.55, abs=0.12)
    assert callback.keep_probability([0, 1]).tolist() == pytest.approx([1, 0.1])


# ---- what is logged


def test_metrics_are_logged_each_epoch(tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="run")
    callback = AutoAssistCallback()
    data = AutoAssistDataModule(ClustersData(300, 10), budget=0.6)
    run = trainer(max_epochs=4, callbacks=[callback], logger=logger, log_every_n_steps=5)
    run.fit(Classifier(), datamodule=data)
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["autoassist/keep_rate"]]
    assert len(rows) == 4
    numbers = [
        {
            name.removeprefix("autoassist/"): float(value)
            for name, value in row.items()
            if "autoassist" in name and value
        }
        for row in rows
    ]
    assert [row["instances_seen"] for row in numbers] == [180, 360, 540, 720]
    assert numbers[0]["keep_rate"] == numbers[0]["mean_keep_prob"] == 1
    for row in numbers[2:]:
        assert 0.3 <= row["keep_rate"] < 0.9
        assert row["mean_keep_prob"] == pytest.approx(row["keep_rate"], abs=0.15)
        assert 0 <= row["assistant_auroc"] <= 1
        assert 0 < row["assistant_loss"] < 2
        assert 0 < row["overhead_ms"] < 500
        assert row["candidates_seen"] > row["instances_seen"]
    assert (
        numbers[-1]["candidates_seen"] == callback.summary()["candidates_seen"] == data.candidate_stream.num_considered
    )


@pytest.mark.parametrize("batch_size", [1, 30])
def test_auroc_is_torchmetrics_over_the_epochs_predictions(batch_size):
    from sklearn.metrics import roc_auc_score

    from lightning_autoassist.filtering.assistants.base import UpdateResult
    from lightning_autoassist.filtering.reporting.metrics import FilterReport

    report = FilterReport()
    predictions, targets = torch.rand(2400), torch.rand(2400) > 0.5
    for rows in torch.arange(2400).split(batch_size):
        report.count_outcome(UpdateResult(0.5, predictions[rows], targets[rows]))
    metrics = report.end_epoch(None)
    assert metrics["autoassist/assistant_auroc"] == pytest.approx(roc_auc_score(targets, predictions), abs=1e-6)
    assert metrics["autoassist/assistant_loss"] == 0.5
    assert "autoassist/assistant_auroc" not in report.end_epoch(None)


# ---- what is left behind


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_strategy(fails):
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            if fails and batch_idx == 3:
                raise KeyError("the user's own mistake")
            return super().training_step(batch, batch_idx)

    run = trainer(max_epochs=1, callbacks=[AutoAssistCallback()])
    data = AutoAssistDataModule(ClustersData(), budget=0.6)
    if fails:
        with pytest.raises(KeyError, match="own mistake"):
            run.fit(Failing(), datamodule=data)
    else:
        run.fit(Failing(), datamodule=data)
    assert "training_step" not in run.strategy.__dict__
    assert not torch.overrides._get_current_function_mode_stack()
