"""Selective-Backprop's rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.base import NO_FLOOR
from lightning_autoassist.filtering.policies.relative import RelativePolicy
from lightning_autoassist.trainer_support.arguments import check_number, check_whole


class SelectiveBackpropPolicy(RelativePolicy):
    r"""Selective-Backprop's rule, :math:`p_i = \mathrm{CDF}(l_i)^\beta` over recent losses.

    The source runs a forward pass on every candidate; here the loss is the last one observed, and a floor keeps
    instances with low losses from vanishing. The source compares with the last 1,024 losses, which ``history=1024``
    does as well; None compares with those of a pass, as the other policies do.

    **What shifts.** Nothing is corrected: what is hard counts for more than its share. Ranking and accuracy gain in
    trials with many classes; probabilities come out less certain, and wrong labels are trained on most.

    Source: Jiang et al., Accelerating Deep Learning by Focusing on the Biggest Losers, arXiv:1910.00762.

    Args:
        beta: Selectivity, positive: 1 keeps about one half, 2 about one third.
        floor: Least chance, in (0, 1].
        history: How many recent losses are compared with; None: a pass's, at most 8,192.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> SelectiveBackpropPolicy(beta=1).keep_probability(torch.tensor([3.0, 1.0, 2.0, 4.0]))
        tensor([0.7500, 0.2500, 0.5000, 1.0000])
    """

    default_score = "loss"

    def __init__(self, beta: float = 1.0, floor: float = 0.05, history: int | None = None) -> None:
        super().__init__()
        self.history = None if history is None else check_whole("history", history, "[1, inf)", "the source has 1024")
        if self.history is not None:
            self.recent.size = self.history
        self.beta = check_number("beta", beta, "(0, inf)", "1 keeps about one half")
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.05")
        self._sorted = torch.zeros(0)

    @override
    def prepare(self, num_candidates: int) -> None:
        if self.history is None:
            super().prepare(num_candidates)

    @override
    def compare(self, recent: Tensor) -> None:
        self._sorted = torch.from_numpy(np.sort(recent.numpy()))  # ten times as fast as torch's

    @override
    def chances(self, scores: Tensor) -> Tensor:
        ranks = torch.searchsorted(self._sorted, scores, right=True)
        return (ranks / len(self._sorted)).pow(self.beta).clamp(self.floor, 1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sorted": self._sorted.clone()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sorted = state["sorted"].clone()
