"""Several processes that train one model: who owns which instance, and how they tell each other what they saw.

Shapes: N data set, W processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lightning_autoassist.filtering.sampling.candidate_sources import num_candidates
from lightning_autoassist.filtering.sampling.indexed_data import IndexedData
from lightning_autoassist.filtering.sampling.order_pieces import PIECE_SIZE, announce_epoch, index_array
from lightning_autoassist.filtering.sampling.pass_orders import WholePasses, pass_order
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.process_group import Ranks


class OwnedCandidates(WholePasses):
    """What a process owns of a sampler's candidates.

    An instance belongs to the same process in every pass, so that passes of processes that are at different places of
    the stream never share one. The sampler may give each process another order, or draw with replacement. Negative
    indices count from the end, and instances that the data set gets later are shared out by their index.

    Args:
        sampler: Of all candidates.
        num_instances: N, of the data set.
        rank: Of this process.
        world_size: W.
        seed: The same in all processes.
        has_length: Whether the sampler has a length; without, only iterating this one works.

    Raises:
        ValueError: If the sampler has no length, where it should have one.

    Example:
        >>> shares = [list(OwnedCandidates(range(6), 6, rank, world_size=2, seed=0)) for rank in (0, 1)]
        >>> sorted(shares[0] + shares[1])
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        sampler: Iterable[int],
        num_instances: int,
        rank: int,
        world_size: int,
        seed: int,
        *,
        has_length: bool = True,
    ) -> None:
        self.given = sampler
        self._num_candidates = num_candidates(sampler) if has_length else 0
        self._num_owned = -(-self._num_candidates // world_size)
        self._rank, self._world_size = rank, world_size
        positions = np.random.Generator(np.random.PCG64(seed)).permutation(num_instances)
        self._is_owned: npt.NDArray[np.bool_] = np.zeros(num_instances, bool)
        self._is_owned[positions[rank::world_size]] = True

    def __len__(self) -> int:
        # The same in every process, as the number of batches must be.
        return self._num_owned

    def __iter__(self) -> Iterator[int]:
        indices = iter(self.given)
        while len(piece := index_array(islice(indices, PIECE_SIZE))):
            yield from piece[self._owns(piece)].tolist()

    def set_epoch(self, epoch: int) -> None:
        """A pass begins."""
        announce_epoch(self.given, epoch)

    @override
    def order(self) -> IndexArray:
        """One pass, shape ``(n,)``: n is ``len(self)``, or one less where W does not divide N."""
        order = pass_order(self.given, self._num_candidates)
        return order[self._owns(order)]

    def _owns(self, indices: IndexArray) -> npt.NDArray[np.bool_]:
        """Whether each instance belongs to this process, shape of ``indices``."""
        num_instances = len(self._is_owned)
        rows = np.where(indices < 0, indices + num_instances, indices)
        is_within = (rows >= 0) & (rows < num_instances)
        if is_within.all():
            return self._is_owned[rows]
        shared: npt.NDArray[np.bool_] = rows % self._world_size == self._rank
        shared[is_within] = self._is_owned[rows[is_within]]
        return shared


def owned(candidates: Any, data: IndexedData, ranks: Ranks, seed: int, shards: bool) -> Any:
    """The candidates of this process.

    Args:
        candidates: The user's sampler, of a length that stays.
        data: What the user's loader tells of its instances.
        ranks: The processes.
        seed: The same in all of them.
        shards: Whether the Trainer is to shard what the user has not sharded; its ``use_distributed_sampler``.
    """
    if ranks.world_size == 1 or not shards or isinstance(data.candidates, DistributedSampler):
        return candidates
    has_length = data.num_candidates is not None
    return OwnedCandidates(candidates, data.num_instances, ranks.rank, ranks.world_size, seed, has_length=has_length)
