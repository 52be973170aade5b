r"""A step's rows of the generalised Gauss-Newton system, from its linear layers and its loss.

With f the outputs of the last linear layer, g and H the loss's gradient and Hessian there (a block for each instance),
the step solves :math:`(J^T H J + \lambda I)\,\delta = J^T g`. With :math:`H = L L^T` and :math:`r = L^{-1} g` that is
:math:`\delta = \tilde J^T (\tilde J \tilde J^T + \lambda I)^{-1} r` for :math:`\tilde J = L^T J`: least squares again.

Source: Schraudolph, Fast Curvature Matrix-Vector Products, Neural Computation 2002; Martens, New Insights and
Perspectives on the Natural Gradient Method, JMLR 2020, arXiv:1412.1193.

Shapes: n instances, C outputs of each, p inputs and q outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_autoassist.gauss_newton.jacobian import LayerRows
from lightning_autoassist.gauss_newton.step_tape import LinearCall, StepTape


class CannotSolveError(ValueError):
    """The step is not one that Gauss-Newton can be used for; the message says why and what to do."""


NO_CURVATURE = (
    "the loss has no curvature at the network's outputs, which Gauss-Newton divides by, as the absolute error has "
    "none; use mse_loss, huber_loss, cross_entropy or another loss with one"
)


class InstanceRows(NamedTuple):
    r"""What a step adds to the system.

    Attributes:
        layers: :math:`\tilde J`, one :class:`LayerRows` a linear call.
        residual: r, shape ``(n, C)``.
        shares: 1 / weight of each instance whose loss is weighted in backward, shape ``(n,)``: by what its part of the
            quadratic model is multiplied for one of the loss that the step returned. 0 where the weight is.
        has_curvature: Whether the Hessian is not 0 all over; without dimensions.
    """

    layers: list[LayerRows]
    residual: Tensor
    shares: Tensor
    has_curvature: Tensor


def instance_rows(tape: StepTape, loss: Tensor, max_outputs: int, weights: Tensor | None = None) -> InstanceRows:
    """The rows of a step whose graph is still there.

    Args:
        tape: Of the step; the outputs of its last linear call are the network's.
        loss: What the step returned.
        max_outputs: Most C.
        weights: Of the instances in backward, shape ``(B,)``; None: all 1.

    Raises:
        CannotSolveError: If rows are no instances, a layer is called twice, there are too many outputs, or the loss is
            not a sum over instances with a curvature.
    """
    calls = tape.linear_calls
    _check_calls(calls, max_outputs)
    gradient, hessian = _curvature(tape, loss) if weights is None else _weighted_curvature(tape, loss, weights)
    columns = _output_gradients(calls)
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    factor, residual = factored(hessian.to(dtype), gradient.to(dtype), torch.finfo(gradient.dtype).eps)
    layers = []
    for call, outputs in zip(calls, columns, strict=True):
        outputs = torch.einsum("ncd,ncq->ndq", factor, outputs.to(dtype))
        layers.append(LayerRows(_inputs_with_ones(call).to(dtype), outputs))
    shares = _shares(weights, calls[-1].output, residual)
    return InstanceRows(layers, residual, shares, hessian.any())


def _curvature(tape: StepTape, loss: Tensor) -> tuple[Tensor, Tensor]:
    return output_curvature(loss, tape.linear_calls[-1].edge)


def _weighted_curvature(tape: StepTape, loss: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The same where the gradients of the instances' losses are weighted in backward.

    What weighs them there need not be the derivative of anything, so that a second one would weigh some of them twice.

    Raises:
        CannotSolveError: If weights cannot be assigned to rows, or the losses cannot be had without weights.
    """
    last = tape.linear_calls[-1]
    if len(last.output) != len(weights):
        raise CannotSolveError(
            f"the {len(weights)} instances of the batch are weighted, and the last linear layer has "
            f'{len(last.output)} rows, of which it is not known whose they are; use reweighting="none"'
        )
    try:
        outputs, unweighted = tape.replay_from(last, loss)
    except LookupError as error:
        raise CannotSolveError(
            f'the instances are weighted, and their unweighted losses cannot be had: {error}; use reweighting="none"'
        ) from error
    gradient, hessian = output_curvature(unweighted, get_gradient_edge(outputs))
    factors = weights.to(gradient).repeat_interleave(len(gradient) // len(weights))
    return gradient * factors[:, None], hessian * factors[:, None, None]


@torch.enable_grad()
def output_curvature(loss: Tensor, outputs: GradientEdge) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the loss at the outputs, shapes ``(n, C)`` and ``(n, C, C)``.

    Args:
        loss: Without dimensions, in the graph.
        outputs: The place of the outputs in it, shape ``(*, C)``.

    Raises:
        CannotSolveError: If the loss does not depend on the outputs, or only linearly.
    """
    edges = [outputs]
    (gradient,) = torch.autograd.grad(loss, edges, create_graph=True, allow_unused=True)
    if gradient is None:
        raise CannotSolveError("the loss does not depend on the outputs of the last linear layer that was called")
    if not gradient.requires_grad:
        raise CannotSolveError(NO_CURVATURE)
    num_outputs = gradient.shape[-1]
    rows = [
        torch.autograd.grad(gradient[..., column].sum(), edges, retain_graph=True)[0] for column in range(num_outputs)
    ]
    hessian = torch.stack([row.reshape(-1, num_outputs) for row in rows], 1)
    return gradient.detach().reshape(-1, num_outputs), hessian.detach()


def factored(hessian: Tensor, gradient: Tensor, precision: float) -> tuple[Tensor, Tensor]:
    """L with H = L L' up to a floor, and r with L r = g.

    A softmax has no curvature along the sum of its logits, and an instance that a weight has switched off has none at
    all: the floor, relative to the mean of the diagonal, lets all be divided by. Where a loss is not convex in the
    outputs, the positive part of the Hessian's diagonal is used.

    Args:
        hessian: Shape ``(n, C, C)``.
        gradient: Shape ``(n, C)``.
        precision: Relative rounding error of both.

    Returns:
        L, shape ``(n, C, C)``, and r, shape ``(n, C)``.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    floor = diagonal.abs().mean() * max(16 * precision * hessian.shape[1], 1e-6)
    floor = floor.clamp(min=torch.finfo(hessian.dtype).tiny)
    symmetric = (hessian + hessian.mT) / 2
    if hessian.shape[1] == 1:
        lower = (symmetric.clamp(min=0) + floor).sqrt()
        return lower, gradient / lower[:, 0]
    identity = torch.eye(hessian.shape[1], dtype=hessian.dtype, device=hessian.device)
    lower, info = torch.linalg.cholesky_ex(symmetric + floor * identity)
    instead = torch.diag_embed((diagonal.clamp(min=0) + floor).sqrt())
    lower = torch.where((info == 0)[:, None, None], lower, instead)
    return lower, torch.linalg.solve_triangular(lower, gradient.unsqueeze(2), upper=False).squeeze(2)


def _check_calls(calls: Sequence[LinearCall], max_outputs: int) -> None:
    num_outputs = calls[-1].output.shape[-1]
    shapes = {call.output.shape[:-1] for call in calls}
    if len(shapes) > 1 or not calls[-1].output.ndim > 1:
        raise CannotSolveError(
            f"the linear layers have different numbers of rows, {', '.join(str(tuple(shape)) for shape in shapes)}; "
            "Gauss-Newton needs one row an instance in each. Use KFACCallback for such a network"
        )
    if num_outputs > max_outputs:
        size = num_outputs * calls[-1].output.shape[:-1].numel()
        raise CannotSolveError(
            f"the network has {num_outputs} outputs, more than max_outputs={max_outputs}: each step would take "
            f"{num_outputs} backward passes and a system of {size:,} rows. Pass max_outputs={num_outputs} if that is "
            "what you want, or use KFACCallback"
        )
    weights = [id(call.weight) for call in calls]
    if len(set(weights)) < len(weights):
        raise CannotSolveError(
            "a linear layer is called more than once in a step, or two share their weights; Gauss-Newton needs one "
            "call of each. Use KFACCallback for such a network"
        )


def _output_gradients(calls: Sequence[LinearCall]) -> list[Tensor]:
    """B of each layer, shape ``(n, C, q)``: one backward pass through the network for each output."""
    last, edges = calls[-1], [call.edge for call in calls]
    # Where it was changed in place, the tensor stands for what it has become.
    source: Any = last.output if last.output.grad_fn is last.edge.node else last.edge
    columns = []
    for column in range(last.output.shape[-1]):
        ones = torch.zeros_like(last.output)
        ones[..., column] = 1
        columns.append(torch.autograd.grad([source], edges, [ones], retain_graph=True, allow_unused=True))
    return [
        torch.stack([_rows(part, call.output) for part in parts], 1)
        for parts, call in zip(zip(*columns, strict=True), calls, strict=True)
    ]


def _shares(weights: Tensor | None, output: Tensor, like: Tensor) -> Tensor:
    if weights is None or len(weights) != len(output):
        return like.new_ones(len(like))
    inverse = torch.where(weights > 0, 1 / weights, 0.0).to(like)
    return inverse.repeat_interleave(len(like) // len(weights))


def _rows(gradient: Tensor | None, output: Tensor) -> Tensor:
    """By instances; a layer that does not lead to the outputs has gradients of 0."""
    gradient = torch.zeros_like(output) if gradient is None else gradient
    return gradient.reshape(-1, output.shape[-1])


def _inputs_with_ones(call: LinearCall) -> Tensor:
    """A: the layer's inputs where its weight is trained, and ones where its bias is."""
    rows = call.inputs.reshape(-1, call.inputs.shape[-1])
    parts = [rows] if call.weight.requires_grad else []
    if call.bias is not None and call.bias.requires_grad:
        parts.append(rows.new_ones(len(rows), 1))
    return torch.cat(parts, 1)
