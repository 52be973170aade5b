"""Heads: small networks that make of a block's output what the user's loss takes of the whole network's.

Sources: Belilovsky, Eickenberg & Oyallon, Decoupled Greedy Learning of CNNs, ICML 2020, arXiv:1901.08164 ("mlp_sr").

Shapes: B batch, C channels, T positions of a sequence, D features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_autoassist.trainer_support.rng import forked_generators, seed_generators

HEADS = ("linear", "conv", "mlp_sr")
HeadFunction = Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_CONV_CHANNELS = 256
_MLP_FEATURES = 256


class Pool(nn.Module):
    """The mean over all axes but the batch's and the features', shape ``(B, D)``.

    Args:
        is_channels_last: Whether the features are the last axis, as in ``(B, T, D)``; else the second.
    """

    def __init__(self, *, is_channels_last: bool) -> None:
        super().__init__()
        self.is_channels_last = is_channels_last

    @override
    def forward(self, values: Tensor) -> Tensor:
        values = values.movedim(-1, 1) if self.is_channels_last else values
        return values.flatten(2).mean(2) if values.ndim > 2 else values


class Resize(nn.Module):
    """Each channel's values, at other positions: shape ``(B, C, *size)``."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.size = tuple(size)

    @override
    def forward(self, values: Tensor) -> Tensor:
        return values if values.shape[2:] == self.size else F.interpolate(values, self.size)


class Reshape(nn.Module):
    """Shape ``(B, *shape)``."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    @override
    def forward(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *self.shape)


def make_head(
    kind: str | HeadFunction, shape: tuple[int, ...], out_shape: tuple[int, ...], *, is_channels_last: bool
) -> nn.Module:
    """A head.

    Args:
        kind: "linear": pooling and one linear layer; "conv": a convolution before them (a hidden layer where the block
            gives no maps); "mlp_sr": pooling to a quarter, three 1x1 convolutions and three hidden layers; or a
            function of the two shapes.
        shape: Of the block's output, without the batch's axis.
        out_shape: Of the network's output, without the batch's axis.
        is_channels_last: Whether the features are the last axis of ``shape``.

    Example:
        >>> make_head("linear", (16, 8, 8), (10,), is_channels_last=False)(torch.zeros(4, 16, 8, 8)).shape
        torch.Size([4, 10])
    """
    if callable(kind):
        return kind(shape, out_shape)
    is_sequence = is_channels_last and len(shape) == 2 and len(out_shape) == 2 and shape[0] == out_shape[0]
    if is_sequence or len(shape) == 1:
        return _of_vectors(kind, shape[-1], out_shape[-1:] if is_sequence else out_shape)
    if is_channels_last:
        pool = Pool(is_channels_last=True)
        return nn.Sequential(pool, _of_vectors(kind, shape[-1], out_shape))
    if len(out_shape) == len(shape) and len(shape) - 1 in _CONVOLUTIONS:
        return _of_maps(kind, shape, out_shape)
    return _pooled(kind, shape, out_shape)


def _of_vectors(kind: str, num_features: int, out_shape: tuple[int, ...]) -> nn.Module:
    """For outputs without positions, or each position of a sequence by itself."""
    num_outputs = math.prod(out_shape)
    layers: list[nn.Module] = []
    hidden = {"linear": 0, "conv": 1, "mlp_sr": 3}[kind]
    for _ in range(hidden):
        width = min(max(num_features, num_outputs), _MLP_FEATURES)
        layers += [nn.Linear(num_features, width), nn.ReLU()]
        num_features = width
    layers.append(nn.Linear(num_features, num_outputs))
    if len(out_shape) != 1:
        layers.append(Reshape(out_shape))
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


def _of_maps(kind: str, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
    """For networks whose outputs are maps, too."""
    conv, norm = _CONVOLUTIONS[len(shape) - 1], _NORMS[len(shape) - 1]
    layers: list[nn.Module] = []
    if kind != "linear":
        layers += [conv(shape[0], shape[0], 3, padding=1, bias=False), norm(shape[0]), nn.ReLU()]
    return nn.Sequential(*layers, conv(shape[0], out_shape[0], 1), Resize(out_shape[1:]))


def _pooled(kind: str, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
    """For networks that make vectors of maps."""
    num_axes, channels = len(shape) - 1, shape[0]
    if kind == "linear" or num_axes not in _CONVOLUTIONS:
        return nn.Sequential(Pool(is_channels_last=False), _of_vectors("linear", channels, out_shape))
    conv, norm, pool = _CONVOLUTIONS[num_axes], _NORMS[num_axes], _POOLS[num_axes]
    layers: list[nn.Module]
    if kind == "conv":
        width = min(2 * channels, _CONV_CHANNELS)
        layers = [conv(channels, width, 3, stride=2, padding=1, bias=False), norm(width), nn.ReLU(True)]
        return nn.Sequential(*layers, Pool(is_channels_last=False), _of_vectors("linear", width, out_shape))
    layers = [pool(tuple(math.ceil(size / 4) for size in shape[1:]))]
    for _ in range(3):
        layers += [conv(channels, channels, 1, bias=False), norm(channels), nn.ReLU()]
    layers += [pool(2), nn.Flatten()]
    width = channels * 2**num_axes
    for _ in range(3):
        layers += [nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, _of_vectors("linear", width, out_shape))


def has_features_last(layer: nn.Module | None, shape: tuple[int, ...]) -> bool:
    """Whether the features of an output are its last axis: of sequences, unless they come from convolutions.

    Args:
        layer: The last one with parameters that was called before it.
        shape: Of the output, without the batch's axis.
    """
    return len(shape) == 2 and not isinstance(layer, (nn.Conv1d, nn.BatchNorm1d))


def seeded(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What ``make`` makes on the CPU with torch's generator at a seed; the generator is left as it was."""
    cpu = torch.device("cpu")
    with forked_generators(cpu), cpu:
        seed_generators(seed, cpu)
        return make()
