"""What every stream of candidates has: counts, weights, and batches on their way to the model.

Shapes: N data set, B batch, K batches an epoch, n candidates, F features.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lightning_autoassist.trainer_support.arguments import check_choice
from lightning_autoassist.trainer_support.arrays import FloatArray, IndexArray

REWEIGHTINGS = ("none", "inverse_probability", "normalized")
# The last N candidates are counted in entries of at most this share of N.
MIN_RECENT = 4096


def batches_per_epoch(num_instances: float, batch_size: int, budget: float, drop_last: bool = False) -> int:
    """K, the number of training batches of every epoch: ceil(budget·N / B), floor where the last batch is dropped.

    N and B may be counted in tokens.

    Example:
        >>> batches_per_epoch(60_000, 128, budget=0.6)
        282
    """
    exact = budget * num_instances / batch_size
    # A budget of 0.6 is not a binary fraction: 0.6 * 50 / 10 must not become 4 batches, or 2.
    return max(1, math.floor(exact + 1e-9) if drop_last else math.ceil(exact - 1e-9))


class Rows(NamedTuple):
    """Instances of a stream, which no index tells.

    Attributes:
        batch: The user's batch that holds them.
        size: n.
        features: Shape ``(n, F)``, or rows of tokens, shape ``(n, W)``, or None.
        integers: What may be their labels: the batch's integer tensors of shape ``(n,)``, by their place in it.
    """

    batch: Any
    size: int
    features: Tensor | None
    integers: dict[str, Tensor]


class SelectedBatch(NamedTuple):
    """One batch of kept instances.

    Attributes:
        indices: Shape ``(B,)``, int64: positions in the data set, or which candidates of a stream they were.
        weights: Shape ``(B,)``, float32; None where instances are not weighted.
        rows: The instances themselves, where they come from a stream.
        pass_index: The pass that was on when the batch was complete.
        lacks_features: Whether features of some instance were still to be had when the batch was drawn.
        knows_rows: Whether the batch's rows are known to be these instances, in this order.
        drawn: The draw that this one is of, where a collate function reordered its instances or left some out.
        arrived: The batch as it came out of the loader, in a run's first steps.
    """

    indices: IndexArray
    weights: FloatArray | None
    rows: Rows | None = None
    pass_index: int = 0
    lacks_features: bool = False
    knows_rows: bool = True
    drawn: SelectedBatch | None = None
    arrived: Any = None


class CandidateStream:
    """Base of what draws batches of kept instances: counts candidates, weights what was kept, remembers what is out.

    Args:
        reweighting: ``"none"``, ``"inverse_probability"`` or ``"normalized"``.
        seed: Of the generator that decides what is kept.

    Attributes:
        num_instances: N.
        batch_size: B.
        drop_last: Whether K is rounded down.
        keep_probability: What gives candidates their p; None keeps everything.
        num_considered: Candidates since the start.
        num_kept: Of these.
        prob_sum: Sum of all candidates' p.
        seconds: Spent on drawing.
        pass_index: Number of the pass, from 0.

    Raises:
        ValueError: If ``reweighting`` names no mode.
    """

    num_instances: int
    batch_size: int
    drop_last: bool = False
    keep_probability: Callable[..., npt.NDArray[np.floating[Any]]] | None

    def __init__(self, reweighting: str, seed: int) -> None:
        check_reweighting(reweighting)
        self.reweighting = reweighting
        self.num_considered = 0
        self.num_kept = 0
        self.prob_sum = 0.0
        self.seconds = 0.0
        self.pass_index = -1
        self._rng = np.random.Generator(np.random.PCG64(seed))
        # For "normalized": (candidates, sum of their p) of the runs of chunks that make up the last N candidates.
        self._recent: deque[tuple[int, float]] = deque()
        self._recent_count, self._recent_sum = 0, 0.0

    def __len__(self) -> int:
        """K."""
        raise NotImplementedError

    def batches_at(self, budget: float) -> int:
        """K at a budget."""
        return batches_per_epoch(self.num_instances, self.batch_size, budget, self.drop_last)

    def _count(self, probs: npt.NDArray[np.float64], num_kept: int) -> None:
        """Candidates with p of ``probs`` were considered."""
        prob_sum = float(probs.sum())
        self.num_considered += len(probs)
        self.num_kept += num_kept
        self.prob_sum += prob_sum
        # Chunks that are small beside N share an entry, so that neither memory nor a checkpoint grows with N / B.
        if self._recent and self._recent[-1][0] + len(probs) <= self.num_instances // MIN_RECENT:
            last_count, last_sum = self._recent.pop()
            self._recent.append((last_count + len(probs), last_sum + prob_sum))
        else:
            self._recent.append((len(probs), prob_sum))
        self._recent_count += len(probs)
        self._recent_sum += prob_sum
        while self._recent_count - self._recent[0][0] >= self.num_instances:
            oldest_count, oldest_sum = self._recent.popleft()
            self._recent_count -= oldest_count
            self._recent_sum -= oldest_sum

    def _weights_of(self, probs: npt.NDArray[np.float64]) -> FloatArray | None:
        """Weights of instances kept with ``probs``, shape ``(B,)``."""
        if self.reweighting == "none":
            return None
        scale = self._recent_sum / self._recent_count if self.reweighting == "normalized" else 1.0
        return (scale / probs).astype(np.float32)

    def _counts(self) -> dict[str, Any]:
        """What is counted and the generator's state, as builtins."""
        return {
            "pass_index": self.pass_index,
            "rng": self._rng.bit_generator.state,
            "recent": [list(entry) for entry in self._recent],
            "recent_sum": self._recent_sum,
            "totals": [self.num_considered, self.num_kept, self.prob_sum],
        }

    def _restore_counts(self, state: dict[str, Any]) -> None:
        self.pass_index = state["pass_index"]
        self._rng.bit_generator.state = state["rng"]
        self._recent = deque((int(count), float(total)) for count, total in state["recent"])
        self._recent_count, self._recent_sum = sum(count for count, _ in self._recent), state["recent_sum"]
        self.num_considered, self.num_kept, self.prob_sum = state["totals"]

    def _check_progress(self, considered_before: int) -> None:
        """Raise RuntimeError where one batch has taken hundreds of passes."""
        if self.num_considered - considered_before > 100 * (self.num_instances + self.batch_size):
            raise RuntimeError(
                "keep_probability kept next to nothing of the last 100 passes; it must return p in (0, 1] with a "
                "floor, 0.1 or more is usual"
            )


def check_reweighting(reweighting: str) -> None:
    """Raise an error unless ``reweighting`` names a mode."""
    check_choice("reweighting", reweighting, REWEIGHTINGS)
