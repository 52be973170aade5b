"""What the model has shown of each class.

Shapes: B batch, n candidates, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.classes import MAX_CLASSES

# Fewer instances than this tell nothing of their class.
FEWEST_OF_CLASS = 8


class ClassMeanSquares:
    r"""The running mean square of each class's scores, :math:`m_c^2`, each batch counting less than the next.

    An instance that was kept with p stands for 1/p of its class, so that the mean is that of the class and not that of
    what is kept of it.

    Args:
        decay: What a batch's weight falls by from one batch to the next, in [0, 1).

    Example:
        >>> means = ClassMeanSquares(decay=0.9)
        >>> means.update(torch.tensor([0, 1] * 8), torch.tensor([1.0, 3.0] * 8), torch.ones(16))
        >>> means.of(torch.tensor([0, 1, 2, -1]))
        tensor([1., 9., nan, nan])
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._sums = np.zeros(0)  # (C,); grows as classes turn up
        self._weights = np.zeros(0)
        self._counts = np.zeros(0, np.int64)  # all that were ever seen

    def of(self, classes: Tensor) -> Tensor:
        """The mean squares of classes, shape ``(n,)``, float32; NaN where the model has seen too little of one."""
        places = classes.numpy() % MAX_CLASSES
        known = (classes.numpy() >= 0) & (places < len(self._counts))
        places = np.where(known, places, 0)
        if not known.any():
            return torch.full((len(places),), torch.nan)
        known &= self._counts[places] >= FEWEST_OF_CLASS
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(known, self._sums[places] / self._weights[places], np.nan)
        return torch.from_numpy(means.astype(np.float32))

    def update(self, classes: Tensor, scores: Tensor, probs: Tensor) -> None:
        """Take note of a batch: of those with a class, which is not negative.

        Args:
            classes: Shape ``(B,)``, integer.
            scores: Shape ``(B,)``.
            probs: What the instances were kept with, shape ``(B,)``.
        """
        has_class = classes.numpy() >= 0
        places = classes.numpy()[has_class] % MAX_CLASSES
        if not len(places):
            return
        weights = 1 / probs.numpy()[has_class].astype(np.float64)
        squares = scores.numpy()[has_class].astype(np.float64) ** 2
        num_classes = max(len(self._counts), int(places.max()) + 1)
        for name, values in (("_sums", weights * squares), ("_weights", weights)):
            new = np.bincount(places, values, num_classes)
            new[: len(self._counts)] += self.decay * getattr(self, name)
            setattr(self, name, new)
        counts = np.bincount(places, minlength=num_classes)
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    def state_dict(self) -> dict[str, Any]:
        """The statistics, as tensors."""
        return {name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in ("sums", "weights", "counts")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._sums, self._weights, self._counts = (state[name].numpy().copy() for name in ("sums", "weights", "counts"))
