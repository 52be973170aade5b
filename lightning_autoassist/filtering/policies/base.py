"""Policies: from an Assistant's predicted scores to the probability that a candidate is kept.

A policy is a pure rule over the scores of the candidates plus, where the rule says so, a little state that
:meth:`Policy.observe` updates. Adding one takes a class here and a line in :data:`POLICIES`.

Shapes: n candidates, B batch.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_autoassist.filtering.names import ReweightingName, ScoreName

MAX_CLASSES = 65_536
NO_FLOOR = "with no floor an instance can vanish for good"


class Policy:
    """Base class: keeps every candidate.

    Attributes:
        needs_scores: Whether the rule reads predicted scores. Where it does not, no Assistant is trained, and losses
            are captured only for weights to enter there.
        keeps_everything: Whether p is 1 for every candidate, always.
        reads_labels: Whether :meth:`balance` wants the candidates' labels.
        default_assistant: What predicts the scores when the user does not say: a name in ``ASSISTANTS``.
        default_score: What the Assistant learns to predict when the user does not say:
            ``"loss"`` or ``"gradient_norm"``.
        default_reweighting: ``"none"``, ``"inverse_probability"`` or ``"normalized"``, see
            :class:`~lightning_autoassist.ShrinkingBatchSampler`.
        default_unfiltered_tail: Share of training at whose end everything is kept.
    """

    needs_scores: bool = True
    keeps_everything: bool = False
    reads_labels: bool = False
    default_assistant: str = "memory"
    default_score: ScoreName = "gradient_norm"
    default_reweighting: ReweightingName = "none"
    default_unfiltered_tail: float = 0.0

    def prepare(self, num_candidates: int) -> None:
        """Learn how many candidates make a pass, before the first one is judged; streams do not tell.

        Args:
            num_candidates: N, of this process.
        """

    def keep_probability(self, scores: Tensor) -> Tensor:
        """Chance that each candidate enters a batch.

        Args:
            scores: The Assistant's predictions, shape ``(n,)``, float32.

        Returns:
            Probabilities in (0, 1], shape ``(n,)``, float32.
        """
        raise NotImplementedError

    def balance(self, probs: Tensor, labels: Tensor) -> Tensor:
        """The chances, balanced over classes; called where ``reads_labels`` says so and there are labels.

        Args:
            probs: What :meth:`keep_probability` gave, shape ``(n,)``.
            labels: Class labels, shape ``(n,)``, integer; negative where an instance has no class, or none is known.
        """
        return probs

    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        """Learn from what the model's batch turned out to be.

        Args:
            predictions: What the Assistant had predicted for the batch, shape ``(B,)``.
            targets: Whether each instance was informative, bool, shape ``(B,)``.
        """

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and builtins."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
