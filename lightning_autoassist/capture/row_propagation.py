"""Carries along, from call to call of a step, which instances the rows of each tensor are.

Functions that move rows (indexing, ``index_select``, ``flip``, ``roll``, ``cat``, ``view`` and the like) are repeated
on the numbers of the instances alone, so that what they do to the rows is known exactly, whatever they are called with;
all others keep the order of the rows that they are given.

Shapes: B batch, n rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_autoassist.capture.place import place_of_call
from lightning_autoassist.capture.row_numbers import (
    MAKES,
    MOVES,
    PUTS,
    REORDERS,
    SORTS,
    Rows,
    is_beside,
    kept,
    numbers_of,
    read,
    to_array,
)
from lightning_autoassist.trainer_support.batch_parts import parts_of
from lightning_autoassist.trainer_support.call_arguments import tensors_of


class RowPropagation:
    """Which instances the rows of a step's tensors are.

    Args:
        batch: What the step is given; its rows are in order.
        batch_size: B.

    Attributes:
        reorders: Whether something was sorted, shuffled or picked by index: it may stay in order by chance.
    """

    def __init__(self, batch: Any, batch_size: int) -> None:
        self.reorders = False
        self._in_order = np.arange(batch_size)
        self._known: dict[int, tuple[weakref.ref[Tensor], Rows]] = {}
        self._begin(batch)

    def rows(self, tensor: Any) -> Rows | None:
        """The instances in the rows of a tensor; None where they are unknown."""
        reference, rows = self._known.get(id(tensor), (None, None))
        return rows if reference is not None and reference() is tensor else None

    def note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """A function of torch was called in the step; never raises."""
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        try:
            if kwargs.get("out") is not None:
                raise ValueError("a call with out= cannot be repeated, because it would write into the user's tensor")
            if name not in MAKES:
                self._note(name, func, args, kwargs, result)
        except Exception:
            for tensor in tensors_of((args[:1] if name in PUTS else (), result)):
                self._known.pop(id(tensor), None)

    def _begin(self, batch: Any, depth: int = 8) -> None:
        num_rows = len(self._in_order)
        if isinstance(batch, PackedSequence):
            order = batch.sorted_indices
            self._set(batch.data, Rows(self._in_order if order is None else to_array(order), None))
        elif isinstance(batch, Tensor):
            axis = next((axis for axis, size in enumerate(batch.shape[:2]) if size == num_rows), None)
            if axis is not None:
                self._set(batch, Rows(self._in_order, axis))
        elif depth:
            for place, part in enumerate(parts := parts_of(batch)):
                self._begin(part, depth - 1)
                if len(parts) == num_rows and isinstance(part, Tensor) and self.rows(part) is None:
                    self._set(part, Rows(np.array([place]), None))

    def _set(self, tensor: Tensor, rows: Rows | None) -> None:
        if rows is None:
            self._known.pop(id(tensor), None)
        else:
            self._known[id(tensor)] = weakref.ref(tensor), rows

    def _note(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        self.reorders |= name in REORDERS and any(len(self._in_order) in each.shape for each in tensors_of(result))
        given = [rows for tensor in tensors_of((args, kwargs)) if (rows := self.rows(tensor)) is not None]
        if name in PUTS and given:
            self._put(name, func, args, kwargs, result)
        elif not given:
            for tensor in tensors_of(result):
                self._known.pop(id(tensor), None)
        elif name in SORTS and isinstance(result, tuple):
            self._sort(args, kwargs, *result)
        elif name in MOVES:
            self._move(func, args, kwargs, result)
        else:
            for tensor in tensors_of(result):
                self._set(tensor, kept(given, tensor))

    def _move(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        source = args[0] if args else next(iter(kwargs.values()))
        before = [rows for tensor in tensors_of(source) if (rows := self.rows(tensor)) is not None]
        tensors = list(tensors_of(result))
        if len(before) == 1 and is_beside(before[0], source, tensors, func):
            self._set(tensors[0], before[0])
            return
        numbers = numbers_of(source, self.rows)
        if numbers is None:
            is_floating = bool(before) and all(rows.axis is None for rows in before)
            for tensor in tensors:
                self._set(tensor, kept(before, tensor) if is_floating else None)
            return
        if getattr(func, "__name__", "") in ("view", "view_as"):  # expanded numbers have no view of this kind
            func = torch.Tensor.reshape if func.__name__ == "view" else torch.Tensor.reshape_as
        with torch.no_grad():
            moved = func(numbers, *args[1:], **kwargs) if args else func(numbers, **dict(list(kwargs.items())[1:]))
        for tensor, number in zip(tensors, tensors_of(moved), strict=True):
            self._set(tensor, self._placed(before, read(number, before[0].axis if before else 0)))

    def _sort(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Tensor, indices: Tensor) -> None:
        source = args[0] if args else kwargs["input"]
        before = self.rows(source)
        if before is None:
            return
        dim = kwargs.get("dim", args[1] if len(args) > 1 and not isinstance(args[1], bool) else -1)
        numbers = numbers_of(source, self.rows)
        moved = None if numbers is None else read(numbers.gather(dim, indices), before.axis)
        self._set(values, self._placed([before], moved))

    def _put(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        target, *places = args
        key = next((key for key in ("src", "source", "values") if key in kwargs), None)
        value = places.pop() if key is None else kwargs[key]
        changed = result if isinstance(result, Tensor) else target
        after, new = numbers_of(target, self.rows, even_unknown=True), numbers_of(value, self.rows, even_unknown=True)
        if after is None or new is None:
            self._set(changed, None)
            return
        after = after.clone()
        with torch.no_grad():
            if name == "copy_":
                after[...] = new
            else:
                moved = (
                    func(after, *places, new, **kwargs) if key is None else func(after, *places, **{**kwargs, key: new})
                )
                after = moved if isinstance(moved, Tensor) else after
        own, given = self.rows(target), self.rows(value)
        before = [rows for rows in (given, own) if rows is not None]
        rows = self._placed(before, read(after, before[0].axis))
        # Where a part of each row is of another instance, as in mixed pairs, it is its own that counts.
        self._set(changed, own if own is not None and (rows is None or rows.grid is not None) else rows)

    def _placed(self, before: Sequence[Rows], rows: Rows | None) -> Rows | None:
        """The rows, with the place of the call where it changed their order."""
        if rows is None or not before:
            return rows
        earlier = next((each for each in before if np.array_equal(each.of, rows.of)), None)
        if earlier is None:
            return rows._replace(place=str(place_of_call()))
        return rows._replace(place=earlier.place)
