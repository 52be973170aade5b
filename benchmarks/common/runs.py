"""Running what a plan asks for: runs that continue after an interruption, beside other processes that do the same."""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.common.jobs import FULL, Plan, Row
from benchmarks.common.rows import append_row, rows_of


def finished(table: str, folder: Path, kind: type[Any]) -> dict[Any, Row]:
    """The rows of a table that there are, by their jobs.

    Args:
        table: Name of the rows' file, without its ending.
        folder: Of the file.
        kind: The jobs' class: frozen dataclasses, as :class:`Job`.
    """
    return {job_of(row, kind): row for row in rows_of(table, folder)}


def job_of(row: Row, kind: type[Any]) -> Any:
    """The job that a row is of.

    Args:
        row: With all fields of a job.
        kind: The job's class.
    """
    return kind(**{field.name: row[field.name] for field in fields(kind)})


@contextmanager
def claimed(job: Any, folder: Path) -> Iterator[bool]:
    """Whether this process has the job; the claim ends with the process, however that ends."""
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(json.dumps(asdict(job)).encode()).hexdigest()[:16]
    with (locks / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


class Runner:
    """Runs a plan's jobs one after the other, beside other processes that do the same.

    Args:
        plan: What to run: a :class:`Plan`, or what has its ``jobs``, ``template``, ``metric`` and ``choices``.
        table: Name of the rows' file, without its ending.
        folder: Of the file.
        run_job: Runs a job; returns its row, which begins with the job's own fields.
    """

    def __init__(self, plan: Any, table: str, folder: Path, run_job: Callable[[Any], Row]) -> None:
        self.plan = plan
        self.table = table
        self.folder = folder
        self.run_job = run_job
        self.failed: set[Any] = set()

    def rows(self) -> dict[Any, Row]:
        """The rows there are, by their jobs."""
        return finished(self.table, self.folder, type(self.plan.template))

    def run(self) -> int:
        """Run until nothing is left; returns how many this process ran."""
        num_run = 0
        while True:
            step = self._next()
            if step == "done":
                return num_run
            if step == "wait":
                time.sleep(5)
            else:
                num_run += 1

    def _next(self) -> str:
        """Run the first job that is left; "wait" where other processes have what is left."""
        rows = self.rows()
        jobs = list(self.plan.jobs(rows))
        left = [job for job in jobs if job is not None and job not in rows and job not in self.failed]
        for job in left:
            with claimed(job, self.folder) as is_mine:
                # Another process may have finished it since the rows were read.
                if is_mine and job not in self.rows():
                    self._run(job, len(set(left)))
                    return "ran"
        others_run = any(job not in self.rows() for job in left)
        if others_run or (None in jobs and not self.failed):
            return "wait"
        return "done"

    def _run(self, job: Any, num_left: int) -> None:
        started = time.strftime("%H:%M:%S")
        try:
            row = self.run_job(job)
        except Exception:  # hours of other runs need not end with it
            traceback.print_exc()
            self.failed.add(job)
            return
        append_row(self.table, row, self.folder)
        chosen = " ".join(f"{name} {getattr(job, name):g}" for name in self.plan.choices)
        what = f"{job.phase:5s} {job.dataset:13s} {job.method:19s} {chosen}"
        value = f"{self.plan.metric} {row[self.plan.metric]:.4g}"
        came_out = f"{value} {row['updates']:6,d} updates {row['seconds']:7.1f} s"
        print(
            f"{started} {what} seed {job.seed:<4d} {came_out}; {num_left - 1} known left", *row["warnings"], flush=True
        )


def check_quickly(plan: Plan, make_runner: Callable[[Path], Runner], least: float) -> None:
    """Run a small plan in a temporary folder; checks the rows, and that none is run twice.

    Args:
        plan: Of one seed, at a budget of 0.6.
        make_runner: Gets the folder.
        least: What the full run has to reach.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    with tempfile.TemporaryDirectory() as name:
        num_run = make_runner(Path(name)).run()
        runner = make_runner(Path(name))
        again = runner.run()
        rows = list(runner.rows().values())
    num_jobs = (len(plan.grid) + 1) * len(plan.methods)
    check(num_run == len(rows) == num_jobs, f"{num_run} runs gave {len(rows)} rows")
    check(again == 0, f"{again} finished runs were run again")
    full = next(row for row in rows if row["method"] == FULL and row["phase"] == "final")
    check(full[plan.metric] > least, f"the full run reached a {plan.metric} of {full[plan.metric]:.3f}")
    for row in rows:
        check(not row["warnings"], f"{row['method']} warned: {row['warnings']}")
        if row["phase"] == "final" and row["method"] != FULL:
            ratio = row["updates"] / full["updates"]
            check(0.59 < ratio < 0.65, f"{row['method']} took {ratio:.2f} of the full run's updates")
            # Each epoch's iterator may have fetched batches that nothing was trained on.
            loaded = row["instances_loaded"] / full["instances_loaded"] / ratio
            check(0.9 < loaded < 1.1, f"{row['method']} loaded {loaded:.2f} instances where the full run loads one")


def check(holds: bool, message: str) -> None:
    """Raise with the message where something does not hold, ``python -O`` or not."""
    if not holds:
        raise RuntimeError(message)
