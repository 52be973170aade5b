r"""Inverses of damped Kronecker products.

``"eigen"``: with :math:`A = Q_A \Lambda_A Q_A^\top` and likewise G, a gradient :math:`\nabla` becomes
:math:`Q_G [(Q_G^\top \nabla Q_A) / (\lambda_G \lambda_A^\top + \gamma)] Q_A^\top`, which is exactly
:math:`(A \otimes G + \gamma I)^{-1} \nabla`. ``"inverse"``: :math:`(G + \sqrt\gamma / \pi)^{-1} \nabla
(A + \pi \sqrt\gamma)^{-1}`, factored Tikhonov damping (Martens & Grosse, ICML 2015, section 6.3).

Shapes: K blocks, n inputs, m outputs; a diagonal factor is ``(K, n)``.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_autoassist.kfac.options import ComputeMethod, DampingMode


class SideInverse(NamedTuple):
    """What is kept of one inverted factor.

    Attributes:
        values: Eigenvalues, shape ``(K, n)``; by the method ``"inverse"`` the inverse itself, ``(K, n, n)`` or, of a
            diagonal factor, ``(K, n)``.
        vectors: Eigenvectors as columns, shape ``(K, n, n)``; None: a diagonal factor, or the method ``"inverse"``.
    """

    values: Tensor
    vectors: Tensor | None


class LayerInverse(NamedTuple):
    r"""Both sides of a layer's inverse.

    Attributes:
        inputs: Of A.
        outputs: Of G.
        damping: :math:`\gamma` of each block, shape ``(K, 1, 1)``.
    """

    inputs: SideInverse
    outputs: SideInverse
    damping: Tensor

    @property
    def sides(self) -> tuple[SideInverse, SideInverse]:
        """Both sides, the inputs' first."""
        return self.inputs, self.outputs

    def apply(self, gradient: Tensor, method: ComputeMethod) -> Tensor:
        """The preconditioned gradient, shape ``(K, m, n)``; a result that is not finite gives the gradient back."""
        if method == "eigen":
            direction = self._by_eigenvectors(gradient)
        else:
            direction = _times(_times(gradient, self.inputs.values).mT, self.outputs.values).mT
        return torch.where(direction.isfinite().all(), direction, gradient)

    def _by_eigenvectors(self, gradient: Tensor) -> Tensor:
        rotated = _rotated(gradient, self.outputs.vectors, self.inputs.vectors, is_back=False)
        eigenvalues = self.outputs.values.unsqueeze(2) * self.inputs.values.unsqueeze(1) + self.damping
        return _rotated(rotated / eigenvalues, self.outputs.vectors, self.inputs.vectors, is_back=True)


def _rotated(matrix: Tensor, left: Tensor | None, right: Tensor | None, *, is_back: bool) -> Tensor:
    """``leftᵀ · matrix · right``, or back from there."""
    if left is not None:
        matrix = (left if is_back else left.mT) @ matrix
    return matrix if right is None else matrix @ (right.mT if is_back else right)


def _times(matrix: Tensor, right: Tensor) -> Tensor:
    return matrix * right.unsqueeze(1) if right.ndim == 2 else matrix @ right


def damping_of(inputs: Tensor, outputs: Tensor, damping: float, mode: DampingMode) -> Tensor:
    r""":math:`\gamma` of each block, shape ``(K, 1, 1)``: relative to the mean eigenvalue of A⊗G, or as it is.

    Args:
        inputs: A, shape ``(K, n, n)`` or ``(K, n)``.
        outputs: G.
        damping: The setting.
        mode: ``"relative"`` or ``"absolute"``.
    """
    mean = mean_eigenvalue(inputs) * mean_eigenvalue(outputs)
    return damping * mean if mode == "relative" else torch.full_like(mean, damping)


def mean_eigenvalue(factor: Tensor) -> Tensor:
    """Mean eigenvalue of each block, shape ``(K, 1, 1)``."""
    diagonal = factor if factor.ndim == 2 else factor.diagonal(dim1=-2, dim2=-1)
    return diagonal.mean(-1).reshape(-1, 1, 1)


def inverted_side(factor: Tensor, other: Tensor, damping: Tensor, method: ComputeMethod) -> SideInverse | None:
    """Invert one factor; None, with a warning, where that fails in float64 as well.

    Args:
        factor: A or G, shape ``(K, n, n)``, or ``(K, n)``.
        other: The other one, for the share of the damping that this one gets.
        damping: Of each block, shape ``(K, 1, 1)``.
        method: ``"eigen"`` or ``"inverse"``.
    """
    if method == "eigen" and factor.ndim == 2:
        return SideInverse(factor.clamp(min=0), None)
    for dtype in (factor.dtype, torch.float64):
        try:
            found = _eigen(factor.to(dtype)) if method == "eigen" else _tikhonov(factor.to(dtype), other, damping)
        except RuntimeError:  # torch.linalg.LinAlgError is one
            continue
        if bool(found.values.isfinite().all()):
            vectors = None if found.vectors is None else found.vectors.to(factor.dtype).contiguous()
            return SideInverse(found.values.to(factor.dtype).contiguous(), vectors)
    warnings.warn(
        f"A Kronecker factor of shape {tuple(factor.shape)} could not be inverted, in float64 neither. K-FAC goes on "
        "with the inverse that it had before. A larger damping= helps where this happens often.",
        stacklevel=2,
    )
    return None


def _eigen(factor: Tensor) -> SideInverse:
    values, vectors = torch.linalg.eigh(factor)
    return SideInverse(values.clamp(min=0), vectors)


def _tikhonov(factor: Tensor, other: Tensor, damping: Tensor) -> SideInverse:
    # π of this side: the square root of the quotient of the mean eigenvalues.
    tiny = torch.finfo(factor.dtype).tiny
    quotient = mean_eigenvalue(factor) / mean_eigenvalue(other).to(factor.dtype).clamp(min=tiny)
    share = (quotient * damping.to(factor.dtype)).sqrt()
    if factor.ndim == 2:
        return SideInverse((factor + share.squeeze(2)).reciprocal(), None)
    damped = factor + share * torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return SideInverse(torch.cholesky_inverse(torch.linalg.cholesky(damped)), None)
