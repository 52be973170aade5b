"""One run of the translation benchmark."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common.jobs import Job, Method
from benchmarks.common.training import fit
from benchmarks.translation.data import Corpus, PairData, Vocabulary
from benchmarks.translation.model import SIZES, TranslationModule, Translator, quality, translations

BEAM = 5


@dataclass(frozen=True, kw_only=True)
class TranslationJob(Job):
    """One run of the translation benchmark.

    Args:
        dataset: ``"en-de"`` or ``"numbers"``.
        size: Of the network, in ``SIZES``.
        vocabulary: Subwords of both languages together.
        max_words: Most words of a pair's side.
        max_tokens: Most tokens of a batch, source, target and padding together.
    """

    dataset: str = "en-de"
    size: str = "small"
    vocabulary: int = 8000
    max_words: int = 12
    max_tokens: int = 2048
    epochs: int = 9
    learning_rate: float = 2e-3


def run_job(job: TranslationJob, corpus: Corpus, vocabulary: Vocabulary, *, num_workers: int = 0) -> dict[str, Any]:
    """Train once, and translate what is held out.

    Args:
        job: What to run.
        corpus: To train on, and to measure on.
        vocabulary: Of both sides.
        num_workers: Processes that load pairs.

    Returns:
        The row: the job's own fields, and what came out.
    """
    torch.manual_seed(job.seed)
    data = PairData(
        corpus,
        vocabulary,
        job.max_tokens,
        is_packed=Method(job.method).is_full,
        seed=job.seed,
        num_workers=num_workers,
    )
    net = Translator(SIZES[job.size], len(vocabulary))
    references = [pair.target for pair in corpus.held_out]
    module = TranslationModule(net, vocabulary, references, job.learning_rate)
    row = fit(job, module, data, "curve_bleu", data_options={"max_tokens": job.max_tokens}, gradient_clip_val=1.0)
    lengths = data.train.lengths
    row |= {
        "train_instances": len(corpus.train),
        "held_out_instances": len(corpus.held_out),
        "train_tokens": int(lengths.sum()),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "workers": num_workers,
        "schedule": "inverse square root, warm-up over a tenth of the run's own updates",
        "instances_loaded": data.train.loaded.total,
        "passes": round(data.train.loaded.total / len(data.train), 2),
    }
    return row if job.phase == "tune" else row | measured(net, corpus, vocabulary)


def measured(net: Translator, corpus: Corpus, vocabulary: Vocabulary) -> dict[str, Any]:
    """BLEU and chrF of all that is held out, greedily and by beam search."""
    references = [pair.target for pair in corpus.held_out]
    found: dict[str, Any] = {}
    for name, beam in (("greedy", 1), ("beam", BEAM)):
        started = time.perf_counter()
        reached = quality(translations(net, corpus.held_out, vocabulary, beam), references)
        found[f"{name}_bleu"], found[f"{name}_chrf"] = round(reached.bleu, 3), round(reached.chrf, 3)
        found[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
        found["signatures"] = list(reached.signatures)
    return found
