"""Sums over the candidates of each class.

Shapes: n candidates, C classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.classes import MAX_CLASSES


class ClassSums:
    """Sums of a few values over the candidates of each class; those without a class are one more.

    Args:
        num_values: How many values there are beside the number of candidates.
        decay: What earlier candidates count less with each call, in (0, 1].

    Example:
        >>> sums = ClassSums(num_values=1, decay=1.0)
        >>> sums.add(torch.tensor([0, 1, 1]), np.array([1.0, 2.0, 4.0])).tolist()
        [[1.0, 2.0, 2.0], [1.0, 6.0, 6.0]]
    """

    def __init__(self, num_values: int, decay: float) -> None:
        self.decay = decay
        self.sums: npt.NDArray[np.float64] = np.zeros(
            (1 + num_values, 1)
        )  # the first column is of those without a class

    def add(self, labels: Tensor, *values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Add candidates, and return their classes' numbers and sums, shape ``(1 + num_values, n)``.

        Args:
            labels: Shape ``(n,)``, integer, negative where there is no class.
            values: Of each candidate, shape ``(n,)`` each.
        """
        places = np.clip(labels.numpy().astype(np.int64) + 1, 0, MAX_CLASSES)
        size = max(self.sums.shape[1], int(places.max(initial=0)) + 1)
        new: npt.NDArray[np.float64] = np.stack(
            [np.bincount(places, each, size) for each in (np.ones(len(places)), *values)]
        )
        new[:, : self.sums.shape[1]] += self.decay * self.sums
        self.sums = new
        return new[:, places]

    @property
    def num_classes(self) -> int:
        """How many classes there were."""
        return int(np.count_nonzero(self.sums[0, 1:]))

    def state_dict(self) -> dict[str, Any]:
        """The sums, as a tensor."""
        return {"sums": torch.from_numpy(self.sums.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.sums = state["sums"].numpy().copy()
