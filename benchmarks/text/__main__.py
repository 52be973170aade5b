r"""Accuracy of a small text classifier against the optimizer steps it got: policies side by side.

Debian's package descriptions by their section: 28,000 texts, 20 classes, made from apt's package lists (20 MB) in some
seconds; see benchmarks/text/data.py. Methods are compared as in benchmarks/images: every method's peak learning rate
is chosen from one grid on a part of the training texts, then test accuracy is measured with several seeds. Rows are
appended to benchmarks/results/text.jsonl; the same command continues after an interruption, and a second process beside
the first takes other runs.

    python -m benchmarks.text            # all required rows; about an hour on one core
    python -m benchmarks.text --quick    # half a minute, texts made up, checks itself, leaves no rows
    python -m benchmarks.text --model transformer --grid 3e-4 1e-3 3e-3 --device cuda
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path

from benchmarks.common.command_line import add_arguments, parser_of, planned, run_command
from benchmarks.common.jobs import FULL, PAPER, TUNED_BUDGET, Plan, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check_quickly
from benchmarks.text.data import TEXT_SETS, TextSplit, load_texts
from benchmarks.text.runs import DATASET, TextJob, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR
from lightning_autoassist.filtering.policies.registry import POLICIES

TABLE = "text"
METHODS = (FULL, "uniform", "proportional", PAPER)
GRID = (0.001, 0.003, 0.01)

TEMPLATE = TextJob()


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
    parser = parser_of("text", __doc__, "half a minute, on texts made up")
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

    def make_runner() -> Runner:
        TEXT_SETS[DATASET](args.data_dir)
        return runner_of(plan_of(args), RESULTS, args.data_dir, args.workers)

    run_command(args, quick, make_runner)


if __name__ == "__main__":
    main()
