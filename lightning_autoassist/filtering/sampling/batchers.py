"""Kept instances that wait until enough of them stand for a batch: so many, or so many tokens.

Shapes: B batch, n instances of a piece, C lengths of an instance (such as source and target), F features, W width of a
row of tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.tokens import joined_rows
from lightning_autoassist.filtering.sampling.columns import Column, concatenate, packed, select, unpacked
from lightning_autoassist.trainer_support.arrays import IndexArray

PadValue: TypeAlias = "Callable[[str], float | None]"
# Kept instances are sorted by length among as many others as fill this many batches.
POOL_BATCHES = 32


class Piece(NamedTuple):
    """Kept instances.

    Attributes:
        numbers: Their positions in the data set, or which candidates of a stream they are, shape ``(n,)``, int64.
        probs: What they were kept with, shape ``(n,)``, float64.
        lengths: In tokens, shape ``(n, C)``, int64; None where nobody counts tokens.
        paths: Where each column of a stream's rows stands in their batch.
        columns: The rows, as their batch's form has them.
        features: Of a stream's rows, shape ``(n, F)``, or rows of tokens, shape ``(n, W)``, or None.
    """

    numbers: IndexArray
    probs: npt.NDArray[np.float64]
    lengths: npt.NDArray[np.int64] | None = None
    paths: Sequence[str] = ()
    columns: Sequence[Column] = ()
    features: Tensor | None = None

    def rows(self, chosen: npt.NDArray[np.int64]) -> Piece:
        """A copy of some instances, by their places."""
        return Piece(
            self.numbers[chosen],
            self.probs[chosen],
            None if self.lengths is None else self.lengths[chosen],
            self.paths,
            [select(column, chosen) for column in self.columns],
            None if self.features is None else self.features.index_select(0, torch.from_numpy(chosen)),
        )

    def part(self, start: int, end: int) -> Piece:
        """The instances from one place up to another; arrays are not copied where there are no columns."""
        if self.columns:
            return self.rows(np.arange(start, end))
        lengths = None if self.lengths is None else self.lengths[start:end]
        return Piece(self.numbers[start:end], self.probs[start:end], lengths)

    def packed(self) -> list[Any]:
        """The piece as tensors and builtins, for a checkpoint.

        Raises:
            TypeError: If a column holds other objects.
        """
        arrays = [None if array is None else torch.from_numpy(array) for array in self[:3]]
        return [*arrays, list(self.paths), [packed(column) for column in self.columns], self.features]

    @classmethod
    def unpacked(cls, state: list[Any]) -> Piece:
        """The piece that :meth:`packed` was called on."""
        *arrays, paths, columns, features = state
        numbers, probs, lengths = (None if array is None else array.numpy().copy() for array in arrays)
        assert numbers is not None
        assert probs is not None
        return cls(numbers, probs, lengths, paths, [unpacked(column) for column in columns], features)


def join_pieces(pieces: Sequence[Piece], pad_value: PadValue) -> Piece:
    """The instances of some pieces of one kind, one after the other.

    Args:
        pieces: At least one.
        pad_value: Gets a path, says what its column is padded with; None: never padded.
    """
    first = pieces[0]
    if len(pieces) == 1:
        return first
    columns = zip(first.paths, *(piece.columns for piece in pieces), strict=True)
    lengths = [piece.lengths for piece in pieces if piece.lengths is not None]
    features = [piece.features for piece in pieces if piece.features is not None]
    return Piece(
        np.concatenate([piece.numbers for piece in pieces]),
        np.concatenate([piece.probs for piece in pieces]),
        np.concatenate(lengths) if lengths else None,
        first.paths,
        [concatenate(parts, pad_value(path)) for path, *parts in columns],
        _joined_features(features) if len(features) == len(pieces) else None,
    )


def _joined_features(parts: list[Tensor]) -> Tensor | None:
    if not parts[0].is_floating_point():  # rows of tokens
        return joined_rows(parts)
    return torch.cat(parts) if len({part.shape[1] for part in parts}) == 1 else None


class Batcher:
    """Kept instances in the order in which they were kept, by their kind: only those of one kind share a batch.

    Attributes:
        pad_value: Gets the path of a stream's column, says what it is padded with; None: never padded.
    """

    def __init__(self) -> None:
        self.pad_value: PadValue = _never
        self._pieces: dict[str, deque[Piece]] = {}

    @property
    def kinds(self) -> set[str]:
        """The kinds of which some instances wait."""
        return set(self._pieces)

    @property
    def next_kinds(self) -> set[str]:
        """The kinds of which there may be a batch before more instances are added."""
        return self.kinds

    @property
    def num_waiting(self) -> int:
        """How many instances wait for a batch to be complete."""
        return sum(map(_size, chain.from_iterable(self._pieces.values())))

    @property
    def waiting(self) -> IndexArray:
        """Which instances wait."""
        return np.concatenate([np.empty(0, np.int64), *(piece.numbers for piece in self._all())])

    def add(self, kind: str, piece: Piece) -> None:
        """Let instances wait after all others of their kind."""
        self._pieces.setdefault(kind, deque()).append(piece)

    def put_back(self, kind: str, piece: Piece) -> None:
        """Let instances wait before all others of their kind."""
        self._pieces.setdefault(kind, deque()).appendleft(piece)

    def take(self) -> tuple[str, Piece] | None:
        """The instances of the next batch and their kind; None where no batch is complete."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What waits, as tensors and builtins.

        Raises:
            TypeError: If a column holds other objects.
        """
        pieces = [[kind, [piece.packed() for piece in pieces]] for kind, pieces in self._pieces.items()]
        return {"pieces": pieces}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._pieces = {kind: deque(map(Piece.unpacked, pieces)) for kind, pieces in state["pieces"]}

    def _all(self) -> Iterator[Piece]:
        return chain.from_iterable(self._pieces.values())


class FixedSizeBatcher(Batcher):
    """Batches of a fixed number of instances.

    Args:
        batch_size: B; 0 while nobody knows it, and no batch is complete.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self._latest = ""  # the kind that was added to last: no other has a batch

    @property
    @override
    def next_kinds(self) -> set[str]:
        return {self._latest} & self.kinds

    @override
    def add(self, kind: str, piece: Piece) -> None:
        super().add(kind, piece)
        self._latest = kind

    @override
    def take(self) -> tuple[str, Piece] | None:
        waiting = self._pieces.get(self._latest)
        if waiting is None or not 0 < self.batch_size <= sum(map(_size, waiting)):
            return None
        taken: list[Piece] = []
        missing = self.batch_size
        while missing:
            piece = waiting.popleft()
            num_rows = len(piece.numbers)
            if num_rows > missing:  # the rest keeps its width, whatever these rows are padded to
                waiting.appendleft(piece.part(missing, num_rows))
                piece = piece.part(0, missing)
            taken.append(piece)
            missing -= len(piece.numbers)
        if not waiting:
            del self._pieces[self._latest]
        return self._latest, join_pieces(taken, self.pad_value)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "latest": self._latest}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._latest = state["latest"]


