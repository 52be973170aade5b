"""Training data without indices: rows of a stream's batches are scored, and the kept ones gathered to full batches.

Shapes: B batch, K batches an epoch, n rows of a fetched batch, F features.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.candidates import CandidateStream, SelectedBatch
from lightning_autoassist.filtering.sampling.columns import Column
from lightning_autoassist.filtering.sampling.rows import Form, PadValues, RowSplitter
from lightning_autoassist.filtering.sampling.selection import GivenProbabilities, KeepRows, RowFeatures, Rows
from lightning_autoassist.filtering.sampling.stream_reading import StreamReader
from lightning_autoassist.filtering.sampling.waiting_rows import Piece, WaitingRows, join_pieces
from lightning_autoassist.trainer_support.arrays import FloatArray

# So many kinds of rows may wait for more of their kind: each holds up to B - 1 of them.
MAX_KINDS = 256


class _Out(NamedTuple):
    """A batch that was handed out. Its columns are kept beside it: users take parts out of batches."""

    draw: SelectedBatch
    kind: str
    piece: Piece


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
        num_instances: N: candidates that are kept at first, and over which the mean of p for
            ``reweighting="normalized"`` runs; None: K·B.
        keep_probability: Gets the ``Rows`` of a fetched batch and the number of
            the pass (at least 1), returns p in (0, 1], shape ``(n,)``. None keeps everything.
        features: Gets a batch and n, returns the rows' features, shape ``(n, F)``, or None.
        reweighting: ``"none"``, ``"inverse_probability"`` or ``"normalized"``, see
            :class:`~lightning_autoassist.ShrinkingBatchSampler`.
        pass_whole: Pass on the loader's own batches, short ones included.
        pad_values: See ``RowSplitter``.
        seed: Of the generator that decides what is kept; the global RNGs stay untouched.

    Raises:
        ValueError: If ``reweighting`` names no mode.

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
        reweighting: ReweightingName = "none",
        pass_whole: bool = False,
        pad_values: PadValues = None,
        seed: int = 0,
    ) -> None:
        self._reader = StreamReader(loader)
        super().__init__(GivenProbabilities(keep_probability, reweighting, features), seed)
        self.pass_index = 0
        self.num_batches = num_batches
        self.pass_whole = pass_whole
        self._splitter = RowSplitter(batch_size, pad_values)
        self._set_sizes(batch_size, num_instances)
        self._form: Form | None = None  # of the batch that was fetched last
        self._waiting = WaitingRows()
        self._in_flight: deque[_Out] = deque()
        self._unbuilt: list[tuple[str, Piece, FloatArray | None, int]] = []  # in flight when the state was saved
        self._restored_kind: str | None = None
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return self.num_batches

    @property
    def reweighting(self) -> ReweightingName:
        """How kept rows are weighted; not at all where whole batches pass."""
        return "none" if self.pass_whole else super().reweighting

    @property
    def pass_index(self) -> int:
        """Number of the pass, from 0."""
        return self._reader.pass_index

    @pass_index.setter
    def pass_index(self, number: int) -> None:
        self._reader.pass_index = number

    def _set_sizes(self, batch_size: int | None, num_instances: int | None) -> None:
        self.batch_size = batch_size or 0  # 0 while no batch has told it
        self.num_instances = num_instances or self.num_batches * self.batch_size

    # ---- epochs

    def start(self) -> None:
        """Iterate the loader, if that has not begun: its workers start, and it may draw from the global RNG."""
        self._reader.start()

    def close(self) -> None:
        """End the iteration, and the loader's workers; what comes next goes on where it was, if the loader can."""
        self._reader.close()

    def read_from(self, loader: Iterable[Any]) -> None:
        """Take candidates from another loader, from a new pass on."""
        self._reader.read_from(loader)

    def draws(self, limit: int | None = None) -> Iterator[SelectedBatch]:
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
            started, waited = time.perf_counter(), self._reader.seconds_waited
            out = self._draw()
            self.seconds += time.perf_counter() - started - (self._reader.seconds_waited - waited)
            self._in_flight.append(out)
            yield out.draw

    def mark_consumed(self, draw: SelectedBatch) -> None:
        """Take note that the model was trained on ``draw``, the oldest unconfirmed batch."""
        oldest = self._in_flight.popleft()
        assert np.array_equal(oldest.draw.indices, draw.indices), "the model gets batches in the order they were drawn"

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Position of the stream, RNG, rows that wait, totals: tensors and builtins, and the loader's own state."""
        in_flight = self._unbuilt or [
            (out.kind, out.piece, out.draw.weights, out.draw.pass_index) for out in self._in_flight
        ]
        state = {
            **self._counts(),
            "sizes": [self.batch_size, self.num_instances],
            **self._reader.state_dict(),
            "splitter": self._splitter.state_dict(),
            "kind": self._restored_kind if self._form is None else self._form.kind,
            "waiting": [],
            "in_flight": [],
        }
        try:
            state["waiting"] = self._waiting.packed()
            state["in_flight"] = [
                [kind, piece.packed(), None if weights is None else torch.from_numpy(weights), pass_index]
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
        self._splitter.load_state_dict(state["splitter"])
        self._waiting.restore(state["waiting"])
        self._unbuilt = [
            (kind, Piece.unpacked(piece), None if weights is None else weights.numpy().copy(), pass_index)
            for kind, piece, weights, pass_index in state["in_flight"]
        ]
        self._restored_kind = state["kind"]
        self._reader.load_state_dict(state)

    def _build_again(self) -> None:
        """Batches that were in flight, or complete, when the state was saved: the next one tells their form."""
        unbuilt, self._unbuilt = self._unbuilt, []
        kind, self._restored_kind = self._restored_kind, None
        if unbuilt or (kind is not None and self._waiting.count(kind) >= self.batch_size):
            _, self._form = self._splitter.take_apart(self._reader.look_ahead())
        for kind, piece, weights, pass_index in unbuilt:
            if self._form is not None and self._form.kind == kind:
                batch = self._form.build(piece.columns)
                self._in_flight.append(self._out(batch, piece, weights, pass_index))
            else:  # they wait for more of their kind
                self._waiting.put_back(kind, piece)

    # ---- one batch

    def _draw(self) -> _Out:
        considered = self.num_considered
        while True:
            if self._form is not None and self._waiting.count(self._form.kind) >= self.batch_size > 0:
                return self._full_batch(self._form)
            self._check_progress(considered)
            out = self._consider(self._reader.next_batch())
            if out is not None:
                return out

    def _consider(self, batch: Any) -> _Out | None:
        """Keep rows of a fetched batch; returns it where it is passed on whole."""
        columns, self._form = self._splitter.take_apart(batch)
        num_rows = len(columns[0]) if columns else 0
        self._reader.count(num_rows)
        if not num_rows:
            return None
        if not self.batch_size:
            self._set_sizes(num_rows, self.num_instances)
        kind = self._form.kind
        passes = self.pass_whole or (kind not in self._waiting and self._is_one_too_many())
        rows = Rows(
            batch,
            num_rows,
            self.selector.row_features(batch, num_rows),
            _integers(columns, self._form),
        )
        probs = np.ones(num_rows) if passes else self._probs_of(rows)
        kept = self._rng.random(num_rows) < probs
        numbers = np.arange(self.num_considered, self.num_considered + num_rows)
        piece = Piece(columns, numbers, probs, rows.features)
        self._count(probs, int(kept.sum()))
        if passes or (kept.all() and num_rows == self.batch_size and kind not in self._waiting):
            return self._out(batch, piece, self._weights_of(probs))
        if kept.any():
            self._waiting.add(kind, piece.rows(np.flatnonzero(kept)))
        return None

    def _probs_of(self, rows: Rows) -> npt.NDArray[np.float64]:
        is_first = self.pass_index == 0 and self.num_considered < self.num_instances
        if self.selector.keeps_everything or is_first:
            return np.ones(rows.size)
        return np.asarray(self.selector.keep_probability(rows, max(self.pass_index, 1)), np.float64)

    def _full_batch(self, form: Form) -> _Out:
        """The next B waiting rows of a form."""
        taken = self._waiting.take(form.kind, self.batch_size)
        joined = join_pieces(taken, form.paths, self._splitter.pad_value)
        return self._out(form.build(joined.columns), joined, self._weights_of(joined.probs))

    def _out(self, batch: Any, piece: Piece, weights: FloatArray | None, pass_index: int | None = None) -> _Out:
        assert self._form is not None
        rows = Rows(batch, len(piece.numbers), piece.features, _integers(piece.columns, self._form))
        pass_index = self.pass_index if pass_index is None else pass_index
        draw = SelectedBatch(piece.numbers, weights, rows, pass_index, probs=piece.probs.astype(np.float32))
        return _Out(draw, self._form.kind, piece)

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


def _integers(columns: list[Column], form: Form) -> dict[str, Tensor]:
    """The columns that may be labels: integer tensors of shape ``(n,)``, by their paths."""
    return {
        path: column
        for path, column in zip(form.paths, columns, strict=True)
        if isinstance(column, Tensor)
        and column.ndim == 1
        and not (column.is_floating_point() or column.is_complex() or column.dtype == torch.bool)
    }
