"""Policies: from an Assistant's predicted scores to the probability that a candidate is kept.

A policy is a pure rule over the scores of the candidates plus, where the rule says so, a little state that
:meth:`Policy.observe` updates. Adding one takes a class here and a line in :data:`POLICIES`.

Shapes: n candidates, B batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Policy:
    """Base class: keeps every candidate.

    Attributes:
        needs_scores: Whether the rule reads predicted scores. Where it does not, neither losses are captured nor an
            Assistant is trained.
        keeps_everything: Whether p is 1 for every candidate, always.
        default_score: What the Assistant learns to predict when the user does not say:
            ``"loss"`` or ``"gradient_norm"``.
        default_weights: ``"none"``, ``"sum"`` or ``"mean"``, see :class:`~lightning_autoassist.ShrinkingBatchSampler`.
    """

    needs_scores: bool = True
    keeps_everything: bool = False
    default_score: str = "gradient_norm"
    default_weights: str = "none"

    def keep_probability(self, scores: Tensor) -> Tensor:
        """Chance that each candidate enters a batch.

        Args:
            scores: The Assistant's predictions, shape ``(n,)``, float32.

        Returns:
            Probabilities in (0, 1], shape ``(n,)``, float32.
        """
        raise NotImplementedError

    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        """Learn from what the Boss's batch turned out to be.

        Args:
            predictions: What the Assistant had predicted for the batch, shape ``(B,)``.
            targets: Whether each instance was informative, bool, shape ``(B,)``.
        """

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and builtins."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


class AutoAssistPolicy(Policy):
    r"""The paper's rule, :math:`p_i = \gamma + (1 - \gamma)\,a_i`.

    With ``confidence_gate`` the floor is :math:`\max(\gamma, 1 - \text{EMA of the Assistant's accuracy})`, as in the
    paper's translation experiments: an Assistant that is often wrong filters little.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        gamma: Floor on the keep probability, in (0, 1].
        confidence_gate: Raise the floor while the Assistant errs.
        accuracy_decay: Decay of the running mean of the accuracy, per batch, in [0, 1).

    Raises:
        ValueError: If ``gamma`` or ``accuracy_decay`` lies outside its range.

    Example:
        >>> AutoAssistPolicy(gamma=0.3).keep_probability(torch.tensor([0.0, 1.0]))
        tensor([0.3000, 1.0000])
    """

    default_score = "loss"

    def __init__(self, gamma: float = 0.3, confidence_gate: bool = False, accuracy_decay: float = 0.95) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(
                f"gamma must be in (0, 1], got {gamma}; with no floor an instance can vanish for good, try 0.3"
            )
        if not 0 <= accuracy_decay < 1:
            raise ValueError(f"accuracy_decay must be in [0, 1), got {accuracy_decay}; the paper uses 0.95")
        self.gamma = gamma
        self.keeps_everything = gamma == 1
        self.confidence_gate = confidence_gate
        self.accuracy_decay = accuracy_decay
        self.accuracy = 0.0  # nothing predicted yet: the gate starts fully open

    @property
    def floor(self) -> float:
        """The floor in force, in (0, 1]."""
        return max(self.gamma, 1 - self.accuracy) if self.confidence_gate else self.gamma

    def keep_probability(self, scores: Tensor) -> Tensor:
        return self.floor + (1 - self.floor) * scores.clamp(0, 1)

    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        correct = ((predictions > 0.5) == targets).float().mean().item()
        self.accuracy = self.accuracy_decay * self.accuracy + (1 - self.accuracy_decay) * correct

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracy = float(state["accuracy"])


class UniformPolicy(Policy):
    """Keep every candidate: the same number of Boss updates as a filtered run, nothing selected.

    The strong baseline that every filter has to beat.

    Example:
        >>> UniformPolicy().keep_probability(torch.tensor([0.0, 1.0]))
        tensor([1., 1.])
    """

    needs_scores = False
    keeps_everything = True

    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores)


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
        if not 0 < keep_rate <= 1:
            raise ValueError(f"keep_rate must be in (0, 1], got {keep_rate}; 0.5 drops every second candidate")
        self.keep_rate = keep_rate
        self.keeps_everything = keep_rate == 1

    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.full_like(scores, self.keep_rate)


POLICIES: dict[str, type[Policy]] = {
    "autoassist": AutoAssistPolicy,
    "uniform": UniformPolicy,
    "random": RandomPolicy,
}
