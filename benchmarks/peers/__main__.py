r"""Accuracy beside the peers' own code at equal optimizer steps, CPU seconds and lines changed.

InfoBatch's repository (a clone that you name) and RCAP of the package datacull (``pip install datacull``), each in the
images' benchmark: Fashion-MNIST, 10,000 training images with flips and shifts, the small residual network, 16 epochs.
InfoBatch's own code decides by itself how many steps it makes, so that it comes first; all others get as many or fewer.
Every method's peak learning rate is the best of one grid on held-out images. Rows go to benchmarks/results/peers.jsonl;
the same command continues after an interruption.

    git clone https://github.com/NUS-HPC-AI-Lab/InfoBatch && pip install datacull
    python -m benchmarks.peers --infobatch InfoBatch     # about two hours on one core
    python -m benchmarks.peers --infobatch InfoBatch --quick    # a minute, on digits, checks itself, leaves no rows
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common.command_line import be_quiet, parser_of
from benchmarks.common.jobs import FULL, TUNE_SEED, Job, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check
from benchmarks.images.data import Images, load_images
from benchmarks.peers.infobatch_code import infobatch_code
from benchmarks.peers.runs import INFOBATCH, RCAP, PeerJob, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

TABLE = "peers"
OURS = ("proportional", "prioritized", "infobatch", "uniform")
GRID = (0.05, 0.1, 0.2)
TEMPLATE = PeerJob()


@dataclass(frozen=True)
class PeersPlan:
    """InfoBatch's own code and the full run first, then all others with as many optimizer steps or fewer.

    Args:
        template: A job with everything that is the same in all.
        seeds: Of the final runs.
        grid: Peak learning rates to choose from.
        others: Methods beside those two.
    """

    template: PeerJob
    seeds: tuple[int, ...]
    grid: tuple[float, ...] = GRID
    others: tuple[str, ...] = (*OURS, RCAP)
    metric = "accuracy"
    choices = ("budget", "learning_rate")  # of a job, for the lines that tell of it

    def jobs(self, rows: dict[Job, Row]) -> Iterator[PeerJob | None]:
        """All jobs in their order; None in place of those that wait for others."""
        for method in (FULL, INFOBATCH):
            yield from self._of_method(rows, method, 1.0)
        budget = self.budget(rows)
        if budget is None:
            yield None
            return
        for method in self.others:
            yield from self._of_method(rows, method, budget)

    def budget(self, rows: dict[Job, Row]) -> float | None:
        """Share of the full run's steps that InfoBatch's own code made, rounded down; None before that is known."""
        updates = {
            method: [row["updates"] for job, row in rows.items() if (job.phase, job.method) == ("final", method)]
            for method in (FULL, INFOBATCH)
        }
        if any(len(each) < len(self.seeds) for each in updates.values()):
            return None
        return math.floor(100 * min(updates[INFOBATCH]) / max(updates[FULL])) / 100

    def _of_method(self, rows: dict[Job, Row], method: str, budget: float) -> Iterator[PeerJob | None]:
        of_method = replace(self.template, method=method, budget=budget)
        tuning = [replace(of_method, phase="tune", learning_rate=rate, seed=TUNE_SEED) for rate in self.grid]
        yield from tuning
        if any(job not in rows for job in tuning):
            yield None
            return
        best = max(tuning, key=lambda job: rows[job][self.metric])
        for seed in self.seeds:
            yield replace(best, phase="final", seed=seed)


def runner_of(plan: PeersPlan, folder: Path, args: argparse.Namespace) -> Runner:
    """What runs a plan.

    Args:
        plan: What to run.
        folder: Of the rows.
        args: ``data_dir`` and ``infobatch``.
    """

    @functools.lru_cache(maxsize=2)
    def images(dataset: str, choosing: bool, instances: int | None) -> tuple[Images, Images]:
        return load_images(dataset, args.data_dir, choosing=choosing, num_instances=instances)

    def run(job: PeerJob) -> Row:
        return run_job(job, *images(job.dataset, job.phase == "tune", job.instances), args.infobatch)

    return Runner(plan, TABLE, folder, run)


def quick(args: argparse.Namespace) -> None:
    """Every method once on digits, for all who want to know that their versions work together."""
    template = replace(TEMPLATE, dataset="digits", instances=None, epochs=4, batch_size=64)
    plan = PeersPlan(template, (0,), (0.1,))
    with tempfile.TemporaryDirectory() as name:
        runner = runner_of(plan, Path(name), args)
        runner.run()
        rows = {row["method"]: row for row in runner.rows().values() if row["phase"] == "final"}
    check(not runner.failed, f"{len(runner.failed)} runs failed")
    check(rows[INFOBATCH]["updates"] < rows[FULL]["updates"], "InfoBatch's own code left no instance out")
    for method in plan.others:
        updates, most = rows[method]["updates"], rows[INFOBATCH]["updates"]
        check(0.9 * most <= updates <= 1.03 * most, f"{method} made {updates} steps where InfoBatch made {most}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("peers", __doc__, "on digits")
    add = parser.add_argument
    add("--infobatch", type=Path, default=Path("InfoBatch"), help="folder of a clone of InfoBatch's repository")
    add("--seeds", type=int, default=5, help="final runs of each method")
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    add("--threads", type=int, default=1, help="of torch")
    return parser.parse_args()


def main() -> None:
    """Run what is left of the rows."""
    args = parse()
    be_quiet(args.threads)
    try:
        with infobatch_code(args.infobatch):
            pass
    except FileNotFoundError as error:
        sys.exit(str(error))
    if find_spec("datacull") is None:
        sys.exit("RCAP is had from the package datacull, which is not installed: run `pip install datacull`")
    if args.quick:
        quick(args)
        return
    runner = runner_of(PeersPlan(TEMPLATE, tuple(range(args.seeds))), RESULTS, args)
    runner.run()
    sys.exit(1 if runner.failed else 0)


if __name__ == "__main__":
    main()
