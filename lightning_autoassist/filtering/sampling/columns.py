"""Columns of rows: some rows of one, several one after the other, and their form in a checkpoint.

Shapes: n rows of a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Column: TypeAlias = "Tensor | npt.NDArray[Any] | list[Any]"
"""One row an instance: a tensor or an array of leading size n, or a list of n objects."""


def select(column: Column, rows: Sequence[int] | npt.NDArray[np.int64]) -> Column:
    """Some rows of a column, copied."""
    if isinstance(column, Tensor):
        return column.index_select(0, torch.as_tensor(rows, dtype=torch.long, device=column.device))
    if isinstance(column, np.ndarray):
        return column[np.asarray(rows, np.int64)]
    return [column[row] for row in rows]


def concatenate(columns: Sequence[Column], pad_value: float | None = None) -> Column:
    """One column after the other.

    Args:
        columns: All tensors, all arrays or all lists.
        pad_value: Where given, rows are filled up with it, at the end of each axis, to the widest.

    Example:
        >>> concatenate([torch.tensor([[1, 2, 3]]), torch.tensor([[4]])], pad_value=0)
        tensor([[1, 2, 3],
                [4, 0, 0]])
    """
    first = columns[0]
    if len(columns) == 1:
        return first
    if isinstance(first, list):
        return [row for column in columns for row in column]
    arrays = cast("Sequence[Tensor | npt.NDArray[Any]]", columns)
    if pad_value is not None:
        shape = [max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True)]
        arrays = [_padded(array, shape, pad_value) for array in arrays]
    if isinstance(first, Tensor):
        return torch.cat(cast("list[Tensor]", list(arrays)))
    return np.concatenate(cast("list[npt.NDArray[Any]]", list(arrays)))


def packed(column: Any) -> Any:
    """A column as tensors and builtins, for a checkpoint.

    Raises:
        TypeError: If its objects are something else.
    """
    if isinstance(column, Tensor):
        return column
    if isinstance(column, np.ndarray):
        if column.dtype.kind in "biufc":
            return {"array": torch.from_numpy(column), "dtype": column.dtype.str}
        return {"array": [packed(value) for value in column.tolist()], "dtype": column.dtype.str}
    if isinstance(column, (list, tuple)) and type(column) in (list, tuple):
        return {type(column).__name__: [packed(value) for value in column]}
    if type(column) is dict:
        return {"dict": [[packed(key), packed(value)] for key, value in column.items()]}
    if column is None or type(column) in (str, bytes, bool, int, float, complex):
        return column
    raise TypeError(f"a checkpoint holds tensors and builtins, this is a {type(column).__name__}")


def unpacked(value: Any) -> Any:
    """The column that :func:`packed` was given.

    Example:
        >>> unpacked(packed([("a", 1), None]))
        [('a', 1), None]
    """
    if not isinstance(value, dict):
        return value
    if "array" in value:
        content = value["array"]
        rows = content.numpy() if isinstance(content, Tensor) else [unpacked(row) for row in content]
        return np.asarray(rows, np.dtype(value["dtype"]))
    if "dict" in value:
        return {unpacked(key): unpacked(entry) for key, entry in value["dict"]}
    if "tuple" in value:
        return tuple(unpacked(entry) for entry in value["tuple"])
    return [unpacked(entry) for entry in value["list"]]


def _padded(array: Any, shape: Sequence[int], value: float) -> Any:
    missing = [wanted - size for wanted, size in zip(shape, array.shape[1:], strict=True)]
    if not any(missing):
        return array
    if isinstance(array, Tensor):
        return F.pad(array, [amount for end in reversed(missing) for amount in (0, end)], value=value)
    return np.pad(array, [(0, 0), *((0, end) for end in missing)], constant_values=value)
