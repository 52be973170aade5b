"""Unmodified modules of Linear layers, and their fits."""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers.ordinary import trainer

NUM_FEATURES = 6


def rows(n=24, num_classes=3, seed=0, dtype=torch.float64):
    """Features, numbers to regress on, classes and weights."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, NUM_FEATURES, generator=generator, dtype=dtype)
    numbers = torch.sin(2 * features[:, :1]) + features[:, 1:2] * features[:, 2:3]
    classes = torch.randint(num_classes, (n,), generator=generator)
    return TensorDataset(features, numbers, classes, torch.ones(n, dtype=dtype))


class Perceptron(pl.LightningModule):
    """Two Linear layers; the loss is one of :data:`LOSSES`."""

    def __init__(
        self, loss="mse", *, bias=True, lr=1.0, optimizer=torch.optim.SGD, width=8, dtype=torch.float64, **sgd
    ):
        super().__init__()
        torch.manual_seed(3)
        self.loss, self.options = loss, {"lr": lr, **sgd}
        self.optimizer = optimizer
        num_outputs = 3 if loss.startswith("cross_entropy") else 1
        self.net = nn.Sequential(
            nn.Linear(NUM_FEATURES, width, bias=bias), nn.Tanh(), nn.Linear(width, num_outputs, bias=bias)
        ).to(dtype)
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = LOSSES[self.loss](self.net(batch[0]), *batch[1:])
        self.losses.append(loss.detach())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return self.optimizer([each for each in self.parameters() if each.requires_grad], **self.options)


LOSSES = {
    "mse": lambda out, numbers, classes, weights: F.mse_loss(out, numbers),
    "half_sum": lambda out, numbers, classes, weights: 0.5 * (out - numbers).square().sum(),
    "half_sum_of_torch": lambda out, numbers, classes, weights: 0.5 * F.mse_loss(out, numbers, reduction="sum"),
    "weighted": lambda out, numbers, classes, weights: (weights * (out - numbers).square().squeeze(1)).sum(),
    "binary": lambda out, numbers, classes, weights: F.binary_cross_entropy_with_logits(
        out, (numbers > 0).to(out.dtype)
    ),
    "cross_entropy": lambda out, numbers, classes, weights: F.cross_entropy(out, classes),
    "cross_entropy_sum": lambda out, numbers, classes, weights: F.cross_entropy(out, classes, reduction="sum"),
    "l1": lambda out, numbers, classes, weights: F.l1_loss(out, numbers),
}


def fit(module, *callbacks, data=None, batch_size=8, shuffle=False, **options):
    """A quiet fit; returns its Trainer."""
    data = rows() if data is None else data
    loader = DataLoader(data, batch_size=batch_size, shuffle=shuffle)
    run = trainer(**{"max_epochs": 1, "callbacks": list(callbacks), **options})
    run.fit(module, loader)
    return run


def parameters_of(module):
    return torch.cat([each.detach().flatten() for each in module.parameters()])
