"""What TensorBoard gets of an epoch: histograms, pictures, tables as text and the Assistant's reliability."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from lightning_autoassist.filtering.reporting.epoch_figures import EpochFigures, as_cell
from lightning_autoassist.filtering.reporting.metric_names import PREFIX
from lightning_autoassist.filtering.reporting.pictures import grid
from lightning_autoassist.filtering.reporting.reliability import Reliability


def log_to_tensorboard(board: Any, figures: EpochFigures, step: int) -> None:
    """Give an epoch's figures to TensorBoard.

    Args:
        board: A ``SummaryWriter``.
        figures: Of the epoch.
        step: The Trainer's global step.
    """
    for name, values in figures.histograms.items():
        board.add_histogram(name, values, step)
    for name, rows in figures.gallery.items():
        pictures = [row["shown"] for row in rows if isinstance(row["shown"], np.ndarray)]
        if pictures:
            board.add_image(name, grid(pictures), step, dataformats="HWC")
        board.add_text(name, _as_text(rows), step)
    if figures.reliability is not None and importlib.util.find_spec("matplotlib"):
        board.add_figure(PREFIX + "reliability", _drawn(figures.reliability), step)


def _as_text(rows: list[dict[str, Any]]) -> str:
    """Rows as a table in Markdown, without their pictures."""
    text = [{key: cell for key, cell in row.items() if not isinstance(cell, np.ndarray)} for row in rows]
    lines = [list(text[0]), ["---"] * len(text[0]), *(list(map(as_cell, row.values())) for row in text)]
    return "\n".join("|".join(line) for line in lines)


def _drawn(shown: Reliability) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="informative", ylim=(0, 1))
    axes.plot(shown.predicted, shown.realised, marker="o")
    return figure
