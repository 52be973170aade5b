"""Classes of instances: their indices, and what is known of each class.

Shapes: n candidates, B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.filtering.memory.instances import Instances

# Labels beyond this number are hashed ids, and no classes.
MAX_CLASSES = 65_536


def class_indices(instances: Instances, count: int, most: int) -> Tensor:
    """The class of each instance, below ``most``, shape ``(n,)``, int64.

    Without labels every class is 0. The class is -1 where the label is unknown or is no class.

    Args:
        instances: n of them.
        count: n.
        most: The number of classes; labels beyond it are taken modulo this number.
    """
    if instances.labels is None:
        return torch.zeros(count, dtype=torch.long)
    return (instances.labels.long() % most).where(instances.labels >= 0, -1)


class ClassMeans:
    """Mean of a quantity for each class over the last batches, each of which counts less than the next.

    Args:
        decay: What a batch's weight falls by from one batch to the next, in [0, 1).

    Example:
        >>> means = ClassMeans(decay=0.9)
        >>> means.update(torch.tensor([0, 0, 1]), torch.tensor([1.0, 3.0, 8.0]))
        >>> means.of(torch.tensor([0, 1, 5]))  # a class that was never seen gets the mean of all
        tensor([2., 8., 4.])
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.sums = torch.zeros(0)  # (C,); grows as classes turn up
        self.counts = torch.zeros(0)

    def state_dict(self) -> dict[str, Tensor]:
        """Decayed sums and counts of the classes, shape ``(C,)``."""
        return {"sums": self.sums.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore :meth:`state_dict`."""
        self.sums, self.counts = state["sums"].clone(), state["counts"].clone()

    def of(self, classes: Tensor) -> Tensor:
        """The means of classes, shape ``(n,)``."""
        total = float(self.counts.sum())
        overall = float(self.sums.sum()) / total if total else 0.0
        means = torch.where(self.counts > 0, self.sums / self.counts.clamp(min=1e-30), overall)
        means = F.pad(means, (0, 1), value=overall)  # the last entry stands for every class not seen yet, and for none
        return means[classes.clamp(max=len(self.counts)).where(classes >= 0, len(self.counts))]

    def update(self, classes: Tensor, values: Tensor) -> None:
        """Take a batch's values, shape ``(B,)``, into the means; a negative class is none, and is left out."""
        has_class = classes >= 0
        classes, values = classes[has_class], values[has_class]
        if not len(classes):
            return
        missing = int(classes.max()) + 1 - len(self.counts)
        if missing > 0:
            self.sums, self.counts = F.pad(self.sums, (0, missing)), F.pad(self.counts, (0, missing))
        self.sums = (self.sums * self.decay).index_add_(0, classes, values)
        self.counts = (self.counts * self.decay).index_add_(0, classes, torch.ones_like(values))
