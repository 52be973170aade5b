"""Conjugate gradients with a preconditioner.

On the CPU they stop at the tolerance. On other devices they always make ``max_iter`` iterations, of which those after
the tolerance change nothing: to ask how far they came would wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


class Iterate(NamedTuple):
    """What came out.

    Attributes:
        solution: Shape of the right-hand side.
        num_iterations: Products with the matrix. On other devices than the CPU always the most that were allowed.
    """

    solution: Tensor
    num_iterations: int


def conjugate_gradients(
    product: Product, right: Tensor, *, precondition: Product | None = None, tol: float, max_iter: int
) -> Iterate:
    """Solve M x = b for a symmetric, positive definite M.

    Source: Hestenes & Stiefel, 1952; Saad, Iterative Methods for Sparse Linear Systems, 2003, algorithm 9.1.

    Args:
        product: Gets x, returns M x.
        right: b, of any shape.
        precondition: Gets a residual, returns an approximate inverse of M times it; None: the residual itself.
        tol: Norm of the residual at which it is done, relative to that of b.
        max_iter: Most iterations.

    Example:
        >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> found = conjugate_gradients(lambda x: matrix @ x, torch.tensor([3.0, 4.0]), tol=1e-5, max_iter=5)
        >>> found.solution.round(decimals=3)
        tensor([1., 1.])
    """
    solution, residual = torch.zeros_like(right), right
    apply = precondition or torch.clone
    direction = preconditioned = apply(right)
    inner = (residual * preconditioned).sum()
    bound = tol * torch.linalg.vector_norm(right)
    is_done, num_iterations = torch.linalg.vector_norm(residual) <= bound, 0
    while num_iterations < max_iter and not (right.device.type == "cpu" and bool(is_done)):
        num_iterations += 1
        image = product(direction)
        curvature = (direction * image).sum()
        # A direction that a singular M sends to 0 leads nowhere. Once it is done, every further step has length 0.
        is_done = is_done | ~(curvature > 0)
        length = torch.where(is_done, 0.0, inner / curvature)
        solution = solution + length * direction
        residual = residual - length * image
        preconditioned = apply(residual)
        previous, inner = inner, (residual * preconditioned).sum()
        direction = preconditioned + torch.where(is_done, 0.0, inner / previous) * direction
        is_done = is_done | (torch.linalg.vector_norm(residual) <= bound)
    return Iterate(solution, num_iterations)
