"""A linear SVM's distance to its minimum against gradient evaluations: AutoAssist, SGD and importance sampling.

The model is an ordinary LightningModule of hinge loss and L2, trained by SGD in batches of 32 with steps of
1 / (lambda t). Each method's floor, the least chance of a candidate (the paper's gamma), is chosen from one grid on the
shirts, with a seed of its own (rows of phase "tune"); AutoAssist runs with the paper's gamma of 0.3 too. Rows are
appended one at a time to benchmarks/results/linear_svm.jsonl; a run that has its row is not run again, so the same
command continues after an interruption, and a second process beside the first takes other runs.

    python -m benchmarks.linear_svm                # all required rows; about an hour and a half on one core
    python -m benchmarks.linear_svm --quick        # half a minute, data made here, checks itself, leaves no rows
    python -m benchmarks.linear_svm --dataset shirts --method sgd --method current-gradient
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.command_line import parser_of, run_command
from benchmarks.common.jobs import TUNE_SEED, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check, finished
from benchmarks.linear_svm.data import SVM_SETS, TwoClasses
from benchmarks.linear_svm.methods import METHODS, SGD
from benchmarks.linear_svm.optimum import TOLERANCE, Objective, Optimum, optimum
from benchmarks.linear_svm.report import evaluations_to, slope
from benchmarks.linear_svm.runs import SvmJob, is_valid, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

TABLE = "linear_svm"
REQUIRED = (SGD, "importance-loss", "importance-gradient", "autoassist")
FLOORS = (0.1, 0.3, 0.5)
PAPER_GAMMA = 0.3
TUNED_ON = "shirts"
# Lambda, and enough epochs to come within 1e-3 of the minimum, and for importance sampling to remember losses by then.
SETTINGS = {"shirts": (1e-4, 8.0), "covtype": (1e-5, 4.0), "clouds": (1e-3, 8.0)}


@dataclass(frozen=True)
class SVMPlan:
    """What to run.

    Args:
        datasets: In their order.
        methods: In ``METHODS``.
        seeds: Of the final runs.
        floors: To choose from, by the suboptimality at the end of a run.
        tuned_on: Data set on which floors are chosen.
    """

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    floors: tuple[float, ...]
    tuned_on: str

    template = SvmJob("final", TUNED_ON, *SETTINGS[TUNED_ON], SGD, 1.0, 0)
    metric = "suboptimality"
    choices = ("floor",)

    def jobs(self, rows: dict[SvmJob, Row]) -> Iterator[SvmJob | None]:
        """All jobs in their order; None in place of those whose floor is not known yet."""
        for method in self.methods:
            yield from self._tuning(method)
        for dataset in self.datasets:
            for seed in self.seeds:
                for method in self.methods:
                    floor = self._best_floor(rows, method)
                    yield None if floor is None else self._job("final", dataset, method, floor, seed)
                    if method == "autoassist" and floor is not None:
                        yield self._job("final", dataset, method, PAPER_GAMMA, seed)

    def _job(self, phase: str, dataset: str, method: str, floor: float, seed: int) -> SvmJob:
        return SvmJob(phase, dataset, *SETTINGS[dataset], method, floor, seed)

    def _tuning(self, method: str) -> list[SvmJob]:
        floors = () if METHODS[method] is None else self.floors
        return [self._job("tune", self.tuned_on, method, floor, TUNE_SEED) for floor in floors]

    def _best_floor(self, rows: dict[SvmJob, Row], method: str) -> float | None:
        jobs = self._tuning(method)
        if not jobs:
            return 1.0
        if any(job not in rows for job in jobs):
            return None
        return min(jobs, key=lambda job: rows[job][self.metric]).floor


def runner_of(plan: SVMPlan, folder: Path, data_dir: Path) -> Runner:
    """What runs a plan.

    Args:
        plan: What to run.
        folder: Of the rows.
        data_dir: Folder for downloads, and for the minima.
    """

    @functools.lru_cache(maxsize=1)
    def problem(dataset: str, l2: float) -> tuple[TwoClasses, Objective, Optimum]:
        data = SVM_SETS[dataset](data_dir)
        objective = Objective(data, l2)
        return data, objective, optimum(objective, data_dir)

    return Runner(plan, TABLE, folder, lambda job: run_job(job, *problem(job.dataset, job.l2)))


def quick() -> None:
    """Every method on data made here, in a temporary folder; checks the rows, and that none is run twice.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    plan = SVMPlan(("clouds",), tuple(METHODS), (0,), (0.3,), "clouds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_run = runner_of(plan, folder, folder).run()
        again = runner_of(plan, folder, folder).run()
        rows = list(finished(TABLE, folder, SvmJob).values())
    check(num_run == len(rows), f"{num_run} runs gave {len(rows)} rows")
    check(again == 0, f"{again} finished runs were run again")
    for row in rows:
        check(not row["warnings"], f"{row['method']} warned: {row['warnings']}")
        check(is_valid(row["curve"]), f"{row['method']} came below the minimum")
        check(row["minimum_gap"] < TOLERANCE, f"the minimum is known to {row['minimum_gap']:.1e} only")
        check(evaluations_to(row, 1e-2) is not None, f"{row['method']} did not come within 0.01 of the minimum")
        check(slope(row) < -0.5, f"{row['method']}: suboptimality falls with the power {slope(row):.2f} of updates")
        check(row["method"] == SGD or row["keep_rate"] < 0.9, f"{row['method']} kept {row['keep_rate']}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("linear_svm", __doc__, "half a minute, on data made here")
    add = parser.add_argument
    add("--dataset", action="append", choices=SVM_SETS, help="again for more; default: shirts covtype")
    add("--method", action="append", choices=METHODS, help=f"again for more; default: {' '.join(REQUIRED)}")
    add("--seeds", type=int, default=5, help="final runs of each method")
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data and minima are, or are downloaded to")
    add("--threads", type=int, default=1, help="of torch")
    return parser.parse_args()


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()
    datasets = tuple(args.dataset or ("shirts", "covtype"))
    methods = tuple(args.method or REQUIRED)
    plan = SVMPlan(datasets, methods, tuple(range(args.seeds)), FLOORS, TUNED_ON)

    def make_runner() -> Runner:
        for dataset in dict.fromkeys((TUNED_ON, *datasets)):
            SVM_SETS[dataset](args.data_dir)
        return runner_of(plan, RESULTS, args.data_dir)

    run_command(args, quick, make_runner)


if __name__ == "__main__":
    main()
