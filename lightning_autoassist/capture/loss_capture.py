"""Per-instance losses and scores out of training steps that return one number each: what is kept from step to step.

What happens in one step is in ``captured_step.py``.

Shapes: B batch, R rows of a loss (B, or a multiple of it).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_autoassist.capture.attribution import WHOLE_SHARE, Attribution, Share
from lightning_autoassist.capture.captured_loss import Explanation, WeightedLoss
from lightning_autoassist.capture.captured_step import CapturedStep
from lightning_autoassist.capture.direct_loss import DirectLoss
from lightning_autoassist.capture.instance_layout import ROW_ORDERS, RowOrders
from lightning_autoassist.capture.messages import on_hand_written, on_share
from lightning_autoassist.capture.own_labels import OwnLabels
from lightning_autoassist.capture.row_order import RowChecks

SCORES = ("gradient_norm", "loss")


class InstanceLossCapture:
    """Finds the per-instance losses of training steps. One object a run, one :meth:`step` a training step.

    The score of an instance is the norm of its loss's gradient at the loss's input (for cross-entropy
    ‖softmax - target‖), which bounds the norm of its whole gradient up to a constant. It depends neither on the
    reduction nor on B, gradient accumulation, loss scaling or weights: it is computed in the forward pass or, where a
    cross-entropy has many logits, read off the gradient that backward computes.

    Source: Katharopoulos & Fleuret, Not All Samples Are Created Equal, ICML 2018, arXiv:1803.00942.

    Args:
        score: ``"gradient_norm"`` or ``"loss"``.
        row_order: Which rows of a loss over R = B·T rows are whose: ``"batch_major"``: the T rows of one instance
            are adjacent; ``"time_major"``: row j is of instance j mod B, as after ``torch.cat`` of two views;
            ``"auto"``: told by the shape before flattening or by the batch's own targets, else not guessed.

    Attributes:
        has_other_terms: Whether, in the first steps, parameters reached the returned loss by another way than the
            losses that were found, as by an L2 term. Weights do not enter there.
        share: How much of the last step's loss was captured, by its gradients at the network's last layers in the
            first such steps, and what was missed.
        is_share_told: Whether :meth:`note_on_share` gave its note.
        explain: Called with what each step's observation is made of, if not None. It waits for the device.

    Raises:
        ValueError: If ``score`` or ``row_order`` is not one of these.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3])
        >>> capture = InstanceLossCapture(score="loss")
        >>> with capture.step((logits, target), batch_size=2) as step:
        ...     loss = torch.nn.functional.cross_entropy(logits, target)
        >>> step.observe(loss).losses
        tensor([1.3863, 1.3863])
    """

    def __init__(self, score: str = "gradient_norm", row_order: str = "auto") -> None:
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        if row_order not in ROW_ORDERS:
            raise ValueError(f"row_order must be one of {', '.join(ROW_ORDERS)}, got {row_order!r}")
        self.score = score
        self.row_order = row_order
        self.has_other_terms = False
        self.share = Share()
        self.is_share_told = False
        self.explain: Callable[[list[Explanation]], None] | None = None
        self.own_labels = OwnLabels()
        self._row_orders = RowOrders(row_order)
        self._row_checks = RowChecks()
        self._attribution = Attribution()
        self._direct = DirectLoss()
        self._is_warned = False

    def step(
        self,
        batch: Any,
        batch_size: int,
        *,
        weights: Tensor | None = None,
        module: nn.Module | None = None,
        margins: bool = False,
    ) -> CapturedStep:
        """Watch one training step.

        Args:
            batch: What the step is given.
            batch_size: B.
            weights: Shape ``(B,)``, on the model's device: instance i's gradient is multiplied by ``weights[i]``;
                the loss keeps its value. None leaves everything as it is, bit for bit.
            module: The module whose step it is, for its ``instance_loss`` method and for messages.
            margins: Whether the observation tells the margins of a classification, and its strongest other classes.

        Returns:
            A context manager for the step.
        """
        return CapturedStep(self, batch, batch_size, weights, module, margins)

    def note_on_share(self) -> str | None:
        """For the user, once, if more than a tenth of the loss was missed; None: there is nothing to be said."""
        if self.is_share_told or self.share.ratio >= WHOLE_SHARE:
            return None
        self.is_share_told = True
        return on_share(self.share)

    def warn_of_hand_written(self, parts: Sequence[WeightedLoss]) -> None:
        """Tell the user once where all of a step's losses are guesses from the shapes of what is reduced."""
        if not self._is_warned and all(part.found.is_by_hand for part in parts):
            self._is_warned = True
            warnings.warn(on_hand_written(parts[0].found.source), stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """What the first steps showed, as builtins."""
        return {
            **self._attribution.state_dict(),
            "untold_rows": self._row_orders.state_dict(),
            "has_other_terms": self.has_other_terms,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._attribution.load_state_dict(state)
        self._row_orders.load_state_dict(state["untold_rows"])
        self.has_other_terms = state["has_other_terms"]
