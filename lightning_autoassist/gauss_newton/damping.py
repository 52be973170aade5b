"""Levenberg-Marquardt damping: more where the loss falls less than its quadratic model says, less where it agrees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Where the actual reduction is below / above these shares of the predicted one.
LOW, HIGH = 0.25, 0.75
RAISE, LOWER = 4.0, 1 / 3
BOUNDS = (1e-8, 1e8)


class Judgement(NamedTuple):
    """What became of a trial step.

    Attributes:
        damping: For the next step, relative to the mean of K's diagonal.
        is_accepted: Whether the step is made; a tensor without dimensions.
    """

    damping: Tensor
    is_accepted: Tensor


def judge(damping: Tensor, before: Tensor, after: Tensor, predicted: Tensor) -> Judgement:
    """Compare a step's reduction of the loss with that of the quadratic model. Does not wait for the device.

    Source: Levenberg, 1944; Marquardt, 1963; the bounds as in Martens, Deep Learning via Hessian-Free Optimization,
    ICML 2010.

    Args:
        damping: Now.
        before: The loss before the step.
        after: With the step.
        predicted: What the model says of before - after.

    Example:
        >>> judge(*torch.tensor([1.0, 8.0, 2.0, 6.0]))
        Judgement(damping=tensor(0.3333), is_accepted=tensor(True))
        >>> judge(*torch.tensor([1.0, 8.0, 9.0, 6.0]))
        Judgement(damping=tensor(4.), is_accepted=tensor(False))
    """
    ratio = (before - after) / predicted
    rounding = 8 * torch.finfo(before.dtype).eps * before.abs()
    is_accepted = torch.isfinite(after) & (after <= before + rounding)
    factor = torch.where(ratio > HIGH, LOWER, torch.where(ratio >= LOW, 1.0, RAISE))
    # A model that promises nothing, as at the minimum, tells nothing either.
    factor = torch.where(is_accepted & ~(predicted > rounding), 1.0, factor)
    factor = torch.where(is_accepted, factor, RAISE)
    return Judgement((damping * factor).clamp(*BOUNDS), is_accepted)
