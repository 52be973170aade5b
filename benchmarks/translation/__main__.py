r"""BLEU of a small Transformer against the seconds and the optimizer steps it got, policies side by side.

Every method's peak learning rate is chosen from one grid by greedy BLEU on held-out training pairs (rows of phase
"tune", one seed); it then trains with several seeds and is measured on the test pairs, greedily and with a beam of 5
(rows of phase "final"). The batches of all have the same budget of tokens, and are packed alike. Rows are appended one
at a time to benchmarks/results/translation.jsonl; a run that has its row is not run again, so the same command
continues after an interruption, and a second process beside the first takes other runs.

    python -m benchmarks.translation            # all required rows; about 2.5 hours on two cores, in two processes
    python -m benchmarks.translation --quick    # a minute, names of numbers, checks itself, leaves no rows
    python -m benchmarks.translation --policy full --policy uniform --budget 0.7
    python -m benchmarks.translation --size base --max-words 100 --max-tokens 16384 --epochs 30 \
        --grid 2.5e-4 5e-4 1e-3 --device cuda --precision bf16-mixed --workers 4

The pairs are made from Debian packages, which are fetched by themselves on a machine with apt (6 MB and the package
lists). For another machine, run it with --make-data in a container of Debian, and copy the file that it names. Needs
sentencepiece and sacrebleu: pip install "lightning-autoassist[translation]".
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import add_arguments, parser_of, planned, run_command
from benchmarks.common.jobs import FULL, PAPER, TUNED_BUDGET, Plan, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check_quickly
from benchmarks.translation.data import Corpus, Vocabulary, check_packages, learn_vocabulary, load_corpus
from benchmarks.translation.model import SIZES
from benchmarks.translation.pairs import PAIRS_FILE, load_pairs
from benchmarks.translation.runs import TranslationJob, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

TABLE = "translation"
METHODS = (FULL, "uniform", "proportional", PAPER)
GRID = (2e-3, 4e-3, 8e-3)

TEMPLATE = TranslationJob()


def runner_of(plan: Plan, folder: Path, data_dir: Path, **run_options: Any) -> Runner:
    """What runs a plan.

    Args:
        plan: What to run.
        folder: Of the rows.
        data_dir: Folder for downloads.
        run_options: Of :func:`~benchmarks.translation.runs.run_job`.
    """
    corpora = functools.lru_cache(maxsize=2)(functools.partial(_corpus_of, data_dir))

    def run(job: TranslationJob) -> Row:
        corpus, vocabulary = corpora(job.dataset, job.phase == "tune", job.max_words, job.vocabulary)
        return run_job(job, corpus, vocabulary, **run_options)

    return Runner(plan, TABLE, folder, run)


def _corpus_of(
    data_dir: Path, dataset: str, choosing: bool, max_words: int, vocabulary_size: int
) -> tuple[Corpus, Vocabulary]:
    corpus = load_corpus(dataset, data_dir, choosing=choosing, max_words=max_words)
    return corpus, learn_vocabulary(corpus.train, vocabulary_size)


def quick() -> None:
    """All methods on the names of numbers."""
    template = replace(TEMPLATE, dataset="numbers", size="tiny", vocabulary=120, max_tokens=512, epochs=6)
    plan = Plan((("numbers", TUNED_BUDGET),), METHODS, (0,), (1e-2,), None, template, "curve_bleu")
    check_quickly(plan, lambda folder: runner_of(plan, folder, DEFAULT_DATA_DIR), least=50)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("translation", __doc__, "half a minute, on names of numbers")
    add = parser.add_argument
    add("--make-data", action="store_true", help="make the file of pairs, and say where it is")
    add("--size", choices=SIZES, default=TEMPLATE.size, help="small: 1.5 million parameters; base: for a GPU")
    add("--max-words", type=int, default=TEMPLATE.max_words, help="of a pair's side")
    add("--max-tokens", type=int, default=TEMPLATE.max_tokens, help="of a batch: source, target and padding together")
    add_arguments(parser, TEMPLATE, METHODS, grid=GRID, seeds=3, data_dir=DEFAULT_DATA_DIR)
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    stages = tuple((TEMPLATE.dataset, budget) for budget in args.budget or (TUNED_BUDGET,))
    return planned(args, stages, METHODS, TEMPLATE, metric="curve_bleu")


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()

    def make_runner() -> Runner:
        check_packages()
        pairs = load_pairs(args.data_dir)
        if args.make_data:
            print(f"{len(pairs):,} pairs in {args.data_dir.expanduser() / PAIRS_FILE}")
            sys.exit()
        return runner_of(plan_of(args), RESULTS, args.data_dir, num_workers=args.workers)

    run_command(args, quick, make_runner)


if __name__ == "__main__":
    main()
