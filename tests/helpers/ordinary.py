"""Modules and data as users write them: they know nothing of AutoAssist."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

NUM_CLASSES = 3


INDEX_SCALE = 1024.0  # a power of two: indices below 2048 survive half precision


class CountingDataset(Dataset):
    """Gaussian clusters, one a class; counts which instances are loaded. Column 0 holds the index, scaled."""

    def __init__(self, num_instances: int, num_features: int = 8) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(num_instances) % NUM_CLASSES
        centres = torch.randn(NUM_CLASSES, num_features, generator=generator)
        self.features = centres[self.labels] + torch.randn(num_instances, num_features, generator=generator)
        self.features[:, 0] = torch.arange(num_instances) / INDEX_SCALE
        self.loads: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.loads.append(index)
        return self.features[index], self.labels[index]


def index_of(features: Tensor) -> Tensor:
    """Indices of instances of :class:`CountingDataset`, from their features."""
    return (features[:, 0].double() * INDEX_SCALE).long()


class Classifier(pl.LightningModule):
    """Cross-entropy through ``torch.nn.functional``; dropout draws from the global RNG."""

    def __init__(self, num_features: int = 8, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.BatchNorm1d(num_features),
            nn.Linear(num_features, 16),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(16, NUM_CLASSES),
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features, labels = batch
        return F.cross_entropy(self.net(features), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        features, labels = batch
        self.log("val_loss", F.cross_entropy(self.net(features), labels))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ModuleLossClassifier(Classifier):
    """Cross-entropy through ``nn.CrossEntropyLoss``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features, labels = batch
        return self.criterion(self.net(features), labels)


class ClustersData(pl.LightningDataModule):
    """A train and a validation loader over :class:`CountingDataset`."""

    num_classes = NUM_CLASSES

    def __init__(self, num_instances: int = 100, batch_size: int = 10, **loader_options: Any) -> None:
        super().__init__()
        self.train_set = CountingDataset(num_instances)
        self.loader_options = {"batch_size": batch_size, "shuffle": True, **loader_options}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, **self.loader_options)

    def val_dataloader(self) -> DataLoader:
        held_out = CountingDataset(30)
        return DataLoader(TensorDataset(held_out.features, held_out.labels), batch_size=10)


def trainer(variant: Any = pl, **options: Any) -> pl.Trainer:
    """A quiet CPU Trainer of a variant of Lightning: no logger, checkpoints or progress bar unless ``options`` ask."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return variant.Trainer(**{**quiet, **options})
