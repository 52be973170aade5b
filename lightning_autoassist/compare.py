"""Runs side by side: what each reached, what it cost, and what that saves against a baseline.

Shapes: R rows of a run that hold the metric.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lightning_autoassist.report import AXES, PREFIX
from lightning_autoassist.run_readers import LoggedRun, Row

FloatArray = npt.NDArray[np.float64]

MODES = ("max", "min")
# The metric where none is named: the first of these that all runs logged.
_PREFERRED = ("(val|test).*acc", "acc", "(val|test).*(f1|auc|auroc|iou|bleu|map)", "(val|test).*loss", "loss")
_NO_METRICS = re.compile(r"epoch|hp_metric|step|lr-.*|autoassist/.*")
_LOWER_IS_BETTER = re.compile(
    r"loss|err|perplexity|ppl|nll|mse|mae|(^|[_/.-])(wer|cer|fid|ece)($|[_/.-])", re.IGNORECASE
)


class CompareError(Exception):
    """These runs cannot be compared so; the message says what can."""


class Curve(NamedTuple):
    """A metric of a run, and where it was measured; NaN where that is not known.

    Attributes:
        updates: Boss updates, shape ``(R,)``.
        instances: Instances the Boss had seen, shape ``(R,)``.
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
    """Of the runs of a group.

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
        seconds_are_wall: Whether seconds are by the clock, validation included, since some run logged no other.
        notes: What the figures do not say.
    """

    metric: str
    mode: str
    groups: tuple[Group, ...]
    baseline: str | None
    target: float | None
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
    group_by: str = "name",
    batch_size: int | None = None,
) -> Comparison:
    """Compare runs by one metric.

    Args:
        runs: Finished runs.
        metric: Name of a metric that all of them logged; None chooses, accuracy of validation first.
        mode: ``"max"`` or ``"min"``; None: ``"min"`` for losses and errors.
        target: Value whose first reaching is timed; None: what the baseline has at its end.
        baseline: Name of the group that savings are counted against.
        group_by: ``"name"``, ``"group"``, ``"job_type"`` or a setting, e.g. ``"autoassist.policy.name"``: runs alike in
            it count as seeds of one another.
        batch_size: Instances an update, for runs that did not log how many they saw.

    Raises:
        CompareError: If there is no such metric, group or setting.
    """
    metric = _metric_of(runs, metric)
    mode = mode or ("min" if _LOWER_IS_BETTER.search(metric) else "max")
    groups = grouped(runs, group_by)
    if baseline is not None and baseline not in groups:
        raise CompareError(f"no run is named {baseline}; the baseline may be {_listed(groups)}")
    is_wall = clock_is_wall(runs)
    curves = {id(run): curve_of(run, metric, batch_size=batch_size, is_wall=is_wall) for run in runs}
    if target is None and baseline is not None:
        target = statistics.fmean(float(curves[id(run)].values[-1]) for run in groups[baseline])

    def figures(run: LoggedRun) -> RunFigures:
        curve = curves[id(run)]
        finite = curve.values[np.isfinite(curve.values)]
        ends = [_last(axis) for axis in axes_of(run, run.rows, batch_size=batch_size, is_wall=is_wall)]
        updates, seconds = _reaching(curve, target, mode)
        return RunFigures(
            name=run.name,
            source=run.source,
            final=float(curve.values[-1]),
            best=float(finite.max() if mode == "max" else finite.min()) if len(finite) else None,
            updates=ends[0],
            instances=ends[1],
            seconds=ends[2],
            updates_to_target=updates,
            seconds_to_target=seconds,
        )

    return Comparison(
        metric=metric,
        mode=mode,
        groups=tuple(Group(name, tuple(map(figures, members))) for name, members in groups.items()),
        baseline=baseline,
        target=target,
        seconds_are_wall=is_wall,
        notes=tuple(_notes(runs, is_wall, batch_size)),
    )


def grouped(runs: Iterable[LoggedRun], group_by: str) -> dict[str, list[LoggedRun]]:
    """Runs by name, W&B's group or job type, or a setting.

    Raises:
        CompareError: If a run has no such setting.
    """
    groups: dict[str, list[LoggedRun]] = {}
    for run in runs:
        groups.setdefault(_key(run, group_by), []).append(run)
    return groups


def comparable_metrics(runs: Sequence[LoggedRun]) -> list[str]:
    """Names of the metrics that all runs logged, without the axes."""
    shared = set.intersection(*(run.metrics for run in runs)) if runs else set()
    return sorted(name for name in shared if not _NO_METRICS.fullmatch(name))


def clock_is_wall(runs: Iterable[LoggedRun]) -> bool:
    """Whether seconds have to be the clock's, since some run logged no seconds of training and all have the clock."""
    runs = list(runs)
    if all(PREFIX + "seconds" in run.metrics for run in runs):
        return False
    return all(any(row.wall_seconds is not None for row in run.rows) for run in runs)


def curve_of(run: LoggedRun, metric: str, *, batch_size: int | None = None, is_wall: bool = False) -> Curve:
    """A metric of a run against updates, instances and seconds.

    Args:
        run: A run that logged it.
        metric: Its name.
        batch_size: Instances an update, where the run did not log how many it saw.
        is_wall: Take seconds from the clock instead of the seconds of training.
    """
    rows = [row for row in run.rows if metric in row.values]
    return Curve(
        *axes_of(run, rows, batch_size=batch_size, is_wall=is_wall),
        np.array([row.values[metric] for row in rows], np.float64),
    )


