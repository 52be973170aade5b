"""What is run of the demo: the choice of learning rates, then the seeds that are measured."""

from __future__ import annotations

import functools
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common.jobs import FULL, Job, Row
from benchmarks.common.training import filter_warnings
from lightning_autoassist.demo.data import Split, long_tailed_digits
from lightning_autoassist.demo.run import DemoRun, train
from lightning_autoassist.demo.settings import DEMO_DATA, UNIFORM

TABLE = "demo"
SETTINGS = DEMO_DATA["digits"]
METRIC = SETTINGS.metric


TEMPLATE = Job(dataset="digits", epochs=SETTINGS.num_epochs, learning_rate=0.1)


@dataclass(frozen=True)
class DemoPlan:
    """What to run; a plan for :class:`~benchmarks.common.runs.Runner`.

    Args:
        methods: ``"full"`` and names of policies.
        grid: Peak learning rates to choose from, rising by the same factor. Where the best is the lowest or the
            highest, the grid goes on by one rate there, for that method alone.
        tune_seeds: Of the runs that choose.
        seeds: Of the final runs.
        template: A job with everything that is the same in all.
    """

    methods: tuple[str, ...] = (FULL, UNIFORM, *SETTINGS.policies)
    grid: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    tune_seeds: tuple[int, ...] = (1000, 1001, 1002, 1003)
    seeds: tuple[int, ...] = tuple(range(10))
    template: Job = TEMPLATE
    metric = METRIC
    choices = ("budget", "learning_rate")  # of a job, for the lines that tell of it

    def jobs(self, rows: dict[Job, Row]) -> Iterator[Job | None]:
        """All jobs in their order; None in place of those whose learning rate is not known yet."""
        for method in self.methods:
            yield from self._tuning(rows, method)
        rates = {method: self.best_rate(rows, method) for method in self.methods}
        for seed in self.seeds:
            for method, rate in rates.items():
                yield None if rate is None else self._job("final", method, rate, seed)

    def best_rate(self, rows: dict[Job, Row], method: str) -> float | None:
        """The rate of a method with the best mean on the held-out digits; None before all its rows are there."""
        jobs = list(self._tuning(rows, method))
        return None if any(job is None or job not in rows for job in jobs) else self._best(rows, jobs)

    def _tuning(self, rows: dict[Job, Row], method: str) -> Iterator[Job | None]:
        jobs = [self._job("tune", method, rate, seed) for rate in self.grid for seed in self.tune_seeds]
        yield from jobs
        if len(self.grid) < 3:
            return
        if any(job not in rows for job in jobs):
            yield None
            return
        best, step = self._best(rows, jobs), self.grid[1] / self.grid[0]
        beyond = {self.grid[0]: self.grid[0] / step, self.grid[-1]: self.grid[-1] * step}.get(best)
        if beyond is not None:
            yield from (self._job("tune", method, beyond, seed) for seed in self.tune_seeds)

    def _best(self, rows: dict[Job, Row], jobs: list[Any]) -> float:
        def mean(rate: float) -> float:
            return statistics.fmean(rows[job][METRIC] for job in jobs if job.learning_rate == rate)

        return max(sorted({job.learning_rate for job in jobs}), key=mean)

    def _job(self, phase: str, method: str, rate: float, seed: int) -> Job:
        budget = 1.0 if method == FULL else SETTINGS.budget
        return replace(self.template, phase=phase, method=method, budget=budget, learning_rate=rate, seed=seed)


PLAN = DemoPlan()


@functools.cache
def _digits(choosing: bool) -> Split:
    return long_tailed_digits(Path(), choosing=choosing)


def run_job(job: Job) -> Row:
    """Train once, as the demo does.

    Args:
        job: What to run.

    Returns:
        The row: the job's own fields, and what came out.
    """
    split = _digits(job.phase == "tune")
    run = DemoRun(job.method, job.budget, job.learning_rate, job.epochs, job.seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        started = time.process_time()
        result = train(SETTINGS, split, run)
        cpu_seconds = time.process_time() - started
    return {
        **asdict(job),
        METRIC: round(result.value, 6),
        "updates": result.optimizer_steps,
        "seconds": round(result.seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),  # validation included
        "keep_rate": None if result.keep_rate is None else round(result.keep_rate, 4),
        "curve": [(step, round(value, 5)) for step, value in result.curve],
        "train_instances": len(split.train),
        "held_out_instances": len(split.held_out),
        "warnings": filter_warnings(caught),
    }
