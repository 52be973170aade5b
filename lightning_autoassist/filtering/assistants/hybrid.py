"""Regression on features, class and the remembered score with its age."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.filtering.assistants.base import MAX_CLASSES, Assistant, RunningMean, UpdateResult
from lightning_autoassist.filtering.assistants.classes import class_indices
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.trainer_support.arguments import check_number, check_whole

SCORE_BOUND = 1e4


class ClassMeans:
    """Mean score of each class over the last batches, each batch counting less than the next.

    Args:
        decay: What a batch's weight falls by from one batch to the next, in [0, 1).

    Example:
        >>> means = ClassMeans(decay=0.9)
        >>> means.update(torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 8.0]))
        >>> means.of(torch.tensor([0, 1, 5]))  # a class that was never seen gets the mean of all
        tensor([2., 8., 4.])
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.sums = torch.zeros(0)  # (C,); grows as classes turn up
        self.counts = torch.zeros(0)

    def of(self, classes: Tensor) -> Tensor:
        """The means of classes, shape ``(n,)``."""
        total = float(self.counts.sum())
        overall = float(self.sums.sum()) / total if total else 0.0
        means = torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1e-30), overall)
        means = F.pad(means, (0, 1), value=overall)  # the last entry stands for every class not seen yet, and for none
        return means[classes.clamp(max=len(self.counts)).where(classes >= 0, len(self.counts))]

    def update(self, classes: Tensor, scores: Tensor) -> None:
        """Take note of a batch's scores, shape ``(B,)``; of those with a class, which is not negative."""
        has_class = classes >= 0
        classes, scores = classes[has_class], scores[has_class]
        if not len(classes):
            return
        missing = int(classes.max()) + 1 - len(self.counts)
        if missing > 0:
            self.sums, self.counts = F.pad(self.sums, (0, missing)), F.pad(self.counts, (0, missing))
        self.sums = (self.sums * self.decay).index_add_(0, classes, scores)
        self.counts = (self.counts * self.decay).index_add_(0, classes, torch.ones_like(scores))


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

    def predict(self, instances: Instances) -> Tensor:
        scores, _ = _remembered(instances)
        if not len(self.weight):
            return scores
        return (self.inputs(instances) @ self.weight).clamp(min=0).float()

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

    def state_dict(self) -> dict[str, Any]:
        return {
            "gram": self.gram.clone(),
            "moments": self.moments.clone(),
            "weight": self.weight.clone(),
            "class_sums": self.class_means.sums.clone(),
            "class_counts": self.class_means.counts.clone(),
            "mean_score": self.mean_score.value,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gram, self.moments, self.weight = (state[name].clone() for name in ("gram", "moments", "weight"))
        self.class_means.sums, self.class_means.counts = state["class_sums"].clone(), state["class_counts"].clone()
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
            # A generator of our own: the same signs in every run, and the global RNG stays untouched.
            generator = torch.Generator().manual_seed(width)
            signs = torch.randint(0, 2, (width, self.max_inputs), generator=generator) * 2 - 1
            self._projection = signs.float() / math.sqrt(width)
        return features @ self._projection


def _remembered(instances: Instances) -> tuple[Tensor, Tensor]:
    """Remembered scores and their ages, shape ``(n,)``."""
    if instances.scores is None:
        raise ValueError("HybridAssistant needs remembered scores, got instances without any")
    scores = instances.scores.clamp(-SCORE_BOUND, SCORE_BOUND)
    ages = torch.zeros(len(scores), dtype=torch.int32) if instances.ages is None else instances.ages
    return scores, ages
