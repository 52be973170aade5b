"""Batches by tokens: kept instances of similar length share a batch, and no batch exceeds a budget of tokens.

Shapes: N data set, C lengths of an instance (such as source and target), n candidates, B batch (of any size here), K
batches an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import SubsetRandomSampler
from typing_extensions import override

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.batchers import POOL_BATCHES, TokenBatcher
from lightning_autoassist.filtering.sampling.candidate_sources import check_candidates, num_candidates
from lightning_autoassist.filtering.sampling.candidates import batches_per_epoch
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.order_pieces import index_array
from lightning_autoassist.filtering.sampling.selection import KeepProbability
from lightning_autoassist.filtering.sampling.token_lengths import length_array
from lightning_autoassist.trainer_support.arguments import check_number, check_whole
from lightning_autoassist.trainer_support.arrays import IndexArray


class TokenBatchSampler(ShrinkingBatchSampler):
    r"""Batches of kept instances of similar length, each of at most ``max_tokens`` tokens, K batches an epoch.

    Kept instances gather in a pool until they would fill ``pool_batches`` batches, and are then cut into batches, see
    ``TokenBatcher``.

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
        pool_tokens = max(float(max_tokens), min(float(pool_batches * max_tokens), self.total_tokens / 2))
        self._num_ahead = math.ceil(pool_tokens / max_tokens * self.batch_size)
        self._batcher = TokenBatcher(max_tokens, pool_tokens, self._rng)

    @override
    def batches_at(self, budget: float) -> int:
        return batches_per_epoch(self.total_tokens, self.max_tokens, budget, self.drop_last)

    @property
    @override
    def sizes(self) -> tuple[float, ...]:
        """N, ``max_tokens`` and T."""
        return self.num_instances, self.max_tokens, self.total_tokens

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "tokens": [self.max_tokens, self.total_tokens]}

    @override
    def can_continue(self, state: dict[str, Any]) -> bool:
        return super().can_continue(state) and state["tokens"] == [self.max_tokens, self.total_tokens]

    @override
    def _lengths_of(self, indices: IndexArray) -> npt.NDArray[np.int64]:
        return self.lengths[indices]

    @override
    def _usable(self, order: IndexArray) -> IndexArray:
        has_length = (order < len(self.lengths)) & (order >= -len(self.lengths))
        if has_length.all():
            return order
        without = int(order[~has_length][0])
        if not has_length.any():
            raise ValueError(f"none of the indices that the sampler gave has a length, index {without} for one")
        self._warn_of_unknown_lengths(without)
        return order[has_length]

    def _warn_of_unknown_lengths(self, index: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"the sampler gave the index {index}, and lengths are known of {len(self.lengths)} instances only. "
                "Instances without a length are left out, as it is not known how many of them fit into "
                f"max_tokens={self.max_tokens}"
            )


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
    return index_array(sampler.indices) if type(sampler) is SubsetRandomSampler else None


def check_longest(lengths: npt.NDArray[np.int64], named: IndexArray | None, max_tokens: int) -> None:
    """Refuse instances that are longer than a batch may be.

    Args:
        lengths: Of all instances, shape ``(N, C)``.
        named: The instances that are candidates, shape ``(n,)``; None: all.
        max_tokens: Most tokens in a batch.

    Raises:
        ValueError: If there is one.
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
