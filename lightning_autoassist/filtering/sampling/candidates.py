"""Source, selector, batcher: from candidates to batches of kept instances, with counts, weights and state.

Shapes: N data set, B batch, K batches an epoch, n candidates.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.batchers import Batcher, Piece
from lightning_autoassist.filtering.sampling.selection import Rows, Selector
from lightning_autoassist.trainer_support.arrays import FloatArray, IndexArray
from lightning_autoassist.trainer_support.executors import InlineExecutor

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
        kind: Of a stream's rows: tells them from others that cannot share a batch with them.
        kept: The instances as they were kept, each with its p; None of the user's own batches.
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
    kind: str = ""
    kept: Piece | None = None


class _Counted(NamedTuple):
    """Candidates that were considered: their number, the sum of their p and of their p^(1 - correction).

    Of instances that are kept with p, the mean of p^(-correction) is the quotient of the last two.
    """

    num: int
    prob_sum: float
    power_sum: float

    def plus(self, other: _Counted, sign: int = 1) -> _Counted:
        """The sum of both; the difference where ``sign`` is -1."""
        return _Counted(*(own + sign * theirs for own, theirs in zip(self, other, strict=True)))  # type: ignore[arg-type]


class Source(Protocol):
    """Where candidates come from, pass after pass; with a state."""

    pass_index: int

    def state_dict(self) -> dict[str, Any]:
        """The place in the pass."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


