"""Follows the instances' rows through a training step, call by call, up to its losses.

A tensor that comes from the batch carries, beside itself, which instance each of its rows is. Functions that move rows
(indexing, ``index_select``, ``flip``, ``roll``, ``cat``, ``view`` and the like) are repeated on these numbers alone, so
that what they do to the rows is known exactly, whatever they are called with; all others keep the order of the rows
that they are given. A step that sorts its rows and un-sorts them before its loss thus ends in the batch's order.

It is the order of a loss's differentiable inputs that decides, not that of its target:

==============================================================  ==========
what the step does                                              verdict
==============================================================  ==========
sorts or shuffles inputs and targets, then takes the loss       refused
sorts (for ``pack_padded_sequence``), un-sorts, takes the loss  in order
mixes ``x`` with ``x[order]``, losses on ``y`` and ``y[order]``  in order
takes ``z[order]`` for the negatives of the anchors ``z``       in order
un-shuffles after shuffling for batch normalisation             in order
loses sight of the logits (compiled code); sorts the target     refused
==============================================================  ==========

Looking at index tensors waits for the device, so that this is done in a run's first steps only.

Shapes: B batch, n rows.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_autoassist.batch_parts import leaves_of, parts_of
from lightning_autoassist.candidates import IndexArray
from lightning_autoassist.loss_layout import Layout
from lightning_autoassist.row_matching import columns_of, match

# Functions whose result holds numbers of its first argument (of all of them, where that is a list), only moved.
_MOVES = frozenset(
    [
        "__getitem__",
        "index_select",
        "gather",
        "take_along_dim",
        "take",
        "masked_select",
        "flip",
        "fliplr",
        "flipud",
        "roll",
        "rot90",
        "stack",
        "cat",
        "concat",
        "concatenate",
        "hstack",
        "vstack",
        "dstack",
        "column_stack",
        "row_stack",
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "flatten",
        "unflatten",
        "ravel",
        "squeeze",
        "unsqueeze",
        "expand",
        "expand_as",
        "broadcast_to",
        "transpose",
        "transpose_",
        "permute",
        "movedim",
        "moveaxis",
        "swapaxes",
        "swapdims",
        "swapaxes_",
        "swapdims_",
        "t",
        "t_",
        "adjoint",
        "chunk",
        "split",
        "split_with_sizes",
        "tensor_split",
        "hsplit",
        "vsplit",
        "unsafe_chunk",
        "unsafe_split",
        "unbind",
        "select",
        "narrow",
        "diagonal",
        "repeat",
        "tile",
        "repeat_interleave",
        "unfold",
        "as_strided",
        "T",
        "mT",
        "H",
        "mH",
    ]
)
# Functions that put numbers of their last argument into their first.
_PUTS = frozenset(
    ["__setitem__", "copy_", "index_copy_", "index_copy", "index_put_", "index_put", "scatter_", "scatter"]
)
_SORTS = frozenset(("sort", "msort", "topk"))
# Functions whose result has nothing of the values of what they are given.
_MAKES = frozenset(
    [
        "zeros_like",
        "ones_like",
        "empty_like",
        "full_like",
        "rand_like",
        "randn_like",
        "randint_like",
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_tensor",
        "zero_",
        "fill_",
        "normal_",
        "uniform_",
        "random_",
        "bernoulli_",
        "shape",
        "size",
        "dim",
    ]
)
_REORDERS = frozenset(["sort", "argsort", "randperm", "index_select"])
# So many numbers are moved at most; of larger tensors the order is lost.
_MOST_MOVED = 2**26
_UNKNOWN = -1
_INSIDE = str(Path(torch.__file__).parent), str(Path(__file__).parent)


_FEWEST_STEPS, _MOST_STEPS = 3, 32
# A target whose values are those of the batch in another order: by chance in one of a million cases.
_ENOUGH_BITS = 20.0
_LARGEST_GRID = 2**20


class RowChecks:
    """Decides in which steps of a run rows are followed: the first ones, more where something reorders them.

    Attributes:
        problem: What was wrong in one of them; it stays wrong.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._num_steps = self._num_plain = 0

    def tracker(self, batch: Any, batch_size: int) -> RowTracker | None:
        """For a step; None where it need not be looked at."""
        if batch_size < 2 or self._num_steps >= _MOST_STEPS or self._num_plain >= _FEWEST_STEPS:
            return None
        return RowTracker(batch, batch_size)

    def end(self, tracker: RowTracker | None, sources: Sequence[str]) -> str | None:
        """A step has ended: what is wrong with the rows of its losses, if anything is.

        Args:
            tracker: Of the step.
            sources: The losses in what it returned.
        """
        if tracker is not None:
            self._num_steps += 1
            self._num_plain += not tracker.reorders
            self.problem = self.problem or tracker.problem(sources)
        return self.problem


