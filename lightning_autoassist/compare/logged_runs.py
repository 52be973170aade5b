"""What the readers of runs return, and the bounds that they keep: a stranger's file must not fill the memory.

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
    """A run cannot be read; the message says why and what can be."""


class Row(NamedTuple):
    """What was logged at once.

    Attributes:
        step: The Trainer's step, counted from 0, where the logger got one.
        wall_seconds: Since the run's start, validation included, where the logger notes the time.
        values: Metrics.
    """

    step: float | None
    wall_seconds: float | None
    values: dict[str, float]


class Column(NamedTuple):
    """One metric of a run.

    Attributes:
        rows: In which rows it was logged, shape ``(n,)``.
        values: Shape ``(n,)``.
    """

    rows: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


@dataclass(frozen=True)
class LoggedRun:
    """One run, as its logger left it.

    Args:
        name: Its own, or the folder it was found in.
        source: Where it was read from.
        rows: In the order of logging.
        config: Its settings, nested.
        group: W&B's, where it has one.
        job_type: W&B's, where it has one.
        origin: What tells it from other runs, however the way to it is spelt; empty where that is not known.
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
        """Everything that was logged, by its name."""
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
        """The step of each row, NaN where there is none."""
        import numpy as np

        return np.array([np.nan if row.step is None else row.step for row in self.rows], np.float64)

    @functools.cached_property
    def wall_seconds(self) -> npt.NDArray[np.float64]:
        """The time of each row, NaN where it was not noted."""
        import numpy as np

        return np.array([np.nan if row.wall_seconds is None else row.wall_seconds for row in self.rows], np.float64)


class Rows:
    """Collects the rows of one run, and ends with an error before they fill the memory.

    Args:
        source: The run, for the error.
    """

    def __init__(self, source: object) -> None:
        self.source = source
        self.rows: list[Row] = []
        self._num_values = 0

    def add(self, row: Row) -> None:
        """Append a row, without metrics whose names are longer than a name is.

        Raises:
            RunError: If there are too many rows and values.
        """
        too_long = [name for name in row.values if len(name) > MAX_NAME]
        for name in too_long:
            del row.values[name]
        self.count(1 + len(row.values))
        self.rows.append(row)

    def count(self, num_values: int) -> None:
        """Count values that are added to a row.

        Raises:
            RunError: If there are too many.
        """
        self._num_values += num_values
        if self._num_values > MAX_VALUES:
            raise RunError(f"{self.source} logs more than {MAX_VALUES:,} values, which is more than can be compared")


def number_of(value: Any) -> float | None:
    """A number (NaN and infinity too), or one written as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
