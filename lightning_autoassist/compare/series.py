"""How the groups look in pictures and in the page: each has a colour and a line style of its own."""

from __future__ import annotations

import math
from typing import NamedTuple

from lightning_autoassist.compare.comparison import Comparison
from lightning_autoassist.compare.figures import Group

MAX_SERIES = 10  # in one picture
# The first seven are Okabe's and Ito's; all are legible on white and on black.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#9467bd",
    "#a0522d",
    "#a0a020",
)
# Lengths of strokes and gaps in units of the line's width; empty for a solid line.
DASHES: tuple[tuple[float, ...], ...] = ((), (4, 1.5), (1, 1.2), (6, 1.5, 1, 1.5))


class Style(NamedTuple):
    """How one group is drawn.

    Attributes:
        colour: As ``#rrggbb``.
        dashes: Lengths of strokes and gaps in units of the line's width; empty for a solid line.
    """

    colour: str
    dashes: tuple[float, ...]


def style_of(number: int) -> Style:
    """The style of the group with this number; the first 40 groups have 40 styles.

    Example:
        >>> len({style_of(number) for number in range(40)})
        40
    """
    return Style(COLOURS[number % len(COLOURS)], DASHES[(number + number // len(COLOURS)) % len(DASHES)])


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
