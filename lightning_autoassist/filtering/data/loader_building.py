"""Builds the loader that a fit trains on: of the instances that are kept, or of the user's own batches.

Shapes: N data set, B batch, K batches an epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sized
from typing import Any, cast

from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

from lightning_autoassist.filtering.data.data_checks import (
    check_label_count,
    check_labels_have_indices,
    check_steps,
    check_validation_interval,
)
from lightning_autoassist.filtering.data.fetching import Fetching
from lightning_autoassist.filtering.data.filtering_run import FilteringRun
from lightning_autoassist.filtering.data.loader import CarryingLoader
from lightning_autoassist.filtering.data.plain_batches import PlainBatches
from lightning_autoassist.filtering.data.position import DataPosition
from lightning_autoassist.filtering.data.stream_loader import (
    StreamedLoader,
    StreamSizes,
    continued_stream,
    is_stream,
    prepare_stream,
    restored_or_new,
    stream_sizes,
)
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.indexed_data import (
    CandidatePasses,
    IndexedData,
    UnfilterableError,
    indexed_data,
)
from lightning_autoassist.filtering.sampling.row_stream import RowStream
from lightning_autoassist.filtering.sampling.sharding import owned
from lightning_autoassist.trainer_support.internals import prepared_loader, shards_loaders
from lightning_autoassist.trainer_support.rng import RunRng


class LoaderBuilder:
    """Builds the train loader of a fit around the user's.

    Args:
        run: The run.
        position: Where this process is in its data: loaders go on from there.
        fetching: The Trainer's side of the loaders' iterations.

    Attributes:
        unfiltered_because: Why the user's train loader was passed on as it is; None where it is filtered.
    """

    def __init__(self, run: FilteringRun, position: DataPosition, fetching: Fetching) -> None:
        self._run = run
        self._position = position
        self._fetching = fetching
        self.unfiltered_because: str | None = None

    def loader_for(self, loader: Any) -> Any:
        """The loader of K batches an epoch; the user's own, with one warning, where it cannot be filtered.

        Args:
            loader: The user's train loader; stays untouched.

        Raises:
            MisconfigurationException: If a setting of ours does not fit the user's train data; says what to do.
        """
        try:
            built = self._streamed(loader) if is_stream(loader) else self._indexed(loader)
        except UnfilterableError as reason:
            self._warn_of_passing_on(str(reason))
            return loader
        self.unfiltered_because = None
        return built

    def _warn_of_passing_on(self, reason: str) -> None:
        is_known, self.unfiltered_because = reason == self.unfiltered_because, reason
        if not is_known:
            rank_zero_warn(
                "AutoAssist passes the train data on unfiltered: every batch is trained on, and "
                f"budget={self._run.settings.budget} saves nothing. {reason[0].upper()}{reason[1:]}"
            )

    # ---- data sets

    def _indexed(self, loader: Any) -> CarryingLoader:
        """A loader of the instances that are kept, which are chosen by index; or of all batches of a loader."""
        run, tokens = self._run, self._run.settings.tokens
        data = indexed_data(loader, by_tokens=tokens is not None, flatten=run.settings.flatten)
        check_label_count(run.settings.labels, data.num_instances)
        check_steps(data, run.settings.steps_per_epoch, by_tokens=tokens is not None)
        shards = shards_loaders(run.trainer)
        if run.passes_plain_batches and data.num_candidates is not None:
            return self._unfiltered(loader, data, shards)
        candidates = CandidatePasses(data.candidates, data.num_candidates)
        own = owned(candidates, data, run.ranks, run.shared_seed, shards)
        try:
            make = self._sampler_maker(loader, data, own)
            num_batches = len(make())
        except ValueError as error:
            if tokens is not None or data.num_candidates == 0:
                raise MisconfigurationException(str(error)) from error
            raise UnfilterableError(str(error)) from error
        check_validation_interval(run.trainer, num_batches, run.settings.budget)
        return CarryingLoader(loader, num_batches, lambda: self._continued(make()), self._fetching, data.num_instances)

    def _sampler_maker(self, loader: Any, data: IndexedData, own: Any) -> Callable[[], ShrinkingBatchSampler]:
        """What makes the candidate stream anew for each epoch, of the sizes that the data have now.

        Raises:
            ValueError: If a pass is less than a batch, or what is given about tokens does not fit the data.
        """
        settings, ranks = self._run.settings, self._run.ranks
        options: Any = {
            "budget": settings.budget,
            "drop_last": data.drop_last,
            "seed": self._run.seed + ranks.rank,
            "chunk_size": settings.chunk_size,
        }
        if data.is_long:
            num_processes = 1 if own.__class__ is CandidatePasses else ranks.world_size
            options["pass_size"] = -(-data.num_instances // num_processes)
        if settings.tokens is not None:
            return settings.tokens.sampler_maker(loader.dataset, data.candidates, own, **options)
        if data.num_candidates is None:
            options["num_batches"] = settings.steps_per_epoch
        return functools.partial(ShrinkingBatchSampler, own, data.batch_size, **options)

    def _continued(self, made: ShrinkingBatchSampler) -> ShrinkingBatchSampler:
        sampler = continued_sampler(made, self._position.stream, self._position.take_restored_stream())
        if self._run.selector is not None:
            sampler.selector = self._run.selector
        self._position.stream = sampler
        return sampler

    def _unfiltered(self, loader: Any, data: IndexedData, shards: bool) -> CarryingLoader:
        """A loader of the user's own batches."""
        run = self._run
        candidates, batches = data.candidates, loader.batch_sampler
        if shards:  # as Lightning does with loaders that it knows, where the strategy is for several processes
            shuffle = not isinstance(candidates, SequentialSampler) and not run.is_overfitting
            loader = prepared_loader(run.trainer, loader, shuffle=shuffle)
            candidates, batches = loader.sampler, loader.batch_sampler
        in_order = SequentialSampler(cast(Sized, loader.dataset))
        if run.is_overfitting and not isinstance(candidates, (SequentialSampler, DistributedSampler)):
            rank_zero_warn("with overfit_batches the train loader is not shuffled, and nothing is filtered")
            batches = BatchSampler(in_order, data.batch_size, data.drop_last)
        # Lightning's own number of the epoch, which it restores itself.
        plain = PlainBatches(batches, RunRng(loader), lambda: run.trainer.current_epoch)
        carrying = CarryingLoader(loader, len(batches), lambda: plain, self._fetching, data.num_instances)
        if run.is_overfitting:  # Lightning would else take shuffling away itself, from loaders that it knows
            carrying.answer(sampler=in_order, batch_sampler=batches)
        return carrying

    # ---- streams

    def _streamed(self, loader: Any) -> Any:
        """A loader of a stream's kept rows; the user's own where its batches are repeated."""
        run, settings = self._run, self._run.settings
        if run.is_overfitting:
            return loader
        options = {} if settings.tokens is None else settings.tokens.for_rows()
        check_labels_have_indices(settings.labels)
        prepare_stream(run.selector, 1 if run.trainer is None else run.trainer.world_size)
        sizes = stream_sizes(loader, settings.steps_per_epoch, settings.budget)
        check_validation_interval(run.trainer, sizes.num_batches, settings.budget)
        return StreamedLoader(loader, sizes.num_batches, lambda: self._opened(loader, sizes, options), self._fetching)

    def _opened(self, loader: Any, sizes: StreamSizes, options: dict[str, Any]) -> RowStream:
        run, position = self._run, self._position
        restored = position.take_restored_stream()
        options = {**options, "pad_values": run.settings.pad_values, "seed": run.seed}
        stream = continued_stream(loader, sizes, position.stream, restored, **options)
        if run.selector is not None:
            stream.selector, stream.pass_whole = run.selector, run.passes_plain_batches
        position.stream = stream
        return stream


def continued_sampler(
    made: ShrinkingBatchSampler, earlier: object, restored: dict[str, Any] | None
) -> ShrinkingBatchSampler:
    """The candidate stream that goes on: of the last epoch, of a loader before this one, or of a checkpoint.

    Args:
        made: A new candidate stream, of the sizes that the data have now.
        earlier: The candidate stream so far, if there was one.
        restored: The state of one, from a checkpoint.
    """
    if isinstance(earlier, ShrinkingBatchSampler) and earlier.sizes == made.sizes:
        earlier.read_from(made.sampler)
        return earlier
    return restored_or_new(
        made, earlier, restored, f"{made.num_instances} instances a pass and batches of {made.batch_size}"
    )
