"""The networks, as ordinary LightningModules that know nothing of K-FAC.

Shapes: B batch, H and W height and width in pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_CLASSES = 10


def autoencoder(widths: Sequence[int]) -> nn.Module:
    """Sigmoid layers down to the last width and back again (Hinton & Salakhutdinov, 2006), for pixels' logits."""
    sizes = [*widths, *reversed(widths[:-1])]
    layers: list[nn.Module] = []
    for number, (size, following) in enumerate(itertools.pairwise(sizes)):
        is_linear = number in (len(widths) - 2, len(sizes) - 2)  # the code, and the logits
        layers += [nn.Linear(size, following), *([] if is_linear else [nn.Sigmoid()])]
    return nn.Sequential(nn.Flatten(), *layers)


def mlp(widths: Sequence[int]) -> nn.Module:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(widths):
        layers += [nn.Linear(size, following), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


class Block(nn.Module):
    """Two convolutions and a way round them; with or without BatchNorm."""

    def __init__(self, num_in: int, num_out: int, stride: int, has_norm: bool) -> None:
        super().__init__()

        def convolution(inputs: int, stride: int) -> list[nn.Module]:
            norm = [nn.BatchNorm2d(num_out)] if has_norm else []
            return [nn.Conv2d(inputs, num_out, 3, stride, padding=1, bias=not has_norm), *norm]

        self.main = nn.Sequential(*convolution(num_in, stride), nn.ReLU(inplace=True), *convolution(num_out, 1))
        is_same = num_in == num_out and stride == 1
        self.round = nn.Identity() if is_same else nn.Conv2d(num_in, num_out, 1, stride)
        if not has_norm:  # so that the block begins as the way round it (Zhang, Dauphin & Ma, Fixup, ICLR 2019)
            nn.init.zeros_(self.main[-1].weight)

    def forward(self, values: Tensor) -> Tensor:
        return F.relu(self.round(values) + self.main(values))


def residual(has_norm: bool) -> nn.Module:
    """A residual network of three blocks, 16 to 32 channels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        Block(16, 16, 1, has_norm),
        Block(16, 32, 2, has_norm),
        Block(32, 32, 2, has_norm),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, NUM_CLASSES),
    )


class Trained(pl.LightningModule):
    """A network with an optimizer whose learning rate falls along a cosine, to 0 at the end.

    Args:
        net: The network.
        is_autoencoder: Whether it is to give its input back: cross-entropy by pixel, summed over an image.
        optimizer: ``"sgd"`` (momentum 0.9) or ``"adamw"``.
        learning_rate: At the beginning.
        num_updates: Of the run.
    """

    def __init__(
        self, net: nn.Module, *, is_autoencoder: bool, optimizer: str, learning_rate: float, num_updates: int
    ) -> None:
        super().__init__()
        self.net = net
        self.is_autoencoder = is_autoencoder
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.num_updates = num_updates

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        if self.is_autoencoder:
            loss = F.binary_cross_entropy_with_logits(self.net(images), images.flatten(1), reduction="sum")
            return loss / len(images)
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        outputs = self.net(images)
        if self.is_autoencoder:
            score = -(outputs.sigmoid() - images.flatten(1)).square().sum(1).mean()
        else:
            score = (outputs.argmax(1) == labels).float().mean()
        self.log("score", score, batch_size=len(images))

    def configure_optimizers(self) -> Any:
        makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "sgd": lambda: torch.optim.SGD(self.parameters(), self.learning_rate, momentum=0.9),
            "adamw": lambda: torch.optim.AdamW(self.parameters(), self.learning_rate),
        }
        optimizer = makers[self.optimizer]()
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
