"""What a watched training step said about its instances.

Shapes: B batch.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class InstanceLosses(NamedTuple):
    """What one step said about its instances: complete when backward has run.

    Attributes:
        losses: Unweighted losses, shape ``(B,)``, float32, detached, on the model's device.
        scores: Scores, shape ``(B,)``, float32, detached; of a large cross-entropy NaN until backward has run.
        labels: The captured loss's target where it is integer and has shape ``(B,)``, int64, else None.
        source: Which call they come from, as "cross_entropy at train.py:31".
    """

    losses: Tensor
    scores: Tensor
    labels: Tensor | None
    source: str

    def plain(self) -> InstanceLosses:
        """This observation in plain tensors: subclasses of tensors, such as MONAI's, may forbid later operations."""
        if type(self.losses) is Tensor and type(self.scores) is Tensor and type(self.labels) in (Tensor, type(None)):
            return self
        losses, scores = self.losses.as_subclass(Tensor), self.scores.as_subclass(Tensor)
        labels = None if self.labels is None else self.labels.as_subclass(Tensor)
        return self._replace(losses=losses, scores=scores, labels=labels)
