"""The demo's progress bars."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class RunProgress(pl.Callback):
    """One bar for the whole of a run.

    Args:
        progress: Where it is drawn.
        name: Of the run.
        metric: Its name among what the module logs.
    """

    def __init__(self, progress: Progress, name: str, metric: str) -> None:
        self.progress = progress
        self.metric = metric
        self.task = progress.add_task(name, start=False, total=None, reached="")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.progress.update(self.task, total=trainer.estimated_stepping_batches)
        self.progress.start_task(self.task)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.progress.update(self.task, completed=trainer.global_step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        value = float(trainer.callback_metrics[self.metric])
        self.progress.update(self.task, reached=f"{value:.1%}")


def progress_bars(console: Console) -> Progress:
    """Bars for the runs of one console."""
    return Progress(
        TextColumn("{task.description:24}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("steps  {task.fields[reached]}"),
        TimeElapsedColumn(),
        console=console,
    )
