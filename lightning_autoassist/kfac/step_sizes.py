"""How far to go in the preconditioned direction.

Shapes: any; a layer's gradient and direction have the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_autoassist.kfac.options import StepName


def scaled(
    gradients: Sequence[Tensor],
    directions: Sequence[Tensor],
    rates: Sequence[float | Tensor],
    step: StepName,
    clip: float,
) -> tuple[list[Tensor], Tensor]:
    r"""Directions of the right length, and the factor on them (its mean over layers).

    ``"graft"`` gives each layer's direction the length of its gradient, so that the user's learning rate keeps its
    meaning. ``"kl_clip"`` multiplies all by :math:`\nu = \min(1, \sqrt{\kappa / \sum_l \eta_l^2 \langle V_l, \nabla_l
    \rangle})`, which bounds the change of the model's distribution (Ba, Grosse & Martens, ICLR 2017; Pauloski et al.,
    SC 2021). ``"none"`` leaves them.

    Args:
        gradients: Of layers.
        directions: The same, preconditioned.
        rates: The layers' learning rates.
        step: Which rule.
        clip: :math:`\kappa`.

    Example:
        >>> [direction], factor = scaled([torch.ones(4)], [torch.full((4,), 8.0)], [0.1], "graft", 1e-3)
        >>> direction, factor
        (tensor([1., 1., 1., 1.]), tensor(0.1250))
    """
    if step == "graft":
        factors = [_graft_factor(gradient, v) for gradient, v in zip(gradients, directions, strict=True)]
        return [v * factor for v, factor in zip(directions, factors, strict=True)], torch.stack(factors).mean()
    one = directions[0].new_ones(())
    if step == "none":
        return list(directions), one
    products = [rate**2 * _dot(g, v) for g, v, rate in zip(gradients, directions, rates, strict=True)]
    total = torch.stack([torch.as_tensor(each, device=one.device) for each in products]).sum().abs()
    factor = torch.where(total > 0, (clip / total).sqrt().clamp(max=1.0), one).to(one.dtype)
    return [v * factor for v in directions], factor


def cosine(gradients: Sequence[Tensor], directions: Sequence[Tensor]) -> Tensor:
    """Cosine of the angle between the whole gradient and the whole direction."""
    pairs = list(zip(gradients, directions, strict=True))
    product = torch.stack([_dot(g, v) for g, v in pairs]).sum()
    squares = [torch.stack([_dot(each, each) for each in column]).sum() for column in zip(*pairs, strict=True)]
    return product / (squares[0] * squares[1]).sqrt().clamp(min=torch.finfo(product.dtype).tiny)


def _graft_factor(gradient: Tensor, direction: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(direction)
    factor = torch.linalg.vector_norm(gradient) / length
    return torch.where((length > 0) & factor.isfinite(), factor, 1.0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum()
