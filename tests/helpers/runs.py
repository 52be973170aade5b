"""Real runs, logged by real loggers, for the tests that read them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import Classifier, ClustersData, trainer

NUM_INSTANCES, BATCH_SIZE, NUM_EPOCHS, BUDGET = 200, 10, 4, 0.6


class Watch(pl.Callback):
    """Notes at each validation what the loggers should have got."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.num_instances = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.num_instances += len(batch[1])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(
            {
                "updates": trainer.global_step,
                "instances": self.num_instances,
                "value": float(trainer.callback_metrics["val_loss"]),
            }
        )


def train(logger: Any, policy: str | None = "autoassist", *, seed: int = 0, **options: Any) -> Watch:
    """One run; ``policy`` None is plain Lightning."""
    pl.seed_everything(seed, verbose=False)
    watch = Watch()
    data: Any = ClustersData(NUM_INSTANCES, BATCH_SIZE)
    callbacks: list[Any] = [watch]
    if policy is not None:
        data = AutoAssistDataModule(data, budget=BUDGET)
        callbacks.insert(0, AutoAssistCallback(policy=policy))
    settings = {"max_epochs": NUM_EPOCHS, "log_every_n_steps": 5, "callbacks": callbacks, "logger": logger, **options}
    trainer(**settings).fit(Classifier(), datamodule=data)
    torch.manual_seed(0)
    return watch
