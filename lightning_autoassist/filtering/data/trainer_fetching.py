"""The Trainer's side of an iteration over a train loader."""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import override

from lightning_autoassist.filtering.data.fetching import DrawSource, Fetching
from lightning_autoassist.filtering.data.filtering_run import FilteringRun
from lightning_autoassist.filtering.data.loader import BatchIterator, CarryingLoader, FetchedLoader
from lightning_autoassist.filtering.data.position import DataPosition
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.trainer_support.internals import fetching_iterators


class TrainerFetching(Fetching):
    """Begins the Trainer's iterations, and takes note of what was trained on.

    Args:
        run: The run.
        position: Where this process is in its data.

    Attributes:
        source: What the Trainer's batches are drawn from; None before its first iteration.
    """

    def __init__(self, run: FilteringRun, position: DataPosition) -> None:
        self._run = run
        self._position = position
        self.source: DrawSource | None = None

    def start(self) -> None:
        """Begin the Trainer's first iteration now, as plain Lightning does, not at its first batch.

        Workers start early, and the global RNG is drawn from in the same order as without AutoAssist.
        """
        for iterator in fetching_iterators(self._run.trainer):
            if isinstance(iterator, BatchIterator):
                iterator.start()

    def mark_consumed(self, draw: SelectedBatch) -> None:
        """The model was trained on ``draw``."""
        assert self.source is not None
        self.source.mark_consumed(draw.drawn or draw)

    @override
    def is_fetching(self, iterator: object) -> bool:
        return any(iterator is own for own in fetching_iterators(self._run.trainer))

    @override
    def begin(self, loader: FetchedLoader) -> Iterator[SelectedBatch]:
        selector, trainer = self._run.selector, self._run.trainer
        if selector is not None:
            selector.jobs.wait_all()  # workers are forked next, and a thread had better be at rest then
            if isinstance(loader, CarryingLoader):
                selector.begin(loader.num_instances, self._run.label_source(loader.plain.dataset))
        self.source = loader.draw_source()
        self._position.begin(self.source, loader.plain)
        # Where Lightning resumes in the middle of an epoch, it counts the epoch's earlier batches as ready.
        num_done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if not num_done and not loader.keeps_iterator:
            self._position.restore_rng()
        return self.source.draws(trainer.num_training_batches - num_done)

    @property
    @override
    def needs_order(self) -> bool:
        return self._run.selector is not None and not self._run.passes_plain_batches

    @override
    def has_begun(self) -> None:
        # Where the interrupted run had its iterator already, making ours has drawn a seed from the global RNG.
        self._position.restore_rng()
