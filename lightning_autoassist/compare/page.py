"""The comparison as one page that needs no network.

The runs may be strangers': their names and settings are shown as text only, see ``pages``. The page is made to be
shared: of a machine's paths it has the last parts only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_autoassist.compare.comparison import Comparison, comparable_metrics
from lightning_autoassist.compare.curves import Curve, MeanCurve, curve_of, mean_curve
from lightning_autoassist.compare.differing import MAX_SETTINGS
from lightning_autoassist.compare.groups import grouped
from lightning_autoassist.compare.logged_runs import LoggedRun
from lightning_autoassist.compare.picture import AXIS_TITLES
from lightning_autoassist.compare.series import shown_groups, title_of_differences
from lightning_autoassist.compare.shareable import bounded, without_paths
from lightning_autoassist.compare.tables import Table, settings_table, tables
from lightning_autoassist.pages.html import write_html
from lightning_autoassist.pages.series_styles import style_of
from lightning_autoassist.pages.terminal import printable, shortened

MAX_POINTS = 300  # of a curve
MAX_METRICS = 20
MAX_CELL = 200  # characters
WIDTH = 2  # of a line, in pixels


def write_page(path: Path, comparison: Comparison, runs: Sequence[LoggedRun]) -> None:
    """Write one HTML file: the tables, the curves of all shared metrics, the differences, and the settings.

    Args:
        path: The file.
        comparison: The comparison of ``runs``.
        runs: The runs that ``comparison`` compares.
    """
    write_html(path, "lightning_autoassist.compare", "compare_page", _page_data(comparison, runs))


def _page_data(comparison: Comparison, runs: Sequence[LoggedRun]) -> dict[str, Any]:
    others = [name for name in comparable_metrics(runs) if name != comparison.metric]
    metrics = [comparison.metric, *others[: MAX_METRICS - 1]]
    members, shown = grouped(runs, comparison.group_by), shown_groups(comparison)
    # Those that are shown at first have the first ten styles, which the picture gives them, too.
    numbers = {name: number for number, name in enumerate([*shown, *(name for name in members if name not in shown)])}
    settings = settings_table(comparison, _name)  # each value by itself: what follows a path may belong to it
    return {
        "metric": comparison.metric,
        "metrics": metrics,
        "axes": AXIS_TITLES,
        "tables": [_shared(table) for table in tables(comparison)],
        "settings": None if settings is None else _shared(settings),
        "differences": _differences(comparison),
        "verdicts": [_name(verdict) for verdict in comparison.verdicts],
        "notes": [_name(note) for note in comparison.notes],
        "groups": [
            {
                "name": _name(name),
                "isShown": name in shown,
                "colour": style_of(numbers[name]).colour,
                "dashes": " ".join(f"{WIDTH * length:g}" for length in style_of(numbers[name]).dashes),
                **_curves(comparison, of_group, metrics),
            }
            for name, of_group in members.items()
        ],
    }


def _curves(comparison: Comparison, runs: Sequence[LoggedRun], metrics: Sequence[str]) -> dict[str, Any]:
    """The curves of a group: of each run, and their means."""
    curves = {name: [_curve(comparison, run, name) for run in runs] for name in metrics}
    means = {name: mean_curve(of_runs) for name, of_runs in curves.items()}
    return {
        "means": {name: None if mean is None else _points(mean) for name, mean in means.items()},
        "runs": [
            {
                "name": _name(run.name),
                "source": _name(run.source),
                "config": _config_text(run.config),
                "curves": {name: _points(curves[name][number]) for name in metrics},
            }
            for number, run in enumerate(runs)
        ],
    }


def _differences(comparison: Comparison) -> dict[str, Any] | None:
    """The differences to the baseline; each names its group by its number."""
    if not comparison.differences:
        return None
    numbers = {group.name: number for number, group in enumerate(comparison.groups)}
    return {
        "title": _name(title_of_differences(comparison)),
        "all": [
            {"group": numbers[each.group], "mean": each.mean, "error": each.standard_error, "pairs": each.num_pairs}
            for each in comparison.differences
        ],
    }


def _curve(comparison: Comparison, run: LoggedRun, metric: str) -> Curve:
    return curve_of(run, metric, batch_size=comparison.batch_size, is_wall=comparison.seconds_are_wall)


def _points(curve: Curve | MeanCurve) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, len(curve.values) - 1, MAX_POINTS).round().astype(int))
    return [[float(f"{number:.7g}") for number in point] for point in np.stack(curve)[:, chosen].T.tolist()]


def _config_text(config: dict[str, Any]) -> str:
    text = json.dumps(bounded(config, [MAX_SETTINGS]), indent=2, sort_keys=True, ensure_ascii=False)
    return "\n".join(map(printable, text.split("\n")))


def _shared(table: Table) -> dict[str, Any]:
    """A table whose texts may be shared and are no longer than a cell shows."""
    lines = [[_name(shortened(cell, MAX_CELL)) for cell in line] for line in table.lines]
    return {"title": _name(table.title), "lines": lines}


def _name(text: str) -> str:
    return printable(without_paths(text))
