"""What of a filtered run is in its checkpoints, beside the place in the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.filtering.checkpoint import (
    LAYOUT,
    OpenWindow,
    count_next_epoch,
    differences,
    fit_epoch_to_length,
    kinds_of,
    warn_of_losses,
)
from lightning_autoassist.filtering.data.data_module import AutoAssistDataModule
from lightning_autoassist.filtering.memory.features import FeatureFunction
from lightning_autoassist.filtering.observed_steps import ObservedSteps
from lightning_autoassist.filtering.reporting.loggers import RunLog
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.selector import InstanceSelector
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.variants import Trainer


@dataclass(frozen=True)
class RunState:
    """The parts of a run that have a state.

    Attributes:
        selector: What was learnt.
        steps: What the first steps showed of the losses.
        report: The totals.
        log: The counts of instances.
        gradients: What an open window of accumulation holds.
        features: The user's function that takes features from a batch, of which the name is saved.
    """

    selector: InstanceSelector
    steps: ObservedSteps
    report: FilterReport
    log: RunLog
    gradients: OpenWindow
    features: FeatureFunction | None

    def state_dict(self, data: AutoAssistDataModule | None, ranks: Ranks) -> dict[str, Any]:
        """State of all processes, which must all call this, as tensors and builtins.

        Args:
            data: Of the fit; None outside of one.
            ranks: The processes.
        """
        trainer = None if data is None else data.trainer
        return {
            "layout": LAYOUT,
            "settings": self._kinds(),
            "is_on_stream": self.selector.is_on_stream,
            "selector": self.selector.state_dict(),
            "reports": ranks.gather(self.report.state_dict(None if data is None else data.candidate_stream)),
            "counts": self.log.state_dict(),
            "labels": ranks.gather(self.steps.capture.own_labels.state_dict()),
            "gradients": None if trainer is None else self.gradients.state_dict(trainer, ranks),
            "capture": self.steps.capture.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], data: AutoAssistDataModule | None, ranks: Ranks) -> None:
        """Restore :meth:`state_dict`, with one warning of what does not fit this run.

        Args:
            state: What was saved.
            data: Of this run; None outside of a fit.
            ranks: The processes.
        """
        if state["is_on_stream"]:
            self.selector.suit_stream()
        differing = differences(state["settings"], self._kinds())
        lost = self.selector.load_state_dict(state["selector"], differing.keys())
        warn_of_losses(differing, [*([] if data is None else data.train_position.lost), *lost])
        reports, labels = state["reports"], state.get("labels", [{}])
        self.report.load_state_dict(reports[ranks.rank % len(reports)])
        self.log.load_state_dict(state["counts"])
        self.steps.capture.own_labels.load_state_dict(labels[ranks.rank % len(labels)])
        self.gradients.load_state_dict(state["gradients"], ranks)
        self.steps.capture.load_state_dict(state["capture"])
        if self.selector.has_other_terms:
            self.steps.normalize_weights()

    def _kinds(self) -> dict[str, str]:
        """What decides whether a checkpoint's state fits a run."""
        selector = self.selector
        return kinds_of(selector.policy, selector.assistant, self.steps.capture.score, self.features)


def continue_epoch(trainer: Trainer, data: AutoAssistDataModule) -> None:
    """Let the Trainer's loops go on where the run was interrupted, where it was."""
    count_next_epoch(trainer.fit_loop)
    num_before, data.train_position.restored_length = data.train_position.restored_length, None
    fit_epoch_to_length(trainer.fit_loop.epoch_loop, num_before, trainer.num_training_batches)


def load_plain_checkpoint(trainer: Any, checkpoint: dict[str, Any], *, is_fit: bool) -> None:
    """Restore the user's data module from a checkpoint that was written without AutoAssist.

    Args:
        trainer: The Trainer that loads it.
        checkpoint: The whole checkpoint.
        is_fit: Whether training continues from it; a warning then says how.
    """
    if isinstance(trainer.datamodule, AutoAssistDataModule):
        trainer.datamodule.load_plain_checkpoint(checkpoint)
    if is_fit:
        rank_zero_warn(
            "the checkpoint was written without AutoAssist: your module, optimizer and loops are restored, and "
            "filtering begins with a first pass that keeps everything"
        )
