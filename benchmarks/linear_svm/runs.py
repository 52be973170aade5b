"""One run of the linear SVM's benchmark: the job, how data are loaded, and what is measured.

Shapes: N data set, B batch.
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common.jobs import Row
from benchmarks.common.training import filter_warnings, filtering_of
from benchmarks.linear_svm.data import TwoClasses
from benchmarks.linear_svm.methods import METHODS
from benchmarks.linear_svm.model import LinearSVM
from benchmarks.linear_svm.optimum import Objective, Optimum
from lightning_autoassist import Assistant, AutoAssistDataModule

BATCH_SIZE = 32
# Eta of Shamir & Zhang's average.
AVERAGE_DECAY = 3
# Points of the curve, each 4 % after the one before.
FIRST_POINT = 20
POINT_RATIO = 1.04


@dataclass(frozen=True)
class SvmJob:
    """One run: what makes it the run it is, and nothing else.

    Args:
        phase: ``"tune"``: chooses a floor; ``"final"``: is reported.
        dataset: In ``SVM_SETS``.
        l2: Lambda.
        epochs: Of ceil(N / B) updates each; the last may be a part of one.
        method: In ``METHODS``.
        floor: Least chance of a candidate; the paper's gamma for AutoAssist, 1 for SGD.
        seed: Of the order and of the selection; the weights begin at 0.
    """

    phase: str
    dataset: str
    l2: float
    epochs: float
    method: str
    floor: float
    seed: int


class SVMData(pl.LightningDataModule):
    """A shuffled train loader, which reads whole batches at once.

    Args:
        data: The instances.
    """

    def __init__(self, data: TwoClasses) -> None:
        super().__init__()
        self.rows = _Rows(data)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, BATCH_SIZE, shuffle=True, collate_fn=_as_it_is)


class _Rows(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: TwoClasses) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.data.features[index], self.data.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = torch.tensor(indices)
        return self.data.features[rows], self.data.labels[rows]


def _as_it_is(batch: Any) -> Any:
    return batch


class Curve(pl.Callback):
    r"""Suboptimality of the average and of the last weights against what was spent on them.

    The average is :math:`\bar w_t = (1 - a_t) \bar w_{t-1} + a_t w_t` with :math:`a_t = (\eta + 1) / (t + \eta)`, which
    is O(1/t) from the minimum with steps of 1 / (lambda t); for the last weights O(log t / t) is known.

    Source: Shamir & Zhang, Stochastic Gradient Descent for Non-smooth Optimization, ICML 2013, arXiv:1212.1824.

    Args:
        objective: P.
        minimum: Its minimum.
        assistant: Whose margins are counted, if any.
    """

    def __init__(self, objective: Objective, minimum: float, assistant: Assistant | None) -> None:
        self.objective = objective
        self.minimum = minimum
        self.assistant = assistant
        self.average = torch.zeros(0)
        self.num_evaluations = 0
        self.seconds = 0.0
        # (updates, gradient evaluations, margins of candidates, seconds, suboptimality of the average, of the last)
        self.points: list[tuple[int, int, int, float, float, float]] = []
        self._since = 0.0
        self._last_step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = pl_module.weight.detach().clone()
        self._last_step = int(trainer.estimated_stepping_batches)
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self.num_evaluations += len(batch[1])
        self.average.lerp_(pl_module.weight.detach(), (AVERAGE_DECAY + 1) / (step + AVERAGE_DECAY))
        next_point = FIRST_POINT if not self.points else self.points[-1][0] * POINT_RATIO
        if step >= next_point or step == self._last_step:
            self._measure(step, pl_module)

    def _measure(self, step: int, module: LinearSVM) -> None:
        self.seconds += time.perf_counter() - self._since
        margins = getattr(self.assistant, "num_margins", 0)
        weights = torch.stack([self.average, module.weight.detach()]).cpu().numpy()
        average, last = (float(f"{value - self.minimum:.5e}") for value in self.objective.values(weights))
        self.points.append((step, self.num_evaluations, margins, round(self.seconds, 3), average, last))
        self._since = time.perf_counter()


def run_job(job: SvmJob, data: TwoClasses, objective: Objective, best: Optimum) -> Row:
    """Train once.

    Args:
        job: What to run.
        data: To train on.
        objective: P.
        best: Its minimum.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    module = LinearSVM(data.features.shape[1], job.l2)
    method = METHODS[job.method]
    callback = None if method is None else method.callback(module, data, job.floor)
    curve = Curve(objective, best.objective, None if callback is None else callback.assistant)
    rows, trainer = SVMData(data), _trainer(job.epochs, [curve] if callback is None else [callback, curve])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, datamodule=rows if callback is None else AutoAssistDataModule(rows, budget=1))
    return {
        **asdict(job),
        **filtering_of(callback),
        "train_instances": len(data.labels),
        "features": data.features.shape[1],
        "batch_size": BATCH_SIZE,
        "schedule": "1 / (lambda t)",
        "average": f"Shamir & Zhang, eta {AVERAGE_DECAY}",
        "minimum": best.objective,
        "minimum_gap": best.gap,
        "suboptimality": curve.points[-1][-2],
        "updates": trainer.global_step,
        "gradient_evaluations": curve.num_evaluations,
        "candidates": curve.num_evaluations if callback is None else int(callback.summary()["candidates_seen"]),
        "candidate_margins": curve.points[-1][2],
        "seconds": round(curve.seconds, 2),
        "curve": curve.points,
        "warnings": filter_warnings(caught),
    }


def _trainer(epochs: float, callbacks: list[pl.Callback]) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=math.ceil(epochs),
        limit_train_batches=epochs / math.ceil(epochs),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def is_valid(points: list[Any]) -> bool:
    """Whether a curve holds numbers only, none of them below the minimum by more than its last digits."""
    return all(np.isfinite(point).all() and min(point[-2:]) > -1e-9 for point in points)
