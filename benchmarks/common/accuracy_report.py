"""Tables and curves of benchmarks that measure accuracies, from their rows."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.rows import RESULTS, current_command, rows_of

Row = dict[str, Any]
MAX_SERIES = 10  # of a picture
LINE_STYLES: tuple[Any, ...] = ("--", ":", "-.", (0, (1, 4)), (0, (5, 5)))
# The summary's columns: policies with their own settings, the default first.
SUMMARISED = ("prioritized", "proportional", "infobatch", "autoassist", "uniform")


@dataclass(frozen=True)
class Benchmark:
    """How the rows of a benchmark of accuracies are shown.

    Args:
        table: Name of the rows' file, without its ending.
        setting: What rows have to share to stand in one table.
        title: Says what the setting of a row is.
        case: Says it in few words.
        stem: Name of the setting's picture, without its ending.
    """

    table: str
    setting: tuple[str, ...]
    title: Callable[[Row], str]
    case: Callable[[Row], str]
    stem: Callable[[Row], str]

    def groups(self) -> list[list[Row]]:
        """The rows of final runs, by their setting, in the order of its title."""
        final = (row for row in rows_of(self.table) if row["phase"] == "final")
        return sorted(grouped(final, self.setting), key=lambda group: self.title(group[0]))

    def path(self, group: list[Row]) -> Path:
        """The picture of a setting's rows."""
        return RESULTS / f"{self.stem(group[0])}.png"


