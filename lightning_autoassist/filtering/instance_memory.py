"""What Assistant and policy make of instances: the contract of a memory that stores them, or does not.

Shapes: B batch, n candidates, F features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.metrics import FilterReport
from lightning_autoassist.filtering.sampling.selection import Probabilities
from lightning_autoassist.filtering.waiting_steps import PendingUpdate

# Steps without a class, after which a policy that needs them is warned of.
MOST_UNLABELLED = 16


class InstanceMemory:
    """Turns instances into keep probabilities, and the model's answers into a better Assistant.

    Args:
        assistant: Predicts scores.
        policy: Turns them into keep probabilities.
        reader: Takes from a batch what the Assistant reads of it.
        report: Counts what was learnt.

    Attributes:
        where_classes_go: Says how a user gives the class of each instance.
    """

    where_classes_go: str

    def __init__(self, assistant: Assistant, policy: Policy, reader: BatchReader, report: FilterReport) -> None:
        self.assistant = assistant
        self.policy = policy
        self._reader = reader
        self._report = report
        self._num_unlabelled = 0  # steps in a row

    def use(self, assistant: Assistant, reader: BatchReader) -> None:
        """Take another Assistant than at first, before anything was asked."""
        self.assistant, self._reader = assistant, reader

    @property
    def is_ready(self) -> bool:
        """Whether candidates can be judged at all."""
        return True

    def keeps_pass(self, pass_index: int) -> bool:
        """Whether all candidates of a pass are kept, since nothing is known of any."""
        return False

    def keep_probability(self, candidates: Any) -> Probabilities:
        """Chances of candidates, shape ``(n,)``: 1 for those of which too little is known.

        Args:
            candidates: See ``Selector``.
        """
        raise NotImplementedError

    def features(self, batch: Any, num_rows: int) -> Tensor | None:
        """Features of a batch, shape ``(B, F)``, or its tokens; None where nobody reads them.

        Raises:
            ValueError: If the batch has none.
        """
        if not (self.policy.needs_scores and self.assistant.needs_batches):
            return None
        features = self._reader(batch, num_rows)
        if features is None:
            raise ValueError("the batch holds no tensor with one row an instance; pass features=")
        return features

    def learn(self, observed: PendingUpdate) -> None:
        """Learn from a batch of the model; its instances with a score that is no finite number are left out."""
        raise NotImplementedError

    def _count_unlabelled(self, *, is_labelled: bool) -> None:
        """Take note of a step, and warn where a policy that goes by classes has had none for long."""
        self._num_unlabelled = 0 if is_labelled else self._num_unlabelled + 1
        if self._num_unlabelled == MOST_UNLABELLED and self.policy.needs_labels:
            rank_zero_warn(
                f"{type(self.policy).__name__} goes by classes, and none are known: the losses have no target that is "
                f"one class for each instance. So no class is preferred to another. {self.where_classes_go}"
            )

    def _chances(self, scores: Tensor, instances: Instances) -> Probabilities:
        """Keep probabilities of instances, shape ``(n,)``.

        Args:
            scores: As predicted, shape ``(n,)``.
            instances: n of them, with what the policy reads of them.
        """
        probs = self.policy.judge(scores, instances)
        # A prediction that is not a number says nothing against the instance.
        chances: Probabilities = np.asarray(probs.where(~probs.isnan(), 1.0))
        return chances

    def _learn(self, of_assistant: Instances, of_policy: Instances, scores: Tensor) -> None:
        """Let Assistant and policy learn from instances whose scores, shape ``(B,)``, are known.

        Args:
            of_assistant: The instances, with what it reads of them.
            of_policy: The same, with what it reads of them. It learns second, from what the Assistant was to predict:
                the score, or whether an instance was informative.
            scores: Shape ``(B,)``.
        """
        outcome = self.assistant.update(of_assistant, scores)
        self.policy.observe(outcome.predictions, outcome.targets)
        self.policy.update(of_policy, outcome.targets.float() if self.assistant.predicts_probability else scores)
        self._report.count_outcome(outcome)
        assert of_assistant.probs is not None
        self._report.count_scores(scores, of_assistant.probs)


def check_reads_losses(policy: Policy, assistant: Assistant, score: str = "loss") -> None:
    """Refuse a policy that reads losses where it would get other numbers.

    Args:
        policy: Of the run.
        assistant: Predicts what the policy reads.
        score: What it predicts.

    Raises:
        ValueError: If the policy would get something else.
    """
    if not policy.reads_losses:
        return
    name, problem = type(policy).__name__, None
    if assistant.predicts_probability:
        problem = f"{type(assistant).__name__} predicts how likely an instance is to be informative"
    elif score != "loss":
        problem = f"score={score!r} is none"
    if problem is not None:
        raise ValueError(
            f"{name} compares an instance's loss with a number, and {problem}. Write "
            'AutoAssistCallback(policy, assistant="memory", score="loss"), or on a stream a policy that compares '
            'instances with each other, as "selective_backprop"'
        )


def columns_read(policy: Policy) -> tuple[str, ...]:
    """The columns of instances that a policy reads."""
    return (*policy.required_columns, "labels") if policy.reads_labels else policy.required_columns
