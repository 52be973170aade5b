"""Weights of instances in the backward pass: the values of the forward pass stay as they are, bit for bit.

Shapes: R rows, C classes, d further dimensions.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from lightning_autoassist.capture.autograd_graph import loss_at
from lightning_autoassist.capture.captured_loss import MANY_LOGITS, weigh_at_node
from lightning_autoassist.capture.instance_layout import InstanceLayout
from lightning_autoassist.losses.functional import Arguments, NamedLoss, class_axis, counted, has_class_indices

# What the step that runs now is weighted with.
IN_FORCE: ContextVar[Tensor | None] = ContextVar("IN_FORCE", default=None)

# Up to so many log-probabilities their rows are weighted all over.
_FEW_NUMBERS = 2**16


def weights_in_force() -> Tensor | None:
    """Weights of the instances of the step under watch, shape ``(B,)``; None: none enter."""
    return IN_FORCE.get()


def weighted_call(
    named: NamedLoss, arguments: Arguments, layout: InstanceLayout, weights: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The call with its value as it is, and with row i's gradient multiplied by its instance's weight.

    Args:
        named: The loss.
        arguments: Of the call.
        layout: Whose its rows are.
        weights: Shape ``(B,)``.

    Returns:
        The result, and the unweighted, detached rows where they came along.
    """
    if arguments["reduction"] == "none":
        rows = named.function(**arguments)
        return ScaleGradient.apply(rows, layout.spread(weights, rows)), rows.detach()
    if named.function is F.nll_loss and arguments["weight"] is None:
        return nll_by_rows(arguments, layout.spread(weights, arguments["target"]))
    if named.function is F.cross_entropy and has_class_indices(arguments):
        result = _weighted_at_node(named, arguments, layout, weights)
        if result is not None:
            return result, None
    inputs = {
        name: weighted_rows(arguments[name], named, layout, weights, arguments)
        for name in named.inputs
        if isinstance(arguments[name], Tensor) and arguments[name].requires_grad
    }
    return named.function(**{**arguments, **inputs}), None


def _weighted_at_node(named: NamedLoss, arguments: Arguments, layout: InstanceLayout, weights: Tensor) -> Tensor | None:
    """A cross-entropy under autocast, weighted at the log-probabilities inside; None where these are many."""
    if arguments["input"].numel() >= MANY_LOGITS or torch.compiler.is_compiling():
        return None
    result = named.function(**arguments)
    loss = loss_at(result)
    if loss is None:
        return None
    weigh_at_node(loss, layout, weights)
    return result


def weighted_rows(
    values: Tensor, named: NamedLoss, layout: InstanceLayout, weights: Tensor, arguments: Arguments
) -> Tensor:
    """An input of a loss, the gradient of whose rows is weighted."""
    if layout.num_axes == 0:
        factor = weights
    else:
        if values.shape[named.rows_axis] != layout.num_rows:
            # One row that the loss would broadcast: each copy has a weight of its own.
            shapes = [arguments[name].shape for name in named.inputs]
            values = values.expand(torch.broadcast_shapes(*shapes))
        factor = layout.spread(weights, values.movedim(named.rows_axis, 0)).movedim(0, named.rows_axis)
    weighted: Tensor = ScaleGradient.apply(values, factor)
    return weighted


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by ``factor``, a tensor that broadcasts to it."""

    @staticmethod
    @override
    def forward(ctx: Any, values: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return values.view_as(values)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor.to(gradient.dtype), None


class ReduceRows(torch.autograd.Function):
    """``reduced``, whose gradient goes to the rows: divided by ``count``, multiplied by ``factor``."""

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, reduced: Tensor, count: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(count, factor)
        ctx.shape = rows.shape
        return reduced.clone()

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        count, factor = ctx.saved_tensors
        # Divide first, as nll_loss does: x / n and x * (1 / n) differ in the last bit.
        return (gradient / count * factor.to(gradient.dtype)).expand(ctx.shape), None, None, None


def nll_by_rows(arguments: Arguments, factor: Tensor) -> tuple[Tensor, Tensor]:
    """``nll_loss`` without class weights, weighted at its rows: cheaper than weighting the rows of the logits.

    Args:
        arguments: Of the call; the reduction is "mean" or "sum".
        factor: Weights that broadcast to the rows, shape ``(R,)`` or ``(R, *d)``.

    Returns:
        The reduced loss, and the detached rows, shape ``(R, *d)``.
    """
    values = arguments["input"]
    if values.numel() <= _FEW_NUMBERS and values.requires_grad and not torch.compiler.is_compiling():
        rows = F.nll_loss(**{**arguments, "input": values.detach(), "reduction": "none"})
        # A hook takes a fifth of the time of an autograd function written in Python; it has to weight all C columns.
        weighted = values.view_as(values)
        columns = factor.unsqueeze(class_axis(values))
        weighted.register_hook(lambda gradient: gradient * columns.to(gradient.dtype))
        return F.nll_loss(**{**arguments, "input": weighted}), rows
    rows = F.nll_loss(**{**arguments, "reduction": "none"})
    reduced = F.nll_loss(**{**arguments, "input": arguments["input"].detach()})
    if arguments["reduction"] == "mean":
        count = counted(arguments).sum().to(rows.dtype)
    else:
        count = torch.ones((), dtype=rows.dtype, device=rows.device)
    return ReduceRows.apply(rows, reduced, count, factor), rows.detach()


def why_not_instance_losses(source: str, losses: Any, batch_size: int) -> str | None:
    """What is wrong with a tensor that is to hold one loss an instance; None where it does.

    Args:
        source: Who gave it, for the message.
        losses: What was given.
        batch_size: B.
    """
    if isinstance(losses, Tensor) and losses.shape == (batch_size,):
        return None
    shape = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
    return (
        f"The {source} must be a tensor of shape ({batch_size},), one loss for each instance of the batch, got {shape}."
    )


def weigh_given(losses: Tensor, root: Tensor, weights: Tensor) -> bool:
    """Let weights enter at losses of instances, shape ``(B,)``; False where they do not lead to ``root``."""
    if not losses.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(root, losses, retain_graph=True, allow_unused=True)
    if gradient is None:
        return False
    weights = weights.to(losses.dtype)
    losses.register_hook(lambda gradient: gradient * weights)
    return True