def write_curves(benchmark: Benchmark) -> None:
    """Draw accuracy against optimizer steps, one PNG for each setting: a colour a method, a line style a budget."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures for the whole process

    for group in benchmark.groups():
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel="optimizer steps", ylabel="test accuracy (%), mean and standard error")
        axes.set_title(textwrap.fill(benchmark.title(group[0]), 64), fontsize="medium")
        tops = [_draw_runs(axes, rows, style) for rows, style in _styled(group)]
        axes.set_ylim(max(tops) - 12, max(tops) + 1)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize="small")
        figure.savefig(benchmark.path(group), format="png", dpi=120, metadata={"Description": fingerprint(group)})


def _styled(group: list[Row]) -> list[tuple[list[Row], dict[str, Any]]]:
    """At most ten series, those without options of their own first, each with its colour and line style."""
    series = grouped(group, ("method", "budget"))
    rank = {method: number for number, method in enumerate(("full", *SUMMARISED))}
    series.sort(key=lambda rows: (":" in rows[0]["method"], -rows[0]["budget"], rank.get(rows[0]["method"], len(rank))))
    shown = series[:MAX_SERIES]
    methods = list(dict.fromkeys(rows[0]["method"] for rows in shown))
    budgets = sorted({rows[0]["budget"] for rows in shown if rows[0]["budget"] < 1}, reverse=True)
    styles = {1.0: "-", **dict(zip(budgets, LINE_STYLES, strict=False))}
    return [
        (rows, {"color": f"C{methods.index(rows[0]['method'])}", "linestyle": styles[rows[0]["budget"]]})
        for rows in shown
    ]


def _draw_runs(axes: Any, rows: list[Row], style: dict[str, Any]) -> float:
    """Draw the mean over seeds and its standard error; returns the highest mean."""
    steps = [step for step, _ in rows[0]["curve"]]
    by_point = list(zip(*([100 * accuracy for _, accuracy in row["curve"]] for row in rows), strict=True))
    means = [statistics.mean(values) for values in by_point]
    errors = [statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0 for values in by_point]
    axes.plot(steps, means, marker="o", markersize=3, label=name_of(rows[0]), **style)
    low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, alpha=0.15, color=style["color"], linewidth=0)
    return max(means)


def stale_curves(benchmark: Benchmark) -> list[str]:
    """The PNGs that are missing, or were drawn from other rows."""
    paths = {benchmark.path(group): fingerprint(group) for group in benchmark.groups()}
    return [path.name for path, mark in paths.items() if not path.exists() or mark.encode() not in path.read_bytes()]


def grouped(rows: Iterable[Row], names: tuple[str, ...]) -> list[list[Row]]:
    """Rows that have the same values in the columns ``names``, together."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def summary_table(benchmarks: Sequence[Benchmark], only_budget: float | None = None) -> str:
    """Points of accuracy against the full run: a line for each setting and budget, a column for each policy.

    Args:
        benchmarks: Whose rows are summarised.
        only_budget: Shows this budget alone; None shows all of them.
    """
    lines = [
        f"| | budget | full run, % | {' | '.join(SUMMARISED)} |",
        f"|---|---|---|{'---|' * len(SUMMARISED)}",
    ]
    for benchmark in benchmarks:
        for group in benchmark.groups():
            full = full_runs(group)
            accuracy = with_error([100 * row["accuracy"] for row in full.values()]) if full else "-"
            found = {(rows[0]["budget"], _policy(rows[0])): rows for rows in grouped(group, ("method", "budget"))}
            budgets = {budget for budget, policy in found if policy in SUMMARISED and only_budget in (None, budget)}
            for budget in sorted(budgets, reverse=True):
                cells = [_against(found.get((budget, policy), []), full) for policy in SUMMARISED]
                lines.append(f"| {benchmark.case(group[0])} | {budget:g} | {accuracy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def accuracy_table(benchmark: Benchmark, group: list[Row]) -> str:
    """The table of a setting's rows, and what it was measured on."""
    full = full_runs(group)
    full_updates = max((row["updates"] for row in full.values()), default=0)
    lines = [
        f"**{benchmark.title(group[0])}**",
        "",
        "| method | optimizer steps | saved | test accuracy, % | against the full run | seconds | seeds | peak rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    # Of the process alone, where that was measured: others may use the machine's cores.
    clock = "cpu_seconds" if all("cpu_seconds" in row and row["device"] == "cpu" for row in group) else "seconds"
    methods = grouped(group, ("method", "budget"))
    for rows in sorted(methods, key=lambda rows: (-rows[0]["budget"], -mean_of(rows, "accuracy"))):
        row = rows[0]
        is_full = row["method"] == "full"
        saved = f"{1 - row['updates'] / full_updates:.0%}" if full_updates and not is_full else "-"
        against = "-" if is_full else _against(rows, full)
        accuracy = with_error([100 * one["accuracy"] for one in rows])
        cells = [name_of(row), f"{row['updates']:,}", saved, accuracy, against, f"{mean_of(rows, clock):.0f}"]
        lines.append(f"| {' | '.join(cells)} | {len(rows)} | {rates_of(rows)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"![Accuracy against optimizer steps]({benchmark.path(group).name})",
            "",
            f"{measured_on(group)} Means ± standard errors over the seeds; differences are paired by seed; "
            "seconds are of training without validation, "
            + ("of the process on its core." if clock == "cpu_seconds" else "on a machine that others used too."),
        ]
    )


def full_runs(group: list[Row]) -> dict[int, Row]:
    """The full run's rows, by their seeds."""
    return {row["seed"]: row for row in group if row["method"] == "full"}


def _against(rows: list[Row], full: dict[int, Row]) -> str:
    """Points that rows are above the full runs of their own seeds."""
    pairs = [100 * difference for difference in differences(rows, full, "accuracy")]
    return with_error(pairs, "+") if pairs else "-"


def differences(rows: list[Row], full: dict[int, Row], name: str) -> list[float]:
    """How far rows are above the full runs of their own seeds in the column ``name``."""
    return [row[name] - full[row["seed"]][name] for row in rows if row["seed"] in full]


def _is_for_text(row: Row) -> bool:
    return "assistant=text" in row["method"]


def _policy(row: Row) -> str:
    """The summary's column of a row: the paper's rule has an Assistant for each kind of data."""
    return "autoassist" if _is_for_text(row) else str(row["method"])


def name_of(row: Row) -> str:
    """What a row's method is called in tables and pictures."""
    if row["method"] == "full":
        return "full run"
    return f"{'autoassist, TextAssistant' if _is_for_text(row) else row['method']}, budget {row['budget']:g}"


def measured_on(rows: list[Row]) -> str:
    """A sentence on hardware, versions and commands of rows."""
    where = sorted({f"{row['hardware']}; torch {row['versions']['torch']}" for row in rows})
    commands = sorted({f"`{_whole(current_command(row['command']))}`" for row in rows})
    return f"Measured on {' and '.join(where)}, by {' and '.join(commands)}."


def _whole(command: str) -> str:
    """A command without the options that only choose among its runs.

    Example:
        >>> _whole("python -m benchmarks.images --budget 0.6 --augment --seeds 3")
        'python -m benchmarks.images --augment'
    """
    return re.sub(r" --(dataset|budget|policy|seeds|plan|case|part) \S+", "", command)


def mean_of(rows: list[Row], name: str) -> float:
    """Mean of a column."""
    return statistics.mean(row[name] for row in rows)


def rates_of(rows: list[Row]) -> str:
    """The learning rates that rows were trained with."""
    return "/".join(f"{rate:g}" for rate in sorted({row["learning_rate"] for row in rows}))


def with_error(values: list[float], sign: str = "") -> str:
    """Mean and standard error of values, in words."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def fingerprint(rows: list[Row]) -> str:
    """What a picture of these rows bears, so that one of others is known."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
