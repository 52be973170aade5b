"""Ignores one warning of Lightning's for as long as it does not apply."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any


class MutedWarning:
    """Ignores a warning from :meth:`begin` to :meth:`end`; all other filters stay, and so do those that others add.

    Unlike ``warnings.catch_warnings`` it restores nothing but its own filter, so that others may come and go between.

    Args:
        message: Regular expression for the beginning of the warning.

    Example:
        >>> muted, before = MutedWarning("of no use"), list(warnings.filters)
        >>> muted.begin()
        >>> warnings.warn("of no use here")
        >>> muted.end()
        >>> list(warnings.filters) == before
        True
    """

    def __init__(self, message: str) -> None:
        self.message = message
        self._filter: Any = None

    def begin(self) -> None:
        """Ignore it from now on."""
        if self._filter is None:
            warnings.filterwarnings("ignore", self.message)
            self._filter = warnings.filters[0]

    def end(self) -> None:
        """Ignore it no longer; does nothing before :meth:`begin`."""
        # Whoever restored older filters in the meantime has removed it already.
        with contextlib.suppress(ValueError):
            warnings.filters.remove(self._filter)  # type: ignore[attr-defined] # typeshed has a Sequence, it is a list
        self._filter = None
