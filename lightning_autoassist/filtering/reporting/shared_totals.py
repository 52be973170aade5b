"""Totals of a run that was trained in other processes, as ``ddp_notebook`` and ``ddp_spawn`` do.

Those processes work on copies of the callback, and Lightning brings back the weights and metrics, but no callback.
Memory that both sides share brings back the totals.
"""

from __future__ import annotations

import contextlib
import math
import os

import torch

TOTALS = (
    "optimizer_steps",
    "instances_seen",
    "seconds",
    "saved_ratio",
    "candidates_seen",
    "nonfinite_instances",
    "keep_rate",
    "mean_keep_prob",
    "overhead_ms",
    "assistant_loss",
    "assistant_auroc",
)


class SharedTotals:
    """A few numbers in shared memory, made before the other processes are.

    Example:
        >>> totals = SharedTotals()
        >>> totals.claim()
        >>> totals.write({"keep_rate": 0.5})
        >>> totals.read(), totals.is_of_other_process
        ({'keep_rate': 0.5}, False)
    """

    def __init__(self) -> None:
        self._numbers = torch.full((1 + len(TOTALS),), math.nan, dtype=torch.float64)
        self._numbers[0] = 0
        # In a container without shared memory, what another process counts is not known.
        with contextlib.suppress(RuntimeError):
            self._numbers.share_memory_()

    @property
    def is_of_other_process(self) -> bool:
        """Whether another process than this one trained last."""
        return int(self._numbers[0]) not in {0, os.getpid()}

    def claim(self) -> None:
        """From here on this process trains."""
        self._numbers[0] = os.getpid()

    def write(self, totals: dict[str, float]) -> None:
        """Leave totals for the process that started this one; what is no total is left out."""
        numbers = [totals.get(name, math.nan) for name in TOTALS]
        self._numbers[1:] = torch.tensor(numbers, dtype=torch.float64)

    def read(self) -> dict[str, float]:
        """The totals that the other side left."""
        return {
            name: number
            for name, number in zip(TOTALS, self._numbers[1:].tolist(), strict=True)
            if not math.isnan(number)
        }
