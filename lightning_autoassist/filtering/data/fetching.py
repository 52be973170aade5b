"""The two contracts of a train loader: with what it is fed from, and with the Trainer's fetching."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from lightning_autoassist.filtering.sampling.candidates import SelectedBatch

if TYPE_CHECKING:
    from lightning_autoassist.filtering.data.loader import FetchedLoader


class DrawSource(Protocol):
    """Gives a train loader the batches of each epoch."""

    def draws(self, limit: int | None = None) -> Iterator[SelectedBatch]:
        """The batches of one epoch, ``limit`` of them where it is given."""

    def mark_consumed(self, draw: SelectedBatch) -> None:
        """The model was trained on ``draw``."""


class Fetching(Protocol):
    """The Trainer's side of an iteration."""

    def is_fetching(self, iterator: object) -> bool:
        """Whether ``iterator`` is the one that the Trainer takes its batches from."""

    def begin(self, loader: FetchedLoader) -> Iterator[SelectedBatch]:
        """The draws of an iteration of the Trainer's over ``loader``, which begins now."""

    @property
    def needs_order(self) -> bool:
        """Whether anybody asks which instance a batch's rows are."""

    def has_begun(self) -> None:
        """The user's loader is being iterated, and asks for the indices of its first batch."""
