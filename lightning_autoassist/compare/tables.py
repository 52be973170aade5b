"""The comparison as tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lightning_autoassist.compare.comparison import Comparison, Statistic
from lightning_autoassist.pages.terminal import printable, shortened


class Table(NamedTuple):
    """Figures as text.

    Attributes:
        title: What they are.
        lines: A line of headings, and one of cells for each group.
    """

    title: str
    lines: list[list[str]]


def tables(comparison: Comparison) -> list[Table]:
    """What the groups reached and cost; and, where there is a target, what reaching it cost."""
    cost = Table(
        "What the runs reached, and what it cost",
        _lines(
            comparison,
            [
                (f"{comparison.metric} at the end", "final", ".4g"),
                ("at best", "best", ".4g"),
                ("updates", "updates", ",.0f"),
                ("instances", "instances", ",.0f"),
                ("seconds", "seconds", ",.1f"),
            ],
            saved=("updates", "seconds"),
        ),
    )
    if comparison.target is None:
        return [cost]
    until = Table(
        f"Until {comparison.metric} reached {comparison.target:.4g}",
        _lines(
            comparison,
            [("updates", "updates_to_target", ",.0f"), ("seconds", "seconds_to_target", ",.1f")],
            saved=("updates_to_target", "seconds_to_target"),
        ),
    )
    return [cost, until]


def _lines(comparison: Comparison, figures: Sequence[tuple[str, str, str]], saved: Sequence[str]) -> list[list[str]]:
    """Headings and groups: of each figure its heading, its name and its format; then what is saved of some."""
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


def as_text(comparison: Comparison) -> str:
    """The tables and notes for a terminal; control characters in names are replaced.

    Args:
        comparison: What to show.
    """
    parts = [f"{printable(title)}\n{_aligned(lines)}" for title, lines in tables(comparison)]
    return "\n\n".join([*parts, "\n".join(map(printable, comparison.notes))] if comparison.notes else parts)


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
