"""Errors about the train data, raised where they leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn


class Refusal:
    """Stands for a train loader, and raises its error as soon as the Trainer looks at it.

    Lightning patches torch's ``DataLoader`` while it asks for a loader, and leaves it patched where that raises: the
    user's next run in the same process would then fail.

    Args:
        error: What is wrong with the data, in words for the user.
    """

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __len__(self) -> NoReturn:
        raise self._error

    def __iter__(self) -> Iterator[Any]:
        raise self._error
