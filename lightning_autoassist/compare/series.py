"""Which groups are shown in pictures and in the page, and what their differences are called."""

from __future__ import annotations

import math

from lightning_autoassist.compare.comparison import Comparison
from lightning_autoassist.compare.figures import Group
from lightning_autoassist.pages.series_styles import MAX_SERIES


def shown_groups(comparison: Comparison) -> list[str]:
    """Names of the groups in a picture: all, or of many the baseline and those with the best metric at the end.

    Args:
        comparison: The comparison.
    """
    sign = -1 if comparison.mode == "max" else 1

    def rank(group: Group) -> tuple[bool, float]:
        final = group.statistic("final")
        value = math.inf if final is None or math.isnan(final.mean) else sign * final.mean
        return group.name != comparison.baseline, value

    best = {group.name for group in sorted(comparison.groups, key=rank)[:MAX_SERIES]}
    return [group.name for group in comparison.groups if group.name in best]


def title_of_differences(comparison: Comparison) -> str:
    """What the differences are, and which sign is good."""
    better = "higher" if comparison.mode == "max" else "lower"
    return f"Difference to {comparison.baseline} in {comparison.metric} at the end ({better} is better)"
