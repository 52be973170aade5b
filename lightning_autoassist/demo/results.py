"""What the demo's runs cost and reached: recorded, as a table, and as a plot."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table


@dataclass(frozen=True)
class RunResult:
    """What a run cost and reached.

    Args:
        name: Of the run.
        optimizer_steps: Optimizer steps.
        instances_seen: Instances that the model was trained on, repeats included.
        seconds: Of training, without validation.
        accuracy: On the held-out instances at the end, in [0, 1].
        keep_rate: Share of the candidates that entered a batch; None where everything is kept.
        curve: optimizer steps and held-out accuracy at the end of each epoch.
    """

    name: str
    optimizer_steps: int
    instances_seen: int
    seconds: float
    accuracy: float
    keep_rate: float | None
    curve: tuple[tuple[int, float], ...]


class Recorder(pl.Callback):
    """Keeps a run's figures: instances, seconds of training, accuracy after each epoch."""

    def __init__(self) -> None:
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
        self.curve.append((trainer.global_step, float(trainer.callback_metrics["val_accuracy"])))
        self._started = time.perf_counter()

    def on_train_end(self, *args: Any) -> None:
        self.seconds += time.perf_counter() - self._started


def as_table(results: list[RunResult]) -> Table:
    """The runs side by side.

    Args:
        results: One row each.
    """
    table = Table()
    table.add_column("run", no_wrap=True)
    for title in ("optimizer steps", "instances seen", "seconds", "test accuracy", "keep rate"):
        table.add_column(title, justify="right")
    for result in results:
        table.add_row(
            result.name,
            f"{result.optimizer_steps:,}",
            f"{result.instances_seen:,}",
            f"{result.seconds:.1f}",
            f"{result.accuracy:.2%}",
            "-" if result.keep_rate is None else f"{result.keep_rate:.1%}",
        )
    return table


def draw(results: list[RunResult], path: Path) -> None:
    """Draw held-out accuracy against optimizer steps.

    Args:
        results: One line each.
        path: The PNG to write.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and a backend for the whole process

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer steps", ylabel="test accuracy (%)")
    for result in results:
        updates, accuracies = zip(*result.curve, strict=True)
        axes.plot(updates, [100 * accuracy for accuracy in accuracies], marker="o", markersize=3, label=result.name)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, format="png", dpi=150)
