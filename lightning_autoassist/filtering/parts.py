"""The parts of filtering that outlive a fit, and how they are made from the callback's options."""

from __future__ import annotations

import functools
from typing import Protocol

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader
from lightning_autoassist.filtering.checkpoint import OpenWindow
from lightning_autoassist.filtering.instance_memory import check_reads_losses
from lightning_autoassist.filtering.memory.features import FeatureFunction
from lightning_autoassist.filtering.names import ReweightingName, ScoreName
from lightning_autoassist.filtering.observed_steps import ObservedSteps
from lightning_autoassist.filtering.reporting.loggers import Filtering, RunLog
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.run_state import RunState
from lightning_autoassist.filtering.selector import InstanceSelector
from lightning_autoassist.filtering.trained_batches import TrainedBatches


class FilteringOptions(Filtering, Protocol):
    """The callback's options, as its parts read them."""

    features: FeatureFunction | None
    max_features: int
    unfiltered_tail: float
    feature_memory: int
    exchange_every: int
    dynamics: bool | None


class FilteringParts:
    """What selects, observes, counts and reports, in whichever Trainer the callback is used.

    Args:
        options: The callback.
        assistant: Predicts scores at first.
        reweighting: In force at first.
        suits_data: Whether a stream gets another Assistant, where this one cannot judge its rows.

    Attributes:
        watches_losses: Whether the model's losses are captured, for scores, weights or training dynamics.
        report: Counts the run.
        log: Writes to the Trainer's loggers.
        selector: Keeps instances, and learns.
        steps: Observes the training steps.
        gradients: Those of an open window of accumulation.
        batches: Ends each batch that was trained on.
        state: Saves and restores all of them.
    """

    def __init__(
        self, options: FilteringOptions, assistant: Assistant, reweighting: ReweightingName, *, suits_data: bool
    ) -> None:
        policy = options.policy
        check_reads_losses(policy, assistant, options.score)
        # Weights other than 1 enter the backward pass at the captured losses, whether or not anyone wants scores.
        weighs = reweighting != "none" and not policy.keeps_everything
        keeps_answers = policy.needs_scores or bool(options.dynamics)
        self.watches_losses = keeps_answers or weighs
        self.report = FilterReport()
        self.report.has_gradient_norms = options.score == "gradient_norm"
        self.log = RunLog(options)
        self.selector = InstanceSelector(
            assistant,
            policy,
            # No lambda: spawned processes get the callback pickled.
            functools.partial(_batch_reader, features=options.features, max_features=options.max_features),
            self.report,
            self.log,
            reweighting=reweighting,
            suits_data=suits_data,
            unfiltered_tail=options.unfiltered_tail,
            feature_memory=options.feature_memory,
            exchange_every=options.exchange_every,
            watches_losses=self.watches_losses,
            dynamics=options.dynamics,
        )
        # Where nobody reads scores, the one that costs nothing.
        score: ScoreName = options.score if policy.needs_scores else "loss"
        self.steps = ObservedSteps(score, self.selector, self.report, keeps_answers=keeps_answers)
        self.gradients = OpenWindow()
        self.batches = TrainedBatches(self.selector, self.steps, self.report, self.gradients)
        self.state = RunState(self.selector, self.steps, self.report, self.log, self.gradients, options.features)


def _batch_reader(assistant: Assistant, features: FeatureFunction | None, max_features: int) -> BatchReader:
    return assistant.feature_extractor(features, max_features)
