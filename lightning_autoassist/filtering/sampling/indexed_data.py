"""What a train loader tells of its instances, so that they can be filtered before they are loaded.

Shapes: N data set, B batch.
"""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Sampler, SubsetRandomSampler
from typing_extensions import override

from lightning_autoassist.filtering.sampling.candidate_sources import FlattenedBatches
from lightning_autoassist.filtering.sampling.order_pieces import announce_epoch
from lightning_autoassist.filtering.sampling.pass_orders import WholePasses, gives_whole_order, pass_order
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.internals import attributes_of
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state

# N of a data set without a length is that of its sampler, or at first this many; what is remembered grows.
MOST_ASSUMED = 1_000_000
# More instances are not remembered: 38 bytes each, and 8 for the order of a pass, would take gigabytes.
MOST_INSTANCES = 100_000_000
# A sampler is read in pieces where it gives more than this many indices, and more than so many passes over the data;
# or more than so many that have to be read one by one, which takes seconds.
LONG_ORDER = 65_536
LONG_PASSES = 4
LONG_READING = 2_000_000
# Packages whose batch samplers put consecutive indices of their sampler together, and nothing else.
_PLAIN_PACKAGES = ("torch", "torchdata")
_INT64 = np.iinfo(np.int64)
_KEPT_IN_SAMPLERS = (list, dict, set, deque, np.ndarray)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState)


class UnfilterableError(Exception):
    """The user's own loader has to be passed on as it is; says why, and what would help."""


class IndexedData(NamedTuple):
    """A train loader whose instances have indices.

    Attributes:
        candidates: The sampler that names them.
        batch_size: B.
        drop_last: Whether a short last batch is dropped.
        num_instances: N; an estimate where the data set has no length.
        num_candidates: Indices of one iteration of the sampler; None where it does not tell.
    """

    candidates: Any
    batch_size: int
    drop_last: bool
    num_instances: int
    num_candidates: int | None

    @property
    def is_long(self) -> bool:
        """Whether the sampler gives so many indices, or nobody knows how many, that they are read in pieces."""
        if self.num_candidates is None:
            return True
        is_read_singly = not gives_whole_order(self.candidates, self.num_candidates)
        most = max(LONG_ORDER, LONG_PASSES * self.num_instances)
        return self.num_candidates > (min(most, LONG_READING) if is_read_singly else most)


class CandidatePasses(WholePasses):
    """A sampler whose length stays what it was at first, as the number of batches of an epoch must.

    Args:
        given: The user's sampler.
        num_candidates: Its length; None where it has none.
    """

    def __init__(self, given: Any, num_candidates: int | None) -> None:
        self.given = given
        self.num_candidates = num_candidates

    def __len__(self) -> int:
        if self.num_candidates is None:
            raise TypeError(f"{type(self.given).__name__} has no length")
        return self.num_candidates

    def __iter__(self) -> Iterator[int]:
        return iter(self.given)

    def set_epoch(self, epoch: int) -> None:
        """A pass begins."""
        announce_epoch(self.given, epoch)

    @override
    def order(self) -> IndexArray:
        return pass_order(self.given, len(self))


def indexed_data(loader: Any, *, by_tokens: bool, flatten: bool) -> IndexedData:
    """What a train loader tells of its instances.

    Args:
        loader: What the user's ``train_dataloader`` gives.
        by_tokens: Whether batches are put together by tokens, so that the loader's own give the order only.
        flatten: Whether the instances of a batch sampler of the user's own may be taken one by one.

    Raises:
        UnfilterableError: If its instances have no indices, or filtering would undo how its batches are made.
    """
    if not isinstance(loader, DataLoader):
        raise UnfilterableError(
            f"filtering needs one torch DataLoader to train on, got a {type(loader).__name__}; return a single "
            "DataLoader from train_dataloader"
        )
    batches = loader.batch_sampler
    if batches is None:
        raise UnfilterableError(
            "the train loader has batch_size=None, so its data set puts batches together, and no index names an "
            "instance. Filtering puts batches together itself; give the loader a batch_size"
        )
    _check_iteration(loader, batches)
    candidates, batch_size, drop_last = _candidates_of(loader, batches, by_tokens=by_tokens, flatten=flatten)
    _check_keys(candidates)
    num_candidates, num_instances = length_of(candidates), length_of(loader.dataset)
    if num_instances is None:
        if num_candidates is None:
            raise UnfilterableError(
                f"neither the data set ({type(loader.dataset).__name__}) nor the sampler ({type(candidates).__name__}) "
                "has a length; define __len__ of one of them"
            )
        num_instances = min(num_candidates, MOST_ASSUMED)
    if num_instances > MOST_INSTANCES:
        raise UnfilterableError(
            f"the data set has {num_instances:,} instances, of which more than {MOST_INSTANCES:,} are not remembered; "
            "as an IterableDataset it is filtered without remembering any"
        )
    return IndexedData(candidates, batch_size, drop_last, num_instances, num_candidates)


