"""Tables and curves of benchmarks that measure accuracies, from their rows."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common.pictures import Picture, is_stale
from benchmarks.common.rows import RESULTS, current_command, rows_of

Row = dict[str, Any]
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
    """Draw accuracy against optimizer steps, one PNG for each setting, a panel for each budget."""
    for group in benchmark.groups():
        full = [row for row in group if row["method"] == "full"]
        others = grouped((row for row in group if row["method"] != "full"), ("budget",))
        others.sort(key=lambda rows: -rows[0]["budget"])
        names = ["full run", *map(_shown, SUMMARISED)]
        rank = {method: number for number, method in enumerate(SUMMARISED)}
        width = 6.0 if len(others) < 2 else 3.8
        picture = Picture(
            max(len(others), 1),
            benchmark.title(group[0]),
            names=names,
            panel_size=(width, 3.4),
            sharex=True,
            sharey=True,
        )
        for panel, rows in zip(picture.panels, others or [[]], strict=True):
            panel.set(xlabel="optimizer steps", title=f"budget {rows[0]['budget']:g}" if rows else "")
            panel.title.set_size("medium")
            rows = sorted(rows, key=lambda row: rank.get(_policy(row), len(rank)))
            for runs in grouped([*full, *rows], ("method",)):
                curves = [[100 * accuracy for _, accuracy in row["curve"]] for row in runs]
                picture.plot_runs(panel, _series_name(runs[0]), [step for step, _ in runs[0]["curve"]], curves)
        picture.panels[0].set_ylabel("test accuracy, %")
        top = 100 * max(accuracy for row in group for _, accuracy in row["curve"])
        picture.panels[0].set_ylim(top - 12, top + 1)
        picture.save(benchmark.path(group), group)


def stale_curves(benchmark: Benchmark) -> list[str]:
    """The PNGs that are missing, or were drawn from other rows."""
    return [benchmark.path(group).name for group in benchmark.groups() if is_stale(benchmark.path(group), group)]


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
        f"| | budget | full run, % | {' | '.join(map(_shown, SUMMARISED))} |",
        f"|---|---|---|{'---|' * len(SUMMARISED)}",
    ]
    for benchmark in benchmarks:
        for group in benchmark.groups():
            full = full_runs(group)
            accuracy = with_error([100 * row["accuracy"] for row in full.values()]) if full else "-"
            found = {(rows[0]["budget"], _policy(rows[0])): rows for rows in grouped(group, ("method", "budget"))}
            budgets = {budget for budget, policy in found if policy in SUMMARISED and only_budget in (None, budget)}
            for budget in sorted(budgets, reverse=True):
                cells = [points_above(found.get((budget, policy), []), full) for policy in SUMMARISED]
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
        accuracy = with_error([100 * one["accuracy"] for one in rows])
        cells = [
            name_of(row),
            f"{row['updates']:,}",
            saved,
            accuracy,
            points_above(rows, full),
            f"{mean_of(rows, clock):.0f}",
        ]
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


def points_above(rows: list[Row], full: dict[int, Row], name: str = "accuracy") -> str:
    """Points that a method's rows are above the full runs of their own seeds, as a table says it.

    Args:
        rows: Of one method; of the full run itself nothing is said.
        full: From :func:`full_runs`.
        name: Column of shares.
    """
    pairs = [100 * difference for difference in differences(rows, full, name) if rows[0]["method"] != "full"]
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
    """What a row's method is called in tables."""
    return _series_name(row) + ("" if row["method"] == "full" else f", budget {row['budget']:g}")


def _series_name(row: Row) -> str:
    """What a row's method is called in pictures whose panels name the budget."""
    if row["method"] == "full":
        return "full run"
    return "autoassist, TextAssistant" if _is_for_text(row) else _shown(row["method"])


def _shown(method: str) -> str:
    """A method's name, where it might be taken for the package's."""
    return "autoassist, the paper's" if method == "autoassist" else method


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
