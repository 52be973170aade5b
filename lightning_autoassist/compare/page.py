"""The comparison as pictures and as one page that needs no network.

The runs may be strangers': their names and settings are shown as text only, see ``pages``. The page is made to be
shared: of a machine's paths it has the last parts only.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_autoassist.compare.comparison import Comparison, Curve, comparable_metrics, curve_of, mean_curve
from lightning_autoassist.compare.groups import grouped
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.compare.shareable import bounded, without_paths
from lightning_autoassist.compare.tables import Table, tables
from lightning_autoassist.pages.html import write_html
from lightning_autoassist.pages.terminal import printable, shortened

AXIS_TITLES = ("optimizer steps", "instances seen", "seconds")
MAX_POINTS = 300  # of a curve
MAX_METRICS = 20
MAX_SETTINGS = 2_000  # of a run
# By Okabe and Ito, told apart by colour-blind readers, on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")


def write_page(
    path: Path,
    comparison: Comparison,
    runs: Sequence[LoggedRun],
) -> None:
    """Write one HTML file: the table, curves of every shared metric with hover, and the settings.

    Args:
        path: The file.
        comparison: The comparison of ``runs``.
        runs: The runs that ``comparison`` compares.
    """
    write_html(path, "lightning_autoassist.compare", "compare_page", _page_data(comparison, runs))


def draw(
    path: Path,
    comparison: Comparison,
    runs: Sequence[LoggedRun],
) -> None:
    """Draw the metric against optimizer steps, instances and seconds.

    Args:
        path: The file; its suffix, ``.png`` or ``.svg``, decides the format.
        comparison: The comparison of ``runs``.
        runs: The runs that ``comparison`` compares.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and a backend for the whole process
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    lines = {}
    for number, (name, members) in enumerate(grouped(runs, comparison.group_by).items()):
        curves = [_curve(comparison, run, comparison.metric) for run in members]
        mean, colour = mean_curve(curves), COLOURS[number % len(COLOURS)]
        # Several runs' mean stands before them.
        for curve in curves:
            (lines[name],) = _plot(panels, curve, color=colour, alpha=0.9 if mean is None else 0.25)
        if mean is not None:
            (lines[name],) = _plot(panels, mean, color=colour, marker=".", linewidth=2)
    for title, panel in zip(AXIS_TITLES, panels, strict=True):
        panel.set_xlabel(title)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))  # 200k
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(shortened(comparison.metric), parse_math=False)
    # Names are set afterwards: as labels they could be mathematics, or hidden by an underscore.
    legend = figure.legend(list(lines.values()), [" "] * len(lines), loc="outside lower center", ncols=3)
    for text, name in zip(legend.get_texts(), lines, strict=True):
        text.set_parse_math(False)
        text.set_text(shortened(without_paths(name)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, format=path.suffix[1:], dpi=90)


def _plot(panels: Any, curve: Curve, **style: Any) -> list[Any]:
    """Draw a curve into a panel for each axis; returns the last one's line."""
    for axis, panel in zip(curve[:3], panels, strict=True):
        known = np.isfinite(axis) & np.isfinite(curve.values)
        drawn: list[Any] = panel.plot(axis[known], curve.values[known], **style)
    return drawn


def _page_data(comparison: Comparison, runs: Sequence[LoggedRun]) -> dict[str, Any]:
    others = [name for name in comparable_metrics(runs) if name != comparison.metric]
    metrics = [comparison.metric, *others[: MAX_METRICS - 1]]
    groups = []
    for group, members in grouped(runs, comparison.group_by).items():
        curves = {name: [_curve(comparison, run, name) for run in members] for name in metrics}
        means = {name: mean_curve(of_runs) for name, of_runs in curves.items()}
        groups.append(
            {
                "name": _name(group),
                "means": {name: None if mean is None else _points(mean) for name, mean in means.items()},
                "runs": [
                    {
                        "name": _name(run.name),
                        "source": _name(run.source),
                        "config": _config_text(run.config),
                        "curves": {name: _points(curves[name][number]) for name in metrics},
                    }
                    for number, run in enumerate(members)
                ],
            }
        )
    return {
        "metric": comparison.metric,
        "metrics": metrics,
        "axes": AXIS_TITLES,
        "tables": [_shared(table)._asdict() for table in tables(comparison)],
        "notes": [_name(note) for note in comparison.notes],
        "colours": COLOURS,
        "groups": groups,
    }


def _curve(comparison: Comparison, run: LoggedRun, metric: str) -> Curve:
    return curve_of(run, metric, batch_size=comparison.batch_size, is_wall=comparison.seconds_are_wall)


def _points(curve: Curve) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, len(curve.values) - 1, MAX_POINTS).round().astype(int))
    return [[float(f"{number:.7g}") for number in point] for point in np.stack(curve)[:, chosen].T.tolist()]


def _config_text(config: dict[str, Any]) -> str:
    text = json.dumps(bounded(config, [MAX_SETTINGS]), indent=2, sort_keys=True, ensure_ascii=False)
    return "\n".join(map(printable, text.split("\n")))


def _shared(table: Table) -> Table:
    headings, *groups = table.lines
    return Table(table.title, [headings, *([_name(name), *cells] for name, *cells in groups)])


def _name(text: str) -> str:
    return printable(without_paths(text))
