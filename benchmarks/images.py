r"""Accuracy of a small image classifier against the Boss updates it got: policies side by side.

Every method's peak learning rate is chosen from one grid, on a part of the training images (rows of phase "tune", one
seed); it then trains with several seeds and is measured on the test images (rows of phase "final"). At other budgets
than 0.6 the chosen rate is checked against its half and its double. Rows are appended one at a time to
benchmarks/results/images.jsonl; a run that has its row is not run again, so the same command continues after an
interruption, and a second process beside the first takes other runs.

    python benchmarks/images.py --channels-last     # all required rows; about 5 hours on one core
    python benchmarks/images.py --quick             # half a minute, digits, checks itself, leaves no rows
    python benchmarks/images.py --policy full --policy uniform --policy "proportional:weights=mean" --budget 0.25
    python benchmarks/images.py --dataset cifar10 --data-dir DIR --model resnet18 --augment \
        --device cuda --precision bf16-mixed --channels-last --epochs 30 --workers 8
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import hashlib
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from image_data import IMAGE_SETS, Images, load_images
from image_runs import FULL, Job, Method, run_job
from rows import RESULTS, append_row, rows_of

from lightning_autoassist.demo_data import DEFAULT_DATA_DIR
from lightning_autoassist.policies import POLICIES

TABLE = "images"
METHODS = (FULL, "uniform", "proportional", "infobatch", "autoassist")
TUNED_BUDGET = 0.6
GRID = (0.2, 0.4, 0.8, 1.6)
TUNE_SEED = 1000
# In the order of their worth, should time run out. At 0.4 label noise is not asked for.
STAGES = (
    ("fashion-mnist", 0.6),
    ("long-tail", 0.6),
    ("fashion-mnist", 0.4),
    ("label-noise", 0.6),
    ("long-tail", 0.4),
)


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        stages: Data sets and budgets, in their order.
        methods: See :class:`~image_runs.Method`.
        seeds: Of the final runs.
        grid: Peak learning rates to choose from.
        rates_from: Data set whose chosen rates are used; None: each data set's own.
        template: A job with everything that is the same in all.
    """

    stages: tuple[tuple[str, float], ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    grid: tuple[float, ...]
    rates_from: str | None
    template: Job

    def jobs(self, rows: dict[Job, dict[str, Any]]) -> Iterator[Job | None]:
        """All jobs in their order; None in place of those whose learning rate is not known yet."""
        for dataset, budget in self.stages:
            tuned_on = self.rates_from or dataset
            for method in self.methods:
                yield from self._tuning(rows, tuned_on, method, budget)
            for seed in self.seeds:
                for method in self.methods:
                    rate = self._best_rate(rows, tuned_on, method, budget)
                    yield None if rate is None else self._job("final", dataset, method, budget, rate, seed)

    def _job(self, phase: str, dataset: str, method: str, budget: float, rate: float, seed: int) -> Job:
        budget = 1.0 if Method(method).is_full else budget
        return replace(
            self.template,
            phase=phase,
            dataset=dataset,
            method=method,
            budget=budget,
            learning_rate=rate,
            seed=seed,
        )

    def _tuning(
        self, rows: dict[Job, dict[str, Any]], dataset: str, method: str, budget: float
    ) -> Iterator[Job | None]:
        """The runs that choose a rate: over the grid at 0.6 and for the full run, else around what was chosen there."""
        if budget == TUNED_BUDGET or Method(method).is_full:
            rates: tuple[float, ...] = self.grid
        else:
            yield from self._tuning(rows, dataset, method, TUNED_BUDGET)
            best = self._best_rate(rows, dataset, method, TUNED_BUDGET)
            if best is None:
                yield None
                return
            rates = (best, best / 2, best * 2)
        for rate in rates:
            yield self._job("tune", dataset, method, budget, rate, TUNE_SEED)

    def _best_rate(self, rows: dict[Job, dict[str, Any]], dataset: str, method: str, budget: float) -> float | None:
        jobs = list(self._tuning(rows, dataset, method, budget))
        if any(job is None or job not in rows for job in jobs):
            return None
        at_budget = [job for job in jobs if job is not None and (job.budget == budget or Method(method).is_full)]
        return max(at_budget, key=lambda job: rows[job]["accuracy"]).learning_rate


def finished(folder: Path) -> dict[Job, dict[str, Any]]:
    """The rows there are, by their jobs."""
    names = [field.name for field in fields(Job)]
    return {Job(**{name: row[name] for name in names}): row for row in rows_of(TABLE, folder)}


@contextmanager
def claimed(job: Job, folder: Path) -> Iterator[bool]:
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
        plan: What to run.
        folder: Of the rows.
        data_dir: Folder for downloads.
        run_options: Of :func:`~image_runs.run_job`.
    """

    def __init__(self, plan: Plan, folder: Path, data_dir: Path, **run_options: Any) -> None:
        self.plan = plan
        self.folder = folder
        self.run_options = run_options
        self.failed: set[Job] = set()
        self.images = functools.lru_cache(maxsize=2)(functools.partial(_images_of, data_dir))

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
        rows = finished(self.folder)
        jobs = list(self.plan.jobs(rows))
        left = [job for job in jobs if job is not None and job not in rows and job not in self.failed]
        for job in left:
            with claimed(job, self.folder) as is_mine:
                # Another process may have finished it since the rows were read.
                if is_mine and job not in finished(self.folder):
                    self._run(job, len(set(left)))
                    return "ran"
        others_run = any(job not in finished(self.folder) for job in left)
        if others_run or (None in jobs and not self.failed):
            return "wait"
        return "done"

    def _run(self, job: Job, num_left: int) -> None:
        started = time.strftime("%H:%M:%S")
        try:
            train, held_out = self.images(job.dataset, job.phase == "tune", job.instances, job.image_size)
            row = run_job(job, train, held_out, **self.run_options)
        except Exception:  # hours of other runs need not end with it
            traceback.print_exc()
            self.failed.add(job)
            return
        append_row(TABLE, row, self.folder)
        what = f"{job.phase:5s} {job.dataset:13s} {job.method:18s} {job.budget:.2f} lr {job.learning_rate:<5g}"
        came_out = f"{row['accuracy']:.2%} {row['updates']:6,d} updates {row['seconds']:7.1f} s"
        print(
            f"{started} {what} seed {job.seed:<4d} {came_out}; {num_left - 1} known left", *row["warnings"], flush=True
        )


def _images_of(
    data_dir: Path, dataset: str, choosing: bool, instances: int | None, image_size: int | None
) -> tuple[Images, Images]:
    return load_images(dataset, data_dir, choosing=choosing, num_instances=instances, size=image_size)


def quick() -> None:
    """Every policy of the registry on digits, in a temporary folder; checks the rows, and that none is run twice.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    template = replace(TEMPLATE, batch_size=64, epochs=5)
    plan = Plan((("digits", TUNED_BUDGET),), (FULL, *POLICIES), (0,), (0.1, 0.2), None, template)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_run = Runner(plan, folder, DEFAULT_DATA_DIR).run()
        again = Runner(plan, folder, DEFAULT_DATA_DIR).run()
        rows = list(finished(folder).values())
    _check(num_run == len(rows) == 3 * len(plan.methods), f"{num_run} runs gave {len(rows)} rows")
    _check(again == 0, f"{again} finished runs were run again")
    full = next(row for row in rows if row["method"] == FULL and row["phase"] == "final")
    _check(full["accuracy"] > 0.6, f"the full run reached {full['accuracy']:.1%}")
    for row in rows:
        _check(not row["warnings"], f"{row['method']} warned: {row['warnings']}")
        if row["phase"] == "final" and row["method"] != FULL:
            ratio = row["updates"] / full["updates"]
            _check(0.59 < ratio < 0.65, f"{row['method']} took {ratio:.2f} of the full run's updates")
            # Each epoch's iterator may have fetched batches that nothing was trained on.
            loaded = row["instances_loaded"] / (row["updates"] * template.batch_size)
            _check(0.99 < loaded < 1.1, f"{row['method']} loaded {loaded:.2f} instances for each it was trained on")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise RuntimeError(message)


TEMPLATE = Job(
    phase="final",
    dataset="fashion-mnist",
    instances=None,
    image_size=None,
    model="small",
    batch_size=128,
    epochs=24,
    augment=False,
    device="cpu",
    precision="32-true",
    method=FULL,
    budget=1.0,
    learning_rate=0.1,
    seed=0,
)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="half a minute, on digits; leaves no rows")
    add("--dataset", action="append", choices=IMAGE_SETS, help="again for more; default: the required ones")
    add("--budget", action="append", type=float, help="again for more; default: 0.6 and 0.4")
    add("--policy", action="append", help=f"NAME or NAME:KEY=VALUE,...; again for more; default: {' '.join(METHODS)}")
    add("--seeds", type=int, default=5, help="final runs of each method")
    add("--grid", type=float, nargs="+", default=GRID, help="peak learning rates to choose from")
    add("--rates-from", choices=IMAGE_SETS, help="use the rates chosen on this data set")
    add("--instances", type=int, help="training images, 0 for all; default: the data set's own number")
    add("--image-size", type=int, help="scale images to this height and width")
    add("--model", choices=("small", "resnet18"), default=TEMPLATE.model)
    add("--batch-size", type=int, default=TEMPLATE.batch_size)
    add("--epochs", type=int, default=TEMPLATE.epochs)
    add("--augment", action="store_true", help="flip and shift training images")
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    add("--device", choices=("cpu", "cuda"), default=TEMPLATE.device)
    add("--precision", default=TEMPLATE.precision, help="of the Trainer, as in bf16-mixed")
    add("--channels-last", action="store_true", help="lay images out as a GPU's convolutions want them")
    add("--workers", type=int, default=0, help="processes that load images")
    add("--threads", type=int, default=1, help="of torch on the CPU")
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> Plan:
    """What the command line asks for."""
    stages = STAGES
    if args.dataset or args.budget:
        datasets = args.dataset or list(dict.fromkeys(name for name, _ in STAGES))
        budgets = args.budget or [0.6, 0.4]
        wanted = [(dataset, budget) for budget in budgets for dataset in datasets]
        known = [stage for stage in STAGES if stage in wanted]
        # What is not among the required is run only where it was named.
        others = [stage for stage in wanted if stage not in STAGES and args.budget and args.dataset]
        stages = tuple(known + others) or tuple(wanted)
    template = replace(
        TEMPLATE,
        instances=args.instances,
        image_size=args.image_size,
        model=args.model,
        batch_size=args.batch_size,
        epochs=args.epochs,
        augment=args.augment,
        device=args.device,
        precision=args.precision,
    )
    methods = tuple(args.policy or METHODS)
    return Plan(stages, methods, tuple(range(args.seeds)), tuple(args.grid), args.rates_from, template)


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()
    warnings.filterwarnings("ignore")
    for flavour in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(flavour).setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    if args.quick:
        quick()
        return
    options = {"channels_last": args.channels_last, "num_workers": args.workers}
    runner = Runner(plan_of(args), RESULTS, args.data_dir, **options)
    runner.run()
    sys.exit(1 if runner.failed else 0)


if __name__ == "__main__":
    main()
