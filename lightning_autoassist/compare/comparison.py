"""Runs side by side: what each reached, what it cost, and what that saves against a baseline.

Shapes: R rows of a run that hold the metric.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_autoassist.compare.groups import CompareError, grouped, listed, settings_apart
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.filtering.reporting.metric_names import AXES, PREFIX

FloatArray = npt.NDArray[np.float64]

# The metric where none is named: the first of these that all runs logged.
_PREFERRED = ("(val|test).*acc", "acc", "(val|test).*(f1|auc|auroc|iou|bleu|map)", "(val|test).*loss", "loss")
_NO_METRICS = re.compile(r"epoch|hp_metric|step|lr-.*|autoassist/.*")
_LOWER_IS_BETTER = re.compile(
    r"loss|error|perplexity|(^|[_/. -])(err|ppl|nll|r?mse|mae|mape|wer|cer|ter|fid|ece)($|[_/. -])", re.IGNORECASE
)


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


@dataclass(frozen=True)
class RunFigures:
    """What one run reached and cost; None where it is not known, or was not reached."""

    name: str
    source: str
    final: float
    best: float | None
    updates: float | None
    instances: float | None
    seconds: float | None
    updates_to_target: float | None
    seconds_to_target: float | None


@dataclass(frozen=True)
class Statistic:
    """A figure of a group of runs: its mean and its spread.

    Args:
        mean: Over the runs that have the figure.
        spread: Their standard deviation (of a sample); None for one run.
        num_runs: How many have it.
    """

    mean: float
    spread: float | None
    num_runs: int


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    name: str
    runs: tuple[RunFigures, ...]

    def statistic(self, figure: str) -> Statistic | None:
        """Mean and spread of a figure of :class:`RunFigures`; None where no run has it."""
        values = [value for run in self.runs if (value := getattr(run, figure)) is not None]
        if not values:
            return None
        return Statistic(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Comparison:
    """Groups side by side.

    Args:
        metric: What is compared.
        mode: ``"max"`` or ``"min"``: which is better.
        groups: In the order given.
        baseline: Name of the group that savings are counted against.
        target: Value of the metric that is to be reached.
        group_by: Keys that tell the groups apart.
        batch_size: Instances an update, of runs that did not log how many they saw.
        seconds_are_wall: Whether seconds are by the clock, validation included, since some run logged no other.
        notes: What the figures do not say.
    """

    metric: str
    mode: str
    groups: tuple[Group, ...]
    baseline: str | None
    target: float | None
    group_by: tuple[str, ...]
    batch_size: int | None
    seconds_are_wall: bool
    notes: tuple[str, ...]

    def saving(self, group: Group, figure: str) -> float | None:
        """Share of the baseline's mean that a group does without; negative where it needs more.

        Only where all runs of both have the figure: a mean over those that happened to reach a target flatters.
        """
        baseline = next((other for other in self.groups if other.name == self.baseline), None)
        if baseline is None:
            return None
        own, others = group.statistic(figure), baseline.statistic(figure)
        if own is None or others is None or not others.mean:
            return None
        if own.num_runs < len(group.runs) or others.num_runs < len(baseline.runs):
            return None
        return 1 - own.mean / others.mean

    def as_dict(self) -> dict[str, Any]:
        """Every figure, for machines."""
        return asdict(self)


def compare(
    runs: Sequence[LoggedRun],
    *,
    metric: str | None = None,
    mode: str | None = None,
    target: float | None = None,
    baseline: str | None = None,
    group_by: str | Sequence[str] = "name",
    batch_size: int | None = None,
) -> Comparison:
    """Compare runs by one metric.

    Args:
        runs: Finished runs.
        metric: Name of a metric that all of them logged; None chooses, accuracy of validation first.
        mode: ``"max"`` or ``"min"``; None: ``"min"`` for losses and errors.
        target: Value whose first reaching is timed; None: what the baseline has at its end.
        baseline: Name of the group that savings are counted against.
        group_by: ``"name"``, ``"group"``, ``"job_type"`` or a setting, e.g. ``"autoassist.policy.name"``, or several of
            these: runs alike in all of them count as seeds of one another, unless their policy or budget differs.
        batch_size: Instances an update, for runs that did not log how many they saw.

    Raises:
        CompareError: If there is no such metric, group or setting.
    """
    metric = _metric_of(runs, metric)
    keys = (group_by,) if isinstance(group_by, str) else tuple(group_by)
    groups = grouped(runs, keys)
    if baseline is not None and baseline not in groups:
        raise CompareError(f"no run is named {baseline}; the baseline may be {listed(groups, quoted=True)}")
    curves = _Curves(runs, metric, mode or ("min" if _LOWER_IS_BETTER.search(metric) else "max"), batch_size)
    if target is None and baseline is not None:
        target = curves.mean_end(groups[baseline])
    return curves.comparison(groups, keys, baseline, target)


class _Curves:
    """One metric of runs, and what is read off its curves.

    Args:
        runs: All that are compared.
        metric: Which all of them logged.
        mode: ``"max"`` or ``"min"``.
        batch_size: Instances an update, for runs that did not log how many they saw.
    """

    def __init__(self, runs: Sequence[LoggedRun], metric: str, mode: str, batch_size: int | None) -> None:
        self.runs = runs
        self.metric = metric
        self.mode = mode
        self.batch_size = batch_size
        self.is_wall = clock_is_wall(runs)
        self._curves = {id(run): curve_of(run, metric, batch_size=batch_size, is_wall=self.is_wall) for run in runs}

    def mean_end(self, runs: Sequence[LoggedRun]) -> float | None:
        """The mean of what the runs have at their end; None if it is not finite."""
        end = statistics.fmean(float(self._curves[id(run)].values[-1]) for run in runs)
        return end if math.isfinite(end) else None

    def comparison(
        self,
        groups: Mapping[str, Sequence[LoggedRun]],
        keys: tuple[str, ...],
        baseline: str | None,
        target: float | None,
    ) -> Comparison:
        """The groups side by side, see :func:`compare`."""
        return Comparison(
            metric=self.metric,
            mode=self.mode,
            groups=tuple(
                Group(name, tuple(self._figures(run, target) for run in members)) for name, members in groups.items()
            ),
            baseline=baseline,
            target=target,
            group_by=keys,
            batch_size=self.batch_size,
            seconds_are_wall=self.is_wall,
            notes=(*_notes(self.runs, self.is_wall, self.batch_size), *settings_apart(self.runs, keys)),
        )

    def _figures(self, run: LoggedRun, target: float | None) -> RunFigures:
        curve = self._curves[id(run)]
        finite = curve.values[np.isfinite(curve.values)]
        ends = [_last(axis) for axis in _axes_at(run, np.arange(len(run.rows)), self.batch_size, self.is_wall)]
        updates, seconds = _reaching(curve, target, self.mode)
        return RunFigures(
            name=run.name,
            source=run.source,
            final=float(curve.values[-1]),
            best=float(finite.max() if self.mode == "max" else finite.min()) if len(finite) else None,
            updates=ends[0],
            instances=ends[1],
            seconds=ends[2],
            updates_to_target=updates,
            seconds_to_target=seconds,
        )


def comparable_metrics(runs: Sequence[LoggedRun]) -> list[str]:
    """Names of the metrics that all runs logged, without the axes."""
    shared = set.intersection(*(set(run.columns) for run in runs)) if runs else set()
    return sorted(name for name in shared if not _NO_METRICS.fullmatch(name))


def clock_is_wall(runs: Sequence[LoggedRun]) -> bool:
    """Whether seconds have to be the clock's, since some run logged no seconds of training and all have the clock."""
    if all(PREFIX + "seconds" in run.columns for run in runs):
        return False
    return all(bool(np.isfinite(run.wall_seconds).any()) for run in runs)


