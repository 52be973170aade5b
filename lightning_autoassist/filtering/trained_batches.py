"""What is counted and learnt when the model has been trained on a batch."""

from __future__ import annotations

import functools
from typing import Any

from lightning_autoassist.filtering.checkpoint import OpenWindow
from lightning_autoassist.filtering.checks.run_length import training_progress
from lightning_autoassist.filtering.data.carried import batch_rows
from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.filtering.observed_steps import ObservedSteps
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.selector import InstanceSelector
from lightning_autoassist.filtering.waiting_steps import PendingUpdate, to_host
from lightning_autoassist.trainer_support.executors import InlineExecutor
from lightning_autoassist.trainer_support.variants import Trainer


class TrainedBatches:
    """Confirms each batch to the data module, counts it, and hands what its step showed to the selector.

    Args:
        selector: Learns from the batch.
        steps: Observed the batch's step.
        report: Counts the batch.
        gradients: The window in which gradients are accumulated.
    """

    def __init__(
        self, selector: InstanceSelector, steps: ObservedSteps, report: FilterReport, gradients: OpenWindow
    ) -> None:
        self._selector = selector
        self._steps = steps
        self._report = report
        self._gradients = gradients
        self._num_passed_on = 0  # instances of the current batch, where it was not drawn here
        self._num_ended = 0

    def begin(self) -> None:
        """Training begins, or goes on."""
        self._num_ended = 0

    def start_batch(self, batch: Any) -> None:
        """Remember the size of a batch that was not drawn here."""
        self._num_passed_on = batch_rows(batch) if self._steps.draw is None else 0

    def end_batch(
        self, trainer: Trainer, data: AutoAssistDataModule, batch_idx: int, jobs: InlineExecutor, lag: int
    ) -> None:
        """A batch has ended; a second call for it does nothing, as after a checkpoint that another callback saved.

        Args:
            trainer: In a fit.
            data: Has drawn the batch.
            batch_idx: In its epoch.
            jobs: Where the Assistant learns.
            lag: In steps.
        """
        number = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        if number == self._num_ended:
            return
        self._num_ended = number
        global_step = trainer.global_step
        self._gradients.end_batch(global_step)
        draw, answer = self._steps.end_batch()
        if draw is not None:
            data.mark_consumed(draw)
        self._report.count_batch(self._num_passed_on if draw is None else len(draw.indices), global_step)
        with self._report.timed():
            observed, progress = None, training_progress(trainer, batch_idx)
            with self._selector.status.unfiltered_on_error:
                observed = None if answer is None else to_host(*answer, progress)
            capture = self._steps.capture
            told = capture.has_other_terms, capture.own_labels.is_refused
            jobs.submit(functools.partial(self._learn, observed, lag, progress, *told))

    def _learn(
        self, observed: PendingUpdate | None, lag: int, progress: float, has_other_terms: bool, refuses_labels: bool
    ) -> None:
        """The job at the end of a step, wherever it is done."""
        with self._selector.status.unfiltered_on_error:
            self._selector.end_step(
                observed,
                lag=lag,
                progress=progress,
                has_other_terms=has_other_terms,
                refuses_labels=refuses_labels,
            )
        if self._selector.has_other_terms:
            self._steps.normalize_weights()
