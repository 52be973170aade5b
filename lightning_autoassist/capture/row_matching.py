"""Finds which instance each row of a batch holds, by comparing values bit for bit.

A *column* is one array for each row, or for each instance: a tensor's rows, the entries of a list, the same field of
every instance. Rows that were padded are compared where they overlap.

Shapes: n rows of a batch, m instances.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.batch_parts import parts_of

Array = npt.NDArray[Any]
Column = Sequence[Array]

# Pairs of columns that are compared at most; a batch of more is compared by its first ones.
_MOST_PAIRS = 64
# So many numbers a row, or so many different rows, do not agree by chance.
_MANY_NUMBERS, _MANY_VALUES = 4, 12
# Objects may hold each other.
_DEPTH = 8


class Match(NamedTuple):
    """Where rows come from.

    Attributes:
        rows: The instance of each row, shape ``(n,)``; None where the rows are in another order, and which is not
            told by their values.
        is_identity: Whether row i holds instance i.
        bits: How much the values tell: the binary logarithm of the number of orders that look different.
        is_certain: Whether no values drawn at random would agree so. A few small integers may: labels that are drawn
            anew are, every now and then, a permutation of others.
    """

    rows: IndexArray | None
    is_identity: bool
    bits: float
    is_certain: bool


def match(rows: Sequence[Column], instances: Sequence[Column]) -> Match | None:
    """Which instances the rows of a batch hold; None where nothing in them can be compared.

    Where columns disagree, the one with most different values decides, and of two such the one that is in order: a
    batch may hold a permuted copy beside the original, as for mixed pairs.

    Args:
        rows: Columns of the batch, of n arrays each.
        instances: Columns of the instances, of m arrays each.
    """
    pairs = [(row, instance) for row in rows for instance in instances][:_MOST_PAIRS]
    tables = [table for pair in pairs if (table := _Table.of(*pair)) is not None and table.num_different > 1]
    if not tables:
        return None
    tables.sort(key=lambda table: (-table.num_different, not table.is_identity))
    may_be = tables[0].may_be
    for table in tables[1:]:
        both = may_be & table.may_be
        if both.any(axis=1).all():
            may_be = both
    if _is_diagonal(may_be):
        bits = max(_bits(table.keys) for table in tables if table.is_identity)
        return Match(np.arange(len(may_be)), True, bits, True)
    return Match(_assigned(may_be, instances), False, _bits(tables[0].keys), tables[0].is_certain)


class _Table(NamedTuple):
    """One column of a batch against one of the instances.

    Attributes:
        may_be: Whether row r has the values of instance i, shape ``(n, m)``.
        keys: What was compared of each row.
        num_different: How many of the instances differ.
        is_certain: See :class:`Match`.
    """

    may_be: npt.NDArray[np.bool_]
    keys: list[bytes]
    num_different: int
    is_certain: bool

    @property
    def is_identity(self) -> bool:
        return _is_diagonal(self.may_be)

    @classmethod
    def of(cls, rows: Column, instances: Column) -> _Table | None:
        """The instance in each row; None where the two have nothing in common, or where a row equals no instance."""
        instances = _in_the_type_of(rows, instances)
        region = _common_region([*rows, *instances])
        if region is None:
            return None
        keys, own = ([array[region].tobytes() for array in column] for column in (rows, instances))
        places: dict[bytes, list[int]] = {}
        for place, key in enumerate(own):
            places.setdefault(key, []).append(place)
        is_padded = len({array.shape for array in (*rows, *instances)}) > 1
        if not is_padded and Counter(keys) - Counter(own):
            return None
        may_be = np.zeros((len(rows), len(instances)), np.bool_)
        for row, key in enumerate(keys):
            for place in places.get(key, ()):
                may_be[row, place] = not is_padded or _overlap(rows[row], instances[place])
            if not may_be[row].any():
                return None
        whole = [_bytes_of(array) for array in instances]
        if is_padded:
            keys = [whole[each.argmax()] for each in may_be]
        num_different = len(set(whole))
        is_certain = rows[0].dtype.kind == "f" or rows[0].size >= _MANY_NUMBERS or num_different >= _MANY_VALUES
        return cls(may_be, keys, num_different, is_certain)


def _in_the_type_of(rows: Column, instances: Column) -> list[Array]:
    """The instances' values in the type of the rows', where that loses nothing; numbers in the shape of the rows'."""
    dtype, converted = rows[0].dtype, []
    for array in instances:
        same = array
        if array.dtype != dtype and array.dtype.kind in "biuf" and dtype.kind in "biuf":
            with np.errstate(all="ignore"):
                same = array.astype(dtype)
            if not (array.dtype.kind == dtype.kind == "f") and not np.array_equal(same, array):
                same = array
        converted.append(same.reshape(rows[0].shape) if same.size == rows[0].size == 1 else same)
    return converted


