"""Rows of what is remembered, for indices as samplers give them.

Shapes: N data set, n candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Memory grows with the data set, up to the larger of so many times N, and so many rows (38 bytes and features each).
MOST_TIMES = 16
MOST_ROWS = 2**20


def rows_of(indices: Tensor, num_instances: int) -> tuple[Tensor, int]:
    """Rows for indices, and how many rows there must be.

    Negative indices count from the end, as those of a list do.

    Args:
        indices: As the sampler gave them, shape ``(n,)``, int64.
        num_instances: N, when training began.

    Returns:
        Rows, shape ``(n,)``, int64, and the least number of rows that has them all.

    Raises:
        IndexError: If an index lies so far outside of the data set that a row for it would take too much memory.

    Example:
        >>> rows_of(torch.tensor([0, -1, 12]), 10)
        (tensor([ 0,  9, 12]), 13)
    """
    if not len(indices):
        return indices, 0
    array = indices.numpy()
    low, high = int(array.min()), int(array.max())
    if low < -num_instances or high >= max(MOST_TIMES * num_instances, MOST_ROWS):
        outside = low if low < -num_instances else high
        raise IndexError(
            f"the sampler gave the index {outside}, the data set had {num_instances} instances when training began; "
            "what is remembered of an instance is found by its index, which should lie between 0 and the data set's "
            "length"
        )
    return indices if low >= 0 else torch.where(indices < 0, indices + num_instances, indices), high + 1


def padded(column: Tensor, num_rows: int, value: float = 0) -> Tensor:
    """A column with rows of ``value`` added at its end.

    Example:
        >>> padded(torch.tensor([1, 2]), 3)
        tensor([1, 2, 0])
    """
    wider = column.new_full((num_rows, *column.shape[1:]), value)
    wider[: len(column)] = column
    return wider


class GrowingRows:
    """Base of the instance store: finds rows, and adds rows for instances that the data set got since.

    Attributes:
        num_instances: N, when training began.
    """

    num_instances: int

    def __len__(self) -> int:
        """Rows there are."""
        raise NotImplementedError

    def places(self, indices: Tensor) -> Tensor:
        """Rows for indices as the sampler gave them; makes room for instances that the data set got since.

        Args:
            indices: Shape ``(n,)``, int64; negative ones count from the end.

        Raises:
            IndexError: If a row for an index would take too much memory.
            ValueError: If room is needed in a feature file.
        """
        places, num_rows = rows_of(indices, self.num_instances)
        if num_rows > len(self):
            self._grow(max(num_rows, len(self) + len(self) // 4))
        return places

    def _grow(self, num_rows: int) -> None:
        """Have so many rows."""
        raise NotImplementedError
