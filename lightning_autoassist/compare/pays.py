"""Whether filtering paid, in a sentence or two, from what the runs measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lightning_autoassist.compare.figures import Group, difference
from lightning_autoassist.compare.groups import listed
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.filtering.reporting.advice import outlook
from lightning_autoassist.filtering.reporting.metric_names import PREFIX

MAX_VERDICTS = 10
CONCENTRATION = PREFIX + "concentration"
SHORTENED = "UniformPolicy"
# Standard errors to each side of a 95 % interval, for 2 to 10 runs; of more runs it is a little too wide.
STUDENTS_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
MAX_RUNS = len(STUDENTS_T) + 1


class Rule(NamedTuple):
    """What runs with the callback were trained with.

    Attributes:
        policy: Name of the policy's class.
        budget: Share of the full run's optimizer steps.
        num_instances: Of the data set; None where it is not known.
    """

    policy: str
    budget: float
    num_instances: int | None


def verdicts(groups: Sequence[Group], members: Mapping[str, Sequence[LoggedRun]], metric: str, mode: str) -> list[str]:
    """Sentences on whether filtering pays on the data of these runs.

    Where a group trained at the same budget with ``policy="uniform"``, which is a shortened schedule, the measured
    difference tells. Beside it stands what the concentration of the gradient, where it was logged, lets expect.

    Args:
        groups: The groups.
        members: Their runs by their names.
        metric: What is compared.
        mode: ``"max"`` or ``"min"``: which is better.
    """
    found = list(_against_shortened(groups, members, metric, mode))
    num_more = len(found) - MAX_VERDICTS
    more = [f"{num_more} more groups have a shortened schedule beside them."] if num_more > 0 else []
    return [*found[:MAX_VERDICTS], *more, *_outlooks(members)]


def _against_shortened(
    groups: Sequence[Group], members: Mapping[str, Sequence[LoggedRun]], metric: str, mode: str
) -> Iterator[str]:
    rules = {group.name: _rule_of(members[group.name][0]) for group in groups}
    for group in groups:
        rule = rules[group.name]
        if rule is None or rule.policy == SHORTENED or rule.budget >= 1:
            continue
        shortened = [other for other in groups if rules[other.name] == rule._replace(policy=SHORTENED)]
        for other in shortened:
            yield f"At budget {rule.budget:g}, {_verdict(group, other, metric, mode)}"


def _verdict(group: Group, shortened: Group, metric: str, mode: str) -> str:
    """How a group compares with the shortened schedule of the same budget."""
    found = difference(group, shortened)
    pair = f"{group.name} and the shortened schedule {shortened.name}"
    if found.standard_error is None or not math.isfinite(found.mean + found.standard_error):
        return (
            f"it is open whether filtering pays: {pair} differ by {found.mean:+.3g} in {metric}, and single runs "
            "tell little."
        )
    num_runs = found.num_pairs or min(len(group.runs), len(shortened.runs))
    margin = STUDENTS_T[min(num_runs, MAX_RUNS) - 2] * found.standard_error
    low, high = found.mean - margin, found.mean + margin
    measured = f"the difference in {metric} is {found.mean:+.3g} (95 % interval {low:+.3g} to {high:+.3g})"
    if low <= 0 <= high:
        return f"filtering is not shown to pay: the runs do not tell {pair} apart; {measured}."
    if (low > 0) == (mode == "max"):
        return f"filtering pays: {group.name} is better than the shortened schedule {shortened.name}; {measured}."
    return f"filtering does not pay: the shortened schedule {shortened.name} is better than {group.name}; {measured}."


def _outlooks(members: Mapping[str, Sequence[LoggedRun]]) -> Iterator[str]:
    """One sentence for all groups of which the same is to be expected."""
    by_outlook: dict[str, list[tuple[str, float]]] = {}
    for name, runs in members.items():
        last = [value for run in runs if (value := _last_concentration(run)) is not None]
        if last:
            concentration = sum(last) / len(last)
            by_outlook.setdefault(outlook(concentration), []).append((name, concentration))
    for said, known in by_outlook.items():
        low, high = (f"{bound(value for _, value in known):.1f}" for bound in (min, max))
        span = low if low == high else f"{low} to {high}"
        names = listed([name for name, _ in known], quoted=True)
        yield f"The gradient's concentration at the end of {names} is {span}: {said}."


def _last_concentration(run: LoggedRun) -> float | None:
    if CONCENTRATION not in run.columns:
        return None
    values = run.columns[CONCENTRATION].values
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _rule_of(run: LoggedRun) -> Rule | None:
    settings = run.config.get("autoassist")
    if not isinstance(settings, dict) or not isinstance(settings.get("policy"), dict):
        return None
    name, budget, size = settings["policy"].get("name"), settings.get("budget"), settings.get("num_instances")
    if not isinstance(name, str) or isinstance(budget, bool) or not isinstance(budget, (int, float)):
        return None
    return Rule(name, float(budget), size if isinstance(size, int) else None)
