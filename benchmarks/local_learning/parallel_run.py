"""One timed run, in a process of its own: by backpropagation, in blocks, or in blocks on several processes.

python -m benchmarks.local_learning.parallel_run backprop|local|parallel NUM_BLOCKS
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.command_line import be_quiet
from benchmarks.local_learning.networks import ImageClassifier, Stages
from lightning_autoassist import LocalLearningCallback

BATCH_SIZE, SIZE, NUM_STEPS, WINDOW = 64, 16, 200, 25


class Windows(pl.Callback):
    """Seconds of each so many steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % WINDOW == 0:
            now = time.perf_counter()
            self.seconds.append(now - self._since)
            self._since = now


def run(way: str, num_blocks: int) -> dict[str, Any]:
    """Milliseconds of an update: the median over windows, without the first two.

    Args:
        way: "backprop", "local" or "parallel".
        num_blocks: Blocks, and processes of the last way.
    """
    pl.seed_everything(0, verbose=False)
    images = torch.randn(NUM_STEPS * BATCH_SIZE, 1, SIZE, SIZE)
    labels = torch.randint(10, (len(images),))
    windows = Windows()
    callbacks: list[Any] = [windows]
    options: dict[str, Any] = {}
    if way != "backprop":
        names = [f"net.blocks.{number}" for number in range(num_blocks - 1)]
        callbacks.append(LocalLearningCallback(names, heads="linear"))
    if way == "parallel":
        options = {"devices": num_blocks, "strategy": "layer_parallel"}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(ImageClassifier(Stages(num_blocks), 0.01), DataLoader(TensorDataset(images, labels), BATCH_SIZE))
    milliseconds = 1000 * statistics.median(windows.seconds[2:]) / WINDOW
    return {"ms": round(milliseconds, 3), "rank": trainer.global_rank}


if __name__ == "__main__":
    be_quiet(1)
    result = run(sys.argv[1], int(sys.argv[2]))
    if result["rank"] == 0:
        print(json.dumps(result), flush=True)
