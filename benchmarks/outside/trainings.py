"""The trainings that a case goes through, each from the same seed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning.pytorch
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from benchmarks.outside.cases import BATCH_SIZE, Setup
from lightning_autoassist import AutoAssistDataModule

SEED = 3
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
_STOCHASTIC = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)


class Training(NamedTuple):
    """What is left of one training.

    Attributes:
        module: As it was trained.
        losses: What each step returned, detached.
        warnings: What was warned of, each text once.
    """

    module: Any
    losses: list[Tensor]
    warnings: list[str]

    def has_same_weights(self, other: Training) -> bool:
        """Whether both modules hold the same numbers, bit for bit."""
        states = [each.module.state_dict() for each in (self, other)]
        return states[0].keys() == states[1].keys() and all(
            _is_equal(value, states[1][name]) for name, value in states[0].items()
        )


class Losses(pl.Callback, lightning.pytorch.Callback):
    """Notes what each step returned."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is not None:
            self.values.append(loss.detach().clone())


class Frozen(pl.Callback, lightning.pytorch.Callback):
    """Keeps the parameters, dropout and BatchNorm where they are, so that an instance has one loss in every step.

    Args:
        setup: Of the case; its ``by_hand`` is asked for each batch before the step.

    Attributes:
        by_hand: What it answered.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.by_hand: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        for module in pl_module.modules():
            if self.setup.eval_mode or isinstance(module, _STOCHASTIC):
                module.training = False
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0
        if self.setup.by_hand is not None:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # the step makes the same draws again
                self.by_hand.append(self.setup.by_hand(pl_module, batch).flatten())


def fit(
    setup: Setup,
    *callbacks: Any,
    budget: float | None = None,
    epochs: int = 2,
    batch_size: int = BATCH_SIZE,
    shuffle: bool = True,
) -> Training:
    """Train a fresh module.

    Args:
        setup: Of the case.
        callbacks: Of the Trainer.
        budget: Of the data module; None: plain Lightning, without one.
        epochs: Of the Trainer.
        batch_size: B.
        shuffle: Whether the loader does.
    """
    losses = Losses()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl.seed_everything(SEED, verbose=False)
        module = setup.make_module()
        trainer = flavour_of(module).Trainer(**QUIET, max_epochs=epochs, callbacks=[losses, *callbacks])
        trainer.fit(module, **_data(setup, budget, batch_size, shuffle))
    return Training(module, losses.values, _texts(caught))


def flavour_of(module: Any) -> Any:
    """The Lightning whose LightningModule it is."""
    return pl if isinstance(module, pl.LightningModule) else lightning.pytorch


def _data(setup: Setup, budget: float | None, batch_size: int, shuffle: bool) -> dict[str, Any]:
    loader = setup.make_loader(batch_size, shuffle)
    held_out = setup.make_loader(batch_size, False) if setup.validates else None
    if isinstance(loader, (pl.LightningDataModule, lightning.pytorch.LightningDataModule)):
        return {"datamodule": loader if budget is None else AutoAssistDataModule(loader, budget=budget)}
    if budget is None:
        return {"train_dataloaders": loader, "val_dataloaders": held_out}
    return {"datamodule": AutoAssistDataModule(loader, budget=budget, val_dataloaders=held_out)}


def _texts(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    return list(dict.fromkeys(str(each.message) for each in caught))


def _is_equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor):
        return bool(one == other)
    return one.dtype == other.dtype and one.shape == other.shape and bool(torch.equal(one, other) or _same(one, other))


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal where both are numbers, and not a number in the same places."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
