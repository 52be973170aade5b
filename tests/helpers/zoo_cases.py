"""What is to be found in the modules of the zoo: their data, and their losses by hand, one an instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lightning_autoassist.capture.autograd_graph import knows_shapes
from tests.helpers import zoo

NUM_INSTANCES, BATCH_SIZE = 24, 8


class Columns(Dataset):
    """Instances from columns, in the structure of the first."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return NUM_INSTANCES

    def __getitem__(self, index):
        if isinstance(self.columns, dict):
            return {name: column[index] for name, column in self.columns.items()}
        return tuple(column[index] for column in self.columns)


def random_columns():
    generator = torch.Generator().manual_seed(0)

    def tokens(low=1):
        return torch.randint(low, zoo.VOCABULARY, (NUM_INSTANCES, zoo.LENGTH), generator=generator)

    def normal(*shape):
        return torch.randn(NUM_INSTANCES, *shape, generator=generator)

    labels = torch.randint(0, zoo.CLASSES, (NUM_INSTANCES,), generator=generator)
    padded = tokens()
    for row, length in enumerate(torch.randint(2, zoo.LENGTH, (NUM_INSTANCES,), generator=generator).tolist()):
        padded[row, length:] = zoo.PAD
    masks = torch.randint(0, zoo.CLASSES, (NUM_INSTANCES, 8, 8), generator=generator)
    masks[:, 0] = 255
    return {
        "features": (normal(zoo.WIDTH), labels),
        "images": (normal(1, 8, 8), labels),
        "masks": (normal(1, 8, 8), masks),
        "values": (normal(zoo.WIDTH), normal(1)),
        "two targets": (normal(zoo.WIDTH), labels, normal(1)),
        "tags": (normal(zoo.WIDTH), torch.randint(0, 2, (NUM_INSTANCES, zoo.CLASSES), generator=generator).float()),
        "triplets": (normal(zoo.WIDTH), normal(zoo.WIDTH), normal(zoo.WIDTH)),
        "tokens": (tokens(),),
        "dict": {"input_ids": tokens(), "labels": labels},
        "pairs": {"source": tokens(), "target": padded},
    }


def nll(logits, labels):
    return logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]


def of_labels(module, batch):
    return nll(module.net(batch[0]), batch[1])


def of_tokens(logits, target, counts):
    """Mean over the tokens or pixels that count; logits of shape (B, T, V), all else (B, T)."""
    rows = nll(logits.flatten(0, 1), target.flatten()).reshape(target.shape)
    return (rows * counts).sum(1) / (counts > 0).sum(1)


def of_dict(module, batch):
    return nll(module.net(module.embedding(batch["input_ids"])), batch["labels"])


def of_next_tokens(module, batch):
    tokens = batch[0]
    hidden, _ = module.lstm(module.embedding(tokens[:, :-1]))
    return of_tokens(module.net(hidden), tokens[:, 1:], torch.ones(BATCH_SIZE, zoo.LENGTH - 1))


def of_next_tokens_time_major(module, batch):
    hidden, _ = module.lstm(module.embedding(batch[0].t()[:-1]))
    return of_tokens(module.net(hidden).transpose(0, 1), batch[0][:, 1:], torch.ones(BATCH_SIZE, zoo.LENGTH - 1))


def of_padded_tokens(module, batch):
    _, state = module.encoder(module.embedding(batch["source"]))
    hidden, _ = module.decoder(module.embedding(batch["target"][:, :-1]), state)
    target = batch["target"][:, 1:]
    return of_tokens(module.net(hidden), target, (target != zoo.PAD).float())


def of_pixels(module, batch):
    """Pixels count by the weight of their class, in the loss; in its mean over an instance all count alike."""
    logits, masks = module.net(batch[0]).flatten(2).transpose(1, 2), batch[1].flatten(1)
    is_known = masks != 255
    classes = masks.where(is_known, 0)
    return of_tokens(logits, classes, torch.tensor([0.5, 1.0, 2.0])[classes] * is_known)


def of_values(module, batch):
    return (module.net(batch[0]) - batch[-1]).square().mean(1)


def of_two_tasks(module, batch):
    outputs = module.net(batch[0])
    return nll(outputs[:, : zoo.CLASSES], batch[1]) + 0.3 * (outputs[:, zoo.CLASSES] - batch[2][:, 0]).square()


def of_tags(module, batch):
    logits, tags = module.net(batch[0]), batch[1]
    return -(2 * tags * F.logsigmoid(logits) + (1 - tags) * F.logsigmoid(-logits)).mean(1)


def of_autoencoding(module, batch):
    mean, log_variance = module.net(batch[0]).chunk(2, dim=1)
    sample = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean(1)
    return (module.decoder(sample) - batch[0]).square().mean(1) + 0.1 * divergence


