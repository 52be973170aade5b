"""Losses found in a step, and how they add up to one loss and one score for each instance.

Shapes: B batch, R rows of a loss (B, or a multiple of it), d further dimensions.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F

from lightning_autoassist.capture.autograd_graph import GraphLoss, loss_at
from lightning_autoassist.capture.instance_layout import InstanceLayout, fold
from lightning_autoassist.losses.functional import (
    Arguments,
    ElementwiseLoss,
    NamedLoss,
    distribution_axis,
    has_class_indices,
    nll_norms,
    nll_norms_in_backward,
)
from lightning_autoassist.losses.margins import RowMargins, row_margins

# From so many logits on, a norm is cheaper than another softmax; below, a hook in backward costs more than it saves.
MANY_LOGITS = 2**19
# Their targets are 0 and 1 in floating point.
_BINARY = (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)


class SoftmaxNorms(NamedTuple):
    """Norms of a cross-entropy that are not known yet.

    The backward pass computes the gradient that they are the norms of; to compute it in the forward pass takes the
    exponential of every logit once more (at 2048 x 8000 on one core 14 ms instead of 2).

    Attributes:
        node: Of the ``log_softmax``.
        arguments: Of the ``nll_loss``.
    """

    node: Node
    arguments: Arguments

    def now(self, losses: Tensor) -> Tensor:
        """The norms, in the shape of the unreduced losses."""
        with torch.no_grad():
            return nll_norms({**self.arguments, "input": self.arguments["input"].detach().float()}, losses)

    def in_backward(self, then: Callable[[Tensor], None]) -> None:
        """Give the norms to ``then`` during backward."""
        rest = {name: value for name, value in self.arguments.items() if name != "input"}

        def hook(gradients: tuple[Tensor, ...], upstream: tuple[Tensor, ...]) -> None:
            with torch.no_grad(), contextlib.suppress(Exception):  # the user's backward must go on
                then(nll_norms_in_backward(rest, gradients[0], upstream[0]))

        self.node.register_hook(hook)


def norms_in_backward(arguments: Arguments) -> SoftmaxNorms | None:
    """Norms of an ``nll_loss`` of log-probabilities, where backward computes them for less; else None."""
    log_probs = arguments["input"]
    if torch.compiler.is_compiling() or log_probs.grad_fn is None or log_probs.numel() < MANY_LOGITS:
        return None
    return SoftmaxNorms(log_probs.grad_fn, arguments)


class CapturedLoss(NamedTuple):
    """One loss that may be, or be part of, what the step returns.

    Attributes:
        source: Which call it comes from.
        reduction: "mean", "sum", "batchmean" or "none".
        edge: Where it stands in the autograd graph; in compiled code, where that cannot be asked, its value.
        elements: Of its rows.
        layout: Whose the rows are.
        tokens: See ``NamedLoss``.
        labels: Its target where that is one class an instance, shape ``(B,)``, int64.
        weigh: Lets weights, shape ``(B,)``, enter where they did not at the call.
        is_by_hand: Whether it is a guess from a reduction's shape.
        softmax: Where its norms are to come from, if they are not in ``elements``.
        margins: Of its rows, where it is a classification and somebody asks.
    """

    source: str
    reduction: str
    edge: GradientEdge | Tensor
    elements: ElementwiseLoss
    layout: InstanceLayout
    tokens: bool = True
    labels: Tensor | None = None
    weigh: Callable[[Tensor], None] | None = None
    is_by_hand: bool = False
    softmax: SoftmaxNorms | None = None
    margins: RowMargins | None = None

    def with_norms(self, norms: Tensor) -> CapturedLoss:
        """This loss, with known gradient norms of its elements."""
        return self._replace(elements=self.elements._replace(norms=norms), softmax=None)

    @property
    def node(self) -> Node | None:
        """Where the loss stands in the autograd graph; None of a tensor without one."""
        return self.edge.grad_fn if isinstance(self.edge, Tensor) else self.edge.node

    def is_root(self, root: Tensor) -> bool:
        """Whether it is ``root`` itself."""
        if isinstance(self.edge, Tensor):
            return root is self.edge
        if root.grad_fn is not None:
            return root.grad_fn is self.edge.node and root.output_nr == self.edge.output_nr
        edge = get_gradient_edge(root)
        return edge.node is self.edge.node and edge.output_nr == self.edge.output_nr


def scripted(loss: GraphLoss, layout: InstanceLayout, *, with_margins: bool, with_norms: bool = True) -> CapturedLoss:
    """A loss whose call was not seen, by its node in the graph."""
    node, named, arguments = loss
    weigh = functools.partial(weigh_at_node, loss, layout)
    elements, edge = named.elements(arguments, with_norms=with_norms), GradientEdge(node, 0)
    labels = class_target(named, arguments, layout.batch_size)
    margins = margins_in(named, arguments, elements, layout) if with_margins else None
    reduction = arguments["reduction"]
    return CapturedLoss(loss.source, reduction, edge, elements, layout, named.tokens, labels, weigh, margins=margins)


def weigh_at_node(loss: GraphLoss, layout: InstanceLayout, weights: Tensor) -> None:
    """Let weights, shape ``(B,)``, enter in backward at what goes into a loss's node."""
    factor = layout.spread(weights, loss.arguments["input"])
    loss.node.register_hook(lambda inputs, outputs: tuple(times(gradient, factor) for gradient in inputs))


