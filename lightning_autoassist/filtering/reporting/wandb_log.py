"""What W&B gets of an epoch: histograms, pictures, tables and the Assistant's reliability; and the groups of runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.reporting.epoch_figures import ClassCounts, EpochFigures, as_cell
from lightning_autoassist.filtering.reporting.metric_names import PREFIX
from lightning_autoassist.filtering.reporting.reliability import Reliability
from lightning_autoassist.trainer_support.class_names import class_names
from lightning_autoassist.trainer_support.internals import module_of, wandb_settings

NUM_BINS = 64
MAX_TABLE_ROWS = 1000


def group_runs(trainer: Any, budget: float, data: Any) -> None:
    """Give W&B runs that have not begun a group, what is trained on what, and the policy as their job type.

    Whatever the user gave the logger stays.

    Args:
        trainer: The Trainer, before setup: a run's group cannot be changed once it has begun.
        budget: Of the data module.
        data: The user's data.
    """
    rules = (getattr(callback, "policy", None) for callback in getattr(trainer, "callbacks", ()))
    policies = [rule for rule in rules if isinstance(rule, Policy)]
    if not policies:
        return
    module = module_of(trainer)
    for logger in trainer.loggers:
        settings = wandb_settings(logger)
        if settings is None:
            continue
        if settings.get("group") is None:
            settings["group"] = f"{type(module).__name__} on {type(data).__name__}"
        if settings.get("job_type") is None:
            settings["job_type"] = f"{type(policies[0]).__name__.removesuffix('Policy')} {budget:.0%}"


def log_to_wandb(run: Any, figures: EpochFigures) -> None:
    """Add an epoch's figures to the row that W&B gets next, which is the one of the epoch's metrics.

    Args:
        run: Of W&B.
        figures: Of the epoch.
    """
    import wandb

    logged: dict[str, Any] = {
        name: wandb.Histogram(np_histogram=np.histogram(values, NUM_BINS))
        for name, values in figures.histograms.items()
    }
    for name, rows in figures.gallery.items():
        logged.update(_gallery(name, rows))
    if figures.reliability is not None:
        logged[PREFIX + "reliability"] = _reliability(figures.reliability)
    if figures.classes:
        logged[PREFIX + "classes"] = _class_table(figures.classes)
    run.log(logged, commit=False)


def log_instances(run: Any, columns: dict[str, Any], global_step: int) -> None:
    """Log a table of the instances with the highest mean loss, as a row of its own.

    Args:
        run: Of W&B.
        columns: Of ``frame.columns_of``, with training dynamics.
        global_step: Of the Trainer.
    """
    import wandb

    order = np.argsort(-columns["loss_mean"], kind="stable")[:MAX_TABLE_ROWS]
    order = order[np.isfinite(columns["loss_mean"][order])]
    if len(order):
        rows = zip(order.tolist(), *(column[order].tolist() for column in columns.values()), strict=True)
        table = wandb.Table(columns=["index", *columns], data=[list(row) for row in rows])
        log_row(run, {PREFIX + "instances": table}, global_step)


def log_row(run: Any, figures: dict[str, Any], global_step: int) -> None:
    """Log a row of its own, with what waits for the next row, where no metrics of Lightning's follow.

    Args:
        run: Of W&B.
        figures: By their names.
        global_step: Of the Trainer: so many optimizer steps were made. Lightning's rows count them from 0.
    """
    run.log({**figures, "trainer/global_step": max(0, global_step - 1)})


def wandb_runs(trainer: Any) -> Iterator[Any]:
    """The W&B runs of the Trainer's loggers that record anything; none but in the first process."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if "WandbLogger" in class_names(logger) and not getattr(logger.experiment, "disabled", False):
            yield logger.experiment


def _gallery(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    import wandb

    cells = [[wandb.Image(cell) if isinstance(cell, np.ndarray) else cell for cell in row.values()] for row in rows]
    logged: dict[str, Any] = {}
    # A table's pictures lie in W&B's store of artifacts until they are synced; these, in the run's own folder.
    images = [row for row in rows if isinstance(row["shown"], np.ndarray)]
    pictures = [wandb.Image(row["shown"], caption=_caption(row)) for row in images]
    if pictures:
        logged[name + "_pictures"] = pictures
    logged[name] = wandb.Table(columns=list(rows[0]), data=cells)
    return logged


def _caption(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {as_cell(cell)}" for name, cell in row.items() if name != "shown")


def _reliability(shown: Reliability) -> Any:
    import wandb

    points = [[float(cell) for cell in row] for row in zip(*shown[:3], strict=True)]
    table = wandb.Table(columns=["predicted", "realised", "instances"], data=points)
    return wandb.plot.line(table, "predicted", "realised", title="The Assistant's reliability")


def _class_table(classes: ClassCounts) -> Any:
    import wandb

    rows = [[label, kept, dropped, kept / (kept + dropped)] for label, (kept, dropped) in classes.items()]
    columns: list[str | int] = ["class", "kept", "dropped", "keep_rate"]
    return wandb.Table(columns=columns, data=rows)
