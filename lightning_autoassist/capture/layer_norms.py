r"""Norms of instances' gradients at a layer's parameters, from its inputs and output gradients alone.

The gradient of instance i at a weight is the sum over positions :math:`\sum_t g_{it} a_{it}^T`. With one position its
squared norm is :math:`\|g_i\|^2 \|a_i\|^2`. With several it is :math:`\sum_{t,u} (a_t \cdot a_u)(g_t \cdot g_u)`,
which needs no gradient, or that of the gradient itself: whichever takes fewer operations.

Sources: Goodfellow, Efficient Per-Example Gradient Computations, 2015, arXiv:1510.01799; ghost clipping: Li, Tramèr,
Liang & Hashimoto, Large Language Models Can Be Strong Differentially Private Learners, ICLR 2022, arXiv:2110.05679;
convolutions, and the choice: Scalable and Efficient Training of Large Convolutional Neural Networks with Differential
Privacy, NeurIPS 2022, arXiv:2205.10683.

Shapes: B batch, T positions (of an image, of a sequence, of an instance's several rows), K groups of a convolution
(else 1), n inputs and m outputs of a group.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_autoassist.capture.layer_patches import patches_of
from lightning_autoassist.capture.layers import LayerCall

# Patches, products and gradients are formed for so many numbers at a time.
_MAX_NUMBERS = 2**22

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_FORWARDS = {kind: kind.forward for kind in (nn.Linear, *_CONVOLUTIONS)}


def has_norms(layer: nn.Module) -> bool:
    """Whether :func:`squared_norms` knows a layer: a Linear or a convolution that computes as torch's own does.

    Layers whose weight is itself computed, as by ``torch.nn.utils.parametrizations``, are none of these.

    Example:
        >>> has_norms(nn.Conv2d(1, 1, 3)), has_norms(nn.utils.parametrizations.weight_norm(nn.Linear(1, 1)))
        (True, False)
    """
    kind = next((kind for kind in _FORWARDS if isinstance(layer, kind)), None)
    if kind is None or type(layer).forward is not _FORWARDS[kind]:
        return False
    # Attention reads the parameters of its output layer, and never calls it.
    return "weight" in layer._parameters and not isinstance(layer, nn.modules.linear.NonDynamicallyQuantizableLinear)


def squared_norms(calls: Sequence[LayerCall]) -> Tensor:
    """Squared norm of each instance's gradient at a layer's trained weight and bias.

    Args:
        calls: All calls of one weight in a step, whose ``rows_per_instance`` are known.

    Returns:
        Shape ``(B,)``, in the type of the calls' gradients: float32 or float64.

    Example:
        >>> rows, gradients = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0]])
        >>> squared_norms([LayerCall("0", nn.Linear(2, 1), rows, gradients, None, 1, 1, 1, 0)])
        tensor([104.])
    """
    at_once = _instances_at_once(calls)
    parts = [_squared_norms(calls, start, start + at_once) for start in range(0, calls[0].batch_size, at_once)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _squared_norms(calls: Sequence[LayerCall], start: int, stop: int) -> Tensor:
    """Of the instances from ``start`` to ``stop``."""
    weight: Any = calls[0].layer.weight
    gradients = [_gradients(call, start, stop) for call in calls]
    norms = torch.zeros_like(gradients[0][:, 0, 0, 0])
    if weight.requires_grad:
        inputs = [_inputs(call, start, stop).to(norms.dtype) for call in calls]
        norms += _norms_of_products(_joined(inputs), _joined(gradients))
    sums: dict[Any, Any] = defaultdict(int)  # by the bias: layers that share a weight may have several, or none
    for call, of_call in zip(calls, gradients, strict=True):
        sums[call.layer.bias] += of_call.sum(3)
    biases = [total for bias, total in sums.items() if bias is not None and bias.requires_grad]
    return sum((total.square().sum((1, 2)) for total in biases), norms)


def _norms_of_products(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Squared norms of ``(B, K, n, T)`` times ``(B, K, m, T)``, summed over T as products, over K as squares."""
    num_inputs, num_positions = inputs.shape[2:]
    if num_positions == 1:
        return (inputs.square().sum(2) * gradients.square().sum(2)).sum((1, 2))
    if _prefers_gram(num_positions, num_inputs, gradients.shape[2]):
        # Of positive semi-definite matrices, but for rounding.
        return ((inputs.mT @ inputs) * (gradients.mT @ gradients)).sum((1, 2, 3)).clamp(min=0)
    return (gradients @ inputs.mT).square().sum((1, 2, 3))


def _prefers_gram(num_positions: int, num_inputs: int, num_outputs: int) -> bool:
    return num_positions * (num_inputs + num_outputs) < num_inputs * num_outputs


def _inputs(call: LayerCall, start: int, stop: int) -> Tensor:
    """Inputs as ``(instances, K, n, T)``."""
    rows = _rows_of(call, call.inputs, start, stop)
    return _by_instance(call, _columns_of(call.layer, rows) if isinstance(call.layer, _CONVOLUTIONS) else _last(rows))


def _gradients(call: LayerCall, start: int, stop: int) -> Tensor:
    """Output gradients as ``(instances, K, m, T)``."""
    rows = _rows_of(call, call.gradients, start, stop)
    if not isinstance(call.layer, _CONVOLUTIONS):
        return _by_instance(call, _last(rows))
    return _by_instance(call, rows.reshape(len(rows), call.layer.groups, -1, rows[0, 0].numel()))


def _last(rows: Tensor) -> Tensor:
    """``(R, *, F)`` as ``(R, 1, F, T)``, without a copy."""
    return rows.reshape(len(rows), -1, 1, rows.shape[-1]).movedim(1, 3)


def _columns_of(layer: Any, rows: Tensor) -> Tensor:
    """A convolution's patches, as ``(R, K, n, T)``."""
    if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return patches_of(layer, rows).movedim(1, 3)
    columns = F.unfold(rows, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # twice as fast
    return columns.view(len(rows), layer.groups, -1, columns.shape[-1])


def _by_instance(call: LayerCall, rows: Tensor) -> Tensor:
    """``(R, K, n, T)`` with an instance's rows as further positions."""
    per_instance = call.rows_per_instance or 1
    if per_instance == 1:
        return rows
    return rows.reshape(-1, per_instance, *rows.shape[1:]).movedim(1, 3).flatten(3)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), 3) if len(parts) > 1 else parts[0]


def _rows_of(call: LayerCall, rows: Tensor, start: int, stop: int) -> Tensor:
    per_instance = call.rows_per_instance or 1
    return rows[start * per_instance : stop * per_instance]


def _instances_at_once(calls: Sequence[LayerCall]) -> int:
    """How many instances' numbers are formed at a time."""
    layer: Any = calls[0].layer
    num_groups = getattr(layer, "groups", 1)
    num_inputs, num_outputs = layer.weight[0].numel(), len(layer.weight) // num_groups
    num_positions = sum(call.gradients.numel() // call.batch_size // len(layer.weight) for call in calls)
    is_gram = _prefers_gram(num_positions, num_inputs, num_outputs)
    numbers = 0
    if num_positions > 1:
        numbers = num_groups * (2 * num_positions**2 if is_gram else num_inputs * num_outputs)
    if isinstance(layer, _CONVOLUTIONS):
        numbers += num_groups * num_positions * num_inputs
    return max(1, _MAX_NUMBERS // max(1, numbers))
