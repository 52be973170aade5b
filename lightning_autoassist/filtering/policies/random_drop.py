"""Candidates are dropped blindly: a control."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.trainer_support.arguments import check_number


class RandomPolicy(Policy):
    """Keep every candidate with the same probability: filtering with nothing learnt, a control.

    Args:
        keep_rate: The probability, in (0, 1].

    Raises:
        ValueError: If ``keep_rate`` lies outside (0, 1].

    Example:
        >>> RandomPolicy(keep_rate=0.5).keep_probability(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.5000])
    """

    needs_scores = False

    def __init__(self, keep_rate: float = 0.5) -> None:
        self.keep_rate = check_number("keep_rate", keep_rate, "(0, 1]", "0.5 drops every second candidate")
        self.keeps_everything = self.keep_rate == 1

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.full_like(scores, self.keep_rate)
