"""Rows of batches: which parts of a batch hold one row an instance, and batches of the same form from other rows.

Shapes: B batch, n rows of one batch.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_autoassist.filtering.sampling.columns import Column

PadValues: TypeAlias = "float | Mapping[str, float] | None"

_Build: TypeAlias = Callable[[list[Column]], Any]
_SHARED_TYPES = (str, bytes, bool, int, float, complex, Enum, np.generic, torch.dtype, torch.device, torch.Size)


class Form(NamedTuple):
    """A batch without its rows.

    Attributes:
        kind: Tells batches whose rows can share a batch from others: containers, shapes of rows, dtypes, and the
            parts that are not one row an instance.
        paths: Where each column stands in the batch, as "1" or "inputs.ids".
        build: Makes a batch of the same form from columns.
    """

    kind: str
    paths: list[str]
    build: Callable[[list[Column]], Any]


class RowSplitter:
    """Takes batches apart into columns of rows: nested tuples, lists, mappings, dataclasses and namedtuples.

    A tensor or an array whose leading size is n is a column, as is a list or tuple of n objects that are not columns
    themselves. Everything else (a scalar, class weights of C entries) belongs to the batch as a whole: rows of two
    batches are put together only where it is the same in both.

    n is read where the first batch has it; what is a list of objects there is one in later batches too.

    Args:
        batch_size: B, where the loader tells it.
        pad_values: What rows of different widths are padded with at the end, so that they can share a batch: a number
            for every column, or numbers by the columns' names (the last part of their path). Columns without one are
            never padded: their rows share a batch with rows of the same shape only.

    Example:
        >>> from lightning_autoassist.filtering.sampling.columns import select
        >>> splitter = RowSplitter(batch_size=2)
        >>> batch = {"x": torch.tensor([[1.0], [2.0]]), "names": ["a", "b"], "width": 1}
        >>> columns, form = splitter.take_apart(batch)
        >>> form.build([select(column, [1]) for column in columns])
        {'x': tensor([[2.]]), 'names': ['b'], 'width': 1}
    """

    def __init__(self, batch_size: int | None = None, pad_values: PadValues = None) -> None:
        self.batch_size = batch_size
        self.pad_values = pad_values
        self._row_path: list[str] | None = None  # where the first batch had n
        self._is_column: dict[str, bool] = {}  # of the sequences of n objects, by path

    def num_rows(self, batch: Any) -> int:
        """How many rows a batch has, n.

        Raises:
            ValueError: If the batch's parts do not tell it.
        """
        if self._row_path is None:
            self._row_path = self._path_of_rows(batch)
        try:
            return len(_part(batch, self._row_path))
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(
                f"a batch has no {_name(self._row_path)!r}, by which the rows of earlier ones were counted; let every "
                "batch have the same structure"
            ) from error

    def take_apart(self, batch: Any) -> tuple[list[Column], Form]:
        """The columns and the form of a batch.

        Raises:
            ValueError: If the batch's parts do not tell its rows.
            TypeError: If it holds something whose rows are unknown.
        """
        taking = _Taking(self.num_rows(batch), self._is_column, self)
        build = taking.walk(batch, ())
        digest = hashlib.sha256(repr(taking.signature).encode()).hexdigest()
        return taking.columns, Form(digest, [_name(path) for path in taking.paths], build)

    def pad_value(self, path: str) -> float | None:
        """What the column at ``path`` is padded with; None: never padded."""
        if isinstance(self.pad_values, Mapping):
            return self.pad_values.get(path.rpartition(".")[2])
        return self.pad_values

    def state_dict(self) -> dict[str, Any]:
        """What was learnt from the first batch, as builtins."""
        return {"row_path": self._row_path, "is_column": dict(self._is_column)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._row_path, self._is_column = state["row_path"], dict(state["is_column"])

    def _path_of_rows(self, batch: Any) -> list[str]:
        parts = sorted(_sized_parts(batch, ()), key=_Sized.rank)
        arrays = [part for part in parts if part.is_array]
        if self.batch_size is not None:
            if any(part.size == self.batch_size for part in parts):
                return [str(key) for key in next(part for part in parts if part.size == self.batch_size).path]
            if any(part.second_size == self.batch_size for part in arrays):
                raise ValueError(
                    f"the batch's tensors have the {self.batch_size} instances on their second axis; rows are taken "
                    "from the first: let the loader put it first and training_step transpose it"
                )
        sizes = {part.size for part in arrays}
        if len(sizes) == 1 and (self.batch_size is None or sizes < set(range(self.batch_size))):
            return [str(key) for key in arrays[0].path]
        found = ", ".join(f"{_name(part.path) or 'the batch'}: {part.size}" for part in parts[:8]) or "no tensor"
        expected = "one size" if self.batch_size is None else f"batch_size={self.batch_size}"
        raise ValueError(
            f"the batch does not tell how many instances it has: expected {expected} in front, found {found}; give "
            "the loader a batch_size and let tensors have the instances on their first axis"
        )


class _Taking:
    """One batch on its way into columns."""

    def __init__(self, num_rows: int, is_column: dict[str, bool], splitter: RowSplitter) -> None:
        self.num_rows = num_rows
        self.columns: list[Column] = []
        self.paths: list[tuple[Any, ...]] = []
        self.signature: list[Any] = []
        self._is_column = is_column
        self._splitter = splitter

    def walk(self, value: Any, path: tuple[Any, ...]) -> _Build:
        """Note the columns below ``value``; returns what builds the like of it."""
        if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_nested):
            raise TypeError(f"{self._said(path)} is a sparse or nested tensor, whose rows cannot be put together")
        if isinstance(value, (Tensor, np.ndarray)):
            if value.ndim and len(value) == self.num_rows:
                shape = tuple(value.shape[1:])
                may_differ = self._splitter.pad_value(_name(path)) is not None
                return self._column(value, path, (value.dtype, len(shape) if may_differ else shape))
            return self._shared(value, path, (str(value.dtype), tuple(value.shape), _bytes(value)))
        if value is None or isinstance(value, _SHARED_TYPES):
            return self._shared(value, path, value)
        if isinstance(value, PackedSequence):
            raise TypeError(f"{self._said(path)} is a PackedSequence, whose rows are not apart; pack in training_step")
        if isinstance(value, (list, tuple)):
            if not hasattr(value, "_fields") and self._holds_objects(value, path):
                return self._column(list(value), path, type(value), type(value))
            keys = getattr(value, "_fields", range(len(value)))
            parts = [self.walk(entry, (*path, key)) for key, entry in zip(keys, value, strict=True)]
            self.signature.append((_type_name(value), len(value)))
            make: Any = getattr(value, "_make", type(value))
            return lambda columns: make(part(columns) for part in parts)
        if isinstance(value, Mapping):
            entries = {key: self.walk(entry, (*path, key)) for key, entry in value.items()}
            self.signature.append((_type_name(value), [repr(key) for key in entries]))
            template = {} if type(value) is dict else value  # which would keep the whole batch in memory
            return lambda columns: _mapping_like(template, {key: part(columns) for key, part in entries.items()})
        if is_dataclass(value) and not isinstance(value, type):
            entries = {
                field.name: self.walk(getattr(value, field.name), (*path, field.name)) for field in fields(value)
            }
            self.signature.append((_type_name(value), list(entries)))
            return lambda columns: _dataclass_like(value, {name: part(columns) for name, part in entries.items()})
        raise TypeError(
            f"{self._said(path)} is a {type(value).__name__}, whose rows are unknown; use tensors, arrays, lists, "
            "mappings and dataclasses of them"
        )

    def _column(self, column: Column, path: tuple[Any, ...], signature: Any, made: type = list) -> _Build:
        if len(column) != self.num_rows:
            raise ValueError(f"{self._said(path)} has {len(column)} rows, other parts have {self.num_rows}")
        number = len(self.columns)
        self.columns.append(column)
        self.paths.append(path)
        self.signature.append((path, signature))
        if made is list or not isinstance(column, list):
            return lambda columns: columns[number]
        return lambda columns: made(columns[number])

    def _shared(self, value: Any, path: tuple[Any, ...], signature: Any) -> _Build:
        self.signature.append((path, signature))
        return lambda columns: value

    def _holds_objects(self, value: Sequence[Any], path: tuple[Any, ...]) -> bool:
        """Whether a list or tuple is a column of n objects; else its entries are looked at one by one."""
        name = _name(path)
        if name not in self._is_column:
            self._is_column[name] = len(value) == self.num_rows and self._decide(value, path)
        return self._is_column[name]

    def _decide(self, value: Sequence[Any], path: tuple[Any, ...]) -> bool:
        with_rows = sum(self._has_rows(entry) for entry in value)
        if not with_rows:
            return True
        first = value[0]
        is_alike = all(type(entry) is type(first) for entry in value)
        if is_alike and isinstance(first, Tensor):
            is_alike = len({(entry.dtype, entry.ndim) for entry in value}) == 1
        if with_rows < len(value):
            return is_alike
        if is_alike and isinstance(first, Tensor) and len(value) > 2:
            raise ValueError(
                f"{self._said(path)} is {len(value)} tensors of leading size {len(value)}: {len(value)} instances of "
                "one tensor each or the other way round, use another batch_size"
            )
        return False

    def _has_rows(self, value: Any) -> bool:
        if isinstance(value, (Tensor, np.ndarray)):
            return bool(value.ndim) and len(value) == self.num_rows
        if isinstance(value, Mapping):
            return any(self._has_rows(entry) for entry in value.values())
        if isinstance(value, (list, tuple)):
            return len(value) == self.num_rows or any(self._has_rows(entry) for entry in value)
        return is_dataclass(value) and any(self._has_rows(getattr(value, field.name)) for field in fields(value))

    @staticmethod
    def _said(path: tuple[Any, ...]) -> str:
        return f"{_name(path)!r} of the batch" if path else "the batch"


class _Sized(NamedTuple):
    path: tuple[Any, ...]
    size: int
    second_size: int | None
    is_array: bool

    def rank(self) -> tuple[int, bool]:
        """Outer parts first; a list counts as deep as what is in it, and comes after that."""
        return len(self.path) + (not self.is_array), not self.is_array


def _sized_parts(value: Any, path: tuple[Any, ...]) -> Iterator[_Sized]:
    """Everything in a batch whose length may be n."""
    if isinstance(value, (Tensor, np.ndarray)):
        if value.ndim:
            yield _Sized(path, len(value), value.shape[1] if value.ndim > 1 else None, True)
        return
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        if not hasattr(value, "_fields"):
            yield _Sized(path, len(value), None, False)
        entries: Any = zip(getattr(value, "_fields", range(len(value))), value, strict=True)
    elif isinstance(value, Mapping):
        entries = value.items()
    elif is_dataclass(value) and not isinstance(value, type):
        entries = ((field.name, getattr(value, field.name)) for field in fields(value))
    else:
        return
    for key, entry in entries:
        yield from _sized_parts(entry, (*path, key))


def _part(batch: Any, path: Sequence[str]) -> Any:
    for key in path:
        if isinstance(batch, Mapping):
            batch = {str(own): entry for own, entry in batch.items()}[key]
        elif isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
            batch = batch[int(key)]
        else:
            batch = getattr(batch, key)
    return batch


def _name(path: Sequence[Any]) -> str:
    return ".".join(str(key) for key in path)


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _bytes(values: Tensor | npt.NDArray[Any]) -> bytes:
    if isinstance(values, np.ndarray):
        return values.tobytes() if values.dtype != object else repr(values).encode()
    return bytes(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _mapping_like(template: Any, entries: dict[Any, Any]) -> Any:
    if type(template) is dict:
        return entries
    if not isinstance(template, MutableMapping):
        return type(template)(entries)
    made = copy.copy(template)  # not the type called: a defaultdict or a BatchEncoding takes other arguments
    for key, entry in entries.items():
        made[key] = entry
    return made


def _dataclass_like(template: Any, entries: dict[str, Any]) -> Any:
    made = copy.copy(template)  # no __post_init__: what it did to the rows is done
    for name, entry in entries.items():
        object.__setattr__(made, name, entry)  # frozen ones too
    return made
