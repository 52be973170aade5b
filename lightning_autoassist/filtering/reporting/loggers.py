"""What a run leaves with its loggers, beside the metrics: settings, histograms, galleries, tables, a summary.

W&B gets all of it; TensorBoard pictures and histograms; every logger the settings and numbers. Nothing in here may cost
the run: what fails is left out, with one warning.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.memory.frame import columns_of
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.counts import InstanceCounts
from lightning_autoassist.filtering.reporting.epoch_figures import ClassCounts, EpochFigures
from lightning_autoassist.filtering.reporting.gallery import GalleryOptions, gallery_of, is_due, labels_of
from lightning_autoassist.filtering.reporting.logger_guard import guard, unguard
from lightning_autoassist.filtering.reporting.metric_names import AXES, PREFIX
from lightning_autoassist.filtering.reporting.metrics import FilterReport, ShownCount
from lightning_autoassist.filtering.reporting.reliability import Reliability, reliability
from lightning_autoassist.filtering.reporting.settings_card import card, in_words
from lightning_autoassist.filtering.reporting.tensorboard_log import log_to_tensorboard
from lightning_autoassist.filtering.reporting.wandb_log import log_instances, log_row, log_to_wandb, wandb_runs
from lightning_autoassist.trainer_support.arrays import FloatArray, IndexArray
from lightning_autoassist.trainer_support.class_names import class_names
from lightning_autoassist.trainer_support.internals import is_logging_step, show_in_progress_bar

MAX_CLASS_METRICS = 20  # of more classes there is a table only

_Method = TypeVar("_Method", bound=Callable[..., None])


class Filtering(GalleryOptions, Protocol):
    """What is logged of the callback."""

    policy: Policy
    report: FilterReport

    @property
    def assistant(self) -> Assistant:
        """What predicts scores."""

    @property
    def filter_settings(self) -> dict[str, Any]:
        """The callback's arguments except policy and Assistant."""


def _costs_no_run(method: _Method) -> _Method:
    """Turn an error into one warning, and log nothing of the kind from then on."""

    @functools.wraps(method)
    def guarded(log: RunLog, *args: Any) -> None:
        if not log.is_on:
            return
        try:
            method(log, *args)
        except Exception as error:  # whatever it is, it must not cost the user the run
            log.is_on = False
            rank_zero_warn(
                "AutoAssist logs no more settings, galleries and histograms, training goes on. "
                f"{method.__name__}: {type(error).__name__}: {error}"
            )

    return cast(_Method, guarded)