def curve_of(run: LoggedRun, metric: str, *, batch_size: int | None = None, is_wall: bool = False) -> Curve:
    """A metric of a run against updates, instances and seconds.

    The callback's own figures where a row has them, or between rows that have; else the step, which counts updates
    from 0.

    Args:
        run: A run that logged it.
        metric: Its name.
        batch_size: Instances an update, where the run did not log how many it saw.
        is_wall: Take seconds from the clock instead of the seconds of training.
    """
    rows, values = run.columns[metric]
    return Curve(*_axes_at(run, rows, batch_size, is_wall), values)


def mean_curve(curves: Sequence[Curve]) -> Curve | None:
    """The mean of several runs' curves; None for one, and where they were not measured at the same updates."""
    if len(curves) < 2 or any(not np.array_equal(curve.updates, curves[0].updates) for curve in curves):
        return None
    return Curve(*np.mean([np.stack(curve) for curve in curves], axis=0))


def _axes_at(
    run: LoggedRun, rows: npt.NDArray[np.int64], batch_size: int | None, is_wall: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Optimizer steps, instances and seconds at rows of a run, each of shape ``(R,)``, NaN where not known."""
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
    # Of a step that was noted twice, the later.
    at, last = np.unique(run.steps[logged_in][::-1], return_index=True)
    amounts, known = amounts[::-1][last], np.isfinite(at)
    if not known.any():
        return own[rows]
    # Before the first update nothing was spent; after the last note of it nobody knows.
    between = np.interp(run.steps[rows], [-1.0, *at[known]], [0.0, *amounts[known]], right=np.nan)
    return np.where(np.isnan(own[rows]), between, own[rows])


def _last(axis: FloatArray) -> float | None:
    known = axis[np.isfinite(axis)]
    return float(known.max()) if len(known) else None


def _reaching(curve: Curve, target: float | None, mode: str) -> tuple[float | None, float | None]:
    """Updates and seconds at which the target is reached first."""
    if target is None:
        return None, None
    reached = curve.values >= target if mode == "max" else curve.values <= target
    if not reached.any():
        return None, None
    first = int(reached.argmax())
    updates, seconds = float(curve.updates[first]), float(curve.seconds[first])
    return (updates if np.isfinite(updates) else None), (seconds if np.isfinite(seconds) else None)


def _metric_of(runs: Sequence[LoggedRun], metric: str | None) -> str:
    if metric is not None:
        for run in runs:
            if metric not in run.columns:
                raise CompareError(f"{run.source} has no metric {metric}; it has {listed(sorted(run.columns))}")
        return metric
    shared = comparable_metrics(runs)
    for pattern in _PREFERRED:
        for name in shared:
            if re.search(pattern, name, re.IGNORECASE):
                return name
    if not shared:
        raise CompareError("the runs have no metric in common")
    raise CompareError(f"name a metric: the runs have {listed(shared)} in common")


def _notes(runs: Sequence[LoggedRun], is_wall: bool, batch_size: int | None) -> Iterable[str]:
    if is_wall:
        yield (
            "Seconds are by the clock, validation included: some run logged no seconds of training. "
            'AutoAssistCallback(policy="uniform") with budget=1 logs them, and trains as plain Lightning does.'
        )
    elif not all(PREFIX + "seconds" in run.columns for run in runs):
        yield "Some runs logged no seconds of training, and their logger not the time either."
    missing = [run for run in runs if PREFIX + "instances_seen" not in run.columns]
    if missing and batch_size is None:
        yield "Some runs did not log the instances they saw; --batch-size gives the instances an update."
    for run in runs:
        yield from (f"{run.name}: {note}" for note in run.notes)
