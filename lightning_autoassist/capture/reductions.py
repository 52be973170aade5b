"""Losses written by hand: reductions of a tensor to one number, and which of them have one value an instance.

That a tensor's first axis is as long as the batch shows nothing: classes or features may be as many by chance. It is
shown by gradients, in the first steps: what value i depends on, in the results of the network's last layers, is no
other value's.

Shapes: B batch, d further dimensions.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from lightning_autoassist.capture.autograd_graph import LossPart, loss_part
from lightning_autoassist.capture.captured_loss import CapturedLoss, times
from lightning_autoassist.capture.instance_layout import InstanceLayout
from lightning_autoassist.capture.place import Place
from lightning_autoassist.losses.functional import ElementwiseLoss

# What was shown at so many batch sizes is no coincidence of lengths.
_ENOUGH_SIZES = 3
# What was not to be told in so many steps, as no gradient came, is not asked again.
_MAX_UNKNOWN = 20


class Reduction(NamedTuple):
    """A mean or sum of everything in ``values``: maybe the end of a loss written by hand.

    Attributes:
        values: What is reduced.
        node: Of the result.
        place: Of the call.
    """

    values: Tensor
    node: Node
    place: Place

    @property
    def source(self) -> str:
        """The reduction's name and place, for messages."""
        return f"hand-written loss {self.place}"

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum; otherwise it is a mean."""
        return "Sum" in self.node.name()

    @property
    def edge(self) -> GradientEdge:
        """Where its result stands in the graph."""
        return GradientEdge(self.node, 0)

    def found(self, batch_size: int, labels: Tensor | None) -> CapturedLoss:
        """The loss, with ``values``, shape ``(B, *d)``, for its rows."""
        values, node, layout = self.values.detach(), self.node, InstanceLayout((batch_size,), 0, 1)

        def weigh(weights: Tensor) -> None:
            factor = layout.spread(weights, values)
            # What the reduction gives back, and not what else is done with its values.
            node.register_hook(lambda inputs, outputs: tuple(times(gradient, factor) for gradient in inputs))

        reduction, elements = "sum" if self.is_sum else "mean", ElementwiseLoss(values.float(), None, None)
        return CapturedLoss(
            self.source, reduction, self.edge, elements, layout, labels=labels, weigh=weigh, is_by_hand=True
        )


def own_node(node: Node) -> Node:
    """The operation itself: results of tensors' subclasses are handed out by a node that passes them on."""
    while node.name().startswith("Alias") and node.next_functions[0][0] is not None:
        node = node.next_functions[0][0]
    return node


class ShownReductions:
    """Remembers, from step to step, which reductions were shown to have one value an instance."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[object, ...], dict[int, bool]] = {}
        self._num_unknown = Counter[tuple[object, ...]]()

    def may_be(self, reduction: Reduction, batch_size: int) -> bool:
        """Whether it has as many values as the batch, and nothing was shown against it."""
        values = reduction.values
        if values.ndim == 0 or values.shape[0] != batch_size:
            return False
        return False not in self._verdicts.get(_key(reduction), {}).values()

    def is_shown(self, reduction: Reduction, batch_size: int) -> bool:
        """Whether each value is one instance's. Waits for the device when it is asked for the first time."""
        if not self.may_be(reduction, batch_size):
            return False
        key, values = _key(reduction), reduction.values
        verdicts = self._verdicts.setdefault(key, {})
        if batch_size == 1 or batch_size in verdicts or len(verdicts) >= _ENOUGH_SIZES:
            return True
        verdict = None
        with contextlib.suppress(RuntimeError):  # reentrant checkpoints allow no such gradients
            verdict = has_one_value_an_instance(values, loss_part(values))
        if verdict is None:  # not to be told in this step
            self._num_unknown[key] += 1
            if self._num_unknown[key] < _MAX_UNKNOWN:
                return False
        verdicts[batch_size] = bool(verdict)
        return bool(verdict)


def _key(reduction: Reduction) -> tuple[object, ...]:
    node = reduction.values.grad_fn
    return reduction.place, "" if node is None else node.name(), reduction.values.ndim


def has_one_value_an_instance(values: Tensor, part: LossPart) -> bool | None:
    """Whether ``values[i]`` depend on row i alone of what the last layers returned.

    For each bit of the numbers 0 to B - 1 it asks for the gradients of the values whose number has that bit, and of the
    others: so any two values are once on different sides. A side may reach no row of the other's; where a layer's
    first axis is not the batch's, as after flattening or with the time first, no row that the other reaches as well.

    Args:
        values: Shape ``(B, *d)``.
        part: The graph behind them.

    Returns:
        None where no gradient reaches the layers, as from a hinge that is not active.
    """
    batch_size = values.shape[0]
    numbers = torch.arange(batch_size, device=values.device)
    is_known = False
    for bit in range((batch_size - 1).bit_length()):
        with_bit = (numbers >> bit) % 2 == 1
        mine, others = (_reached(values, part.layers, side) for side in (with_bit, ~with_bit))
        verdicts = [_is_apart(*sides, with_bit) for sides in zip(mine, others, strict=True)]
        if False in verdicts:
            return False
        is_known |= True in verdicts
    return True if is_known else None


def _reached(values: Tensor, layers: list[GradientEdge], rows: Tensor) -> list[Tensor]:
    """Which rows of layers' results the gradients of some of the values reach."""
    if not layers:
        return []
    # Unequal factors, so that the gradients of two values do not cancel.
    factors = torch.linspace(0.5, 1.5, values.numel(), device=values.device).reshape(values.shape)
    factors = factors * rows.reshape(-1, *[1] * (values.ndim - 1))
    gradients = torch.autograd.grad(values, layers, factors.to(values.dtype), retain_graph=True, allow_unused=True)
    return [torch.zeros_like(rows) if gradient is None else _cells(gradient != 0, len(rows)) for gradient in gradients]


def _cells(is_reached: Tensor, batch_size: int) -> Tensor:
    """By rows, or by the first two axes where the second is the batch's."""
    is_second = is_reached.ndim > 1 and is_reached.shape[0] != batch_size == is_reached.shape[1]
    axes = min(is_reached.ndim, 1 + is_second)
    return is_reached.reshape(*is_reached.shape[:axes], -1).any(-1)


def _is_apart(mine: Tensor, others: Tensor, with_bit: Tensor) -> bool | None:
    """Whether both sides reach rows of their own alone; None where that cannot be seen."""
    if mine.shape == others.shape == with_bit.shape:
        is_apart = not bool(((mine & ~with_bit) | (others & with_bit)).any())
        return None if is_apart and not bool((mine | others).any()) else is_apart
    # Which rows are whose is not known here: that one side reaches some shows nothing.
    if mine.shape != others.shape or not (bool(mine.any()) and bool(others.any())):
        return None
    return not bool((mine & others).any())
