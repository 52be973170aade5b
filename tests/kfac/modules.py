"""Modules and data of the tests of K-FAC: they know nothing of it."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.ordinary import trainer

CLASSES = 3


def images(num=96, size=6):
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(num) % CLASSES
    centres = torch.randn(CLASSES, 2, size, size, generator=generator)
    return TensorDataset(centres[target] + torch.randn(num, 2, size, size, generator=generator), target)


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(72, 8), nn.ReLU(inplace=True), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, CLASSES)
    )


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, CLASSES)
    )


class Net(pl.LightningModule):
    """Trains ``net`` by SGD with momentum."""

    def __init__(self, net=mlp, lr=0.05, optimizer=None):
        super().__init__()
        torch.manual_seed(0)
        self.make, self.lr, self.optimizer = net, lr, optimizer
        self.net = net()
        self.losses = []

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        if self.optimizer is not None:
            return self.optimizer(self)
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class ValidatedNet(Net):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))


def fit(module, *callbacks, data=None, batch_size=16, epochs=1, resume=None, shuffle=False, **options):
    """One fit; returns the Trainer."""
    pl.seed_everything(1, verbose=False)
    saves = any(isinstance(each, pl.callbacks.Checkpoint) for each in callbacks)
    options = {"max_epochs": epochs, "callbacks": list(callbacks), "enable_checkpointing": saves, **options}
    run = trainer(**options)
    loader = DataLoader(data or images(), batch_size=batch_size, shuffle=shuffle)
    run.fit(module, loader, loader if isinstance(module, ValidatedNet) else None, ckpt_path=resume)
    return run


def vector(module):
    return nn.utils.parameters_to_vector(module.parameters()).detach()
