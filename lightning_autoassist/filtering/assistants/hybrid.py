"""Regression on features, class and the remembered score with its age."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, RunningMean, UpdateResult
from lightning_autoassist.filtering.memory.classes import MAX_CLASSES, ClassMeans, class_indices
from lightning_autoassist.filtering.memory.features import random_signs
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.trainer_support.arguments import check_number, check_whole

SCORE_BOUND = 1e4


class HybridAssistant(Assistant):
    r"""Predicts the score by ridge regression on features, class and the remembered score with its age.

    The inputs :math:`\phi` are 1, the features (projected to ``max_inputs`` numbers by fixed random signs where there
    are more), the mean score of the instance's class, the remembered score s, log(1 + age), and their product. After
    each batch the solution is exact for all batches so far, each counting ``decay`` as much as the next:

    .. math:: A \leftarrow d A + \Phi^T \Phi, \quad b \leftarrow d b + \Phi^T y, \quad
        w = (A + \rho I)^{-1} (b + \rho w_0)

    where :math:`w_0` predicts the remembered score: with nothing learnt it is ``MemoryAssistant``. Memory and time of
    a step do not depend on the number of steps, of classes seen, or of instances.

    Source: recursive least squares with a forgetting factor, as in Haykin, Adaptive Filter Theory, chapter 10.

    Args:
        decay: d, in (0, 1].
        ridge: :math:`\rho`, positive.
        max_inputs: Most numbers taken from the features.
        mean_decay: Decay of the running mean of the scores, per batch, in [0, 1); above it an instance counts as
            informative in the reports.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> instances = Instances(torch.rand(2, 3), scores=torch.tensor([0.5, 2.0]), ages=torch.tensor([4, 9]))
        >>> HybridAssistant().predict(instances)
        tensor([0.5000, 2.0000])
    """

    required_columns = ("features", "labels", "scores", "ages")

    def __init__(self, decay: float = 0.99, ridge: float = 1.0, max_inputs: int = 64, mean_decay: float = 0.75) -> None:
        self.decay = check_number("decay", decay, "(0, 1]", "0.99 remembers about a hundred batches")
        self.ridge = check_number(
            "ridge", ridge, "(0, inf)", "without it the inputs need not determine a solution, try 1"
        )
        self.max_inputs = check_whole("max_inputs", max_inputs, "[1, inf)", "try 64")
        self.mean_score = RunningMean(mean_decay)
        self.class_means = ClassMeans(0.99)
        self.gram = torch.zeros(0, 0, dtype=torch.float64)  # A, (D, D); takes its size from the first batch
        self.moments = torch.zeros(0, dtype=torch.float64)  # b, (D,)
        self.weight = torch.zeros(0, dtype=torch.float64)  # w, (D,)
        self._projection: Tensor | None = None

    @override
    def predict(self, instances: Instances) -> Tensor:
        scores, _ = _remembered(instances)
        if not len(self.weight):
            return scores
        return (self.inputs(instances) @ self.weight).clamp(min=0).float()

    @override
    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        predictions = self.predict(instances)
        _, ages = _remembered(instances)
        scores = scores.clamp(-SCORE_BOUND, SCORE_BOUND)
        # What is remembered of an instance that was never observed says nothing.
        known = ages >= 0
        if known.any():
            self._learn(self.inputs(instances)[known], scores[known].double())
        self.class_means.update(class_indices(instances, len(scores), MAX_CLASSES), scores)
        targets = scores > self.mean_score.update(scores)
        return UpdateResult(float((predictions - scores).abs().mean()), predictions, targets)

    def inputs(self, instances: Instances) -> Tensor:
        r"""The inputs :math:`\phi`, shape ``(n, D)``, double precision; the remembered score is the last but two."""
        scores, ages = _remembered(instances)
        age = torch.log1p(ages.clamp(min=0).float())
        columns = [
            self.class_means.of(class_indices(instances, len(scores), MAX_CLASSES)),
            scores,
            age,
            scores * age,
        ]
        own = torch.stack([torch.ones_like(scores), *columns], dim=1)
        if instances.features is None:
            return own.double()
        return torch.cat([self._reduced(instances.features.float()), own], dim=1).double()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "gram": self.gram.clone(),
            "moments": self.moments.clone(),
            "weight": self.weight.clone(),
            "class_means": self.class_means.state_dict(),
            "mean_score": self.mean_score.value,
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gram, self.moments, self.weight = (state[name].clone() for name in ("gram", "moments", "weight"))
        self.class_means.load_state_dict(state["class_means"])
        self.mean_score.value = state["mean_score"]

    def _learn(self, inputs: Tensor, scores: Tensor) -> None:
        size = inputs.shape[1]
        if not len(self.weight):
            self.gram = torch.zeros(size, size, dtype=torch.float64)
            self.moments = torch.zeros(size, dtype=torch.float64)
        self.gram = self.decay * self.gram + inputs.T @ inputs
        self.moments = self.decay * self.moments + inputs.T @ scores
        prior = torch.zeros(size, 1, dtype=torch.float64)
        prior[-3] = 1
        factor = torch.linalg.cholesky(self.gram + self.ridge * torch.eye(size, dtype=torch.float64))
        self.weight = torch.cholesky_solve(self.moments[:, None] + self.ridge * prior, factor)[:, 0]

    def _reduced(self, features: Tensor) -> Tensor:
        width = features.shape[1]
        if width <= self.max_inputs:
            return features
        if self._projection is None:
            self._projection = random_signs(width, self.max_inputs) / math.sqrt(width)
        return features @ self._projection


def _remembered(instances: Instances) -> tuple[Tensor, Tensor]:
    """Remembered scores and their ages, shape ``(n,)``."""
    if instances.scores is None:
        raise ValueError("HybridAssistant needs remembered scores, got instances without any")
    scores = instances.scores.clamp(-SCORE_BOUND, SCORE_BOUND)
    ages = torch.zeros(len(scores), dtype=torch.int32) if instances.ages is None else instances.ages
    return scores, ages