class RunLog:
    """Writes to the Trainer's loggers what filtering did.

    Args:
        filtering: The callback.
    """

    def __init__(self, filtering: Filtering) -> None:
        self.filtering = filtering
        self.counts: InstanceCounts | None = None
        self.is_on = True
        self._is_wanted = self._has_wandb = False
        self._is_first = True
        self._num_ranks = 1
        self._restored: dict[str, Any] | None = None
        self._data: Any = None
        self._loggers: list[Any] = []
        self._logs_metrics = True
        self._has_shown = False  # whether the last epoch's galleries were logged
        self._saved_ratio: float | None = None  # of this epoch, once the progress bar has shown it

    # ---- the callback tells

    def connect(self, trainer: Any, data: Any) -> None:
        """A fit begins, and no logger has saved the run's settings yet.

        Args:
            trainer: Has the loggers.
            data: The fit's ``AutoAssistDataModule``.
        """
        self.is_on, self._saved_ratio = True, None
        self._data = data
        self._is_wanted = bool(trainer.loggers)
        self._has_wandb = any("WandbLogger" in class_names(logger) for logger in trainer.loggers)
        self._is_first = trainer.is_global_zero
        self._num_ranks = trainer.world_size
        self._logs_metrics = True
        if self._is_first:
            self.filtering.report.claim()
        self._loggers = list(trainer.loggers)
        guard(self._loggers)
        self._prepare_tensorboard(trainer)

    def disconnect(self) -> None:
        """A fit has ended, in whatever way: loggers are given back as they were, and totals to the parent process."""
        unguard(self._loggers)
        self._loggers = []
        if self._is_first and self._data is not None:
            self.filtering.report.share(self._data.candidate_stream)

    def log_metrics(self, pl_module: Any, metrics: dict[str, float], **options: Any) -> None:
        """Log this plug-in's metrics through the module, whose ``log`` may be the user's own.

        Args:
            pl_module: The model.
            metrics: By their names.
            options: Of ``LightningModule.log_dict``.
        """
        if not self._logs_metrics:
            return
        try:
            pl_module.log_dict(metrics, **options)
        except Exception as error:  # whatever it is, it must not cost the user the run
            self._logs_metrics = False
            rank_zero_warn(
                f"{type(pl_module).__name__} cannot log AutoAssist's metrics, so they are not logged from here on, and "
                f"training goes on. {type(error).__name__}: {error}"
            )

    @_costs_no_run
    def _prepare_tensorboard(self, trainer: Any) -> None:
        # It saves its settings once, before training starts, and log_hyperparams would add a metric hp_metric of -1.
        for logger in trainer.loggers:
            if "TensorBoardLogger" in class_names(logger):
                logger.hparams["autoassist"] = self._settings()

    @_costs_no_run
    def prepare(self, num_instances: int) -> None:
        """Make room for the counts, before the first batch is drawn."""
        restored, self._restored = self._restored, None
        if not self._is_wanted:
            return
        if self.counts is None or self.counts.num_instances != num_instances:
            self.counts = InstanceCounts(num_instances)
        # The first process's; on another number of processes it has another share of the data.
        sizes = num_instances, self._num_ranks
        if restored is not None and self._is_first and (restored["num_instances"], restored["num_ranks"]) == sizes:
            self.counts.load_state_dict(restored)

    @_costs_no_run
    def count(self, candidates: IndexArray, probs: FloatArray, kept: Any) -> None:
        """Candidates were considered, see :meth:`InstanceCounts.add`."""
        if self.counts is not None:
            self.counts.add(candidates, probs, kept)

    @_costs_no_run
    def start(self, trainer: Any) -> None:
        """Training starts: leave the settings."""
        settings = {"autoassist": self._settings()}
        for logger in trainer.loggers:
            if "WandbLogger" not in class_names(logger) and "TensorBoardLogger" not in class_names(logger):
                _log_settings(logger, settings)
        for run in wandb_runs(trainer):
            run.config.update(settings, allow_val_change=True)
            for axis in AXES:
                run.define_metric(PREFIX + axis, summary="max")

    @_costs_no_run
    def end_step(self, trainer: Any) -> None:
        """A batch was trained on: axes for what is logged next, and the progress bar."""
        if self._has_wandb and is_logging_step(trainer):
            # W&B draws a metric against what is in the same row; these go into the row that Lightning logs next.
            for run in wandb_runs(trainer):
                run.log(self.filtering.report.axes(), commit=False)
        stream = self._data.candidate_stream
        if stream is None or trainer.progress_bar_callback is None:
            return
        report = self.filtering.report
        if self._saved_ratio is None:  # takes as long as all else of this method, and is one number an epoch
            self._saved_ratio = report.saved_ratio(stream)
        saved = self._saved_ratio
        # Not through the module's log: it makes floats of counts, and costs more than all else of this method.
        show_in_progress_bar(
            trainer,
            keep_rate=report.epoch_keep_rate(stream),
            saved_updates=ShownCount(report.optimizer_steps * saved / (1 - saved) + 0.5),
        )

    def class_counts(self) -> ClassCounts:
        """How many candidates of each class this process kept and dropped in this epoch."""
        found: ClassCounts = {}
        self._count_classes(found)
        return found

    @_costs_no_run
    def _count_classes(self, found: ClassCounts) -> None:
        labels = None if self.counts is None else labels_of(self.filtering.instances, self.counts)
        if self.counts is not None and labels is not None:
            found.update(self.counts.by_class(labels))
            for label in [label for label in found if label < 0]:  # no class, or none that is known
                del found[label]

    @_costs_no_run
    def end_epoch(self, trainer: Any, pl_module: Any, classes: ClassCounts) -> None:
        """An epoch ends, and its metrics are logged next.

        Args:
            trainer: The Trainer.
            pl_module: The model.
            classes: The :meth:`class_counts` of all processes.
        """
        self._saved_ratio = None
        if self.counts is None:
            return
        ranked = self.filtering.report.ranked()
        shown = None if ranked is None else reliability(*ranked)
        metrics = {f"keep_rate_class_{label}": kept / (kept + dropped) for label, (kept, dropped) in classes.items()}
        if len(metrics) > MAX_CLASS_METRICS:
            metrics = {}
        if shown is not None and shown.calibration_error is not None:
            metrics["assistant_calibration_error"] = shown.calibration_error
        # Alike in all processes, and so without an exchange.
        self.log_metrics(pl_module, {PREFIX + name: value for name, value in metrics.items()})
        self._log_figures(trainer, self.counts, shown, classes)
        self.counts.start_epoch()

    def _log_figures(
        self, trainer: Any, counts: InstanceCounts, shown: Reliability | None, classes: ClassCounts
    ) -> None:
        boards, runs = self._figure_loggers(trainer)
        if not boards and not runs:
            return
        self._has_shown = is_due(self.filtering.gallery_every_n_epochs, counts, trainer.current_epoch, self._num_epochs)
        figures = EpochFigures(self._histograms(counts), {}, None, {})
        if self._has_shown:
            gallery = gallery_of(self.filtering, trainer, counts)
            figures = EpochFigures(figures.histograms, gallery, shown, classes)
        for run in runs:
            log_to_wandb(run, figures)
        for board in boards:
            log_to_tensorboard(board, figures, trainer.global_step)

    @property
    def _num_epochs(self) -> float:
        """Epochs of the run; infinite where nothing fixes them beforehand."""
        limits, stream = self.filtering.report.limits, self._data.candidate_stream
        return math.inf if limits is None or stream is None else limits.lengths(stream)[0].num_epochs

    @_costs_no_run
    def finish(self, trainer: Any) -> None:
        """Training ends: leave the totals, and the last gallery where no epoch was known to be the last one."""
        if self.counts is not None and not self._has_shown and self.filtering.gallery_every_n_epochs is None:
            self._log_last_gallery(trainer, self.counts)
        report = self.filtering.report
        summary = report.summary(self._data.candidate_stream)
        for run in wandb_runs(trainer):
            store = self.filtering.instances
            if store is not None and store.dynamics is not None:
                log_instances(run, columns_of(store), trainer.global_step)
            run.summary.update({PREFIX + name: summary[name] for name in (*AXES, "saved_ratio", "keep_rate")})
        if "advice" in summary:
            rank_zero_info(f"AutoAssist: {summary['advice']}")

    def _log_last_gallery(self, trainer: Any, counts: InstanceCounts) -> None:
        boards, runs = self._figure_loggers(trainer)
        if not boards and not runs:
            return
        figures = EpochFigures({}, gallery_of(self.filtering, trainer, counts), None, {})
        for run in runs if figures.gallery else ():
            log_to_wandb(run, figures)
            log_row(run, {}, trainer.global_step)
        for board in boards:
            log_to_tensorboard(board, figures, trainer.global_step)

    def _figure_loggers(self, trainer: Any) -> tuple[list[Any], list[Any]]:
        """TensorBoard's writers and W&B's runs, in the first process."""
        loggers = trainer.loggers if self._is_first else []
        boards = [logger.experiment for logger in loggers if "TensorBoardLogger" in class_names(logger)]
        return boards, list(wandb_runs(trainer))

    # ---- state

    def state_dict(self) -> dict[str, Any] | None:
        """The counts of this process, which are the first one's; None where nothing is counted."""
        return None if self.counts is None else {**self.counts.state_dict(), "num_ranks": self._num_ranks}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore :meth:`state_dict`, in :meth:`prepare`."""
        self.counts, self._restored = None, state

    # ---- what is logged

    def _settings(self) -> dict[str, Any]:
        from lightning_autoassist._version import __version__

        filtering = self.filtering
        stream = self._data.candidate_stream
        given = {**self._data.filter_settings, **filtering.filter_settings}
        return {
            "version": __version__,
            **{name: in_words(value) for name, value in given.items()},
            "policy": card(filtering.policy),
            "assistant": card(filtering.assistant) if filtering.policy.needs_scores else None,
            "num_instances": None if stream is None else stream.num_instances,
            "batch_size": None if stream is None else stream.batch_size,
            "num_processes": self._num_ranks,
        }

    def _histograms(self, counts: InstanceCounts) -> dict[str, Any]:
        values = {"keep_probs": counts.probs[np.isfinite(counts.probs)]}
        store = self.filtering.instances
        if store is not None:
            rows = torch.from_numpy(counts.indices)
            values["scores"] = store.scores[rows][store.seen[rows]].numpy()
        return {PREFIX + name: some for name, some in values.items() if len(some)}


def summed(counts: Iterable[ClassCounts]) -> ClassCounts:
    """The processes' counts in one.

    Example:
        >>> summed([{0: (1, 2), 1: (1, 0)}, {0: (3, 0)}])
        {0: (4, 2), 1: (1, 0)}
    """
    totals: ClassCounts = {}
    for label, (kept, dropped) in chain.from_iterable(own.items() for own in counts):
        before = totals.get(label, (0, 0))
        totals[label] = before[0] + kept, before[1] + dropped
    return dict(sorted(totals.items()))


def _log_settings(logger: Any, settings: dict[str, Any]) -> None:
    """Leave the settings with one logger; one that cannot take them costs neither the run nor the other loggers."""
    try:
        logger.log_hyperparams(settings)
    except Exception as error:  # of any type: it is a stranger's logger
        rank_zero_warn(
            f"{type(logger).__name__} cannot log AutoAssist's settings, so it does not get them, and training goes on. "
            f"{type(error).__name__}: {error}"
        )
