"""Candidates by their positions in a data set, in the order of the user's sampler, pass after pass.

Shapes: N data set, n candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from lightning_autoassist.filtering.sampling.order_pieces import OrderInPieces, announce_epoch
from lightning_autoassist.filtering.sampling.pass_orders import pass_order
from lightning_autoassist.trainer_support.arrays import IndexArray


class IndexSource:
    """A sampler's order, in chunks that are never of two passes.

    Args:
        sampler: The candidates of one pass.
        num_instances: N.
        in_pieces: Whether an iteration of ``sampler`` is no pass, but read in pieces of which N candidates are one.
        usable: Gets an order, returns the part of it that can be used.

    Attributes:
        sampler: See above.
        pass_index: Number of the pass, from 0; -1 before the first.
    """

    def __init__(
        self,
        sampler: Iterable[int],
        num_instances: int,
        *,
        in_pieces: bool,
        usable: Callable[[IndexArray], IndexArray] | None = None,
    ) -> None:
        self.sampler = sampler
        self.pass_index = -1
        self._num_instances = num_instances
        self._usable = usable
        self._pieces = OrderInPieces(sampler) if in_pieces else None
        self._num_read = num_instances  # of the pass that is on, where it is read in pieces
        self._order: IndexArray = np.empty(0, np.int64)
        self._position = 0

    def read_from(self, sampler: Iterable[int]) -> None:
        """Take candidates from another sampler of the same length, from the next pass (or piece) on."""
        if self._pieces is not None and sampler is not self.sampler:
            self._pieces.read_from(sampler)
        self.sampler = sampler

    def next_chunk(self, size: int) -> IndexArray:
        """The next candidates, shape ``(n,)``, ``size`` or fewer; none where something has to be read first."""
        chunk = self._order[self._position : self._position + size]
        self._position += len(chunk)
        return chunk

    def read_on(self) -> None:
        """Read the next pass, or the next piece of it, once all candidates that were read have been taken."""
        if self._pieces is None:
            self.pass_index += 1
            self._order = np.empty(0, np.int64)  # so that two orders are never in memory
            announce_epoch(self.sampler, self.pass_index)
            self._order = pass_order(self.sampler, self._num_instances)
        else:
            self._order = self._next_piece(self._pieces)
        self._position = 0
        if not len(self._order):
            sampler = getattr(self.sampler, "given", self.sampler)
            raise RuntimeError(f"a pass of {type(sampler).__name__} has no instances; give every process some")
        if self._usable is not None:
            self._order = self._usable(self._order)

    def _next_piece(self, pieces: OrderInPieces) -> IndexArray:
        """The next piece of a pass, which ends after N candidates or with the sampler's iteration."""
        left = self._num_instances - self._num_read
        piece = pieces.read(left) if left > 0 else np.empty(0, np.int64)
        if not len(piece):
            self.pass_index += 1
            self._num_read = 0
            piece = pieces.read(self._num_instances)
            piece = piece if len(piece) else pieces.read(self._num_instances)  # the iteration ended with the pass
        self._num_read += len(piece)
        return piece

    def state_dict(self) -> dict[str, Any]:
        """The order of the pass and the place in it, as tensors and builtins."""
        pieces = {} if self._pieces is None else {"pieces": self._pieces.state_dict(), "num_read": self._num_read}
        order = {"order": torch.from_numpy(self._order), "position": self._position}
        return {"pass_index": self.pass_index, **order, **pieces}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.pass_index = state["pass_index"]
        self._order = state["order"].numpy().copy()
        self._position = state["position"]
        if self._pieces is not None:
            self._pieces.load_state_dict(state["pieces"])
            self._num_read = state["num_read"]
