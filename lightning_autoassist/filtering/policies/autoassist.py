"""The paper's rule."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.base import NO_FLOOR, Policy
from lightning_autoassist.trainer_support.arguments import check_flag, check_number


class AutoAssistPolicy(Policy):
    r"""The paper's rule, :math:`p_i = \gamma + (1 - \gamma)\,a_i`.

    With ``confidence_gate`` the floor is :math:`\max(\gamma, 1 - \text{EMA of the Assistant's accuracy})`, as in the
    paper's translation experiments: an Assistant that is often wrong filters little.

    **What shifts.** Nothing is corrected, as published: classes that are hard to learn count for more than their share.
    On rare classes F1 rises largely because the threshold moves; average precision may fall. With
    ``reweighting="inverse_probability"`` nothing shifts.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        gamma: Floor on the keep probability, in (0, 1].
        confidence_gate: Raise the floor while the Assistant errs.
        accuracy_decay: Decay of the running mean of the accuracy, per batch, in [0, 1).

    Raises:
        ValueError: If ``gamma`` or ``accuracy_decay`` lies outside its range.

    Example:
        >>> import torch
        >>> AutoAssistPolicy(gamma=0.3).keep_probability(torch.tensor([0.0, 1.0]))
        tensor([0.3000, 1.0000])
    """

    default_assistant = "logistic"
    default_score = "loss"

    def __init__(self, gamma: float = 0.3, confidence_gate: bool = False, accuracy_decay: float = 0.95) -> None:
        self.gamma = check_number("gamma", gamma, "(0, 1]", f"{NO_FLOOR}, try 0.3")
        self.keeps_everything = self.gamma == 1
        self.confidence_gate = check_flag("confidence_gate", confidence_gate)
        self.accuracy_decay = check_number("accuracy_decay", accuracy_decay, "[0, 1)", "the paper uses 0.95")
        self.accuracy = 0.0  # nothing predicted yet: the gate starts fully open

    @property
    def floor(self) -> float:
        """The floor in force, in (0, 1]."""
        return max(self.gamma, 1 - self.accuracy) if self.confidence_gate else self.gamma

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return self.floor + (1 - self.floor) * scores.clamp(0, 1)

    @override
    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        correct = ((predictions > 0.5) == targets).float().mean().item()
        self.accuracy = self.accuracy_decay * self.accuracy + (1 - self.accuracy_decay) * correct

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracy = float(state["accuracy"])
