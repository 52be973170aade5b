"""A metric of a run against optimizer steps, instances and seconds, and the mean of several runs.

Shapes: R rows of a run that hold the metric.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.filtering.reporting.metric_names import AXES, PREFIX

FloatArray = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """A metric of a run, and where it was measured; NaN where that is not known.

    Attributes:
        updates: optimizer steps, shape ``(R,)``.
        instances: Instances the model had seen, shape ``(R,)``.
        seconds: Shape ``(R,)``.
        values: The metric, shape ``(R,)``.
    """

    updates: FloatArray
    instances: FloatArray
    seconds: FloatArray
    values: FloatArray


class MeanCurve(NamedTuple):
    """The mean of several runs' curves.

    Attributes:
        updates: optimizer steps, shape ``(R,)``.
        instances: Mean over the runs, shape ``(R,)``.
        seconds: Mean over the runs, shape ``(R,)``.
        values: Mean of the metric over the runs, shape ``(R,)``.
        errors: Standard error of ``values``, shape ``(R,)``.
    """

    updates: FloatArray
    instances: FloatArray
    seconds: FloatArray
    values: FloatArray
    errors: FloatArray


def clock_is_wall(runs: Sequence[LoggedRun]) -> bool:
    """Whether seconds have to be the clock's: some run logged no seconds of training, and all have the clock."""
    if all(PREFIX + "seconds" in run.columns for run in runs):
        return False
    return all(bool(np.isfinite(run.wall_seconds).any()) for run in runs)


def curve_of(run: LoggedRun, metric: str, *, batch_size: int | None = None, is_wall: bool = False) -> Curve:
    """A metric of a run against updates, instances and seconds.

    Where a row has the callback's own figures, these are taken; between two such rows they are interpolated. In other
    runs the step, which counts from 0, gives the updates.

    Args:
        run: A run that logged it.
        metric: Its name.
        batch_size: Instances an update, where the run did not log how many it saw.
        is_wall: Take seconds from the clock instead of the seconds of training.
    """
    rows, values = run.columns[metric]
    return Curve(*axes_at(run, rows, batch_size, is_wall), values)


def mean_curve(curves: Sequence[Curve]) -> MeanCurve | None:
    """The mean of several runs' curves; None for one run, and where the runs were not measured at the same updates.

    Args:
        curves: Of runs that differ in their seed.
    """
    if len(curves) < 2 or any(not np.array_equal(curve.updates, curves[0].updates) for curve in curves):
        return None
    parts = np.stack([np.stack(curve) for curve in curves])
    updates, instances, seconds, values = parts.mean(0)
    return MeanCurve(updates, instances, seconds, values, parts[:, -1].std(0, ddof=1) / math.sqrt(len(curves)))


def axes_at(
    run: LoggedRun, rows: npt.NDArray[np.int64], batch_size: int | None, is_wall: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Optimizer steps, instances and seconds at rows of a run, each of shape ``(R,)``, NaN where they are not known.

    Args:
        run: The run.
        rows: Numbers of its rows, shape ``(R,)``.
        batch_size: Instances an update, where the run did not log how many it saw.
        is_wall: Take seconds from the clock instead of the seconds of training.
    """
    updates, instances, seconds = (_logged(run, PREFIX + name, rows) for name in AXES)
    updates = np.where(np.isnan(updates), run.steps[rows] + 1, updates)
    if batch_size is not None:
        instances = np.where(np.isnan(instances), updates * batch_size, instances)
    return updates, instances, run.wall_seconds[rows] if is_wall else seconds


def _logged(run: LoggedRun, axis: str, rows: npt.NDArray[np.int64]) -> FloatArray:
    if axis not in run.columns:
        return np.full(len(rows), np.nan)
    logged_in, amounts = run.columns[axis]
    own = np.full(len(run.rows), np.nan)
    own[logged_in] = amounts
    # Where a step was noted twice, the later note counts.
    at, last = np.unique(run.steps[logged_in][::-1], return_index=True)
    amounts, known = amounts[::-1][last], np.isfinite(at)
    if not known.any():
        return own[rows]
    # Nothing was spent before the first update; what was spent after the last note is not known.
    between = np.interp(run.steps[rows], [-1.0, *at[known]], [0.0, *amounts[known]], right=np.nan)
    return np.where(np.isnan(own[rows]), between, own[rows])


def last_known(axis: FloatArray) -> float | None:
    """The largest number on an axis; None where none is known."""
    known = axis[np.isfinite(axis)]
    return float(known.max()) if len(known) else None


def reaching(curve: Curve, target: float | None, mode: str) -> tuple[float | None, float | None]:
    """Updates and seconds at which a run reaches the target first; None where it does not, or they are not known.

    Args:
        curve: Of the run.
        target: Value of the metric; None: there is no target.
        mode: ``"max"`` or ``"min"``: which is better.
    """
    if target is None:
        return None, None
    reached = curve.values >= target if mode == "max" else curve.values <= target
    if not reached.any():
        return None, None
    first = int(reached.argmax())
    updates, seconds = float(curve.updates[first]), float(curve.seconds[first])
    return (updates if np.isfinite(updates) else None), (seconds if np.isfinite(seconds) else None)
