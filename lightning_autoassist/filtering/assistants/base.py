"""Assistants: tiny models that predict how much an instance would still improve the model.

An Assistant sees rows of the ``InstanceStore`` and learns online from the scores
that the model's own batches gave. Adding one takes a class and a line in
``ASSISTANTS``.

Shapes: n candidates, B batch, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lightning_autoassist.filtering.memory.features import BatchFeatures, FeatureFunction
from lightning_autoassist.filtering.memory.instances import FROM_BATCHES, Instances
from lightning_autoassist.filtering.memory.own_columns import ColumnStarts
from lightning_autoassist.trainer_support.arguments import check_number

# Gets a batch and its size; returns one row an instance, or None.
BatchReader = Callable[[Any, int], "Tensor | None"]


class UpdateResult(NamedTuple):
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
        required_columns: The columns of the instance store that :meth:`predict` needs, a subset of
            ``{"features", "labels", "scores", "ages", "tokens", "indices"}``. Columns that are not named are not
            gathered; ``"tokens"`` take the place of ``"features"``.
        scores_unseen: Whether :meth:`predict` needs nothing that the model has shown of an instance, as where the
            Assistant was given what it reads beforehand. Then candidates are filtered from the first one on; else
            each is kept until the model has seen it, and the whole first pass is. One that reads the model's own
            weights wants ``AutoAssistCallback(update="sync")``: beside the training loop they change while it reads.
        predicts_probability: Whether it predicts how likely an instance is to be informative, and not the score.
        own_columns: What it remembers of each instance by itself: names, and the number (or the numbers) that an
            instance has at first, and again once it was forgotten. ``instances.memory[name]`` reads and writes them.
            Data sets only: a stream does not tell which instance came before.
        progress: Share of training that is done, in [0, 1], when it is asked or learns.
        pass_index: Number of the pass over the data, from 0, alike.
    """

    required_columns: tuple[str, ...] = ()
    scores_unseen: bool = False
    predicts_probability: bool = False
    own_columns: ColumnStarts = MappingProxyType({})
    progress: float = 0.0
    pass_index: int = 0

    @property
    def needs_batches(self) -> bool:
        """Whether it reads what only the batches can tell."""
        return any(name in self.required_columns for name in FROM_BATCHES)

    def feature_extractor(self, function: FeatureFunction | None, max_features: int) -> BatchReader:
        """What takes from a batch, on its device, what this Assistant reads of it.

        Args:
            function: The user's ``features=``.
            max_features: Most numbers, or tokens of a sequence, that an instance may take.
        """
        return BatchFeatures(function, max_features)

    def note_progress(self, progress: float, pass_index: int) -> None:
        """Training has come so far; called before candidates are judged, and before a batch is learnt from."""
        self.progress, self.pass_index = progress, pass_index

    def begin_pass(self) -> None:
        """A pass over the data begins: what comes now is learnt from in its batches."""

    def predict(self, instances: Instances) -> Tensor:
        """Predicted score of each candidate, shape ``(n,)``, float32."""
        raise NotImplementedError

    def update(self, instances: Instances, scores: Tensor) -> UpdateResult:
        """Learn from one batch of the model.

        Args:
            instances: The batch's rows, as they were remembered before this batch; ``probs`` are what they were kept
                with.
            scores: What the model's batch gave, shape ``(B,)``, float32, finite.
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
