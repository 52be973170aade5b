"""Which rows of a loss belong to which instance.

Shapes: B batch, R rows, T rows an instance (R = B·T).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_autoassist.capture.place import place_of_call
from lightning_autoassist.losses.functional import Arguments, NamedLoss
from lightning_autoassist.trainer_support.autograd_internals import saved_argument
from lightning_autoassist.trainer_support.batch_parts import tensors_in

ROW_ORDERS = ("auto", "batch_major", "time_major")
# Stands for a call at any place.
_UNSEEN = "a call that was not seen"


class InstanceLayout(NamedTuple):
    """A tensor's first ``num_axes`` axes are those of ``leading``, whose axis ``axis`` runs over the instances."""

    leading: tuple[int, ...]
    axis: int
    num_axes: int

    @property
    def batch_size(self) -> int:
        """B."""
        return self.leading[self.axis]

    @property
    def num_rows(self) -> int:
        """The number of rows, of all instances together."""
        return math.prod(self.leading)

    def per_instance(self, elements: Tensor) -> Tensor:
        """All elements of each instance, shape ``(B, T)``."""
        shaped = elements.reshape(*self.leading, *elements.shape[self.num_axes :])
        return shaped.movedim(self.axis, 0).reshape(self.batch_size, -1)

    def spread(self, weights: Tensor, like: Tensor) -> Tensor:
        """Weights of instances, shape ``(B,)``, in a shape that multiplies the rows of ``like``."""
        if len(self.leading) == self.num_axes == like.ndim == 1:
            return weights.detach()
        column = [1] * len(self.leading)
        column[self.axis] = self.batch_size
        rows = weights.detach().reshape(column).expand(self.leading)
        return rows.reshape((*like.shape[: self.num_axes], *[1] * (like.ndim - self.num_axes)))


def row_layout(num_rows: int, batch_size: int, order: str | None) -> InstanceLayout | None:
    """Layout of R rows; None where R is no multiple of B, or in an unknown order.

    Args:
        num_rows: R.
        batch_size: B.
        order: ``"batch_major"`` (rows of one instance adjacent), ``"time_major"``, or None: not known.
    """
    if batch_size == 1:  # all there is belongs to it, also without an axis for the batch
        return InstanceLayout((1,), 0, 0)
    if num_rows == batch_size:
        return InstanceLayout((batch_size,), 0, 1)
    if num_rows % batch_size:
        return None
    per_instance = num_rows // batch_size
    if order == "batch_major":
        return InstanceLayout((batch_size, per_instance), 0, 1)
    if order == "time_major":
        return InstanceLayout((per_instance, batch_size), 1, 1)
    return None


def order_before_flattening(values: Tensor, num_rows: int, batch_size: int) -> str | None:
    """Row order told by the shape a tensor had before ``view(-1, C)``: ``(B, T, C)`` or ``(T, B, C)``.

    The autograd node of the view remembers it; None where there is no such node, or where T = B.
    """
    sizes = tuple(saved_argument(values.grad_fn, "self_sym_sizes", ()))
    if len(sizes) < 2 or num_rows not in (math.prod(sizes), math.prod(sizes[:-1])):
        return None
    first, second = sizes[0] == batch_size, sizes[1] == batch_size
    if first == second:
        return None
    return "batch_major" if first else "time_major"


def order_by_target(target: Tensor, ignore_index: int | None, batch: Iterable[Tensor], batch_size: int) -> str | None:
    """Row order told by finding the flat target in the batch itself, whole or shifted by one token.

    Compares values, so it waits for the device: to be asked once, not at each step.

    Args:
        target: Flat target, shape ``(R,)``.
        ignore_index: Target value that may stand where the batch holds another.
        batch: The batch's tensors.
        batch_size: B.
    """
    per_instance = target.shape[0] // batch_size
    candidates = {
        "batch_major": target.reshape(batch_size, per_instance),
        "time_major": target.reshape(per_instance, batch_size).t(),
    }
    orders = set()
    for tensor in batch:
        for tokens in _instances_first(tensor, batch_size):
            orders |= {order for order, rows in candidates.items() if _holds(tokens, rows, ignore_index)}
    return orders.pop() if len(orders) == 1 else None


def _instances_first(tensor: Tensor, batch_size: int) -> Iterable[Tensor]:
    if tensor.ndim >= 1 and tensor.shape[0] == batch_size:
        yield tensor.reshape(batch_size, -1)
    if tensor.ndim == 2 and tensor.shape[1] == batch_size:
        yield tensor.t()


def _holds(tokens: Tensor, rows: Tensor, ignore_index: int | None) -> bool:
    """Whether rows, shape ``(B, T)``, are a window of tokens, shape ``(B, S)``, but for ignored elements."""
    if tokens.is_floating_point() != rows.is_floating_point():
        return False
    if tokens.shape[1] == 1:  # one label for all of an instance's rows
        tokens = tokens.expand(-1, rows.shape[1])
    counts = torch.ones_like(rows, dtype=torch.bool) if ignore_index is None else rows != ignore_index
    for offset in (0, 1):
        window = tokens[:, offset : offset + rows.shape[1]]
        width = window.shape[1]
        same = (rows[:, :width] == window) | ~counts[:, :width]
        if width and bool(same.all()) and not bool(counts[:, width:].any()):
            return True
    return False


