"""The batch generator: candidates in, full batches of kept instances out.

Shapes: N data set (as the candidates' sampler counts it), B batch, K batches an epoch, n candidates.
"""

from __future__ import annotations

import functools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.candidate_sources import (
    check_budget,
    check_candidates,
    check_fills_batch,
    num_candidates,
)
from lightning_autoassist.filtering.sampling.candidates import CandidateStream, SelectedBatch, batches_per_epoch
from lightning_autoassist.filtering.sampling.order_pieces import OrderInPieces, announce_epoch
from lightning_autoassist.filtering.sampling.pass_orders import pass_order
from lightning_autoassist.filtering.sampling.selection import GivenProbabilities, KeepProbability
from lightning_autoassist.trainer_support.arguments import check_flag, check_function, check_number, check_whole
from lightning_autoassist.trainer_support.arrays import IndexArray

# Batches for which candidates are judged at once. A call costs as much as judging thousands, so that one a batch would
# be most of what filtering costs; and the more batches, the older the scores when the model sees the last of them.
BATCHES_AHEAD = 4


class ShrinkingBatchSampler(CandidateStream, Sampler[list[int]]):
    r"""Full batches of the candidates that are kept, K batches an epoch.

    Candidates come from ``sampler``, pass after pass; the stream runs on across epochs. Each candidate is kept with
    its own probability p until a batch is full, so every batch has exactly B instances and every epoch exactly
    K = ``batches_per_epoch`` batches. A dropped candidate is never loaded.

    An instance kept with probability p is under-represented by that factor. ``reweighting`` gives each kept instance:
    ``"inverse_probability"``: 1/p, so that a pass adds up to the gradient of an unfiltered pass; ``"normalized"``:
    1/p times the mean of p over the last N candidates, whose expectation over kept instances is 1; ``"none"``:
    nothing (the paper's filter). ``correction`` makes it :math:`p^{-\beta}` in place of 1/p, normalized to mean 1
    alike: with less than 1 the gradient leans towards what is kept more often, and the weights vary less.

    Used alone, it is a batch sampler: ``DataLoader(dataset, batch_sampler=ShrinkingBatchSampler(...))``.

    Source: the batch generator of Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        sampler: The candidates of one pass, as indices; of known length N.
        batch_size: B.
        budget: Share of an unfiltered epoch's batches that an epoch has, in (0, 1].
        keep_probability: Gets candidates, shape ``(n,)``, and the number of the pass, from 0; returns p in (0, 1],
            shape ``(n,)``. None keeps everything.
        reweighting: ``"none"``, ``"inverse_probability"`` or ``"normalized"``.
        correction: The exponent :math:`\beta` of the weights, in [0, 1]; 1 is unbiased, 0 weighs nothing.
        drop_last: Whether K is rounded down instead of up.
        seed: Of the generator that decides what is kept; the global RNGs stay untouched.
        chunk_size: Candidates that are scored at once; None: as many as the next four batches are likely to need.
        pass_size: N, where an iteration of ``sampler`` is no pass over the data because it is much longer, endless or
            of unknown length. The order is read in pieces, as it is needed, and every N candidates count as a pass.
        num_batches: K, where the length of ``sampler`` does not tell it.

    Raises:
        ValueError: If an argument lies outside its range, or fewer than B candidates make a pass.

    Example:
        >>> def odd_ones(indices, pass_index):
        ...     return np.where(indices % 2, 1.0, 1e-9)
        >>> sampler = ShrinkingBatchSampler(range(10), batch_size=3, budget=0.6, keep_probability=odd_ones)
        >>> list(sampler)
        [[1, 3, 5], [7, 9, 1]]
    """

    def __init__(
        self,
        sampler: Iterable[int],
        batch_size: int,
        *,
        budget: float = 0.6,
        keep_probability: KeepProbability | None = None,
        reweighting: ReweightingName = "none",
        correction: float = 1.0,
        drop_last: bool = False,
        seed: int = 0,
        chunk_size: int | None = None,
        pass_size: int | None = None,
        num_batches: int | None = None,
    ) -> None:
        if keep_probability is not None:
            check_function("keep_probability", keep_probability, "lambda indices, pass_index: np.ones(len(indices))")
        correction = check_number("correction", correction, "[0, 1]", "1 is unbiased")
        selector = GivenProbabilities(keep_probability, reweighting, correction=correction)
        super().__init__(selector, check_whole("seed", seed, "[0, inf)", "0 is the default"))
        budget = check_budget(budget)
        batch_size = check_whole("batch_size", batch_size, "[1, inf)", "32 is usual")
        if chunk_size is not None:
            chunk_size = check_whole("chunk_size", chunk_size, "[1, inf)", "None scores what the next batches need")
        check_candidates(sampler)
        self.sampler = sampler
        # Of one iteration: what the budget is a share of.
        self._num_candidates = num_candidates(sampler) if num_batches is None else pass_size or 0
        self.num_instances = pass_size or self._num_candidates
        check_fills_batch(self.num_instances, batch_size)
        self.batch_size = batch_size
        self.budget = budget
        self.drop_last = check_flag("drop_last", drop_last)
        self.chunk_size = chunk_size
        self._num_ahead = BATCHES_AHEAD * batch_size  # instances
        self._num_batches = num_batches
        self._pieces = None if pass_size is None else OrderInPieces(sampler)
        self._num_read = self.num_instances  # of the pass that is on, where it is read in pieces
        self._begin_stream()

    def _begin_stream(self) -> None:
        self._order: IndexArray = np.empty(0, np.int64)
        self._position = 0
        self._considered_before = 0  # candidates up to the last batch
        # Kept instances that wait for their batch to fill, and batches handed out but not confirmed.
        self._kept_indices: IndexArray = np.empty(0, np.int64)
        self._kept_probs = np.empty(0, np.float64)
        self._in_flight: deque[SelectedBatch] = deque()

    def __len__(self) -> int:
        return self._num_batches or self.batches_at(self.budget)

    def batches_at(self, budget: float) -> int:
        return batches_per_epoch(self._num_candidates, self.batch_size, budget, self.drop_last)

    @property
    def sizes(self) -> tuple[float, ...]:
        """N and B."""
        return self.num_instances, self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for draw in self.draws():
            self.mark_consumed(draw)
            yield draw.indices.tolist()

    def draws(self, limit: int | None = None) -> Iterator[SelectedBatch]:
        """One epoch. Batches that were handed out earlier and never confirmed come first.

        Args:
            limit: Batches of the epoch, where they are fewer than K: the rest of an epoch that was interrupted.
        """
        count, jobs = len(self) if limit is None else limit, self.selector.jobs
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
            started = time.perf_counter()
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
            self.seconds += time.perf_counter() - started
            yield out.popleft()

    def mark_consumed(self, draw: SelectedBatch) -> None:
        """Take note that the model was trained on ``draw``, the oldest unconfirmed batch."""
        oldest = self._in_flight.popleft()
        # Not whether it is the same object: whatever got between may have copied it.
        assert np.array_equal(oldest.indices, draw.indices), "the model gets batches in the order they were drawn"

    def state_dict(self) -> dict[str, Any]:
        """Position and order of the stream, RNG, kept and unconfirmed instances, totals: tensors and builtins."""
        self.selector.jobs.wait_all()
        return {
            **self._counts(),
            "num_instances": self.num_instances,
            "order": torch.from_numpy(self._order),
            "position": self._position,
            "kept_indices": torch.from_numpy(self._kept_indices),
            "kept_probs": torch.from_numpy(self._kept_probs),
            "in_flight": [
                [
                    torch.from_numpy(draw.indices),
                    None if draw.weights is None else torch.from_numpy(draw.weights),
                    draw.pass_index,
                    draw.lacks_features,
                    None if draw.probs is None else torch.from_numpy(draw.probs),
                ]
                for draw in self._in_flight
            ],
            **({} if self._pieces is None else {"pieces": self._pieces.state_dict(), "num_read": self._num_read}),
        }

    def read_from(self, sampler: Iterable[int]) -> None:
        """Take candidates from another sampler of the same length, from the next pass (or piece) on."""
        if self._pieces is not None and sampler is not self.sampler:
            self._pieces.read_from(sampler)
        self.sampler = sampler

    def can_continue(self, state: dict[str, Any]) -> bool:
        """Whether ``state`` is of a stream of this kind and length."""
        return state.keys() == self.state_dict().keys() and state["num_instances"] == self.num_instances

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: If the state is of a stream of another length.
        """
        if state["num_instances"] != self.num_instances:
            raise ValueError(
                f"the state is of {state['num_instances']} candidates a pass, this stream has {self.num_instances}; "
                "resume with the data set of the interrupted run"
            )
        self._restore_counts(state)
        self._considered_before = self.num_considered
        self._order = state["order"].numpy().copy()
        self._position = state["position"]
        if self._pieces is not None:
            self._pieces.load_state_dict(state["pieces"])
            self._num_read = state["num_read"]
        self._kept_indices = state["kept_indices"].numpy().copy()
        self._kept_probs = state["kept_probs"].numpy().copy()
        self._in_flight = deque(
            SelectedBatch(
                indices.numpy().copy(),
                None if weights is None else weights.numpy().copy(),
                pass_index=pass_index,
                lacks_features=lacks_features,
                probs=None if probs is None else probs.numpy().copy(),
            )
            for indices, weights, pass_index, lacks_features, probs in state["in_flight"]
        )

    def _draw(self) -> SelectedBatch | None:
        """The next batch; None where the pass ends before it is full."""
        while len(self._kept_indices) < self.batch_size:
            if not self._consider_next():
                return None
        self._considered_before = self.num_considered
        taken, self._kept_indices = self._kept_indices[: self.batch_size], self._kept_indices[self.batch_size :]
        probs, self._kept_probs = self._kept_probs[: self.batch_size], self._kept_probs[self.batch_size :]
        return self._draw_of(taken, probs)

    def _draw_of(self, indices: IndexArray, probs: npt.NDArray[np.float64]) -> SelectedBatch:
        """The batch of instances that were kept with ``probs``."""
        return SelectedBatch(
            indices,
            self._weights_of(probs),
            pass_index=self.pass_index,
            lacks_features=self.selector.lacks_features(indices),
            probs=probs.astype(np.float32),
        )

    def _read_on(self) -> None:
        """Read the next pass, or the next piece of it, once all candidates that were read have been considered."""
        if self._pieces is None:
            self.pass_index += 1
            self._order = np.empty(0, np.int64)  # so that two orders are never in memory
            self._order = self._new_pass()
        else:
            self._order = self._next_piece(self._pieces)
        self._position = 0

    def _next_piece(self, pieces: OrderInPieces) -> IndexArray:
        """A pass ends after N candidates, or where an iteration of the sampler does."""
        left = self.num_instances - self._num_read
        piece = pieces.read(left) if left > 0 else np.empty(0, np.int64)
        if not len(piece):
            self.pass_index += 1
            self._num_read = 0
            piece = pieces.read(self.num_instances)
            piece = piece if len(piece) else pieces.read(self.num_instances)  # the iteration ended with the pass
        self._num_read += len(piece)
        self._check_order(piece)
        return piece

    def _new_pass(self) -> IndexArray:
        announce_epoch(self.sampler, self.pass_index)
        order = pass_order(self.sampler, self.num_instances)
        self._check_order(order)
        return order

    def _check_order(self, order: IndexArray) -> None:
        if not len(order):
            sampler = getattr(self.sampler, "given", self.sampler)
            raise RuntimeError(f"a pass of {type(sampler).__name__} has no instances; give every process some")

    def _consider_next(self) -> bool:
        """Consider the next chunk, which is never of two passes; False where the pass has ended."""
        self._check_progress(self._considered_before)
        candidates = self._order[self._position : self._position + self._num_next()]
        self._position += len(candidates)
        if len(candidates):
            self._consider(candidates)
        return len(candidates) > 0

    def _num_next(self) -> int:
        """How many candidates are judged at once."""
        if self.chunk_size is not None:
            return self.chunk_size
        if self.selector.keeps_everything or not self._recent_total.num:
            return self.batch_size
        missing = self._num_ahead - len(self._kept_indices)
        return max(self.batch_size, math.ceil(missing / max(self.recent_keep_rate, 1e-3)))

    def _consider(self, candidates: IndexArray) -> None:
        if self.selector.keeps_everything:
            probs = np.ones(len(candidates))
        else:
            probs = np.asarray(self.selector.keep_probability(candidates, self.pass_index), np.float64)
        kept = self._rng.random(len(candidates)) < probs
        self._kept_indices = np.concatenate([self._kept_indices, candidates[kept]])
        self._kept_probs = np.concatenate([self._kept_probs, probs[kept]])
        self._count(probs, int(kept.sum()))
        self.selector.note_considered(candidates, probs, kept)
