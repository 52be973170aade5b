"""Running means of Kronecker factors.

Shapes: K blocks (groups of a convolution, else 1), N rows, n features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Factor:
    r"""One side of a layer's Kronecker product: the mean of :math:`w_i x_i x_i^\top` over rows of many steps.

    Sums of rows and of their weights are averaged apart, with one decay, and divided when the factor is asked for. So
    the mean needs no bias correction, and batches of any size and weights of any scale count as they should.

    Args:
        num_blocks: K.
        size: n.
        is_diagonal: Whether only the diagonal is kept.
        like: Tells dtype and device.

    Attributes:
        total: Decayed sum over rows, shape ``(K, n, n)``, or ``(K, n)`` of a diagonal.
        mass: Decayed sum of the rows' weights, shape ``()``.
        new_total: The sum of this step's rows, complete once backward has ended.
        new_mass: The weights of this step's rows.

    Example:
        >>> factor = Factor(1, 2, False, torch.zeros(()))
        >>> factor.add(torch.tensor([[[1.0, 2.0], [3.0, 0.0]]]), None)
        >>> factor.add_mass(2)
        >>> merge([factor], decay=0.9)
        >>> factor.value()
        tensor([[[5., 1.],
                 [1., 2.]]])
    """

    def __init__(self, num_blocks: int, size: int, is_diagonal: bool, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = (num_blocks, size) if is_diagonal else (num_blocks, size, size)
        self.is_diagonal = is_diagonal
        self.size = size
        self.total = torch.zeros(shape, dtype=dtype, device=like.device)
        self.mass = torch.zeros((), dtype=dtype, device=like.device)
        self.new_total = torch.zeros_like(self.total)
        self.new_mass = torch.zeros_like(self.mass)

    def add(self, rows: Tensor, weights: Tensor | None) -> None:
        """Add rows of this step, shape ``(K, N, n)``, with weights of shape ``(N,)``; None: all 1."""
        rows = rows.to(self.total.dtype)
        weighted = rows if weights is None else rows * weights.to(rows.dtype).unsqueeze(1)
        if self.is_diagonal:
            self.new_total += (weighted * rows).sum(1)
        else:
            self.new_total.baddbmm_(weighted.mT, rows)

    def add_mass(self, mass: float | Tensor) -> None:
        """Add to the weight of this step's rows."""
        self.new_mass += mass

    def value(self) -> Tensor:
        """The mean: symmetric, in the shape of :attr:`total`; zero where there were no rows yet."""
        mean = self.total / self.mass.clamp(min=torch.finfo(self.mass.dtype).tiny)
        return mean if self.is_diagonal else (mean + mean.mT) / 2

    def state_dict(self) -> dict[str, Any]:
        """The running sums."""
        return {"total": self.total.clone(), "mass": self.mass.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.total.copy_(state["total"])
        self.mass.copy_(state["mass"])


def merge(factors: Sequence[Factor], decay: float) -> None:
    """Take the rows of this step into the running means, and begin the next step's.

    A step of which any number is not finite is left out of all of them. That is decided on the device.

    Args:
        factors: Of all layers.
        decay: How much of the mean so far is kept.
    """
    if not factors:
        return
    sums = [factor.new_total.sum() for factor in factors] + [factor.new_mass for factor in factors]
    is_finite = torch.stack([each.float() for each in sums]).isfinite().all()
    kept = torch.where(is_finite, decay, 1.0)
    for factor in factors:
        for running, new in ((factor.total, factor.new_total), (factor.mass, factor.new_mass)):
            running.mul_(kept).add_(torch.where(is_finite, new, 0.0), alpha=1 - decay)
            new.zero_()
