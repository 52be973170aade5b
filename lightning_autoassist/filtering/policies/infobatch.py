"""InfoBatch's rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.relative import RelativePolicy
from lightning_autoassist.trainer_support.arguments import check_number


class InfoBatchPolicy(RelativePolicy):
    """InfoBatch's rule: of the instances below the mean loss a fixed share is dropped; the others are kept.

    Goes with reweighting ``"inverse_probability"``, which scales those that stay up by 1 / (1 - prune_ratio), and an
    unfiltered tail of one eighth (delta = 0.875), as the source has it. The mean is of the last 8,192 candidates,
    or of the last pass where that is shorter, instead of the whole pass before.

    **What shifts.** With weights 1/p nothing: the expected gradient is that of the whole data.

    Source: Qin et al., InfoBatch, ICLR 2024, arXiv:2303.04947.

    Args:
        prune_ratio: Share dropped below the mean, in [0, 1).

    Raises:
        ValueError: If ``prune_ratio`` lies outside [0, 1).

    Example:
        >>> InfoBatchPolicy().keep_probability(torch.tensor([0.0, 1.0, 2.0]))
        tensor([0.5000, 1.0000, 1.0000])
    """

    default_score = "loss"
    default_reweighting = "inverse_probability"
    default_unfiltered_tail = 0.125

    def __init__(self, prune_ratio: float = 0.5) -> None:
        super().__init__()
        self.prune_ratio = check_number("prune_ratio", prune_ratio, "[0, 1)", "the source uses 0.5")
        self.mean = 0.0

    @override
    def compare(self, recent: Tensor) -> None:
        self.mean = float(recent.mean())

    @override
    def chances(self, scores: Tensor) -> Tensor:
        return torch.where(scores < self.mean, 1 - self.prune_ratio, 1.0)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mean = float(state["mean"])
