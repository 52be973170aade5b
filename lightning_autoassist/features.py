"""What is remembered of each instance: reduced features, label, last score.

Shapes: N data set, B batch, n candidates, F features, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_FEATURES = 256
# Half precision ends at 65,504. Features beyond this bound would swamp the rest anyhow.
FEATURE_BOUND = 1e4

FeatureFunction = Callable[[Any], Tensor]


class Instances(NamedTuple):
    """Rows of the instance store. Columns that were not asked for, or that do not exist, are None.

    Attributes:
        features: Shape ``(n, F)``, half precision from the store.
        labels: Class labels, shape ``(n,)``, integer.
        scores: The last score observed, shape ``(n,)``, float32.
        ages: Batches learnt from since that score was observed, shape ``(n,)``, int32; -1 where none ever was.
    """

    features: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    ages: Tensor | None = None


class InstanceStore:
    """One row for each of the N instances, on the CPU.

    Features are allocated when the first ones arrive: N·F·2 bytes; label, score, its time and a flag take 13 bytes
    an instance.

    Args:
        num_instances: N.
    """

    def __init__(self, num_instances: int) -> None:
        self.features: Tensor | None = None
        self.labels: Tensor | None = None
        self.scores = torch.zeros(num_instances)
        self.seen = torch.zeros(num_instances, dtype=torch.bool)
        self.observed_at = torch.full((num_instances,), -1, dtype=torch.int32)
        self.num_batches = 0

    def __len__(self) -> int:
        return len(self.seen)

    def rows(self, indices: Tensor, columns: Sequence[str] = Instances._fields) -> Instances:
        """Gather the named columns of some instances.

        Args:
            indices: Shape ``(n,)``, int64.
            columns: A subset of ``{"features", "labels", "scores", "ages"}``.
        """

        def column(name: str) -> Tensor | None:
            values: Tensor | None = getattr(self, name) if name in columns else None
            # index_select, not values[indices]: several times faster for rows of half precision.
            return None if values is None else values.index_select(0, indices)

        ages = None
        if "ages" in columns:
            observed_at = self.observed_at.index_select(0, indices)
            ages = (self.num_batches - 1 - observed_at).where(observed_at >= 0, -1)
        return Instances(column("features"), column("labels"), column("scores"), ages)

    def put_features(self, indices: Tensor, features: Tensor) -> None:
        """Remember features, shape ``(n, F)``, any floating dtype; values that half precision cannot hold are bounded.

        Raises:
            ValueError: If F differs from that of earlier features.
        """
        features = torch.nan_to_num(features, nan=0.0).clamp(-FEATURE_BOUND, FEATURE_BOUND).half()
        if self.features is None:
            self.features = torch.zeros(len(self), features.shape[1], dtype=torch.half)
        if features.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"an instance has {features.shape[1]} features where earlier ones had {self.features.shape[1]}; "
                "pass features= to give every batch the same number"
            )
        self.features[indices] = features

    def put_labels(self, indices: Tensor, labels: Tensor) -> None:
        """Remember integer labels, shape ``(n,)``."""
        if self.labels is None:
            self.labels = torch.zeros(len(self), dtype=torch.int32)
        self.labels[indices] = labels.to(torch.int32)

    def put_scores(self, indices: Tensor, scores: Tensor) -> None:
        """Remember one batch's scores, shape ``(n,)``, and mark the instances as seen."""
        self.scores[indices] = scores
        self.seen[indices] = True
        self.observed_at[indices] = self.num_batches
        self.num_batches += 1

    def forget(self, indices: Tensor) -> None:
        """Mark instances as unseen, so that they are kept when they come up again."""
        self.seen[indices] = False

    def state_dict(self) -> dict[str, Any]:
        """All columns, as tensors or None, and the number of batches."""
        columns = ("features", "labels", "scores", "seen", "observed_at")
        return {"num_batches": self.num_batches, **{name: getattr(self, name) for name in columns}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: If the state is of another number of instances.
        """
        if len(state["seen"]) != len(self):
            raise ValueError(
                f"the state remembers {len(state['seen'])} instances, the data set has {len(self)}; "
                "resume with the data set of the interrupted run"
            )
        for name, values in state.items():
            setattr(self, name, values.clone() if isinstance(values, Tensor) else values)


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
        if max_features < 1:
            raise ValueError(f"max_features must be at least 1, got {max_features}; 256 is the default")
        self.function = function
        self.max_features = max_features
        self._projection: Tensor | None = None

    def __call__(self, batch: Any, batch_size: int) -> Tensor | None:
        """Reduced features, shape ``(B, F)``, or None where the batch holds nothing to take them from.

        Raises:
            ValueError: If ``function`` returned another shape.
        """
        with torch.no_grad():
            if self.function is not None:
                features = self.function(batch)
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
            # A generator of our own: the same signs in every run, and the global RNG stays untouched.
            generator = torch.Generator().manual_seed(width)
            signs = torch.randint(0, 2, (width, self.max_features), generator=generator) * 2 - 1
            self._projection = signs.float() / math.sqrt(self.max_features)
        self._projection = self._projection.to(values.device)
        return values @ self._projection

    def _hashed_counts(self, tokens: Tensor) -> Tensor:
        # Multiplicative hashing (Knuth): neighbouring ids land far apart.
        buckets = ((tokens.long() * 2654435761) >> 16) % self.max_features
        counts = torch.zeros(len(tokens), self.max_features, device=tokens.device)
        return counts.scatter_add_(1, buckets, torch.ones_like(buckets, dtype=counts.dtype))


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch of tuples, lists, mappings and dataclasses, in their order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for value in batch:
            yield from tensors_in(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from tensors_in(getattr(batch, field.name))
