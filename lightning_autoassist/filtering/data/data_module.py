"""The data module that puts the shrinking sampler between the user's data and the Trainer."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from types import MethodType
from typing import Any, cast

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.utils.data import BatchSampler, DistributedSampler, SequentialSampler

from lightning_autoassist.filtering.checkpoint import LAYOUT, is_readable
from lightning_autoassist.filtering.data.carried import Carried, convert_carried
from lightning_autoassist.filtering.data.command_line import TrainData, made
from lightning_autoassist.filtering.data.data_checks import (
    check_data,
    check_is_no_wrapper,
    check_lengths,
    check_loaders,
    check_pad_values,
)
from lightning_autoassist.filtering.data.fetching import DrawSource
from lightning_autoassist.filtering.data.loader import BatchIterator, CarryingLoader, FetchedLoader
from lightning_autoassist.filtering.data.plain_batches import PlainBatches
from lightning_autoassist.filtering.data.stream_loader import (
    StreamedLoader,
    continued_stream,
    is_stream,
    prepare_stream,
    stream_sizes,
)
from lightning_autoassist.filtering.reporting.loggers import group_runs
from lightning_autoassist.filtering.sampling.candidates import Draw
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler, check_budget
from lightning_autoassist.filtering.sampling.indexed_data import (
    CandidatePasses,
    IndexedData,
    UnfilterableError,
    indexed_data,
)
from lightning_autoassist.filtering.sampling.row_stream import RowStream
from lightning_autoassist.filtering.sampling.rows import PadValues
from lightning_autoassist.filtering.sampling.sharding import owned
from lightning_autoassist.filtering.sampling.token_batches import Lengths, token_budget
from lightning_autoassist.filtering.selection import Selection
from lightning_autoassist.trainer_support.arguments import check_flag, check_whole
from lightning_autoassist.trainer_support.internals import (
    LOGS_HYPERPARAMETERS,
    fetching_iterators,
    prepared_loader,
    shards_loaders,
)
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.rng import RunRng
from lightning_autoassist.trainer_support.variants import (
    DATA_MODULE_TYPES,
    MODULE_TYPES,
    DataModuleBase,
    data_module_type,
    overrides,
)

HOW_TO_USE = """
    trainer = Trainer(callbacks=[AutoAssistCallback()], ...)
    trainer.fit(model, datamodule=AutoAssistDataModule(data, budget=0.6))"""

# Hooks that Lightning runs only where they are overridden: forwarded only where the user wrote them.
_FORWARDED_LOADERS = ("val_dataloader", "test_dataloader", "predict_dataloader")
_FORWARDED_HOOKS = (
    *_FORWARDED_LOADERS,
    "prepare_data",
    "setup",
    "teardown",
    "on_exception",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
_FORWARDED_SETTINGS = (
    "prepare_data_per_node",
    "allow_zero_length_dataloader_with_multiple_devices",
    LOGS_HYPERPARAMETERS,
)


class AutoAssistDataModule(DataModuleBase):
    """Wraps the user's data so that the Trainer gets the instances that are worth training on.

    The user's data module, loaders or module stay as they are, and everything else of them (validation, hooks,
    attributes, state) is passed on. Every epoch has K = ceil(budget·N / B) batches of exactly B instances.

    Needs an :class:`~lightning_autoassist.AutoAssistCallback` in the Trainer. Outside of a Trainer's fit,
    ``train_dataloader()`` is the user's own loader with all of its batches. Within a fit, data that cannot be filtered
    are passed on as they are, with one warning that says why.

    Args:
        data: A ``LightningDataModule``, a train ``DataLoader`` or another iterable of batches, or a
            ``LightningModule`` with loaders of its own.
        budget: Boss updates to spend, as a share of an unfiltered run's, in (0, 1].
        seed: Decides, with the scores, which instances are kept; where None, torch's initial seed (which
            ``seed_everything`` sets) is used.
        flatten: Take candidates one by one, in its order, from a batch sampler of the user's own.
        max_tokens: Most tokens in a batch, padding included: kept instances of similar length then share batches of any
            number, see :class:`~lightning_autoassist.TokenBatchSampler`, K is ceil(budget·tokens / max_tokens), and the
            loader's own batches only give the order of the candidates. A function that joins instances of different
            lengths (``collate_fn``) is the loader's own.
        lengths: Of the instances, in tokens: shape ``(N,)``, or ``(N, C)`` for several that are padded apart, such as
            source and target; or a function that gets an instance. None: the data set's attribute ``lengths``, else
            each instance's longest sequence, by one reading of the data set before training.
        steps_per_epoch: K, for a stream (an ``IterableDataset``, or any iterable of batches) or a loader whose sampler
            has no length; needed where there is no length to take the budget of.
        pad_values: What rows of a stream are padded with where their widths differ, see
            ``RowSplitter``; without, only rows of the same widths share a batch.
        val_dataloaders: Loaders beside a train ``DataLoader``.
        test_dataloaders: Likewise.
        predict_dataloaders: Likewise.

    Raises:
        ValueError: If ``budget`` lies outside (0, 1], ``steps_per_epoch`` or ``max_tokens`` is not positive, or
            ``lengths`` are given without ``max_tokens``.
        TypeError: If ``data`` is something else, or loaders are given beside a module.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> loader = DataLoader(TensorDataset(torch.arange(100.0)), batch_size=10, shuffle=True)
        >>> data = AutoAssistDataModule(loader, budget=0.6)
        >>> len(data.train_dataloader())  # outside of a fit: the user's own
        10
        >>> from lightning_autoassist.filtering.sampling.candidates import batches_per_epoch
        >>> batches_per_epoch(100, 10, budget=0.6)  # within a fit
        6
    """

    def __init__(
        self,
        data: TrainData,
        *,
        budget: float = 0.6,
        seed: int | None = None,
        flatten: bool = False,
        max_tokens: int | None = None,
        lengths: Lengths | None = None,
        steps_per_epoch: int | None = None,
        pad_values: PadValues = None,
        val_dataloaders: Any = None,
        test_dataloaders: Any = None,
        predict_dataloaders: Any = None,
    ) -> None:
        data = made(data)
        budget = check_budget(budget)
        seed = None if seed is None else check_whole("seed", seed, "[0, inf)", "None takes that of seed_everything")
        flatten = check_flag("flatten", flatten)
        if steps_per_epoch is not None:
            steps_per_epoch = check_whole("steps_per_epoch", steps_per_epoch, "[1, inf)", "write the K that you want")
        check_lengths(lengths)
        check_pad_values(pad_values)
        check_is_no_wrapper(data, AutoAssistDataModule)
        # Set first: the attributes below are looked up on it while Lightning's own initialisers run.
        self.__dict__.update(wrapped=data, _trainer=None, _users_hooks=set())
        super().__init__()
        self.budget = budget
        self._seed = seed
        self._flatten = flatten
        self._tokens = token_budget(max_tokens, lengths)
        self._steps_per_epoch = steps_per_epoch
        self._pad_values = pad_values
        self.current_draw: Draw | None = None
        self._selection: Selection | None = None
        self._sampler: ShrinkingBatchSampler | RowStream | None = None
        self._source: DrawSource | None = None
        self._ranks = Ranks()
        self._shared_seed = 0
        self._plain: PlainBatches | None = None
        self._rng = RunRng()
        self._rng_before_validation: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None
        self._restored_plain: dict[str, Any] | None = None
        self._restored_rng: dict[str, Any] | None = None
        self._undo_convert: Callable[[], None] | None = None
        # Why the user's own train loader is passed on as it is; None where it is filtered.
        self.unfiltered_because: str | None = None
        self.restored_length: int | None = None  # batches an epoch in the run that a checkpoint is of
        self.lost: list[str] = []  # what of a checkpoint does not fit this run, in words

        loaders = {"val": val_dataloaders, "test": test_dataloaders, "predict": predict_dataloaders}
        loaders = {stage: loader for stage, loader in loaders.items() if loader is not None}
        if isinstance(data, DATA_MODULE_TYPES):
            self._forward(_FORWARDED_HOOKS)
            for setting in _FORWARDED_SETTINGS:
                setattr(self, setting, getattr(data, setting))
        elif isinstance(data, MODULE_TYPES):
            self._forward(_FORWARDED_LOADERS)
        else:
            check_data(data)
        if loaders and isinstance(data, (*DATA_MODULE_TYPES, *MODULE_TYPES)):
            raise TypeError(
                f"{'_dataloaders=, '.join(loaders)}_dataloaders= go beside a train DataLoader; "
                f"{type(data).__name__} brings its own"
            )
        for stage, loader in loaders.items():
            check_loaders(stage, loader)
            self._use_hook(f"{stage}_dataloader", functools.partial(_given, loader))
        self._passes_on = isinstance(data, DATA_MODULE_TYPES)

    # Modules ask their data module for num_classes, tuners set its batch_size: ours passes both on to the user's.
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self.__dict__.get("_passes_on"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.wrapped, name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_ours = name in self.__dict__ or hasattr(type(self), name) or not self.__dict__.get("_passes_on")
        if not is_ours and hasattr(self.wrapped, name):
            setattr(self.wrapped, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def trainer(self) -> Any:
        return self.__dict__["_trainer"]

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self.__dict__["_trainer"] = trainer
        if isinstance(self.wrapped, DATA_MODULE_TYPES):
            self.wrapped.trainer = trainer
        if trainer is not None:
            self._complete_hooks(trainer)
            group_runs(trainer, self.budget, self.wrapped)

    @property
    def filter_settings(self) -> dict[str, Any]:
        """What this data module was given beside the data."""
        return {
            "budget": self.budget,
            "seed": self._seed,
            "flatten": self._flatten,
            "steps_per_epoch": self._steps_per_epoch,
            "pad_values": self._pad_values,
            **({"max_tokens": None, "lengths": None} if self._tokens is None else self._tokens.settings),
        }

    # Lightning logs and saves the hyperparameters that it finds under these names.
    @property
    def hparams(self) -> Any:
        return self._hparams_owner().hparams

    @property
    def hparams_initial(self) -> Any:
        return self._hparams_owner().hparams_initial

    def select_by(self, selection: Selection | None, ranks: Ranks | None = None, *, restart: bool = False) -> None:
        """Connect the callback (None: disconnect it), before training starts.

        Args:
            selection: How to select.
            ranks: The processes that train; None leaves them as they were.
            restart: Begin a new candidate stream, with a first pass.
        """
        self._selection = selection
        self._source = None
        if self._undo_convert is not None:
            self._undo_convert()
        self._undo_convert = None
        if selection is not None and self.trainer is not None:
            self._undo_convert = convert_carried(self.trainer.precision_plugin)
        if ranks is not None:
            self._ranks, self._shared_seed = ranks, ranks.shared(self._seed_in_force())
        if selection is None and isinstance(self._sampler, RowStream):
            self._sampler.close()
        if restart:
            self._sampler = self._restored = self._restored_plain = self._restored_rng = None

    def weigh_by(self, weights: str) -> None:
        """Weight the instances otherwise from now on: ``"none"``, ``"sum"`` or ``"mean"``."""
        if self._selection is not None:
            self._selection = replace(self._selection, weights=weights)
        if self._sampler is not None:
            self._sampler.weights = weights

    @property
    def candidate_stream(self) -> ShrinkingBatchSampler | RowStream | None:
        """The candidate stream; None before the first filtered batch, and where the user's own batches pass."""
        return self._sampler

    def start_fetching(self) -> None:
        """Begin the Trainer's first iteration now, as plain Lightning does, not at its first batch.

        Workers start early, and the global RNG is drawn from in the same order as without AutoAssist.
        """
        for iterator in fetching_iterators(self.trainer):
            if isinstance(iterator, BatchIterator):
                iterator.start()

    def confirm_draw(self) -> Draw | None:
        """The Boss was trained on the current batch: its draw, or None where it was not drawn here."""
        draw, self.current_draw = self.current_draw, None
        if draw is not None:
            assert self._source is not None
            self._source.confirm(draw.drawn or draw)
        return draw

    def is_fetching(self, iterator: object) -> bool:
        return any(iterator is own for own in fetching_iterators(self.trainer))

    def begin(self, loader: FetchedLoader) -> Iterator[Draw]:
        if self._selection is not None:
            self._selection.jobs.settle()  # workers are forked next, and a thread had better be at rest then
        if self._selection is not None and isinstance(loader, CarryingLoader):
            self._selection.on_data(loader.num_instances)
        self._source = loader.draw_source()
        self._rng = RunRng(loader.plain)
        self._plain = self._source if isinstance(self._source, PlainBatches) else None
        if self._plain is not None and self._restored_plain is not None:
            self._plain.load_state_dict(self._restored_plain)
        self._restored_plain = None
        # Where Lightning resumes in the middle of an epoch, it counts the epoch's earlier batches as ready.
        num_done = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if not num_done and not loader.keeps_iterator:
            self._restore_rng()
        return self._source.draws(self.trainer.num_training_batches - num_done)

    @property
    def needs_order(self) -> bool:
        return self._selection is not None and not self._passes_plain_batches()

    def has_begun(self) -> None:
        # Where the interrupted run had its iterator already, making ours has drawn a seed from the global RNG.
        self._restore_rng()

    def train_dataloader(self) -> Any:
        """The loader of K batches an epoch; the user's own outside of a fit, and where it cannot be filtered.

        Raises:
            MisconfigurationException: If a setting of ours does not fit the user's train data; says what to do.
        """
        if self._selection is None and self._is_fitting():
            raise MisconfigurationException(
                f"AutoAssistDataModule needs an AutoAssistCallback in the Trainer. Write:{HOW_TO_USE}"
            )
        brings_loader = isinstance(self.wrapped, (*DATA_MODULE_TYPES, *MODULE_TYPES))
        loader = self.wrapped.train_dataloader() if brings_loader else self.wrapped
        if not self._is_fitting():
            return loader
        try:
            own = self._streamed(loader) if is_stream(loader) else self._indexed(loader)
        except UnfilterableError as reason:
            self._warn_of_passing_on(str(reason))
            return loader
        self.unfiltered_because = None
        return own

    def _indexed(self, loader: Any) -> Any:
        """A loader of the instances that are kept, which are chosen by index; or of all batches of a loader."""
        data = indexed_data(loader, by_tokens=self._tokens is not None, flatten=self._flatten)
        self._check_steps(data)
        shards = self._ranks.world_size > 1 and shards_loaders(self.trainer)
        if self._passes_plain_batches() and data.num_candidates is not None:
            return self._unfiltered(loader, data, shards)
        candidates = CandidatePasses(data.candidates, data.num_candidates)
        own = owned(candidates, data, self._ranks, self._shared_seed, shards)
        try:
            stream = self._stream_maker(loader, data, own)
            num_batches = len(stream())
        except ValueError as error:
            if self._tokens is not None or data.num_candidates == 0:
                raise MisconfigurationException(str(error)) from error
            raise UnfilterableError(str(error)) from error
        self._check_validation_interval(num_batches)
        return CarryingLoader(loader, num_batches, lambda: self._continued(stream()), self, data.num_instances)

    def _unfiltered(self, loader: Any, data: IndexedData, shards: bool) -> CarryingLoader:
        """A loader of the user's own batches."""
        candidates, batches = data.candidates, loader.batch_sampler
        if shards:  # as Lightning does with loaders that it knows
            shuffle = not isinstance(candidates, SequentialSampler) and not self._is_overfitting()
            loader = prepared_loader(self.trainer, loader, shuffle=shuffle)
            candidates, batches = loader.sampler, loader.batch_sampler
        in_order = SequentialSampler(cast(Sized, loader.dataset))
        if self._is_overfitting() and not isinstance(candidates, (SequentialSampler, DistributedSampler)):
            rank_zero_warn("overfit_batches: the train loader is not shuffled, and nothing is filtered")
            batches = BatchSampler(in_order, data.batch_size, data.drop_last)
        # Lightning's own number of the epoch, which it restores itself.
        plain = PlainBatches(batches, RunRng(loader), lambda: self.trainer.current_epoch)
        carrying = CarryingLoader(loader, len(batches), lambda: plain, self, data.num_instances)
        if self._is_overfitting():  # Lightning would else take shuffling away itself, from loaders that it knows
            carrying.answer(sampler=in_order, batch_sampler=batches)
        return carrying

    def _stream_maker(self, loader: Any, data: IndexedData, own: Any) -> Callable[[], ShrinkingBatchSampler]:
        """What makes the candidate stream anew for each epoch, of the sizes that the data have now.

        Raises:
            ValueError: If a pass is less than a batch, or what is given about tokens does not fit the data.
        """
        options: Any = {
            "budget": self.budget,
            "drop_last": data.drop_last,
            "seed": self._seed_in_force() + self._ranks.rank,
        }
        if data.is_long:
            num_processes = 1 if own.__class__ is CandidatePasses else self._ranks.world_size
            options["pass_size"] = -(-data.num_instances // num_processes)
        if self._tokens is not None:
            return self._tokens.sampler_maker(loader.dataset, data.candidates, own, **options)
        if data.num_candidates is None:
            options["num_batches"] = self._steps_per_epoch
        return functools.partial(ShrinkingBatchSampler, own, data.batch_size, **options)

    def _check_steps(self, data: IndexedData) -> None:
        """Whether ``steps_per_epoch`` is given where it is needed, and nowhere else."""
        if data.num_candidates is not None:
            if self._steps_per_epoch is not None:
                raise MisconfigurationException(
                    f"steps_per_epoch={self._steps_per_epoch} is for streams; this data set has a length, of which "
                    "budget= is the share"
                )
        elif self._steps_per_epoch is None or self._tokens is not None:
            name = type(data.candidates).__name__
            raise UnfilterableError(
                f"the train loader's sampler ({name}) has no length, so that nothing tells how many batches an epoch "
                f"has; define {name}.__len__, or write AutoAssistDataModule(data, steps_per_epoch=...)"
                if self._tokens is None
                else f"max_tokens= needs a sampler with a length; define {name}.__len__"
            )

    def _warn_of_passing_on(self, reason: str) -> None:
        is_known, self.unfiltered_because = reason == self.unfiltered_because, reason
        if not is_known:
            rank_zero_warn(
                f"AutoAssist passes the train data on unfiltered: every batch is trained on, and budget={self.budget} "
                f"saves nothing. {reason[0].upper()}{reason[1:]}"
            )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, Carried):
            batch, self.current_draw = batch.batch, batch.draw
        # Then what Lightning would have called, had this class not overridden the hook.
        if isinstance(self.wrapped, DATA_MODULE_TYPES) and overrides(self.wrapped, "on_before_batch_transfer"):
            return self.wrapped.on_before_batch_transfer(batch, dataloader_idx)
        module = None if self.trainer is None else self.trainer.lightning_module
        return batch if module is None else module.on_before_batch_transfer(batch, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if isinstance(self.wrapped, DATA_MODULE_TYPES):
            state["data"] = self.wrapped.state_dict()
        own = self._own_state()
        if own:
            state["layout"] = LAYOUT
            length = self.trainer.num_training_batches
            state["num_batches"] = int(length) if length < float("inf") else None
            state["ranks"] = self._ranks.gather(own)  # all processes must get here, as for all of a checkpoint
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "data" in state_dict and isinstance(self.wrapped, DATA_MODULE_TYPES):
            self.wrapped.load_state_dict(state_dict["data"])
        # Lightning restores a data module for test, validate and predict, too, which are no continued training.
        if self.trainer is None or self.trainer.state.fn in (None, "fit"):
            self._load_own_state(state_dict)

    def load_plain_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the user's data module from a checkpoint that was written without this one around it."""
        name = type(self.wrapped).__qualname__
        if isinstance(self.wrapped, DATA_MODULE_TYPES) and name in checkpoint:
            self.wrapped.load_state_dict(checkpoint[name])

    def _own_state(self) -> dict[str, Any]:
        """This process's place in its data; nothing before the first batch."""
        if self._plain is not None:
            own: dict[str, Any] = {"plain": self._plain.state_dict()}
        elif self._sampler is not None:
            own = {"sampler": self._sampler.state_dict()}
        else:  # nothing was drawn yet of what a checkpoint brought
            restored = {"sampler": self._restored, "plain": self._restored_plain, "rng": self._restored_rng}
            return {name: part for name, part in restored.items() if part is not None}
        before = self._rng_before_validation
        return {**own, "rng": self._rng.state_dict() if before is None else before}

    def _load_own_state(self, state_dict: dict[str, Any]) -> None:
        self._sampler = self._plain = None
        self.lost = []
        self.restored_length = state_dict.get("num_batches")
        ranks = state_dict["ranks"] if "ranks" in state_dict and is_readable(state_dict, warns=False) else []
        own = ranks[self._ranks.rank] if len(ranks) == self._ranks.world_size else {}
        if ranks and not own:
            rank_zero_warn(
                f"the checkpoint is of {len(ranks)} processes, this run has {self._ranks.world_size}: the data are "
                "shared out anew, beginning with a pass that keeps everything"
            )
        is_plain = self._selection is not None and self._passes_plain_batches()
        self._restored = None if is_plain else own.get("sampler")
        self._restored_plain = own.get("plain") if is_plain else None
        if own and self._restored is self._restored_plain is None:
            self.lost.append(f"the place in the data, of a run that was {'' if is_plain else 'not '}filtered")
        self._restored_rng = own.get("rng")
        if own and not self.lost:
            # Lightning sees a loader without state and would say so; the stream's is here.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")

    @contextmanager
    def rng_given_back(self) -> Iterator[None]:
        """What is drawn inside is given back, unless the user's own batches pass, as plain Lightning's do.

        A checkpoint that is saved inside holds the generators as they are afterwards.
        """
        if self._sampler is None or self._plain is not None:
            yield
            return
        self._rng_before_validation = self._rng.state_dict()
        try:
            yield
        finally:
            before, self._rng_before_validation = self._rng_before_validation, None
            self._rng.load_state_dict(before)

    def _restore_rng(self) -> None:
        state, self._restored_rng = self._restored_rng, None
        if state is not None:
            self._rng.load_state_dict(state)

    def _forward(self, hooks: tuple[str, ...]) -> None:
        for hook in hooks:
            if overrides(self.wrapped, hook):
                self._use_hook(hook, getattr(self.wrapped, hook))

    def _use_hook(self, hook: str, function: Any) -> None:
        setattr(self, hook, function)
        self._users_hooks.add(hook)

    def _complete_hooks(self, trainer: Any) -> None:
        """Let every hook that the user's data do not have be what plain Lightning would use in its place."""
        base = data_module_type(trainer)  # it takes the hooks of another flavour's base class for overridden ones
        # Beside a train loader, plain Lightning asks the module for the other loaders.
        module = None if self._passes_on or isinstance(self.wrapped, MODULE_TYPES) else trainer.lightning_module
        for hook in _FORWARDED_HOOKS:
            if hook in self._users_hooks:
                continue
            if hook in _FORWARDED_LOADERS and module is not None and overrides(module, hook):
                setattr(self, hook, getattr(module, hook))
            else:
                setattr(self, hook, MethodType(getattr(base, hook), self))

    def _hparams_owner(self) -> Any:
        return self.wrapped if isinstance(self.wrapped, DATA_MODULE_TYPES) else super()

    def _continued(self, stream: ShrinkingBatchSampler) -> ShrinkingBatchSampler:
        """``stream``, or the one that it continues: of the last epoch, of a loader before this one, of a checkpoint."""
        earlier, restored = self._sampler, self._restored
        self._restored = None
        if isinstance(earlier, ShrinkingBatchSampler) and earlier.sizes == stream.sizes:
            earlier.read_from(stream.sampler)
            stream = earlier
        elif restored is not None and stream.can_continue(restored):
            stream.load_state_dict(restored)
        elif earlier is not None or restored is not None:
            rank_zero_warn(
                f"the train loader has changed, to {stream.num_instances} instances a pass and batches of "
                f"{stream.batch_size}: filtering begins anew with a first pass that keeps everything"
            )
        if self._selection is not None:
            self._selection.apply_to(stream)
        self._sampler = stream
        return stream

    def _streamed(self, loader: Any) -> Any:
        """A loader of a stream's kept rows; the user's own where its batches are repeated."""
        if self._is_overfitting():
            return loader
        if self._tokens is not None:
            raise MisconfigurationException(
                f"max_tokens={self._tokens.max_tokens} is for data sets whose instances have indices; batches of a "
                "stream have as many rows as its own"
            )
        prepare_stream(self._selection, 1 if self.trainer is None else self.trainer.world_size)
        sizes = stream_sizes(loader, self._steps_per_epoch, self.budget)
        self._check_validation_interval(sizes.num_batches)

        def stream() -> RowStream:
            opened = continued_stream(
                loader, sizes, self._sampler, self._restored, self._pad_values, self._seed_in_force()
            )
            self._restored = None
            if self._selection is not None:
                self._selection.apply_to(opened, pass_whole=self._passes_plain_batches())
            self._sampler = opened
            return opened

        return StreamedLoader(loader, sizes.num_batches, stream, self)

    def _seed_in_force(self) -> int:
        # torch.initial_seed() reads the global seed and leaves the global RNG where it is.
        return torch.initial_seed() if self._seed is None else self._seed

    def _passes_plain_batches(self) -> bool:
        selection = self._selection
        is_plain = selection is not None and selection.keeps_everything and self.budget == 1 and self._tokens is None
        return self._is_overfitting() or is_plain

    def _is_fitting(self) -> bool:
        state = None if self.trainer is None else self.trainer.state
        return state is not None and state.fn == "fit" and state.status == "running"

    def _is_overfitting(self) -> bool:
        return self.trainer is not None and bool(self.trainer.overfit_batches)

    def _check_validation_interval(self, num_batches: int) -> None:
        trainer = self.trainer
        if trainer is None or trainer.check_val_every_n_epoch is None or not trainer.limit_val_batches:
            return
        if isinstance(trainer.val_check_interval, int) and trainer.val_check_interval > num_batches:
            raise MisconfigurationException(
                f"val_check_interval={trainer.val_check_interval} is more than the {num_batches} batches an epoch has "
                f"at budget={self.budget}; use val_check_interval={num_batches} or less, or 1.0 for the epoch's end"
            )


def _given(value: Any) -> Any:
    return value


def _describe(data: Any) -> str:
    return f"a {type(data).__name__}"
