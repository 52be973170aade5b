r"""Accuracy of a small text classifier against the Boss updates it got: policies side by side.

Debian's package descriptions by their section: 28,000 texts, 20 classes, made from apt's package lists (20 MB) in some
seconds; see benchmarks/text_data.py. Methods are compared as in benchmarks/images.py: every method's peak learning rate
is chosen from one grid on a part of the training texts, then test accuracy is measured with several seeds. Rows are
appended to benchmarks/results/text.jsonl; the same command continues after an interruption, and a second process beside
the first takes other runs.

    python benchmarks/text_classification.py            # all required rows; about an hour on one core
    python benchmarks/text_classification.py --quick    # half a minute, texts made up, checks itself, leaves no rows
    python benchmarks/text_classification.py --model transformer --grid 3e-4 1e-3 3e-3 --device cuda
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rows import RESULTS
from runs import (
    FULL,
    PAPER,
    TUNED_BUDGET,
    Job,
    Plan,
    Row,
    Runner,
    add_arguments,
    be_quiet,
    check_quickly,
    fit,
    planned,
)
from text_data import PAD, TEXT_SETS, TextData, TextSplit, load_texts
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_autoassist.demo.data import DEFAULT_DATA_DIR
from lightning_autoassist.filtering.policies.registry import POLICIES

TABLE = "text"
METHODS = (FULL, "uniform", "proportional", PAPER)
GRID = (0.001, 0.003, 0.01)
DATASET = "debian-descriptions"


@dataclass(frozen=True, kw_only=True)
class TextJob(Job):
    """One run of this benchmark.

    Args:
        dataset: In ``TEXT_SETS``.
        max_length: Words of a text; what is longer is cut.
        model: ``"bag"`` or ``"transformer"``.
        batch_size: B.
    """

    dataset: str = DATASET
    max_length: int = 128
    model: str = "bag"
    batch_size: int = 64
    epochs: int = 10
    learning_rate: float = 0.001


TEMPLATE = TextJob()


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


class TextBoss(pl.LightningModule):
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


def make_net(job: TextJob, split: TextSplit) -> nn.Module:
    """The job's network."""
    if job.model == "transformer":
        return TransformerClassifier(split.num_tokens, split.num_classes, job.max_length)
    return BagClassifier(split.num_tokens, split.num_classes)


def run_job(job: TextJob, split: TextSplit, num_workers: int = 0) -> Row:
    """Train once.

    Args:
        job: What to run.
        split: To train on, and to measure accuracy on.
        num_workers: Processes that load texts.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    data = TextData(split, job.batch_size, num_workers)
    module = TextBoss(make_net(job, split), job.learning_rate)
    return {
        **fit(job, module, data),
        "train_instances": len(split.train.labels),
        "held_out_instances": len(split.held_out.labels),
        "num_tokens": split.num_tokens,
        "workers": num_workers,
        "schedule": "OneCycle over the run's own updates",
        "instances_loaded": data.train.loads.total,
    }


def runner_of(plan: Plan, folder: Path, data_dir: Path, num_workers: int = 0) -> Runner:
    """What runs a plan.

    Args:
        plan: What to run.
        folder: Of the rows.
        data_dir: Where data are kept.
        num_workers: Processes that load texts.
    """
    texts = functools.lru_cache(maxsize=2)(functools.partial(_texts_of, data_dir))

    def run(job: TextJob) -> Row:
        return run_job(job, texts(job.dataset, job.phase == "tune", job.max_length), num_workers)

    return Runner(plan, TABLE, folder, run)


def _texts_of(data_dir: Path, dataset: str, choosing: bool, max_length: int) -> TextSplit:
    return load_texts(dataset, data_dir, choosing=choosing, max_length=max_length)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute, on texts made up; leaves no rows")
    parser.add_argument("--model", choices=("bag", "transformer"), default=TEMPLATE.model)
    parser.add_argument("--max-length", type=int, default=TEMPLATE.max_length, help="words of a text")
    add_arguments(parser, TEMPLATE, METHODS, grid=GRID, seeds=3, data_dir=DEFAULT_DATA_DIR)
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    stages = tuple((DATASET, budget) for budget in args.budget or (0.6, 0.4))
    return planned(args, stages, METHODS, TEMPLATE)


def quick() -> None:
    """Every policy of the registry, and the paper's with its Assistant for text, on texts made up."""
    template = replace(TEMPLATE, dataset="made", epochs=5, max_length=32)
    plan = Plan((("made", TUNED_BUDGET),), (FULL, *POLICIES, PAPER), (0,), (0.003, 0.01), None, template)
    check_quickly(plan, lambda folder: runner_of(plan, folder, DEFAULT_DATA_DIR), least=0.6)


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()
    be_quiet(args.threads)
    if args.quick:
        quick()
        return
    try:
        TEXT_SETS[DATASET](args.data_dir)
    except (FileNotFoundError, RuntimeError) as error:
        sys.exit(f"no {DATASET}: {error}")
    runner = runner_of(plan_of(args), RESULTS, args.data_dir, args.workers)
    runner.run()
    sys.exit(1 if runner.failed else 0)


if __name__ == "__main__":
    main()
