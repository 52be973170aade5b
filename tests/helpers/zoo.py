"""Whole LightningModules of many kinds, as users write them: they know nothing of AutoAssist."""

from __future__ import annotations

from types import SimpleNamespace

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy  # bound before anything of ours is imported
from torchmetrics.classification import MulticlassAccuracy

WIDTH, CLASSES, VOCABULARY, LENGTH, PAD = 6, 3, 11, 5, 0


class Base(pl.LightningModule):
    """A network and SGD."""

    def __init__(self, outputs=CLASSES):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, outputs))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


class ImageClassifier(Base):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)
        )
        self.accuracy = MulticlassAccuracy(CLASSES)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        with torch.no_grad():
            self.log("plain_loss", F.cross_entropy(logits, labels))
        self.log("train_accuracy", self.accuracy)
        self.log("train_loss", loss, prog_bar=True)
        return loss


class Transformer(Base):
    """A dict batch with labels, and a model that returns its loss in an object, in transformers' style."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.EmbeddingBag(VOCABULARY, WIDTH)

    def forward(self, input_ids, labels):
        logits = self.net(self.embedding(input_ids))
        return SimpleNamespace(loss=nn.CrossEntropyLoss()(logits.view(-1, CLASSES), labels.view(-1)), logits=logits)

    def training_step(self, batch, batch_idx):
        return {"loss": self(**batch).loss}


class LanguageModel(Base):
    """Next tokens, (B, T, V) flattened."""

    def __init__(self):
        super().__init__(VOCABULARY)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def training_step(self, batch, batch_idx):
        (tokens,) = batch
        hidden, _ = self.lstm(self.embedding(tokens[:, :-1]))
        logits = self.net(hidden)
        return F.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[:, 1:].reshape(-1))


class TimeMajorLanguageModel(LanguageModel):
    """The same as (T, B, V)."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH)

    def training_step(self, batch, batch_idx):
        tokens = batch[0].t()
        hidden, _ = self.lstm(self.embedding(tokens[:-1]))
        logits = self.net(hidden)
        return F.cross_entropy(logits.reshape(-1, VOCABULARY), tokens[1:].reshape(-1))


class EncoderDecoder(Base):
    """Sequence to sequence with padding, classes in the middle."""

    def __init__(self):
        super().__init__(VOCABULARY)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=PAD)
        self.encoder = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.decoder = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def training_step(self, batch, batch_idx):
        source, target = batch["source"], batch["target"]
        _, state = self.encoder(self.embedding(source))
        hidden, _ = self.decoder(self.embedding(target[:, :-1]), state)
        return F.cross_entropy(self.net(hidden).transpose(1, 2), target[:, 1:], ignore_index=PAD)


class Segmentation(Base):
    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(1, CLASSES, 3, padding=1)
        self.criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0]), ignore_index=255)

    def training_step(self, batch, batch_idx):
        images, masks = batch
        return self.criterion(self.net(images), masks)


class Regression(Base):
    def __init__(self):
        super().__init__(1)

    def training_step(self, batch, batch_idx):
        features, values = batch
        return F.mse_loss(self.net(features), values)


class MultiTask(Base):
    def __init__(self):
        super().__init__(CLASSES + 1)

    def training_step(self, batch, batch_idx):
        features, labels, values = batch
        outputs = self.net(features)
        classification = F.cross_entropy(outputs[:, :CLASSES], labels)
        regression = F.mse_loss(outputs[:, CLASSES], values.squeeze(1))
        self.log("scaled", 10 * regression)
        return classification + 0.3 * regression


class MultiLabel(Base):
    def training_step(self, batch, batch_idx):
        features, tags = batch
        return F.binary_cross_entropy_with_logits(self.net(features), tags, pos_weight=torch.ones(CLASSES) * 2)


