"""The order of one pass over the candidates, taken as a whole where that is quick.

Shapes: N data set, n candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from torch.utils.data import RandomSampler, SequentialSampler, SubsetRandomSampler

from lightning_autoassist.filtering.sampling.order_pieces import index_array
from lightning_autoassist.trainer_support.arrays import IndexArray


class WholePasses:
    """Base of samplers that give a pass as one array."""

    def order(self) -> IndexArray:
        """One pass, shape ``(n,)``."""
        raise NotImplementedError


def pass_order(sampler: Iterable[int], num_instances: int) -> IndexArray:
    """One pass: the first N indices of an iteration of ``sampler``.

    The order of torch's own samplers is taken as a whole, with the very draws from the very generator that iterating
    them would make: ten million indices one by one, as Python's integers, take seconds and 400 MB.

    Args:
        sampler: Any; :class:`WholePasses` give theirs, subclasses of torch's samplers are iterated, as they may differ.
        num_instances: N.

    Returns:
        Shape ``(N,)``; fewer where the sampler gives fewer.

    Raises:
        TypeError: If the sampler's indices are not integers.
    """
    if isinstance(sampler, WholePasses):
        return sampler.order()
    if not gives_whole_order(sampler, num_instances):
        return index_array(islice(iter(sampler), num_instances))
    if type(sampler) is SequentialSampler:
        return np.arange(min(num_instances, len(sampler)), dtype=np.int64)
    if type(sampler) is RandomSampler:
        generator = sampler.generator
        if generator is None:
            generator = torch.Generator().manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
        return _permutation(len(sampler.data_source), num_instances, generator)
    assert type(sampler) is SubsetRandomSampler
    subset = index_array(sampler.indices)
    return subset[_permutation(len(subset), num_instances, sampler.generator)]


def gives_whole_order(sampler: object, num_instances: int) -> bool:
    """Whether :func:`pass_order` takes the order as a whole; else it reads N indices one by one."""
    if type(sampler) is RandomSampler:
        return not sampler.replacement and num_instances <= len(sampler.data_source)
    return type(sampler) in (SequentialSampler, SubsetRandomSampler)


def _permutation(length: int, count: int, generator: torch.Generator | None) -> IndexArray:
    order: IndexArray = torch.randperm(length, generator=generator).numpy()
    return order if count >= length else order[:count].copy()
