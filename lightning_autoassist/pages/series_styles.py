"""How series look in pictures and pages: each has a colour and a line style of its own."""

from __future__ import annotations

from typing import NamedTuple

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
    """How one series is drawn.

    Attributes:
        colour: As ``#rrggbb``.
        dashes: Lengths of strokes and gaps in units of the line's width; empty for a solid line.
    """

    colour: str
    dashes: tuple[float, ...]

    @property
    def linestyle(self) -> str | tuple[int, tuple[float, ...]]:
        """The dashes as matplotlib's ``linestyle=``."""
        return (0, self.dashes) if self.dashes else "-"


def style_of(number: int) -> Style:
    """The style of the series with this number; the first 40 series have 40 styles.

    Example:
        >>> len({style_of(number) for number in range(40)})
        40
    """
    return Style(COLOURS[number % len(COLOURS)], DASHES[(number + number // len(COLOURS)) % len(DASHES)])
