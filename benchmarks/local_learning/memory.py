"""Bytes saved for backward against depth: of backpropagation, and of local learning with blocks of four layers."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.local_learning.networks import ImageClassifier, deep
from benchmarks.local_learning.runs import saved_bytes_of
from lightning_autoassist import LocalLearningCallback

DEPTHS = (8, 16, 32, 64)
LAYERS_OF_A_BLOCK = 4
BATCH_SIZE, SIZE = 32, 14


def memory_row(depth: int) -> dict[str, Any]:
    """What a network of some depth keeps, measured in a few steps of it.

    Args:
        depth: Convolutions.
    """
    pl.seed_everything(0, verbose=False)
    images, labels = torch.randn(4 * BATCH_SIZE, 1, SIZE, SIZE), torch.randint(10, (4 * BATCH_SIZE,))
    callback = LocalLearningCallback(depth // LAYERS_OF_A_BLOCK)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ImageClassifier(deep(depth)), DataLoader(TensorDataset(images, labels), BATCH_SIZE))
    return {
        "depth": depth,
        "num_blocks": depth // LAYERS_OF_A_BLOCK,
        "batch_size": BATCH_SIZE,
        "backprop_bytes": saved_bytes_of(deep(depth), images[:BATCH_SIZE], labels[:BATCH_SIZE]),
        "local_bytes": max(callback.saved_bytes.values()),
        "block_bytes": [callback.saved_bytes[block] for block in sorted(callback.saved_bytes)],
    }
