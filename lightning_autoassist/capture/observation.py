"""What a watched training step said about its instances.

Shapes: B batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class InstanceLosses(NamedTuple):
    """What one step said about its instances: complete when backward has run.

    Attributes:
        losses: Unweighted losses, shape ``(B,)``, float32, detached, on the model's device.
        scores: Scores, shape ``(B,)``, float32, detached; of a large cross-entropy NaN until backward has run.
        labels: The captured loss's target where it is one class an instance, shape ``(B,)``, int64, else None; of a
            binary loss -1 between the classes.
        source: Which call they come from, as "cross_entropy at train.py:31".
        margins: Where they were asked for, and one loss is a classification: the label's logit less the largest other
            one, the mean over an instance's rows, shape ``(B,)``, float32, detached; NaN where no row counts.
        others: The class with the largest other logit, shape ``(B,)``, int64, or -1; where the target is one label of
            each instance.
    """

    losses: Tensor
    scores: Tensor
    labels: Tensor | None
    source: str
    margins: Tensor | None = None
    others: Tensor | None = None

    def plain(self) -> InstanceLosses:
        """This observation in plain tensors: subclasses of tensors, such as MONAI's, may forbid later operations."""
        if all(type(value) is Tensor or not isinstance(value, Tensor) for value in self):
            return self
        tensors: dict[str, Any] = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        return self._replace(**{name: value.as_subclass(Tensor) for name, value in tensors.items()})
