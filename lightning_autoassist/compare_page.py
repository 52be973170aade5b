"""The comparison as pictures and as one page that needs no network.

The runs may be strangers': their names and settings are put into the page as JSON that cannot close its element, shown
as text only, and the page's own security policy lets no other script than its own run, nor anything be loaded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from lightning_autoassist.compare import (
    Comparison,
    Curve,
    clock_is_wall,
    comparable_metrics,
    curve_of,
    grouped,
    printable,
    table_cells,
)
from lightning_autoassist.run_readers import LoggedRun

AXIS_TITLES = ("Boss updates", "instances seen", "seconds")
MAX_POINTS = 500  # of a curve
MAX_METRICS = 30
MAX_NAME = 60  # characters of a name in a picture
# By Okabe and Ito, told apart by colour-blind readers; those of the page.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")


def write_page(
    path: Path,
    comparison: Comparison,
    runs: Sequence[LoggedRun],
    *,
    group_by: str = "name",
    batch_size: int | None = None,
) -> None:
    """Write one HTML file: the table, curves of every shared metric with hover, and the settings.

    Args:
        path: The file.
        comparison: Of ``runs``.
        runs: The same runs.
        group_by: As it was given to :func:`~lightning_autoassist.compare.compare`.
        batch_size: Likewise.
    """
    template = files("lightning_autoassist").joinpath("compare_page.html").read_text(encoding="utf-8")
    script = files("lightning_autoassist").joinpath("compare_page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = as_json(_page_data(comparison, runs, group_by, batch_size))
    # Data last: what looks like a placeholder in them stays.
    page = template.replace("@HASH@", digest).replace("@SCRIPT@", script).replace("@DATA@", data)
    path.write_text(page, encoding="utf-8")


def as_json(value: Any) -> str:
    r"""JSON that is safe inside of a script element: no character of it can begin or end markup.

    Example:
        >>> as_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(_finite(value), ensure_ascii=True)
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")


def draw(
    path: Path,
    comparison: Comparison,
    runs: Sequence[LoggedRun],
    *,
    group_by: str = "name",
    batch_size: int | None = None,
) -> None:
    """Draw the metric against Boss updates, instances and seconds.

    Args:
        path: The file; its suffix, ``.png`` or ``.svg``, decides the format.
        comparison: Of ``runs``.
        runs: The same runs.
        group_by: As it was given to :func:`~lightning_autoassist.compare.compare`.
        batch_size: Likewise.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and a backend for the whole process

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    is_wall = clock_is_wall(runs)
    lines = {}
    for number, (name, members) in enumerate(grouped(runs, group_by).items()):
        for run in members:
            curve = curve_of(run, comparison.metric, batch_size=batch_size, is_wall=is_wall)
            for axis, panel in zip(curve[:3], panels, strict=True):
                known = np.isfinite(axis) & np.isfinite(curve.values)
                colour = COLOURS[number % len(COLOURS)]
                (lines[name],) = panel.plot(axis[known], curve.values[known], color=colour, marker=".", alpha=0.8)
    for title, panel in zip(AXIS_TITLES, panels, strict=True):
        panel.set_xlabel(title)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(_short(comparison.metric), parse_math=False)
    # Names are set afterwards: as labels they could be mathematics, or hidden by an underscore.
    legend = figure.legend(list(lines.values()), [" "] * len(lines), loc="outside lower center", ncols=3)
    for text, name in zip(legend.get_texts(), lines, strict=True):
        text.set_parse_math(False)
        text.set_text(_short(name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(path, format=path.suffix[1:], dpi=90)


def _page_data(
    comparison: Comparison, runs: Sequence[LoggedRun], group_by: str, batch_size: int | None
) -> dict[str, Any]:
    others = [name for name in comparable_metrics(runs) if name != comparison.metric]
    metrics = [comparison.metric, *others[: MAX_METRICS - 1]]
    is_wall = clock_is_wall(runs)
    groups = grouped(runs, group_by)
    return {
        "metric": comparison.metric,
        "metrics": metrics,
        "axes": AXIS_TITLES,
        "groups": list(groups),
        "table": table_cells(comparison),
        "notes": comparison.notes,
        "runs": [
            {
                "name": run.name,
                "group": group,
                "source": run.source,
                "config": json.dumps(_finite(run.config), indent=2, default=str, sort_keys=True),
                "curves": {
                    name: _points(curve_of(run, name, batch_size=batch_size, is_wall=is_wall)) for name in metrics
                },
            }
            for group, members in groups.items()
            for run in members
        ],
    }


def _points(curve: Curve) -> list[list[float]]:
    chosen = np.unique(np.linspace(0, len(curve.values) - 1, MAX_POINTS).round().astype(int))
    points: list[list[float]] = np.stack(curve)[:, chosen].T.tolist()
    return points


def _finite(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
