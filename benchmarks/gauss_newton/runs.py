"""The runs of the benchmark of Gauss-Newton: one step's time, the loss by iterations, and trainings.

Times are CPU seconds of the process (``time.process_time``), of one thread.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.jobs import Row
from benchmarks.gauss_newton.data import TRAINED, Split, unit_points
from lightning_autoassist import GaussNewtonCallback, TwoLayerGaussNewton
from lightning_autoassist.gauss_newton.jacobian import Jacobian, LayerRows
from lightning_autoassist.gauss_newton.solvers import SolverOptions, solve

NUM_HIDDEN = 256
# AdamW's epochs, and its batch; Gauss-Newton has as many epochs, unless it has as many seconds before.
EPOCHS = {"digits": 40, "fashion": 15, "covtype": 15, "clouds": 3}
ADAM_BATCH = {"digits": 70, "fashion": 128, "covtype": 128, "clouds": 30}
# A step is timed again until this many seconds are full; the least counts.
SHORT = 1.0


@dataclass(frozen=True)
class NewtonJob:
    """One run.

    Args:
        phase: ``"step"``, ``"loss"``, ``"tune"`` or ``"final"``.
        dataset: ``"points"``, or one of ``TRAINED``.
        method: A solver; ``"adamw"``, ``"lm"`` or ``"constant"``.
        setting: Learning rate of AdamW, or damping.
        n: Instances of the system; of a batch.
        m: Hidden units.
        d: Features.
        seed: Of the start, the order and the sketches.
    """

    phase: str
    dataset: str
    method: str
    setting: float
    n: int
    m: int
    d: int
    seed: int


def run_job(job: NewtonJob, data_dir: Path) -> Row:
    """Run it; returns its row.

    Args:
        job: What to run.
        data_dir: Of downloads.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if job.phase == "step":
            found = _time_step(job, data_dir)
        elif job.phase == "loss":
            found = _losses(job, data_dir)
        else:
            found = _train(job, TRAINED[job.dataset](data_dir))
    own = [str(one.message) for one in caught if "auss" in str(one.message) or "damping" in str(one.message)]
    return {**asdict(job), **found, "warnings": own}


def _time_step(job: NewtonJob, data_dir: Path) -> Row:
    rows, targets = unit_points(job.n, job.d, data_dir)
    generator = torch.Generator().manual_seed(job.seed)
    weights = torch.randn(job.m, job.d, generator=generator)
    signs = torch.randint(2, (job.m,), generator=generator).mul_(2).sub_(1) / job.m**0.5
    active = (rows @ weights.T > 0) * signs
    jacobian = Jacobian([LayerRows(rows, active.unsqueeze(1))])
    options, spent = SolverOptions(job.method, tol=1e-2, max_iter=400), []  # type: ignore[arg-type]
    while not spent or (sum(spent) < SHORT and len(spent) < 20):
        began = time.process_time()
        found = solve(jacobian, -targets.unsqueeze(1), torch.zeros(()), options, generator)
        spent.append(time.process_time() - began)
    residual = jacobian.gram_times(found.rows) + targets.unsqueeze(1)
    return {
        "seconds": min(spent),
        "repetitions": len(spent),
        "iterations": found.num_iterations,
        "residual": float(residual.norm() / targets.norm()),
        "updates": 1,
    }


def _losses(job: NewtonJob, data_dir: Path) -> Row:
    rows, targets = unit_points(job.n, job.d, data_dir)
    began = time.process_time()
    model = TwoLayerGaussNewton(
        job.m,
        solver=job.method,  # type: ignore[arg-type]
        max_iter=8,
        tol=1e-10,
        damping=job.setting,
        random_state=job.seed,
    ).fit(rows.double().numpy(), targets.numpy())
    seconds = time.process_time() - began
    losses = [job.n / 2, *model.loss_curve_]
    ratios = [after / before for before, after in itertools.pairwise(losses)]
    return {
        "losses": losses,
        "largest_ratio": max(ratios),
        "cg_iterations": model.cg_iterations_,
        "seconds": seconds,
        "updates": model.n_iter_,
    }


class Perceptron(pl.LightningModule):
    """An ordinary module: one hidden layer, mean squared error, AdamW with a cosine schedule or SGD."""

    def __init__(self, num_features: int, job: NewtonJob) -> None:
        super().__init__()
        self.job = job
        self.net = nn.Sequential(nn.Linear(num_features, job.m), nn.ReLU(), nn.Linear(job.m, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        if self.job.method != "adamw":
            return torch.optim.SGD(self.parameters(), lr=1.0)
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.job.setting)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Curve(pl.Callback):
    """Training error against CPU seconds; what the measurement itself takes is left out."""

    def __init__(self, data: Split, num_points: int = 60) -> None:
        self.data = data
        self.num_points = num_points
        self.seconds = 0.0
        self.points: list[tuple[int, float, float]] = []  # (updates, seconds, training error)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.every = max(1, int(trainer.estimated_stepping_batches) // self.num_points)
        self.last = int(trainer.estimated_stepping_batches)
        self.began = time.process_time()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % self.every and trainer.global_step != self.last:
            return
        self.seconds += time.process_time() - self.began
        error = _error(pl_module, self.data.features, self.data.targets)
        self.points.append((trainer.global_step, round(self.seconds, 4), error))
        self.began = time.process_time()


@torch.no_grad()
def _error(module: Perceptron, features: Tensor, targets: Tensor) -> float:
    return float(F.mse_loss(module.net(features), targets))


def _train(job: NewtonJob, data: Split) -> Row:
    pl.seed_everything(job.seed, verbose=False)
    module, curve = Perceptron(data.features.shape[1], job), Curve(data)
    newton: list[pl.Callback] = []
    if job.method != "adamw":
        newton = [GaussNewtonCallback(job.setting, damping_schedule=job.method, seed=job.seed)]  # type: ignore[arg-type]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS[job.dataset],
        callbacks=[*newton, curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(data.features, data.targets), batch_size=job.n, shuffle=True)
    trainer.fit(module, loader)
    with torch.no_grad():
        right = (module.net(data.test_features) > 0) == (data.test_targets > 0)
    error = curve.points[-1][2]
    return {
        "train_error": error if math.isfinite(error) else 1e9,
        "test_accuracy": float(right.float().mean()),
        "seconds": curve.points[-1][1],
        "updates": trainer.global_step,
        "train_instances": len(data.targets),
        "curve": curve.points,
    }


def seconds_to(row: Row, error: float) -> float | None:
    """CPU seconds until a run's training error is at most ``error``; None where it never is."""
    return next((seconds for _, seconds, found in row["curve"] if found <= error), None)
