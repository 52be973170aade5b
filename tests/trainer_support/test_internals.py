"""The private attributes that AutoAssist reads: each test says what breaks where one of them goes."""

from __future__ import annotations

import importlib
import warnings

import pytest
import torch
from pytorch_lightning.loggers.wandb import WandbLogger
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_autoassist.trainer_support import autograd_internals, internals
from lightning_autoassist.trainer_support.variants import FLAVOURS

NUM_BATCHES = 3


def loader(num_workers=0, **options):
    dataset = TensorDataset(torch.arange(12.0).reshape(-1, 1))
    return DataLoader(dataset, batch_size=4, num_workers=num_workers, **options)


@pytest.fixture(params=FLAVOURS, ids=lambda flavour: flavour.__name__)
def flavour(request):
    return request.param


def fitted(flavour, ask, *, data=None, **options):
    """What ``ask(trainer, batch_idx)`` says at the end of each batch of a real fit, and the Trainer."""
    answers = []

    class Module(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            return self.net(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    class Ask(flavour.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            answers.append(ask(trainer, batch_idx))

    settings = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **options,
    }
    trainer = flavour.Trainer(callbacks=[Ask()], **settings)
    module = Module()
    if data is None:
        trainer.fit(module, loader(), loader())
    else:
        trainer.fit(module, datamodule=data)
    assert len(answers) == NUM_BATCHES
    return answers, trainer


def test_the_iterators_that_a_fit_takes_its_batches_from(flavour):
    """Without ``fit_loop._combined_loader._iterator.iterators`` no batch is known to be the Trainer's own.

    Every batch would then be taken for one that somebody else asked for, and nothing would be filtered.
    """
    iterated = []

    class Noting:
        def __iter__(self):
            iterated.append(iter([torch.ones(4, 1)[None]] * NUM_BATCHES))
            return iterated[-1]

    class Data(flavour.LightningDataModule):
        def train_dataloader(self):
            return Noting()

        def val_dataloader(self):
            return loader()

    answers, _ = fitted(flavour, lambda trainer, _: list(internals.fetching_iterators(trainer)), data=Data())
    assert all(len(iterators) == 1 for iterators in answers), "fit_loop._combined_loader._iterator.iterators has gone"
    assert all(any(iterators[0] is own for own in iterated) for iterators in answers)
    assert list(internals.fetching_iterators(None)) == []
    assert list(internals.fetching_iterators(flavour.Trainer(logger=False, accelerator="cpu"))) == []


def test_the_data_of_a_fit(flavour):
    """Without ``fit_loop._data_source`` a fit on other data is taken for one on an earlier fit's data module."""

    class Data(flavour.LightningDataModule):
        def train_dataloader(self):
            return loader()

    data = Data()
    with pytest.warns(match="no `val_dataloader`"):
        answers, trainer = fitted(flavour, lambda trainer, _: internals.data_of_fit(trainer), data=data)
    assert answers == [data] * NUM_BATCHES
    answers, trainer = fitted(flavour, lambda trainer, _: internals.data_of_fit(trainer))
    assert hasattr(trainer.fit_loop, "_data_source"), "FitLoop._data_source has gone; see internals.data_of_fit"
    assert all(answer is not None and answer is not data for answer in answers)


@pytest.mark.parametrize("shards", [True, False])
def test_whether_the_trainer_shards(flavour, shards):
    """Without ``_accelerator_connector.use_distributed_sampler`` instances cannot be shared out as the user asks."""
    trainer = flavour.Trainer(use_distributed_sampler=shards, logger=False, accelerator="cpu")
    assert internals.shards_loaders(trainer) is shards, "_accelerator_connector.use_distributed_sampler has changed"


def test_a_loader_as_lightning_prepares_it(flavour):
    """Without ``_data_connector._prepare_dataloader`` unfiltered runs under DDP see other batches than plain ones."""
    trainer = flavour.Trainer(logger=False, accelerator="cpu", devices=2, strategy="ddp")
    prepared = internals.prepared_loader(trainer, loader(), shuffle=True)
    assert isinstance(prepared.sampler, DistributedSampler), "_prepare_dataloader no longer shards"
    assert prepared.sampler.shuffle
    assert prepared.sampler.num_replicas == 2


def test_whether_validation_comes_next(flavour):
    """Without ``epoch_loop._should_check_val_fx`` gradients that Lightning clears are taken for accumulated ones."""

    def ask(trainer, _):
        loop = trainer.fit_loop
        assert hasattr(loop.epoch_loop, "_should_check_val_fx"), "see internals.is_about_to_validate"
        assert hasattr(loop, "_data_fetcher"), "see internals.is_about_to_validate"
        return internals.is_about_to_validate(trainer)

    assert fitted(flavour, ask, val_check_interval=2)[0] == [False, True, False]
    assert internals.is_about_to_validate(object) is False


def test_the_module_of_a_trainer(flavour):
    """Without ``strategy._lightning_module`` W&B's runs get no group: Trainer.lightning_module asks that too late."""
    answers, trainer = fitted(flavour, lambda trainer, _: internals.module_of(trainer))
    assert all(module is trainer.lightning_module for module in answers), "strategy._lightning_module has changed"
    assert internals.module_of(flavour.Trainer(logger=False, accelerator="cpu")) is None


def test_which_steps_are_logged(flavour):
    """Without ``_logger_connector.should_update_logs`` W&B gets axes in rows of their own."""
    answers, _ = fitted(flavour, lambda trainer, _: internals.is_logging_step(trainer), log_every_n_steps=2)
    assert answers == [False, True, False], "_logger_connector.should_update_logs has changed"


@pytest.mark.parametrize("scale", [None, 8.0])
def test_the_loss_scale_and_optimizers_that_undo_it_themselves(flavour, scale):
    """Without them K-FAC takes scaled gradients for the instances' own."""
    plugin = importlib.import_module(f"{flavour.__name__}.plugins.precision").MixedPrecision
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    options = {} if scaler is None else {"plugins": plugin("16-mixed", "cpu", scaler)}
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizers = [torch.optim.SGD(parameters, 0.1, fused=fused) for fused in (True, False)]

    def ask(trainer, _):
        found = internals.loss_scale(trainer)
        is_scaled = [internals.steps_with_scaled_gradients(trainer, optimizer) for optimizer in optimizers]
        factor = float(internals.loss_factor(trainer, trainer.lightning_module))
        return None if found is None else float(found), is_scaled, factor, float(internals.early_factor(trainer))

    answers, _ = fitted(flavour, ask, **options, accumulate_grad_batches=2)
    assert answers == [(scale, [scale is not None, False], (scale or 1.0) / 2, scale or 1.0)] * NUM_BATCHES


def test_values_in_the_progress_bar(flavour):
    """Without ``_logger_connector._progress_bar_metrics`` the progress bar shows no keep rate."""

    def ask(trainer, batch_idx):
        internals.show_in_progress_bar(trainer, shown=batch_idx)
        return trainer.progress_bar_metrics.get("shown")

    assert fitted(flavour, ask)[0] == [0, 1, 2], "_logger_connector._progress_bar_metrics is no longer what is shown"


def test_what_wandb_begins_a_run_with(tmp_path):
    """Without ``WandbLogger._wandb_init`` runs are not grouped by data and policy."""
    pytest.importorskip("wandb")
    settings = internals.wandb_settings(WandbLogger(project="a project", save_dir=tmp_path, offline=True))
    assert settings is not None, "WandbLogger._wandb_init has gone"
    assert settings["project"] == "a project"
    assert internals.wandb_settings(object()) is None


def test_hyperparameters_that_the_command_line_gives(flavour):
    """Without ``_given_hyperparameters`` and its context, a data module in YAML saves settings of the one around it."""

    class Data(flavour.LightningDataModule):
        def __init__(self, size=1):
            super().__init__()
            self.save_hyperparameters()

    name = flavour.__name__
    assert internals.given_hyperparameters(name) is None
    with internals.giving_hyperparameters(name, {"size": 7, "_instantiator": "mine"}):
        assert internals.given_hyperparameters(name) == {"size": 7, "_instantiator": "mine"}
        data = Data()
    assert data.hparams["size"] == 7
    assert internals.given_hyperparameters(name) is None


def test_the_switch_for_logging_hyperparameters(flavour):
    """Without ``_log_hyperparams`` what save_hyperparameters(logger=False) hides would be logged."""
    data = flavour.LightningDataModule()
    assert getattr(data, internals.LOGS_HYPERPARAMETERS) is False, "LightningDataModule._log_hyperparams has gone"
    data.save_hyperparameters({"rate": 1}, logger=True)
    assert getattr(data, internals.LOGS_HYPERPARAMETERS) is True


def test_a_copy_of_a_loader_with_its_own_workers():
    """Without ``DataLoader._iterator`` an epoch of ours would share workers with the user's own."""
    original = loader(num_workers=1, persistent_workers=True)
    first = iter(original)
    assert internals.kept_iterator(original) is first, "DataLoader no longer keeps its iterator in _iterator"
    copied = internals.own_copy(original, batch_sampler=[[5], [1]], sampler=None, batch_size=None, drop_last=False)
    assert internals.kept_iterator(copied) is None
    assert [batch.tolist() for (batch,) in copied] == [[[5.0]], [[1.0]]]
    assert len(list(first)) == len(original) == NUM_BATCHES
    assert internals.ITERATOR not in internals.attributes_of(original)
    for each in (original, copied):
        internals.shut_down_workers(internals.kept_iterator(each))


def test_workers_that_are_shut_down():
    """Without ``_shutdown_workers`` the workers of a stream live on until Python collects them."""
    batches = iter(loader(num_workers=1))
    workers = batches._workers
    assert all(worker.is_alive() for worker in workers)
    internals.shut_down_workers(batches)
    assert not any(worker.is_alive() for worker in workers), "a DataLoader's iterator lacks _shutdown_workers"
    internals.shut_down_workers(iter([]))


def test_an_iterator_that_a_loader_is_told_to_keep():
    original = loader(num_workers=1, persistent_workers=True)
    first = iter(original)
    other = internals.own_copy(original)
    internals.keep_iterator(other, first)
    assert iter(other) is first, "DataLoader no longer takes its persistent workers from _iterator"
    internals.keep_iterator(other, None)
    internals.shut_down_workers(first)
    assert internals.kept_iterator(other) is None


def test_lightning_shuts_workers_down_by_the_attribute_of_whatever_has_it():
    """Where Lightning uses another one than ``_iterator``, workers of a filtered run live on after the fit."""

    class Carrying:
        def __init__(self, inner):
            self.inner = inner

        def __iter__(self):
            return iter(self.inner)

        @property
        def _iterator(self):
            return internals.kept_iterator(self.inner)

        @_iterator.setter
        def _iterator(self, iterator):
            internals.keep_iterator(self.inner, iterator)

    carrying = Carrying(loader(num_workers=1, persistent_workers=True))
    combined = CombinedLoader(carrying)
    next(iter(combined))
    workers = internals.kept_iterator(carrying.inner)._workers
    combined.reset()
    assert internals.kept_iterator(carrying.inner) is None, "Lightning resets workers by another name than _iterator"
    assert not any(worker.is_alive() for worker in workers)


def test_parts_of_a_schedule():
    """Without ``_schedulers`` nobody knows how often a module has stepped a chained schedule of its own."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    parts = [torch.optim.lr_scheduler.StepLR(optimizer, 2), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]
    chained = torch.optim.lr_scheduler.ChainedScheduler(parts)
    sequential = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])
    assert list(internals.parts_of_schedule(chained)) == parts, "ChainedScheduler._schedulers has gone"
    assert list(internals.parts_of_schedule(sequential)) == parts, "SequentialLR._schedulers has gone"
    assert internals.parts_of_schedule(parts[0]) == ()


@pytest.mark.parametrize("marks", [True, False])
def test_a_schedule_takes_an_optimizer_for_stepped(marks):
    """Without ``_opt_called`` the simulation of a schedule warns that it came before the optimizer's first step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if marks:
            internals.mark_as_stepped(optimizer)
        schedule.step()
    assert bool(caught) is not marks, "schedules no longer look for Optimizer._opt_called"


def test_arguments_that_a_node_of_the_graph_saved():
    """Without ``_saved_...`` losses of scripted code, and the order of rows before ``view``, are not found."""
    logits, target = torch.zeros(4, 3, requires_grad=True), torch.tensor([0, 1, 2, -100])
    node = F.nll_loss(logits, target, reduction="sum").grad_fn
    assert autograd_internals.saved_argument(node, "target") is not None, "nodes no longer have _saved_..."
    assert torch.equal(autograd_internals.saved_argument(node, "target"), target)
    assert autograd_internals.saved_argument(node, "self").shape == (4, 3)
    assert autograd_internals.saved_argument(node, "reduction") == 2
    assert tuple(autograd_internals.saved_argument(logits.view(12).grad_fn, "self_sym_sizes")) == (4, 3)
    assert autograd_internals.saved_argument(node, "no such", "default") == "default"


def test_shapes_of_the_results_of_nodes():
    """Without ``_input_metadata`` sums and products of losses cannot be told apart; torch 2.4 has none of it."""
    rows = torch.zeros(4, requires_grad=True).exp()
    knows = autograd_internals.knows_result_shapes(rows.grad_fn)
    assert knows == (tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5)), "Node._input_metadata has gone"
    if knows:
        assert autograd_internals.is_scalar(rows.sum().grad_fn)
        assert not autograd_internals.is_scalar(rows.grad_fn)


def test_how_often_a_tensor_was_changed():
    """Without ``Tensor._version`` a batch that a hook changed in place is compared as if it were the loader's."""
    tensor = torch.zeros(3)
    before = internals.num_changes(tensor)
    tensor.add_(1)
    assert internals.num_changes(tensor) == before + 1


def test_nodes_of_the_graph_are_numbered_as_they_were_made():
    """Without it, local learning cannot tell where a network can be cut."""
    first = torch.ones(2, requires_grad=True).exp()
    second = first.sin()
    assert internals.creation_number(second.grad_fn) > internals.creation_number(first.grad_fn)


def test_backward_is_noticed():
    """Without it, what activation checkpointing repeats would be taken for another call of a module."""
    inside = []
    values = torch.ones(2, requires_grad=True)
    values.register_hook(lambda gradient: inside.append(internals.is_in_backward()))
    values.sum().backward()
    assert inside == [True]
    assert not internals.is_in_backward()


def test_the_steps_between_checkpoints_are_known(flavour):
    """Without it, processes of layers in parallel would name checkpoints by metrics that they do not have."""
    checkpoints = flavour.callbacks.ModelCheckpoint(every_n_train_steps=3)
    assert internals.steps_between_checkpoints(checkpoints) == 3
    assert internals.steps_between_checkpoints(flavour.callbacks.EarlyStopping("loss")) == 0


def test_metrics_of_another_process_are_seen_by_callbacks(flavour):
    """Without it, processes of layers in parallel would monitor what their first steps logged."""

    def ask(trainer, batch_idx):
        internals.forget_results(trainer)
        internals.set_callback_metrics(trainer, {"told": torch.tensor(3.0)})
        return float(trainer.callback_metrics["told"])

    answers, _ = fitted(flavour, ask)
    assert answers == [3.0] * NUM_BATCHES


def test_other_processes_are_started_by_a_script(flavour):
    """Without it, layers in parallel have no processes."""
    fabric = {"pytorch_lightning": "lightning_fabric"}.get(flavour.__name__, "lightning.fabric")
    environment = importlib.import_module(f"{fabric}.plugins.environments").LightningEnvironment()
    assert internals.script_launcher(flavour.__name__, environment, 2, 1).procs == []
    internals.set_rank_zero(flavour.__name__, 0)


def test_workers_of_all_processes_draw_alike(monkeypatch):
    """Without it, augmentation in workers gives each process of layers in parallel other images."""
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    seeded = loader(num_workers=1)
    internals.seed_workers_alike(seeded)
    assert seeded.worker_init_fn.keywords == {"rank": 0}
