"""Training data without indices: rows of a stream's batches are scored, and the kept ones gathered to full batches.

Shapes: B batch, K batches an epoch, n rows of a fetched batch, F features.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_utilities.core.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.sampling.batchers import (
    POOL_BATCHES,
    Batcher,
    FixedSizeBatcher,
    Piece,
    TokenBatcher,
)
from lightning_autoassist.filtering.sampling.candidates import CandidateStream, SelectedBatch
from lightning_autoassist.filtering.sampling.row_lengths import RowLengths
from lightning_autoassist.filtering.sampling.row_source import Fetched, RowSource, integers_of
from lightning_autoassist.filtering.sampling.rows import PadValues
from lightning_autoassist.filtering.sampling.selection import GivenProbabilities, KeepRows, RowFeatures, Rows
from lightning_autoassist.trainer_support.executors import InlineExecutor

# So many kinds of rows may wait for more of their kind: each holds up to B - 1 of them.
MAX_KINDS = 256


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
        max_tokens: Most tokens in a batch, padding included, in place of B rows: kept rows of similar length then share
            batches of any number, see ``TokenBatcher``. One of a single longer row may have more.
        lengths: See ``RowLengths``.
        pool_batches: See :class:`~lightning_autoassist.TokenBatchSampler`; a pool also is full with the rows of half a
            pass.
        seed: Of the generator that decides what is kept; the global RNGs stay untouched.

    Raises:
        ValueError: If ``reweighting`` names no mode.

    Example:
        >>> import torch
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
        max_tokens: int | None = None,
        lengths: Callable[[Any], Any] | None = None,
        pool_batches: int = POOL_BATCHES,
        seed: int = 0,
    ) -> None:
        super().__init__(GivenProbabilities(keep_probability, reweighting, features), seed)
        self.num_batches = num_batches
        self.pass_whole = pass_whole
        self.max_tokens = max_tokens
        self._source: RowSource = RowSource(loader, batch_size, pad_values)
        pad_value = self._source.splitter.pad_value
        self._lengths = None if max_tokens is None else RowLengths(lengths, pad_value)
        self._batcher = self._new_batcher(pool_batches)
        self._batcher.pad_value = pad_value
        self._set_sizes(batch_size, num_instances)
        self._whole: SelectedBatch | None = None  # a batch of the loader's that is passed on
        self._is_restored = False
        self._warned: set[str] = set()

    @override
    def __len__(self) -> int:
        return self.num_batches

    @property
    @override
    def reweighting(self) -> ReweightingName:
        """How kept rows are weighted; not at all where whole batches pass."""
        return "none" if self.pass_whole else super().reweighting

    def _new_batcher(self, pool_batches: int) -> Batcher:
        if self._lengths is None or self.max_tokens is None:
            return FixedSizeBatcher(0)
        batcher = TokenBatcher(self.max_tokens, pool_batches * self.max_tokens, self._rng)
        batcher.trimmed = self._lengths.trimmed
        return batcher

    def _set_sizes(self, batch_size: int | None, num_instances: int | None) -> None:
        self.batch_size = batch_size or 0  # 0 while no batch has told it
        self.num_instances = num_instances or self.num_batches * self.batch_size
        if isinstance(self._batcher, FixedSizeBatcher):
            self._batcher.batch_size = self.batch_size
        elif isinstance(self._batcher, TokenBatcher):
            self._batcher.pool_size = self.num_instances / 2

    # ---- epochs

    def start(self) -> None:
        """Iterate the loader, if that has not begun: its workers start, and it may draw from the global RNG."""
        self._source.reader.start()
        if self._is_restored:  # now, as the generators that a loader may draw from are restored after this
            self._is_restored = False
            self._source.look_for({draw.kind for draw in self._in_flight} | self._batcher.next_kinds)

    def close(self) -> None:
        """End the iteration, and the loader's workers; what comes next goes on where it was, if the loader can."""
        self._source.reader.close()

    def read_from(self, loader: Iterable[Any]) -> None:
        """Take candidates from another loader, from a new pass on."""
        self._source.reader.read_from(loader)

    @override
    def draws(self, limit: int | None = None) -> Iterator[SelectedBatch]:
        """One epoch, see :meth:`CandidateStream.draws`.

        Raises:
            MisconfigurationException: If the loader yields nothing, or only once.
        """
        self.start()
        self._build_again()
        yield from super().draws(limit)

    def _build_again(self) -> None:
        """Put the rows of batches into batches again that were handed out when the state was saved."""
        restored, self._in_flight = self._in_flight, deque()
        for draw in restored:
            assert draw.kept is not None
            rows = draw.rows or self._rows_of(draw.kind, draw.kept)
            if rows is not None:
                self._in_flight.append(draw._replace(rows=rows))
            else:  # they wait for more of their kind
                self._batcher.put_back(draw.kind, draw.kept)

    @property
    @override
    def _jobs(self) -> InlineExecutor:
        """The training loop: the user's loader is iterated there."""
        return InlineExecutor()

    @property
    @override
    def _seconds_waited(self) -> float:
        return self._source.reader.seconds_waited

    # ---- state

    @override
    def _held(self) -> dict[str, Any]:
        try:
            held = super()._held()
        except TypeError as error:
            self._warn_once(
                f"a checkpoint cannot hold the rows that wait for their batch, and a resumed run loses them: {error}"
            )
            held = {"waiting": self._new_batcher(1).state_dict(), "in_flight": []}
        return {**held, "batch_size": self.batch_size, "lengths": self._lengths and self._lengths.state_dict()}

    @override
    def can_continue(self, state: dict[str, Any]) -> bool:
        """Whether ``state`` is of a stream in batches of this one's size."""
        if state.keys() != self.state_dict().keys() or (state["lengths"] is None) != (self._lengths is None):
            return False
        return state["batch_size"] == self.batch_size or 0 in (state["batch_size"], self.batch_size)

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; where the loader has no state of its own, its current pass begins anew.

        Raises:
            ValueError: If the state is of a stream in batches of another size.
        """
        if not self.can_continue(state):
            raise ValueError(
                f"the state is of batches of {state.get('batch_size', 'indices')}, and this stream has batches of "
                f"{self.batch_size}; resume with the data of the interrupted run"
            )
        self._set_sizes(state["batch_size"] or self.batch_size, state["num_instances"] or self.num_instances)
        if self._lengths is not None:
            self._lengths.load_state_dict(state["lengths"])
        super().load_state_dict(state)
        self._is_restored = True

    # ---- one batch

    @override
    def _draw(self) -> SelectedBatch | None:
        whole, self._whole = self._whole, None
        return super()._draw() if whole is None else whole

    @override
    def _read_on(self) -> None:
        """Keep rows of the next batch of the loader, or pass it on whole."""
        self._check_progress()
        fetched = self._source.fetch(self._batcher.next_kinds)
        if not fetched.num_rows:
            return
        if not self.batch_size:
            self._set_sizes(fetched.num_rows, self.num_instances)
        kind = fetched.form.kind
        passes = self.pass_whole or (kind not in self._batcher.kinds and self._is_one_too_many())
        piece, rows = self._considered(fetched, passes)
        kept = self._rng.random(rows.size) < piece.probs
        self._count(piece.probs, int(kept.sum()))
        if passes or (kept.all() and self._is_full_batch(fetched)):
            self._whole = self._weighted(piece, kind, rows)
        elif kept.any():
            self._batcher.add(kind, piece.rows(np.flatnonzero(kept)))

    def _considered(self, fetched: Fetched, passes: bool) -> tuple[Piece, Rows]:
        """The rows of a batch with their p, which is 1 where it passes whole."""
        size = fetched.num_rows
        lengths = None if self._lengths is None else self._lengths.of(fetched)
        rows = Rows(fetched.batch, size, self.selector.row_features(fetched.batch, size), fetched.integers)
        probs = np.ones(size) if passes else self._probs_of(rows)
        numbers = np.arange(self.num_considered, self.num_considered + size)
        return Piece(numbers, probs, lengths, fetched.form.paths, fetched.columns, rows.features), rows

    def _probs_of(self, rows: Rows) -> npt.NDArray[np.float64]:
        is_first = self.pass_index == 0 and self.num_considered < self.num_instances
        if self.selector.keeps_everything or is_first:
            return np.ones(rows.size)
        return np.asarray(self.selector.keep_probability(rows, max(self.pass_index, 1)), np.float64)

    def _is_full_batch(self, fetched: Fetched) -> bool:
        """Whether a batch of the loader's may be passed on as it is, where all of its rows are kept."""
        is_first = fetched.form.kind not in self._batcher.kinds
        return self._lengths is None and fetched.num_rows == self.batch_size and is_first

    @override
    def _selected(self, kind: str, piece: Piece) -> SelectedBatch | None:
        rows = self._rows_of(kind, piece)
        if rows is None:
            self._batcher.put_back(kind, piece)
            return None
        return self._weighted(piece, kind, rows)

    def _weighted(self, piece: Piece, kind: str, rows: Rows) -> SelectedBatch:
        draw = super()._selected(kind, piece)
        assert draw is not None
        return draw._replace(kind=kind, rows=rows)

    def _rows_of(self, kind: str, piece: Piece) -> Rows | None:
        """Kept rows in a batch of their own; None where nothing tells its form yet."""
        form = self._source.form(kind)
        if form is None:
            return None
        batch = form.build(list(piece.columns))
        return Rows(batch, len(piece.numbers), piece.features, integers_of(piece.columns, form))

    def _is_one_too_many(self) -> bool:
        if len(self._batcher.kinds) < MAX_KINDS:
            return False
        self._warn_once(
            f"{MAX_KINDS} kinds of rows wait for more rows of their kind, so whole batches of any further kind are "
            "passed on unfiltered. Rows are of another kind where their widths differ, or where a part of the batch "
            "is not one row an instance. Pass pad_values= for the former, and leave such a part out of the batch"
        )
        return True

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(message)
