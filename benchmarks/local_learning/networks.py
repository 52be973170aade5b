"""Networks of convolutions: one like VGG, one as deep as is asked for, one of two blocks that are level.

Shapes: B batch.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10
VGG = (16, 16, "pool", 32, 32, 32, "pool", 48, 48, 48)


def convolution(before: int, after: int) -> list[nn.Module]:
    """A convolution with what follows it."""
    return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]


class ImageClassifier(pl.LightningModule):
    """Cross-entropy of a stack of layers, SGD with momentum, a cosine over the whole run.

    Args:
        net: Images of shape ``(B, channels, H, W)`` to logits of shape ``(B, 10)``.
        learning_rate: At the start.
    """

    def __init__(self, net: nn.Module, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9, weight_decay=5e-4)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def vgg() -> nn.Sequential:
    """Eight convolutions in three stages, and a linear layer."""
    layers: list[nn.Module] = []
    channels = 1
    for width in VGG:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += convolution(channels, int(width))
            channels = int(width)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES))


def deep(num_layers: int, width: int = 16) -> nn.Sequential:
    """So many convolutions of one width, at one resolution."""
    layers = [layer for number in range(num_layers) for layer in convolution(width if number else 1, width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, NUM_CLASSES))


class Stages(nn.Module):
    """So many blocks that take about as long as each other.

    Args:
        num_blocks: How many; the first one begins with the image.
        depth: Convolutions of a block.
        width: Their channels.
    """

    def __init__(self, num_blocks: int, depth: int = 3, width: int = 24) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for number in range(num_blocks):
            layers = [layer for place in range(depth) for layer in convolution(width if number + place else 1, width)]
            self.blocks.append(nn.Sequential(*layers))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Linear(width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        values = images
        for block in self.blocks:
            values = block(values)
        logits: Tensor = self.last(self.pool(values))
        return logits
