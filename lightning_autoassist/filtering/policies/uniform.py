"""Everything is kept: the shortened schedule."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.trainer_support.arguments import check_flag


class UniformPolicy(Policy):
    """Keep every candidate: the same number of optimizer steps as a filtered run, nothing selected.

    The strong baseline that every filter has to beat.

    Args:
        observe: Whether scores are captured all the same, which costs what it costs in a filtered run: then
            ``summary()["advice"]`` of a run at budget 1 tells beforehand whether filtering is worth it.

    Example:
        >>> UniformPolicy().keep_probability(torch.tensor([0.0, 1.0]))
        tensor([1., 1.])
    """

    needs_scores = False
    keeps_everything = True

    def __init__(self, observe: bool = False) -> None:
        self.needs_scores = check_flag("observe", observe)

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores)
