"""The train loader that carries each batch's indices and weights to the Trainer.

Lightning re-builds what it knows as a DataLoader and refuses batch samplers that it does not know under DDP; a plain
iterable it leaves alone. So :class:`CarryingLoader` is one, around a copy of the user's DataLoader.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from lightning_fabric.utilities.seed import pl_worker_init_function
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import BatchSampler, DataLoader

from lightning_autoassist.candidates import Draw
from lightning_autoassist.rng import RunRng
from lightning_autoassist.sampler import announce_epoch, index_array


class Carried(NamedTuple):
    """A batch of the user's, with the indices and weights that it was drawn with.

    Only the Trainer's own fetching sees this type; the data module strips it before any hook of the user's runs.
    """

    batch: Any
    draw: Draw


class DrawSource(Protocol):
    """What a train loader is fed from, epoch after epoch."""

    def draws(self, limit: int | None = None) -> Iterator[Draw]:
        """The batches of one epoch, ``limit`` of them where it is given."""

    def confirm(self, draw: Draw) -> None:
        """The Boss was trained on ``draw``."""


class Fetching(Protocol):
    """The Trainer's side of an iteration."""

    def is_fetching(self, iterator: object) -> bool:
        """Whether ``iterator`` is the one that the Trainer takes its batches from."""

    def begin(self, loader: FetchedLoader) -> Iterator[Draw]:
        """The Trainer's iteration over ``loader`` begins: its draws."""

    def has_begun(self) -> None:
        """The user's loader is being iterated, and asks for the indices of its first batch."""


