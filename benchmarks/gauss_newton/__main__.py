"""Gauss-Newton: one step's CPU time against width and instances, and training error against CPU seconds.

Steps are those of the paper's network at its start, on Fashion-MNIST's principal components, in float32, to 1e-2.
Trainings go through an ordinary LightningModule of one hidden layer: AdamW's learning rate and Gauss-Newton's damping
and batch are chosen with a seed of their own (rows of phase "tune"), AdamW by the training error at the end, and
Gauss-Newton by the CPU seconds to that error. Rows are appended one at a time to benchmarks/results/gauss_newton.jsonl;
a run that has its row is not run again. The MLP Assistant's two trainers are compared, too: see ``assistant.py``.

    python -m benchmarks.gauss_newton                # all rows; about half an hour on one core
    python -m benchmarks.gauss_newton --only assistant    # a few minutes
    python -m benchmarks.gauss_newton --quick        # seconds, data made here, checks itself, leaves no rows
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.command_line import be_quiet, parser_of
from benchmarks.common.jobs import TUNE_SEED, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check, finished
from benchmarks.gauss_newton.assistant import NEWTON, AssistantPlan, run_assistant
from benchmarks.gauss_newton.data import TRAINED
from benchmarks.gauss_newton.runs import ADAM_BATCH, NUM_HIDDEN, NewtonJob, run_job, seconds_to
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

TABLE = "gauss_newton"
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
DAMPINGS = (("lm", 1e-2), ("constant", 1e-2), ("constant", 1e-1))
BATCHES = {"digits": (175, 350, 700), "fashion": (500, 1_000), "covtype": (500, 1_000), "clouds": (100,)}


def step_jobs() -> Iterator[NewtonJob]:
    """With 8 features, growth of n = m / 16, and in m at n = 4,096; with 16, in m at n = 256, and in n at m = 4,096."""
    for n in (4_096, 2_048, 1_024, 512):
        for method in ("gram", "sketch"):
            yield NewtonJob("step", "points", method, 0.0, n, 16 * n, 8, 0)
    for m in (16_384, 32_768, 131_072):
        for method in ("gram", "sketch"):
            yield NewtonJob("step", "points", method, 0.0, 4_096, m, 8, 0)
    sizes = [("gram", "cg", "sketch", "dense")] * 3 + [("gram", "cg", "sketch")]
    for m, methods in zip((1_024, 4_096, 16_384, 65_536), sizes, strict=True):
        for method in methods:
            yield NewtonJob("step", "points", method, 0.0, 256, m, 16, 0)
    for n in (128, 512, 1_024, 2_048):
        for method in ("gram", "cg", "sketch", "dense")[: 4 if n <= 512 else 3]:
            yield NewtonJob("step", "points", method, 0.0, n, 4_096, 16, 0)


def loss_jobs() -> Iterator[NewtonJob]:
    """The theorem's halving, where m is 4 and 16 times n."""
    for m in (1_024, 4_096):
        for method in ("gram", "sketch"):
            for seed in range(3):
                yield NewtonJob("loss", "points", method, 0.0, 256, m, 64, seed)


