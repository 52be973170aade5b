"""Translation with a Transformer of base size on all pairs, with and without filtering, in runs that fit the time.

A first measurement of a step says how many epochs a run may have; all runs have the same. One seed and one learning
rate: what it shows is how seconds and BLEU go together on a GPU, not which method is best.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import replace

from benchmarks.common.jobs import FULL
from benchmarks.gpu.cost import Clock
from benchmarks.gpu.part import Part, default_policy, part_of
from benchmarks.translation.data import Corpus, PairData, Vocabulary, learn_vocabulary, load_corpus
from benchmarks.translation.model import SIZES, TranslationModule, Translator
from benchmarks.translation.runs import TranslationJob, run_job

BUDGET = 0.7
MOST_EPOCHS = 30
MOST_SECONDS = 120.0  # a run
PROBE_STEPS = 30
# Of a run's seconds, what translating takes at its end and its epochs' ends.
TRANSLATING_SHARE = 0.35


def template_of(part: Part) -> TranslationJob:
    """What is the same in all runs."""
    if part.is_quick:
        return TranslationJob(
            dataset="numbers", size="tiny", vocabulary=120, max_tokens=512, epochs=1, learning_rate=1e-2
        )
    return TranslationJob(
        size="base",
        max_words=100,
        max_tokens=16384,
        device=part.device,
        precision="bf16-mixed" if part.device == "cuda" else "32-true",
        learning_rate=5e-4,
    )


def epoch_seconds(part: Part, job: TranslationJob, corpus: Corpus, vocabulary: Vocabulary) -> float:
    """What the full run's epoch takes, by some of its steps."""
    data = PairData(corpus, vocabulary, job.max_tokens, is_packed=True)
    num_batches = len(data.train_dataloader())
    steps = min(PROBE_STEPS, num_batches)
    clock = Clock(steps // 3, steps - 1)
    trainer = part.trainer(max_steps=steps, max_epochs=1, precision=job.precision, callbacks=[clock])
    references = [pair.target for pair in corpus.held_out]
    net = Translator(SIZES[job.size], len(vocabulary))
    trainer.fit(TranslationModule(net, vocabulary, references, job.learning_rate), datamodule=data)
    part.keep(case="probe", max_tokens=job.max_tokens, step_ms=round(clock.step_ms, 4), num_batches=num_batches)
    return num_batches * clock.step_ms / 1e3


def main() -> None:
    """Run what there is time for."""
    part = part_of("translation")
    job = template_of(part)
    corpus = load_corpus(job.dataset, part.data_dir, choosing=False, max_words=job.max_words)
    vocabulary = learn_vocabulary(corpus.train, job.vocabulary)
    seconds = epoch_seconds(part, job, corpus, vocabulary)
    failed: list[str] = []
    methods = ((FULL, 1.0), (default_policy(), BUDGET), ("uniform", BUDGET))
    if not part.is_quick:
        a_run = min(MOST_SECONDS, part.seconds_left / sum(budget for _, budget in methods))
        epochs = int(min(MOST_EPOCHS, (1 - TRANSLATING_SHARE) * a_run / seconds))
        if epochs < 1:
            part.keep(case="runs", outcome="no time", epoch_seconds=round(seconds, 2))
            return
        job = replace(job, epochs=epochs)
    for method, budget in methods:
        started = time.monotonic()
        try:
            row = run_job(replace(job, method=method, budget=budget), corpus, vocabulary)
        except Exception as error:
            traceback.print_exc()
            part.keep(case="failed", method=method, outcome=f"{type(error).__name__}: {error}"[:2000])
            failed.append(method)
            continue
        part.keep(case="run", **row, whole_seconds=round(time.monotonic() - started, 2))
        print(f"{method} {budget:g}: BLEU {row['greedy_bleu']:.1f}, {row['seconds']:.1f} s of training", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
