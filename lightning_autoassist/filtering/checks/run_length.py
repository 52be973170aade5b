"""How many updates and epochs a run has, and how many it would have without filtering.

Shapes: K batches an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lightning_autoassist.filtering.sampling.candidates import CandidateStream
from lightning_autoassist.trainer_support.variants import Trainer


@dataclass(frozen=True)
class RunLength:
    """The planned length of a run.

    Attributes:
        num_batches: K, batches an epoch.
        num_epochs: Epochs, the last one perhaps in part; infinite where nothing ends the run.
        num_steps: Optimizer steps; infinite where nothing ends the run.
    """

    num_batches: int
    num_epochs: float
    num_steps: float

    @property
    def is_known(self) -> bool:
        """Whether the run has an end that is known beforehand."""
        return 0 < self.num_steps < math.inf


@dataclass(frozen=True)
class Limits:
    """What ends a run, and an epoch, as the Trainer was told.

    Attributes:
        max_epochs: Infinite where epochs do not end the run.
        max_steps: Optimizer steps; infinite where they do not end the run.
        train_batches: ``limit_train_batches``: batches an epoch, or a share of them.
        accumulation: Batches to an optimizer step, by the epoch from which on this holds, beginning with 0.
        has_time_limit: Whether time may end the run.
        is_manual: Whether the module steps its optimizers itself, as often as it likes.
    """

    max_epochs: float
    max_steps: float
    train_batches: float
    accumulation: Mapping[int, int]
    has_time_limit: bool
    is_manual: bool

    @classmethod
    def of(cls, trainer: Any) -> Limits:
        """The limits of a Trainer."""
        # The Trainer turns max_time into a Timer callback; one without a duration only measures.
        timers = (each for each in trainer.callbacks if type(each).__name__ == "Timer")
        changing = (each for each in trainer.callbacks if type(each).__name__ == "GradientAccumulationScheduler")
        fixed = {0: trainer.accumulate_grad_batches}
        return cls(
            math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs,
            math.inf if trainer.max_steps == -1 else trainer.max_steps,
            trainer.limit_train_batches,
            dict(next((each.scheduling for each in changing), fixed)),
            any(timer.time_remaining() is not None for timer in timers),
            not trainer.lightning_module.automatic_optimization,
        )

    def lengths(self, stream: CandidateStream) -> tuple[RunLength, RunLength]:
        """The length of this run, and of the run that keeps everything, under the same limits."""
        own = self._limited(len(stream))
        full = self._limited(stream.batches_at(1.0)) if stream.batch_size else own
        return self._length(own), self._length(max(own, full))

    def saved_ratio(self, stream: CandidateStream) -> float:
        """Share of the unfiltered run's updates that this run does without, in [0, 1).

        Nothing is saved where something else than the data fixes the work to be done.
        """
        if self.has_time_limit or (self.is_manual and self.max_steps < math.inf):
            return 0.0
        own, full = self.lengths(stream)
        if full.num_steps == self.max_steps:
            return max(0.0, 1 - own.num_steps / full.num_steps)
        return max(0.0, 1 - own.num_batches / full.num_batches)

    def num_steps(self, num_batches: int, num_epochs: float) -> float:
        """Optimizer steps of some epochs of ``num_batches`` batches."""
        starts = [*sorted(epoch for epoch in self.accumulation if epoch < num_epochs), num_epochs]
        return sum(
            (end - start) * math.ceil(num_batches / self.accumulation[int(start)]) for start, end in pairwise(starts)
        )

    def _limited(self, num_batches: int) -> int:
        """Batches an epoch that the Trainer takes of a loader of so many."""
        limit = self.train_batches
        return min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)

    def _length(self, num_batches: int) -> RunLength:
        steps = self.num_steps(num_batches, self.max_epochs)
        if self.max_steps >= steps:
            return RunLength(num_batches, self.max_epochs, steps)
        in_epoch = max(1.0, self.num_steps(num_batches, 1))
        return RunLength(num_batches, math.ceil(self.max_steps / in_epoch), self.max_steps)


def training_progress(trainer: Trainer, batch_idx: int) -> float:
    """Share of training that is done after a batch, where the training's length is known; else 0.

    Args:
        trainer: In a fit.
        batch_idx: Of the batch, in its epoch.
    """
    max_epochs = trainer.max_epochs
    if max_epochs is None or max_epochs <= 0:
        return 0.0
    return float((trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches) / max_epochs)
