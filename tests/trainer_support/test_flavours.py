"""``pytorch_lightning`` and ``lightning.pytorch``: Trainer and data module of either."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_autoassist
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.trainer_support.variants import FLAVOUR_NAMES, overrides
from tests.helpers.ordinary import CountingDataset

FLAVOURS = {name: importlib.import_module(name) for name in FLAVOUR_NAMES}


def classes_of(flavour):
    class Classifier(flavour.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(8, 3)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch[0] / 100), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", F.cross_entropy(self.net(batch[0] / 100), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class Data(flavour.LightningDataModule):
        def train_dataloader(self):
            data = CountingDataset(100)
            return DataLoader(TensorDataset(data.features, data.labels), batch_size=10, shuffle=True)

        def val_dataloader(self):
            data = CountingDataset(30)
            return DataLoader(TensorDataset(data.features, data.labels), batch_size=10)

    return Classifier, Data


@pytest.mark.parametrize("data_flavour", FLAVOURS.values(), ids=FLAVOURS)
@pytest.mark.parametrize("trainer_flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_all_four_combinations_train(trainer_flavour, data_flavour):
    callback = AutoAssistCallback()
    run = trainer_flavour.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    data = AutoAssistDataModule(classes_of(data_flavour)[1](), budget=0.6)
    run.fit(classes_of(trainer_flavour)[0](), datamodule=data)
    assert run.global_step == 24
    assert run.callback_metrics["val_loss"] > 0
    assert run.callback_metrics["autoassist/keep_rate"] < 1
    assert callback.summary()["candidates_seen"] > callback.summary()["instances_seen"]


@pytest.mark.parametrize("flavour", FLAVOURS.values(), ids=FLAVOURS)
def test_overrides_tells_the_users_hooks_from_lightnings(flavour):
    _, data_class = classes_of(flavour)
    assert overrides(data_class(), "val_dataloader")
    assert not overrides(data_class(), "test_dataloader")
    late = data_class()
    late.test_dataloader = lambda: None
    assert overrides(late, "test_dataloader")


def test_importing_the_package_imports_neither_wandb_nor_torchvision():
    """wandb is looked for in a new process; torchvision in our sources, since torchmetrics imports it by itself."""
    code = "import sys, lightning_autoassist; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    loaded = [
        node.names[0].name if isinstance(node, ast.Import) else node.module
        for path in Path(lightning_autoassist.__file__).parent.rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert "torch" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {"torchvision", "wandb", "matplotlib", "sklearn"}
