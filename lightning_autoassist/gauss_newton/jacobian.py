r"""Products with the Jacobian of stacked linear layers, which is never formed.

A linear layer :math:`s_i = V a_i` enters the outputs of instance i through :math:`b_{ic} = \partial f_{ic} / \partial
s_i`, so that its part of row (i, c) of the Jacobian is the outer product :math:`b_{ic} a_i^T`. All that is done here
follows from that; rows of different instances share nothing but the parameters.

Shapes: n instances, C outputs of each, p inputs and q outputs of a layer (p counts the constant 1 of a bias), s sketch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LayerRows(NamedTuple):
    """What a layer's part of the Jacobian is made of.

    Attributes:
        inputs: A, the layer's inputs, shape ``(n, p)``; a column of ones where there is a bias.
        outputs: B, gradients of the network's outputs at the layer's outputs, shape ``(n, C, q)``.
    """

    inputs: Tensor
    outputs: Tensor


class Jacobian:
    r"""J, of shape ``(n C, sum of q p over the layers)``, by its layers' inputs and output gradients.

    Args:
        layers: One :class:`LayerRows` a layer, all of the same n and C.

    Example:
        >>> rows = LayerRows(torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0]]]))  # f = 3 V a with a = (1, 2)
        >>> jacobian = Jacobian([rows])
        >>> jacobian.gram()
        tensor([[45.]])
        >>> jacobian.transposed_times(torch.tensor([[1.0]]))
        [tensor([[3., 6.]])]
    """

    def __init__(self, layers: Sequence[LayerRows]) -> None:
        self.layers = list(layers)
        self.num_instances, self.num_outputs = self.layers[0].outputs.shape[:2]
        self.num_rows = self.num_instances * self.num_outputs

    def times(self, directions: Sequence[Tensor]) -> Tensor:
        """J v.

        Args:
            directions: v, one tensor of shape ``(q, p)`` a layer.

        Returns:
            Shape ``(n, C)``.
        """
        parts = [_row_products(layer, direction) for layer, direction in zip(self.layers, directions, strict=True)]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def transposed_times(self, rows: Tensor) -> list[Tensor]:
        r"""J\ :sup:`T` u.

        Args:
            rows: u, shape ``(n, C)``.

        Returns:
            One tensor of shape ``(q, p)`` a layer.
        """
        return [_weighted_sum(layer, rows) for layer in self.layers]

    def gram_times(self, rows: Tensor) -> Tensor:
        r"""K u = J J\ :sup:`T` u, for ``(n, C)``, in the time of two products."""
        return self.times(self.transposed_times(rows))

    def gram(self) -> Tensor:
        r"""K = J J\ :sup:`T` = sum of (A A\ :sup:`T`) times (B B\ :sup:`T`) by element, shape ``(n C, n C)``.

        Costs 2 n² (p + C² q) operations a layer, and not the 2 n² C² p q of the product of explicit Jacobians.
        """
        total = _gram(self.layers[0])
        for layer in self.layers[1:]:
            total += _gram(layer)
        return total

    def gram_columns(self, columns: Tensor) -> Tensor:
        """Some columns of K.

        Args:
            columns: Their positions, shape ``(k,)``.

        Returns:
            Shape ``(n C, k)``.
        """
        instances = columns // self.num_outputs
        total = torch.zeros((), device=columns.device)
        for inputs, outputs in self.layers:
            rows = outputs.flatten(0, 1)
            of_inputs = (inputs @ inputs[instances].T).repeat_interleave(self.num_outputs, 0)
            total = total + of_inputs * (rows @ rows[columns].T)
        return total

    def gram_diagonal(self) -> Tensor:
        """The diagonal of K, shape ``(n, C)``."""
        parts = [outputs.square().sum(2) * inputs.square().sum(1, keepdim=True) for inputs, outputs in self.layers]
        return torch.stack(parts).sum(0)

    def explicit(self) -> Tensor:
        """J itself, for comparison: of shape ``(n C, sum of q p)``, layer by layer, in the order of ``(q, p)``."""
        parts = [torch.einsum("ncq,np->ncqp", outputs, inputs).flatten(2) for inputs, outputs in self.layers]
        return torch.cat(parts, 2).flatten(0, 1)


def _row_products(layer: LayerRows, direction: Tensor) -> Tensor:
    inputs, outputs = layer
    if outputs.shape[1] == 1 and inputs.shape[1] <= outputs.shape[2]:
        # One pass over the wide B, and nothing of its size is made.
        return ((outputs[:, 0] @ direction.T.contiguous().T) * inputs).sum(1, keepdim=True)
    return torch.bmm(outputs, (inputs @ direction.T).unsqueeze(2)).squeeze(2)


def _weighted_sum(layer: LayerRows, rows: Tensor) -> Tensor:
    inputs, outputs = layer
    if outputs.shape[1] == 1 and inputs.shape[1] <= outputs.shape[2]:
        # With the few columns on the left BLAS reads B once and in order: ten times faster for 8 columns.
        return ((rows * inputs).T @ outputs[:, 0]).T
    return torch.bmm(rows.unsqueeze(1), outputs).squeeze(1).T @ inputs


def _gram(layer: LayerRows) -> Tensor:
    inputs, outputs = layer
    num_instances, num_outputs = outputs.shape[:2]
    rows = outputs.flatten(0, 1)
    products = rows @ rows.T
    blocks = products.view(num_instances, num_outputs, num_instances, num_outputs)
    blocks.mul_((inputs @ inputs.T)[:, None, :, None])
    return products
