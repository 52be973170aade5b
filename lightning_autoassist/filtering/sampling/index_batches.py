"""The batch generator: makes full batches of the candidates that are kept.

Shapes: N data set (as the candidates' sampler counts it), B batch, K batches an epoch, n candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler
from typing_extensions import override

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.batchers import Batcher, FixedSizeBatcher, Piece
from lightning_autoassist.filtering.sampling.candidate_sources import (
    check_budget,
    check_candidates,
    check_fills_batch,
    num_candidates,
)
from lightning_autoassist.filtering.sampling.candidates import CandidateStream, batches_per_epoch
from lightning_autoassist.filtering.sampling.index_source import IndexSource
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
        self._source: IndexSource = IndexSource(
            sampler, self.num_instances, in_pieces=pass_size is not None, usable=self._usable
        )
        self._batcher: Batcher = FixedSizeBatcher(batch_size)

    @override
    def __len__(self) -> int:
        return self._num_batches or self.batches_at(self.budget)

    @override
    def batches_at(self, budget: float) -> int:
        return batches_per_epoch(self._num_candidates, self.batch_size, budget, self.drop_last)

    @property
    def sizes(self) -> tuple[float, ...]:
        """N and B."""
        return self.num_instances, self.batch_size

    @override
    def __iter__(self) -> Iterator[list[int]]:
        for draw in self.draws():
            self.mark_consumed(draw)
            yield draw.indices.tolist()

    @property
    def sampler(self) -> Iterable[int]:
        """The candidates of one pass."""
        return self._source.sampler

    def read_from(self, sampler: Iterable[int]) -> None:
        """Take candidates from another sampler of the same length, from the next pass (or piece) on."""
        self._source.read_from(sampler)

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: If the state is of a stream of another length.
        """
        if state["num_instances"] != self.num_instances:
            raise ValueError(
                f"the state is of {state['num_instances']} candidates a pass, and this stream has "
                f"{self.num_instances}; resume with the data set of the interrupted run"
            )
        super().load_state_dict(state)

    @override
    def _read_on(self) -> None:
        self._source.read_on()

    def _usable(self, order: IndexArray) -> IndexArray:
        """The part of an order that can be candidates."""
        return order

    @override
    def _consider_next(self) -> bool:
        self._check_progress()
        candidates = self._source.next_chunk(self._num_next())
        if len(candidates):
            self._consider(candidates)
        return len(candidates) > 0

    def _num_next(self) -> int:
        """How many candidates are judged at once."""
        if self.chunk_size is not None:
            return self.chunk_size
        if self.selector.keeps_everything or not self._recent_total.num:
            return self.batch_size
        missing = self._num_ahead - self._batcher.num_waiting
        return max(self.batch_size, math.ceil(missing / max(self.recent_keep_rate, 1e-3)))

    def _consider(self, candidates: IndexArray) -> None:
        if self.selector.keeps_everything:
            probs = np.ones(len(candidates))
        else:
            probs = np.asarray(self.selector.keep_probability(candidates, self.pass_index), np.float64)
        kept = self._rng.random(len(candidates)) < probs
        if kept.any():
            self._batcher.add("", Piece(candidates[kept], probs[kept], self._lengths_of(candidates[kept])))
        self._count(probs, int(kept.sum()))
        self.selector.note_considered(candidates, probs, kept)

    def _lengths_of(self, indices: IndexArray) -> npt.NDArray[np.int64] | None:
        """Lengths of instances in tokens, where anybody counts these."""
        return None
