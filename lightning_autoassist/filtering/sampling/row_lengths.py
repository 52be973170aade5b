"""Lengths of a stream's rows in tokens, and batches of them without padding that none of their rows needs.

Shapes: n rows of a batch, C lengths of a row (such as source and target), T width of a column.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_autoassist.filtering.sampling.batchers import PadValue, Piece
from lightning_autoassist.filtering.sampling.columns import Column
from lightning_autoassist.filtering.sampling.row_source import Fetched
from lightning_autoassist.filtering.sampling.token_lengths import length_array, longest_sequence


class RowLengths:
    """How long rows are, and which of a batch's columns are sequences that its loader has padded.

    A column is one where it has a value to be padded with and batches of different widths have come. What is padding at
    the end of it counts for nothing, and is cut off where no row of a batch needs it.

    Args:
        given: Gets a batch of the loader, returns the lengths of its rows, shape ``(n,)`` or ``(n, C)``. None: each
            row's longest sequence, without its padding.
        pad_value: Gets a column's path, says what it is padded with; None: never padded.
    """

    def __init__(self, given: Callable[[Any], Any] | None, pad_value: PadValue) -> None:
        self._given = given
        self._pad_value = pad_value
        self._widths: dict[str, int] = {}  # of each column that may be one; 0 once there were several

    def of(self, fetched: Fetched) -> npt.NDArray[np.int64]:
        """Lengths of the rows of a batch, shape ``(n, C)``.

        Raises:
            ValueError: If there is not one for each row, or nothing tells them.
        """
        paths, columns = fetched.form.paths, fetched.columns
        for path, column in zip(paths, columns, strict=True):
            width = _width(column)
            if width and self._pad_value(path) is not None:
                self._widths[path] = width if self._widths.get(path, width) == width else 0
        lengths = length_array(self._longest(paths, columns) if self._given is None else self._given(fetched.batch))
        if len(lengths) != fetched.num_rows:
            raise ValueError(
                f"lengths= returned {len(lengths)} numbers for a batch of {fetched.num_rows} rows; for a stream it "
                "gets a batch of the loader, and returns a number for each of its rows"
            )
        return lengths

    def trimmed(self, piece: Piece) -> Piece:
        """Rows without the padding at the end that none of them needs; columns of one width stay of one width."""
        columns: list[Any] = list(piece.columns)
        places = [place for place, path in enumerate(piece.paths) if self._is_sequence(path)]
        needed: dict[int, int] = {}
        for place in places:
            width, lengths = _width(columns[place]), _lengths(columns[place], self._pad_value(piece.paths[place]))
            needed[width] = max(int(lengths.max(initial=1)), needed.get(width, 1))
        for place in places:  # copied: a view would keep, and save, all that was cut off
            width = _width(columns[place])
            if needed[width] < width:
                cut = columns[place][:, : needed[width]]
                columns[place] = cut.clone() if isinstance(cut, Tensor) else cut.copy()
        return piece._replace(columns=columns)

    def state_dict(self) -> dict[str, int]:
        """What was seen of the columns."""
        return dict(self._widths)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore :meth:`state_dict`."""
        self._widths = dict(state)

    def _is_sequence(self, path: str) -> bool:
        return self._widths.get(path) == 0

    def _longest(self, paths: Sequence[str], columns: Sequence[Column]) -> npt.NDArray[np.int64]:
        any_padded = any(map(self._is_sequence, paths))
        lengths = [
            _lengths(column, self._pad_value(path)) if self._is_sequence(path) else _own_lengths(column)
            for path, column in zip(paths, columns, strict=True)
            if self._is_sequence(path) or not any_padded
        ]
        found = [each for each in lengths if each is not None]
        if not found:
            raise ValueError(
                "nothing in the stream's batches says how long a row is; pass lengths=, a function that gets a batch "
                "and returns a number for each of its rows"
            )
        return np.max(found, axis=0)  # type: ignore[no-any-return]


def _width(column: Any) -> int:
    """T; 0 of a column that has none."""
    return 0 if isinstance(column, list) or column.ndim < 2 else column.shape[1]


def _own_lengths(column: Column) -> npt.NDArray[np.int64] | None:
    """Lengths of rows that are not padded; None where they have none."""
    if not isinstance(column, list):
        return np.full(len(column), _width(column)) if _width(column) else None
    try:
        return np.asarray([longest_sequence(row) for row in column])
    except ValueError:
        return None


def _lengths(column: Any, pad_value: float | None) -> npt.NDArray[np.int64]:
    """Widths of rows without the padding at their end, shape ``(n,)``."""
    is_token = (column != pad_value).reshape(len(column), column.shape[1], -1)
    used = is_token.any(-1).numpy(force=True) if isinstance(is_token, Tensor) else is_token.any(-1)
    places: npt.NDArray[np.int64] = np.where(used, np.arange(1, column.shape[1] + 1), 0).max(1, initial=0)
    return places