@dataclass(frozen=True)
class NewtonPlan:
    """What to run.

    Args:
        datasets: Of the trainings.
        seeds: Of the final runs.
        with_steps: Whether steps are timed, too.
    """

    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    with_steps: bool = True

    template = NewtonJob("final", "digits", "adamw", 1e-2, 70, NUM_HIDDEN, 0, 0)
    metric = "seconds"
    choices = ("setting", "n", "m")

    def jobs(self, rows: dict[NewtonJob, Row]) -> Iterator[NewtonJob | None]:
        """All jobs in their order; None in place of those whose settings are not known yet."""
        for dataset in self.datasets:
            yield from self._adams(dataset)
            yield from self._newtons(dataset)
            for seed in self.seeds:
                yield self._final(self.best_adam(rows, dataset), seed)
                yield self._final(self.best_newton(rows, dataset), seed)
        if self.with_steps:
            yield from step_jobs()
            yield from loss_jobs()

    def best_adam(self, rows: dict[NewtonJob, Row], dataset: str) -> NewtonJob | None:
        """The tuning run of the least training error."""
        jobs = self._adams(dataset)
        known = all(job in rows for job in jobs)
        return min(jobs, key=lambda job: rows[job]["train_error"]) if known else None

    def best_newton(self, rows: dict[NewtonJob, Row], dataset: str) -> NewtonJob | None:
        """The tuning run that came first to AdamW's error, or else nearest."""
        jobs, adam = self._newtons(dataset), self.best_adam(rows, dataset)
        if adam is None or any(job not in rows for job in jobs):
            return None
        target = rows[adam]["train_error"]

        def rank(job: NewtonJob) -> tuple[float, float]:
            seconds = seconds_to(rows[job], target)
            return (math.inf if seconds is None else seconds, rows[job]["train_error"])

        return min(jobs, key=rank)

    @staticmethod
    def _adams(dataset: str) -> list[NewtonJob]:
        batch = ADAM_BATCH[dataset]
        return [NewtonJob("tune", dataset, "adamw", rate, batch, NUM_HIDDEN, 0, TUNE_SEED) for rate in RATES]

    @staticmethod
    def _newtons(dataset: str) -> list[NewtonJob]:
        return [
            NewtonJob("tune", dataset, method, damping, batch, NUM_HIDDEN, 0, TUNE_SEED)
            for method, damping in DAMPINGS
            for batch in BATCHES[dataset]
        ]

    @staticmethod
    def _final(job: NewtonJob | None, seed: int) -> NewtonJob | None:
        if job is None:
            return None
        return NewtonJob("final", job.dataset, job.method, job.setting, job.n, job.m, job.d, seed)


def quick() -> None:
    """A training on data made here, in a temporary folder; checks the rows, and that none is run twice.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    plan = NewtonPlan(("clouds",), (0,), with_steps=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_run = Runner(plan, TABLE, folder, lambda job: run_job(job, folder)).run()
        again = Runner(plan, TABLE, folder, lambda job: run_job(job, folder)).run()
        rows = list(finished(TABLE, folder, NewtonJob).values())
    check(num_run == len(rows) == 9, f"{num_run} runs gave {len(rows)} rows")
    check(again == 0, f"{again} finished runs were run again")
    for row in rows:
        check(not row["warnings"], f"{row['method']} warned: {row['warnings']}")
    newton = next(row for row in rows if row["phase"] == "final" and row["method"] != "adamw")
    check(newton["train_error"] < 0.9 * newton["curve"][0][2], "Gauss-Newton did not lower the training error")
    quick_assistant()


def quick_assistant() -> None:
    """The Assistant's trainers, as above.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    plan = AssistantPlan(("clouds",), (0,))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_run = Runner(plan, TABLE, folder, lambda job: run_assistant(job, folder)).run()
        rows = list(finished(TABLE, folder, NewtonJob).values())
    check(num_run == len(rows) == 19, f"{num_run} runs gave {len(rows)} rows")
    newton = next(row for row in rows if row["phase"] == "assistant_final" and row["method"].startswith(NEWTON))
    check(newton["auroc"] > 0.6, f"the Assistant ranks by {newton['auroc']:.2f}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("gauss_newton", __doc__, "seconds, on data made here")
    add = parser.add_argument
    add("--dataset", action="append", choices=TRAINED, help="again for more; default: digits fashion covtype")
    add("--seeds", type=int, default=3, help="final runs of each method")
    add("--only", choices=("trainings", "steps", "assistant"), help="a part of the rows, as in a second process")
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    add("--threads", type=int, default=1, help="of torch")
    return parser.parse_args()


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()
    be_quiet(args.threads)
    if args.quick:
        quick()
        return
    folder, datasets, seeds = args.data_dir.expanduser(), tuple(args.dataset or ()), tuple(range(args.seeds))
    runners = []
    if args.only != "assistant":
        trained = () if args.only == "steps" else datasets or ("digits", "fashion", "covtype")
        plan = NewtonPlan(trained, seeds, args.only != "trainings")
        runners.append(Runner(plan, TABLE, RESULTS, lambda job: run_job(job, folder)))
    if args.only in (None, "assistant"):
        ranked = tuple(each for each in datasets or ("digits", "fashion") if each != "covtype")
        runners.append(Runner(AssistantPlan(ranked, seeds), TABLE, RESULTS, lambda job: run_assistant(job, folder)))
    for runner in runners:
        runner.run()
    sys.exit(1 if any(runner.failed for runner in runners) else 0)


if __name__ == "__main__":
    main()
