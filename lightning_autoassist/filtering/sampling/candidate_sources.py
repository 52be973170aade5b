"""Where the candidates of one pass come from: samplers of indices, and what is checked of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import chain
from typing import Any

from torch.utils.data import DataLoader

from lightning_autoassist.filtering.sampling.order_pieces import announce_epoch
from lightning_autoassist.trainer_support.arguments import check_number, received


def check_budget(budget: float) -> float:
    """``budget``; raises an error unless it is a number in (0, 1]."""
    hint = "it is the share of optimizer steps to spend, 0.6 saves 40 %"
    return check_number("budget", budget, "(0, 1]", hint)


def check_candidates(sampler: Any) -> None:
    """Raise TypeError unless ``sampler`` can give indices."""
    if isinstance(sampler, (str, type, DataLoader, Mapping)) or not isinstance(sampler, Iterable):
        raise TypeError(
            f"sampler must give the indices of a pass, got {received(sampler)}; write RandomSampler(dataset), or "
            "range(len(dataset))"
        )


def check_fills_batch(num_instances: int, batch_size: int) -> None:
    """Raise ValueError unless a pass over N instances fills a batch."""
    if not num_instances:
        raise ValueError("the data set is empty; filtering needs at least one batch of instances")
    if num_instances < batch_size:
        raise ValueError(
            f"the data set gives {num_instances} instances a pass, fewer than one batch of {batch_size}; "
            f"use batch_size={num_instances} or less"
        )


def num_candidates(sampler: Iterable[int]) -> int:
    """N, the length of one pass of ``sampler``.

    Raises:
        ValueError: If it has none.
    """
    if not isinstance(sampler, Sized):
        raise ValueError(
            f"the candidates' sampler must have a length, and {type(sampler).__name__} has none; define __len__ as the "
            "number of indices that it yields"
        )
    return len(sampler)


class FlattenedBatches:
    """The instances of a batch sampler's batches, one by one, N a pass."""

    def __init__(self, batches: Iterable[Iterable[int]], num_instances: int) -> None:
        self.batches = batches
        self.num_instances = num_instances

    @property
    def given(self) -> Iterable[Iterable[int]]:
        """The user's batch sampler."""
        return self.batches

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self.batches)

    def __len__(self) -> int:
        return self.num_instances

    def set_epoch(self, epoch: int) -> None:
        """A pass begins."""
        announce_epoch(self.batches, epoch)
