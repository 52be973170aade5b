"""What chooses the instances: Assistants that know the model's weights or what was seen last, and their policies.

Shapes: N data set, n candidates, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.linear_svm.data import TwoClasses
from benchmarks.linear_svm.model import LinearSVM
from lightning_autoassist import Assistant, AutoAssistCallback, MemoryAssistant
from lightning_autoassist.filtering.assistants.base import UpdateResult
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.autoassist import AutoAssistPolicy
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy

# Of importance sampling: mean chance of the candidates, less the floor. So little that chances follow the scores, and
# are not cut at 1 wherever there is a gradient.
ABOVE_FLOOR = 0.2


class CurrentMargins(Assistant):
    """Base of rules on a candidate's margin under the model's current weights: exact, nothing is learnt.

    Args:
        module: The module that is trained.
        data: The very instances of its data set.

    Attributes:
        num_margins: Margins of candidates that were computed.
    """

    required_columns = ("indices",)
    scores_unseen = True

    def __init__(self, module: LinearSVM, data: TwoClasses) -> None:
        self.module = module
        self.data = data
        self.num_margins = 0

    def scores(self, rows: Tensor, margins: Tensor) -> Tensor:
        """The rule.

        Args:
            rows: Positions of the candidates, shape ``(n,)``.
            margins: Label times score, shape ``(n,)``.
        """
        raise NotImplementedError

    def predict(self, instances: Instances) -> Tensor:
        assert instances.indices is not None
        self.num_margins += len(instances.indices)
        return self._scores(instances.indices)

    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        assert instances.indices is not None
        predictions = self._scores(instances.indices)  # after the model's step: for the reports, no candidates
        return UpdateResult(float((predictions - scores).abs().mean()), predictions, scores > 0)

    def state_dict(self) -> dict[str, Any]:
        return {"num_margins": self.num_margins}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_margins = state["num_margins"]

    @torch.no_grad()
    def _scores(self, rows: Tensor) -> Tensor:
        features, labels = self.data.features[rows], self.data.labels[rows]
        return self.scores(rows, labels * self.module(features.to(self.module.device)).to(labels.device))


class MarginRule(CurrentMargins):
    r"""The paper's rule for linear SVMs, :math:`a_i = \|x_i\|\,1[\text{margin} < 1]`, with norms of at most 1.

    It is the norm of the gradient of the instance's hinge loss, which is 0 where the margin is kept.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.
    """

    def __init__(self, module: LinearSVM, data: TwoClasses) -> None:
        super().__init__(module, data)
        self.norms = data.norms

    def scores(self, rows: Tensor, margins: Tensor) -> Tensor:
        return self.norms[rows] * (margins < 1)


class CurrentLoss(CurrentMargins):
    """The hinge loss of a candidate under the current weights: importance sampling by loss that nothing makes old."""

    def scores(self, rows: Tensor, margins: Tensor) -> Tensor:
        return (1 - margins).clamp(min=0)


class RememberedGradient(MemoryAssistant):
    """The norm of the gradient that an instance had when it was last seen: its own norm, where its loss was not 0.

    Args:
        module: Not used.
        data: The instances of the data set.
    """

    required_columns = ("indices", "scores")

    def __init__(self, module: LinearSVM, data: TwoClasses) -> None:
        super().__init__()
        self.norms = data.norms

    def predict(self, instances: Instances) -> Tensor:
        return self._norms(instances, super().predict(instances))

    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        return super().update(instances, self._norms(instances, scores))

    def _norms(self, instances: Instances, losses: Tensor) -> Tensor:
        assert instances.indices is not None
        return self.norms[instances.indices] * (losses > 0)


class RememberedLoss(MemoryAssistant):
    """The loss that an instance had when it was last seen.

    Args:
        module: Not used.
        data: Not used.
    """

    def __init__(self, module: LinearSVM, data: TwoClasses) -> None:
        super().__init__()


@dataclass(frozen=True)
class Method:
    """What chooses the instances of a run.

    Args:
        name: For the tables.
        assistant: Gets the model and its data.
        policy: Gets the floor.
    """

    name: str
    assistant: Callable[[LinearSVM, TwoClasses], Assistant]
    policy: Callable[[float], Policy]

    def callback(self, module: LinearSVM, data: TwoClasses, floor: float) -> AutoAssistCallback:
        """The callback, whose weights leave the objective as it is, in step with the model."""
        return AutoAssistCallback(
            self.policy(floor),
            self.assistant(module, data),
            score="loss",
            reweighting="normalized",
            unfiltered_tail=0,
            update="sync",
        )


def _proportional(floor: float) -> Policy:
    return ProportionalPolicy(floor + ABOVE_FLOOR, floor)


SGD = "sgd"
METHODS: dict[str, Method | None] = {
    SGD: None,
    "importance-loss": Method("importance sampling by loss", RememberedLoss, _proportional),
    "importance-gradient": Method("importance sampling by gradient norm", RememberedGradient, _proportional),
    "autoassist": Method("AutoAssist", MarginRule, AutoAssistPolicy),
    "current-loss": Method("importance sampling by current loss", CurrentLoss, _proportional),
    "current-gradient": Method("importance sampling by current gradient norm", MarginRule, _proportional),
}
