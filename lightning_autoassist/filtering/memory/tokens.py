"""Token ids of instances: as rows of a batch, as bags, and as what is remembered of a data set.

An instance has one sequence of tokens, or two (source and target). Of both, the bag holds *columns*: 2·id for a token
of the first sequence, 2·id + 1 for one of the second.

Shapes: N data set, B batch, n instances, W width of rows, m columns of all bags together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.index_rows import padded

NUM_SEQUENCES = 2
# Larger ids share those below, so that nothing that is kept a token grows without bound.
MAX_TOKENS = 2**20
NO_TOKEN = -1


class Tokens(NamedTuple):
    """Bags of tokens, one after the other.

    Attributes:
        columns: The distinct columns of each bag in rising order, shape ``(m,)``, int64.
        counts: How often each occurs, shape ``(m,)``, int64.
        sizes: Columns of each bag, shape ``(n,)``, int64.
    """

    columns: Tensor
    counts: Tensor
    sizes: Tensor

    @property
    def bags(self) -> Tensor:
        """Which bag each column belongs to, shape ``(m,)``, int64."""
        return torch.repeat_interleave(self.sizes)


def tokens_of(rows: Tensor) -> Tokens:
    """Bags of rows of columns.

    Args:
        rows: Shape ``(n, W)``, integer; negative where there is no token.

    Example:
        >>> tokens_of(torch.tensor([[8, 6, 8], [4, -1, -1]]))
        Tokens(columns=tensor([6, 8, 4]), counts=tensor([1, 2, 1]), sizes=tensor([2, 1]))
    """
    num_columns = NUM_SEQUENCES * MAX_TOKENS
    bags, places = (rows >= 0).nonzero(as_tuple=True)
    entries, counts = torch.unique(bags * num_columns + rows[bags, places], return_counts=True)
    return Tokens(entries % num_columns, counts, torch.bincount(entries // num_columns, minlength=len(rows)))


def joined_rows(parts: list[Tensor]) -> Tensor:
    """Rows of columns of several batches as one tensor, as wide as the widest.

    Example:
        >>> joined_rows([torch.tensor([[8, 6]]), torch.tensor([[4]])])
        tensor([[ 8,  6],
                [ 4, -1]])
    """
    width = max(part.shape[1] for part in parts)
    wide = parts[0].new_full((sum(map(len, parts)), width), NO_TOKEN)
    start = 0
    for part in parts:
        wide[start : start + len(part), : part.shape[1]] = part
        start += len(part)
    return wide


class TokenStore:
    """One bag for each of the N instances, on the CPU; empty where nothing was put.

    Takes 12 bytes an instance, and 6 bytes a distinct token; while more is put in, up to twice that.

    Args:
        num_instances: N.
    """

    def __init__(self, num_instances: int) -> None:
        self._starts = torch.zeros(num_instances, dtype=torch.int64)
        self._sizes = torch.zeros(num_instances, dtype=torch.int32)
        self._columns = torch.zeros(0, dtype=torch.int32)
        self._counts = torch.zeros(0, dtype=torch.int16)
        self._used = 0

    @property
    def num_bytes(self) -> int:
        """What it takes, without room for more."""
        return 12 * len(self._starts) + 6 * self._used

    def grow(self, num_instances: int) -> None:
        """Make room for more instances."""
        self._starts, self._sizes = padded(self._starts, num_instances), padded(self._sizes, num_instances)

    def rows(self, indices: Tensor) -> Tokens:
        """Bags of some instances, shape of ``indices`` ``(n,)``."""
        sizes = self._sizes.index_select(0, indices).long()
        # Of each bag's first column: its place in the pool, less its place in the answer.
        shifts = self._starts.index_select(0, indices) - (sizes.cumsum(0) - sizes)
        places = torch.repeat_interleave(shifts, sizes) + torch.arange(int(sizes.sum()))
        columns = self._columns.index_select(0, places).long()
        return Tokens(columns, self._counts.index_select(0, places).long(), sizes)

    def put(self, indices: Tensor, tokens: Tokens) -> None:
        """Remember the bags of instances that have none yet, each named once."""
        end = self._used + len(tokens.columns)
        if end > len(self._columns):
            self._columns = _wider(self._columns, self._used, 2 * end)
            self._counts = _wider(self._counts, self._used, 2 * end)
        self._columns[self._used : end] = tokens.columns.to(torch.int32)
        self._counts[self._used : end] = tokens.counts.clamp(max=torch.iinfo(torch.int16).max).to(torch.int16)
        self._starts[indices] = self._used + tokens.sizes.cumsum(0) - tokens.sizes
        self._sizes[indices] = tokens.sizes.to(torch.int32)
        self._used = end

    def state_dict(self) -> dict[str, Any]:
        """All bags, as tensors."""
        return {
            "starts": self._starts,
            "sizes": self._sizes,
            "columns": self._columns[: self._used].clone(),  # a view would be saved with all its room
            "counts": self._counts[: self._used].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._starts, self._sizes = state["starts"].clone(), state["sizes"].clone()
        self._columns, self._counts = state["columns"].clone(), state["counts"].clone()
        self._used = len(self._columns)


def _wider(pool: Tensor, used: int, size: int) -> Tensor:
    wider = pool.new_zeros(size)
    wider[:used] = pool[:used]
    return wider
