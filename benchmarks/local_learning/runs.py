"""One training of the VGG-like network, with and without local learning, and what it keeps for backward."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.jobs import TUNE_SEED, Row
from benchmarks.common.training import Stopwatch
from benchmarks.images.data import Images, load_images
from benchmarks.local_learning.networks import ImageClassifier, vgg
from lightning_autoassist import LocalLearningCallback
from lightning_autoassist.local_learning.watched_calls import SavedBytes

BACKPROP, BLOCKS = "backprop", "4 blocks"
METHODS: dict[str, dict[str, Any] | None] = {
    BACKPROP: None,
    BLOCKS: {"blocks": 4},
    "4 blocks, fine_tune=0.2": {"blocks": 4, "fine_tune": 0.2},
    "2 blocks": {"blocks": 2},
    "4 blocks, linear heads": {"blocks": 4, "heads": "linear"},
    "4 blocks, mlp_sr heads": {"blocks": 4, "heads": "mlp_sr"},
    "4 blocks, overlapping": {"blocks": 4, "mode": "overlapping"},
    "greedy": {"mode": "greedy"},
}
# Whose learning rate is chosen; all local methods take that of the first of them.
TUNED = (BACKPROP, BLOCKS)


@dataclass(frozen=True, kw_only=True)
class LocalJob:
    """One run: what makes it the run it is.

    Args:
        phase: "tune": accuracy on a part of the training data; "final": on the test data.
        method: In ``METHODS``.
        learning_rate: At the start.
        seed: Of the parameters and the order of the instances.
        dataset: The images.
        num_instances: Of training.
        size: Height and width in pixels.
        epochs: Of the Trainer.
        batch_size: B.
    """

    phase: str = "final"
    method: str
    learning_rate: float
    seed: int = 0
    dataset: str = "fashion-mnist"
    num_instances: int = 20_000
    size: int = 14
    epochs: int = 10
    batch_size: int = 128


@dataclass(frozen=True)
class LocalPlan:
    """What to run.

    Args:
        methods: In ``METHODS``.
        seeds: Of the final runs.
        grid: Learning rates to choose from.
        template: A job with everything that is the same in all.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    grid: tuple[float, ...]
    template: LocalJob

    metric = "accuracy"
    choices = ("learning_rate",)

    def jobs(self, rows: dict[LocalJob, Row]) -> Iterator[LocalJob | None]:
        """All jobs in their order; None in place of those whose learning rate is not known yet."""
        for method in TUNED:
            yield from self._tuning(method)
        for method in self.methods:
            for seed in self.seeds:
                rate = self._best(rows, BACKPROP if method == BACKPROP else BLOCKS)
                yield None if rate is None else replace(self.template, method=method, learning_rate=rate, seed=seed)

    def _tuning(self, method: str) -> list[LocalJob]:
        made = replace(self.template, phase="tune", method=method, seed=TUNE_SEED)
        return [replace(made, learning_rate=rate) for rate in self.grid]

    def _best(self, rows: dict[LocalJob, Row], method: str) -> float | None:
        jobs = self._tuning(method)
        if any(job not in rows for job in jobs):
            return None
        return max(jobs, key=lambda job: rows[job][self.metric]).learning_rate


def saved_bytes_of(net: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    """Bytes that backpropagation saves in one forward pass; parameters are not counted."""
    saved = SavedBytes(net.parameters())
    with saved.counted():
        F.cross_entropy(net(images), labels)
    return saved.total


def run_job(job: LocalJob, data_dir: Path) -> Row:
    """Train once.

    Args:
        job: What to run.
        data_dir: Folder for downloads.

    Returns:
        The job's own fields, and what came out.
    """
    settings = {"choosing": job.phase == "tune", "num_instances": job.num_instances, "size": job.size}
    return trained(job, *load_images(job.dataset, data_dir, **settings))


def trained(job: LocalJob, train: Images, held_out: Images) -> Row:
    """Train once on images that are there."""
    pl.seed_everything(job.seed, verbose=False)
    options = METHODS[job.method]
    module = ImageClassifier(vgg(), job.learning_rate)
    callback = None if options is None else LocalLearningCallback(**options)
    stopwatch = Stopwatch()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=job.epochs,
        check_val_every_n_epoch=job.epochs,
        callbacks=[stopwatch] if callback is None else [stopwatch, callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    first = slice(0, job.batch_size)
    backprop_bytes = saved_bytes_of(vgg(), train.images[first], train.labels[first])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = DataLoader(TensorDataset(*train), job.batch_size, shuffle=True, drop_last=True)
        trainer.fit(module, loader, DataLoader(TensorDataset(*held_out), 1000))
    blocks = [] if callback is None else [callback.saved_bytes[block] for block in sorted(callback.saved_bytes)]
    heads = 0 if callback is None else sum(one.numel() for one in callback.head_parameters())
    return {
        **asdict(job),
        "accuracy": stopwatch.curve[-1][1],
        "updates": trainer.global_step,
        **stopwatch.seconds(),
        "saved_bytes": max(blocks, default=backprop_bytes),
        "bytes_ratio": round(max(blocks, default=backprop_bytes) / backprop_bytes, 4),
        "block_bytes": blocks,
        "cuts": [] if callback is None else [row["ends_after"] for row in callback.describe()],
        "head_parameters": heads,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "warnings": sorted({str(one.message) for one in caught if "ocal learning" in str(one.message)}),
    }
