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
    """

    def __init__(self, progress: Progress, name: str) -> None:
        self.progress = progress
        self.task = progress.add_task(name, start=False, total=None, accuracy="")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.progress.update(self.task, total=trainer.estimated_stepping_batches)
        self.progress.start_task(self.task)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.progress.update(self.task, completed=trainer.global_step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        accuracy = float(trainer.callback_metrics["val_accuracy"])
        self.progress.update(self.task, accuracy=f"accuracy {accuracy:.1%}")


def progress_bars(console: Console) -> Progress:
    """Bars for the runs of one console."""
    return Progress(
        TextColumn("{task.description:16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("updates {task.fields[accuracy]}"),
        TimeElapsedColumn(),
        console=console,
    )
