"""Tables and curves of benchmarks of accuracies, the images' first of all, and of the wall clock, from their rows."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import RESULTS, rows_of

Row = dict[str, Any]
MODEL_TITLES = {
    "tiny": "convolutional network of 1,030 parameters",
    "small": "small residual network",
    "resnet18": "ResNet-18",
}
GPU_COMMAND = (
    "python benchmarks/images.py --dataset fashion-mnist --instances 0 --image-size 32 --model resnet18 --augment "
    "--device cuda --precision bf16-mixed --channels-last --epochs 30 --workers 8"
)


@dataclass(frozen=True)
class Benchmark:
    """How the rows of a benchmark of accuracies are shown.

    Args:
        table: Name of the rows' file, without its ending.
        setting: What rows have to share to stand in one table.
        title: Says what the setting of a row is.
        stem: Name of the setting's picture, without its ending.
    """

    table: str
    setting: tuple[str, ...]
    title: Callable[[Row], str]
    stem: Callable[[Row], str]

    def groups(self) -> list[list[Row]]:
        """The rows of final runs, by their setting."""
        return grouped((row for row in rows_of(self.table) if row["phase"] == "final"), self.setting)

    def path(self, group: list[Row]) -> Path:
        """The picture of a setting's rows."""
        return RESULTS / f"{self.stem(group[0])}.png"


def image_tables() -> str:
    """One table for each setting."""
    groups = IMAGES.groups()
    tables = [accuracy_table(IMAGES, group) for group in groups]
    if not any(group[0]["device"] == "cuda" for group in groups):
        tables.append(f"ResNet-18 on a GPU was not run yet. The command: `{GPU_COMMAND}`.")
    return "\n\n".join(tables)


