"""Runs side by side: what each reached, what it cost, and how that differs from a baseline."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightning_autoassist.compare.curves import axes_at, clock_is_wall, curve_of, last_known, reaching
from lightning_autoassist.compare.differing import (
    SEED_KEYS,
    DifferingSettings,
    FlatSettings,
    differing_settings,
    seed_of,
)
from lightning_autoassist.compare.figures import Difference, Group, RunFigures, difference
from lightning_autoassist.compare.groups import CompareError, grouped, listed, settings_apart
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.compare.pays import verdicts
from lightning_autoassist.filtering.reporting.metric_names import PREFIX

# The metric where none is named: the first of these that all runs logged.
# Who logs an average precision has rare events, of which the accuracy says nothing.
_PREFERRED = (
    r"(val|test).*((^|[_/. -])ap($|[_/. -])|average_?precision|auprc)",
    "(val|test).*acc",
    "(val|test).*(f1|auc|auroc|iou|dice|bleu|map)",
    "(val|test).*loss",
    "acc",
    "loss",
)
_NO_METRICS = re.compile(r"epoch|hp_metric|step|lr-.*|autoassist/.*")
_LOWER_IS_BETTER = re.compile(
    r"loss|error|perplexity|(^|[_/. -])(err|ppl|nll|r?mse|mae|mape|wer|cer|ter|fid|ece)($|[_/. -])", re.IGNORECASE
)


@dataclass(frozen=True)
class Comparison:
    """Groups side by side.

    Args:
        metric: What is compared.
        mode: ``"max"`` or ``"min"``: which is better.
        groups: In the order given.
        baseline: Name of the group that the others are compared with; None: there is none.
        differences: How the metric of each other group differs from the baseline's at the end.
        target: Value of the metric that is to be reached.
        group_by: Keys that tell the groups apart.
        settings: The settings that differ between runs.
        batch_size: Instances an update, for runs that did not log how many they saw.
        seconds_are_wall: Whether seconds are by the clock, with validation, because a run logged no seconds of
            training.
        verdicts: Whether filtering pays on the data of these runs.
        notes: What a reader of the figures has to know.
    """

    metric: str
    mode: str
    groups: tuple[Group, ...]
    baseline: str | None
    differences: tuple[Difference, ...]
    target: float | None
    group_by: tuple[str, ...]
    settings: DifferingSettings
    batch_size: int | None
    seconds_are_wall: bool
    verdicts: tuple[str, ...]
    notes: tuple[str, ...]

    def saving(self, group: Group, figure: str) -> float | None:
        """Share of the baseline's mean that a group saves; negative where the group needs more.

        It is None where a run of either group lacks the figure: a mean over the runs that happened to reach a target
        would look too good.

        Args:
            group: The group.
            figure: Name of a figure of :class:`~lightning_autoassist.compare.figures.RunFigures`.
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
        """Every figure as builtins."""
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
        metric: Name of a metric that all of them logged; None takes validation accuracy or the likeliest other metric.
        mode: ``"max"`` or ``"min"``: which is better; None takes ``"min"`` for losses and errors.
        target: Value of the metric; the updates and seconds until a run reaches it are compared. None takes the mean of
            the baseline at its end.
        baseline: Name of the group that the others are compared with.
        group_by: ``"name"``, ``"group"``, ``"job_type"`` or a setting, e.g. ``"autoassist.policy.name"``, or several of
            these. Runs that are alike in all of them count as seeds of one another, unless their policy or budget
            differs.
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
    """The curves of one metric, and the figures that are read off them.

    Args:
        runs: All runs that are compared.
        metric: Name of a metric that all of them logged.
        mode: ``"max"`` or ``"min"``: which is better.
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
        ends = [float(self._curves[id(run)].values[-1]) for run in runs]
        end = sum(ends) / len(ends)
        return end if math.isfinite(end) else None

    def comparison(
        self,
        groups: Mapping[str, Sequence[LoggedRun]],
        keys: tuple[str, ...],
        baseline: str | None,
        target: float | None,
    ) -> Comparison:
        """The groups side by side, see :func:`compare`."""
        shown = tuple(Group(name, tuple(self._figures(run, target) for run in runs)) for name, runs in groups.items())
        base = next((group for group in shown if group.name == baseline), None)
        differences = () if base is None else tuple(difference(group, base) for group in shown if group is not base)
        return Comparison(
            metric=self.metric,
            mode=self.mode,
            groups=shown,
            baseline=baseline,
            differences=differences,
            target=target,
            group_by=keys,
            settings=differing_settings(groups),
            batch_size=self.batch_size,
            seconds_are_wall=self.is_wall,
            verdicts=tuple(verdicts(shown, groups, self.metric, self.mode)),
            notes=(
                *_notes_of_axes(self.runs, self.is_wall, self.batch_size),
                *_notes_of_differences(shown, differences, baseline),
                *_notes_of_runs(self.runs),
                *settings_apart(self.runs, keys),
            ),
        )

    def _figures(self, run: LoggedRun, target: float | None) -> RunFigures:
        curve = self._curves[id(run)]
        finite = curve.values[np.isfinite(curve.values)]
        ends = [last_known(axis) for axis in axes_at(run, np.arange(len(run.rows)), self.batch_size, self.is_wall)]
        updates, seconds = reaching(curve, target, self.mode)
        return RunFigures(
            name=run.name,
            source=run.source,
            seed=seed_of(run),
            final=float(curve.values[-1]),
            best=float(finite.max() if self.mode == "max" else finite.min()) if len(finite) else None,
            updates=ends[0],
            instances=ends[1],
            seconds=ends[2],
            updates_to_target=updates,
            seconds_to_target=seconds,
        )


def comparable_metrics(runs: Sequence[LoggedRun]) -> list[str]:
    """Names of the metrics that all runs logged, without axes such as the epoch and without the callback's figures."""
    shared = set.intersection(*(set(run.columns) for run in runs)) if runs else set()
    return sorted(name for name in shared if not _NO_METRICS.fullmatch(name))


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


