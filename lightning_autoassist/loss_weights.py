"""Weights of instances in the backward pass: the values of the forward pass stay as they are, bit for bit.

Shapes: R rows, C classes, d further dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.losses import Arguments


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by ``factor``, a tensor that broadcasts to it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return gradient * factor.to(gradient.dtype), None


class ReduceRows(torch.autograd.Function):
    """``reduced``, whose gradient goes to the rows: divided by ``count``, multiplied by ``factor``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, reduced: Tensor, count: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(count, factor)
        ctx.shape = rows.shape
        return reduced.clone()

    @staticmethod
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
    rows = F.nll_loss(**{**arguments, "reduction": "none"})
    reduced = F.nll_loss(**{**arguments, "input": arguments["input"].detach()})
    if arguments["reduction"] == "mean":
        count = (arguments["target"] != arguments["ignore_index"]).sum().to(rows.dtype)
    else:
        count = torch.ones((), dtype=rows.dtype, device=rows.device)
    return ReduceRows.apply(rows, reduced, count, factor), rows.detach()