def margins_in(
    named: NamedLoss, arguments: Arguments, elements: ElementwiseLoss, layout: InstanceLayout
) -> RowMargins | None:
    """Margins of a call's rows, where it has any; whose logit is the strongest other, where an instance has one row."""
    is_single = elements.losses.numel() == layout.batch_size
    try:
        return row_margins(named.function, arguments, elements.mask, with_others=is_single)
    except Exception:  # the losses are known all the same
        return None


def class_target(named: NamedLoss, arguments: Arguments, batch_size: int) -> Tensor | None:
    """A call's target where that is one class an instance, shape ``(B,)``, int64, else None.

    Binary losses have it in floating point, of shape ``(B,)`` or ``(B, 1)``; what is between the classes is -1.
    """
    target = arguments.get("target")
    if not isinstance(target, Tensor) or target.shape[:1] != (batch_size,) or target.numel() != batch_size:
        return None
    if not target.is_floating_point():
        return target.detach().long() if target.ndim == 1 else None
    if named.function not in _BINARY:
        return None
    values = target.detach().reshape(batch_size)
    classes = values.long()
    return classes.where(classes == values, -1)


def inside_of(named: NamedLoss, arguments: Arguments, result: Tensor) -> tuple[NamedLoss, Arguments]:
    """The ``nll_loss`` that a cross-entropy under autocast ends in, as the graph has it; any other call as it is."""
    if named.function is not F.cross_entropy or arguments["reduction"] == "none" or torch.compiler.is_compiling():
        return named, arguments
    if not has_class_indices(arguments) or arguments["input"].numel() >= MANY_LOGITS:
        return named, arguments
    loss = loss_at(result)
    return (named, arguments) if loss is None else (loss.named, loss.arguments)


def weigh_at(tensor: Tensor, layout: InstanceLayout) -> Callable[[Tensor], None]:
    """What lets weights, shape ``(B,)``, enter at a tensor whose rows are as in ``layout``.

    The hook is of the graph's node, not of the tensor: users write ``loss *= mask`` into what they were given.
    """
    edge, like = get_gradient_edge(tensor), torch.empty((), device="meta").expand(tensor.shape)

    def weigh(weights: Tensor) -> None:
        factor = layout.spread(weights, like)
        edge.node.register_prehook(
            lambda gradients: tuple(
                times(gradient, factor) if number == edge.output_nr else gradient
                for number, gradient in enumerate(gradients)
            )
        )

    return weigh


def times(gradient: Tensor | None, factor: Tensor) -> Tensor | None:
    """The product in the gradient's own type; None where there is no gradient."""
    return None if gradient is None else gradient * factor.to(gradient.dtype)


class WeightedLoss(NamedTuple):
    """A loss that reaches the returned one.

    Attributes:
        found: The loss.
        coefficient: The returned loss's gradient there; None: it is the returned one.
        unit: Where its rows go through the user's own mean or sum to the returned loss: the gradient at one element
            of what is reduced, shape ``()``. The coefficients in units of it are the user's own factors on rows.
        is_sum: Whether that reduction is a sum.
        reduced: What is reduced, detached, where it is one value an instance, shape ``(B,)``.
        by_element: What is reduced, detached, where it has an element for each of the loss's.
    """

    found: CapturedLoss
    coefficient: Tensor | None
    unit: Tensor | None = None
    is_sum: bool = False
    reduced: Tensor | None = None
    by_element: Tensor | None = None