class PlainBatches:
    """The user's own batches, unfiltered, a short last one included; every epoch starts anew.

    A resumed run goes through the epoch's order again, up to where it was: the generators' states at the epoch's start
    are part of the state.

    Args:
        batch_sampler: The user's batch sampler.
        rng: The generators that it may draw from; None: the global ones.
        epoch: Gives the number of the epoch that begins.
    """

    def __init__(
        self, batch_sampler: BatchSampler, rng: RunRng | None = None, epoch: Callable[[], int] | None = None
    ) -> None:
        self.batch_sampler = batch_sampler
        self.num_epochs = 0
        self._rng = RunRng() if rng is None else rng
        self._epoch = epoch
        self._at_start: dict[str, Any] | None = None  # of the epoch
        self._limit: int | None = None
        self._num_confirmed = 0
        self._in_flight: deque[Draw] = deque()
        self._restored: dict[str, Any] | None = None

    def draws(self, limit: int | None = None) -> Iterator[Draw]:
        # Lightning would have called set_epoch on the user's loader; it does not see that one.
        announce_epoch(
            getattr(self.batch_sampler, "sampler", None), self.num_epochs if self._epoch is None else self._epoch()
        )
        self.num_epochs += 1
        restored, self._restored = self._restored, None
        again: list[Draw] = []
        if restored is not None and _is_rest(restored, limit):
            batches, again = self._continued(restored)
        else:
            self._at_start, self._limit, self._num_confirmed = self._rng.state_dict(), limit, 0
            batches = iter(self.batch_sampler)
        self._in_flight = deque(again)
        yield from again
        for batch in islice(batches, None if limit is None else max(0, limit - len(again))):
            draw = Draw(index_array(batch), None, lacks_features=True)
            self._in_flight.append(draw)
            yield draw

    def confirm(self, draw: Draw) -> None:
        self._in_flight.popleft()
        self._num_confirmed += 1

    def state_dict(self) -> dict[str, Any]:
        """Place in the epoch, and its start; tensors and builtins."""
        return {
            "at_start": self._at_start,
            "limit": self._limit,
            "num_confirmed": self._num_confirmed,
            "in_flight": [torch.from_numpy(draw.indices) for draw in self._in_flight],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`: the next epoch is the rest of the interrupted one, if that has a rest."""
        self._restored = state

    def _continued(self, state: dict[str, Any]) -> tuple[Iterator[Any], list[Draw]]:
        """The rest of an interrupted epoch: its batches, and before them those that had been asked for."""
        self._at_start, self._limit = state["at_start"], state["limit"]
        self._num_confirmed = state["num_confirmed"]
        again = [Draw(indices.numpy(), None, lacks_features=True) for indices in state["in_flight"]]
        now = self._rng.state_dict()
        self._rng.load_state_dict(state["at_start"])
        batches = iter(self.batch_sampler)
        for _ in islice(batches, self._num_confirmed + len(again)):
            pass
        self._rng.load_state_dict(now)
        return batches, again


def _is_rest(state: dict[str, Any], limit: int | None) -> bool:
    """Whether an epoch of ``limit`` batches is the rest of the one that the state of plain batches is of."""
    if state["at_start"] is None or state["limit"] is None or limit is None:
        return False
    return bool(0 < limit == state["limit"] - state["num_confirmed"])


class FetchedLoader:
    """Iterable over ``Carried`` batches for the Trainer's fetching, over the user's plain batches for anyone else.

    Args:
        loader: The user's train loader; stays untouched.
        num_batches: K.
        source: What the Trainer's batches are drawn from; asked for at the start of each of its epochs.
        fetching: The Trainer's side.

    Attributes:
        keeps_iterator: Whether one iterator, with its workers, serves all epochs.
    """

    keeps_iterator: bool

    def __init__(
        self, loader: Iterable[Any], num_batches: int, source: Callable[[], DrawSource], fetching: Fetching
    ) -> None:
        self.source = source
        self._plain = loader
        self._num_batches = num_batches
        self._fetching = fetching

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Any]:
        return BatchIterator(self)

    @property
    def plain(self) -> Any:
        """The user's loader."""
        return self._plain

    def _carried_batches(self) -> Iterator[Carried]:
        raise NotImplementedError

    def _plain_batches(self) -> Iterator[Any]:
        return islice(self._plain, self._num_batches)


class CarryingLoader(FetchedLoader):
    """Batches of a map-style data set, loaded by a copy of the user's DataLoader."""

    def __init__(
        self, loader: DataLoader[Any], num_batches: int, source: Callable[[], DrawSource], fetching: Fetching
    ) -> None:
        super().__init__(loader, num_batches, source, fetching)
        self.dataset: Any = loader.dataset
        self._feed = _Feed()
        self._loader = _fed_by(loader, self._feed)

    @property
    def keeps_iterator(self) -> bool:  # type: ignore[override]
        return self._loader.persistent_workers

    # Lightning shuts workers down through this attribute of a DataLoader.
    @property
    def _iterator(self) -> Any:
        return self._loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self._loader._iterator = iterator

    def _carried_batches(self) -> Iterator[Carried]:
        self._feed.open(self._fetching.begin(self), self._fetching.has_begun)
        # Not in the generator below: workers must start now, as plain Lightning's do.
        batches = iter(self._loader)
        return (Carried(batch, self._feed.next_fed()) for batch in batches)


class BatchIterator:
    """Does nothing before the first batch is asked for, since Lightning iterates to check that it can."""

    def __init__(self, loader: FetchedLoader) -> None:
        self._loader = loader
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Any:
        self.start()
        assert self._batches is not None
        return next(self._batches)

    def start(self) -> None:
        """Begin the iteration, if it has not begun."""
        if self._batches is None:
            fetching = self._loader._fetching.is_fetching(self)
            self._batches = self._loader._carried_batches() if fetching else self._loader._plain_batches()


class _Feed:
    """The batch sampler of the copied DataLoader: hands out indices and remembers which, in order.

    A DataLoader asks ahead for its workers and returns batches in the order that it asked, so that first fed is first
    out.
    """

    def __init__(self) -> None:
        self._draws: Iterator[Draw] = iter(())
        self._fed: deque[Draw] = deque()
        self._has_begun: Callable[[], None] = _nothing

    def open(self, draws: Iterator[Draw], has_begun: Callable[[], None]) -> None:
        """Start an epoch; what an abandoned iteration had asked ahead is forgotten here, not by its source."""
        self._draws, self._fed, self._has_begun = draws, deque(), has_begun

    def __iter__(self) -> Iterator[list[int]]:
        self._has_begun()
        fed = self._fed
        for draw in self._draws:
            fed.append(draw)
            yield draw.indices.tolist()

    def next_fed(self) -> Draw:
        """The draw of the batch that came out just now."""
        return self._fed.popleft()


def _nothing() -> None:
    pass


def _fed_by(loader: DataLoader[Any], feed: _Feed) -> DataLoader[Any]:
    """A copy of ``loader`` that takes its indices from ``feed``, all else being the user's."""
    fed = copy.copy(loader)
    # DataLoader forbids to set these after construction, and constructing anew would lose a subclass's own arguments.
    fed.__dict__.update(batch_sampler=feed, sampler=None, batch_size=None, drop_last=False, _iterator=None)
    if not getattr(fed, "in_order", True):
        rank_zero_warn("in_order=False was set back to True: batches must arrive in the order they were drawn")
        fed.in_order = True
    seed_workers(fed)
    return fed


def seed_workers(loader: DataLoader[Any]) -> None:
    """What Lightning does for DataLoaders after ``seed_everything(..., workers=True)``."""
    if loader.worker_init_fn is None and int(os.environ.get("PL_SEED_WORKERS", 0)):
        loader.worker_init_fn = pl_worker_init_function
