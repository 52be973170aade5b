"""Fits in two processes that Lightning, Ray or SLURM starts, for test_scaled_out.py.

Run as ``python -m tests.helpers.scaled_out FOLDER KIND``; with Ray it runs the documentation's own block. Every process
saves what it saw and has at its end.
"""

import os
import re
import sys
import warnings
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from tests.helpers.ordinary import NUM_CLASSES, CountingDataset, index_of
from tests.helpers.paths import ROOT
from tests.helpers.two_processes import N

try:  # Ray takes this one where it is there
    import lightning.pytorch as pl
except ModuleNotFoundError:
    import pytorch_lightning as pl

EPOCHS = 12
FOLDER = "AUTOASSIST_TEST_FOLDER"  # where each process saves, in the environment of all of them


class MyLightningModule(pl.LightningModule):
    """Notes what it is trained on, and saves that at the end."""

    def __init__(self):
        pl.seed_everything(7, verbose=False)
        super().__init__()
        self.net = torch.nn.Linear(8, NUM_CLASSES)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(index_of(batch[0]).tolist())
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def on_train_end(self):
        (callback,) = (one for one in self.trainer.callbacks if isinstance(one, AutoAssistCallback))
        found = {
            "seen": self.seen,
            "weights": self.net.state_dict(),
            "summary": callback.summary(),
            "scores": callback.instances.scores,
            "strategy": type(self.trainer.strategy).__name__,
            "environment": type(self.trainer.strategy.cluster_environment).__name__,
            "world_size": self.trainer.world_size,
        }
        torch.save(found, Path(os.environ[FOLDER]) / f"{self.global_rank}.pt")


class MyDataModule(pl.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(CountingDataset(N), batch_size=10, shuffle=True)


def fit_with_ddp():
    """In processes that Lightning starts, or that are there already, as SLURM's tasks are."""
    trainer = pl.Trainer(
        max_epochs=EPOCHS, strategy="ddp", devices=2, accelerator="cpu", callbacks=[AutoAssistCallback()]
    )
    trainer.fit(MyLightningModule(), datamodule=AutoAssistDataModule(MyDataModule(), budget=0.6))


def fit_with_ray():
    """As the documentation's page does, on this machine alone."""
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "devices.md").read_text(), re.DOTALL)
    names = {
        "AutoAssistCallback": AutoAssistCallback,
        "AutoAssistDataModule": AutoAssistDataModule,
        "MyDataModule": MyDataModule,
        "MyLightningModule": MyLightningModule,
    }
    exec(compile(block, "devices.md", "exec"), names)
    ray.shutdown()


if __name__ == "__main__":
    os.environ[FOLDER] = sys.argv[1]
    os.chdir(sys.argv[1])  # for Lightning's and Ray's files
    warnings.simplefilter("ignore")
    {"ray": fit_with_ray, "ddp": fit_with_ddp}[sys.argv[2]]()