def contributions(root: Tensor, found: Sequence[CapturedLoss]) -> list[WeightedLoss]:
    """The losses that reach ``root``; metrics and losses that are only logged do not."""
    if not root.requires_grad or not found:
        return []
    if len(found) == 1 and found[0].is_root(root):
        return [WeightedLoss(found[0], None)]
    # Runs backward from the root to the losses, and not into the network behind them.
    edges: Sequence[Any] = [each.edge for each in found]
    coefficients = torch.autograd.grad(root, edges, retain_graph=True, allow_unused=True)
    return [
        WeightedLoss(each, coefficient)
        for each, coefficient in zip(found, coefficients, strict=True)
        if coefficient is not None
    ]


class Explanation(NamedTuple):
    """A captured loss, for the user to read.

    Attributes:
        source: Which call it is, with file and line.
        reduction: How the call reduces its rows.
        folding: How many rows an instance has, and in which order.
        coefficient: Of the loss in the returned one.
    """

    source: str
    reduction: str
    folding: str
    coefficient: float


def explained(part: WeightedLoss) -> Explanation:
    """Describe a part of the returned loss for a message. This waits for the device."""
    found, coefficient = part.found, part.coefficient
    layout = found.layout
    num_rows = layout.num_rows // layout.batch_size
    folding = "one row each"
    if num_rows > 1:
        folding = f"{num_rows} rows each, {'time' if layout.axis else 'batch'}-major"
    num_values = found.elements.losses.numel() // max(layout.num_rows, 1)
    if num_values > 1:
        folding += f", {num_values} values a row"
    total = 1.0 if coefficient is None else float(coefficient.sum())
    return Explanation(found.source, found.reduction, folding, total)


def scored_in_backward(part: WeightedLoss) -> tuple[Tensor, Tensor]:
    """Losses of the instances now, and scores that are NaN until backward has run."""
    softmax = part.found.softmax
    assert softmax is not None
    # What the hook below holds must know nothing of the graph that holds the hook: such a ring is never collected.
    bare = part.found._replace(softmax=None, edge=part.found.elements.losses, weigh=None)
    part = part._replace(found=bare)
    losses, _ = combine([part])
    scores = torch.full_like(losses, float("nan"))

    def fill(norms: Tensor) -> None:
        scores.copy_(combine([part._replace(found=bare.with_norms(norms))])[1])

    softmax.in_backward(fill)
    return losses, scores


def combine(parts: Sequence[WeightedLoss]) -> tuple[Tensor, Tensor]:
    r"""Losses and scores of the instances, each of shape ``(B,)``.

    Several losses with coefficients :math:`c_k` give :math:`\sum_k c_k l_k` and :math:`\sqrt{\sum_k c_k^2 s_k^2}`. The
    coefficients are relative to the largest one: so they do not depend on the scale of the whole.
    """
    if len(parts) == 1 and _is_direct(parts[0]):
        losses, norms, _ = parts[0].found.elements
        return losses, losses if norms is None else norms
    if len(parts) == 1:
        losses, scores, share = _fold(parts[0])
        if parts[0].coefficient is None:
            return losses, scores
        losses = losses * share.sign()
        return losses, losses if parts[0].found.is_by_hand else scores * share.sign().abs()
    folded = [_fold(part) for part in parts]
    losses, scores, shares = (torch.stack(column) for column in zip(*folded, strict=True))
    shares = shares / shares.abs().max().clamp(min=torch.finfo(shares.dtype).tiny)
    # Not a matrix product, which tensor cores would round.
    losses, scores = shares.unsqueeze(1) * losses, shares.unsqueeze(1) * scores
    return losses.sum(0), torch.linalg.vector_norm(scores, dim=0)


def margins_of(parts: Sequence[WeightedLoss]) -> RowMargins | None:
    """The margins of the instances, shape ``(B,)``, each the mean over its rows that count; NaN where none does.

    Returns:
        None where no loss is a classification, or several are, which may be of different classes. Strongest other
        classes are there where each instance has one row.
    """
    known = [(part, part.found.margins) for part in parts if part.found.margins is not None]
    if len(known) != 1:
        return None
    part, (values, others) = known[0]
    layout, coefficient = part.found.layout, part.coefficient
    if others is not None:
        return RowMargins(values.reshape(layout.batch_size), others.reshape(layout.batch_size))
    counts = ~values.isnan()
    if coefficient is not None and coefficient.ndim:  # the user's own mask of rows
        counts &= _by_rows(coefficient.detach(), values) != 0
    counts, values = layout.per_instance(counts), layout.per_instance(values)
    return RowMargins(values.where(counts, 0.0).sum(1) / counts.sum(1), None)  # 0 / 0 where none counts


