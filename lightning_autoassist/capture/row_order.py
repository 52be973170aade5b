"""Follows the instances' rows through a training step, call by call, up to its losses.

A step that sorts its rows and un-sorts them before its loss ends in the batch's order, see
``row_propagation``.

It is the order of a loss's differentiable inputs that decides, not that of its target:

==============================================================  ==========
what the step does                                              verdict
==============================================================  ==========
sorts or shuffles inputs and targets, then takes the loss       refused
sorts (for ``pack_padded_sequence``), un-sorts, takes the loss  in order
mixes ``x`` with ``x[order]``, losses on ``y`` and ``y[order]``  in order
takes ``z[order]`` for the negatives of the anchors ``z``       in order
un-shuffles after shuffling for batch normalisation             in order
loses sight of the logits (compiled code); sorts the target     refused
==============================================================  ==========

Looking at index tensors waits for the device, so that this is done in a run's first steps, and in every hundredth: a
step may begin to reorder late, as in the second stage of a curriculum.

Shapes: B batch, n rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lightning_autoassist.capture.instance_layout import InstanceLayout
from lightning_autoassist.capture.row_matching import columns_of, match
from lightning_autoassist.capture.row_numbers import Rows
from lightning_autoassist.capture.row_propagation import RowPropagation
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.batch_parts import leaves_of

_FEWEST_STEPS, _MOST_STEPS = 3, 32
# What was found in order is looked at again in one of so many steps.
INTERVAL = 100
# A target whose values are those of the batch in another order: by chance in one of a million cases.
_ENOUGH_BITS = 20.0


class RowChecks:
    """Decides in which steps of a run rows are followed: the first ones, more where something reorders them, then few.

    Attributes:
        problem: What was wrong in one of them; it stays wrong.
    """

    def __init__(self) -> None:
        self.problem: str | None = None
        self._num_steps = self._num_plain = self._num_skipped = 0

    def tracker(self, batch: Any, batch_size: int) -> RowTracker | None:
        """What follows the rows of one step; None where the step need not be looked at."""
        if batch_size < 2 or (self._is_settled and not self._is_due()):
            return None
        return RowTracker(batch, batch_size)

    @property
    def _is_settled(self) -> bool:
        return self._num_steps >= _MOST_STEPS or self._num_plain >= _FEWEST_STEPS

    def _is_due(self) -> bool:
        self._num_skipped = (self._num_skipped + 1) % INTERVAL
        return self._num_skipped == 0

    def end(self, tracker: RowTracker | None, sources: Sequence[str]) -> str | None:
        """A step has ended: what is wrong with the rows of its losses, if anything is.

        Args:
            tracker: Of the step.
            sources: The losses in what it returned.
        """
        if tracker is not None:
            self._num_steps += 1
            self._num_plain += not tracker.reorders
            self.problem = self.problem or tracker.problem(sources)
        return self.problem


class RowTracker:
    """Judges the rows of one step's losses.

    Args:
        batch: What the step is given.
        batch_size: B.
    """

    def __init__(self, batch: Any, batch_size: int) -> None:
        self._propagation = RowPropagation(batch, batch_size)
        self._in_order = np.arange(batch_size)
        self._leaves = list(leaves_of(batch))
        self._problems: dict[str, str] = {}
        # Of losses whose inputs are lost from sight.
        self._problems_of_targets: dict[str, str] = {}
        self._target_is_in_order = False

    @property
    def reorders(self) -> bool:
        """Whether something was sorted, shuffled or picked by index."""
        return self._propagation.reorders

    def note(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> None:
        """A function of torch was called in the step; never raises."""
        self._propagation.note(func, args, kwargs, result)

    def check(self, source: str, inputs: Sequence[Any], others: Sequence[Any], layout: InstanceLayout) -> None:
        """Look at the rows of a loss.

        Args:
            source: Which call it is.
            inputs: Its differentiable inputs.
            others: Its target.
            layout: Of its rows, as its shape tells.
        """
        try:
            known = self._known_of(inputs, layout)
            if known:
                self._judge(source, known, layout, self._problems)
                return
            known = self._known_of(others, layout) or self._told_by_values(others)
            self._target_is_in_order |= bool(known) and self._judge(source, known, layout, self._problems_of_targets)
        except Exception:  # the step must go on
            return

    def problem(self, sources: Sequence[str]) -> str | None:
        """What is wrong with the rows of some of the checked losses."""
        problems = self._problems
        if not self._target_is_in_order:  # else the others are of mixed pairs
            problems = {**self._problems_of_targets, **problems}
        return next((problems[source] for source in sources if source in problems), None)

    def _known_of(self, tensors: Sequence[Any], layout: InstanceLayout) -> list[Rows]:
        known = [rows for tensor in tensors if (rows := self._propagation.rows(tensor)) is not None]
        return [rows for rows in known if len(rows.of) in (len(self._in_order), layout.num_rows)]

    def _judge(self, source: str, known: Sequence[Rows], layout: InstanceLayout, problems: dict[str, str]) -> bool:
        """Whether some of the rows are in order; if not, that is a problem."""
        if any(rows.is_order(self._expected(rows, layout)) for rows in known):
            return True
        where = f": they are reordered {known[0].place}" if known[0].place else ""
        problems[source] = f"The rows of {source} are in another order than the instances of the batch{where}"
        return False

    def _told_by_values(self, targets: Sequence[Any]) -> list[Rows]:
        """The rows of targets that have been lost from sight, where they hold the very values of the batch."""
        num_rows = len(self._in_order)
        found = match(columns_of(list(targets), num_rows), columns_of(self._leaves, num_rows))
        if found is None or not (found.is_certain or found.bits >= _ENOUGH_BITS):
            return []
        return [Rows(np.full(num_rows, num_rows) if found.rows is None else found.rows, 0)]

    def _expected(self, rows: Rows, layout: InstanceLayout) -> IndexArray:
        if len(rows.of) == layout.num_rows != len(self._in_order):
            column = [1] * len(layout.leading)
            column[layout.axis] = layout.batch_size
            return np.broadcast_to(self._in_order.reshape(column), layout.leading).reshape(-1)
        return self._in_order
