"""Finds out what a collate function does to the order of the instances, and sends the finding with each batch.

Some sort their instances by length, some leave out those that could not be read. Then row i of the batch is not
instance i of those that were asked for. What was found comes out of the loader with the batch, workers or not.

Shapes: m instances that were asked for, n rows of the batch.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lightning_autoassist.capture.row_matching import Column, Match, columns_of, columns_of_instances, match
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.batch_parts import leaves_of
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state

# Orders that look alike by chance are one in a million: with that, and some batches, the order is known.
ENOUGH_BITS = 20.0
_FEWEST_BATCHES, _MOST_BATCHES = 3, 16


class Collated(NamedTuple):
    """A batch on its way out of the loader.

    Attributes:
        batch: As the user's collate function returned it.
        rows: Which of the instances asked for each row is, shape ``(n,)``; -1 where that is not known; None: row i is
            instance i.
        is_settled: Whether the process that made it need not look at the order again.
    """

    batch: Any
    rows: IndexArray | None
    is_settled: bool


class WatchedCollate:
    """The user's collate function, and a look at the order of what it returns.

    The first batches of each process are compared with their instances. Where nothing in them can be compared, each
    instance is also collated alone, with the global random generators restored. Later batches are looked at only where
    their rows are fewer than their instances, or where an earlier batch was in another order.

    Args:
        collate: The user's.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate
        self.is_settled = False
        self.reorders = False
        self._num_batches = 0
        self._bits = 0.0

    def __call__(self, instances: Any) -> Collated:
        """The batch that the user's function makes of some instances, with the order of its rows."""
        # Before the user's function: it may sort the list in place, or take fields out of the instances.
        before = list(instances) if isinstance(instances, (list, tuple)) else []
        watches = len(before) > 1 and (self.reorders or not self.is_settled)
        own = _quietly(columns_of_instances, [each for each in before if each is not None]) if watches else None
        batch = self.collate(instances)
        rows = None
        if batch is None:  # nothing could be read; Lightning passes on to the next batch
            rows = np.empty(0, np.int64)
        elif len(before) > 1:
            rows = _quietly(self._rows, before, own, batch)
        return Collated(batch, rows, self.is_settled)

    def learn(self, collated: Collated) -> None:
        """Take over what a worker found, so that those of later epochs know it from their start."""
        self.is_settled |= collated.is_settled
        self.reorders |= _is_reordered(collated.rows)

    def _rows(self, before: list[Any], own: list[Column] | None, batch: Any) -> IndexArray | None:
        num_rows = _num_rows(batch, len(before))
        if num_rows == len(before) and own is None:
            return None
        readable = np.flatnonzero([each is not None for each in before])
        if own is None:
            own = columns_of_instances([before[place] for place in readable])
        found = self._match(columns_of(batch, num_rows), own, [before[place] for place in readable])
        if num_rows == len(before):
            self._count(found)
        if found is None:
            if num_rows == len(before):
                return None
            if num_rows == len(readable):
                return readable
            return None if len(readable) == len(before) else np.full(num_rows, -1)
        if found.rows is None:
            self.reorders = True
            return np.full(num_rows, -1)
        rows: IndexArray = readable[found.rows]
        self.reorders |= _is_reordered(rows)
        return None if num_rows == len(before) and found.is_identity else rows

    def _match(self, rows: list[Column], own: list[Column], readable: list[Any]) -> Match | None:
        found = match(rows, own)
        if found is not None and found.rows is not None and (found.is_identity or found.is_certain):
            return found
        alone = match(rows, self._each_alone(readable))
        if alone is not None and (alone.is_identity or alone.is_certain):
            return alone
        # A few labels alone may be drawn anew: they count where they agree both times.
        return found if found is not None and alone is not None else None

    def _each_alone(self, instances: list[Any]) -> list[Column]:
        state = rng_state()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                alone = [columns_of(self.collate([instance]), 1) for instance in instances]
        except Exception:  # some functions need several instances
            return []
        finally:
            restore_rng_state(state)
        return [[column[0] for column in columns] for columns in zip(*alone, strict=False)]

    def _count(self, found: Match | None) -> None:
        self._num_batches += 1
        self._bits += 0.0 if found is None else found.bits
        is_known = self._num_batches >= _FEWEST_BATCHES and self._bits >= ENOUGH_BITS
        self.is_settled |= is_known or self._num_batches >= _MOST_BATCHES


def _quietly(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns; None where it fails: the user's batch must come out all the same."""
    try:
        return function(*args)
    except Exception:
        return None


def _is_reordered(rows: IndexArray | None) -> bool:
    """Whether rows are in another order than their instances; some may be left out."""
    return rows is not None and bool((np.diff(rows) <= 0).any())


def _num_rows(batch: Any, num_instances: int) -> int:
    """The number of rows n: m where some tensor has m rows, else the most frequent smaller size."""
    sizes = Counter[int]()
    for tensor in leaves_of(batch):
        if tensor.ndim and tensor.shape[0] == num_instances:
            return num_instances
        sizes.update(tensor.shape[:1])
    fewer = [size for size, _ in sizes.most_common() if size < num_instances]
    return fewer[0] if fewer else num_instances


def in_order_of(rows: IndexArray | None, draw: SelectedBatch) -> SelectedBatch:
    """A draw whose indices and weights are those of the batch's rows.

    Args:
        rows: Of :class:`Collated`.
        draw: As it was drawn.
    """
    if rows is None:
        return draw
    if (rows < 0).any() or len(rows) > len(draw.indices):
        return draw._replace(knows_rows=False, drawn=draw)
    weights = None if draw.weights is None else draw.weights[rows]
    probs = None if draw.probs is None else draw.probs[rows]
    return draw._replace(indices=draw.indices[rows], weights=weights, probs=probs, drawn=draw)
