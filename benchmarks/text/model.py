"""The model of the text benchmark: two networks and their LightningModule.

Shapes: B batch, T tokens of a text, C classes.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.text.data import PAD


class BagClassifier(nn.Module):
    """Mean and maximum of the words' embeddings, and one hidden layer.

    Args:
        num_tokens: Token ids.
        num_classes: C.
        dim: Of an embedding.
    """

    def __init__(self, num_tokens: int, num_classes: int, dim: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, dim, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(2 * dim, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, num_classes)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape ``(B, C)``, of tokens, shape ``(B, T)``."""
        is_word = (tokens != PAD)[:, :, None]
        words = self.embedding(tokens)
        mean = (words * is_word).sum(1) / is_word.sum(1)
        return self.head(torch.cat([mean, words.masked_fill(~is_word, -1e4).amax(1)], dim=1))


class TransformerClassifier(nn.Module):
    """A small Transformer encoder, and the mean over its positions.

    Args:
        num_tokens: Token ids.
        num_classes: C.
        max_length: Most positions.
        dim: Of an embedding.
    """

    def __init__(self, num_tokens: int, num_classes: int, max_length: int, dim: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, dim, padding_idx=PAD)
        self.position = nn.Parameter(torch.randn(max_length, dim) * 0.02)
        layer = nn.TransformerEncoderLayer(dim, 4, 4 * dim, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape ``(B, C)``, of tokens, shape ``(B, T)``."""
        is_word = tokens != PAD
        words = self.embedding(tokens) + self.position[: tokens.shape[1]]
        states = self.encoder(words, src_key_padding_mask=~is_word) * is_word[:, :, None]
        return self.head(states.sum(1) / is_word.sum(1, keepdim=True))


class TextModule(pl.LightningModule):
    """Cross-entropy, AdamW, and a OneCycle schedule that ends with the run's own last update.

    Args:
        net: Tokens in, logits out.
        learning_rate: Peak of the schedule.
    """

    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.net = net
        self.learning_rate = learning_rate

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        tokens, labels = batch
        return F.cross_entropy(self.net(tokens), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        tokens, labels = batch
        correct = (self.net(tokens).argmax(1) == labels).float()
        self.log("accuracy", correct.mean(), batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), self.learning_rate, weight_decay=0.01, fused=True)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.learning_rate, total_steps=num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
