"""The private attributes of Lightning, and of torch's loaders and schedules, that AutoAssist reads or sets.

No other file touches them; those of torch's autograd graph are in ``autograd_internals.py``. Every function has a test
in ``tests/trainer_support/test_internals.py`` that says what breaks where a new version of Lightning or of torch lacks
the attribute.
"""

from __future__ import annotations

import copy
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from torch import Tensor
from torch.utils.data import DataLoader

LoaderT = TypeVar("LoaderT", bound=DataLoader[Any])

# Where a DataLoader keeps the iterator of its persistent workers. Lightning shuts workers down through this attribute
# of whatever has it.
ITERATOR = "_iterator"
# Whether Lightning logs a module's hyperparameters: an attribute of modules and of data modules.
LOGS_HYPERPARAMETERS = "_log_hyperparams"


# ---- the Trainer


def fetching_iterators(trainer: Any) -> Sequence[object]:
    """The iterators from which the Trainer's fit loop takes its batches now; none outside of training.

    Args:
        trainer: The Trainer, or None.
    """
    fit_loop = getattr(trainer, "fit_loop", None)
    combined = getattr(getattr(fit_loop, "_combined_loader", None), "_iterator", None)
    return cast("Sequence[object]", getattr(combined, "iterators", ()))


def data_of_fit(trainer: Any) -> Any:
    """The data module or module whose train loader this fit uses; a Trainer keeps the data module of an earlier fit."""
    return getattr(getattr(trainer.fit_loop, "_data_source", None), "instance", trainer.datamodule)


def shards_loaders(trainer: Any) -> bool:
    """Whether the Trainer shares the instances of a loader out to its processes (``use_distributed_sampler``)."""
    return bool(trainer._accelerator_connector.use_distributed_sampler)


def prepared_loader(trainer: Any, loader: Any, *, shuffle: bool) -> Any:
    """A loader as Lightning would have made it for this process, with a distributed sampler where one is due.

    Args:
        trainer: The Trainer.
        loader: The user's.
        shuffle: Whether a distributed sampler shuffles.
    """
    return trainer._data_connector._prepare_dataloader(loader, shuffle, trainer.state.stage)


def is_about_to_validate(trainer: Any) -> bool:
    """Whether Lightning validates after the batch that has just ended; False where its loop does not tell."""
    try:
        return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))
    except (AttributeError, TypeError):  # another version's loop
        return False


def module_of(trainer: Any) -> Any:
    """The module that the Trainer trains; None before it is known."""
    return trainer.strategy._lightning_module


def is_logging_step(trainer: Any) -> bool:
    """Whether the Trainer logs what is logged in this step (``log_every_n_steps``)."""
    return bool(trainer._logger_connector.should_update_logs)


def show_in_progress_bar(trainer: Any, **values: Any) -> None:
    """Show values in the progress bar beside the module's own metrics, without making floats of them."""
    trainer._logger_connector._progress_bar_metrics.update(values)


# ---- loggers


def wandb_settings(logger: Any) -> dict[str, Any] | None:
    """What a W&B logger begins its run with, to be changed before that; None for other loggers."""
    settings = getattr(logger, "_wandb_init", None)
    return settings if isinstance(settings, dict) else None


# ---- LightningCLI


def given_hyperparameters(flavour: str) -> Mapping[str, Any] | None:
    """What LightningCLI is giving to the objects that it makes now, by its keys; None outside of LightningCLI.

    Args:
        flavour: Name of Lightning's package, such as ``"pytorch_lightning"``.
    """
    return cast("Mapping[str, Any] | None", _hyperparameters_mixin(flavour)._given_hyperparameters.get())


def giving_hyperparameters(flavour: str, settings: dict[str, Any]) -> AbstractContextManager[None]:
    """The context in which ``save_hyperparameters`` saves ``settings``, as within LightningCLI.

    Args:
        flavour: Name of Lightning's package, such as ``"pytorch_lightning"``.
        settings: With their ``"_instantiator"``.
    """
    context: AbstractContextManager[None] = _hyperparameters_mixin(flavour)._given_hyperparameters_context(
        hparams=settings, instantiator=settings["_instantiator"]
    )
    return context


def _hyperparameters_mixin(flavour: str) -> Any:
    return importlib.import_module(f"{flavour}.core.mixins.hparams_mixin")


# ---- torch's loaders


def own_copy(loader: LoaderT, **attributes: Any) -> LoaderT:
    """A copy of a loader that is iterated apart from it: with no iterator yet, and with workers seeded by Lightning.

    A DataLoader forbids to set some of its attributes, and making a new one would lose a subclass's own arguments.

    Args:
        loader: The user's; stays as it is.
        attributes: What is different in the copy.

    Example:
        >>> loader = DataLoader(range(4), batch_size=2)
        >>> list(own_copy(loader, batch_sampler=[[3]], sampler=None, batch_size=None)), len(loader)
        ([tensor([3])], 2)
    """
    own = copy.copy(loader)
    own.__dict__.update(attributes, **{ITERATOR: None})
    seed_workers(own)
    return own