class Gan(pl.LightningModule):
    """Two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(2, WIDTH), nn.Linear(WIDTH, 1)

    def training_step(self, batch, batch_idx):
        real, _ = batch
        for_generator, for_discriminator = self.optimizers()
        fake = self.generator(torch.randn(len(real), 2))
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        for_discriminator.zero_grad()
        loss = F.binary_cross_entropy_with_logits(self.discriminator(real), ones)
        loss = loss + F.binary_cross_entropy_with_logits(self.discriminator(fake.detach()), zeros)
        self.manual_backward(loss)
        for_discriminator.step()
        for_generator.zero_grad()
        self.manual_backward(F.binary_cross_entropy_with_logits(self.discriminator(fake), ones))
        for_generator.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(each.parameters(), lr=0.05) for each in (self.generator, self.discriminator)]


class Vae(Base):
    def __init__(self):
        super().__init__(4)
        self.decoder = nn.Linear(2, WIDTH)

    def training_step(self, batch, batch_idx):
        features, _ = batch
        mean, log_variance = self.net(features).chunk(2, dim=1)
        sample = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        reconstruction = F.mse_loss(self.decoder(sample), features)
        divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).mean()
        return reconstruction + 0.1 * divergence


class TwoViews(Base):
    """Contrastive: 2B rows, each to find its other view."""

    def training_step(self, batch, batch_idx):
        features, _ = batch
        views = torch.cat([features, features + 0.1 * torch.randn_like(features)])
        embedded = F.normalize(self.net(views), dim=1)
        similarity = (embedded @ embedded.t() / 0.5).masked_fill(torch.eye(len(views), dtype=torch.bool), -1e9)
        return F.cross_entropy(similarity, torch.arange(len(views)).roll(len(features)))


class Triplet(Base):
    def training_step(self, batch, batch_idx):
        anchor, positive, negative = (self.net(part) for part in batch)
        return F.triplet_margin_loss(anchor, positive, negative)


class Autoencoder(Base):
    def __init__(self):
        super().__init__(WIDTH)

    def training_step(self, batch, batch_idx):
        features = batch[0]
        return nn.MSELoss()(self.net(features), features)


class Distillation(Base):
    """Cross-entropy, and a copy of itself as teacher."""

    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(WIDTH, CLASSES).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        features, labels = batch
        logits = self.net(features)
        with torch.no_grad():
            soft = self.teacher(features).softmax(1)
        distilled = F.kl_div(F.log_softmax(logits / 2, dim=1), soft, reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, labels) + 0.5 * 4 * distilled


class HandWritten(Base):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        return -self.net(features).log_softmax(1).gather(1, labels[:, None]).mean()


class HandWrittenSquare(Regression):
    def training_step(self, batch, batch_idx):
        features, values = batch
        return (self.net(features) - values).pow(2).mean()


class Compiled(Base):
    def __init__(self):
        super().__init__()
        self.compiled = torch.compile(self.net, backend="eager")

    def training_step(self, batch, batch_idx):
        features, labels = batch
        return F.cross_entropy(self.compiled(features), labels)


class EarlyBound(Base):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        return cross_entropy(self.net(features), labels, label_smoothing=0.1)


class Criterion(nn.Module):
    """The loss in a module of the user's own, reduced by hand."""

    def forward(self, logits, labels):
        return nn.CrossEntropyLoss(reduction="none")(logits, labels).mean()


class OwnCriterion(Base):
    def __init__(self):
        super().__init__()
        self.criterion = Criterion()

    def training_step(self, batch, batch_idx):
        features, labels = batch
        return self.criterion(self.net(features), labels)


class Manual(Base):
    """One optimizer, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        features, labels = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(features), labels))
        optimizer.step()


class GivesLosses(Base):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        losses = F.cross_entropy(self.net(features), labels, reduction="none")
        return {"loss": losses.mean(), "instance_loss": losses}


class HasLossMethod(Base):
    def training_step(self, batch, batch_idx):
        features, labels = batch
        logits = self.net(features)
        self.losses = (logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]).square()
        return self.losses.mean().sqrt()

    def instance_loss(self, batch, outputs):
        return self.losses


class Opaque(Base):
    def training_step(self, batch, batch_idx):
        return sum(parameter.square().sum() for parameter in self.net.parameters())
