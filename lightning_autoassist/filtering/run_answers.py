"""What the callback answers when it is asked about its run.

Shapes: N data set, n instances.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.filtering.assistants.base import Assistant
from lightning_autoassist.filtering.fit_connection import FitConnection
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.options import LOGGED_SETTINGS
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.selector import InstanceSelector
from lightning_autoassist.trainer_support.shared_settings import SharesSettings


class RunAnswers(SharesSettings):
    """Totals of a run, chances of instances, what is remembered of them, and what is in force.

    Attributes:
        report: Counts the run.
    """

    report: FilterReport
    _learner: InstanceSelector
    _fit: FitConnection

    @property
    def assistant(self) -> Assistant:
        """The given Assistant, or the one that suits the data."""
        return self._learner.assistant

    @property
    def reweighting(self) -> ReweightingName:
        """What is in force, the given one or the policy's own; ``"normalized"`` once no other suits the loss."""
        return self._learner.reweighting

    def summary(self) -> dict[str, Any]:
        """Totals of the run so far: optimizer steps, instances, rates, and what the plug-in cost.

        Returns:
            ``optimizer_steps``, ``instances_seen``, ``seconds`` (of training), ``saved_ratio`` (of an unfiltered run's
            optimizer steps), ``candidates_seen``, ``keep_rate``, ``mean_keep_prob``, ``nonfinite_instances``,
            ``overhead_ms`` (a step); of the last epoch, where they are known, ``concentration`` and ``variance_ratio``
            of the gradient, and the Assistant's ``assistant_loss`` (nats) and ``assistant_auroc``; and ``advice``:
            whether filtering is worth it here.
        """
        self._learner.wait_all()
        return self.report.summary(self._fit.stream)

    def keep_probability(self, indices: Iterable[int]) -> npt.NDArray[np.floating[Any]]:
        """The chance that each of some instances would be kept if it were a candidate now, after a first pass.

        Args:
            indices: Positions in the train data set, shape ``(n,)``.
        """
        if self.report.is_of_other_process:
            rank_zero_warn(
                "the Trainer trained in processes of its own, and this process does not have what they remember of "
                "instances. The chances are those of instances that were never seen; load a checkpoint of the run to "
                "have the others"
            )
        self._learner.wait_all()
        return self._learner.keep_probability(np.fromiter(indices, np.int64), pass_index=1)

    @property
    def instances(self) -> InstanceStore | None:
        """What is remembered of each instance, and its ``to_frame``; None before the first batch.

        None on a stream, too, and where neither the policy needs scores nor ``dynamics`` are kept.
        """
        self._learner.wait_all()
        if self.report.is_of_other_process and self._learner.store is None:
            rank_zero_warn(
                "the Trainer trained in processes of its own, and this process does not have what they remember of "
                "instances. Write `autoassist instances CHECKPOINT` to read it from a checkpoint of the run"
            )
        return self._learner.store

    @property
    def filter_settings(self) -> dict[str, Any]:
        """The settings in force beside policy and Assistant, as loggers get them."""
        in_force = self._fit.in_force
        given = {name: getattr(self, name) for name in LOGGED_SETTINGS}
        return given | {"lag": in_force.lag, "update": in_force.update}
