"""Predicts the score that was observed last."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, RunningMean, UpdateResult
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.trainer_support.arguments import check_number


class MemoryAssistant(Assistant):
    """No model: predicts the last score that was observed of an instance, or a running mean of its scores.

    Args:
        mean_decay: Decay of the running mean of the scores, per batch, in [0, 1); above it an instance counts as
            informative in the reports.
        decay: What an instance's scores so far count in its running mean, in [0, 1): 0 predicts the last score, 0.5 the
            mean of about two, which says more where augmentation makes each score a noisy sample.

    Raises:
        ValueError: If a decay lies outside [0, 1).

    Example:
        >>> MemoryAssistant().predict(Instances(scores=torch.tensor([0.5, 2.0])))
        tensor([0.5000, 2.0000])
    """

    required_columns = ("scores",)

    def __init__(self, mean_decay: float = 0.75, decay: float = 0.0) -> None:
        self.mean_score = RunningMean(mean_decay)
        self.decay = check_number("decay", decay, "[0, 1)", "0 predicts the last score, try 0.5")
        if self.decay:
            self.own_columns = {"mean": torch.nan}

    @override
    def predict(self, instances: Instances) -> Tensor:
        if instances.scores is None:
            raise ValueError("MemoryAssistant needs remembered scores, got instances without any")
        if instances.memory is None:
            return instances.scores
        means = instances.memory["mean"]
        return means.where(~means.isnan(), instances.scores)

    @override
    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        remembered = self.predict(instances)
        if instances.memory is not None:
            means = instances.memory["mean"]
            instances.memory["mean"] = torch.where(means.isnan(), scores, torch.lerp(scores, means, self.decay))
        targets = torch.from_numpy(scores.numpy() > np.float32(self.mean_score.update(scores)))
        # In numpy, whose calls take a third of torch's on so few numbers.
        errors = np.abs(remembered.numpy() - scores.numpy())
        return UpdateResult(float(np.add.reduce(errors)) / len(errors), remembered, targets)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"mean_score": self.mean_score.value}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean_score.value = state["mean_score"]
