"""Progressive Data Dropout's rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.base import NO_FLOOR, Policy
from lightning_autoassist.trainer_support.arguments import check_number


class ThresholdPolicy(Policy):
    r"""Keep what the model does not yet predict with probability :math:`\tau`: a loss above :math:`-\ln \tau`.

    The source runs a forward pass on every candidate; here the loss is the last one observed, and a floor lets those
    that were learnt come back. How much is kept follows from the losses, and falls while the model learns.

    **What shifts.** Nothing is corrected, and nothing could be: the expected gradient is that of the hard instances
    with a few of the others. Probabilities come out less certain than they should be and thresholds move; wrong labels
    are trained on most.

    Source: Progressive Data Dropout, NeurIPS 2025, arXiv:2505.22342; its last epoch of 30 is unfiltered.

    Args:
        tau: :math:`\tau`, in (0, 1), of a loss in nats such as the cross-entropy.
        floor: Chance of the others, in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> ThresholdPolicy(tau=0.3).keep_probability(torch.tensor([0.2, 1.1, 1.3]))
        tensor([0.0500, 0.0500, 1.0000])
    """

    default_score = "loss"
    reads_losses = True
    default_unfiltered_tail = 0.03

    def __init__(self, tau: float = 0.3, floor: float = 0.05) -> None:
        self.tau = check_number("tau", tau, "(0, 1)", "the source uses 0.3")
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.05")

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.where(scores > -math.log(self.tau), 1.0, self.floor)