def _is_direct(part: WeightedLoss) -> bool:
    """Whether rows are the instances' own as they stand: one each, 0 where it does not count, and nothing beside."""
    is_whole = part.coefficient is None and part.found.softmax is None
    return is_whole and part.found.elements.losses.shape == (part.found.layout.batch_size,)


def _fold(part: WeightedLoss) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and scores of the instances, and the loss's share in the whole: the sum of its rows' coefficients."""
    found, coefficient = part.found, part.coefficient
    if found.softmax is not None:
        part = part._replace(found=found.with_norms(found.softmax.now(found.elements.losses)))
    if coefficient is not None and coefficient.ndim:
        return _fold_by_rows(part, coefficient)
    losses, norms, mask = part.found.elements
    counts = torch.ones_like(losses) if mask is None else mask.to(losses.dtype)
    share = losses.new_ones(()) if coefficient is None else coefficient.detach().to(losses.dtype)
    if found.reduction == "sum":
        share = share * counts.sum()
    elif found.reduction == "batchmean":
        share = share * (counts.numel() / found.layout.num_rows)
    return *fold(losses, norms, counts, found.layout, found.tokens, None), share


def _fold_by_rows(part: WeightedLoss, coefficient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Losses and scores of instances where the user reduces the rows by factors of their own, :math:`f_{ij}`.

    An instance's loss is :math:`\sum_j f_{ij} l_{ij}`, divided by the number of its rows with a factor, unless the user
    averages within instances. A sum's factors that add up to 1 hold the batch's size, which is taken out.
    """
    losses, norms, mask = part.found.elements
    layout, rows = part.found.layout, _by_rows(coefficient.detach().to(losses.dtype), losses)
    if mask is not None:
        rows = rows * mask
    unit = part.unit
    if unit is None:
        unit = rows.abs().sum() / (rows != 0).sum().clamp(min=1)
    unit = unit.to(losses.dtype)
    factors = (rows / unit).nan_to_num(0.0, 0.0, 0.0)  # 0 / 0 where the loss counts for nothing
    is_averaged = part.reduced is not None and losses.numel() > layout.batch_size
    has_one_row = losses.shape == (layout.batch_size,)
    count = layout.batch_size if is_averaged or (has_one_row and not part.is_sum) else (factors != 0).sum()
    if part.is_sum:
        scale = torch.where((factors.abs().sum() - 1).abs() < 1e-3, count, 1.0)
        factors, unit = factors * scale, unit / scale
    if part.reduced is not None and has_one_row:
        # The user's factors may depend on the loss itself, as in a focal loss.
        folded = part.reduced.to(losses.dtype) * scale if part.is_sum else part.reduced.to(losses.dtype)
        scores = folded if norms is None else norms.masked_fill(factors == 0, 0.0) * factors.abs()
        return folded, scores, unit * layout.batch_size
    counts = factors.abs()
    totals = layout.per_instance(counts != 0).sum(1) if losses.ndim else counts
    totals = torch.ones_like(totals) if is_averaged else totals
    folded, scores = fold(losses * factors.sign(), norms, counts, layout, part.found.tokens, totals)
    values = None
    if part.reduced is not None:
        values = part.reduced.to(losses.dtype)
    elif part.by_element is not None:
        values = layout.per_instance(part.by_element.to(losses.dtype)).sum(1) / totals.clamp(min=1)
    if values is not None:
        # The user's factors may depend on the loss itself: what he reduces is what counts, not what it grows by.
        folded = values * (scale if part.is_sum else 1.0)
        scores = folded if norms is None else scores
    return folded, scores, unit * count


def _by_rows(coefficient: Tensor, losses: Tensor) -> Tensor:
    """Coefficients of the losses' rows; only ``kl_div`` has elements that are no rows, and a row is their sum."""
    if coefficient.numel() == losses.numel():
        return coefficient.reshape(losses.shape)
    return coefficient.mean(distribution_axis(coefficient))
