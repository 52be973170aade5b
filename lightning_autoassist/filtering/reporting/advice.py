"""Whether filtering is worth it: how unevenly the gradient is spread over the instances, and one sentence on it.

Shapes: B batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # a command that compares runs gives advice without waiting for torch
    from torch import Tensor

# Below the first a shorter schedule does as well; from the second on a quarter of the steps may be enough.
PAYS, PAYS_MUCH = 3.0, 10.0
# The figures of an epoch.
GRADIENT_SPREAD = ("concentration", "variance_ratio")
# What ``"proportional"`` keeps by default, for the ratio of runs that keep everything.
_KEEP_RATE, _FLOOR = 0.5, 0.2
# Scores of the epoch's last batches, from which that is computed.
_MAX_SCORES = 8192
# Batches that are added up at once: one after the other takes ten times as long.
_ADDED_TOGETHER = 16


class GradientSpread:
    r"""How unevenly the gradient is spread over instances, in an epoch.

    With g the norm of an instance's gradient, and each trained instance standing for 1/p of its like, the
    *concentration* is :math:`N \sum g^2 / (\sum g)^2`: 1 where all are alike, 20 where a twentieth has all. The
    *variance ratio* :math:`R = \overline{g^2 / p}\;\overline{p} / \overline{g^2}` is the variance of a filtered
    gradient, weighted by 1/p, in that of as many instances drawn evenly; of runs that keep everything, that which
    ``"proportional"`` would have with fresh scores.

    Example:
        >>> import torch
        >>> spread = GradientSpread()
        >>> spread.add(torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.ones(4))
        >>> spread.figures()["concentration"]
        2.0
    """

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1/p, g/p, g^2/p, g^2/p^2 and of instances
        self._last = np.zeros(0)
        self._new: list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]] = []  # not in the sums yet

    def add(self, scores: Tensor, probs: Tensor) -> None:
        """Take note of a batch: norms of gradients, and what the instances were kept with, each of shape ``(B,)``."""
        self._new.append((scores.numpy(), probs.numpy()))
        if len(self._new) >= _ADDED_TOGETHER:
            self._add_up()

    def _add_up(self) -> None:
        norms, probs = (np.concatenate(column).astype(np.float64) for column in zip(*self._new, strict=True))
        self._new = []
        weights = 1 / probs
        weighted = norms * weights
        self._sums += np.array([weights.sum(), weighted.sum(), norms @ weighted, weighted @ weighted, len(norms)])
        self._last = np.concatenate([self._last, norms])[-_MAX_SCORES:]

    def figures(self) -> dict[str, float]:
        """``concentration`` and ``variance_ratio``; empty where no instance has a gradient."""
        if self._new:
            self._add_up()
        total, first, second, over_p, count = self._sums
        if not first:
            return {}
        ratio = over_p / total * (count / total) / (second / total) if count < total * (1 - 1e-9) else self._fresh()
        return dict(zip(GRADIENT_SPREAD, (float(total * second / first**2), float(ratio)), strict=True))

    def _fresh(self) -> float:
        norms = self._last
        low, high = 0.0, float(norms.max()) / _FLOOR
        for _ in range(50):
            scale = (low + high) / 2
            probs = np.clip(norms / scale, _FLOOR, 1)
            low, high = (scale, high) if probs.mean() > _KEEP_RATE else (low, scale)
        return float((norms**2 / probs).mean() * probs.mean() / (norms**2).mean())


def advice(figures: dict[str, Any]) -> str | None:
    """One sentence on whether filtering is worth it here; None where nothing tells.

    It is what trials on a few data sets and small models suggest, and says nothing where a shorter schedule loses
    nothing: that is known of a run with ``policy="uniform"`` alone.

    Args:
        figures: Of an epoch, with its ``concentration``.

    Example:
        >>> advice({"concentration": 1.9}).partition(":")[0]
        "The gradient's concentration is 1.9"
    """
    if "concentration" not in figures:
        return None
    concentration = figures["concentration"]
    return (
        f"The gradient's concentration is {concentration:.1f}: {outlook(concentration)}. "
        'Compare with policy="uniform" at this budget.'
    )


def outlook(concentration: float) -> str:
    """What a concentration lets expect of filtering, as a clause.

    Args:
        concentration: Of an epoch in which the model had learnt something.
    """
    if concentration >= PAYS_MUCH:
        return (
            "few instances have most of it, so filtering can pay, with budgets down to 0.25 and "
            "PrioritizedPolicy(keep_rate=0.1)"
        )
    if concentration >= PAYS:
        return "a part of the instances has most of it, so filtering can pay where a shorter schedule loses something"
    return "it is spread over most instances, so expect little more than of a shorter schedule"


def early_advice(figures: dict[str, Any]) -> str | None:
    """One sentence on whether filtering can pay, after a few steps of a model; None where nothing tells.

    A low concentration says nothing then: a model that has learnt little has gradients of one size.

    Args:
        figures: Of these steps, with their ``concentration``.

    Example:
        >>> early_advice({"concentration": 1.1}).partition(":")[0]
        'Whether filtering pays does not show after so few steps'
    """
    if "concentration" not in figures:
        return None
    concentration = figures["concentration"]
    if concentration >= PAYS:
        return f"Filtering can pay: after these few steps the gradient's concentration is {concentration:.1f} already."
    return (
        f"Whether filtering pays does not show after so few steps: the gradient's concentration is "
        f'{concentration:.1f}, as of any model that has learnt little; callback.summary()["advice"] tells after a run.'
    )
