"""One run of the rare events' benchmark: the job and the model.

Shapes: B batch, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCalibrationError,
)

from benchmarks.common.controls import logit_correction
from benchmarks.common.jobs import Job, Method, Row
from benchmarks.common.training import fit
from benchmarks.rare_events.data import EventData
from lightning_autoassist.demo.rare_events import EventClassifier, EventSplit, event_net

METRIC = "average_precision"


@dataclass(frozen=True, kw_only=True)
class RareJob(Job):
    """One run of this benchmark.

    Args:
        dataset: In ``RARE_SETS``.
        width: Units of each of the two hidden layers.
        batch_size: B.
    """

    dataset: str = "covtype-5"
    width: int = 128
    batch_size: int = 256
    epochs: int = 12
    learning_rate: float = 0.1


class RareEventModule(EventClassifier):
    """The demo's model with the measures of the benchmark; training logs nothing, so that it costs what it costs.

    Args:
        net: Features in, two logits out.
        learning_rate: Peak of the schedule.
        correction: What is added to the rare class's logit where probabilities are measured, in nats.
    """

    def __init__(self, net: nn.Module, learning_rate: float, correction: float = 0.0) -> None:
        super().__init__(net, learning_rate)
        self.correction = correction
        self.metrics = MetricCollection(
            {
                METRIC: BinaryAveragePrecision(),
                "roc_auc": BinaryAUROC(),
                "accuracy": BinaryAccuracy(),
                "calibration_error": BinaryCalibrationError(n_bins=15, norm="l1"),
            }
        )
        self.measured: dict[str, float] = {}  # at the last validation

    def log_odds(self, features: Tensor) -> Tensor:
        return super().log_odds(features) + self.correction

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        return F.cross_entropy(self(features), labels)

    def on_validation_epoch_end(self) -> None:
        self.measured = {name: float(value) for name, value in self.metrics.compute().items()}
        self.metrics.reset()
        self.log(METRIC, self.measured[METRIC])


def run_job(job: RareJob, split: EventSplit) -> Row:
    """Train once.

    Args:
        job: What to run.
        split: To train on, and to measure on.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    data = EventData(split, job.batch_size)
    correction = logit_correction(Method(job.method), split.train.labels)
    module = RareEventModule(event_net(split.train.features.shape[1], job.width), job.learning_rate, correction)
    row = fit(job, module, data, METRIC)
    return {
        **row,
        **{name: round(value, 6) for name, value in module.measured.items()},
        "train_instances": len(split.train.labels),
        "train_positives": int(split.train.labels.sum()),
        "held_out_instances": len(split.held_out.labels),
        "held_out_positives": int(split.held_out.labels.sum()),
        "schedule": "OneCycle over the run's own updates",
        "instances_loaded": data.train.loads.total,
    }
