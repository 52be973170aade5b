"""What the model has shown of each class.

Shapes: B batch, n candidates, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
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
        self._table: npt.NDArray[np.float32] | None = None  # means, between those of no class and of one never seen

    def of(self, classes: Tensor) -> Tensor:
        """The mean squares of classes, shape ``(n,)``, float32; NaN where the model has seen too little of one."""
        if self._table is None:
            self._table = self._tabulated()
        return torch.from_numpy(self._table.take(classes.numpy() + 1, mode="clip"))

    def _tabulated(self) -> npt.NDArray[np.float32]:
        means = np.full(len(self._counts) + 2, np.nan, np.float32)
        known = np.flatnonzero(self._counts >= FEWEST_OF_CLASS)
        means[known + 1] = self._sums[known] / self._weights[known]
        return means

    def update(self, classes: Tensor, scores: Tensor, probs: Tensor) -> None:
        """Take note of a batch: of those with a class, which is not negative.

        Args:
            classes: Shape ``(B,)``, integer.
            scores: Shape ``(B,)``.
            probs: What the instances were kept with, shape ``(B,)``.
        """
        places, weights = classes.numpy(), 1 / probs.numpy().astype(np.float64)
        weighted = weights * np.square(scores.numpy(), dtype=np.float64)
        has_class = (places >= 0) & (places < MAX_CLASSES)
        if not has_class.all():
            places, weights, weighted = places[has_class], weights[has_class], weighted[has_class]
        if len(places):
            self._table = None
            self._sums = self._added(self._sums * self.decay, np.bincount(places, weighted))
            self._weights = self._added(self._weights * self.decay, np.bincount(places, weights))
            self._counts = self._added(self._counts, np.bincount(places))

    @staticmethod
    def _added(totals: npt.NDArray[Any], new: npt.NDArray[Any]) -> npt.NDArray[Any]:
        longer, shorter = (totals, new) if len(totals) >= len(new) else (new, totals)
        longer[: len(shorter)] += shorter
        return longer

    def state_dict(self) -> dict[str, Any]:
        """The statistics, as tensors."""
        return {name: torch.from_numpy(getattr(self, f"_{name}").copy()) for name in ("sums", "weights", "counts")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._sums, self._weights, self._counts = (state[name].numpy().copy() for name in ("sums", "weights", "counts"))
