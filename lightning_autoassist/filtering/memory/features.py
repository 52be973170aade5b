"""Features of a batch's instances, reduced to few numbers.

Shapes: N data set, B batch, F features, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.trainer_support.arguments import check_whole
from lightning_autoassist.trainer_support.batch_parts import tensors_in

MAX_FEATURES = 256
# Half precision ends at 65,504. Features beyond this bound would swamp the rest anyhow.
FEATURE_BOUND = 1e4
# Gets a batch; returns features, shape (B, F), or sequences of token ids, shape (B, T).
FeatureFunction = Callable[[Any], Any]


class BatchFeatures:
    """At most 256 numbers for each instance of a batch, by a fixed reduction on the batch's own device.

    Takes the batch's largest floating tensor (or bytes, as raw images are) with leading size B; without one, counts
    hashed tokens of its largest integer tensor of two or more dimensions.

    - ``(B, F)`` and anything of at most 256 numbers an instance: as it is;
    - ``(B, C, ...)`` with positions after the channels: adaptive average pooling over the positions;
    - everything else: a fixed random projection (signs, scaled to keep lengths; Achlioptas, JCSS 2003).

    Args:
        function: Replaces the choice and the reduction of the batch's tensor: gets the batch, returns ``(B, F)``.
        max_features: Most numbers an instance may take.

    Example:
        >>> images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
        >>> BatchFeatures()((images, labels), 4).shape
        torch.Size([4, 243])
    """

    def __init__(self, function: FeatureFunction | None = None, max_features: int = MAX_FEATURES) -> None:
        self.function = function
        self.max_features = check_whole("max_features", max_features, "[1, inf)", f"{MAX_FEATURES} is the default")
        self._projection: Tensor | None = None

    def __call__(self, batch: Any, batch_size: int) -> Tensor | None:
        """Reduced features, shape ``(B, F)``, or None where the batch holds nothing to take them from.

        Raises:
            ValueError: If ``function`` returned another shape.
        """
        with torch.no_grad():
            if self.function is not None:
                features: Tensor = self.function(batch)
                if features.ndim != 2 or len(features) != batch_size:
                    raise ValueError(f"features= must return shape ({batch_size}, F), got {tuple(features.shape)}")
                return features.detach()
            rows = [tensor for tensor in tensors_in(batch) if tensor.ndim and tensor.shape[0] == batch_size]
            dense = [
                tensor
                for tensor in rows
                if (tensor.is_floating_point() or tensor.dtype == torch.uint8) and tensor.numel()
            ]
            if dense:
                return self._reduce(max(dense, key=torch.Tensor.numel).detach().float())
            tokens = [
                tensor for tensor in rows if tensor.ndim >= 2 and not tensor.is_floating_point() and tensor.numel()
            ]
            if tokens:
                return self._hashed_counts(max(tokens, key=torch.Tensor.numel).detach().flatten(1))
            return None

    def _reduce(self, values: Tensor) -> Tensor:
        values = values[:, None] if values.ndim == 1 else values
        if values[0].numel() <= self.max_features:
            return values.flatten(1)
        channels, positions = values.shape[1], values.ndim - 2
        if not 1 <= positions <= 3 or channels > self.max_features:
            return self._project(values.flatten(1))
        side = math.floor((self.max_features / channels) ** (1 / positions) + 1e-9)
        pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[positions - 1]
        pooled: Tensor = pool(values, [min(side, size) for size in values.shape[2:]])
        return pooled.flatten(1)

    def _project(self, values: Tensor) -> Tensor:
        width = values.shape[1]
        if self._projection is None or self._projection.shape[0] != width:
            self._projection = random_signs(width, self.max_features) / math.sqrt(self.max_features)
        self._projection = self._projection.to(values.device)
        return values @ self._projection

    def _hashed_counts(self, tokens: Tensor) -> Tensor:
        # Multiplicative hashing (Knuth): neighbouring ids land far apart.
        buckets = ((tokens.long() * 2654435761) >> 16) % self.max_features
        counts = torch.zeros(len(tokens), self.max_features, device=tokens.device)
        return counts.scatter_add_(1, buckets, torch.ones_like(buckets, dtype=counts.dtype))


def random_signs(num_inputs: int, num_outputs: int) -> Tensor:
    """A random projection of 1 and -1, shape ``(num_inputs, num_outputs)``, float32; the same in every run.

    It comes from a generator of its own, so that the global RNG stays untouched.
    """
    generator = torch.Generator().manual_seed(num_inputs)
    return (torch.randint(0, 2, (num_inputs, num_outputs), generator=generator) * 2 - 1).float()


def bounded(features: Tensor) -> Tensor:
    """Features in half precision; NaN becomes 0, and what half precision cannot hold is bounded."""
    return torch.nan_to_num(features, nan=0.0).clamp(-FEATURE_BOUND, FEATURE_BOUND).half()
