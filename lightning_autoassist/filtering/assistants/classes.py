"""Classes of instances, as Assistants index them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.instances import Instances


def class_indices(instances: Instances, count: int, most: int) -> Tensor:
    """A class of each instance, below ``most``: 0 where there are no labels, -1 where one is unknown or no class."""
    if instances.labels is None:
        return torch.zeros(count, dtype=torch.long)
    return (instances.labels.long() % most).where(instances.labels >= 0, -1)