def wall_clock_table() -> str:
    """Seconds against those of the full run."""
    rows = list({row["case"]: row for row in rows_of("wall_clock")}.values())
    if not rows:
        return "Not measured yet: `python benchmarks/wall_clock.py`."
    lines = [
        "| case, policy | full run, s | at the budget, s | share of seconds | of updates | of instances loaded |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        loaded = row["budget_instances_loaded"] / row["full_instances_loaded"]
        case = f"{row['case']} ({row['full_step_ms']:.0f} ms a step), budget {row['budget']}"
        seconds = f"{row['full_seconds']:.1f} | {row['budget_seconds']:.1f} | {row['seconds_ratio']:.3f}"
        lines.append(f"| {case} | {seconds} | {row['updates_ratio']:.3f} | {loaded:.3f} |")
    return "\n".join([*lines, "", f"{measured_on(rows)} Fastest of {rows[0]['rounds']} runs of each kind, in turns."])


def write_curves(benchmark: Benchmark) -> None:
    """Draw accuracy against Boss updates, one PNG for each setting."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures for the whole process

    for group in benchmark.groups():
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(xlabel="Boss updates", ylabel="test accuracy (%)")
        axes.set_title(textwrap.fill(benchmark.title(group[0]), 64), fontsize="medium")
        tops = []
        for rows in grouped(group, ("method", "budget")):
            points = [[update for update, _ in row["curve"]] for row in rows]
            accuracies = [[100 * accuracy for _, accuracy in row["curve"]] for row in rows]
            means = [statistics.mean(values) for values in zip(*accuracies, strict=True)]
            tops.append(max(means))
            axes.plot(points[0], means, marker="o", markersize=3, label=_name(rows[0]))
        axes.set_ylim(max(tops) - 12, max(tops) + 1)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(benchmark.path(group), format="png", dpi=120, metadata={"Description": fingerprint(group)})


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


def accuracy_table(benchmark: Benchmark, group: list[Row]) -> str:
    """The table of a setting's rows, and what it was measured on."""
    full = {row["seed"]: row for row in group if row["method"] == "full"}
    full_updates = max((row["updates"] for row in full.values()), default=0)
    lines = [
        f"**{benchmark.title(group[0])}**",
        "",
        "| method | Boss updates | saved | test accuracy, % | against the full run | seconds | seeds | peak rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    # Of the process alone, where that was measured: others may use the machine's cores.
    clock = "cpu_seconds" if all("cpu_seconds" in row and row["device"] == "cpu" for row in group) else "seconds"
    methods = grouped(group, ("method", "budget"))
    for rows in sorted(methods, key=lambda rows: (-rows[0]["budget"], -_mean(rows, "accuracy"))):
        row = rows[0]
        pairs = [100 * (one["accuracy"] - full[one["seed"]]["accuracy"]) for one in rows if one["seed"] in full]
        is_full = row["method"] == "full"
        saved = f"{1 - row['updates'] / full_updates:.0%}" if full_updates and not is_full else "-"
        against = with_error(pairs, "+") if pairs and not is_full else "-"
        rates = "/".join(f"{rate:g}" for rate in sorted({one["learning_rate"] for one in rows}))
        accuracy = with_error([100 * one["accuracy"] for one in rows])
        cells = [_name(row), f"{row['updates']:,}", saved, accuracy, against, f"{_mean(rows, clock):.0f}"]
        lines.append(f"| {' | '.join(cells)} | {len(rows)} | {rates} |")
    return "\n".join(
        [
            *lines,
            "",
            f"![Accuracy against Boss updates](benchmarks/results/{benchmark.path(group).name})",
            "",
            f"{measured_on(group)} Means ± standard errors over the seeds; differences are paired by seed; "
            "seconds are of training without validation, "
            + ("of the process on its core." if clock == "cpu_seconds" else "on a machine that others used too."),
        ]
    )


def _name(row: Row) -> str:
    if row["method"] == "full":
        return "full run"
    is_for_text = "assistant=text" in row["method"]
    return f"{'autoassist, TextAssistant' if is_for_text else row['method']}, budget {row['budget']:g}"


def _title(row: Row) -> str:
    parts = [
        f"{row['dataset']}, {row['train_instances']:,} training images",
        f"{row['image_size']}x{row['image_size']}" if row["image_size"] else "",
        MODEL_TITLES[row["model"]],
        f"batch {row['batch_size']}",
        f"{row['epochs']} epochs",
        "flips and shifts" if row["augment"] else "",
        row["precision"] if row["precision"] != "32-true" else "",
    ]
    return ", ".join(part for part in parts if part)


def measured_on(rows: list[Row]) -> str:
    """A sentence on hardware, versions and commands of rows."""
    where = sorted({f"{row['hardware']}; torch {row['versions']['torch']}" for row in rows})
    commands = sorted({f"`{_whole(row['command'])}`" for row in rows})
    return f"Measured on {' and '.join(where)}, by {' and '.join(commands)}."


def _whole(command: str) -> str:
    """A command without the options that only choose among its runs.

    Example:
        >>> _whole("python images.py --budget 0.6 --augment --seeds 3")
        'python images.py --augment'
    """
    return re.sub(r" --(dataset|budget|policy|seeds) \S+", "", command)


def _mean(rows: list[Row], name: str) -> float:
    return statistics.mean(row[name] for row in rows)


def with_error(values: list[float], sign: str = "") -> str:
    """Mean and standard error of values, in words."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}"


def fingerprint(rows: list[Row]) -> str:
    """What a picture of these rows bears, so that one of others is known."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _stem(row: Row) -> str:
    others = [row[name] for name in ("instances", "image_size", "model") if row[name] not in (None, "small")]
    augmented = ["augmented"] if row["augment"] else []
    parts = ["images", row["dataset"], *others, row["epochs"], *augmented, row["device"]]
    return "-".join(str(part) for part in parts)


IMAGES = Benchmark(
    "images",
    ("dataset", "instances", "image_size", "model", "batch_size", "epochs", "augment", "device", "precision"),
    _title,
    _stem,
)
