"""Assistants: tiny models that predict how much an instance would still improve the Boss.

An Assistant sees rows of the ``InstanceStore`` and learns online from the scores
that the Boss's own batches gave. Adding one takes a class and a line in
``ASSISTANTS``.

Shapes: n candidates, B batch, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.filtering.memory.store import FROM_BATCHES, BatchFeatures, FeatureFunction, Instances
from lightning_autoassist.trainer_support.arguments import check_number
from lightning_autoassist.trainer_support.arrays import IndexArray

MAX_CLASSES = 65_536

# Gets a batch and its size; returns one row an instance, or None.
BatchReader = Callable[[Any, int], "Tensor | None"]


class Outcome(NamedTuple):
    """What one update of an Assistant showed, before it learnt from the batch.

    Attributes:
        loss: The Assistant's mean loss over the batch: in nats, or for Assistants that predict the score itself the
            mean absolute error, in units of the score.
        predictions: Its predictions, shape ``(B,)``, float32.
        targets: Whether each instance was informative, shape ``(B,)``, bool.
    """

    loss: float
    predictions: Tensor
    targets: Tensor


class Assistant:
    """Base class of the Assistants.

    Attributes:
        reads: The columns of the instance store that :meth:`predict` needs, a subset of
            ``{"features", "labels", "scores", "ages", "tokens", "indices"}``. Columns that are not named are not
            gathered; ``"tokens"`` take the place of ``"features"``.
        judges_unseen: Whether :meth:`predict` needs nothing that the Boss has shown of an instance, as where the
            Assistant was given what it reads beforehand. Then candidates are filtered from the first one on; else
            each is kept until the Boss has seen it, and the whole first pass is. One that reads the Boss's own weights
            wants ``AutoAssistCallback(update="sync")``: beside the training loop they change while it reads.
    """

    reads: tuple[str, ...] = ()
    judges_unseen: bool = False

    @property
    def reads_batches(self) -> bool:
        """Whether it reads what only the batches can tell."""
        return any(name in self.reads for name in FROM_BATCHES)

    def reader(self, function: FeatureFunction | None, max_features: int) -> BatchReader:
        """What takes from a batch, on its device, what this Assistant reads of it.

        Args:
            function: The user's ``features=``.
            max_features: Most numbers, or tokens of a sequence, that an instance may take.
        """
        return BatchFeatures(function, max_features)

    def begin_pass(self) -> None:
        """A pass over the data begins: what comes now is learnt from in its batches."""

    def predict(self, instances: Instances) -> Tensor:
        """Predicted score of each candidate, shape ``(n,)``, float32."""
        raise NotImplementedError

    def update(self, instances: Instances, scores: Tensor) -> Outcome:
        """Learn from one batch of the Boss.

        Args:
            instances: The batch's rows.
            scores: What the Boss's batch gave, shape ``(B,)``, float32, finite.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and builtins."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        raise NotImplementedError


class RunningMean:
    """Mean of scores over the last batches, each counting less than the next.

    Args:
        decay: What a batch's weight falls by from one batch to the next, in [0, 1).

    Raises:
        ValueError: If ``decay`` lies outside [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self.decay = check_number("mean_decay", decay, "[0, 1)", "the paper uses 0.75")
        self.value: float | None = None

    def update(self, scores: Tensor) -> float:
        """The mean with a batch's scores in it."""
        batch_mean = float(np.add.reduce(scores.numpy(), dtype=np.float64)) / len(scores)
        previous = batch_mean if self.value is None else self.value
        self.value = self.decay * previous + (1 - self.decay) * batch_mean
        return self.value


class LogisticAssistant(Assistant):
    r"""The paper's Assistant for images, :math:`a_i = \sigma(W \cdot x_i + U_{y_i})`.

    Its target is "the score is above the running mean of the scores"; one step of SGD on the mean logistic loss of
    the batch, with L2 on :math:`W` and :math:`U`, follows each batch of the Boss. Without class labels :math:`U` has
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

    reads = ("features", "labels")

    def __init__(self, lr: float = 0.01, weight_decay: float = 1e-3, mean_decay: float = 0.75) -> None:
        self.lr = check_number("lr", lr, "(0, inf)", "the paper uses 0.01")
        self.weight_decay = check_number("weight_decay", weight_decay, "[0, inf)", "the paper uses 1e-3")
        self.mean_score = RunningMean(mean_decay)
        self.weight = torch.zeros(0)  # W, (F,); takes its size from the first batch
        self.bias = torch.zeros(1)  # U, (C,); grows as classes turn up

    def predict(self, instances: Instances) -> Tensor:
        return torch.sigmoid(self._logits(*self._inputs(instances)))

    def update(self, instances: Instances, scores: Tensor) -> Outcome:
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
        return Outcome(loss, predictions, torch.from_numpy(targets))

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight.clone(), "bias": self.bias.clone(), "mean_score": self.mean_score.value}

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


class MemoryAssistant(Assistant):
    """No model: predicts the last score that was observed of an instance.

    Args:
        mean_decay: Decay of the running mean of the scores, per batch, in [0, 1); above it an instance counts as
            informative in the reports.

    Raises:
        ValueError: If ``mean_decay`` lies outside [0, 1).

    Example:
        >>> MemoryAssistant().predict(Instances(scores=torch.tensor([0.5, 2.0])))
        tensor([0.5000, 2.0000])
    """

    reads = ("scores",)

    def __init__(self, mean_decay: float = 0.75) -> None:
        self.mean_score = RunningMean(mean_decay)

    def predict(self, instances: Instances) -> Tensor:
        if instances.scores is None:
            raise ValueError("MemoryAssistant needs remembered scores, got instances without any")
        return instances.scores

    def update(self, instances: Instances, scores: Tensor) -> Outcome:
        remembered = self.predict(instances)
        targets = torch.from_numpy(scores.numpy() > np.float32(self.mean_score.update(scores)))
        # In numpy, whose calls take a third of torch's on so few numbers.
        errors = np.abs(remembered.numpy() - scores.numpy())
        return Outcome(float(np.add.reduce(errors)) / len(errors), remembered, targets)

    def state_dict(self) -> dict[str, Any]:
        return {"mean_score": self.mean_score.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean_score.value = state["mean_score"]
