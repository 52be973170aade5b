"""What a convolution multiplies its weight with: the patches of its input.

Shapes: R rows, T positions of the output, K groups, n weights of an output, C channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F


def patches_of(layer: Any, inputs: Tensor) -> Tensor:
    """The patches of a convolution's input over 1, 2 or 3 axes, padded as the layer does it.

    Args:
        layer: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``.
        inputs: Its input, shape ``(R, C, *)``.

    Returns:
        Shape ``(R, T, K, n)``, the n in the order of the weight's columns.

    Example:
        >>> import torch
        >>> layer, rows = torch.nn.Conv1d(1, 1, 2, bias=False), torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> patches_of(layer, rows).squeeze()
        tensor([[1., 2.],
                [2., 4.]])
    """
    num_axes = len(layer.kernel_size)
    padding = [each for pair in reversed(_padding(layer)) for each in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches: Tensor = F.pad(inputs, padding, mode=mode) if any(padding) else inputs
    for axis in range(num_axes):
        dilation = layer.dilation[axis]
        size = dilation * (layer.kernel_size[axis] - 1) + 1
        patches = patches.unfold(2 + axis, size, layer.stride[axis])[..., ::dilation]
    # (R, C, *positions, *kernel) -> (R, *positions, C, *kernel)
    patches = patches.movedim(1, 1 + num_axes)
    return patches.reshape(len(inputs), -1, layer.groups, layer.weight[0].numel())


def _padding(layer: Any) -> list[tuple[int, int]]:
    """What is added before and behind each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(each, each) for each in layer.padding]
