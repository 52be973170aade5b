"""Connects the parts of filtering with the fit of a Trainer, and disconnects them, in whatever way the fit ends."""

from __future__ import annotations

import functools

from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.filtering.fit_checks import check_equal_epochs, data_module_of
from lightning_autoassist.filtering.memory.feature_file import FeaturePlace
from lightning_autoassist.filtering.options import ResolvedOptions
from lightning_autoassist.filtering.parts import FilteringParts
from lightning_autoassist.filtering.run_state import continue_epoch
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.row_stream import RowStream
from lightning_autoassist.filtering.validation import IsolatedValidation
from lightning_autoassist.trainer_support.executors import InlineExecutor
from lightning_autoassist.trainer_support.muted_warning import MutedWarning
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.variants import LightningModule, Trainer, overrides


class FitConnection:
    """The fit that the callback is used in, or was used in last: its data, its processes, and where work is done.

    Args:
        parts: What is connected with a fit.
        in_force: Options until a fit resolves them.

    Attributes:
        in_force: What is in force of the options that the user left open.
        data: The data module; None before the first fit.
        ranks: The processes that train.
        jobs: Where the Assistant learns and batches are drawn.
        has_begun: Whether training has begun before, here or in the run that a checkpoint is of.
    """

    def __init__(self, parts: FilteringParts, in_force: ResolvedOptions) -> None:
        self.in_force = in_force
        self.data: AutoAssistDataModule | None = None
        self.ranks = Ranks()
        self.jobs = InlineExecutor()
        self.has_begun = False
        self._parts = parts
        self._validation = IsolatedValidation()
        # Lightning would say that the module's hook is ignored; the data module calls it.
        self._hook_warning = MutedWarning("You have overridden `on_before_batch_transfer` in both")

    @property
    def fitted_data(self) -> AutoAssistDataModule:
        """The data module, within a fit."""
        assert self.data is not None
        return self.data

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer that the data module belongs to; None before the first fit."""
        return None if self.data is None else self.data.trainer

    @property
    def stream(self) -> ShrinkingBatchSampler | RowStream | None:
        """The candidate stream; None before the first filtered batch, and where the user's own batches pass."""
        return None if self.data is None else self.data.candidate_stream

    @property
    def unfiltered_because(self) -> str | None:
        """Why the user's own train loader is passed on as it is; None where it is filtered."""
        return None if self.data is None else self.data.unfiltered_because

    def connect(self, trainer: Trainer, module: LightningModule, in_force: ResolvedOptions) -> None:
        """Connect everything that has to be there before the train loader is asked for.

        Args:
            trainer: The Trainer whose fit begins.
            module: The model.
            in_force: Of this fit.

        Raises:
            MisconfigurationException: If the fit trains on data of another kind than ``AutoAssistDataModule``.
        """
        parts = self._parts
        self.data = data_module_of(trainer)
        if self.ranks.world_size != trainer.world_size:
            self.ranks = Ranks(trainer.global_rank, trainer.world_size)
        parts.report.num_ranks = self.ranks.world_size
        parts.selector.join(self.ranks, functools.partial(FeaturePlace.of, trainer))
        self.in_force = in_force
        self.jobs.close()
        self.jobs = in_force.executor()
        parts.selector.work_in(self.jobs)
        if overrides(module, "on_before_batch_transfer"):
            self._hook_warning.begin()
        parts.log.connect(trainer, self.data)
        self.data.connect(parts.selector, parts.steps.start_batch, self.ranks, restart=not self.has_begun)

    def observe_steps(self, trainer: Trainer, module: LightningModule) -> None:
        """Observe the fit's training steps, where anybody wants to know the losses or the losses are weighted."""
        if self._parts.watches_losses:
            self._parts.steps.begin(trainer.strategy, module, self.fitted_data.wrapped)

    def begin_training(self, trainer: Trainer) -> None:
        """Training begins, or goes on where a run was interrupted.

        Args:
            trainer: Of the fit.

        Raises:
            MisconfigurationException: If the processes would train on different numbers of batches.
        """
        data = self.fitted_data
        self.has_begun = True
        continue_epoch(trainer, data)
        self._validation.begin(trainer.fit_loop.epoch_loop.val_loop, data, self.jobs)
        check_equal_epochs(self.ranks.gather(trainer.num_training_batches))
        if trainer.global_step == 0:  # later iterations begin at their first batch, in plain Lightning too
            data.start_fetching()

    def disconnect(self) -> None:
        """Leave the Trainer, its loggers and the data module as they were; does nothing the second time."""
        self._parts.log.disconnect()
        self._parts.steps.end()
        self._validation.end()
        self._hook_warning.end()
        self.jobs.close()
        if self.data is not None:
            self.data.disconnect()
        self._parts.report.training.stop()
