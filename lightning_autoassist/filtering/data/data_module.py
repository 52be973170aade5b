"""The data module that puts the shrinking sampler between the user's data and the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

from lightning_fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override

from lightning_autoassist.filtering.data.carried import TrackedBatch, convert_carried
from lightning_autoassist.filtering.data.command_line import TrainData, made
from lightning_autoassist.filtering.data.data_checks import check_is_no_wrapper
from lightning_autoassist.filtering.data.filtering_run import FilteringRun
from lightning_autoassist.filtering.data.forwarding import ForwardingDataModule
from lightning_autoassist.filtering.data.known_labels import Labels
from lightning_autoassist.filtering.data.loader_building import LoaderBuilder
from lightning_autoassist.filtering.data.position import DataPosition
from lightning_autoassist.filtering.data.refusal import Refusal
from lightning_autoassist.filtering.data.settings import DataSettings
from lightning_autoassist.filtering.data.trainer_fetching import TrainerFetching
from lightning_autoassist.filtering.reporting.wandb_log import group_runs
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.filtering.sampling.index_batches import ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.row_stream import RowStream
from lightning_autoassist.filtering.sampling.rows import PadValues
from lightning_autoassist.filtering.sampling.selection import Selector
from lightning_autoassist.filtering.sampling.token_budget import Lengths
from lightning_autoassist.trainer_support.process_group import Ranks
from lightning_autoassist.trainer_support.variants import Trainer

OnBatch: TypeAlias = "Callable[[SelectedBatch | None], None]"

HOW_TO_USE = """
    trainer = Trainer(callbacks=[AutoAssistCallback()], ...)
    trainer.fit(model, datamodule=AutoAssistDataModule(data, budget=0.6))"""


class AutoAssistDataModule(ForwardingDataModule, takes_settings=True):
    """Wraps the user's data so that the Trainer gets the instances that are worth training on.

    The user's data module, loaders or module stay as they are, and everything else of them (validation, hooks,
    attributes, state) is passed on. Every epoch has K = ceil(budget·N / B) batches of exactly B instances.

    Needs an :class:`~lightning_autoassist.AutoAssistCallback` in the Trainer. Outside of a Trainer's fit,
    ``train_dataloader()`` is the user's own loader with all of its batches. Within a fit, data that cannot be filtered
    are passed on as they are, with one warning that says why.

    Args:
        data: A ``LightningDataModule``, a train ``DataLoader`` or another iterable of batches, or a
            ``LightningModule`` with loaders of its own.
        budget: optimizer steps to spend, as a share of an unfiltered run's, in (0, 1].
        seed: Decides, with the scores, which instances are kept; where None, torch's initial seed (which
            ``seed_everything`` sets) is used.
        flatten: Take candidates one by one, in its order, from a batch sampler of the user's own.
        max_tokens: Most tokens in a batch, padding included: kept instances of similar length then share batches of any
            number, see :class:`~lightning_autoassist.TokenBatchSampler`, K is ceil(budget·tokens / max_tokens) (for a
            stream ceil(budget·its batches), as without), and the loader's own batches only give the order of the
            candidates. A function that joins instances of different lengths (``collate_fn``) is the loader's own.
        lengths: Of the instances, in tokens: shape ``(N,)``, or ``(N, C)`` for several that are padded apart, such as
            source and target; or a function that gets an instance. None: the data set's attribute ``lengths``, else
            each instance's longest sequence, by one reading of the data set before training. For a stream: a function
            that gets a batch of the loader and returns the lengths of its rows, or None for the longest sequence of
            each row, without its padding where ``pad_values`` tell it.
        steps_per_epoch: K, for a stream (an ``IterableDataset``, or any iterable of batches) or a loader whose sampler
            has no length; needed where there is no length to take the budget of.
        pad_values: What rows of a stream are padded with where their widths differ, see
            ``RowSplitter``; without, only rows of the same widths share a batch.
        labels: The class of each instance, shape ``(N,)``, whole numbers; -1 where it is not known. None: where a
            policy wants to know them before the model has seen an instance, those in the data set (``targets``,
            ``labels``, a tensor of a ``TensorDataset``, looked for through ``Subset`` and ``ConcatDataset``), and else
            the integer targets of the loss. Groups to be balanced need not be what the loss compares with.
        chunk_size: Candidates that are scored at once; None: as many as the next four batches are likely to need. A
            stream's are scored a batch at a time.
        val_dataloaders: Loaders for validation, beside a train ``DataLoader``.
        test_dataloaders: Loaders for ``trainer.test``, beside a train ``DataLoader``.
        predict_dataloaders: Loaders for ``trainer.predict``, beside a train ``DataLoader``.

    Raises:
        ValueError: If ``budget`` lies outside (0, 1], ``steps_per_epoch`` or ``max_tokens`` is not positive, or
            ``lengths`` are given without ``max_tokens``.
        TypeError: If ``data`` is something else, or loaders are given beside a module.

    Example:
        >>> import torch
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
        labels: Labels | None = None,
        chunk_size: int | None = None,
        val_dataloaders: Any = None,
        test_dataloaders: Any = None,
        predict_dataloaders: Any = None,
    ) -> None:
        data = made(data)
        settings = DataSettings.checked(
            budget, seed, flatten, max_tokens, lengths, steps_per_epoch, pad_values, labels, chunk_size
        )
        check_is_no_wrapper(data, AutoAssistDataModule)
        self._run = FilteringRun(settings)
        self._position = DataPosition(self._run)
        self._fetching = TrainerFetching(self._run, self._position)
        self._builder = LoaderBuilder(self._run, self._position, self._fetching)
        self._undo_convert: Callable[[], None] | None = None
        self._on_batch: OnBatch = _nothing
        super().__init__(data, {"val": val_dataloaders, "test": test_dataloaders, "predict": predict_dataloaders})

    # ---- what is asked of the user's data

    @property
    def budget(self) -> float:
        """Share of an unfiltered run's batches, in (0, 1]."""
        return self._run.settings.budget

    @budget.setter
    def budget(self, budget: float) -> None:
        self._run.settings = replace(self._run.settings, budget=budget)

    @property
    def filter_settings(self) -> dict[str, Any]:
        """The settings that this data module was given beside the data, and the seed in force."""
        return {**self._run.settings.for_loggers(), "seed": self._run.seed}

    @property
    def candidate_stream(self) -> ShrinkingBatchSampler | RowStream | None:
        """The candidate stream; None before the first filtered batch, and where the user's own batches pass."""
        return self._position.stream

    @property
    def unfiltered_because(self) -> str | None:
        """Why the user's own train loader is passed on as it is; None where it is filtered."""
        return self._builder.unfiltered_because

    # ---- the callback's side

    @property
    def train_position(self) -> DataPosition:
        """Where this process is in its training data."""
        return self._position

    def connect(self, selector: Selector, on_batch: OnBatch, ranks: Ranks, *, restart: bool) -> None:
        """Connect the callback, before training starts.

        Args:
            selector: Says how likely each candidate is kept.
            on_batch: Gets what each batch was drawn with, before any hook of the user's gets the batch itself; None
                where the batch was not drawn here.
            ranks: The processes that train.
            restart: Begin a new candidate stream, with a first pass.
        """
        self.disconnect()
        self._run.selector, self._on_batch = selector, on_batch
        if self.trainer is not None:
            self._undo_convert = convert_carried(self.trainer.precision_plugin)
        self._run.join(ranks)
        if restart:
            self._position.restart()

    def disconnect(self) -> None:
        """Training has ended, in whatever way."""
        self._run.selector, self._on_batch = None, _nothing
        self._fetching.source = None
        if self._undo_convert is not None:
            self._undo_convert()
        self._undo_convert = None
        self._position.end()
        if isinstance(self.candidate_stream, RowStream):
            self.candidate_stream.close()

    def start_fetching(self) -> None:
        """Begin the Trainer's first iteration now, as plain Lightning does, not at its first batch."""
        self._fetching.start()

    def mark_consumed(self, draw: SelectedBatch) -> None:
        """The model was trained on the batch of ``draw``."""
        self._fetching.mark_consumed(draw)

    # ---- the Trainer's side

    @override
    def _on_trainer(self, trainer: Trainer | None) -> None:
        self._run.trainer = trainer
        if trainer is not None:
            group_runs(trainer, self.budget, self.wrapped)

    @override
    def train_dataloader(self) -> Any:
        """The loader of K batches an epoch; the user's own outside of a fit, and where it cannot be filtered.

        Where a setting of ours does not fit the user's train data, the loader raises MisconfigurationException when it
        is looked at, and says what to do.
        """
        try:
            return self._train_loader()
        except MisconfigurationException as error:
            return Refusal(error)

    def _train_loader(self) -> Any:
        if self._run.selector is None and self._run.is_fitting:
            raise MisconfigurationException(
                f"AutoAssistDataModule needs an AutoAssistCallback in the Trainer. Write:{HOW_TO_USE}"
            )
        loader = super().train_dataloader()
        return self._builder.loader_for(loader) if self._run.is_fitting else loader

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if isinstance(batch, TrackedBatch):
            self._on_batch(batch.draw)
            batch = batch.batch
        return super().on_before_batch_transfer(batch, dataloader_idx)

    # ---- checkpoints

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._position.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Lightning restores a data module for test, validate and predict, too, which are no continued training.
        if self.trainer is None or self.trainer.state.fn in (None, "fit"):
            self._position.load_state_dict(state_dict)


def _nothing(draw: SelectedBatch | None) -> None:
    pass
