"""Kept rows of a stream that wait until enough of their kind stand for a batch.

Shapes: n rows of a piece, F features, W width of a row of tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.tokens import joined_rows
from lightning_autoassist.filtering.sampling.columns import Column, concatenate, packed, select, unpacked
from lightning_autoassist.trainer_support.arrays import IndexArray


class Piece(NamedTuple):
    """Kept rows of one batch of the loader.

    Attributes:
        columns: As the batch's form has them.
        numbers: Which candidates of the stream they are, shape ``(n,)``, int64.
        probs: What they were kept with, shape ``(n,)``, float64.
        features: Shape ``(n, F)``, or rows of tokens, shape ``(n, W)``, or None.
    """

    columns: list[Column]
    numbers: IndexArray
    probs: npt.NDArray[np.float64]
    features: Tensor | None

    def rows(self, chosen: npt.NDArray[np.int64]) -> Piece:
        """Some of the rows, by their places, copied."""
        features = None if self.features is None else self.features.index_select(0, torch.from_numpy(chosen))
        columns = [select(column, chosen) for column in self.columns]
        return Piece(columns, self.numbers[chosen], self.probs[chosen], features)

    def packed(self) -> list[Any]:
        """The piece as tensors and builtins, for a checkpoint.

        Raises:
            TypeError: If a column holds other objects.
        """
        columns = [packed(column) for column in self.columns]
        return [columns, torch.from_numpy(self.numbers), torch.from_numpy(self.probs), self.features]

    @classmethod
    def unpacked(cls, state: list[Any]) -> Piece:
        """What :meth:`packed` was called on."""
        columns, numbers, probs, features = state
        return cls([unpacked(column) for column in columns], numbers.numpy(), probs.numpy(), features)


class WaitingRows:
    """Rows in the order in which they were kept, by their kind."""

    def __init__(self) -> None:
        self._pieces: dict[str, deque[Piece]] = {}

    def __len__(self) -> int:
        """How many kinds of rows wait."""
        return len(self._pieces)

    def __contains__(self, kind: str) -> bool:
        return kind in self._pieces

    def count(self, kind: str) -> int:
        """How many rows of a kind wait."""
        return sum(len(piece.numbers) for piece in self._pieces.get(kind, ()))

    def add(self, kind: str, piece: Piece) -> None:
        """Let rows wait after all others of their kind."""
        self._pieces.setdefault(kind, deque()).append(piece)

    def put_back(self, kind: str, piece: Piece) -> None:
        """Let rows wait before all others of their kind."""
        self._pieces.setdefault(kind, deque()).appendleft(piece)

    def take(self, kind: str, size: int) -> list[Piece]:
        """The first ``size`` rows of a kind, of which at least as many must wait."""
        waiting = self._pieces[kind]
        taken: list[Piece] = []
        missing = size
        while missing:
            piece = waiting.popleft()
            num_rows = len(piece.numbers)
            if num_rows > missing:  # the rest keeps its width, whatever these rows are padded to
                waiting.appendleft(piece.rows(np.arange(missing, num_rows)))
                piece = piece.rows(np.arange(missing))
            taken.append(piece)
            missing -= len(piece.numbers)
        if not waiting:
            del self._pieces[kind]
        return taken

    def packed(self) -> list[Any]:
        """All rows as tensors and builtins, for a checkpoint.

        Raises:
            TypeError: If a column holds other objects.
        """
        return [[kind, [piece.packed() for piece in pieces]] for kind, pieces in self._pieces.items()]

    def restore(self, state: list[Any]) -> None:
        """Restore :meth:`packed`."""
        self._pieces = {kind: deque(map(Piece.unpacked, pieces)) for kind, pieces in state}


def join_pieces(pieces: list[Piece], paths: Sequence[str], pad_value: Callable[[str], float | None]) -> Piece:
    """The rows of some pieces of one kind, one after the other.

    Args:
        pieces: At least one.
        paths: Where each column stands in the batch.
        pad_value: Gets a path, says what its column is padded with; None: never padded.
    """
    columns = [
        concatenate(parts, pad_value(path))
        for path, parts in zip(paths, zip(*(piece.columns for piece in pieces), strict=True), strict=True)
    ]
    features = [piece.features for piece in pieces if piece.features is not None]
    return Piece(
        columns,
        np.concatenate([piece.numbers for piece in pieces]),
        np.concatenate([piece.probs for piece in pieces]),
        _joined_features(features) if len(features) == len(pieces) else None,
    )


def _joined_features(parts: list[Tensor]) -> Tensor | None:
    if not parts[0].is_floating_point():  # rows of tokens
        return joined_rows(parts)
    return torch.cat(parts) if len({part.shape[1] for part in parts}) == 1 else None
