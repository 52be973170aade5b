"""The instances that a tensor's rows are, as numbers that can be moved as the rows are.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_autoassist.trainer_support.arrays import IndexArray

# Functions whose result holds numbers of its first argument (of all of them, where that is a list), only moved.
MOVES = frozenset(
    """
    __getitem__ index_select gather take_along_dim take masked_select flip fliplr flipud roll rot90 stack cat
    concat concatenate hstack vstack dstack column_stack row_stack view view_as reshape reshape_as flatten
    unflatten ravel squeeze unsqueeze expand expand_as broadcast_to transpose transpose_ permute movedim
    moveaxis swapaxes swapdims swapaxes_ swapdims_ t t_ adjoint chunk split split_with_sizes tensor_split
    hsplit vsplit unsafe_chunk unsafe_split unbind select narrow diagonal repeat tile repeat_interleave unfold
    as_strided T mT H mH
    """.split()  # noqa: SIM905, a word a function is easier to read
)
# Functions that put numbers of their last argument into their first.
PUTS = frozenset(
    """
    __setitem__ copy_ index_copy_ index_copy index_put_ index_put scatter_ scatter
    """.split()  # noqa: SIM905, a word a function is easier to read
)
SORTS = frozenset(("sort", "topk"))
# Functions whose result has nothing of the values of what they are given.
MAKES = frozenset(
    """
    zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty
    new_full new_tensor zero_ fill_ normal_ uniform_ random_ bernoulli_ shape size dim msort
    """.split()  # noqa: SIM905, a word a function is easier to read
)
REORDERS = frozenset(("sort", "argsort", "randperm", "index_select"))
UNKNOWN = -1
# So many numbers are moved at most; of larger tensors the order is lost.
_MOST_MOVED, _LARGEST_GRID = 2**26, 2**20


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
        return len(self.of) == len(expected) and bool(((self.of == expected) | (self.of == UNKNOWN)).all())


def numbers_of(source: Any, rows: Callable[[Tensor], Rows | None], even_unknown: bool = False) -> Any:
    """The instances' numbers in the shape of a tensor, or of each in a list; None where they are unknown.

    Args:
        source: The tensor or list.
        rows: Gives the rows of a tensor, or None.
        even_unknown: Whether a tensor of no instances gets numbers too.
    """
    if isinstance(source, (list, tuple)):
        numbers = [numbers_of(each, rows, even_unknown=True) for each in source]
        return None if any(each is None for each in numbers) else type(source)(numbers)
    if not isinstance(source, Tensor):
        return torch.tensor(UNKNOWN, dtype=torch.int32) if even_unknown else None
    own = rows(source)
    if source.numel() > _MOST_MOVED or (own is None and not even_unknown):
        return None
    if own is None:
        own = Rows(np.array([UNKNOWN]), None)
    if own.grid is not None:
        return own.grid.expand(source.shape)
    axis, shape = own.axis, [1] * source.ndim
    if axis is None and len(own.of) > 1:
        axis = _first_axis_of(len(own.of), source)
        if axis is None:
            return None
    if axis is not None:
        shape[axis] = len(own.of)
    return torch.from_numpy(own.of.astype(np.int32)).to(source.device).reshape(shape).expand(source.shape)


def kept(given: Sequence[Rows], result: Tensor) -> Rows | None:
    """The rows of the result of a function that moves none; of several orders, the one along its first axis.

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


def is_beside(rows: Rows, source: Any, results: Sequence[Tensor], func: Callable[..., Any]) -> bool:
    """Whether a call only shapes the axes behind that of the rows, so that nothing need be moved."""
    if not isinstance(source, Tensor) or len(results) != 1 or rows.axis != 0 or not results[0].ndim:
        return False
    shapes = getattr(func, "__name__", "") in ("view", "view_as", "reshape", "reshape_as", "flatten", "contiguous")
    return shapes and results[0].shape[0] == source.shape[0]


def read(numbers: Tensor, axis: int | None) -> Rows | None:
    """The rows that numbers tell: along the axis on which all numbers of a place are one."""
    numbers = numbers[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in numbers.stride())]
    if not numbers.numel():
        return None
    known = numbers[numbers != UNKNOWN]
    if not known.numel():
        return None
    if bool((known == known[0]).all()):
        of = numbers.reshape(-1)[:0].new_tensor([int(known[0])])
        if bool((numbers == known[0]).all()):
            return Rows(to_array(of), None)
    axes = sorted(range(numbers.ndim), key=lambda each: each != axis)
    for each in axes:
        rows = numbers.movedim(each, 0).reshape(numbers.shape[each], -1)
        most = rows.amax(1)
        is_one = (rows == most[:, None]) | (rows == UNKNOWN)
        if bool(is_one.all()):
            return Rows(to_array(most), each)
    return Rows(np.empty(0, np.int64), None, grid=numbers) if numbers.numel() <= _LARGEST_GRID else None


def to_array(tensor: Tensor) -> IndexArray:
    """Waits for the device."""
    array: IndexArray = tensor.detach().cpu().numpy().astype(np.int64)
    return array
