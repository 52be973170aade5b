r"""Ways to solve :math:`(K + \lambda I) u = r`, the Gauss-Newton step's linear system over the instances.

Shapes: n instances, C outputs of each, s rows of a sketch, k rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Generator, Tensor

from lightning_autoassist.gauss_newton import preconditioners
from lightning_autoassist.gauss_newton.conjugate_gradients import Product, conjugate_gradients
from lightning_autoassist.gauss_newton.jacobian import Jacobian
from lightning_autoassist.gauss_newton.sketches import SKETCHES

SolverName = Literal["dense", "gram", "cg", "sketch", "nystrom"]
SketchName = Literal["tensor_srht", "tensor_sketch"]
SOLVER_NAMES: tuple[SolverName, ...] = get_args(SolverName)
SKETCH_NAMES: tuple[SketchName, ...] = get_args(SketchName)


@dataclass(frozen=True)
class SolverOptions:
    """How a system is solved.

    Args:
        solver: ``"dense"``: the Jacobian is formed, and K is its product with itself, as it is done without any
            structure; ``"gram"``: K from the layers' Gram matrices, and a Cholesky decomposition; ``"cg"``: conjugate
            gradients; ``"sketch"``: the same, preconditioned by a sketch; ``"nystrom"``: by a Nyström approximation.
        tol: Of conjugate gradients: norm of the residual, relative to that of the right-hand side.
        max_iter: Most iterations of conjugate gradients.
        sketch: Which sketch.
        sketch_ratio: Rows of the sketch for each of K's.
        rank: k, of Nyström's approximation.
    """

    solver: SolverName = "gram"
    tol: float = 1e-2
    max_iter: int = 200
    sketch: SketchName = "tensor_sketch"
    sketch_ratio: float = 4.0
    rank: int = 256


class Solution(NamedTuple):
    """What came out.

    Attributes:
        rows: u, shape ``(n, C)``.
        num_iterations: Of conjugate gradients; 0 where the system was solved exactly.
    """

    rows: Tensor
    num_iterations: int


def solve(
    jacobian: Jacobian, residual: Tensor, damping: Tensor, options: SolverOptions, generator: Generator
) -> Solution:
    r"""Solve :math:`(J J^T + \lambda I) u = r`; the Gauss-Newton step is then :math:`-J^T u`.

    Args:
        jacobian: J.
        residual: r, shape ``(n, C)``.
        damping: :math:`\lambda`, not negative, without dimensions. With 0 and a singular K, the solution is that of
            least norm, up to rounding.
        options: How.
        generator: Of sketches and of drawn columns, on the CPU.
    """
    if options.solver in ("dense", "gram"):
        return Solution(solve_gram(_gram(jacobian, options.solver), residual, damping), 0)
    precondition = _PRECONDITIONERS[options.solver](jacobian, damping, options, generator)

    def product(rows: Tensor) -> Tensor:
        return jacobian.gram_times(rows) + damping * rows

    found = conjugate_gradients(
        product, residual, precondition=precondition, tol=options.tol, max_iter=options.max_iter
    )
    return Solution(found.solution, found.num_iterations)


def solve_gram(gram: Tensor, residual: Tensor, damping: Tensor) -> Tensor:
    r"""Solve :math:`(K + \lambda I) u = r` by a Cholesky decomposition.

    Args:
        gram: K, shape ``(n C, n C)``; its diagonal is changed.
        residual: r, shape ``(n, C)``.
        damping: As in :func:`solve`. At least the rounding error of K's diagonal is used.

    Returns:
        u, shape ``(n, C)``. Off the CPU, NaN where K is not positive definite: to ask would wait for the device.
    """
    diagonal = gram.diagonal()
    least = diagonal.mean() * len(gram) * torch.finfo(gram.dtype).eps
    diagonal.add_(torch.maximum(damping, least))
    factor, info = torch.linalg.cholesky_ex(gram)
    if gram.device.type == "cpu" and info.item():
        return _by_eigenvalues(gram, residual, least)
    solved = torch.cholesky_solve(residual.reshape(-1, 1), factor).view(residual.shape)
    return torch.where(info == 0, solved, torch.nan)


def _gram(jacobian: Jacobian, solver: str) -> Tensor:
    if solver == "gram":
        return jacobian.gram()
    explicit = jacobian.explicit()
    return explicit @ explicit.T


def _by_eigenvalues(gram: Tensor, residual: Tensor, least: Tensor) -> Tensor:
    if not bool(torch.isfinite(gram).all()):
        return torch.full_like(residual, torch.nan)
    values, vectors = torch.linalg.eigh(gram)
    inverse = torch.where(values > 10 * least, values, torch.inf).reciprocal()
    solved: Tensor = (vectors @ (inverse * (vectors.T @ residual.flatten()))).view(residual.shape)
    return solved


def _sketched(jacobian: Jacobian, damping: Tensor, options: SolverOptions, generator: Generator) -> Product:
    size = max(1, round(options.sketch_ratio * jacobian.num_rows))
    return preconditioners.sketched(jacobian, damping, SKETCHES[options.sketch], size, generator)


def _nystrom(jacobian: Jacobian, damping: Tensor, options: SolverOptions, generator: Generator) -> Product:
    return preconditioners.nystrom(jacobian, damping, options.rank, generator)


_PRECONDITIONERS: dict[str, Callable[[Jacobian, Tensor, SolverOptions, Generator], Product | None]] = {
    "cg": lambda jacobian, damping, options, generator: None,
    "sketch": _sketched,
    "nystrom": _nystrom,
}