def of_triplets(module, batch):
    anchor, positive, negative = (module.net(part) for part in batch)
    return (1 + (anchor - positive + 1e-6).norm(dim=1) - (anchor - negative + 1e-6).norm(dim=1)).relu()


def of_itself(module, batch):
    return (module.net(batch[0]) - batch[0]).square().mean(1)


def of_teacher_and_labels(module, batch):
    """In units of the larger coefficient, 2 of 2 and 0.5."""
    logits, soft = module.net(batch[0]), module.teacher(batch[0]).softmax(1)
    return (soft * (soft.log() - (logits / 2).log_softmax(1))).sum(1) + 0.25 * nll(logits, batch[1])


def of_smoothed_labels(module, batch):
    logits = module.net(batch[0])
    return 0.9 * nll(logits, batch[1]) - 0.1 * logits.log_softmax(1).mean(1)


def of_method(module, batch):
    return of_labels(module, batch).square()


class Case(NamedTuple):
    """A module, and what is to be found in its step.

    Attributes:
        losses: Names of the losses captured; empty where training is to be unfiltered.
        by_hand: Gets module and batch, returns what each instance's loss is to be, shape (B,).
        coefficients: Of the losses.
        has_labels: Whether class labels are found.
        adds_up: Whether the instances' losses have the returned loss for their mean.
        calls_from: Whose source the losses are called in, if not the module's own.
    """

    module: type
    data: str
    losses: tuple[str, ...]
    by_hand: Callable | None = None
    coefficients: tuple[float, ...] = (1.0,)
    has_labels: bool = False
    adds_up: bool = True
    calls_from: type | None = None


CE = ("cross_entropy",)
KNOWS_COMPILED_CAPTURE = torch.__version__ >= "2.7"
CASES = [
    Case(zoo.ImageClassifier, "images", CE, of_labels, has_labels=True),
    Case(zoo.Transformer, "dict", CE, of_dict, has_labels=True),
    Case(zoo.LanguageModel, "tokens", CE, of_next_tokens),
    Case(zoo.TimeMajorLanguageModel, "tokens", CE, of_next_tokens_time_major),
    Case(zoo.EncoderDecoder, "pairs", CE, of_padded_tokens, adds_up=False),  # a mean over tokens, not over instances
    Case(zoo.Segmentation, "masks", CE, of_pixels, adds_up=False),  # a mean over weighted classes
    Case(zoo.Regression, "values", ("mse_loss",), of_values),
    Case(zoo.MultiTask, "two targets", (*CE, "mse_loss"), of_two_tasks, (1.0, 0.3), has_labels=True),
    Case(zoo.MultiLabel, "tags", ("binary_cross_entropy_with_logits",), of_tags),
    Case(zoo.Gan, "features", ()),
    Case(zoo.TwoViews, "features", ()),
    Case(zoo.Triplet, "triplets", ("triplet_margin_loss",), of_triplets),
    Case(zoo.Autoencoder, "features", ("mse_loss",), of_itself),
    Case(zoo.Distillation, "features", ("kl_div", *CE), of_teacher_and_labels, (2.0, 0.5), True, adds_up=False),
    Case(zoo.EarlyBound, "features", CE, of_smoothed_labels, has_labels=True),
    Case(zoo.OwnCriterion, "features", CE, of_labels, has_labels=True, calls_from=zoo.Criterion),
    Case(zoo.Manual, "features", CE, of_labels, has_labels=True, adds_up=False),  # returns nothing
    Case(zoo.GivesLosses, "features", ("instance_loss",), of_labels),
    Case(zoo.HasLossMethod, "features", ("instance_loss",), of_method, adds_up=False),
    Case(zoo.Opaque, "features", ()),
]
if knows_shapes(torch.zeros(1, requires_grad=True).sum()):  # torch 2.4 tells no shapes
    CASES += [
        Case(zoo.HandWritten, "features", ("hand-written loss",), of_labels, (-1.0,)),
        Case(zoo.Vae, "features", ("mse_loss", "hand-written loss"), of_autoencoding, (1.0, -0.05)),
        Case(zoo.HandWrittenSquare, "values", ("hand-written loss",), of_values),
    ]
if KNOWS_COMPILED_CAPTURE:
    CASES.append(Case(zoo.Compiled, "features", CE, of_labels, has_labels=True))
CAPTURED = [case for case in CASES if case.losses]
UNFILTERED = [case for case in CASES if not case.losses]


def loader_of(case):
    return DataLoader(Columns(random_columns()[case.data]), batch_size=BATCH_SIZE, shuffle=True)


def name_of(case):
    return case.module.__name__
