"""Which rows of a layer enter its factors, and how its parameters' gradients are a matrix.

Shapes: R rows of a layer's call, T positions (of an image, of a sequence), K blocks (groups of a convolution, else 1),
n inputs of a block (with 1 for the bias), m outputs of a block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_autoassist.capture.layer_patches import patches_of
from lightning_autoassist.capture.layers import LayerCall
from lightning_autoassist.kfac.factors import Factor
from lightning_autoassist.kfac.options import SharingName

# Patches of a convolution are formed for so many numbers at a time.
_MAX_PATCH_NUMBERS = 2**22


class LayerKind:
    r"""A layer whose gradient is a matrix: the sum over rows of :math:`g\, a^\top`, K times of shape ``(m, n)``.

    Args:
        layer: With a ``weight``; its ``bias`` counts where it has one that is trained.
        sharing: How a weight that is used at T positions is treated (Eschenhagen et al., NeurIPS 2023): ``"expand"``
            takes positions for independent, ``"reduce"`` averages inputs and adds up gradients over them first.

    Attributes:
        num_blocks: K.
        num_inputs: n.
        num_outputs: m.
        has_diagonal_inputs: Whether the inputs' factor is diagonal by itself.
    """

    num_blocks: int
    num_inputs: int
    num_outputs: int
    has_diagonal_inputs = False

    def __init__(self, layer: Any, sharing: SharingName = "expand") -> None:
        self.layer = layer
        self.sharing = sharing
        bias = getattr(layer, "bias", None)
        self.bias: nn.Parameter | None = bias if bias is not None and bias.requires_grad else None
        self.weight: nn.Parameter = layer.weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters whose gradients are preconditioned."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def add_inputs(self, call: LayerCall, factor: Factor) -> None:
        """Add a call's inputs to their factor."""
        for rows, weights in self._input_rows(call):
            rows = rows if self.bias is None else F.pad(rows, (0, 1), value=1.0)
            factor.add(rows, weights)
            factor.add_mass(rows.shape[1] if weights is None else weights.sum())

    def add_gradients(self, call: LayerCall, factor: Factor) -> None:
        """Add a call's output gradients to their factor; a step's terms count once, whatever the number of calls."""
        rows = self._by_block(call.gradients)  # (R, T, K, m)
        if self.sharing == "reduce":
            rows = _per_instance(rows, call).sum(1, keepdim=True)
        weights = _row_weights(call, rows)
        factor.add(rows.flatten(0, 1).movedim(1, 0), weights)
        if call.number == 0:
            factor.add_mass(call.num_terms * (1.0 if call.weights is None else call.weights.mean()))

    def matrix(self) -> Tensor | None:
        """The gradient, shape ``(K, m, n)``, at least float32; None where a parameter has none."""
        weight = self.weight.grad
        if weight is None or weight.is_sparse:
            return None
        dtype = torch.promote_types(weight.dtype, torch.float32)
        matrix = weight.reshape(self.num_blocks, self.num_outputs, -1).to(dtype)
        if self.bias is None:
            return matrix
        if self.bias.grad is None:
            return None
        bias = self.bias.grad.reshape(self.num_blocks, self.num_outputs, 1).to(dtype)
        return torch.cat([matrix, bias], 2)

    def write(self, matrix: Tensor) -> None:
        """Put a matrix in the place of the gradient: into the tensors that are there, which may be views of buckets."""
        assert self.weight.grad is not None
        if self.bias is not None:
            assert self.bias.grad is not None
            self.bias.grad.copy_(matrix[:, :, -1].reshape(self.bias.shape))
            matrix = matrix[:, :, :-1]
        self.weight.grad.copy_(matrix.reshape(self.weight.shape))

    def _input_rows(self, call: LayerCall) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows of inputs, shape ``(K, N, n)`` without the bias, and their weights, shape ``(N,)``, piece by piece."""
        raise NotImplementedError

    def _by_block(self, gradients: Tensor) -> Tensor:
        """Output gradients as ``(R, T, K, m)``."""
        raise NotImplementedError


class LinearKind(LayerKind):
    """A Linear over ``(R, *, F)``."""

    def __init__(self, layer: nn.Linear, sharing: SharingName = "expand") -> None:
        super().__init__(layer, sharing)
        self.num_blocks = 1
        self.num_inputs = layer.in_features + (self.bias is not None)
        self.num_outputs = layer.out_features

    @override
    def _input_rows(self, call: LayerCall) -> Iterator[tuple[Tensor, Tensor | None]]:
        rows = call.inputs.reshape(len(call.inputs), -1, 1, call.inputs.shape[-1])
        if self.sharing == "reduce":
            rows = _per_instance(rows, call).to(_wide(rows)).mean(1, keepdim=True)
        yield rows.flatten(0, 1).movedim(1, 0), _row_weights(call, rows)

    @override
    def _by_block(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(len(gradients), -1, 1, self.num_outputs)


class ConvKind(LayerKind):
    """A convolution over 1, 2 or 3 axes; each group is a block. Its rows are the patches at the outputs' positions."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, sharing: SharingName = "expand") -> None:
        super().__init__(layer, sharing)
        self.num_blocks = layer.groups
        self.num_inputs = layer.weight[0].numel() + (self.bias is not None)
        self.num_outputs = layer.out_channels // layer.groups

    @override
    def _input_rows(self, call: LayerCall) -> Iterator[tuple[Tensor, Tensor | None]]:
        weights = call.weights
        rows_at_once = self._rows_at_once(call)
        pieces = call.inputs.split(rows_at_once)
        weight_pieces = [None] * len(pieces) if weights is None else weights.split(rows_at_once)
        for piece, piece_weights in zip(pieces, weight_pieces, strict=True):
            rows = patches_of(self.layer, piece)  # (R, T, K, n)
            part = call._replace(inputs=piece, weights=piece_weights)
            if self.sharing == "reduce":
                rows = _per_instance(rows, part).to(_wide(rows)).mean(1, keepdim=True)
            yield rows.flatten(0, 1).movedim(1, 0), _row_weights(part, rows)

    def _rows_at_once(self, call: LayerCall) -> int:
        """How many rows' patches are formed at a time: whole instances."""
        positions = call.gradients[0, 0].numel()
        per_row = positions * self.num_inputs * self.num_blocks
        per_instance = call.rows_per_instance or 1
        return max(1, _MAX_PATCH_NUMBERS // max(1, per_row * per_instance)) * per_instance

    @override
    def _by_block(self, gradients: Tensor) -> Tensor:
        rows = gradients.flatten(2).movedim(2, 1)
        return rows.reshape(*rows.shape[:2], self.num_blocks, self.num_outputs)


class EmbeddingKind(LayerKind):
    """An Embedding: a Linear over one-hot vectors, the factor of whose inputs is the tokens' frequencies."""

    has_diagonal_inputs = True

    def __init__(self, layer: nn.Embedding, sharing: SharingName = "expand") -> None:
        super().__init__(layer, "expand")
        self.num_blocks = 1
        self.num_inputs = layer.num_embeddings
        self.num_outputs = layer.embedding_dim

    @override
    def add_inputs(self, call: LayerCall, factor: Factor) -> None:
        tokens, counts = call.inputs.reshape(-1), self._counts(call)
        factor.new_total[0].index_add_(0, tokens, counts.to(factor.total.dtype))
        factor.add_mass(counts.sum())

    @override
    def add_gradients(self, call: LayerCall, factor: Factor) -> None:
        if self.layer.padding_idx is not None:
            counts = (call.inputs != self.layer.padding_idx).unsqueeze(-1)
            call = call._replace(gradients=call.gradients * counts)
        super().add_gradients(call, factor)

    @override
    def matrix(self) -> Tensor | None:
        weight = self.weight.grad
        if weight is None or weight.is_sparse:
            return None
        return weight.t().unsqueeze(0).to(torch.promote_types(weight.dtype, torch.float32))

    @override
    def write(self, matrix: Tensor) -> None:
        assert self.weight.grad is not None
        self.weight.grad.copy_(matrix[0].t())

    def _counts(self, call: LayerCall) -> Tensor:
        """How much each token counts, shape ``(R·T,)``: padding does not."""
        counts = torch.ones(call.inputs.shape, dtype=call.gradients.dtype, device=call.inputs.device)
        if call.weights is not None:
            counts = counts * call.weights.reshape(-1, *[1] * (counts.ndim - 1))
        if self.layer.padding_idx is not None:
            counts = counts * (call.inputs != self.layer.padding_idx)
        return counts.reshape(-1)

    @override
    def _by_block(self, gradients: Tensor) -> Tensor:
        return gradients.reshape(len(gradients), -1, 1, self.num_outputs)


KINDS: dict[type[nn.Module], type[LayerKind]] = {
    nn.Linear: LinearKind,
    nn.Conv1d: ConvKind,
    nn.Conv2d: ConvKind,
    nn.Conv3d: ConvKind,
    nn.Embedding: EmbeddingKind,
}


def kind_of(layer: nn.Module, sharing: SharingName = "expand") -> LayerKind | None:
    """How a layer is preconditioned; None where it is of no supported class."""
    found = next((kind for base, kind in KINDS.items() if isinstance(layer, base)), None)
    return None if found is None else found(layer, sharing)


def _per_instance(rows: Tensor, call: LayerCall) -> Tensor:
    """Rows ``(R, T, ...)`` with an instance's rows as further positions, where it is known whose they are."""
    per_instance = call.rows_per_instance or 1
    return rows.reshape(len(rows) // per_instance, per_instance * rows.shape[1], *rows.shape[2:])


def _row_weights(call: LayerCall, rows: Tensor) -> Tensor | None:
    """Weights of rows ``(R or B, T, ...)``, shape ``(R·T,)``."""
    if call.weights is None:
        return None
    weights = call.weights.reshape(len(rows), -1)[:, :1]
    return weights.expand(len(rows), rows.shape[1]).reshape(-1)


def _wide(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)
