"""One run of the text benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.common.jobs import Job, Row
from benchmarks.common.training import fit
from benchmarks.text.data import TextData, TextSplit
from benchmarks.text.model import BagClassifier, TextModule, TransformerClassifier

DATASET = "debian-descriptions"


@dataclass(frozen=True, kw_only=True)
class TextJob(Job):
    """One run of this benchmark.

    Args:
        dataset: In ``TEXT_SETS``.
        max_length: Words of a text; what is longer is cut.
        model: ``"bag"`` or ``"transformer"``.
        batch_size: B.
    """

    dataset: str = DATASET
    max_length: int = 128
    model: str = "bag"
    batch_size: int = 64
    epochs: int = 10
    learning_rate: float = 0.001


def make_net(job: TextJob, split: TextSplit) -> nn.Module:
    """The job's network."""
    if job.model == "transformer":
        return TransformerClassifier(split.num_tokens, split.num_classes, job.max_length)
    return BagClassifier(split.num_tokens, split.num_classes)


def run_job(job: TextJob, split: TextSplit, num_workers: int = 0) -> Row:
    """Train once.

    Args:
        job: What to run.
        split: To train on, and to measure accuracy on.
        num_workers: Processes that load texts.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    data = TextData(split, job.batch_size, num_workers)
    module = TextModule(make_net(job, split), job.learning_rate)
    return {
        **fit(job, module, data),
        "train_instances": len(split.train.labels),
        "held_out_instances": len(split.held_out.labels),
        "num_tokens": split.num_tokens,
        "workers": num_workers,
        "schedule": "OneCycle over the run's own updates",
        "instances_loaded": data.train.loads.total,
    }