class Rows(NamedTuple):
    """Which instances a tensor's rows are.

    Attributes:
        of: The instance of each row, shape ``(n,)``; -1 where a row is of none.
        axis: Along which the rows lie; None where that is not known, as in packed sequences, or where all of the
            tensor is of one instance.
        place: The call that last changed their order.
        grid: The instances' numbers in a shape that expands to the tensor's, where they lie along no single axis; then
            ``of`` is empty.
    """

    of: IndexArray
    axis: int | None
    place: str | None = None
    grid: Tensor | None = None

    def is_order(self, expected: IndexArray) -> bool:
        """Whether the rows are ``expected``, as far as they are known."""
        return len(self.of) == len(expected) and bool(((self.of == expected) | (self.of == _UNKNOWN)).all())


class RowTracker:
    """Which rows of the tensors of one step are which instances.

    Args:
        batch: What the step is given.
        batch_size: B.

    Attributes:
        reorders: Whether something was sorted, shuffled or picked by index: it may stay in order by chance.
    """

    def __init__(self, batch: Any, batch_size: int) -> None:
        self.reorders = False
        self._in_order = np.arange(batch_size)
        self._known: dict[int, tuple[weakref.ref[Tensor], Rows]] = {}
        self._leaves = list(leaves_of(batch))
        self._problems: dict[str, str] = {}
        # Of losses whose inputs are lost from sight.
        self._problems_of_targets: dict[str, str] = {}
        self._target_is_in_order = False
        self._begin(batch)

    def rows(self, tensor: Any) -> Rows | None:
        """Of a tensor; None where they are not known."""
        reference, rows = self._known.get(id(tensor), (None, None))
        return rows if reference is not None and reference() is tensor else None

    def note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """A function of torch was called in the step; never raises."""
        name = getattr(func, "__name__", "")
        if name == "__get__":  # a property
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        try:
            if name not in _MAKES:
                self._note(name, func, args, kwargs, result)
        except Exception:
            for tensor in _tensors((args[:1] if name in _PUTS else (), result)):
                self._known.pop(id(tensor), None)

    def check(self, source: str, inputs: Sequence[Any], others: Sequence[Any], layout: Layout) -> None:
        """Look at the rows of a loss.

        Args:
            source: Which call it is.
            inputs: Its differentiable inputs.
            others: Its target.
            layout: Of its rows, as its shape tells.
        """
        try:
            known = self._known_of(inputs, layout)
            if known:
                self._judge(source, known, layout, self._problems)
                return
            known = self._known_of(others, layout) or self._told_by_values(others)
            self._target_is_in_order |= bool(known) and self._judge(source, known, layout, self._problems_of_targets)
        except Exception:  # the step must go on
            return

    def problem(self, sources: Sequence[str]) -> str | None:
        """What is wrong with the rows of some of the checked losses."""
        problems = self._problems
        if not self._target_is_in_order:  # else the others are of mixed pairs
            problems = {**self._problems_of_targets, **problems}
        return next((problems[source] for source in sources if source in problems), None)

    # ----

    def _known_of(self, tensors: Sequence[Any], layout: Layout) -> list[Rows]:
        known = [rows for tensor in tensors if (rows := self.rows(tensor)) is not None]
        return [rows for rows in known if len(rows.of) in (len(self._in_order), layout.num_rows)]

    def _judge(self, source: str, known: Sequence[Rows], layout: Layout, problems: dict[str, str]) -> bool:
        """Whether some of the rows are in order; if not, that is a problem."""
        if any(rows.is_order(self._expected(rows, layout)) for rows in known):
            return True
        where = f": they are reordered {known[0].place}" if known[0].place else ""
        problems[source] = f"The rows of {source} are in another order than the instances of the batch{where}"
        return False

    def _told_by_values(self, targets: Sequence[Any]) -> list[Rows]:
        """The rows of targets that have been lost from sight, where they hold the very values of the batch."""
        num_rows = len(self._in_order)
        found = match(columns_of(list(targets), num_rows), columns_of(self._leaves, num_rows))
        if found is None or found.bits < _ENOUGH_BITS:
            return []
        return [Rows(np.full(num_rows, num_rows) if found.rows is None else found.rows, 0)]

    def _begin(self, batch: Any, depth: int = 8) -> None:
        num_rows = len(self._in_order)
        if isinstance(batch, PackedSequence):
            order = batch.sorted_indices
            self._set(batch.data, Rows(self._in_order if order is None else _array(order), None))
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
        self.reorders |= name in _REORDERS and any(len(self._in_order) in each.shape for each in _tensors(result))
        given = [rows for tensor in _tensors((args, kwargs)) if (rows := self.rows(tensor)) is not None]
        if name in _PUTS and given:
            self._put(name, func, args, kwargs, result)
        elif not given:
            for tensor in _tensors(result):
                self._known.pop(id(tensor), None)
        elif name in _SORTS and isinstance(result, tuple):
            self._sort(args, kwargs, *result)
        elif name in _MOVES:
            self._move(func, args, kwargs, result)
        else:
            for tensor in _tensors(result):
                self._set(tensor, _kept(given, tensor))

    def _move(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        source = args[0] if args else next(iter(kwargs.values()))
        before = [rows for tensor in _tensors(source) if (rows := self.rows(tensor)) is not None]
        tensors = list(_tensors(result))
        if len(before) == 1 and _is_beside(before[0], source, tensors, func):
            self._set(tensors[0], before[0])
            return
        numbers = self._numbers(source)
        if numbers is None:
            for tensor in tensors:
                self._set(tensor, _kept(before, tensor) if before else None)
            return
        if getattr(func, "__name__", "") in ("view", "view_as"):  # expanded numbers have no view of this kind
            func = torch.Tensor.reshape if func.__name__ == "view" else torch.Tensor.reshape_as
        with torch.no_grad():
            moved = func(numbers, *args[1:], **kwargs) if args else func(numbers, **dict(list(kwargs.items())[1:]))
        for tensor, number in zip(tensors, _tensors(moved), strict=True):
            self._set(tensor, self._placed(before, _read(number, before[0].axis if before else 0)))

    def _sort(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: Tensor, indices: Tensor) -> None:
        source = args[0] if args else kwargs["input"]
        before = self.rows(source)
        if before is None:
            return
        dim = kwargs.get("dim", args[1] if len(args) > 1 and not isinstance(args[1], bool) else -1)
        numbers = self._numbers(source)
        moved = None if numbers is None else _read(numbers.gather(dim, indices), before.axis)
        self._set(values, self._placed([before], moved))

    def _put(
        self, name: str, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        target, *places = args
        key = next((key for key in ("src", "source", "values") if key in kwargs), None)
        value = places.pop() if key is None else kwargs[key]
        changed = result if isinstance(result, Tensor) else target
        after, new = self._numbers(target, even_unknown=True), self._numbers(value, even_unknown=True)
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
        rows = self._placed(before, _read(after, before[0].axis))
        # Where a part of each row is of another instance, as in mixed pairs, it is its own that counts.
        self._set(changed, own if own is not None and (rows is None or rows.grid is not None) else rows)

    def _numbers(self, source: Any, even_unknown: bool = False) -> Any:
        """The instances' numbers in the shape of a tensor or of those in a list; None where they are not to be had."""
        if isinstance(source, (list, tuple)):
            numbers = [self._numbers(each, even_unknown=True) for each in source]
            return None if any(each is None for each in numbers) else type(source)(numbers)
        if not isinstance(source, Tensor):
            return torch.tensor(_UNKNOWN, dtype=torch.int32) if even_unknown else None
        rows = self.rows(source)
        if source.numel() > _MOST_MOVED or (rows is None and not even_unknown):
            return None
        if rows is not None and rows.grid is not None:
            return rows.grid.expand(source.shape)
        of, axis = (np.array([_UNKNOWN]), None) if rows is None else (rows.of, rows.axis)
        if axis is None and len(of) > 1:
            axis = _first_axis_of(len(of), source)
            if axis is None:
                return None
        shape = [1] * source.ndim
        if axis is not None:
            shape[axis] = len(of)
        return torch.from_numpy(of.astype(np.int32)).to(source.device).reshape(shape).expand(source.shape)

    def _placed(self, before: Sequence[Rows], rows: Rows | None) -> Rows | None:
        """Rows with the place of the call, where it changed their order."""
        if rows is None or not before:
            return rows
        earlier = next((each for each in before if np.array_equal(each.of, rows.of)), None)
        if earlier is None:
            return rows._replace(place=_caller())
        return rows._replace(place=earlier.place)

    def _expected(self, rows: Rows, layout: Layout) -> IndexArray:
        if len(rows.of) == layout.num_rows != len(self._in_order):
            column = [1] * len(layout.leading)
            column[layout.axis] = layout.batch_size
            return np.broadcast_to(self._in_order.reshape(column), layout.leading).reshape(-1)
        return self._in_order


def _kept(given: Sequence[Rows], result: Tensor) -> Rows | None:
    """Rows of the result of a function that moves none; of several orders, the one along the first axis that it has.

    Where rows in order meet others along one axis, as in mixed pairs, the result's are those in order.
    """
    axes = [_axis_in(rows, result) for rows in given]
    lying = [rows._replace(axis=axis) for rows, axis in zip(given, axes, strict=True) if axis is not None]
    if lying:
        first = min(rows.axis for rows in lying if rows.axis is not None)
        lying = [rows for rows in lying if rows.axis == first]
        return next((rows for rows in lying if np.array_equal(rows.of, np.arange(len(rows.of)))), lying[0])
    floating = [rows for rows in given if (result.ndim or len(rows.of) == 1) and _fits(rows.grid, result)]
    return floating[0]._replace(axis=None) if floating else None


def _axis_in(rows: Rows, result: Tensor) -> int | None:
    size = len(rows.of)
    if size < 2:
        return None
    if rows.axis is not None and rows.axis < result.ndim and result.shape[rows.axis] == size:
        return rows.axis
    return _first_axis_of(size, result)


def _first_axis_of(size: int, tensor: Tensor) -> int | None:
    """The first axis of a length: that of the instances comes before those of features."""
    return next((axis for axis, length in enumerate(tensor.shape) if length == size), None)


def _fits(grid: Tensor | None, result: Tensor) -> bool:
    if grid is None:
        return True
    sizes = zip(grid.shape, result.shape, strict=False)
    return grid.ndim == result.ndim and all(own in (1, size) for own, size in sizes)


def _is_beside(rows: Rows, source: Any, results: Sequence[Tensor], func: Callable[..., Any]) -> bool:
    """Whether a call only shapes the axes behind that of the rows, so that nothing need be moved."""
    if not isinstance(source, Tensor) or len(results) != 1 or rows.axis != 0 or not results[0].ndim:
        return False
    shapes = getattr(func, "__name__", "") in ("view", "view_as", "reshape", "reshape_as", "flatten", "contiguous")
    return shapes and results[0].shape[0] == source.shape[0]


def _read(numbers: Tensor, axis: int | None) -> Rows | None:
    """The rows that numbers tell: along the axis on which all numbers of a place are one."""
    numbers = numbers[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in numbers.stride())]
    if not numbers.numel():
        return None
    known = numbers[numbers != _UNKNOWN]
    if not known.numel():
        return None
    if bool((known == known[0]).all()):
        of = numbers.reshape(-1)[:0].new_tensor([int(known[0])])
        if bool((numbers == known[0]).all()):
            return Rows(_array(of), None)
    axes = sorted(range(numbers.ndim), key=lambda each: each != axis)
    for each in axes:
        rows = numbers.movedim(each, 0).reshape(numbers.shape[each], -1)
        most = rows.amax(1)
        is_one = (rows == most[:, None]) | (rows == _UNKNOWN)
        if bool(is_one.all()):
            return Rows(_array(most), each)
    return Rows(np.empty(0, np.int64), None, grid=numbers) if numbers.numel() <= _LARGEST_GRID else None


def _caller() -> str:
    """Where the call under way stands: file and line outside of torch and this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return f"at {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _array(tensor: Tensor) -> IndexArray:
    array: IndexArray = tensor.detach().cpu().numpy().astype(np.int64)
    return array


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