def _common_region(arrays: Sequence[Array]) -> tuple[slice, ...] | None:
    if len({(array.ndim, array.dtype) for array in arrays}) > 1:
        return None
    shape = np.min([array.shape for array in arrays], axis=0).astype(int)
    return None if 0 in shape else tuple(slice(size) for size in shape)


def _overlap(row: Array, instance: Array) -> bool:
    region = _common_region((row, instance))
    if region is None or row[region].tobytes() != instance[region].tobytes():
        return False
    is_rest = np.ones(row.shape, np.bool_)
    is_rest[region] = False
    rest = row[is_rest]
    return not rest.size or rest.tobytes() == rest[:1].tobytes() * rest.size  # padding has one value


def _bytes_of(array: Array) -> bytes:
    return str((array.shape, array.dtype)).encode() + array.tobytes()


def _is_diagonal(may_be: npt.NDArray[np.bool_]) -> bool:
    return may_be.shape[0] == may_be.shape[1] and bool(may_be.diagonal().all())


def _assigned(may_be: npt.NDArray[np.bool_], instances: Sequence[Column]) -> IndexArray | None:
    """One instance for each row; equal instances in their order. None where different ones are possible."""
    whole = [b"".join(_bytes_of(column[place]) for column in instances) for place in range(may_be.shape[1])]
    taken, rows = np.zeros(may_be.shape[1], np.bool_), []
    for possible in may_be:
        places = np.flatnonzero(possible)
        free = places[~taken[places]]
        if len({whole[place] for place in places}) > 1 or not len(free):
            return None
        taken[free[0]] = True
        rows.append(free[0])
    return np.array(rows, np.int64)


def _bits(keys: Sequence[bytes]) -> float:
    orders = math.lgamma(len(keys) + 1) - sum(math.lgamma(count + 1) for count in Counter(keys).values())
    return orders / math.log(2)


# ---- columns


def columns_of(batch: Any, num_rows: int, depth: int = _DEPTH) -> list[Column]:
    """What a batch holds with one entry a row.

    Args:
        batch: As a collate function returns it.
        num_rows: n.
        depth: So deep it is searched.
    """
    found: list[Column] = []
    if isinstance(batch, PackedSequence):
        return columns_of(pad_packed_sequence(batch, batch_first=True)[0], num_rows)
    array = _as_array(batch)
    if array is not None:
        if array.ndim and array.shape[0] == num_rows:
            found.append(list(array))
        if array.ndim > 1 and array.shape[1] == num_rows:  # (T, B), as for recurrent networks
            found.append(list(np.moveaxis(array, 1, 0)))
        return found
    if isinstance(batch, (list, tuple)) and len(batch) == num_rows:
        entries = [_as_array(each) for each in batch]
        if all(each is not None for each in entries):
            found.append([each for each in entries if each is not None])
    for part in parts_of(batch) if depth else ():
        found += columns_of(part, num_rows, depth - 1)
    return found


def columns_of_instances(instances: Sequence[Any]) -> list[Column]:
    """The fields that all instances have, as columns."""
    leaves = [list(_leaves(instance)) for instance in instances]
    return [list(column) for column in zip(*leaves, strict=False)]


def _leaves(instance: Any, depth: int = _DEPTH) -> Iterator[Array]:
    array = _as_array(instance)
    if array is not None:
        yield array
        return
    for part in parts_of(instance) if depth else ():
        yield from _leaves(part, depth - 1)


def _as_array(value: Any) -> Array | None:
    """Numbers, text, tensors, and lists of numbers; bfloat16, which numpy lacks, as float32."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            return None
        value = value.detach()
        value = value.float() if value.dtype == torch.bfloat16 else value
        array: Array = value.resolve_conj().resolve_neg().cpu().numpy()
        return array
    if isinstance(value, np.ndarray):
        return value if value.dtype != object else None
    if isinstance(value, (Number, np.generic, str, bytes)):
        return _of_one_kind(np.asarray(value))
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, (Number, np.generic)) for each in value):
        return _of_one_kind(np.asarray(value))
    return None


def _of_one_kind(array: Array) -> Array | None:
    if array.dtype.kind in "US":  # by a digest: of two texts the one may begin as the other, and is no padding of it
        text = array.item()
        digest = hashlib.blake2b(text if isinstance(text, bytes) else text.encode(errors="replace"), digest_size=8)
        return np.frombuffer(digest.digest(), np.uint8)
    return array if array.dtype != object else None
