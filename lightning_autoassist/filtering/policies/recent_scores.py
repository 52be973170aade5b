"""The scores of recent candidates, and what a policy takes from them.

Shapes: n candidates, m recent ones.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Scores that stand for all: their mean is known to a hundredth of their deviation.
MAX_RECENT = 8192


class RecentScores:
    """The scores of the last candidates, as a sample of all there are.

    Args:
        size: How many are kept.

    Example:
        >>> recent = RecentScores(size=3)
        >>> recent.add(torch.tensor([1.0, 2.0]))
        >>> recent.add(torch.tensor([3.0, 4.0]))
        >>> recent.values
        tensor([2., 3., 4.])
    """

    def __init__(self, size: int = MAX_RECENT) -> None:
        self.size = size
        self._parts: list[npt.NDArray[np.float32]] = []  # the oldest first, put together when they are asked for
        self._count = 0

    def __len__(self) -> int:
        return min(self._count, self.size)

    def add(self, scores: Tensor) -> None:
        """Take note of candidates' scores, shape ``(n,)``; those that are no finite numbers are left out."""
        values = scores.numpy().astype(np.float32, copy=False)
        values = values[np.isfinite(values)]  # a copy: an Assistant may write into what it gave
        self._parts.append(values)
        self._count += len(values)
        if self._count > 2 * self.size:
            self._join()

    @property
    def array(self) -> npt.NDArray[np.float32]:
        """The scores, shape ``(m,)``, the oldest first."""
        if len(self._parts) != 1 or self._count > self.size:
            self._join()
        return self._parts[0]

    @property
    def values(self) -> Tensor:
        """The same as a tensor."""
        return torch.from_numpy(self.array)

    @values.setter
    def values(self, values: Tensor) -> None:
        self._parts, self._count = [values.numpy()], len(values)

    def _join(self) -> None:
        joined = np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)
        self._parts = [joined[-self.size :].copy()]
        self._count = len(self._parts[0])


def proportional_scale(scores: npt.NDArray[np.float32], keep_rate: float, floor: float) -> float:
    r"""The :math:`\lambda` at which the mean of :math:`\mathrm{clip}(s_i / \lambda, \gamma, 1)` is the keep rate.

    With the scores sorted and added up once, the mean at any :math:`\lambda` takes two searches, and where the same
    scores are clipped at the solution it is known in closed form.

    Args:
        scores: :math:`s_i`, not negative, shape ``(m,)``.
        keep_rate: In [floor, 1).
        floor: :math:`\gamma`, in (0, 1].

    Example:
        >>> proportional_scale(np.array([0.0, 1.0, 2.0, 6.0], np.float32), keep_rate=0.5, floor=0.2)
        3.75
    """
    # Sorted as they are, four times as fast; searched in double precision, or each search would convert all of them.
    ordered = np.sort(scores).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    # The mean falls from 1 to the floor as lambda grows from 0 to the largest score over the floor.
    low, high = 0.0, max(float(ordered[-1]) / floor, 1e-30)
    scale, wanted = high, keep_rate * len(ordered)
    for _ in range(60):
        lowest, highest = int(ordered.searchsorted(floor * scale)), int(ordered.searchsorted(scale))
        clipped, free = len(ordered) - highest + floor * lowest, float(sums[highest] - sums[lowest])
        if clipped + free / scale > wanted:
            low = scale
        else:
            high = scale
        solved = free / (wanted - clipped) if wanted > clipped else high  # were the same scores clipped there
        if abs(solved - scale) <= 1e-9 * scale or high - low <= 1e-9 * high:
            break
        scale = solved if low < solved < high else (low + high) / 2
    return max(scale, 1e-30)
