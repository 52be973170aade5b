"""Texts, pairs of texts, and modules that train on them, as users write them."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

PAD = 3  # also the most frequent word
NUM_WORDS = 40
NUM_CLASSES = 3


class TextSet(Dataset):
    """Texts of 2 to 14 words; three words of its own tell the class in the first half, chance does in the second.

    Text i begins with the words 4 + i mod 32 and PAD, and never ends in PAD.
    """

    def __init__(self, num_instances: int, num_clear: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        num_clear = num_instances // 2 if num_clear is None else num_clear
        self.texts: list[Tensor] = []
        self.labels = torch.randint(0, NUM_CLASSES, (num_instances,), generator=generator)
        for number in range(num_instances):
            length = int(torch.randint(0, 12, (), generator=generator))
            words = torch.randint(PAD, 12, (length,), generator=generator)
            words[torch.rand(length, generator=generator) < 0.4] = PAD
            last = int(self.labels[number]) if number < num_clear else 36
            self.texts.append(torch.cat([torch.tensor([4 + number % 32, PAD]), words, torch.tensor([last])]))

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.texts[index], self.labels[index]


def collate(instances: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    texts, labels = zip(*instances, strict=True)
    return pad_sequence(list(texts), batch_first=True, padding_value=PAD), torch.stack(labels)


class TextsData(pl.LightningDataModule):
    """A train and a validation loader over :class:`TextSet`."""

    def __init__(self, num_instances: int = 200, batch_size: int = 10, **loader_options: Any) -> None:
        super().__init__()
        self.train_set = TextSet(num_instances)
        self.loader_options = {"batch_size": batch_size, "shuffle": True, "collate_fn": collate, **loader_options}

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, **self.loader_options)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TextSet(30, num_clear=30), batch_size=10, collate_fn=collate)


class BagOfWords(pl.LightningModule):
    """Classifies texts; dropout draws from the global RNG."""

    def __init__(self, lr: float = 0.02) -> None:
        super().__init__()
        self.lr = lr
        self.words = nn.EmbeddingBag(NUM_WORDS, 16, mode="sum", padding_idx=PAD)
        self.net = nn.Sequential(nn.Dropout(0.1), nn.Linear(16, NUM_CLASSES))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        texts, labels = batch
        return F.cross_entropy(self.net(self.words(texts)), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        texts, labels = batch
        self.log("val_loss", F.cross_entropy(self.net(self.words(texts)), labels))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class PairSet(Dataset):
    """Sources of 1 to 6 words and targets that repeat them, each +10 in the first half, at random in the second."""

    def __init__(self, num_instances: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pairs = []
        for number in range(num_instances):
            source = torch.randint(4, 14, (1 + number % 6,), generator=generator)
            chance = torch.randint(14, 24, (1 + number % 6,), generator=generator)
            self.pairs.append((source, source + 10 if number < num_instances // 2 else chance))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs[index]


def collate_pairs(instances: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    sources, targets = (pad_sequence(list(part), batch_first=True) for part in zip(*instances, strict=True))
    return {"source": sources, "mask": (sources != 0).long(), "target": targets}


class Translator(pl.LightningModule):
    """Translates word by word; its loss is over all words of the batch, padding left out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(NUM_WORDS, 16), nn.Linear(16, NUM_WORDS))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self.net(batch["source"])
        return F.cross_entropy(logits.flatten(0, 1), batch["target"].flatten(), ignore_index=0)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.03)
