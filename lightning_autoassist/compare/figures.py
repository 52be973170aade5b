"""What runs reached and cost, in groups of runs that differ in their seed, and how groups differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RunFigures:
    """What one run reached and cost; a figure is None where it is not known, or was not reached."""

    name: str
    source: str
    seed: str | None
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
        mean: Mean over the runs that have the figure.
        spread: Standard deviation over these runs (of a sample); None for one run.
        num_runs: Number of runs that have the figure.
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
        return Statistic(*_mean_and_spread(values), len(values))


@dataclass(frozen=True)
class Difference:
    """How the metric of a group differs from that of the baseline at the end.

    Args:
        group: Name of the group.
        mean: The group's metric minus the baseline's: the mean over pairs of runs with the same seed, or else the
            difference between the two groups' means.
        standard_error: Of ``mean``; None where there are too few runs.
        num_pairs: Number of pairs; 0 where the difference is one of means.
        num_left_out: Runs of both groups that have no partner, and count in ``mean`` only where there are no pairs.
    """

    group: str
    mean: float
    standard_error: float | None
    num_pairs: int
    num_left_out: int


def difference(group: Group, baseline: Group) -> Difference:
    """How a group's metric differs from the baseline's at the end, paired by seed where seeds allow it.

    Runs are paired where two seeds or more are in both groups, and where both groups are one run of the same seed. A
    group that has two runs with one seed is not paired: which of them is whose partner is not known.

    Args:
        group: The group.
        baseline: The group that it is compared with.
    """
    own, others = _final_by_seed(group), _final_by_seed(baseline)
    shared = [seed for seed in own if seed in others]
    num_runs = len(group.runs) + len(baseline.runs)
    if len(shared) >= 2 or (len(shared) == 1 and num_runs == 2):
        mean, error = _mean_and_error([own[seed] - others[seed] for seed in shared])
        return Difference(group.name, mean, error, len(shared), num_runs - 2 * len(shared))
    samples = [_mean_and_error([run.final for run in each.runs]) for each in (group, baseline)]
    errors = [error for _, error in samples if error is not None]
    error = math.hypot(*errors) if len(errors) == 2 else None
    return Difference(group.name, samples[0][0] - samples[1][0], error, 0, num_runs)


def _final_by_seed(group: Group) -> dict[str, float]:
    """What each seed's run has at its end; empty where two runs have one seed."""
    seeds = [run.seed for run in group.runs if run.seed is not None]
    if len(set(seeds)) < len(seeds):
        return {}
    return {run.seed: run.final for run in group.runs if run.seed is not None}


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of a sample and its standard error; None for one value."""
    mean, spread = _mean_and_spread(values)
    return mean, None if spread is None else spread / math.sqrt(len(values))


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean of a sample and its standard deviation; None for one value, NaN where a run diverged."""
    if not all(map(math.isfinite, values)):  # statistics raises errors over some of them
        return sum(values) / len(values), None if len(values) < 2 else math.nan
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
