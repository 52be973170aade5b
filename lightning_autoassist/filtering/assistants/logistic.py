"""The paper's Assistant: logistic regression on features and class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_autoassist.filtering.assistants.base import Assistant, RunningMean, UpdateResult
from lightning_autoassist.filtering.memory.classes import MAX_CLASSES
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.trainer_support.arguments import check_number
from lightning_autoassist.trainer_support.arrays import IndexArray


class LogisticAssistant(Assistant):
    r"""The paper's Assistant for images, :math:`a_i = \sigma(W \cdot x_i + U_{y_i})`.

    Its target is "the score is above the running mean of the scores"; one step of SGD on the mean logistic loss of
    the batch, with L2 on :math:`W` and :math:`U`, follows each batch of the model. Without class labels :math:`U` has
    one entry, an ordinary bias. An instance without a class among others that have one has no bias.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        lr: Step size of SGD, on the mean over the batch.
        weight_decay: L2 coefficient.
        mean_decay: Decay of the running mean of the scores, per batch, in [0, 1). The mean includes the batch that is
            compared with it.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> assistant = LogisticAssistant(lr=1.0)
        >>> batch = Instances(features=torch.tensor([[1.0], [-1.0]]))
        >>> outcome = assistant.update(batch, scores=torch.tensor([2.0, 0.0]))
        >>> assistant.predict(batch)
        tensor([0.6225, 0.3775])
    """

    required_columns = ("features", "labels")
    predicts_probability = True

    def __init__(self, lr: float = 0.01, weight_decay: float = 1e-3, mean_decay: float = 0.75) -> None:
        self.lr = check_number("lr", lr, "(0, inf)", "the paper uses 0.01")
        self.weight_decay = check_number("weight_decay", weight_decay, "[0, inf)", "the paper uses 1e-3")
        self.mean_score = RunningMean(mean_decay)
        self.weight = torch.zeros(0)  # W, (F,); takes its size from the first batch
        self.bias = torch.zeros(1)  # U, (C,); grows as classes turn up

    @override
    def predict(self, instances: Instances) -> Tensor:
        return torch.sigmoid(self._logits(*self._inputs(instances)))

    @override
    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        features, classes = self._inputs(instances)
        self._fit_sizes(features, classes)
        targets = scores.numpy() > np.float32(self.mean_score.update(scores))

        logits = self._logits(features, classes)
        predictions = torch.sigmoid(logits)
        loss = _logistic_loss(logits.numpy(), targets)
        residual = (predictions.numpy() - targets) / np.float32(len(scores))
        # d loss / d W and d loss / d U, and L2 on both.
        shrunk = 1 - self.lr * self.weight_decay
        self.weight.addmv_(features.T, torch.from_numpy(residual), beta=shrunk, alpha=-self.lr)
        has_class = classes >= 0
        bias_step = np.bincount(classes[has_class], residual[has_class], len(self.bias))
        self.bias.mul_(shrunk).sub_(torch.from_numpy(bias_step), alpha=self.lr)
        return UpdateResult(loss, predictions, torch.from_numpy(targets))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.clone(), "bias": self.bias.clone(), "mean_score": self.mean_score.value}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"].clone()
        self.bias = state["bias"].clone()
        self.mean_score.value = state["mean_score"]

    def _logits(self, features: Tensor, classes: IndexArray) -> Tensor:
        if not len(self.weight):
            return torch.zeros(len(features))
        return torch.mv(features, self.weight).add_(torch.from_numpy(self._class_bias(classes)))

    @staticmethod
    def _inputs(instances: Instances) -> tuple[Tensor, IndexArray]:
        if instances.features is None:
            raise ValueError("LogisticAssistant needs features, got instances without any; pass features=")
        features = instances.features.float()
        if instances.labels is None:
            return features, np.zeros(len(features), np.int64)
        classes = instances.labels.numpy().astype(np.int64)
        # -1 for labels that cannot be classes: unknown and ignored ones, hashed ids.
        classes[(classes < 0) | (classes >= MAX_CLASSES)] = -1
        return features, classes

    def _class_bias(self, classes: IndexArray) -> npt.NDArray[np.float32]:
        """Biases of classes, shape ``(n,)``; 0 for one that was never seen, and for none, which is -1."""
        biases: npt.NDArray[np.float32] = np.append(self.bias.numpy(), np.float32(0))
        return biases[np.minimum(classes, len(self.bias))]

    def _fit_sizes(self, features: Tensor, classes: IndexArray) -> None:
        if not len(self.weight):
            self.weight = torch.zeros(features.shape[1])
        num_classes = int(classes.max()) + 1
        if num_classes > len(self.bias):
            self.bias = F.pad(self.bias, (0, num_classes - len(self.bias)))


def _logistic_loss(logits: npt.NDArray[np.float32], targets: npt.NDArray[np.bool_]) -> float:
    """Mean of -log sigmoid(z) over the targets, of -log sigmoid(-z) over the others."""
    towards = np.where(targets, logits, -logits)
    losses = np.log1p(np.exp(-np.abs(towards))) - np.minimum(towards, 0)
    return float(np.add.reduce(losses)) / len(losses)
