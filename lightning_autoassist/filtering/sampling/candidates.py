"""What every stream of candidates has: counts, weights, and batches on their way to the model.

Shapes: N data set, B batch, K batches an epoch, n candidates.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.selection import Rows, Selector
from lightning_autoassist.trainer_support.arrays import FloatArray, IndexArray

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


class SelectedBatch(NamedTuple):
    """One batch of kept instances.

    Attributes:
        indices: Shape ``(B,)``, int64: positions in the data set, or which candidates of a stream they were.
        weights: Shape ``(B,)``, float32; None where instances are not weighted.
        rows: The instances themselves, where they come from a stream.
        pass_index: The pass that was on when the batch was complete.
        lacks_features: Whether features of some instance were not yet remembered when the batch was drawn.
        knows_rows: Whether the batch's rows are known to be these instances, in this order.
        drawn: The draw that this one is of, where a collate function reordered its instances or left some out.
        arrived: The batch as it came out of the loader, in a run's first steps.
        probs: What the instances were kept with, shape ``(B,)``, float32; None: all were certain to be.
    """

    indices: IndexArray
    weights: FloatArray | None
    rows: Rows | None = None
    pass_index: int = 0
    lacks_features: bool = False
    knows_rows: bool = True
    drawn: SelectedBatch | None = None
    arrived: Any = None
    probs: FloatArray | None = None


class _Counted(NamedTuple):
    """Candidates that were considered: their number, the sum of their p and of their p^(1 - correction).

    Of instances that are kept with p, the mean of p^(-correction) is the quotient of the last two.
    """

    num: int
    prob_sum: float
    power_sum: float

    def plus(self, other: _Counted, sign: int = 1) -> _Counted:
        """These and the others; without them where ``sign`` is -1."""
        return _Counted(*(own + sign * theirs for own, theirs in zip(self, other, strict=True)))  # type: ignore[arg-type]


class CandidateStream:
    """Base of what draws batches of kept instances: counts candidates, weights what was kept, remembers what is out.

    Args:
        selector: Gives candidates their p, and says how they are weighted.
        seed: Of the generator that decides what is kept.

    Attributes:
        num_instances: N.
        batch_size: B.
        drop_last: Whether K is rounded down.
        selector: See above; may change between two epochs.
        num_considered: Candidates since the start.
        num_kept: Of these.
        prob_sum: Sum of all candidates' p.
        seconds: Spent on drawing.
        pass_index: Number of the pass, from 0.
    """

    num_instances: int
    batch_size: int
    drop_last: bool = False

    def __init__(self, selector: Selector, seed: int) -> None:
        self.selector = selector
        self.num_considered = 0
        self.num_kept = 0
        self.prob_sum = 0.0
        self.seconds = 0.0
        self.pass_index = -1
        self._rng = np.random.Generator(np.random.PCG64(seed))
        # For "normalized", of the runs of chunks that make up the last N candidates.
        self._recent: deque[_Counted] = deque()
        self._recent_total = _Counted(0, 0.0, 0.0)

    def __len__(self) -> int:
        """K."""
        raise NotImplementedError

    @property
    def reweighting(self) -> ReweightingName:
        """How kept instances are weighted: ``"none"``, ``"inverse_probability"`` or ``"normalized"``."""
        return self.selector.reweighting

    def batches_at(self, budget: float) -> int:
        """K at a budget."""
        return batches_per_epoch(self.num_instances, self.batch_size, budget, self.drop_last)

    def _count(self, probs: npt.NDArray[np.float64], num_kept: int) -> None:
        """Candidates with p of ``probs`` were considered."""
        counted = self._counted(probs)
        self.num_considered += len(probs)
        self.num_kept += num_kept
        self.prob_sum += counted.prob_sum
        # Chunks that are small beside N share an entry, so that neither memory nor a checkpoint grows with N / B.
        if self._recent and self._recent[-1].num + len(probs) <= self.num_instances // MIN_RECENT:
            self._recent.append(self._recent.pop().plus(counted))
        else:
            self._recent.append(counted)
        self._recent_total = self._recent_total.plus(counted)
        while self._recent_total.num - self._recent[0].num >= self.num_instances:
            self._recent_total = self._recent_total.plus(self._recent.popleft(), sign=-1)

    def _counted(self, probs: npt.NDArray[np.float64]) -> _Counted:
        prob_sum, exponent = float(probs.sum()), self.selector.correction
        if exponent in (0, 1):
            return _Counted(len(probs), prob_sum, float(len(probs)) if exponent else prob_sum)
        return _Counted(len(probs), prob_sum, float((probs ** (1 - exponent)).sum()))

    def _weights_of(self, probs: npt.NDArray[np.float64]) -> FloatArray | None:
        """Weights of instances kept with ``probs``, shape ``(B,)``."""
        if self.reweighting == "none":
            return None
        total, exponent = self._recent_total, self.selector.correction
        scale = total.prob_sum / total.power_sum if self.reweighting == "normalized" else 1.0
        return (scale / (probs if exponent == 1 else probs**exponent)).astype(np.float32)

    @property
    def recent_keep_rate(self) -> float:
        """Mean of p over the last N candidates; 1 before the first."""
        return self._recent_total.prob_sum / self._recent_total.num if self._recent_total.num else 1.0

    def _counts(self) -> dict[str, Any]:
        """What is counted and the generator's state, as builtins."""
        return {
            "pass_index": self.pass_index,
            "rng": self._rng.bit_generator.state,
            "recent": [list(entry) for entry in self._recent],
            "recent_total": list(self._recent_total),
            "totals": [self.num_considered, self.num_kept, self.prob_sum],
        }

    def _restore_counts(self, state: dict[str, Any]) -> None:
        self.pass_index = state["pass_index"]
        self._rng.bit_generator.state = state["rng"]
        self._recent = deque(_Counted(*entry) for entry in state["recent"])
        self._recent_total = _Counted(*state["recent_total"])
        self.num_considered, self.num_kept, self.prob_sum = state["totals"]

    def _check_progress(self, considered_before: int) -> None:
        """Raise RuntimeError where one batch has taken hundreds of passes."""
        if self.num_considered - considered_before > 100 * (self.num_instances + self.batch_size):
            raise RuntimeError(
                "keep_probability kept next to nothing of the last 100 passes; it must return p in (0, 1] with a "
                "floor, 0.1 or more is usual"
            )
