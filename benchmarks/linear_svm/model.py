"""The model of the linear SVM's benchmark.

Shapes: B batch, F features.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearSVM(pl.LightningModule):
    """Hinge loss and L2, by SGD with steps of 1 / (lambda t).

    Args:
        num_features: F.
        l2: Lambda.
    """

    def __init__(self, num_features: int, l2: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features))
        self.l2 = l2

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.weight

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, labels = batch
        scores = self(features)
        # The hinge is the ranking loss of a score against 0, with a margin of 1.
        hinge = F.margin_ranking_loss(scores, torch.zeros_like(scores), labels, margin=1)
        return hinge + self.l2 / 2 * self.weight.dot(self.weight)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 1 / self.l2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
