"""Batches by tokens: kept instances of similar length share a batch, and no batch exceeds a budget of tokens.

Shapes: N data set, C lengths of an instance (such as source and target), n candidates, B batch (of any size here), K
batches an epoch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import SubsetRandomSampler

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.candidate_sources import check_candidates, num_candidates
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch, batches_per_epoch
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.order_pieces import index_array
from lightning_autoassist.filtering.sampling.selection import KeepProbability
from lightning_autoassist.filtering.sampling.token_lengths import length_array
from lightning_autoassist.trainer_support.arguments import check_number, check_whole
from lightning_autoassist.trainer_support.arrays import IndexArray

# Kept instances are sorted by length among as many others as fill this many batches.
POOL_BATCHES = 32


class TokenBatchSampler(ShrinkingBatchSampler):
    r"""Batches of kept instances of similar length, each of at most ``max_tokens`` tokens, K batches an epoch.

    Kept instances gather in a pool until they would fill ``pool_batches`` batches. The pool is sorted by length (by the
    longest of C, then by their sum, ties in random order) and cut into batches, each as far as the next instance still
    fits; the batches are drawn in random order. What is left at the last cut goes back to the pool, so that no kept
    instance is lost.

    The size of a batch counts the padding: B times the longest instance's length; with C lengths an instance, such as
    those of source and target, B times the sum of the longest of each. K follows from the lengths alone,
    :math:`K = \lceil budget \cdot T / max\_tokens \rceil` with T the lengths of a pass added up, whatever is kept and
    however it packs; it is rounded down where ``drop_last``. As padding takes some of each batch, an epoch at budget 1
    with everything kept is a little less than a pass: by 4 to 10 % on sentences. The stream runs on across epochs, so
    that nothing is left out.

    Weights are those of :class:`ShrinkingBatchSampler`, their expectations over kept instances too.

    Used alone, it is a batch sampler: ``DataLoader(dataset, batch_sampler=TokenBatchSampler(...))``.

    Source: the token batches of the translation experiments of Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019,
    arXiv:1905.03381.

    Args:
        sampler: The candidates of one pass, as indices; of known length.
        max_tokens: Most tokens in a batch, padding included.
        lengths: Lengths of all instances of the data set, in tokens, shape ``(N,)`` or ``(N, C)``. An empty instance
            counts as one token.
        budget: Share of an unfiltered epoch's tokens that an epoch has, in (0, 1].
        keep_probability: Gets candidates and the number of the pass, and returns p, as in
            :class:`ShrinkingBatchSampler`. None keeps everything.
        reweighting: The weights of kept instances, as in :class:`ShrinkingBatchSampler`.
        correction: The exponent of the weights, as in :class:`ShrinkingBatchSampler`.
        drop_last: Whether K is rounded down instead of up.
        seed: Seeds the generator that decides what is kept, breaks ties and shuffles the batches.
        chunk_size: Candidates that are scored at once; None: as many as the pool is likely to need.
        pool_batches: Batches that a pool fills, at least 2 (at most half a pass in any case). Fewer are fresher, their
            candidates having been chosen so many steps before the model sees the last of them; more pad less.
        total_tokens: T, where it is not that of ``sampler``: for a process's share of it, which must be the same in all
            processes.
        pass_size: See :class:`ShrinkingBatchSampler`.

    Attributes:
        batch_size: Instances in a batch of average ones, for reports.
        total_tokens: T.

    Raises:
        ValueError: If an argument lies outside its range, an instance is longer than ``max_tokens``, or a pass is less
            than a batch.

    Example:
        >>> lengths = [2, 5] * 30
        >>> sampler = TokenBatchSampler(range(60), max_tokens=20, lengths=lengths)
        >>> len(sampler), max(len(batch) * max(lengths[index] for index in batch) for batch in sampler)
        (7, 20)
    """

    def __init__(
        self,
        sampler: Iterable[int],
        max_tokens: int,
        lengths: Any,
        *,
        budget: float = 0.6,
        keep_probability: KeepProbability | None = None,
        reweighting: ReweightingName = "none",
        correction: float = 1.0,
        drop_last: bool = False,
        seed: int = 0,
        chunk_size: int | None = None,
        pool_batches: int = POOL_BATCHES,
        total_tokens: float | None = None,
        pass_size: int | None = None,
    ) -> None:
        pool_batches = check_whole("pool_batches", pool_batches, "[2, inf)", f"{POOL_BATCHES} is the default")
        self.max_tokens = max_tokens = check_max_tokens(max_tokens)
        check_candidates(sampler)
        if total_tokens is not None:
            total_tokens = check_number("total_tokens", total_tokens, "(0, inf)", "None counts them")
        self.lengths = length_array(lengths)
        check_longest(self.lengths, indices_in(sampler), max_tokens)
        self.total_tokens = tokens_per_pass(sampler, self.lengths) if total_tokens is None else total_tokens
        if num_candidates(sampler):
            check_fills_tokens(self.total_tokens, max_tokens)
        super().__init__(
            sampler,
            max(1, int(max_tokens * num_candidates(sampler) / max(1.0, self.total_tokens))),
            budget=budget,
            keep_probability=keep_probability,
            reweighting=reweighting,
            correction=correction,
            drop_last=drop_last,
            seed=seed,
            chunk_size=chunk_size,
            pass_size=pass_size,
        )
        self._has_warned = False
        self._pool_tokens = max(float(max_tokens), min(float(pool_batches * max_tokens), self.total_tokens / 2))
        self._num_ahead = math.ceil(self._pool_tokens / max_tokens * self.batch_size)
        # Batches that were cut and wait for their turn; what is not cut yet are the base's kept instances.
        self._ready: deque[tuple[IndexArray, npt.NDArray[np.float64]]] = deque()

    def batches_at(self, budget: float) -> int:
        return batches_per_epoch(self.total_tokens, self.max_tokens, budget, self.drop_last)

    @property
    def sizes(self) -> tuple[float, ...]:
        """N, ``max_tokens`` and T."""
        return self.num_instances, self.max_tokens, self.total_tokens

    def state_dict(self) -> dict[str, Any]:
        ready = [[torch.from_numpy(part) for part in batch] for batch in self._ready]
        return {**super().state_dict(), "tokens": [self.max_tokens, self.total_tokens], "ready": ready}

    def can_continue(self, state: dict[str, Any]) -> bool:
        return super().can_continue(state) and state["tokens"] == [self.max_tokens, self.total_tokens]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._ready = deque((indices.numpy().copy(), probs.numpy().copy()) for indices, probs in state["ready"])

    def _read_on(self) -> None:
        super()._read_on()
        has_length = (self._order < len(self.lengths)) & (self._order >= -len(self.lengths))
        if not has_length.all():
            without = self._order[~has_length]
            self._order = self._order[has_length]
            if not len(self._order):
                raise ValueError(f"no instance that the sampler gave has a length, such as the index {without[0]}")
            self._warn_of_unknown_lengths(int(without[0]))

    def _warn_of_unknown_lengths(self, index: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"the sampler gave the index {index}, and lengths are known of {len(self.lengths)} instances only: "
                "instances without a length are left out, as nothing tells how many share a batch of "
                f"max_tokens={self.max_tokens}"
            )

    def _draw(self) -> SelectedBatch | None:
        if not self._ready:
            if not self._gather():
                return None
            self._considered_before = self.num_considered
            self._cut()
        return self._draw_of(*self._ready.popleft())

    def _gather(self) -> bool:
        """Consider candidates until the pool is full: more than a batch is in it then. False where the pass ends."""
        num_counted, num_tokens = 0, 0
        while True:
            num_tokens += int(self.lengths[self._kept_indices[num_counted:]].sum())
            num_counted = len(self._kept_indices)
            if num_tokens > self._pool_tokens:
                return True
            if not self._consider_next():
                return False

    def _cut(self) -> None:
        """Cut the pool into batches, and leave in it what fills none."""
        indices, probs = self._kept_indices, self._kept_probs
        lengths = self.lengths[indices]
        # From the short or from the long end, by chance: an instance at an end would else be left over for ever.
        sign = -1 if self._rng.random() < 0.5 else 1
        # By the longer of source and target first: on pairs this pads less than by their sum, or by either.
        order = np.lexsort((self._rng.random(len(indices)), sign * lengths.sum(1), sign * lengths.max(1)))
        indices, probs = indices[order], probs[order]
        cuts = _cuts(lengths[order], self.max_tokens)
        batches = [(indices[start:end].copy(), probs[start:end].copy()) for start, end in pairwise(cuts)]
        self._ready.extend(batches[place] for place in self._rng.permutation(len(batches)))
        self._kept_indices, self._kept_probs = indices[cuts[-1] :].copy(), probs[cuts[-1] :].copy()


def padded_tokens(lengths: npt.NDArray[np.int64]) -> int:
    """Tokens of a batch with its padding: B times the sum of the longest of each of the C lengths.

    Args:
        lengths: Shape ``(B, C)``.

    Example:
        >>> padded_tokens(np.array([[3, 5], [4, 2]]))
        18
    """
    return len(lengths) * int(lengths.max(0).sum())


def _cuts(lengths: npt.NDArray[np.int64], max_tokens: int) -> list[int]:
    """Where batches begin and end, from 0 on: each as far as the next instance still fits, the last that is full."""
    cuts, start = [0], 0
    while True:
        # No batch can be longer than one of its shortest instance's like; the window need not reach further.
        window = lengths[start : start + max_tokens // int(lengths[start:].sum(1).min(initial=max_tokens)) + 1]
        padded = np.maximum.accumulate(window, axis=0).sum(1) * np.arange(1, len(window) + 1)
        fitting = int(np.searchsorted(padded, max_tokens, side="right"))
        if start + fitting >= len(lengths):
            return cuts
        start += fitting
        cuts.append(start)


def check_max_tokens(max_tokens: int) -> int:
    """``max_tokens``; raises ValueError unless it is positive."""
    return check_whole("max_tokens", max_tokens, "[1, inf)", "4096 is usual for a small Transformer")


def check_fills_tokens(total_tokens: float, max_tokens: int) -> None:
    """Raise ValueError unless a pass has more tokens than a batch may have."""
    if total_tokens <= max_tokens:
        raise ValueError(
            f"a pass has {total_tokens:.0f} tokens, no more than one batch of max_tokens={max_tokens}; "
            f"use max_tokens={max(1, int(total_tokens) // 2)} or less"
        )


def tokens_per_pass(sampler: Iterable[int], lengths: npt.NDArray[np.int64]) -> float:
    """T, the tokens of one pass: of the instances that the sampler names, else as many as are average.

    Args:
        sampler: The candidates of one pass.
        lengths: Of all instances, shape ``(N, C)``.
    """
    named = indices_in(sampler)
    per_instance = lengths.sum(1) if named is None else lengths[named].sum(1)
    return float(per_instance.sum()) * num_candidates(sampler) / len(per_instance)


def indices_in(sampler: Iterable[int]) -> IndexArray | None:
    """The instances that a sampler names, shape ``(n,)``; None where it may give all of the data set."""
    if type(sampler) is not SubsetRandomSampler:
        return None
    indices: Any = sampler.indices
    return index_array(indices.numpy(force=True) if isinstance(indices, Tensor) else indices)


def check_longest(lengths: npt.NDArray[np.int64], named: IndexArray | None, max_tokens: int) -> None:
    """Raise ValueError where an instance is longer than a batch may be.

    Args:
        lengths: Of all instances, shape ``(N, C)``.
        named: The instances that are candidates, shape ``(n,)``; None: all.
        max_tokens: Most tokens in a batch.
    """
    places = np.arange(len(lengths)) if named is None else named
    sizes = lengths[places].sum(1)
    too_long = places[sizes > max_tokens]
    if len(too_long):
        raise ValueError(
            f"{len(too_long)} of the instances are longer than max_tokens={max_tokens}, the first of them at index "
            f"{too_long[0]} with {lengths[too_long[0]].sum()} tokens; shorten them, drop them "
            f"(torch.utils.data.Subset), or use max_tokens={sizes.max()}"
        )
