"""What became of each instance: how often it was kept and dropped, and its last keep probability.

Shapes: N data set, M instances that are counted, n candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_autoassist.trainer_support.arrays import IndexArray

MAX_COUNTED = 1_000_000
_BYTE_MAX = 255
_ONE = np.int32(1)  # of the counts' type: numpy then adds forty times as fast


class InstanceCounts:
    """How often each instance was kept and dropped, and its last keep probability.

    Of more than a million instances every k-th is counted, for the smallest odd k with which they are no more: at most
    20 MB in memory, and 6 MB in a checkpoint (12 once an instance was considered more than 255 times), however large N.

    Args:
        num_instances: N.

    Example:
        >>> counts = InstanceCounts(3)
        >>> counts.add(np.array([0, 2]), np.array([1.0, 0.5]), np.array([True, False]))
        >>> counts.kept.tolist(), counts.dropped.tolist()
        ([1, 0, 0], [0, 0, 1])
    """

    def __init__(self, num_instances: int) -> None:
        self.num_instances = num_instances
        # Odd: data that are sorted in pairs or in rows of a power of two are still counted evenly.
        self.stride = -(-num_instances // MAX_COUNTED) | 1
        num_counted = -(-num_instances // self.stride)
        self.kept = np.zeros(num_counted, np.int32)
        self.dropped = np.zeros(num_counted, np.int32)
        self.probs = np.full(num_counted, np.nan, np.float32)
        self._before = self.kept.copy(), self.dropped.copy()
        self._dropped_before = False  # in an epoch before this one

    @property
    def indices(self) -> IndexArray:
        """Positions in the data set of the instances that are counted, shape ``(M,)``."""
        return np.arange(len(self.kept), dtype=np.int64) * self.stride

    @property
    def begins_to_drop(self) -> bool:
        """Whether an instance was dropped in this epoch, and none in those before."""
        return not self._dropped_before and bool(self.dropped.any())

    def add(self, candidates: IndexArray, probs: npt.NDArray[Any], kept: npt.NDArray[np.bool_]) -> None:
        """Candidates were considered, each of shape ``(n,)``: their keep probabilities, and whether they were kept."""
        if candidates.min(initial=0) < 0 or candidates.max(initial=0) >= self.num_instances:
            # Negative indices count from the end; instances that the data set got since are not counted.
            candidates = np.where(candidates < 0, candidates + self.num_instances, candidates)
            counted = (candidates >= 0) & (candidates < self.num_instances)
            candidates, probs, kept = candidates[counted], probs[counted], kept[counted]
        if self.stride > 1:
            counted = candidates % self.stride == 0
            candidates, probs, kept = candidates[counted] // self.stride, probs[counted], kept[counted]
        # Not kept[candidates] += 1, which would count a candidate once that a sampler with replacement drew twice.
        np.add.at(self.kept, candidates[kept], _ONE)
        np.add.at(self.dropped, candidates[~kept], _ONE)
        self.probs[candidates] = probs

    def start_epoch(self) -> None:
        """Count what follows as a new epoch."""
        self._before = self.kept.copy(), self.dropped.copy()
        self._dropped_before = bool(self.dropped.any())

    def state_dict(self) -> dict[str, Any]:
        """The counts, as tensors of the smallest type that holds them, and builtins."""
        return {
            "num_instances": self.num_instances,
            "kept": _packed(self.kept),
            "dropped": _packed(self.dropped),
            "probs": torch.from_numpy(self.probs.copy()),
            "dropped_before": self._dropped_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, of as many instances; what is counted of an epoch begins anew."""
        assert state["num_instances"] == self.num_instances
        self.kept, self.dropped = (state[name].numpy().astype(np.int32) for name in ("kept", "dropped"))
        self.probs = state["probs"].numpy().copy()
        self.start_epoch()
        # Of an epoch that was interrupted the gallery is still to come. Not in checkpoints of before.
        self._dropped_before = state.get("dropped_before", self._dropped_before)

    def by_class(self, labels: npt.NDArray[Any]) -> dict[int, tuple[int, int]]:
        """How many candidates of each class were kept and dropped in this epoch.

        Args:
            labels: Of the instances that are counted, shape ``(M,)``, integer.
        """
        kept, dropped = self.kept - self._before[0], self.dropped - self._before[1]
        classes, places = np.unique(labels, return_inverse=True)
        sums = (np.bincount(places, counts, len(classes)) for counts in (kept, dropped))
        return {
            int(label): (int(num_kept), int(num_dropped))
            for label, num_kept, num_dropped in zip(classes, *sums, strict=True)
            if num_kept + num_dropped
        }

    def extremes(self, most: int) -> tuple[IndexArray, IndexArray]:
        """Places (among those counted) of the instances kept least and most of the times they were candidates."""
        places = np.flatnonzero(self.kept + self.dropped)
        ratio = self.kept[places] / (self.kept[places] + self.dropped[places])
        # Of equal shares the ones more often decided come first, then the lower and higher probability.
        decided, probs = -(self.kept[places] + self.dropped[places]), self.probs[places]
        least = places[np.lexsort((probs, decided, ratio))[:most]]
        return least, places[np.lexsort((-probs, decided, -ratio))[:most]]


def _packed(counts: npt.NDArray[np.int32]) -> Tensor:
    fits_a_byte = counts.max(initial=0) <= _BYTE_MAX
    return torch.from_numpy(counts.astype(np.uint8) if fits_a_byte else counts.copy())
