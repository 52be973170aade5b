"""The LightningModule around a network and a loss that are no LightningModules themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch
import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class _Line:
    """A network, a loss, and the line that joins them.

    Args:
        line: Gets this module and a batch, returns the loss.
        learning_rate: Of Adam.
        parts: Modules that the line finds as attributes.
    """

    def __init__(self, line: Callable[[Any, Any], Tensor], *, learning_rate: float = 1e-3, **parts: nn.Module) -> None:
        super().__init__()
        self.line = line
        self.learning_rate = learning_rate
        for name, part in parts.items():
            setattr(self, name, part)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.line(self, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Step(_Line, pl.LightningModule):
    """Of ``pytorch_lightning``."""


class UnifiedStep(_Line, lightning.pytorch.LightningModule):
    """Of ``lightning.pytorch``, whose Trainer takes its own data modules alone."""


def perceptron(inputs: int, outputs: int) -> nn.Module:
    """A small network with dropout."""
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, outputs))


def small_cnn(channels: int, outputs: int) -> nn.Module:
    """A small network with BatchNorm, images to vectors."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, outputs),
    )


def pixel_net(channels: int, outputs: int) -> nn.Module:
    """A small network with BatchNorm, images to images of the same size."""
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, outputs, 3, padding=1)
    )


def livelier(net: nn.Module, factor: float) -> nn.Module:
    """``net`` with the weights of its last layer made larger: untrained ones would give all instances one loss."""
    weights = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    with torch.no_grad():
        weights[-1].mul_(factor)
    return net
