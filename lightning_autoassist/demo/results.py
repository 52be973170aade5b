"""What the demo's runs cost and reached: recorded, as a table, and as a plot."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table

from lightning_autoassist.demo.settings import UNIFORM
from lightning_autoassist.pages.series_styles import MAX_SERIES, Style, style_of


@dataclass(frozen=True)
class RunResult:
    """What a run cost and reached.

    Args:
        method: ``"full"`` or the policy's name.
        name: Of the method, as it is shown.
        seed: Of the parameters and the order of the instances.
        optimizer_steps: Optimizer steps.
        instances_seen: Instances that the model was trained on, repeats included.
        seconds: Of training, without validation.
        value: The metric on the held-out instances at the end, in [0, 1].
        keep_rate: Share of the candidates that entered a batch; None where everything is kept.
        curve: Optimizer steps and the metric at each validation.
    """

    method: str
    name: str
    seed: int
    optimizer_steps: int
    instances_seen: int
    seconds: float
    value: float
    keep_rate: float | None
    curve: tuple[tuple[int, float], ...]


class Recorder(pl.Callback):
    """Keeps a run's figures: instances, seconds of training, the metric at each validation.

    Args:
        metric: Its name among what the module logs.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.instances_seen = 0
        self.seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self._started = 0.0

    def on_train_start(self, *args: Any) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.instances_seen += len(batch[1])

    def on_validation_start(self, *args: Any) -> None:
        self.seconds += time.perf_counter() - self._started

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.curve.append((trainer.global_step, float(trainer.callback_metrics[self.metric])))
        self._started = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def by_method(results: Sequence[RunResult]) -> list[list[RunResult]]:
    """The runs of each method, its seeds in their order; methods in the order of their first runs."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.method, []).append(result)
    return list(groups.values())


def differences(runs: Sequence[RunResult], others: Sequence[RunResult]) -> list[float]:
    """How far runs are above others of the same seeds, in [-1, 1].

    Args:
        runs: Of one method.
        others: Of another; seeds that only one of both has are left out.
    """
    values = {other.seed: other.value for other in others}
    return [run.value - values[run.seed] for run in runs if run.seed in values]


def in_points(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard error in percentage points.

    Args:
        values: Shares, at least one.
        sign: ``"+"`` shows the sign of the mean.

    Example:
        >>> in_points([0.01, 0.03], "+")
        '+2.0 ± 1.0'
    """
    mean = f"{100 * statistics.fmean(values):{sign}.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * standard_error(values):.1f}"


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 of one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def as_table(results: Sequence[RunResult], metric: str) -> Table:
    """The methods side by side.

    Args:
        results: The runs, among them those of the shortened schedule.
        metric: What was measured, in words.
    """
    groups = by_method(results)
    uniform = next(runs for runs in groups if runs[0].method == UNIFORM)
    table = Table()
    table.add_column("method")
    for title in ("steps", "seconds", "kept"):
        table.add_column(title, justify="right")
    for title in (f"{metric}, %", "above uniform"):
        table.add_column(title, justify="right", min_width=10)
    for runs in groups:
        table.add_row(
            runs[0].name,
            f"{runs[0].optimizer_steps:,}",
            f"{statistics.fmean(run.seconds for run in runs):.1f}",
            _keep_rate(runs),
            in_points([run.value for run in runs]),
            "-" if runs is uniform else in_points(differences(runs, uniform), "+"),
        )
    return table


def _keep_rate(runs: Sequence[RunResult]) -> str:
    rates = [run.keep_rate for run in runs if run.keep_rate is not None]
    return f"{statistics.fmean(rates):.0%}" if rates else "-"


def draw(results: Sequence[RunResult], path: Path, metric: str) -> None:
    """Draw the metric on the held-out instances against optimizer steps: means over seeds, and their standard errors.

    Args:
        results: The runs; the first ten methods are drawn.
        path: The PNG to write.
        metric: What was measured, in words.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and a backend for the whole process

    figure = Figure(figsize=(8.5, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer steps", ylabel=f"{metric} (%)")
    for number, runs in enumerate(by_method(results)[:MAX_SERIES]):
        _draw_method(axes, runs, style_of(number))
    num_seeds = len({result.seed for result in results})
    axes.set_title(f"mean and standard error of {num_seeds} seeds" if num_seeds > 1 else "one seed", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, format="png", dpi=150)


def _draw_method(axes: Any, runs: Sequence[RunResult], style: Style) -> None:
    steps = [step for step, _ in runs[0].curve]
    points = list(zip(*([100 * value for _, value in run.curve] for run in runs), strict=True))
    means, errors = [statistics.fmean(point) for point in points], [standard_error(point) for point in points]
    axes.plot(steps, means, color=style.colour, linestyle=style.linestyle, marker="o", markersize=3, label=runs[0].name)
    low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=style.colour, alpha=0.15, linewidth=0)
