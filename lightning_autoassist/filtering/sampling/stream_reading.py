"""Reads the batches of a train loader without indices, pass after pass, and goes on where an earlier run was.

Shapes: n rows of a batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from types import GeneratorType
from typing import Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader

from lightning_autoassist.trainer_support.internals import keep_iterator, own_copy, shut_down_workers

_PASS_END = object()


class StreamReader:
    """The iteration of a loader: one batch after the other, a new pass where one ends.

    A loader with ``state_dict`` and ``load_state_dict`` is continued in the middle of a pass.

    Args:
        loader: Iterable of batches; iterated anew for every pass.

    Attributes:
        loader: What is iterated: a copy where it is a DataLoader.
        pass_index: Number of the pass, from 0.
        seconds_waited: Seconds of loading data, which any training takes.

    Example:
        >>> reader = StreamReader(["a", "b"])
        >>> [(reader.next_batch(), reader.count(1), reader.pass_index)[::2] for _ in range(3)]
        [('a', 0), ('b', 0), ('a', 1)]
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = _own_copy(loader)
        self.pass_index = 0
        self.seconds_waited = 0.0
        self._given = loader
        self._batches: Iterator[Any] | None = None
        self._num_batches = 0  # of this pass
        self._num_rows = 0  # and their rows
        self._loader_state: Any = None  # what the loader is to continue from
        self._started_from: Any = None  # what it was continued from
        self._is_continued = False  # the pass began before this iterator did
        self._has_ended = False  # a pass did, and no other has begun
        self._ahead: list[Any] = []  # fetched and not read: nothing, or one batch (or the end of a pass)

    def start(self) -> None:
        """Iterate the loader, if that has not begun: its workers start, and it may draw from the global RNG."""
        if self._batches is not None:
            return
        state, self._loader_state = self._loader_state, None
        self._started_from = copy.deepcopy(state)
        is_restored = state is not None and _is_stateful(self.loader)
        if is_restored:
            self.loader.load_state_dict(state)  # type: ignore[attr-defined]
        self._batches = iter(self.loader)
        if is_restored and isinstance(self._batches, GeneratorType):
            # It begins at its first batch, with the seed that a DataLoader draws from the global RNG: to be drawn
            # before that RNG is restored, since the interrupted run had begun.
            self._ahead.append(self._fetch())

    def close(self) -> None:
        """End the iteration, and the loader's workers; what comes next goes on where it was, if the loader can."""
        if self._batches is None:
            return
        self._loader_state = self._state_of_loader()
        self._is_continued = True
        self._ahead.clear()
        shut_down_workers(self._batches)
        if isinstance(self.loader, DataLoader):
            keep_iterator(self.loader, None)  # persistent workers are not begun anew once they were ended
        self._batches, self._has_ended = None, False

    def read_from(self, loader: Iterable[Any]) -> None:
        """Read another loader, from a new pass on."""
        if loader is not self._given:
            self.close()
            self._given, self.loader, self._loader_state = loader, _own_copy(loader), None
            self._begin_pass()

    def next_batch(self) -> Any:
        """The next batch; :meth:`count` is to be told its rows.

        Raises:
            MisconfigurationException: If the loader yields nothing, or only once.
        """
        self.start()
        started = time.perf_counter()
        while (batch := self._read()) is _PASS_END:
            self._check_pass()
            self._begin_pass()
        self.seconds_waited += time.perf_counter() - started
        return batch

    def peek(self) -> Iterator[Any]:
        """The batches that come next, until passes are empty; :meth:`rewind` is to be called afterwards."""
        self.start()
        num_ends = 0  # one after the other
        while num_ends < 2:
            batch = self._read()
            num_ends = num_ends + 1 if batch is _PASS_END else 0
            if not num_ends:
                yield batch

    def rewind(self) -> None:
        """Begin the iteration anew where it began, before any of its batches was read but by :meth:`peek`."""
        state = self._started_from
        self.close()
        self._loader_state = state
        self.start()

    def count(self, num_rows: int) -> None:
        """A batch of n rows was read."""
        self._num_batches += 1
        self._num_rows += num_rows

    def state_dict(self) -> dict[str, Any]:
        """The place in the pass: builtins, and the loader's own state."""
        counts = [self.pass_index, self._num_batches, self._num_rows]
        return {"fetched": counts, "loader": self._state_of_loader()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; where the loader has no state of its own, its current pass begins anew."""
        self.pass_index, self._num_batches, self._num_rows = state["fetched"]
        self._loader_state = state["loader"]
        self._is_continued = True
        if self._num_batches and not (self._loader_state is not None and _is_stateful(self.loader)):
            rank_zero_warn(
                f"a {type(self.loader).__name__} has no state_dict and load_state_dict, or gave no state, so the "
                f"stream's current pass begins anew: {self._num_rows} instances of it come again, and everything else "
                "is restored. A StatefulDataLoader or a StreamingDataLoader resumes exactly"
            )
            self._num_batches = self._num_rows = 0

    def _state_of_loader(self) -> Any:
        if self._ahead:
            return self._started_from
        if self._batches is None:
            return self._loader_state
        return self.loader.state_dict() if _is_stateful(self.loader) else None  # type: ignore[attr-defined]

    def _read(self) -> Any:
        """The next batch, or the end of the pass, whether it was fetched before or not."""
        return self._ahead.pop() if self._ahead else self._fetch()

    def _fetch(self) -> Any:
        if self._has_ended:
            self._batches = iter(self.loader)
        assert self._batches is not None
        batch = next(self._batches, _PASS_END)
        self._has_ended = batch is _PASS_END
        return batch

    def _check_pass(self) -> None:
        if self._num_rows or self._is_continued:
            return
        name = type(self.loader).__name__
        raise MisconfigurationException(
            f"the train loader, a {name}, yields no instance"
            if not self.pass_index
            else f"the train loader, a {name}, yields nothing after {self.pass_index} passes; each iter() of it "
            "must begin a new pass"
        )

    def _begin_pass(self) -> None:
        self.pass_index += 1
        self._num_batches = self._num_rows = 0
        self._is_continued = False


def _own_copy(loader: Iterable[Any]) -> Iterable[Any]:
    """What is iterated for training: others may iterate the user's loader meanwhile."""
    return own_copy(loader) if isinstance(loader, DataLoader) else loader


def _is_stateful(loader: object) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))