def _is_column_of(target: Any, batch: Any) -> bool:
    """Whether a target is a tensor of the batch, row by row. Waits for the device."""
    if not isinstance(target, Tensor):
        return False
    return any(tensor.shape == target.shape and bool((tensor == target).all()) for tensor in tensors_in(batch))


class RowOrders:
    """Finds out whose the rows of losses are, and remembers what it had to ask of the device.

    Args:
        row_order: One of ``ROW_ORDERS``.
    """

    def __init__(self, row_order: str) -> None:
        self.row_order = row_order
        self._by_target: dict[tuple[str, int], str] = {}
        # Calls whose number of rows once told nothing. Where it is B in another step, it may be so by chance.
        self._untold: set[str] = set()

    def state_dict(self) -> list[str]:
        """The calls whose number of rows once told nothing."""
        return sorted(self._untold)

    def load_state_dict(self, state: list[str]) -> None:
        """Restore :meth:`state_dict`."""
        self._untold = set(state)

    @property
    def are_all_told(self) -> bool:
        """Whether the number of rows has told whose they are in each call so far."""
        return not self._untold

    def layout(
        self, named: NamedLoss, arguments: Arguments, source: str, batch: Any, batch_size: int, *, is_seen: bool = True
    ) -> InstanceLayout | None:
        """Layout of a call's rows; None where R is no multiple of B, in an order that nothing tells, or B by chance.

        Args:
            named: The loss.
            arguments: Of the call.
            source: Which call it is.
            batch: What the step is given.
            batch_size: B.
            is_seen: Whether the call is being made now, so that its place is known.
        """
        layout = self._layout(named, arguments, source, batch, batch_size)
        if batch_size == 1 or (layout is not None and not self._untold):
            return layout
        place = place_of_call()
        key = f"{named.name} {place} {place.from_line}" if is_seen else _UNSEEN
        if layout is None and named.num_rows(arguments):
            self._untold.add(key)
        is_told = self._untold.isdisjoint((key, _UNSEEN))
        return layout if is_told or _is_column_of(arguments.get("target"), batch) else None

    def _layout(
        self, named: NamedLoss, arguments: Arguments, source: str, batch: Any, batch_size: int
    ) -> InstanceLayout | None:
        values, num_rows = arguments[named.inputs[0]], named.num_rows(arguments)
        layout = row_layout(num_rows, batch_size, None)
        if layout is not None or num_rows == 0:
            return layout
        if num_rows % batch_size == 0:
            return row_layout(num_rows, batch_size, self._order(values, arguments, source, batch, batch_size, num_rows))
        if named.num_axes == 1 and values.ndim > 1 and values.shape[1] == batch_size:
            return InstanceLayout((num_rows, batch_size), 1, 2)  # (T, B, *d), as recurrent networks return it
        return None

    def _order(
        self, values: Tensor, arguments: Arguments, source: str, batch: Any, batch_size: int, num_rows: int
    ) -> str | None:
        if self.row_order != "auto":
            return self.row_order
        if torch.compiler.is_compiling():
            return None
        order = order_before_flattening(values, num_rows, batch_size)
        target = arguments.get("target")
        if order is not None or not isinstance(target, Tensor) or target.shape != (num_rows,):
            return order
        key = source, num_rows // batch_size
        if key not in self._by_target:
            order = order_by_target(target, arguments.get("ignore_index"), tensors_in(batch), batch_size)
            if order is not None:
                self._by_target[key] = order
        return self._by_target.get(key)


def fold(
    losses: Tensor, norms: Tensor | None, counts: Tensor, layout: InstanceLayout, tokens: bool, totals: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""Losses and scores of instances from those of their elements.

    With counts :math:`e_j` (0 where masked), :math:`l_i = \sum_j e_j l_{ij} / \sum_j e_j`; the score averages the
    norms in the same way for tokens, and else is the norm of the gradient that has them as coordinates,
    :math:`\sqrt{\sum_j (e_j n_{ij})^2} / \sum_j e_j`. Instances without a counted element get 0.

    Args:
        losses: Shape ``(R, *d)``, like ``norms`` and ``counts``.
        norms: Gradient norms of the elements; None: the loss is the score.
        counts: How much an element counts, not negative.
        layout: Of the rows.
        tokens: Whether norms are averaged.
        totals: What is divided by instead of :math:`\sum_j e_j`, shape ``(B,)``: then counts weigh between instances.

    Returns:
        Losses and scores, each of shape ``(B,)``.
    """
    if losses.shape == (layout.batch_size,):  # each instance's one element is its loss
        is_masked = counts == 0
        folded = losses.masked_fill(is_masked, 0.0)
        scores = folded if norms is None else norms.masked_fill(is_masked, 0.0)
        return (folded, scores) if totals is None else (folded * counts, scores * counts)
    counts = layout.per_instance(counts)
    total = counts.sum(1) if totals is None else totals
    scale = torch.where(total > 0, total, 1.0).reciprocal()

    def counted(values: Tensor) -> Tensor:
        # Masked elements may be inf or nan: 0 times them is not 0.
        return layout.per_instance(values).masked_fill(counts == 0, 0.0) * counts

    folded = counted(losses).sum(1) * scale
    if norms is None:
        return folded, folded
    gradient = counted(norms)
    return folded, (gradient.sum(1) if tokens else torch.linalg.vector_norm(gradient, dim=1)) * scale
