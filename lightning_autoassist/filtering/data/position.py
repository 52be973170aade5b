"""Where a process is in its training data, to be saved and restored with its random generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.filtering.checkpoint import LAYOUT, is_readable
from lightning_autoassist.filtering.data.fetching import DrawSource
from lightning_autoassist.filtering.data.filtering_run import FilteringRun
from lightning_autoassist.filtering.data.plain_batches import PlainBatches
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.row_stream import RowStream
from lightning_autoassist.trainer_support.muted_warning import MutedWarning
from lightning_autoassist.trainer_support.rng import RunRng


class DataPosition:
    """The candidate stream or the user's own batches, and the generators that both draw from.

    What a checkpoint brought waits here until the first iteration asks for it.

    Args:
        run: The run.

    Attributes:
        stream: The candidate stream; None before the first filtered batch, and where the user's own batches pass.
        lost: The parts of a checkpoint that do not fit this run, in words.
        restored_length: Batches an epoch in the run that a checkpoint is of; None where nothing tells.
    """

    def __init__(self, run: FilteringRun) -> None:
        self._run = run
        self.stream: ShrinkingBatchSampler | RowStream | None = None
        self.lost: list[str] = []
        self.restored_length: int | None = None
        self._plain: PlainBatches | None = None
        # Lightning says that the loader has no state; the data module has it.
        self._resume_warning = MutedWarning("You're resuming from a checkpoint that ended before the epoch ended")
        self._rng = RunRng()
        self._rng_before_validation: dict[str, Any] | None = None
        self._restored_stream: dict[str, Any] | None = None
        self._restored_plain: dict[str, Any] | None = None
        self._restored_rng: dict[str, Any] | None = None

    def end(self) -> None:
        """The fit ends."""
        self._resume_warning.end()

    def restart(self) -> None:
        """Forget the candidate stream, and what a checkpoint brought."""
        self.stream = self._restored_stream = self._restored_plain = self._restored_rng = None

    def begin(self, source: DrawSource, loader: Any) -> None:
        """An iteration of the Trainer's begins.

        Args:
            source: What its batches are drawn from.
            loader: The user's, whose generators are part of the state.
        """
        self._rng = RunRng(loader)
        self._plain = source if isinstance(source, PlainBatches) else None
        if self._plain is not None and self._restored_plain is not None:
            self._plain.load_state_dict(self._restored_plain)
        self._restored_plain = None

    def take_restored_stream(self) -> dict[str, Any] | None:
        """The candidate stream's state that a checkpoint brought; None when it was taken already."""
        state, self._restored_stream = self._restored_stream, None
        return state

    def restore_rng(self) -> None:
        """Set the generators to the states of a checkpoint, the first time that this is called."""
        state, self._restored_rng = self._restored_rng, None
        if state is not None:
            self._rng.load_state_dict(state)

    @contextmanager
    def rng_given_back(self) -> Iterator[None]:
        """What is drawn inside is given back, unless the user's own batches pass, as plain Lightning's do.

        A checkpoint that is saved inside holds the generators as they are afterwards.
        """
        if self.stream is None or self._plain is not None:
            yield
            return
        self._rng_before_validation = self._rng.state_dict()
        try:
            yield
        finally:
            before, self._rng_before_validation = self._rng_before_validation, None
            self._rng.load_state_dict(before)

    def state_dict(self) -> dict[str, Any]:
        """The places of all processes in their data; empty before the first batch. All processes must call this."""
        own = self._own_state()
        if not own:
            return {}
        length = self._run.trainer.num_training_batches
        return {
            "layout": LAYOUT,
            "num_batches": int(length) if length < float("inf") else None,
            "ranks": self._run.ranks.gather(own),
        }

    def _own_state(self) -> dict[str, Any]:
        if self._plain is not None:
            own: dict[str, Any] = {"plain": self._plain.state_dict()}
        elif self.stream is not None:
            own = {"sampler": self.stream.state_dict()}
        else:  # nothing was drawn yet of what a checkpoint brought
            restored = {"sampler": self._restored_stream, "plain": self._restored_plain, "rng": self._restored_rng}
            return {name: part for name, part in restored.items() if part is not None}
        before = self._rng_before_validation
        return {**own, "rng": self._rng.state_dict() if before is None else before}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep this process's part of :meth:`state_dict` until its first iteration begins."""
        self.stream = self._plain = None
        self.lost = []
        self.restored_length = state_dict.get("num_batches")
        own = self._part_of(state_dict)
        is_plain = self._run.selector is not None and self._run.passes_plain_batches
        self._restored_stream = None if is_plain else own.get("sampler")
        self._restored_plain = own.get("plain") if is_plain else None
        if own and self._restored_stream is self._restored_plain is None:
            self.lost.append(f"the place in the data, of a run that was {'' if is_plain else 'not '}filtered")
        self._restored_rng = own.get("rng")
        if own and not self.lost:
            self._resume_warning.begin()

    def _part_of(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """This process's part of a checkpoint; empty where there is none that fits."""
        ranks = self._run.ranks
        parts = state_dict["ranks"] if "ranks" in state_dict and is_readable(state_dict, warns=False) else []
        own: dict[str, Any] = parts[ranks.rank] if len(parts) == ranks.world_size else {}
        if parts and not own:
            rank_zero_warn(
                f"the checkpoint is of {len(parts)} processes, and this run has {ranks.world_size}: the data are "
                "shared out anew, and filtering begins with a pass that keeps everything"
            )
        return own
