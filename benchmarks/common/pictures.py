"""Pictures of benchmarks: at most ten series, each with a colour and a line style of its own, and the legend outside.

Shapes: S runs of a method that differ in their seed, P points of a curve.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_autoassist.pages.series_styles import MAX_SERIES, style_of

Row = dict[str, Any]
LINE_HEIGHT, CHARACTER_WIDTH, HANDLE_WIDTH = 0.19, 0.075, 0.75  # of the legend, in inches


class Picture:
    """Panels side by side: a series looks alike in all of them, and stands once in the legend below them.

    Of more than ten series, the ten that were given first are drawn, and the legend says so.

    Args:
        num_panels: Panels.
        title: Above them.
        names: Series that always look alike, whether or not others are drawn: the first ten have ten colours.
        panel_size: Width and height of a panel, in inches.
        shared: ``sharex=`` and ``sharey=`` of matplotlib's.

    Attributes:
        panels: The panels, as matplotlib's axes.
    """

    def __init__(
        self,
        num_panels: int = 1,
        title: str = "",
        *,
        names: Sequence[str] = (),
        panel_size: tuple[float, float] = (3.8, 3.4),
        **shared: Any,
    ) -> None:
        from matplotlib.figure import Figure  # not pyplot, which keeps figures for the whole process

        self._size = panel_size[0] * num_panels, panel_size[1]
        self._figure = Figure(layout="constrained")
        self.panels: list[Any] = list(self._figure.subplots(1, num_panels, squeeze=False, **shared)[0])
        self._title = textwrap.fill(title, int(12.5 * self._size[0]))
        self._numbers = {name: number for number, name in enumerate(names)}
        self._lines: dict[str, Any] = {}
        self._left_out: set[str] = set()

    def plot(self, panel: Any, name: str, along: Sequence[float], values: Sequence[float], **options: Any) -> None:
        """Draw a series of P points into a panel."""
        if name not in self._lines and len(self._lines) == MAX_SERIES:
            self._left_out.add(name)
            return
        style = style_of(self._numbers.setdefault(name, len(self._numbers)))
        options = {"marker": "o", "markersize": 3, **options}
        (self._lines[name],) = panel.plot(along, values, color=style.colour, linestyle=style.linestyle, **options)

    def plot_runs(self, panel: Any, name: str, along: Sequence[float], runs: Sequence[Sequence[float]]) -> None:
        """Draw the mean of runs, shape ``(S, P)``, and a band of one standard error around it."""
        points = [list(point) for point in zip(*runs, strict=True)]
        means = [statistics.fmean(point) for point in points]
        self.plot(panel, name, along, means)
        if len(runs) > 1:
            errors = [statistics.stdev(point) / len(point) ** 0.5 for point in points]
            self.fill(
                panel,
                name,
                along,
                [mean - error for mean, error in zip(means, errors, strict=True)],
                [mean + error for mean, error in zip(means, errors, strict=True)],
            )

    def fill(self, panel: Any, name: str, along: Sequence[float], low: Any, high: Any) -> None:
        """Draw the band of a series that was plotted."""
        if name in self._left_out:
            return
        panel.fill_between(along, low, high, color=self._lines[name].get_color(), alpha=0.15, linewidth=0)

    def save(self, path: Path, rows: list[Row]) -> None:
        """Write the picture, as PNG or SVG, with a mark of the rows that it shows."""
        import matplotlib as mpl

        for panel in self.panels:
            panel.grid(alpha=0.3)
        lines_below = self._add_legend()
        self._figure.suptitle(self._title, fontsize="medium")
        lines = lines_below + (len(self._title.splitlines()) if self._title else 0)
        self._figure.set_size_inches(self._size[0], self._size[1] + LINE_HEIGHT * (lines + 1))
        metadata: dict[str, Any] = {"Description": fingerprint(rows)}
        if path.suffix == ".svg":
            metadata["Date"] = None
        with mpl.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none", "font.family": "sans-serif"}):
            self._figure.savefig(path, format=path.suffix[1:], dpi=120, metadata=metadata)

    def _add_legend(self) -> int:
        """Name the series below the panels; returns the lines that this takes."""
        names = sorted(self._lines, key=self._numbers.__getitem__)
        # A policy's settings have no spaces to break them at.
        wrapped = [textwrap.fill(name.replace(",", ", ").replace(",  ", ", "), 32) for name in names]
        widest = max(len(line) for name in wrapped for line in name.splitlines())
        num_columns = max(1, int(self._size[0] // (HANDLE_WIDTH + CHARACTER_WIDTH * widest)))
        legend = self._figure.legend(
            [self._lines[name] for name in names],
            wrapped,
            loc="outside lower center",
            ncols=num_columns,
            fontsize="small",
            handlelength=3.2,
        )
        if self._left_out:
            legend.set_title(f"{len(names)} of {len(names) + len(self._left_out)} are shown")
        num_rows = -(-len(names) // num_columns)
        columns = [wrapped[first : first + num_rows] for first in range(0, len(names), num_rows)]
        return max(len("\n".join(column).splitlines()) for column in columns) + bool(self._left_out)


def fingerprint(rows: list[Row]) -> str:
    """What a picture of these rows bears, so that one of others is known."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def is_stale(path: Path, rows: list[Row]) -> bool:
    """Whether a picture is missing, or was drawn from other rows."""
    return not path.exists() or fingerprint(rows).encode() not in path.read_bytes()
