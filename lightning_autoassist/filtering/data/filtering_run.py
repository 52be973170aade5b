"""What is in force in the run that a data module is used in: its Trainer, its processes, and how they select."""

from __future__ import annotations

from typing import Any

import torch

from lightning_autoassist.filtering.data.known_labels import known_labels
from lightning_autoassist.filtering.data.settings import DataSettings
from lightning_autoassist.filtering.memory.store import LabelSource
from lightning_autoassist.filtering.sampling.selection import Selector
from lightning_autoassist.trainer_support.process_group import Ranks


class FilteringRun:
    """The settings of a data module and the run that they are used in; all parts of a data module share one.

    Args:
        settings: What the user asked for.

    Attributes:
        trainer: The Trainer; None before the data module is given to one.
        selector: The callback's; None where no callback is connected.
        ranks: The processes that train.
        shared_seed: The first process's seed, for what all processes decide alike.
    """

    def __init__(self, settings: DataSettings) -> None:
        self.settings = settings
        self.trainer: Any = None
        self.selector: Selector | None = None
        self.ranks = Ranks()
        self.shared_seed = 0

    def join(self, ranks: Ranks) -> None:
        """Train in these processes; all of them must call this at the same step."""
        self.ranks, self.shared_seed = ranks, ranks.broadcast_object(self.seed)

    @property
    def seed(self) -> int:
        """The seed in force in this process."""
        # torch.initial_seed() reads the global seed and leaves the global RNG where it is.
        return torch.initial_seed() if self.settings.seed is None else self.settings.seed

    def label_source(self, dataset: Any) -> LabelSource:
        """What tells the classes of a data set's instances before the model has seen them."""
        given = self.settings.labels
        return lambda reads_data: known_labels(dataset, given, reads_data=reads_data)

    @property
    def is_fitting(self) -> bool:
        """Whether the Trainer's ``fit`` is on."""
        state = None if self.trainer is None else self.trainer.state
        return state is not None and state.fn == "fit" and state.status == "running"

    @property
    def is_overfitting(self) -> bool:
        """Whether the Trainer repeats some batches (``overfit_batches``)."""
        return self.trainer is not None and bool(self.trainer.overfit_batches)

    @property
    def passes_plain_batches(self) -> bool:
        """Whether the user's own batches are trained on as they are, all of them or those that are repeated."""
        selector, settings = self.selector, self.settings
        keeps_all = selector is not None and selector.keeps_everything
        return self.is_overfitting or (keeps_all and settings.budget == 1 and settings.tokens is None)