def _notes_of_axes(runs: Sequence[LoggedRun], is_wall: bool, batch_size: int | None) -> Iterator[str]:
    if is_wall:
        yield (
            "Seconds are by the clock and include validation, because some runs logged no seconds of training. "
            'AutoAssistCallback(policy="uniform") with budget=1 logs them, and trains as plain Lightning does.'
        )
    elif not all(PREFIX + "seconds" in run.columns for run in runs):
        yield "Some runs logged no seconds of training, and their logger did not log the time either."
    missing = [run for run in runs if PREFIX + "instances_seen" not in run.columns]
    if missing and batch_size is None:
        yield "Some runs did not log how many instances they saw; --batch-size tells how many an update has."


def _notes_of_differences(
    groups: Sequence[Group], differences: Sequence[Difference], baseline: str | None
) -> Iterator[str]:
    sizes = {group.name: len(group.runs) for group in groups}
    unpaired = [
        each.group for each in differences if not each.num_pairs and sizes[each.group] + sizes[baseline or ""] > 2
    ]
    if unpaired:
        keys = f"{', '.join(SEED_KEYS[:-1])} and {SEED_KEYS[-1]}"
        yield (
            f"The differences of {listed(unpaired, quoted=True)} are differences of means, not of pairs of runs with "
            f"the same seed, because too few runs have a seed in common with {baseline}. Seeds are read from the "
            f"settings {keys}."
        )
    for each in differences:
        if each.num_pairs and each.num_left_out:
            yield (
                f"{each.num_left_out} runs of {each.group} and {baseline} have no partner with the same seed, so the "
                "difference leaves them out."
            )


def _notes_of_runs(runs: Sequence[LoggedRun]) -> Iterator[str]:
    for run in runs:
        yield from (f"{run.name}: {note}" for note in run.notes)
        if FlatSettings.of(run).is_cut:
            yield f"{run.name}: This run has very many or deeply nested settings, and only a part of them is compared."
