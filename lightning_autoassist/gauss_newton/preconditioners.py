r"""Preconditioners of the damped Gram matrix :math:`K + \lambda I`.

Shapes: n instances, C outputs of each, s rows of a sketch, k rank.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_autoassist.gauss_newton.conjugate_gradients import Product
from lightning_autoassist.gauss_newton.jacobian import Jacobian
from lightning_autoassist.gauss_newton.sketches import Sketch


def triangular_factor(sketched: Tensor, damping: Tensor) -> Tensor:
    r"""R of the QR decomposition of the sketched :math:`(J, \sqrt\lambda I)^T`.

    It is the Cholesky factor of :math:`(S J^T)^T S J^T + \lambda I`, which is a matrix product and a third of n³ where
    Householder's QR of a tall matrix costs seven thirds of it and more; where the product has lost too many digits to
    be positive definite, QR is what is done.

    Args:
        sketched: :math:`(S J^T)^T`, shape ``(n C, s)``.
        damping: :math:`\lambda`, without dimensions.

    Returns:
        R, upper triangular, shape ``(n C, n C)``.
    """
    product = sketched @ sketched.T
    product.diagonal().add_(damping)
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(product, upper=True)
    if sketched.device.type != "cpu":  # to ask would wait for the device
        return factor
    return _by_qr(sketched, damping) if info.item() else factor


def sketched(jacobian: Jacobian, damping: Tensor, sketch: Sketch, size: int, generator: Generator) -> Product:
    r"""The paper's preconditioner, :math:`(R^T R)^{-1}` with R of a sketch of the Jacobian.

    Source: Brand, Peng, Song & Weinstein, Training (Overparametrized) Neural Networks in Near-Linear Time, ITCS 2021,
    arXiv:2006.11648.

    Args:
        jacobian: J.
        damping: :math:`\lambda`, without dimensions.
        sketch: Of the transposed Jacobian.
        size: s.
        generator: Of the sketch, on the CPU.

    Returns:
        Multiplies ``(n, C)`` by the inverse.
    """
    factor = triangular_factor(sketch(jacobian, size, generator), damping)

    def precondition(rows: Tensor) -> Tensor:
        return torch.cholesky_solve(rows.reshape(-1, 1), factor, upper=True).view(rows.shape)

    return precondition


def nystrom(jacobian: Jacobian, damping: Tensor, rank: int, generator: Generator) -> Product:
    r"""With a Nyström approximation of K by k of its columns, :math:`(F F^T + \lambda I)^{-1}`.

    Source: Frangella, Tropp & Udell, Randomized Nyström Preconditioning, SIAM J. Matrix Anal. Appl. 2023,
    arXiv:2110.02820; columns drawn as in Williams & Seeger, NeurIPS 2000.

    Args:
        jacobian: J.
        damping: :math:`\lambda`, positive, without dimensions.
        rank: k; at most n C are used.
        generator: Of the columns that are drawn, on the CPU.

    Returns:
        Multiplies ``(n, C)`` by the inverse.
    """
    chosen = torch.randperm(jacobian.num_rows, generator=generator)[:rank].to(damping.device, non_blocking=True)
    columns = jacobian.gram_columns(chosen)
    core = columns[chosen]
    # Rounding must not make the core indefinite.
    core.diagonal().add_(core.diagonal().mean() * len(core) * torch.finfo(core.dtype).eps * 10)
    lower, _ = torch.linalg.cholesky_ex(core)
    root = torch.linalg.solve_triangular(lower, columns.T, upper=False)  # (k, n C)
    inner = root @ root.T
    # What is divided by; below it there is nothing but rounding.
    shift = torch.maximum(damping, jacobian.gram_diagonal().mean() * torch.finfo(core.dtype).eps ** 0.5)
    inner.diagonal().add_(shift)
    factor, _ = torch.linalg.cholesky_ex(inner)

    def precondition(rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, 1)
        # Woodbury's identity.
        near: Tensor = (flat - root.T @ torch.cholesky_solve(root @ flat, factor)) / shift
        return near.view(rows.shape)

    return precondition


def _by_qr(sketched: Tensor, damping: Tensor) -> Tensor:
    identity = torch.eye(len(sketched), dtype=sketched.dtype, device=sketched.device)
    # A floor for matrices that are singular: R is divided by.
    info = torch.finfo(sketched.dtype)
    least = (info.eps * len(sketched) * sketched.square().sum(1).mean()).clamp(min=info.tiny)
    factor: Tensor = torch.linalg.qr(torch.cat([sketched.T, (damping + least).sqrt() * identity]), mode="r").R
    return factor
