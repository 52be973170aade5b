"""One training: what is measured while it goes on, and the fields of a row that all benchmarks have."""

from __future__ import annotations

import multiprocessing
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import get_worker_info

from benchmarks.common.controls import ControlledData
from benchmarks.common.jobs import Job, Method, Row
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.reporting.advice import GRADIENT_SPREAD

NUM_CURVE_POINTS = 6
MAX_WORKERS = 64


class Stopwatch(pl.Callback):
    """Seconds of training and of validation, each without the other, and a metric against optimizer steps.

    Args:
        metric: Its name among what the module logs.
    """

    def __init__(self, metric: str = "accuracy") -> None:
        self.metric = metric
        self.train_seconds = 0.0
        self.validation_seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self.curve_seconds: list[float] = []  # of training, at each point of the curve
        self.cpu_seconds = 0.0  # of this process while it trains: what others do on the machine is not in them
        self.curve_cpu_seconds: list[float] = []
        self._since = 0.0
        self._cpu_since = 0.0

    def _lap(self, trainer: Any) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        lap, self._since = now - self._since, now
        return lap

    def _end_training(self, trainer: Any) -> None:
        self.train_seconds += self._lap(trainer)
        self.cpu_seconds += time.process_time() - self._cpu_since

    def seconds(self) -> dict[str, float]:
        """What a row says of them."""
        return {
            "seconds": round(self.train_seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "validation_seconds": round(self.validation_seconds, 2),
        }

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._lap(trainer)
        self._cpu_since = time.process_time()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._end_training(trainer)
        self.curve_seconds.append(round(self.train_seconds, 2))
        self.curve_cpu_seconds.append(round(self.cpu_seconds, 2))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validation_seconds += self._lap(trainer)
        self._cpu_since = time.process_time()
        self.curve.append((trainer.global_step, round(float(trainer.callback_metrics[self.metric]), 5)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end_training(trainer)


class LoadCounter:
    """How many instances a data set was asked for, in whichever process."""

    def __init__(self) -> None:
        # A place for each worker, and one for the process itself: no two write to the same.
        self._counts = multiprocessing.RawArray("q", MAX_WORKERS + 1)

    @property
    def total(self) -> int:
        """Instances so far."""
        return sum(self._counts)

    def add(self, num: int = 1) -> None:
        """Count some more."""
        worker = get_worker_info()
        self._counts[0 if worker is None else worker.id + 1] += num


def fit(
    job: Job,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    metric: str = "accuracy",
    data_options: dict[str, Any] | None = None,
    **trainer_options: Any,
) -> Row:
    """Train once, as the job's method wants it: a policy, a control or nothing.

    Args:
        job: What to run.
        module: The model.
        data: Of a full run.
        metric: What its validation logs; measured at some epochs' ends, and at the end of training.
        data_options: Of the AutoAssistDataModule, where there is one.
        trainer_options: Of the Trainer, before those that all benchmarks share.

    Returns:
        The job's own fields, and what came out.
    """
    method = Method(job.method)
    callback = method.callback()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if method.is_control:
            data = ControlledData(data, method, job.budget)
        elif callback is not None:
            data = AutoAssistDataModule(data, budget=job.budget, **(data_options or {}))
        row = train(job, module, data, metric, [] if callback is None else [callback], **trainer_options)
    return {**row, **filtering_of(callback), "warnings": filter_warnings(caught)}


def train(
    job: Job,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    metric: str,
    callbacks: Sequence[pl.Callback] = (),
    **trainer_options: Any,
) -> Row:
    """Train once.

    Args:
        job: What to run; its method is not looked at.
        module: The model.
        data: What it is trained on.
        metric: What its validation logs.
        callbacks: Of the Trainer, before the stopwatch.
        trainer_options: Of the Trainer, before those that all benchmarks share.

    Returns:
        The job's own fields, and what came out.
    """
    stopwatch = Stopwatch(metric)
    trainer = pl.Trainer(**{**_options_of(job), "callbacks": [*callbacks, stopwatch], **trainer_options})
    trainer.fit(module, datamodule=data)
    return {
        **asdict(job),
        metric: stopwatch.curve[-1][1],
        "updates": trainer.global_step,
        **stopwatch.seconds(),
        "curve": stopwatch.curve,
        "curve_seconds": stopwatch.curve_seconds,
        "curve_cpu_seconds": stopwatch.curve_cpu_seconds,
    }


def _options_of(job: Job) -> dict[str, Any]:
    return {
        "accelerator": "gpu" if job.device == "cuda" else "cpu",
        "devices": 1,
        "precision": job.precision,
        "max_epochs": job.epochs,
        "check_val_every_n_epoch": validation_interval(job.epochs),
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def filtering_of(callback: AutoAssistCallback | None) -> dict[str, Any]:
    """What a row says of the filtering: its settings, and what came of them."""
    if callback is None:
        return {"settings": {}, "keep_rate": None, "overhead_ms": None}
    summary = callback.summary()
    names = ("keep_rate", "overhead_ms", *(name for name in GRADIENT_SPREAD if name in summary))
    figures = {name: round(summary[name], 4) for name in names}
    return {"settings": settings_of(callback), **figures}


def filter_warnings(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """Those that are about filtering."""
    return sorted({str(one.message) for one in caught if re.search("AutoAssist|filter", str(one.message))})


def validation_interval(epochs: int) -> int:
    """Epochs between two points of the curve, the last of them at the end of training."""
    return next(n for n in range(max(1, epochs // NUM_CURVE_POINTS), 0, -1) if epochs % n == 0)


def settings_of(callback: AutoAssistCallback) -> dict[str, Any]:
    """What the method was, in full."""
    policy = {key: value for key, value in vars(callback.policy).items() if isinstance(value, (int, float, str))}
    return {
        "policy": {key: value for key, value in policy.items() if not key.startswith("_")},
        "assistant": type(callback.assistant).__name__,
        "score": callback.score,
        "reweighting": callback.reweighting,
        "unfiltered_tail": callback.unfiltered_tail,
    }
