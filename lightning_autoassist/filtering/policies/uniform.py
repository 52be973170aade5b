"""Everything is kept: the shortened schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_autoassist.filtering.policies.base import Policy


class UniformPolicy(Policy):
    """Keep every candidate: the same number of optimizer steps as a filtered run, nothing selected.

    The strong baseline that every filter has to beat.

    Example:
        >>> UniformPolicy().keep_probability(torch.tensor([0.0, 1.0]))
        tensor([1., 1.])
    """

    needs_scores = False
    keeps_everything = True

    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores)