def seed_workers(loader: DataLoader[Any]) -> None:
    """What Lightning does for DataLoaders after ``seed_everything(..., workers=True)``."""
    if loader.worker_init_fn is None and int(os.environ.get("PL_SEED_WORKERS", 0)):
        loader.worker_init_fn = pl_worker_init_function


def kept_iterator(loader: DataLoader[Any]) -> Any:
    """The iterator that a loader with persistent workers uses for all epochs; None where there is none."""
    return getattr(loader, ITERATOR)


def keep_iterator(loader: DataLoader[Any], iterator: Any) -> None:
    """Let a loader use an iterator, and its workers, for its next epochs; None: let it begin a new one."""
    setattr(loader, ITERATOR, iterator)


def attributes_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """The attributes that a loader was given or made, without the iterator that it keeps."""
    return {name: value for name, value in vars(loader).items() if name != ITERATOR}


def shut_down_workers(iterator: Any) -> None:
    """End the workers of a DataLoader's iterator now, and not only when it is collected; others have none."""
    shut_down = getattr(iterator, "_shutdown_workers", None)
    if callable(shut_down):
        shut_down()


# ---- torch's schedules and optimizers


def parts_of_schedule(scheduler: Any) -> Sequence[Any]:
    """The schedules that a chained or sequential one is made of; none for others."""
    return cast("Sequence[Any]", getattr(scheduler, "_schedulers", ()))


def mark_as_stepped(optimizer: Any) -> None:
    """Let schedules take an optimizer for one that has been stepped, so that none warns of a wrong order of calls."""
    vars(optimizer)["_opt_called"] = True


# ---- tensors


def num_changes(tensor: Tensor) -> int:
    """How often a tensor has been changed in place."""
    return tensor._version


# ---- autograd


def creation_number(node: Any) -> int:
    """When a node of the autograd graph was made: one made later, in the same thread, has a larger number."""
    return int(node._sequence_nr())


def is_in_backward() -> bool:
    """Whether the autograd engine is at work in this thread: activation checkpointing repeats forward passes there."""
    return bool(torch._C._current_graph_task_id() != -1)


def note_outputs_for_reduction(model: Any, output: Tensor) -> None:
    """Let DDP look for unused parameters behind another output than the one its forward pass gave."""
    if getattr(model, "find_unused_parameters", False) and getattr(model, "require_backward_grad_sync", False):
        model.reducer.prepare_for_backward([output])


# ---- mixed precision


def loss_scale(trainer: Any) -> Tensor | None:
    """What the Trainer's GradScaler multiplies losses with now, on the device; None where there is no scale."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return cast("Tensor | None", getattr(scaler, "_scale", None))


def loss_factor(trainer: Any, module: Any) -> float | Tensor:
    """What the Trainer's backward multiplies the returned loss with: 1 / accumulated batches, and the loss scale."""
    divisor = trainer.accumulate_grad_batches if module.automatic_optimization else 1
    scale = loss_scale(trainer)
    return 1 / divisor if scale is None else scale / divisor


def early_factor(trainer: Any) -> float | Tensor:
    """The same where the training step itself takes gradients, for backward to bring them later: the loss scale."""
    scale = loss_scale(trainer)
    return 1.0 if scale is None else scale


def steps_with_scaled_gradients(trainer: Any, optimizer: Any) -> bool:
    """Whether an optimizer gets gradients that are still multiplied by the loss scale, as fused ones do."""
    has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
    return has_scaler and bool(getattr(optimizer, "_step_supports_amp_scaling", False))


# ---- several processes


def script_launcher(flavour: str, environment: Any, num_processes: int, num_nodes: int) -> Any:
    """What starts the other processes of a run, each with the user's own command.

    Args:
        flavour: Name of Lightning's package.
        environment: Lightning's, of the cluster.
        num_processes: Of this node.
        num_nodes: How many nodes.
    """
    module = importlib.import_module(f"{flavour}.strategies.launchers.subprocess_script")
    return module._SubprocessScriptLauncher(environment, num_processes, num_nodes)


def set_rank_zero(flavour: str, rank: int) -> None:
    """Tell Lightning's functions that work in the first process only which one this is."""
    fabric = {"pytorch_lightning": "lightning_fabric"}.get(flavour, "lightning.fabric")
    for name in (fabric, flavour):
        importlib.import_module(f"{name}.utilities.rank_zero").rank_zero_only.rank = rank


def seed_workers_alike(loader: Any) -> None:
    """Let a loader's workers draw what those of the first process draw, where Lightning seeds them."""
    if int(os.environ.get("PL_SEED_WORKERS", 0)) and getattr(loader, "worker_init_fn", True) is None:
        loader.worker_init_fn = functools.partial(pl_worker_init_function, rank=0)


def forget_results(trainer: Any) -> None:
    """Drop what this process's training steps have logged, as values of the first steps alone."""
    trainer.fit_loop.epoch_loop._results.clear()


def set_callback_metrics(trainer: Any, metrics: Mapping[str, Tensor]) -> None:
    """Set metrics that callbacks see, beside those there are."""
    trainer._logger_connector._callback_metrics.update(metrics)


def steps_between_checkpoints(callback: Any) -> int:
    """After how many steps a ModelCheckpoint saves; 0 where it saves at no step, and for any other callback."""
    return int(getattr(callback, "_every_n_train_steps", 0) or 0)
