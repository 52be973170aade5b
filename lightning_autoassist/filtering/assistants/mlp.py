"""A network with one hidden layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_autoassist.filtering.assistants.base import Assistant, RunningMean, UpdateResult
from lightning_autoassist.filtering.assistants.classes import class_indices
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.trainer_support.arguments import check_number, check_whole


class MLPAssistant(Assistant):
    r"""Predicts the score by a small network, :math:`\bar{s}\,v \cdot \mathrm{relu}(W z + E_y + c)`.

    z are the features, scaled to zero mean and unit variance as seen so far; E has a row for each class, and
    :math:`\bar{s}` is the running mean of the scores, so that step sizes do not depend on their unit. One step of Adam
    on the mean squared error, in units of :math:`\bar{s}`, follows each batch of the model.

    Source: the paper's idea of a light model, with one hidden layer in place of none; Adam: Kingma & Ba, ICLR 2015,
    arXiv:1412.6980.

    Args:
        num_hidden: H, at least 1.
        lr: Step size of Adam, positive.
        mean_decay: Decay of the running means of the scores and of the features' moments, per batch, in [0, 1).
        seed: Of the first weights; the global RNG stays untouched.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> assistant, batch = MLPAssistant(), Instances(torch.tensor([[1.0], [-1.0]]))
        >>> for _ in range(300):
        ...     outcome = assistant.update(batch, scores=torch.tensor([2.0, 0.0]))
        >>> assistant.predict(batch).round(decimals=1)
        tensor([2., 0.])
    """

    required_columns = ("features", "labels")
    max_classes = 1024  # rows of E: one for those without a class, and classes beyond the others share them
    betas = (0.9, 0.999)

    def __init__(self, num_hidden: int = 32, lr: float = 3e-3, mean_decay: float = 0.95, seed: int = 0) -> None:
        self.num_hidden = check_whole("num_hidden", num_hidden, "[1, inf)", "try 32")
        self.lr = check_number("lr", lr, "(0, inf)", "try 3e-3")
        self.seed = check_whole("seed", seed, "[0, inf)", "0 is the default")
        self.mean_score = RunningMean(mean_decay)
        self.num_steps = 0
        self.centre = torch.zeros(0)  # of the features, (F,)
        self.square = torch.zeros(0)  # mean of the features' squares, (F,)
        # W (F, H), E (C, H) with a last row for those without a class, c (H,), v (H,); sizes from the first batch.
        self.weights: dict[str, Tensor] = {}
        self.momenta: dict[str, Tensor] = {}
        self.second_momenta: dict[str, Tensor] = {}

    def predict(self, instances: Instances) -> Tensor:
        features, classes = self._inputs(instances)
        if not self.weights:
            return torch.zeros(len(features))
        hidden = self._hidden(self._scaled(features), classes)
        return ((hidden @ self.weights["v"]) * (self.mean_score.value or 0.0)).clamp(min=0)

    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        predictions = self.predict(instances)
        targets = scores > self.mean_score.update(scores)
        features, classes = self._inputs(instances)
        self._fit_sizes(features)
        self._observe_features(features)
        scaled = self._scaled(features)

        hidden = self._hidden(scaled, classes)
        unit = max(abs(self.mean_score.value or 0.0), 1e-12)
        error = 2 * (hidden @ self.weights["v"] - scores / unit) / len(scores)
        hidden_error = torch.outer(error, self.weights["v"]) * (hidden > 0)
        self._step(
            {
                "W": scaled.T @ hidden_error,
                "E": torch.zeros_like(self.weights["E"]).index_add_(0, classes, hidden_error),
                "c": hidden_error.sum(0),
                "v": hidden.T @ error,
            }
        )
        return UpdateResult(float((predictions - scores).abs().mean()), predictions, targets)

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "mean_score": self.mean_score.value,
            "centre": self.centre.clone(),
            "square": self.square.clone(),
            "weights": _clones(self.weights),
            "momenta": _clones(self.momenta),
            "second_momenta": _clones(self.second_momenta),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_steps = int(state["num_steps"])
        self.mean_score.value = state["mean_score"]
        self.centre, self.square = state["centre"].clone(), state["square"].clone()
        self.weights = _clones(state["weights"])
        self.momenta, self.second_momenta = _clones(state["momenta"]), _clones(state["second_momenta"])

    def _inputs(self, instances: Instances) -> tuple[Tensor, Tensor]:
        if instances.features is None:
            raise ValueError("MLPAssistant needs features, got instances without any; pass features=")
        classes = class_indices(instances, len(instances.features), self.max_classes - 1)
        return instances.features.float(), classes.where(classes >= 0, self.max_classes - 1)

    def _hidden(self, scaled: Tensor, classes: Tensor) -> Tensor:
        return torch.relu(scaled @ self.weights["W"] + self.weights["E"][classes] + self.weights["c"])

    def _scaled(self, features: Tensor) -> Tensor:
        variance = (self.square - self.centre.square()).clamp(min=0)
        # A feature that never changes stays at 0, and counts one day when it does.
        return (features - self.centre) / (variance + 1e-6).sqrt()

    def _observe_features(self, features: Tensor) -> None:
        decay = self.mean_score.decay if self.num_steps else 0.0
        self.centre = decay * self.centre + (1 - decay) * features.mean(0)
        self.square = decay * self.square + (1 - decay) * features.square().mean(0)

    def _fit_sizes(self, features: Tensor) -> None:
        if self.weights:
            return
        generator = torch.Generator().manual_seed(self.seed)
        width, hidden = features.shape[1], self.num_hidden
        self.centre, self.square = torch.zeros(width), torch.zeros(width)
        self.weights = {
            "W": torch.randn(width, hidden, generator=generator) * (2 / width) ** 0.5,
            "E": torch.zeros(self.max_classes, hidden),
            "c": torch.zeros(hidden),
            "v": torch.rand(hidden, generator=generator) / hidden,
        }
        self.momenta = {name: torch.zeros_like(values) for name, values in self.weights.items()}
        self.second_momenta = _clones(self.momenta)

    def _step(self, gradients: dict[str, Tensor]) -> None:
        """One step of Adam."""
        self.num_steps += 1
        first, second = self.betas
        for name, gradient in gradients.items():
            self.momenta[name] = first * self.momenta[name] + (1 - first) * gradient
            self.second_momenta[name] = second * self.second_momenta[name] + (1 - second) * gradient.square()
            step = self.momenta[name] / (1 - first**self.num_steps)
            scale = (self.second_momenta[name] / (1 - second**self.num_steps)).sqrt() + 1e-8
            self.weights[name] = self.weights[name] - self.lr * step / scale


def _clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in tensors.items()}
