"""Training data without indices: rows of a stream's batches are scored, and the kept ones gathered to full batches.

Shapes: B batch, K batches an epoch, n rows of a fetched batch, F features.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import GeneratorType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_autoassist.filtering.memory.tokens import joined_rows
from lightning_autoassist.filtering.sampling.candidates import CandidateStream, Draw, Rows
from lightning_autoassist.filtering.sampling.rows import (
    Column,
    Form,
    PadValues,
    RowSplitter,
    concatenate,
    packed,
    select,
    unpacked,
)
from lightning_autoassist.trainer_support.arrays import FloatArray, IndexArray
from lightning_autoassist.trainer_support.internals import keep_iterator, own_copy, shut_down_workers

KeepRows = Callable[[Rows, int], npt.NDArray[np.floating[Any]]]
RowFeatures = Callable[[Any, int], "Tensor | None"]

# So many kinds of rows may wait for more of their kind: each holds up to B - 1 of them.
MAX_KINDS = 256

_PASS_END = object()


class _Piece(NamedTuple):
    """Kept rows of one fetched batch.

    Attributes:
        columns: As the batch's form has them.
        numbers: Which candidates of the stream they are, shape ``(n,)``, int64.
        probs: What they were kept with, shape ``(n,)``, float64.
        features: Shape ``(n, F)``, or rows of tokens, shape ``(n, W)``, or None.
    """

    columns: list[Column]
    numbers: IndexArray
    probs: npt.NDArray[np.float64]
    features: Tensor | None

    def rows(self, chosen: npt.NDArray[np.int64]) -> _Piece:
        features = None if self.features is None else self.features.index_select(0, torch.from_numpy(chosen))
        columns = [select(column, chosen) for column in self.columns]
        return _Piece(columns, self.numbers[chosen], self.probs[chosen], features)


class _Out(NamedTuple):
    """A batch that was handed out. Its columns are kept beside it: users take parts out of batches."""

    draw: Draw
    kind: str
    piece: _Piece


class RowStream(CandidateStream):
    """Full batches of the rows of a stream that are kept, K batches an epoch.

    The loader's batches are fetched one after the other, pass after pass; the stream runs on across epochs. Each row
    is kept with its own probability p; kept rows wait until B of one kind stand, and make a batch in the order they
    came. A whole batch of B kept rows for which none waits is passed on as the very object that the loader gave.

    Rows are of one kind where their batches are alike but for the rows: containers, shapes and dtypes of rows, and
    parts that are not one row an instance; see ``RowSplitter``. So a padded sequence
    shares a batch with sequences padded to the same width, and its meaning stays what it was; ``pad_values`` lets
    widths be joined. Where more than 256 kinds wait, a batch of a new one is passed on whole, with one warning.

    The first pass keeps everything, though no more than N candidates, since a stream may have no end.

    Args:
        loader: Iterable of batches; iterated anew for every pass.
        num_batches: K.
        batch_size: B; None takes that of the first batch.
        num_instances: N: candidates that are kept at first, and over which the mean of p for ``weights="mean"`` runs;
            None: K·B.
        keep_probability: Gets the ``Rows`` of a fetched batch and the number of
            the pass (at least 1), returns p in (0, 1], shape ``(n,)``. None keeps everything.
        features: Gets a batch and n, returns the rows' features, shape ``(n, F)``, or None.
        weights: ``"none"``, ``"sum"`` or ``"mean"``, see :class:`~lightning_autoassist.ShrinkingBatchSampler`.
        pass_whole: Pass on the loader's own batches, short ones included.
        pad_values: See ``RowSplitter``.
        seed: Of the generator that decides what is kept; the global RNGs stay untouched.

    Raises:
        ValueError: If ``weights`` names no mode.

    Example:
        >>> loader = [torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)]
        >>> def odd_ones(rows, pass_index):
        ...     return np.where(rows.batch % 2, 1.0, 1e-9)
        >>> stream = RowStream(loader, 2, batch_size=4, num_instances=4, keep_probability=odd_ones)
        >>> [draw.rows.batch.tolist() for draw in stream.draws()]
        [[0, 1, 2, 3], [5, 7, 9, 11]]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        num_batches: int,
        *,
        batch_size: int | None = None,
        num_instances: int | None = None,
        keep_probability: KeepRows | None = None,
        features: RowFeatures | None = None,
        weights: str = "none",
        pass_whole: bool = False,
        pad_values: PadValues = None,
        seed: int = 0,
    ) -> None:
        super().__init__(weights, seed)
        self.num_batches = num_batches
        self.keep_probability = keep_probability
        self.features = features
        self.pass_whole = pass_whole
        self.pass_index = 0
        self._given, self._loader = loader, _own_copy(loader)
        self._batches: Iterator[Any] | None = None
        self._num_fetched = 0  # batches of this pass
        self._num_rows = 0  # and their rows
        self._loader_state: Any = None  # what the loader is to continue from
        self._is_continued = False  # the pass began before this iterator did
        self._splitter = RowSplitter(batch_size, pad_values)
        self._set_sizes(batch_size, num_instances)
        self._form: Form | None = None  # of the batch that was fetched last
        self._ahead: deque[Any] = deque()  # fetched and not considered, with the loader's state before it
        self._waiting: dict[str, deque[_Piece]] = {}
        self._in_flight: deque[_Out] = deque()
        self._unbuilt: list[tuple[str, _Piece, FloatArray | None, int]] = []  # in flight when the state was saved
        self._restored_kind: str | None = None
        self._waited = 0.0  # seconds of a draw that went into the data
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return self.num_batches

    def _set_sizes(self, batch_size: int | None, num_instances: int | None) -> None:
        self.batch_size = batch_size or 0  # 0 while no batch has told it
        self.num_instances = num_instances or self.num_batches * self.batch_size

    # ---- epochs

    def start(self) -> None:
        """Iterate the loader, if that has not begun: its workers start, and it may draw from the global RNG."""
        if self._batches is not None:
            return
        state, self._loader_state = self._loader_state, None
        is_restored = state is not None and _is_stateful(self._loader)
        if is_restored:
            self._loader.load_state_dict(state)  # type: ignore[attr-defined]
        self._batches = iter(self._loader)
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
        if isinstance(self._loader, DataLoader):
            keep_iterator(self._loader, None)  # persistent workers are not begun anew once they were ended
        self._batches = None

    def read_from(self, loader: Iterable[Any]) -> None:
        """Take candidates from another loader, from a new pass on."""
        if loader is not self._given:
            self.close()
            self._ahead.clear()
            self._given, self._loader, self._loader_state = loader, _own_copy(loader), None
            self._begin_pass()

    def draws(self, limit: int | None = None) -> Iterator[Draw]:
        """One epoch. Batches that were handed out earlier and never confirmed come first.

        Args:
            limit: Batches of the epoch, where they are fewer than K: the rest of an epoch that was interrupted.

        Raises:
            MisconfigurationException: If the loader yields nothing, or only once.
        """
        self._build_again()
        again = [out.draw for out in self._in_flight]
        for number in range(self.num_batches if limit is None else limit):
            if number < len(again):
                yield again[number]
                continue
            started, self._waited = time.perf_counter(), 0.0
            out = self._draw()
            self.seconds += time.perf_counter() - started - self._waited
            self._in_flight.append(out)
            yield out.draw

    def confirm(self, draw: Draw) -> None:
        """Take note that the Boss was trained on ``draw``, the oldest unconfirmed batch."""
        oldest = self._in_flight.popleft()
        assert np.array_equal(oldest.draw.indices, draw.indices), "the Boss gets batches in the order they were drawn"

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream, RNG, rows that wait, totals: tensors and builtins, and the loader's own state."""
        in_flight = self._unbuilt or [
            (out.kind, out.piece, out.draw.weights, out.draw.pass_index) for out in self._in_flight
        ]
        state = {
            **self._counts(),
            "sizes": [self.batch_size, self.num_instances],
            "fetched": [self._num_fetched, self._num_rows],
            "splitter": self._splitter.state_dict(),
            "loader": self._state_of_loader(),
            "kind": self._restored_kind if self._form is None else self._form.kind,
            "waiting": [],
            "in_flight": [],
        }
        try:
            state["waiting"] = [
                [kind, [_packed_piece(piece) for piece in pieces]] for kind, pieces in self._waiting.items()
            ]
            state["in_flight"] = [
                [kind, _packed_piece(piece), None if weights is None else torch.from_numpy(weights), pass_index]
                for kind, piece, weights, pass_index in in_flight
            ]
        except TypeError as error:
            self._warn_once(f"rows that wait for their batch are not in the checkpoint, and lost on a resume: {error}")
        return state

    def can_continue(self, state: dict[str, Any]) -> bool:
        """Whether ``state`` is of a stream in batches of this one's size."""
        return "sizes" in state and (state["sizes"][0] == self.batch_size or 0 in (state["sizes"][0], self.batch_size))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; where the loader has no state of its own, its current pass begins anew.

        Raises:
            ValueError: If the state is none of a stream in batches of this size.
        """
        if not self.can_continue(state):
            raise ValueError(
                f"the state is of batches of {state.get('sizes', ['indices'])[0]}, this stream has batches of "
                f"{self.batch_size}; resume with the data of the interrupted run"
            )
        batch_size, num_instances = state["sizes"]
        self._set_sizes(batch_size or self.batch_size, num_instances or self.num_instances)
        self._restore_counts(state)
        self._num_fetched, self._num_rows = state["fetched"]
        self._splitter.load_state_dict(state["splitter"])
        self._waiting = {kind: deque(map(_unpacked_piece, pieces)) for kind, pieces in state["waiting"]}
        self._unbuilt = [
            (kind, _unpacked_piece(piece), None if weights is None else weights.numpy().copy(), pass_index)
            for kind, piece, weights, pass_index in state["in_flight"]
        ]
        self._restored_kind = state["kind"]
        self._loader_state = state["loader"]
        self._is_continued = True
        if self._num_fetched and not (self._loader_state is not None and _is_stateful(self._loader)):
            rank_zero_warn(
                f"a {type(self._loader).__name__} has no state_dict and load_state_dict (or gave no state), so that "
                f"the stream's current pass begins anew: {self._num_rows} instances of it come again, all else is as "
                "it was. A StatefulDataLoader or a StreamingDataLoader resumes exactly"
            )
            self._num_fetched = self._num_rows = 0

    def _state_of_loader(self) -> Any:
        if self._ahead:
            return self._ahead[0][1]
        if self._batches is None:
            return self._loader_state
        return self._loader.state_dict() if _is_stateful(self._loader) else None  # type: ignore[attr-defined]

    def _build_again(self) -> None:
        """Batches that were in flight, or complete, when the state was saved: the next one tells their form."""
        unbuilt, self._unbuilt = self._unbuilt, []
        kind, self._restored_kind = self._restored_kind, None
        if unbuilt or (kind is not None and self._num_waiting(kind) >= self.batch_size):
            self._look_ahead()
        for kind, piece, weights, pass_index in unbuilt:
            if self._form is not None and self._form.kind == kind:
                batch = self._form.build(piece.columns)
                self._in_flight.append(self._out(batch, piece, weights, pass_index))
            else:  # they wait for more of their kind
                self._waiting.setdefault(kind, deque()).appendleft(piece)

    # ---- one batch

    def _draw(self) -> _Out:
        considered = self.num_considered
        while True:
            if self._form is not None and self._num_waiting(self._form.kind) >= self.batch_size > 0:
                return self._full_batch(self._form)
            self._check_progress(considered)
            out = self._consider(self._next_batch())
            if out is not None:
                return out

    def _consider(self, batch: Any) -> _Out | None:
        """Keep rows of a fetched batch; returns it where it is passed on whole."""
        columns, self._form = self._splitter.take_apart(batch)
        num_rows = len(columns[0]) if columns else 0
        self._num_fetched += 1
        self._num_rows += num_rows
        if not num_rows:
            return None
        if not self.batch_size:
            self._set_sizes(num_rows, self.num_instances)
        kind = self._form.kind
        passes = self.pass_whole or (kind not in self._waiting and self._is_one_too_many())
        rows = Rows(
            batch,
            num_rows,
            None if self.features is None else self.features(batch, num_rows),
            _integers(columns, self._form),
        )
        probs = np.ones(num_rows) if passes else self._probs_of(rows)
        kept = self._rng.random(num_rows) < probs
        numbers = np.arange(self.num_considered, self.num_considered + num_rows)
        piece = _Piece(columns, numbers, probs, rows.features)
        self._count(probs, int(kept.sum()))
        if passes or (kept.all() and num_rows == self.batch_size and kind not in self._waiting):
            return self._out(batch, piece, self._weights_of(probs))
        if kept.any():
            self._waiting.setdefault(kind, deque()).append(piece.rows(np.flatnonzero(kept)))
        return None

    def _probs_of(self, rows: Rows) -> npt.NDArray[np.float64]:
        is_first = self.pass_index == 0 and self.num_considered < self.num_instances
        if self.keep_probability is None or is_first:
            return np.ones(rows.size)
        return np.asarray(self.keep_probability(rows, max(self.pass_index, 1)), np.float64)

    def _num_waiting(self, kind: str) -> int:
        return sum(len(piece.numbers) for piece in self._waiting.get(kind, ()))

    def _full_batch(self, form: Form) -> _Out:
        """The next B waiting rows of a form."""
        waiting = self._waiting[form.kind]
        taken: list[_Piece] = []
        missing = self.batch_size
        while missing:
            piece = waiting.popleft()
            size = len(piece.numbers)
            if size > missing:  # the rest keeps its width, whatever these rows are padded to
                waiting.appendleft(piece.rows(np.arange(missing, size)))
                piece = piece.rows(np.arange(missing))
            taken.append(piece)
            missing -= len(piece.numbers)
        if not waiting:
            del self._waiting[form.kind]
        joined = self._joined(taken, form)
        return self._out(form.build(joined.columns), joined, self._weights_of(joined.probs))

    def _joined(self, pieces: list[_Piece], form: Form) -> _Piece:
        columns = [
            concatenate(parts, self._splitter.pad_value(path))
            for path, parts in zip(form.paths, zip(*(piece.columns for piece in pieces), strict=True), strict=True)
        ]
        features = [piece.features for piece in pieces if piece.features is not None]
        return _Piece(
            columns,
            np.concatenate([piece.numbers for piece in pieces]),
            np.concatenate([piece.probs for piece in pieces]),
            _joined_features(features) if len(features) == len(pieces) else None,
        )

    def _out(self, batch: Any, piece: _Piece, weights: FloatArray | None, pass_index: int | None = None) -> _Out:
        assert self._form is not None
        rows = Rows(batch, len(piece.numbers), piece.features, _integers(piece.columns, self._form))
        pass_index = self.pass_index if pass_index is None else pass_index
        return _Out(Draw(piece.numbers, weights, rows, pass_index), self._form.kind, piece)

    def _is_one_too_many(self) -> bool:
        if len(self._waiting) < MAX_KINDS:
            return False
        self._warn_once(
            f"{MAX_KINDS} kinds of rows wait for more of their kind, so that whole batches of further ones are passed "
            "on unfiltered: widths of rows differ, or parts that are not one row an instance do; pass pad_values= for "
            "the former, and leave the latter out of the batch"
        )
        return True

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)

    # ---- the loader

    def _next_batch(self) -> Any:
        self.start()
        assert self._batches is not None
        started = time.perf_counter()
        batch = self._ahead.popleft()[0] if self._ahead else next(self._batches, _PASS_END)
        while batch is _PASS_END:
            self._next_pass()
            batch = next(self._batches, _PASS_END)
        self._waited += time.perf_counter() - started  # for the data, as any training does
        return batch

    def _next_pass(self) -> None:
        if not self._num_rows and not self._is_continued:
            name = type(self._loader).__name__
            raise MisconfigurationException(
                f"the train loader, a {name}, yields no instance"
                if not self.pass_index
                else f"the train loader, a {name}, yields nothing after {self.pass_index} passes; each iter() of it "
                "must begin a new pass"
            )
        self._begin_pass()
        self._batches = iter(self._loader)

    def _begin_pass(self) -> None:
        self.pass_index += 1
        self._num_fetched = self._num_rows = 0
        self._is_continued = False

    def _look_ahead(self) -> None:
        """Fetch one batch for its form, to be considered later."""
        self.start()
        state = self._state_of_loader()
        batch = self._next_batch()
        self._ahead.append((batch, state))
        _, self._form = self._splitter.take_apart(batch)


def _joined_features(parts: list[Tensor]) -> Tensor | None:
    if not parts[0].is_floating_point():  # rows of tokens
        return joined_rows(parts)
    return torch.cat(parts) if len({part.shape[1] for part in parts}) == 1 else None


def _integers(columns: list[Column], form: Form) -> dict[str, Tensor]:
    """The columns that may be labels: integer tensors of shape ``(n,)``, by their paths."""
    return {
        path: column
        for path, column in zip(form.paths, columns, strict=True)
        if isinstance(column, Tensor)
        and column.ndim == 1
        and not (column.is_floating_point() or column.is_complex() or column.dtype == torch.bool)
    }


def _own_copy(loader: Iterable[Any]) -> Iterable[Any]:
    """What is iterated for training: others may iterate the user's loader meanwhile."""
    return own_copy(loader) if isinstance(loader, DataLoader) else loader


def _is_stateful(loader: object) -> bool:
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def _packed_piece(piece: _Piece) -> list[Any]:
    columns = [packed(column) for column in piece.columns]
    return [columns, torch.from_numpy(piece.numbers), torch.from_numpy(piece.probs), piece.features]


def _unpacked_piece(state: list[Any]) -> _Piece:
    columns, numbers, probs, features = state
    return _Piece([unpacked(column) for column in columns], numbers.numpy(), probs.numpy(), features)
