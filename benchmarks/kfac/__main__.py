"""K-FAC against SGD and AdamW: updates and seconds until what tuned SGD or AdamW reaches.

Every method's learning rate, and K-FAC's damping, come from one grid a case, by what one seed reaches on images that
are held out of the training images (rows of phase "tune"); then each runs with other seeds, measured on test images.
SGD has a momentum of 0.9, also under K-FAC; all rates fall along a cosine. Rows are appended one at a time to
benchmarks/results/kfac.jsonl; a run that has its row is not run again, so the same command continues after an
interruption, and a second process beside the first takes other runs.

    python -m benchmarks.kfac                 # all cases; about 40 minutes on one core
    python -m benchmarks.kfac --case mlp
    python -m benchmarks.kfac --quick         # seconds, on 8x8 digits; checks itself, leaves no rows
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.command_line import be_quiet, parser_of
from benchmarks.common.jobs import TUNE_SEED, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check
from benchmarks.kfac.runs import CASES, CLIPPED, EIGHTH, Case, KFACJob, run_job, score_of
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

TABLE = "kfac"
MEASURED = tuple(name for name in CASES if name != "digits")


@dataclass(frozen=True)
class KFACPlan:
    """What to run.

    Args:
        cases: Names, in their order.
        seeds: Of the final runs.
    """

    cases: tuple[str, ...]
    seeds: tuple[int, ...]

    template = KFACJob(phase="final", dataset="mlp", epochs=1, method="sgd", learning_rate=0.1)
    metric = "score"
    choices = ("learning_rate", "damping")

    def jobs(self, rows: dict[KFACJob, Row]) -> Iterator[KFACJob | None]:
        """All jobs in their order; None in place of those whose settings are not chosen yet."""
        for name in self.cases:
            case = CASES[name]
            for method in case.rates:
                yield from self._tuning(name, case, method)
            for seed in self.seeds:
                for method in case.rates:
                    yield self._final(rows, name, case, method, seed)

    def _tuning(self, name: str, case: Case, method: str) -> list[KFACJob]:
        by_method = {**dict.fromkeys(("kfac", EIGHTH, CLIPPED), case.dampings), "kaisa": case.absolute}
        dampings = by_method.get(method, (0.0,))
        return [
            KFACJob(
                phase="tune",
                dataset=name,
                epochs=case.epochs,
                method=method,
                learning_rate=rate,
                damping=damping,
                seed=TUNE_SEED,
            )
            for rate in case.rates[method]
            for damping in dampings
        ]

    def _final(self, rows: dict[KFACJob, Row], name: str, case: Case, method: str, seed: int) -> KFACJob | None:
        jobs = self._tuning(name, case, method)
        if any(job not in rows for job in jobs):
            return None
        best = max(jobs, key=lambda job: score_of(rows[job]))
        return KFACJob(
            phase="final",
            dataset=name,
            epochs=case.epochs,
            method=method,
            learning_rate=best.learning_rate,
            damping=best.damping,
            seed=seed,
        )


def runner_of(plan: KFACPlan, folder: Path, data_dir: Path) -> Runner:
    """What runs a plan, and writes its rows to a folder."""
    return Runner(plan, TABLE, folder, lambda job: run_job(job, CASES[job.dataset], data_dir))


def quick() -> None:
    """Every method on 8x8 digits, in a temporary folder; checks the rows, and that none is run twice.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    plan = KFACPlan(("digits",), (0,))
    with tempfile.TemporaryDirectory() as name:
        num_run = runner_of(plan, Path(name), Path(name)).run()
        again = runner_of(plan, Path(name), Path(name))
        num_again = again.run()
        rows = list(again.rows().values())
    check(num_run == len(rows) == 8, f"{num_run} runs gave {len(rows)} rows")
    check(num_again == 0, f"{num_again} finished runs were run again")
    for row in rows:
        check(not row["warnings"], f"{row['method']} warned: {row['warnings']}")
        if row["phase"] == "final" and row["method"] in ("sgd", "kfac"):
            check(row["score"] > 0.5, f"{row['method']} reached an accuracy of {row['score']:.3f}")


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    parser = parser_of("kfac", __doc__, "seconds, on 8x8 digits")
    add = parser.add_argument
    add("--case", action="append", choices=MEASURED, help="again for more; default: all")
    add("--seeds", type=int, default=3, help="final runs of each method")
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    add("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    be_quiet(args.threads)
    if args.quick:
        quick()
        return
    runner = runner_of(KFACPlan(tuple(args.case or MEASURED), tuple(range(args.seeds))), RESULTS, args.data_dir)
    runner.run()
    sys.exit(1 if runner.failed else 0)


if __name__ == "__main__":
    main()
