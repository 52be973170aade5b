"""Losses found in a step, and how they add up to one loss and one score for each instance.

Shapes: B batch, R rows of a loss (B, or a multiple of it), d further dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from lightning_autoassist.loss_layout import Layout, fold
from lightning_autoassist.losses import Elements


class Found(NamedTuple):
    """One loss that may be, or be part of, what the step returns.

    Attributes:
        source: Which call it comes from.
        reduction: "mean", "sum", "batchmean" or "none".
        edge: Where it stands in the autograd graph; in compiled code, where that cannot be asked, its value.
        elements: Of its rows.
        layout: Whose the rows are.
        tokens: See :class:`~lightning_autoassist.losses.NamedLoss`.
        labels: Its target where that is integer and of shape ``(B,)``.
        weigh: Lets weights, shape ``(B,)``, enter where they did not at the call.
        is_by_hand: Whether it is a guess from a reduction's shape.
    """

    source: str
    reduction: str
    edge: GradientEdge | Tensor
    elements: Elements
    layout: Layout
    tokens: bool = True
    labels: Tensor | None = None
    weigh: Callable[[Tensor], None] | None = None
    is_by_hand: bool = False

    @property
    def node(self) -> Node | None:
        return self.edge.grad_fn if isinstance(self.edge, Tensor) else self.edge.node

    def is_root(self, root: Tensor) -> bool:
        """Whether it is ``root`` itself."""
        if isinstance(self.edge, Tensor):
            return root is self.edge
        edge = get_gradient_edge(root)
        return edge.node is self.edge.node and edge.output_nr == self.edge.output_nr


class Reduction(NamedTuple):
    """A mean or sum of everything in ``values``, shape ``(B, *d)``: maybe the end of a loss written by hand."""

    values: Tensor
    node: Node
    source: str

    def found(self, layout: Layout) -> Found:
        """The loss, with ``values`` for its rows."""
        values = self.values

        def weigh(weights: Tensor) -> None:
            factor = layout.spread(weights, values).to(values.dtype)
            values.register_hook(lambda gradient: gradient * factor)

        elements = Elements(values.detach().float(), None, None)
        edge = get_gradient_edge(values)
        return Found(self.source, "none", edge, elements, layout, weigh=weigh, is_by_hand=True)


class Contribution(NamedTuple):
    """A loss that reaches the returned one, with its coefficient: the gradient there; None: it is the returned one."""

    found: Found
    coefficient: Tensor | None


def contributions(root: Tensor, found: Sequence[Found]) -> list[Contribution]:
    """Those losses that reach ``root``; metrics and losses that are only logged do not."""
    if not root.requires_grad or not found:
        return []
    if len(found) == 1 and found[0].is_root(root):
        return [Contribution(found[0], None)]
    # Runs backward from the root to the losses, and not into the network behind them.
    edges: Sequence[Any] = [each.edge for each in found]
    coefficients = torch.autograd.grad(root, edges, retain_graph=True, allow_unused=True)
    return [
        Contribution(each, coefficient)
        for each, coefficient in zip(found, coefficients, strict=True)
        if coefficient is not None
    ]


def combine(parts: Sequence[Contribution]) -> tuple[Tensor, Tensor]:
    r"""Losses and scores of the instances, each of shape ``(B,)``.

    Several losses with coefficients :math:`c_k` give :math:`\sum_k c_k l_k` and :math:`\sqrt{\sum_k c_k^2 s_k^2}`. The
    coefficients are relative to the largest one: so they do not depend on the scale of the whole.
    """
    folded = [_fold(*part) for part in parts]
    losses, scores, shares = (torch.stack(column) for column in zip(*folded, strict=True))
    shares = shares / shares.abs().max().clamp(min=torch.finfo(shares.dtype).tiny)
    # Not a matrix product, which tensor cores would round.
    losses, scores = shares.unsqueeze(1) * losses, shares.unsqueeze(1) * scores
    return losses.sum(0), scores[0].abs() if len(parts) == 1 else torch.linalg.vector_norm(scores, dim=0)


def _fold(found: Found, coefficient: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and scores of the instances, and the loss's share in the whole: the sum of its rows' coefficients."""
    losses, norms, mask = found.elements
    counts = torch.ones_like(losses) if mask is None else mask.to(losses.dtype)
    share = losses.new_ones(()) if coefficient is None else coefficient.detach().to(losses.dtype)
    if share.ndim:
        # The user's own reduction says how much each row counts: it may have masked some.
        rows = share.reshape(*losses.shape, -1).sum(-1)
        losses, counts = losses * rows.sign(), counts * rows.abs()
        share = rows.abs().sum()
    elif found.reduction == "sum":
        share = share * counts.sum()
    elif found.reduction == "batchmean":
        share = share * (counts.numel() / found.layout.num_rows)
    return *fold(losses, norms, counts, found.layout, found.tokens), share
