"""Reads the batches of a train loader without indices, pass after pass, and goes on where an earlier run was.

Shapes: n rows of a batch.
"""

from __future__ import annotations

import time
from collections import deque
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
        seconds_waited: Time that went into the data, as in any training.

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
        self._is_continued = False  # the pass began before this iterator did
        self._ahead: deque[Any] = deque()  # fetched and not read, with the loader's state before it

    def start(self) -> None:
        """Iterate the loader, if that has not begun: its workers start, and it may draw from the global RNG."""
        if self._batches is not None:
            return
        state, self._loader_state = self._loader_state, None
        is_restored = state is not None and _is_stateful(self.loader)
        if is_restored:
            self.loader.load_state_dict(state)  # type: ignore[attr-defined]
        self._batches = iter(self.loader)
        if is_restored and isinstance(self._batches, GeneratorType):
            # It begins at its first batch, with the seed that a DataLoader draws from the global RNG: to be drawn
            # before that RNG is restored, since the interrupted run had begun.
            self._ahead.append((next(self._batches, _PASS_END), state))

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
        self._batches = None

    def read_from(self, loader: Iterable[Any]) -> None:
        """Read another loader, from a new pass on."""
        if loader is not self._given:
            self.close()
            self._ahead.clear()
            self._given, self.loader, self._loader_state = loader, _own_copy(loader), None
            self._begin_pass()

    def next_batch(self) -> Any:
        """The next batch; :meth:`count` is to be told its rows.

        Raises:
            MisconfigurationException: If the loader yields nothing, or only once.
        """
        self.start()
        assert self._batches is not None
        started = time.perf_counter()
        batch = self._ahead.popleft()[0] if self._ahead else next(self._batches, _PASS_END)
        while batch is _PASS_END:
            self._batches = self._next_pass()
            batch = next(self._batches, _PASS_END)
        self.seconds_waited += time.perf_counter() - started
        return batch

    def look_ahead(self) -> Any:
        """The batch that :meth:`next_batch` is going to give."""
        self.start()
        state = self._state_of_loader()
        batch = self.next_batch()
        self._ahead.append((batch, state))
        return batch

    def count(self, num_rows: int) -> None:
        """A batch of n rows was read."""
        self._num_batches += 1
        self._num_rows += num_rows

    def state_dict(self) -> dict[str, Any]:
        """The place in the pass: builtins, and the loader's own state."""
        return {"fetched": [self._num_batches, self._num_rows], "loader": self._state_of_loader()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; where the loader has no state of its own, its current pass begins anew."""
        self._num_batches, self._num_rows = state["fetched"]
        self._loader_state = state["loader"]
        self._is_continued = True
        if self._num_batches and not (self._loader_state is not None and _is_stateful(self.loader)):
            rank_zero_warn(
                f"a {type(self.loader).__name__} has no state_dict and load_state_dict (or gave no state), so that "
                f"the stream's current pass begins anew: {self._num_rows} instances of it come again, all else is as "
                "it was. A StatefulDataLoader or a StreamingDataLoader resumes exactly"
            )
            self._num_batches = self._num_rows = 0

    def _state_of_loader(self) -> Any:
        if self._ahead:
            return self._ahead[0][1]
        if self._batches is None:
            return self._loader_state
        return self.loader.state_dict() if _is_stateful(self.loader) else None  # type: ignore[attr-defined]

    def _next_pass(self) -> Iterator[Any]:
        if not self._num_rows and not self._is_continued:
            name = type(self.loader).__name__
            raise MisconfigurationException(
                f"the train loader, a {name}, yields no instance"
                if not self.pass_index
                else f"the train loader, a {name}, yields nothing after {self.pass_index} passes; each iter() of it "
                "must begin a new pass"
            )
        self._begin_pass()
        return iter(self.loader)

    def _begin_pass(self) -> None:
        self.pass_index += 1
        self._num_batches = self._num_rows = 0
        self._is_continued = False


def _own_copy(loader: Iterable[Any]) -> Iterable[Any]:
    """What is iterated for training: others may iterate the user's loader meanwhile."""
    return own_copy(loader) if isinstance(loader, DataLoader) else loader


def _is_stateful(loader: object) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))
