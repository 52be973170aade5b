"""The comparison as tables of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lightning_autoassist.compare.comparison import Comparison
from lightning_autoassist.compare.figures import Difference, Statistic
from lightning_autoassist.compare.series import title_of_differences
from lightning_autoassist.pages.terminal import printable, shortened

# Of the settings that differ, in a terminal; the page shows all.
MAX_SETTINGS, MAX_COLUMNS = 20, 6


class Table(NamedTuple):
    """Figures as text.

    Attributes:
        title: What they are.
        lines: A line of headings, and below it lines of cells.
    """

    title: str
    lines: list[list[str]]


def tables(comparison: Comparison) -> list[Table]:
    """What the groups reached and cost, what it cost them to reach the target, and how they differ from the baseline.

    Args:
        comparison: What to show; without a target or a baseline, their tables are left out.
    """
    found = [_costs(comparison)]
    if comparison.target is not None:
        found.append(_costs_until_target(comparison, comparison.target))
    if comparison.differences:
        headings = ["run", "pairs of seeds", "difference", "standard error"]
        lines = [headings, *map(_difference_cells, comparison.differences)]
        found.append(Table(title_of_differences(comparison), lines))
    return found


def settings_table(comparison: Comparison, shown: Callable[[str], str] = str) -> Table | None:
    """The settings that differ between runs, a line each; None where none does.

    Args:
        comparison: What to show.
        shown: A function that is applied to each name and each value.
    """
    if not comparison.settings:
        return None
    headings = ["setting", *(shown(group.name) for group in comparison.groups)]
    lines = [
        [shown(key), *(", ".join(map(shown, values)) for values in by_group.values())]
        for key, by_group in comparison.settings.items()
    ]
    return Table("Settings that differ", [headings, *lines])


def as_text(comparison: Comparison) -> str:
    """The tables and notes for a terminal; control characters in names are replaced.

    Args:
        comparison: What to show.
    """
    shown, notes = tables(comparison), list(comparison.notes)
    settings = settings_table(comparison)
    if settings is not None and len(settings.lines) <= MAX_SETTINGS + 1 and len(settings.lines[0]) <= MAX_COLUMNS + 1:
        shown.append(settings)
    elif settings is not None:
        notes.append(f"{len(settings.lines) - 1} settings differ between the runs; compare.html shows them.")
    parts = [f"{printable(title)}\n{_aligned(lines)}" for title, lines in shown]
    if comparison.verdicts:
        parts.append("\n".join(["Does it pay?", *map(printable, comparison.verdicts)]))
    return "\n\n".join([*parts, "\n".join(map(printable, notes))] if notes else parts)


def _costs(comparison: Comparison) -> Table:
    figures = [
        (f"{comparison.metric} at the end", "final", ".4g"),
        ("at best", "best", ".4g"),
        ("updates", "updates", ",.0f"),
        ("instances", "instances", ",.0f"),
        ("seconds", "seconds", ",.1f"),
    ]
    has_spread = any(len(group.runs) > 1 for group in comparison.groups)
    title = "What the runs reached, and what it cost" + (" (mean ± standard deviation)" if has_spread else "")
    return Table(title, _lines(comparison, figures, saved=("updates", "seconds")))


def _costs_until_target(comparison: Comparison, target: float) -> Table:
    figures = [("updates", "updates_to_target", ",.0f"), ("seconds", "seconds_to_target", ",.1f")]
    lines = _lines(comparison, figures, saved=("updates_to_target", "seconds_to_target"))
    return Table(f"Until {comparison.metric} reached {target:.4g}", lines)


def _difference_cells(difference: Difference) -> list[str]:
    error = difference.standard_error
    return [
        difference.group,
        str(difference.num_pairs) if difference.num_pairs else "unpaired",
        f"{difference.mean:+.4g}",
        "-" if error is None else f"{error:.2g}",
    ]


def _lines(comparison: Comparison, figures: Sequence[tuple[str, str, str]], saved: Sequence[str]) -> list[list[str]]:
    """Lines of a table: of each figure its heading, its name and its format are given; ``saved`` names figures too."""
    saved = saved if comparison.baseline is not None else ()
    headings = [
        "run",
        "runs",
        *(heading for heading, _, _ in figures),
        *(f"saved {name.split('_')[0]}" for name in saved),
    ]
    lines = [headings]
    for group in comparison.groups:
        cells = [_cell(group.statistic(name), len(group.runs), form) for _, name, form in figures]
        shares = (comparison.saving(group, name) for name in saved)
        cells += ["-" if share is None else f"{share:+.1%}" for share in shares]
        lines.append([group.name, str(len(group.runs)), *cells])
    return lines


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    shown = [[shortened(cell) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in shown]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


def _cell(statistic: Statistic | None, num_runs: int, form: str) -> str:
    if statistic is None:
        return "-"
    text = format(statistic.mean, form)
    if statistic.spread:
        text += f" ± {statistic.spread:.2g}" if form == ".4g" else f" ± {statistic.spread:{form}}"
    return text if statistic.num_runs == num_runs else f"{text} ({statistic.num_runs} of {num_runs})"
