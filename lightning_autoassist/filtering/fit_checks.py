"""What the callback refuses, or warns of, when a fit starts or its length is known."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.filtering.checks.schedules import ScheduleCheck
from lightning_autoassist.filtering.data.data_module import HOW_TO_USE, AutoAssistDataModule
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.metrics import warn_about_limits
from lightning_autoassist.filtering.sampling.candidates import CandidateStream
from lightning_autoassist.trainer_support.internals import data_of_fit
from lightning_autoassist.trainer_support.variants import LightningModule, Trainer


def check_is_alone(callback_type: type, trainer: Any) -> None:
    """Refuse several callbacks of one type in a Trainer.

    Raises:
        MisconfigurationException: If the Trainer has several.
    """
    count = sum(isinstance(callback, callback_type) for callback in trainer.callbacks)
    if count > 1:
        raise MisconfigurationException(
            f"the Trainer has {count} {callback_type.__name__}s; write one: callbacks=[{callback_type.__name__}(...)]"
        )


def data_module_of(trainer: Trainer) -> AutoAssistDataModule:
    """The data module that this fit trains on.

    Raises:
        MisconfigurationException: If it is no ``AutoAssistDataModule``.
    """
    source = data_of_fit(trainer)
    if isinstance(source, AutoAssistDataModule):
        return source
    raise MisconfigurationException(
        f"AutoAssistCallback needs an AutoAssistDataModule, and this fit trains on a {type(source).__name__}. "
        f"Write:{HOW_TO_USE}"
    )


def check_takes_batches(module: LightningModule) -> None:
    """Refuse a module that takes its batches from the loader by itself.

    Raises:
        MisconfigurationException: If its ``training_step`` takes an iterator.
    """
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise MisconfigurationException(
            "training_step(dataloader_iter) takes its batches by itself, so that AutoAssist cannot tell which "
            "instances they hold; write training_step(batch, batch_idx)"
        )


def warn_of_unread_settings(policy: Policy, given: dict[str, bool]) -> None:
    """Warn of settings that a policy without scores does not use.

    Args:
        policy: Of the run.
        given: Whether the user gave each of them, by their names.
    """
    unread = [f"{name}=" for name, is_given in given.items() if is_given]
    if unread and not policy.needs_scores:
        rank_zero_warn(f"{type(policy).__name__} needs no scores, so {', '.join(unread)} are not used; leave them out")


def check_equal_epochs(num_batches: Sequence[int | float]) -> None:
    """Refuse processes that would wait for each other.

    Args:
        num_batches: The batches of an epoch, for each process.

    Raises:
        MisconfigurationException: If the numbers differ.
    """
    if len(set(num_batches)) > 1:
        raise MisconfigurationException(
            f"the processes would train on {', '.join(map(str, num_batches))} batches an epoch, and wait for each "
            "other for ever; give every process the same number of instances, or leave sharding to the Trainer "
            "(use_distributed_sampler)"
        )


class LengthChecks:
    """Warns of settings that do not suit a run's length, once that is known."""

    def __init__(self) -> None:
        self._schedules = ScheduleCheck()
        self._is_done = False

    def begin(self, trainer: Trainer) -> None:
        """A fit starts."""
        self._is_done = False
        self._schedules = ScheduleCheck(built_from_length=trainer.train_dataloader is not None)

    def check(self, trainer: Trainer, stream: CandidateStream | None, scores_unseen: bool) -> None:
        """Check a fit once, as soon as there is a candidate stream, which knows its length.

        Args:
            trainer: Of the fit.
            stream: The candidate stream; None where there is none yet.
            scores_unseen: Whether the first pass over the data is filtered, too.
        """
        if stream is not None and not self._is_done:
            self._is_done = True
            warn_about_limits(trainer, stream, keeps_first_pass=not scores_unseen)
            self._schedules.start(trainer, stream)

    def start_epoch(self, trainer: Trainer, stream: CandidateStream | None) -> None:
        """Check schedules whose steps depend on the epoch's length."""
        if stream is not None:
            self._schedules.start_epoch(trainer, stream)
