"""The train loader that carries each batch's indices and weights to the Trainer.

Lightning re-builds what it knows as a DataLoader and refuses batch samplers that it does not know under DDP; a plain
iterable it leaves alone. So :class:`CarryingLoader` is one, around a copy of the user's DataLoader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_autoassist.filtering.data.arrivals import Arrivals
from lightning_autoassist.filtering.data.carried import TrackedBatch
from lightning_autoassist.filtering.data.collation import Collated, WatchedCollate, in_order_of
from lightning_autoassist.filtering.data.fetching import DrawSource, Fetching
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.trainer_support.internals import keep_iterator, kept_iterator, own_copy

# Whatever has these is asked for a state by Lightning; the state of what was drawn is the data module's.
_NOT_ANSWERED = ("state_dict", "load_state_dict")


class FetchedLoader:
    """Iterable over ``TrackedBatch`` batches for the Trainer's fetching, over the user's plain batches for anyone else.

    Every other attribute is that of the user's loader, to read and to set.

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
        self._plain = loader
        # Attributes that are not what the user's loader says, because something else is in force.
        self._answers: dict[str, Any] = {}
        self.draw_source = source
        self._num_batches = num_batches
        self._fetching = fetching

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Any]:
        return BatchIterator(self)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in _NOT_ANSWERED:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return self._answers[name] if name in self._answers else getattr(self._plain, name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        if is_own or not hasattr(self._plain, name):
            super().__setattr__(name, value)
        else:
            setattr(self._plain, name, value)
            self._plain_has_changed()

    def answer(self, **attributes: Any) -> None:
        """Answer with these attributes, in place of the user's loader's own."""
        self._answers.update(attributes)

    @property
    def plain(self) -> Any:
        """The user's loader."""
        return self._plain

    def _carried_batches(self) -> Iterator[TrackedBatch]:
        raise NotImplementedError

    def _plain_has_changed(self) -> None:
        """An attribute of the user's loader was set."""

    def _plain_batches(self) -> Iterator[Any]:
        return islice(self._plain, self._num_batches)


class CarryingLoader(FetchedLoader):
    """Batches of a map-style data set, loaded by a copy of the user's DataLoader.

    Args:
        loader: The user's train loader; stays untouched.
        num_batches: K.
        source: What the Trainer's batches are drawn from; asked for at the start of each of its epochs.
        fetching: The Trainer's side.
        num_instances: N, of the data set when the loader was made.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        num_batches: int,
        source: Callable[[], DrawSource],
        fetching: Fetching,
        num_instances: int,
    ) -> None:
        super().__init__(loader, num_batches, source, fetching)
        self.num_instances = num_instances
        self._feed = _Feed()
        self._loader = _fed_by(loader, self._feed)
        self._collate = WatchedCollate(self._loader.collate_fn)
        self._arrivals = Arrivals()

    @property
    @override
    def keeps_iterator(self) -> bool:  # type: ignore[override]
        return self._loader.persistent_workers

    @override
    def _plain_has_changed(self) -> None:
        iterator = kept_iterator(self._loader)
        self._loader = _fed_by(self.plain, self._feed)
        keep_iterator(self._loader, iterator)
        if self._loader.collate_fn is not self._collate.collate:
            self._collate = WatchedCollate(self._loader.collate_fn)

    # Lightning shuts workers down through this attribute of a DataLoader.
    @property
    def _iterator(self) -> Any:
        return kept_iterator(self._loader)

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        keep_iterator(self._loader, iterator)

    @override
    def _carried_batches(self) -> Iterator[TrackedBatch]:
        draws = self._fetching.begin(self)
        self._feed.open(draws, self._fetching.has_begun)
        self._watch_order(self._fetching.needs_order)
        # Not in the generator below: workers must start now, as plain Lightning's do.
        batches = iter(self._loader)
        return (self._carried(batch, self._feed.next_fed()) for batch in batches)

    def _watch_order(self, is_needed: bool) -> None:
        """Decide who collates, before workers start: each has its own copy of the collate function."""
        # What iterates otherwise than torch does may look into the batches on their way.
        iterate = type(self._loader).__iter__
        is_torchs = iterate is DataLoader.__iter__ or iterate.__module__.startswith("torchdata.")
        self._loader.collate_fn = self._collate if is_needed and is_torchs else self._collate.collate

    def _carried(self, batch: Any, draw: SelectedBatch | None) -> TrackedBatch:
        if isinstance(batch, Collated):
            self._collate.learn(batch)
            if draw is not None:
                draw = self._arrivals.noted(batch.batch, in_order_of(batch.rows, draw))
            batch = batch.batch
        return TrackedBatch(batch, draw)


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
        self._draws: Iterator[SelectedBatch] = iter(())
        self._fed: deque[SelectedBatch] = deque()
        self._has_begun: Callable[[], None] = _nothing
        self._has_warned = False

    def open(self, draws: Iterator[SelectedBatch], has_begun: Callable[[], None]) -> None:
        """Start an epoch; what an abandoned iteration had asked ahead is forgotten here, not by its source."""
        self._draws, self._fed, self._has_begun = draws, deque(), has_begun

    def __iter__(self) -> Iterator[list[int]]:
        self._has_begun()
        fed = self._fed
        for draw in self._draws:
            fed.append(draw)
            yield draw.indices.tolist()

    def next_fed(self) -> SelectedBatch | None:
        """The draw of the batch that came out just now; None where nobody asked for that batch."""
        if self._fed:
            return self._fed.popleft()
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                "the train loader's own __iter__ gives batches that it was not asked for. Their instances are not "
                "known, so they are trained on unfiltered"
            )
        return None


def _nothing() -> None:
    pass


def _fed_by(loader: DataLoader[Any], feed: _Feed) -> DataLoader[Any]:
    """A copy of ``loader`` that takes its indices from ``feed``, all else being the user's."""
    fed = own_copy(loader, batch_sampler=feed, sampler=None, batch_size=None, drop_last=False)
    if not getattr(fed, "in_order", True):
        rank_zero_warn("in_order=False was set back to True: batches must arrive in the order in which they were drawn")
        fed.in_order = True
    return fed
