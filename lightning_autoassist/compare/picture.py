"""The comparison as a picture: curves with error bands over seeds, and differences to the baseline."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_autoassist.compare.comparison import Comparison
from lightning_autoassist.compare.curves import Curve, MeanCurve, curve_of, mean_curve
from lightning_autoassist.compare.groups import grouped
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.compare.series import shown_groups
from lightning_autoassist.compare.shareable import without_paths
from lightning_autoassist.pages.series_styles import MAX_SERIES, style_of
from lightning_autoassist.pages.terminal import shortened

AXIS_TITLES = ("optimizer steps", "instances seen", "seconds")
MAX_LEGEND_COLUMNS = 3


def draw(path: Path, comparison: Comparison, runs: Sequence[LoggedRun]) -> None:
    """Draw the metric against optimizer steps, instances and seconds, and the differences to the baseline.

    Of more than ten groups, the baseline and the nine best are drawn. Where several runs of a group were measured at
    the same updates, a line is their mean, and the band around it the mean's standard error.

    Args:
        path: The file; its suffix, ``.png`` or ``.svg``, decides the format.
        comparison: The comparison of ``runs``.
        runs: The runs that ``comparison`` compares.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and a backend for the whole process

    num_panels = len(AXIS_TITLES) + bool(comparison.differences)
    figure = Figure(figsize=(4 * num_panels, 4), layout="constrained")
    first = figure.add_subplot(1, num_panels, 1)
    others = [figure.add_subplot(1, num_panels, number, sharey=first) for number in (2, 3)]
    members = grouped(runs, comparison.group_by)
    lines = {
        name: _draw_group(comparison, [first, *others], members[name], number)
        for number, name in enumerate(shown_groups(comparison))
    }
    _label(comparison, [first, *others])
    if comparison.differences:
        _draw_differences(comparison, figure.add_subplot(1, num_panels, num_panels), lines)
    _add_legend(figure, comparison, lines)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, format=path.suffix[1:], dpi=90)


def _draw_group(comparison: Comparison, panels: Sequence[Any], runs: Sequence[LoggedRun], number: int) -> Any:
    """Draw a group's curves; returns the line that stands for the group in the legend."""
    curves = [
        curve_of(run, comparison.metric, batch_size=comparison.batch_size, is_wall=comparison.seconds_are_wall)
        for run in runs
    ]
    mean, style = mean_curve(curves), style_of(number)
    look = {"color": style.colour, "linestyle": style.linestyle}
    for curve in curves:
        line = _plot(panels, curve, **look, linewidth=1.5 if mean is None else 0.8, alpha=0.9 if mean is None else 0.25)
    if mean is not None:
        line = _plot(panels, mean, **look, marker=".", markersize=4, linewidth=2)
        _fill(panels, mean, style.colour)
    return line


def _plot(panels: Sequence[Any], curve: Curve | MeanCurve, **style: Any) -> Any:
    """Draw a curve into the panel of each axis; returns the last line."""
    for axis, panel in zip(curve[:3], panels, strict=True):
        known = np.isfinite(axis) & np.isfinite(curve.values)
        (line,) = panel.plot(axis[known], curve.values[known], **style)
    return line


def _fill(panels: Sequence[Any], mean: MeanCurve, colour: str) -> None:
    """Draw the band of one standard error around a mean."""
    for axis, panel in zip(mean[:3], panels, strict=True):
        known = np.isfinite(axis) & np.isfinite(mean.values) & np.isfinite(mean.errors)
        low, high = mean.values - mean.errors, mean.values + mean.errors
        panel.fill_between(axis[known], low[known], high[known], color=colour, alpha=0.2, linewidth=0)


def _label(comparison: Comparison, panels: Sequence[Any]) -> None:
    from matplotlib.ticker import EngFormatter

    for title, panel in zip(AXIS_TITLES, panels, strict=True):
        panel.set_xlabel(title)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(shortened(comparison.metric), parse_math=False)


def _draw_differences(comparison: Comparison, panel: Any, lines: dict[str, Any]) -> None:
    """Draw a dot for the difference of each group that has a line, with a bar of one standard error to each side."""
    shown = [each for each in comparison.differences if each.group in lines and np.isfinite(each.mean)]
    for row, each in enumerate(reversed(shown)):
        colour = lines[each.group].get_color()
        panel.errorbar(each.mean, row, xerr=each.standard_error or 0, fmt="o", color=colour, capsize=4)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_ylim(-0.5, max(len(shown), 1) - 0.5)
    panel.set_yticks([])
    panel.grid(alpha=0.3, axis="x")
    name = shortened(without_paths(comparison.baseline or ""), 30)
    panel.set_xlabel(f"difference to {name} at the end", parse_math=False)


def _add_legend(figure: Any, comparison: Comparison, lines: dict[str, Any]) -> None:
    """Put the groups' names below the panels, and what lines, bands and bars are."""
    # Names are set afterwards: as labels they could be mathematics, or hidden by an underscore.
    columns = min(MAX_LEGEND_COLUMNS, len(lines))
    legend = figure.legend(list(lines.values()), [" "] * len(lines), loc="outside lower center", ncols=columns)
    sizes = {group.name: len(group.runs) for group in comparison.groups}
    for text, name in zip(legend.get_texts(), lines, strict=True):
        several = f" ({sizes[name]} runs)" if sizes[name] > 1 else ""
        text.set_parse_math(False)
        text.set_text(shortened(without_paths(name)) + several)
    said = []
    if any(size > 1 for size in sizes.values()):
        said.append("Thick lines are means over runs, bands and bars their standard errors.")
    if len(sizes) > MAX_SERIES:
        said.append(f"{len(lines)} of {len(sizes)} groups are shown.")
    if said:
        legend.set_title(" ".join(said), prop={"size": "small"})