class CandidateStream:
    """Batches of kept instances: of candidates from a source, kept with a selector's p, put together by a batcher.

    The stream runs on across epochs, so that nothing is left out.

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
    """

    num_instances: int
    batch_size: int
    drop_last: bool = False
    _source: Source
    _batcher: Batcher

    def __init__(self, selector: Selector, seed: int) -> None:
        self.selector = selector
        self.num_considered = 0
        self.num_kept = 0
        self.prob_sum = 0.0
        self.seconds = 0.0
        self._rng = np.random.Generator(np.random.PCG64(seed))
        # For "normalized", of the runs of chunks that make up the last N candidates.
        self._recent: deque[_Counted] = deque()
        self._recent_total = _Counted(0, 0.0, 0.0)
        self._considered_before = 0  # candidates up to the last batch
        self._in_flight: deque[SelectedBatch] = deque()  # handed out, and not trained on

    def __len__(self) -> int:
        """K."""
        raise NotImplementedError

    @property
    def reweighting(self) -> ReweightingName:
        """How kept instances are weighted: ``"none"``, ``"inverse_probability"`` or ``"normalized"``."""
        return self.selector.reweighting

    @property
    def pass_index(self) -> int:
        """Number of the pass, from 0; before the first of a data set -1."""
        return self._source.pass_index

    @property
    def waiting(self) -> IndexArray:
        """Which kept instances wait for their batch."""
        return self._batcher.waiting

    def batches_at(self, budget: float) -> int:
        """K at a budget."""
        return batches_per_epoch(self.num_instances, self.batch_size, budget, self.drop_last)

    # ---- epochs

    def draws(self, limit: int | None = None) -> Iterator[SelectedBatch]:
        """The batches of one epoch. Batches that were handed out earlier and never confirmed come first.

        Args:
            limit: Batches of the epoch, where they are fewer than K: the rest of an epoch that was interrupted.
        """
        count, jobs = len(self) if limit is None else limit, self._jobs
        jobs.wait_all()
        out = deque(self._in_flight)  # drawn, and not handed out
        num_drawn = len(out)

        def draw_until(wanted: int) -> None:
            nonlocal num_drawn
            while num_drawn < wanted and (draw := self._draw()) is not None:
                self._in_flight.append(draw)
                out.append(draw)
                num_drawn += 1

        earlier: Future[None] | None = None
        for number in range(count):
            started, waited = time.perf_counter(), self._seconds_waited
            wanted = min(number + 1 + jobs.draws_ahead, count)
            later = jobs.submit(functools.partial(draw_until, wanted))
            if earlier is not None:
                earlier.result()
            earlier = later
            if not out:
                jobs.wait_all()
            while not out:
                # Here and not in a job: the user's sampler draws from the global RNG, as his module does.
                self._read_on()
                draw_until(wanted)
            self.seconds += time.perf_counter() - started - (self._seconds_waited - waited)
            yield out.popleft()

    def mark_consumed(self, draw: SelectedBatch) -> None:
        """Take note that the model was trained on ``draw``, the oldest unconfirmed batch."""
        oldest = self._in_flight.popleft()
        # It need not be the same object: whatever got between may have copied it.
        is_oldest = oldest.indices is draw.indices or np.array_equal(oldest.indices, draw.indices)
        assert is_oldest, "the model gets batches in the order they were drawn"

    @property
    def _jobs(self) -> InlineExecutor:
        """Where batches are drawn."""
        return self.selector.jobs

    @property
    def _seconds_waited(self) -> float:
        """Seconds of loading data, which any training takes."""
        return 0.0

    def _draw(self) -> SelectedBatch | None:
        """The next batch; None where something has to be read first."""
        while (taken := self._batcher.take()) is None:
            if not self._consider_next():
                return None
        return self._selected(*taken)

    def _read_on(self) -> None:
        """Read what the source has next."""
        raise NotImplementedError

    def _consider_next(self) -> bool:
        """Consider the next candidates of those that were read; False where there are none."""
        return False

    def _selected(self, kind: str, piece: Piece) -> SelectedBatch | None:
        """The batch of some kept instances; None where it cannot be made yet."""
        self._considered_before = self.num_considered
        lacks_features = self.selector.lacks_features(piece.numbers)
        return _selected(piece, self._weights_of(piece.probs), self.pass_index, lacks_features)

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

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Place of the source, RNG, instances that wait or are handed out, totals: tensors and builtins."""
        self._jobs.wait_all()
        return {
            "num_instances": self.num_instances,
            "rng": self._rng.bit_generator.state,
            "recent": [list(entry) for entry in self._recent],
            "recent_total": list(self._recent_total),
            "totals": [self.num_considered, self.num_kept, self.prob_sum],
            "source": self._source.state_dict(),
            **self._held(),
        }

    def _held(self) -> dict[str, Any]:
        """The state of instances that wait, and of batches that are handed out."""
        return {"waiting": self._batcher.state_dict(), "in_flight": [_packed(draw) for draw in self._in_flight]}

    def can_continue(self, state: dict[str, Any]) -> bool:
        """Whether ``state`` is of a stream of this kind and size."""
        own = self.state_dict()
        alike = all(state.get(part, {}).keys() == own[part].keys() for part in ("source", "waiting"))
        return alike and state.keys() == own.keys() and state["num_instances"] == self.num_instances

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: If the state is of a stream of another size.
        """
        self._rng.bit_generator.state = state["rng"]
        self._recent = deque(_Counted(*entry) for entry in state["recent"])
        self._recent_total = _Counted(*state["recent_total"])
        self.num_considered, self.num_kept, self.prob_sum = state["totals"]
        self._considered_before = self.num_considered
        self._source.load_state_dict(state["source"])
        self._batcher.load_state_dict(state["waiting"])
        self._in_flight = deque(map(_unpacked, state["in_flight"]))

    # ---- counts

    def _check_progress(self) -> None:
        """Raise RuntimeError where one batch has taken hundreds of passes."""
        if self.num_considered - self._considered_before > 100 * (self.num_instances + self.batch_size):
            raise RuntimeError(
                "keep_probability kept almost no candidate of the last 100 passes; it must return p in (0, 1] with a "
                "floor, of which 0.1 or more is usual"
            )


def _packed(draw: SelectedBatch) -> list[Any]:
    """A batch that is handed out, as tensors and builtins."""
    assert draw.kept is not None
    weights = None if draw.weights is None else torch.from_numpy(draw.weights)
    return [draw.kind, draw.kept.packed(), weights, draw.pass_index, draw.lacks_features]


def _unpacked(state: list[Any]) -> SelectedBatch:
    """What :func:`_packed` was given; a stream's rows are still to be put into a batch."""
    kind, packed, weights, pass_index, lacks_features = state
    weights = None if weights is None else weights.numpy().copy()
    return _selected(Piece.unpacked(packed), weights, pass_index, lacks_features)._replace(kind=kind)


def _selected(kept: Piece, weights: FloatArray | None, pass_index: int, lacks_features: bool) -> SelectedBatch:
    probs = kept.probs.astype(np.float32)
    return SelectedBatch(kept.numbers, weights, None, pass_index, lacks_features, probs=probs, kept=kept)