def length_of(value: Any) -> int | None:
    """``len(value)``; None where it has none."""
    try:
        return len(value)
    except (TypeError, NotImplementedError):
        return None


def _check_iteration(loader: DataLoader[Any], batches: Any) -> None:
    """Refuse loaders whose batches come from elsewhere than their batch sampler.

    Loaders that keep their workers over epochs, as timm's and ultralytics' do, begin one iteration when they are made
    and take all batches from it.

    Raises:
        UnfilterableError: If the loader is one of them, or has another length than its batch sampler.
    """
    own = attributes_of(loader)
    if any(isinstance(own[name], Iterator) for name in own.keys() - {"sampler", "batch_sampler", "dataset"}):
        raise UnfilterableError(
            f"{type(loader).__name__} takes its batches from an iteration that it began when it was made, and would "
            "never ask for the instances that filtering chooses; use a torch DataLoader with persistent_workers=True"
        )
    length, expected = length_of(loader), length_of(batches)
    if type(loader).__len__ is not DataLoader.__len__ and None not in (length, expected) and length != expected:
        raise UnfilterableError(
            f"{type(loader).__name__} has {length} batches by its own __len__, and its batch sampler has {expected}, "
            "so it does more than load them; use a torch DataLoader"
        )


def _candidates_of(loader: DataLoader[Any], batches: Any, *, by_tokens: bool, flatten: bool) -> tuple[Any, int, bool]:
    """The sampler, B and drop_last."""
    batch_size, drop_last = getattr(batches, "batch_size", None), bool(getattr(batches, "drop_last", False))
    is_known = isinstance(batches, BatchSampler) and type(batches).__module__.partition(".")[0] in _PLAIN_PACKAGES
    if is_known and isinstance(batch_size, int):
        return batches.sampler, batch_size, drop_last
    if not by_tokens and not (flatten and isinstance(batch_size, int)):
        raise UnfilterableError(
            f"{type(batches).__name__} decides which instances share a batch, and filtering would undo that; pass "
            "max_tokens= to put instances of similar length together, or flatten=True to take its instances one by "
            "one, for which it needs an integer attribute batch_size"
        )
    num_candidates = length_of(getattr(batches, "sampler", None)) or length_of(loader.dataset)
    if num_candidates is None:
        raise UnfilterableError(
            f"neither the data set ({type(loader.dataset).__name__}) nor {type(batches).__name__}.sampler has a length"
        )
    return FlattenedBatches(batches, num_candidates), batch_size or 0, drop_last


def _check_keys(candidates: Any) -> None:
    """Raise UnfilterableError unless the sampler names instances by integers."""
    key = _first_key(candidates)
    if not _is_index(key):
        raise UnfilterableError(
            f"the train loader's sampler names instances by keys of type {type(key).__name__} ({key!r:.50}), and what "
            "is remembered of an instance is found by an integer; let the sampler give integers, such as positions "
            "in the data set"
        )


def _is_index(key: Any) -> bool:
    """Whether a sampler's key is an integer of at most 64 bits, or an array or tensor of one."""
    if isinstance(key, (Tensor, np.ndarray)) and not key.shape:
        key = key.item()
    return isinstance(key, Integral) and _INT64.min <= int(key) <= _INT64.max


def _first_key(candidates: Any) -> Any:
    """The first key that a sampler would give; 0 where nothing tells."""
    if isinstance(candidates, FlattenedBatches):
        return _first_of(_first_of(candidates.batches))
    return _first_of(candidates)


def _first_of(source: Any) -> Any:
    """The first item, without leaving a trace; 0 where there is none, or it cannot be read so."""
    if type(source) is SubsetRandomSampler:
        source = source.indices
    if isinstance(source, (Sequence, Tensor, np.ndarray)):
        return source[0] if len(source) else 0
    if type(source).__module__.partition(".")[0] in _PLAIN_PACKAGES or isinstance(source, Iterator):
        return 0
    state = rng_state()
    try:
        return next(iter(_detached(source)), 0)
    except Exception:  # it is the user's, and comes again where the sampler is iterated in earnest
        return 0
    finally:
        restore_rng_state(state)


def _detached(source: Any) -> Any:
    """A copy to be iterated: samplers count their iterations, shuffle their lists and draw from their generators."""
    twin = copy.copy(source)
    for name, value in getattr(twin, "__dict__", {}).items():
        if isinstance(value, Sampler):
            twin.__dict__[name] = _detached(value)
        elif isinstance(value, _KEPT_IN_SAMPLERS):
            twin.__dict__[name] = copy.copy(value)
        elif isinstance(value, _GENERATORS):
            twin.__dict__[name] = copy.deepcopy(value)
        elif isinstance(value, torch.Generator):
            twin.__dict__[name] = torch.Generator(value.device)
            twin.__dict__[name].set_state(value.get_state())
        elif isinstance(value, Tensor):
            twin.__dict__[name] = value.clone()
    return twin