class TokenBatcher(Batcher):
    """Batches of instances of similar length, each of at most so many tokens, padding included.

    Kept instances gather in a pool. Once it is full it is sorted by length (by the longest of C, then by their sum,
    ties in random order) and cut into batches, each as far as the next instance still fits; the batches are drawn in
    random order. What is left at the last cut goes back to the pool.

    Args:
        max_tokens: Most tokens in a batch. An instance that is longer is a batch of its own.
        pool_tokens: Tokens above which the pool is full, at least ``max_tokens``.
        rng: Of ties and orders.

    Attributes:
        pool_size: Instances from which on the pool is full, too.
        trimmed: Takes away padding that none of some instances needs.
    """

    def __init__(self, max_tokens: int, pool_tokens: float, rng: np.random.Generator) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.pool_size = float("inf")
        self.trimmed: Callable[[Piece], Piece] = _as_it_is
        self._pool_tokens = pool_tokens
        self._rng = rng
        self._tokens: dict[str, int] = {}  # of the pool, by kind
        self._ready: deque[tuple[str, Piece]] = deque()  # cut, and waiting for their turn

    @property
    @override
    def next_kinds(self) -> set[str]:
        return self.kinds | {kind for kind, _ in self._ready}

    @override
    def add(self, kind: str, piece: Piece) -> None:
        super().add(kind, piece)
        self._count(kind, piece)

    @override
    def put_back(self, kind: str, piece: Piece) -> None:
        super().put_back(kind, piece)
        self._count(kind, piece)

    @override
    def take(self) -> tuple[str, Piece] | None:
        if not self._ready and not self._cut():
            return None
        return self._ready.popleft()

    def _count(self, kind: str, piece: Piece) -> None:
        self._tokens[kind] = self._tokens.get(kind, 0) + _num_tokens(piece)

    def _cut(self) -> bool:
        """Cut what waits of one kind into batches, and leave what fills none; False where the pool is not full."""
        is_full = sum(self._tokens.values()) > self._pool_tokens or self.num_waiting >= self.pool_size
        kind = max(self._tokens, key=self._tokens.__getitem__, default="")
        if not is_full or self._tokens[kind] <= self.max_tokens:
            return False
        del self._tokens[kind]
        piece = join_pieces(self._pieces.pop(kind), self.pad_value)
        assert piece.lengths is not None
        # From the short or from the long end, by chance: an instance at an end would else be left over for ever.
        sign = -1 if self._rng.random() < 0.5 else 1
        ties = self._rng.random(len(piece.numbers))
        # By the longer of source and target first: on pairs this pads less than by their sum, or by either.
        order = np.lexsort((ties, sign * piece.lengths.sum(1), sign * piece.lengths.max(1)))
        cuts = _cuts(piece.lengths[order], self.max_tokens)
        batches = [self.trimmed(piece.rows(order[start:end])) for start, end in pairwise(cuts)]
        self._ready.extend((kind, batches[place]) for place in self._rng.permutation(len(batches)))
        if cuts[-1] < len(order):
            self.add(kind, self.trimmed(piece.rows(order[cuts[-1] :])))
        return True

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ready": [[kind, piece.packed()] for kind, piece in self._ready]}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._tokens = {kind: sum(map(_num_tokens, pieces)) for kind, pieces in self._pieces.items()}
        self._ready = deque((kind, Piece.unpacked(piece)) for kind, piece in state["ready"])

    @override
    def _all(self) -> Iterator[Piece]:
        return chain((piece for _, piece in self._ready), super()._all())


def _cuts(lengths: npt.NDArray[np.int64], max_tokens: int) -> list[int]:
    """Where batches begin and end, from 0 on: each as far as the next instance still fits, the last that is full."""
    cuts, start = [0], 0
    while True:
        # No batch can be longer than one of its shortest instance's like; the window need not reach further.
        window = lengths[start : start + max_tokens // int(lengths[start:].sum(1).min(initial=max_tokens)) + 1]
        padded = np.maximum.accumulate(window, axis=0).sum(1) * np.arange(1, len(window) + 1)
        fitting = max(1, int(np.searchsorted(padded, max_tokens, side="right")))
        if start + fitting >= len(lengths):
            return cuts
        start += fitting
        cuts.append(start)


def _size(piece: Piece) -> int:
    return len(piece.numbers)


def _num_tokens(piece: Piece) -> int:
    assert piece.lengths is not None
    return int(piece.lengths.sum())


def _never(path: str) -> None:
    return None


def _as_it_is(piece: Piece) -> Piece:
    return piece