def axes_of(
    run: LoggedRun, rows: Sequence[Row], *, batch_size: int | None, is_wall: bool
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Boss updates, instances and seconds at rows of a run, each of shape ``(R,)``, NaN where not known.

    The callback's own figures where a row has them, or between rows that have; else the step, which counts updates
    from 0.
    """
    steps = np.array([np.nan if row.step is None else row.step for row in rows], np.float64)
    updates, instances, seconds = (_logged(run, PREFIX + name, rows, steps) for name in AXES)
    updates = np.where(np.isnan(updates), steps + 1, updates)
    if batch_size is not None:
        instances = np.where(np.isnan(instances), updates * batch_size, instances)
    if is_wall:
        seconds = np.array([np.nan if row.wall_seconds is None else row.wall_seconds for row in rows], np.float64)
    return updates, instances, seconds


def _logged(run: LoggedRun, axis: str, rows: Sequence[Row], steps: FloatArray) -> FloatArray:
    known = {row.step: row.values[axis] for row in run.rows if row.step is not None and axis in row.values}
    own = np.array([row.values.get(axis, np.nan) for row in rows], np.float64)
    if not known:
        return own
    # Before the first update nothing was spent; after the last note of it nobody knows.
    at = np.array([-1.0, *sorted(known)])
    amounts = np.array([0.0, *(known[step] for step in sorted(known))])
    between = np.interp(steps, at, amounts, right=np.nan)
    return np.where(np.isnan(own), between, own)


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
            if metric not in run.metrics:
                raise CompareError(f"{run.source} has no metric {metric}; it has {_listed(sorted(run.metrics))}")
        return metric
    shared = comparable_metrics(runs)
    for pattern in _PREFERRED:
        for name in shared:
            if re.search(pattern, name, re.IGNORECASE):
                return name
    if not shared:
        raise CompareError("the runs have no metric in common")
    raise CompareError(f"name a metric: the runs have {_listed(shared)} in common")


def _key(run: LoggedRun, group_by: str) -> str:
    if group_by in {"name", "group", "job_type"}:
        return str(getattr(run, group_by)) or "(none)"
    found: Any = run.config
    for part in group_by.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    found = run.config.get(group_by) if found is None else found
    if found is None:
        raise CompareError(f"{run.source} has no setting {group_by}; it has {_listed(sorted(map(str, run.config)))}")
    return str(found)


def _notes(runs: Sequence[LoggedRun], is_wall: bool, batch_size: int | None) -> Iterable[str]:
    if is_wall:
        yield (
            "Seconds are by the clock, validation included: some run logged no seconds of training. "
            'AutoAssistCallback(policy="uniform") with budget=1 logs them, and trains as plain Lightning does.'
        )
    elif not all(PREFIX + "seconds" in run.metrics for run in runs):
        yield "Some runs logged no seconds of training, and their logger not the time either."
    missing = [run for run in runs if PREFIX + "instances_seen" not in run.metrics]
    if missing and batch_size is None:
        yield "Some runs did not log the instances they saw; --batch-size gives the instances an update."


def _listed(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


# ---- the table


def as_table(comparison: Comparison) -> str:
    """The groups as lines of text; control characters in their names are replaced.

    Args:
        comparison: What to show.
    """
    lines = [[printable(cell) for cell in line] for line in table_cells(comparison)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*text, *comparison.notes])


def table_cells(comparison: Comparison) -> list[list[str]]:
    """Title and groups, as text."""
    has_target, has_baseline = comparison.target is not None, comparison.baseline is not None
    target = "" if comparison.target is None else f"{comparison.target:.4g}"
    percent: Callable[[float | None], str] = lambda share: "-" if share is None else f"{share:+.1%}"  # noqa: E731
    titles = ["run", "runs", f"{comparison.metric}, end", "best", "updates", "instances", "seconds"]
    titles += [f"updates to {target}", f"seconds to {target}"] * has_target
    titles += ["saved updates", "saved seconds"] * has_baseline
    titles += [f"saved updates to {target}", f"saved seconds to {target}"] * (has_target and has_baseline)
    lines = [titles]
    for group in comparison.groups:
        num_runs = len(group.runs)
        line = [group.name, str(num_runs)]
        line += [_cell(group.statistic(figure), num_runs, ".4g") for figure in ("final", "best")]
        line += [_cell(group.statistic(figure), num_runs, ",.0f") for figure in ("updates", "instances")]
        line += [_cell(group.statistic("seconds"), num_runs, ",.1f")]
        if has_target:
            line += [_cell(group.statistic("updates_to_target"), num_runs, ",.0f")]
            line += [_cell(group.statistic("seconds_to_target"), num_runs, ",.1f")]
        if has_baseline:
            line += [percent(comparison.saving(group, figure)) for figure in ("updates", "seconds")]
        if has_target and has_baseline:
            line += [percent(comparison.saving(group, f"{axis}_to_target")) for axis in ("updates", "seconds")]
        lines.append(line)
    return lines


def _cell(statistic: Statistic | None, num_runs: int, form: str) -> str:
    if statistic is None:
        return "-"
    text = format(statistic.mean, form)
    if statistic.spread:
        text += f" ± {statistic.spread:.2g}" if form == ".4g" else f" ± {statistic.spread:{form}}"
    return text if statistic.num_runs == num_runs else f"{text} ({statistic.num_runs} of {num_runs})"


def printable(text: str) -> str:
    """Without control characters, which a terminal might obey."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
