"""One run beside the peers: what their own code trains, or ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.jobs import FULL, Row
from benchmarks.common.training import train
from benchmarks.images import runs as image_runs
from benchmarks.images.data import ImageData, Images
from benchmarks.images.runs import MODELS, ImageJob
from benchmarks.peers.datacull_code import RCAPData, RCAPModule
from benchmarks.peers.infobatch_code import InfoBatchData, InfoBatchModule, infobatch_code

INFOBATCH, RCAP = "infobatch-of-its-authors", "rcap-of-datacull"
PEERS = (INFOBATCH, RCAP)
# Of a project with a LightningModule and a LightningDataModule: added or changed, by our count.
LINES_CHANGED = {INFOBATCH: 9, RCAP: 10}
OUR_LINES = 3


@dataclass(frozen=True, kw_only=True)
class PeerJob(ImageJob):
    """One run of this benchmark: of the images' benchmark, with a method in ``PEERS`` or any of ours."""

    instances: int | None = 10_000
    epochs: int = 16
    augment: bool = True


def run_job(job: PeerJob, train_images: Images, held_out: Images, infobatch: Path) -> Row:
    """Train once.

    Args:
        job: What to run. Its budget is the share that RCAP keeps of each epoch; InfoBatch's own code has none.
        train_images: To train on.
        held_out: To measure accuracy on.
        infobatch: Folder of a clone of InfoBatch's repository.

    Returns:
        The row: the job's own fields, and what came out.
    """
    if job.method not in PEERS:
        num_lines = 0 if job.method == FULL else OUR_LINES
        return {**image_runs.run_job(job, train_images, held_out), "lines_changed": num_lines}
    torch.manual_seed(job.seed)
    data = ImageData(train_images, held_out, job.batch_size, job.augment)
    options: dict[str, Any] = {
        "net": MODELS[job.model](train_images.images.shape[1:]),
        "learning_rate": job.learning_rate,
        "channels_last": False,
    }
    row = _with_infobatch(job, data, options, infobatch) if job.method == INFOBATCH else _with_rcap(job, data, options)
    return {
        **row,
        "settings": {},
        "keep_rate": None,
        "overhead_ms": None,
        "warnings": [],
        "train_instances": len(train_images.labels),
        "held_out_instances": len(held_out.labels),
        "schedule": "OneCycle over the run's own progress",
        "instances_loaded": data.train.loads.total,
        "lines_changed": LINES_CHANGED[job.method],
    }


def _with_infobatch(job: PeerJob, data: ImageData, options: dict[str, Any], checkout: Path) -> Row:
    with infobatch_code(checkout) as code:
        pruned = InfoBatchData(code, data, job.epochs)
        module = InfoBatchModule(pruned, **options)
        return train(job, module, pruned, "accuracy", reload_dataloaders_every_n_epochs=1)


def _with_rcap(job: PeerJob, data: ImageData, options: dict[str, Any]) -> Row:
    chosen = RCAPData(data, job.budget)
    try:
        module = RCAPModule(chosen, **options)
        return train(job, module, chosen, "accuracy", reload_dataloaders_every_n_epochs=1)
    finally:
        chosen.close()
