"""What of a filtered run is in its checkpoints, beside the place in the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightning_autoassist.filtering.checkpoint import LAYOUT, OpenWindow
from lightning_autoassist.filtering.learner import Learner
from lightning_autoassist.filtering.observed_steps import ObservedSteps
from lightning_autoassist.filtering.reporting.loggers import RunLog
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.trainer_support.process_group import Ranks


@dataclass(frozen=True)
class RunState:
    """The parts of a run that have a state.

    Attributes:
        learner: What was learnt.
        steps: What the first steps showed of the losses.
        report: Totals.
        log: Counts of the instances.
        gradients: Of an open window.
    """

    learner: Learner
    steps: ObservedSteps
    report: FilterReport
    log: RunLog
    gradients: OpenWindow

    def state_dict(self, trainer: Any, stream: Any, ranks: Ranks) -> dict[str, Any]:
        """State of all processes, which must all call this, as tensors and builtins.

        Args:
            trainer: Of the fit; None outside of one.
            stream: The candidate stream; None where there is none.
            ranks: The processes.
        """
        return {
            "layout": LAYOUT,
            "learner": self.learner.state_dict(),
            "reports": ranks.gather(self.report.state_dict(stream)),
            "counts": self.log.state_dict(),
            "labels": ranks.gather(self.steps.capture.own_labels.state_dict()),
            "gradients": None if trainer is None else self.gradients.state_dict(trainer, ranks),
            "capture": self.steps.capture.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any], ranks: Ranks) -> None:
        """Restore :meth:`state_dict`, but for the learner, which tells what of it does not fit."""
        reports = state["reports"]
        self.report.load_state_dict(reports[ranks.rank % len(reports)])
        self.log.load_state_dict(state["counts"])
        labels = state.get("labels", [{}])
        self.steps.capture.own_labels.load_state_dict(labels[ranks.rank % len(labels)])
        self.gradients.load_state_dict(state["gradients"], ranks)
        self.steps.capture.load_state_dict(state["capture"])
