"""IES: drop what the model has settled on."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.base import NO_FLOOR, Policy
from lightning_autoassist.trainer_support.arguments import check_number

# Losses that are remembered: the mean is of three second differences.
NUM_LOSSES = 5


class IESPolicy(Policy):
    r"""Instance-dependent early stopping: drop an instance whose loss no longer bends.

    With the losses :math:`l_t` that the model had on an instance when it was trained on it, it is settled where the
    mean of the last three :math:`|l_t - 2 l_{t-1} + l_{t-2}|` is below :math:`\delta`. Instances that were seen fewer
    than five times are kept.

    The source scores what it dropped anew in each epoch, by a forward pass, and takes it back when its loss bends
    again; here a floor brings it back now and then.

    **What shifts.** Nothing is corrected. Instances that are settled for good and those that are wrong for good are
    dropped alike, so that probabilities shift little; with augmentation or dropout few losses ever settle.

    Source: IES, ICLR 2025, arXiv:2502.07547.

    Args:
        delta: :math:`\delta`, positive, in units of the loss.
        floor: Chance of what is settled, in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> IESPolicy(delta=0.1).chances(torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 0.2, 1.0, 0.2, 1.0]]))
        tensor([0.1000, 1.0000])
    """

    default_score = "loss"
    reads_losses = True
    own_columns = {"losses": (torch.nan,) * NUM_LOSSES}  # noqa: RUF012 -- read only

    def __init__(self, delta: float = 1e-3, floor: float = 0.1) -> None:
        self.delta = check_number("delta", delta, "(0, inf)", "the source uses 0.001")
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.1")

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores)  # one score tells nothing of how it bends

    @override
    def judge(self, scores: Tensor, instances: Instances) -> Tensor:
        return self.keep_probability(scores) if instances.memory is None else self.chances(instances.memory["losses"])

    @override
    def update(self, instances: Instances, scores: Tensor) -> None:
        if instances.memory is not None:
            instances.memory["losses"] = torch.cat([instances.memory["losses"][:, 1:], scores[:, None]], dim=1)

    def chances(self, losses: Tensor) -> Tensor:
        """Keep probabilities of instances, for the last losses of each, shape ``(n, 5)``; NaN where there was none."""
        bends = losses.diff(n=2, dim=1).abs().mean(dim=1)
        return torch.where(bends < self.delta, self.floor, 1.0)
