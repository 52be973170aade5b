"""Whether a run is filtered, and why not where it is not."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from lightning_autoassist.filtering.guard import Guard
from lightning_autoassist.trainer_support.executors import InlineExecutor

# So many steps in a row whose losses cannot be assigned to instances end filtering; so many at the start are reported.
MAX_UNTOLD, FIRST_UNTOLD = 50, 3


class FilterStatus:
    """Counts steps whose losses cannot be assigned to instances, and ends filtering where they are too many.

    It ends filtering, too, where something of AutoAssist's own fails.

    Args:
        is_filtering: Whether the run is filtered at first.
        on_stop: Called once filtering has ended.
        only_observes: Whether losses are captured to be known alone, and decide nothing.

    Attributes:
        jobs: Where the training loop's reports take effect, in their order.
        is_filtering: False once something went wrong.
        is_told: False as long as no step's losses could be assigned to instances: nothing is weighted nor dropped then.
        reason: What went wrong; where losses could not be assigned to instances, until some can be.
        unfiltered_on_error: Go on unfiltered, with a warning, where what is inside this context fails.
    """

    def __init__(self, is_filtering: bool, on_stop: Callable[[], None], *, only_observes: bool = False) -> None:
        self.jobs = InlineExecutor()
        self.is_filtering = is_filtering
        self.is_told = True
        self.reason: str | None = None
        self.unfiltered_on_error = Guard(self.stop)
        self._on_stop = on_stop
        self._only_observes = only_observes
        self._num_untold = 0  # steps in a row
        self._has_told = self._is_warned = False

    def note_told(self) -> None:
        """The losses of a step could be assigned to its instances."""
        if self._num_untold and not self._has_told:
            self.jobs.submit(functools.partial(self._set_told, True))
        self._num_untold, self._has_told = 0, True
        if self.is_filtering:
            self.reason = None

    def note_untold(self, reason: str) -> None:
        """Count a step whose losses cannot be assigned to instances; after many in a row, stop filtering.

        Args:
            reason: Why they cannot be, with the ways out.
        """
        self._num_untold += 1
        if self._has_told:
            self._note_untold_later(reason)
        else:
            self._note_untold_first(reason)

    def _note_untold_later(self, reason: str) -> None:
        if self._num_untold == MAX_UNTOLD:
            self.stop(f"The losses of {MAX_UNTOLD} steps in a row could not be assigned to instances. {reason}")
        elif not self._is_warned:
            self._is_warned = True
            warnings.warn(
                "the losses of a step could not be assigned to instances. Such steps are trained on, and nothing is "
                f"learnt from them. Filtering goes on, and stops after {MAX_UNTOLD} of them in a row. {reason}",
                stacklevel=2,
            )

    def _note_untold_first(self, reason: str) -> None:
        """Take note of a step whose losses could not be assigned to instances, before any step's could be."""
        if self._num_untold == 1:
            self.jobs.submit(functools.partial(self._set_told, False))
        elif self._num_untold == MAX_UNTOLD:
            self.jobs.submit(self._give_up)
        elif self._num_untold == FIRST_UNTOLD:
            self.reason, self._is_warned = reason, True
            self._warn_of_stop(
                f"The losses of the first {FIRST_UNTOLD} steps could not be assigned to instances. Filtering begins if "
                f"this changes within {MAX_UNTOLD} steps. {reason}"
            )

    def _set_told(self, is_told: bool) -> None:
        self.is_told = is_told

    def stop(self, reason: str) -> None:
        """Keep every instance from now on, with one warning."""
        self.jobs.submit(functools.partial(self._stop, reason))

    def _stop(self, reason: str) -> None:
        if self.is_filtering:
            self._give_up()
            self.reason = reason
            self._warn_of_stop(reason)

    def _give_up(self) -> None:
        self.is_filtering = False
        self._on_stop()

    def state_dict(self) -> dict[str, Any]:
        """Whether the run is filtered and why not, and the counts, as builtins."""
        return {
            "is_filtering": self.is_filtering,
            "reason": self.reason,
            "num_untold": self._num_untold,
            "is_told": self.is_told,
            "has_told": self._has_told,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.is_filtering, self.reason = state["is_filtering"], state["reason"]
        self._num_untold, self._has_told, self.is_told = state["num_untold"], state["has_told"], state["is_told"]

    def _warn_of_stop(self, reason: str) -> None:
        what = "observing the instances' losses, and training goes on as before"
        what = what if self._only_observes else "filtering, and training goes on with every instance"
        # Not on rank zero alone: it may be another process that fails.
        warnings.warn(f"AutoAssist stopped {what}. {reason}", stacklevel=3)
