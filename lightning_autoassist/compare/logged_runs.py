"""Runs as the readers return them, and bounds on their size: a stranger's file must not fill the memory.

Shapes: n rows of a run that hold one metric.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # a run that cannot be read is told of without waiting for numpy
    import numpy as np
    import numpy.typing as npt

MAX_VALUES = 10_000_000  # about 1 GB in memory
MAX_NAME = 1_000  # characters of a metric's or a run's name


class RunError(Exception):
    """A run cannot be read; the message says why."""


class Row(NamedTuple):
    """The metrics that were logged in one call.

    Attributes:
        step: The Trainer's step, counted from 0; None where the logger did not get it.
        wall_seconds: Seconds since the run's start, with validation; None where the logger does not note the time.
        values: Values by the names of the metrics.
    """

    step: float | None
    wall_seconds: float | None
    values: dict[str, float]


class Column(NamedTuple):
    """One metric of a run.

    Attributes:
        rows: Numbers of the rows in which it was logged, shape ``(n,)``.
        values: Its values in these rows, shape ``(n,)``.
    """

    rows: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LoggedRun:
    """One run, as its logger left it.

    Args:
        name: The run's own name, or the folder that it was found in.
        source: Where the run was read from.
        rows: What was logged, in the order of logging.
        config: The run's settings, nested.
        group: The run's group in W&B; empty where it has none.
        job_type: The run's job type in W&B; empty where it has none.
        origin: Identifies the run, however the path to it is written; empty where that is not possible.
        notes: What was not read, and why.
    """

    name: str
    source: str
    rows: tuple[Row, ...]
    config: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    job_type: str = ""
    origin: frozenset[Any] = frozenset()
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def columns(self) -> dict[str, Column]:
        """The columns of all metrics that were logged, by name."""
        import numpy as np

        found: dict[str, tuple[list[int], list[float]]] = {}
        for number, row in enumerate(self.rows):
            for name, value in row.values.items():
                numbers, values = found.setdefault(name, ([], []))
                numbers.append(number)
                values.append(value)
        return {
            name: Column(np.array(numbers, np.int64), np.array(values, np.float64))
            for name, (numbers, values) in found.items()
        }

    @functools.cached_property
    def steps(self) -> npt.NDArray[np.float64]:
        """The step of each row, NaN where it is not known."""
        import numpy as np

        return np.array([np.nan if row.step is None else row.step for row in self.rows], np.float64)

    @functools.cached_property
    def wall_seconds(self) -> npt.NDArray[np.float64]:
        """The seconds from the run's start to each row, NaN where they are not known."""
        import numpy as np

        return np.array([np.nan if row.wall_seconds is None else row.wall_seconds for row in self.rows], np.float64)


class Rows:
    """Collects the rows of one run, and raises an error before they fill the memory.

    Args:
        source: The run, as the error names it.
    """

    def __init__(self, source: object) -> None:
        self.source = source
        self.rows: list[Row] = []
        self._num_values = 0

    def add(self, row: Row) -> None:
        """Append a row, without the metrics whose names are longer than 1,000 characters.

        Raises:
            RunError: If there are too many rows and values.
        """
        too_long = [name for name in row.values if len(name) > MAX_NAME]
        for name in too_long:
            del row.values[name]
        self.count(1 + len(row.values))
        self.rows.append(row)

    def count(self, num_values: int) -> None:
        """Count values that were added to a row.

        Raises:
            RunError: If there are too many.
        """
        self._num_values += num_values
        if self._num_values > MAX_VALUES:
            raise RunError(f"{self.source} has more than {MAX_VALUES:,} logged values, and no more can be compared")


def number_of(value: Any) -> float | None:
    """The number that ``value`` is or spells, which may be NaN or infinite; None where it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
