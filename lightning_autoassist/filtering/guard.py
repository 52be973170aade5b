"""Keeps errors of AutoAssist's own from ending the user's run."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Guard:
    """Lets an error inside it end the filtering, and not the run. No generator: it is entered several times a step.

    Args:
        stop_filtering: Gets what went wrong, in words.

    Example:
        >>> with Guard(print):
        ...     int("seven")
        ValueError: invalid literal for int() with base 10: 'seven'
    """

    def __init__(self, stop_filtering: Callable[[str], None]) -> None:
        self._stop_filtering = stop_filtering

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not isinstance(exc_value, Exception):
            return False
        self._stop_filtering(f"{type(exc_value).__name__}: {exc_value}")
        return True
