"""What the benchmarks of policies have in common: methods, plans of runs, runs that continue, and what is measured."""

from __future__ import annotations

import argparse
import ast
import fcntl
import hashlib
import json
import logging
import multiprocessing
import re
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from rows import append_row, rows_of
from torch.utils.data import get_worker_info

from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.filtering.policies.registry import POLICIES

FULL = "full"
# The paper's rule and Assistant for translation.
PAPER = "autoassist:assistant=text,gamma=0.5,confidence_gate=True"
CALLBACK_OPTIONS = ("assistant", "score", "weights", "tail", "max_features")
NUM_CURVE_POINTS = 6
MAX_WORKERS = 64
TUNED_BUDGET = 0.6
TUNE_SEED = 1000

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run: what makes it the run it is, and nothing else. A benchmark adds what else it can vary.

    Args:
        phase: ``"tune"``: measured on a part of the training data; ``"final"``: on the test data.
        dataset: A name of the benchmark's.
        epochs: Of the Trainer.
        device: ``"cpu"`` or ``"cuda"``.
        precision: Of the Trainer.
        method: See :class:`Method`.
        budget: Share of the full run's Boss updates.
        learning_rate: Peak of the schedule.
        seed: Of the parameters and the order of the instances.
    """

    phase: str = "final"
    dataset: str
    epochs: int
    device: str = "cpu"
    precision: str = "32-true"
    method: str = FULL
    budget: float = 1.0
    learning_rate: float
    seed: int = 0


class Method:
    """What chooses the instances: ``full`` (plain Lightning) or a policy, with options of it or of the callback.

    Args:
        spec: ``"NAME"`` or ``"NAME:KEY=VALUE,..."``, as in ``"proportional:cap_quantile=0.95,weights=mean"``.

    Raises:
        ValueError: If the name is not in ``POLICIES``.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.name, _, options = spec.partition(":")
        if self.name != FULL and self.name not in POLICIES:
            raise ValueError(
                f"a method is one of {', '.join([FULL, *POLICIES])}, with options after a colon; got {spec!r}"
            )
        self.options = dict(_option(text) for text in options.split(",") if text)

    @property
    def is_full(self) -> bool:
        """Whether it is plain Lightning."""
        return self.name == FULL

    def callback(self) -> AutoAssistCallback | None:
        """The callback of a run, None for the full run."""
        if self.is_full:
            return None
        of_callback = {key: value for key, value in self.options.items() if key in CALLBACK_OPTIONS}
        of_policy = {key: value for key, value in self.options.items() if key not in CALLBACK_OPTIONS}
        policy = POLICIES[self.name](**of_policy)
        return AutoAssistCallback(policy=policy, **of_callback)


def _option(text: str) -> tuple[str, Any]:
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


class Stopwatch(pl.Callback):
    """Seconds of training and of validation, each without the other, and a metric against Boss updates.

    Args:
        metric: Its name among what the module logs.
    """

    def __init__(self, metric: str = "accuracy") -> None:
        self.metric = metric
        self.train_seconds = 0.0
        self.validation_seconds = 0.0
        self.curve: list[tuple[int, float]] = []
        self.curve_seconds: list[float] = []  # of training, at each point of the curve
        self.cpu_seconds = 0.0  # of this process while it trains: what others do on the machine is not in them
        self.curve_cpu_seconds: list[float] = []
        self._since = 0.0
        self._cpu_since = 0.0

    def _lap(self, trainer: Any) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        lap, self._since = now - self._since, now
        return lap

    def _end_training(self, trainer: Any) -> None:
        self.train_seconds += self._lap(trainer)
        self.cpu_seconds += time.process_time() - self._cpu_since

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._lap(trainer)
        self._cpu_since = time.process_time()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._end_training(trainer)
        self.curve_seconds.append(round(self.train_seconds, 2))
        self.curve_cpu_seconds.append(round(self.cpu_seconds, 2))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validation_seconds += self._lap(trainer)
        self._cpu_since = time.process_time()
        self.curve.append((trainer.global_step, round(float(trainer.callback_metrics[self.metric]), 5)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._end_training(trainer)


class LoadCounter:
    """How many instances a data set was asked for, in whichever process."""

    def __init__(self) -> None:
        # A place for each worker, and one for the process itself: no two write to the same.
        self._counts = multiprocessing.RawArray("q", MAX_WORKERS + 1)

    @property
    def total(self) -> int:
        """Instances so far."""
        return sum(self._counts)

    def add(self) -> None:
        """Count one more."""
        worker = get_worker_info()
        self._counts[0 if worker is None else worker.id + 1] += 1


def fit(
    job: Job,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    metric: str = "accuracy",
    data_options: dict[str, Any] | None = None,
    **trainer_options: Any,
) -> Row:
    """Train once, as the job's method wants it.

    Args:
        job: What to run.
        module: The Boss.
        data: Of a full run.
        metric: What its validation logs; measured at some epochs' ends, and at the end of training.
        data_options: Of the AutoAssistDataModule, where there is one.
        trainer_options: Of the Trainer, before those that all benchmarks share.

    Returns:
        The job's own fields, and what came out.
    """
    callback = Method(job.method).callback()
    stopwatch = Stopwatch(metric)
    options = {
        "accelerator": "gpu" if job.device == "cuda" else "cpu",
        "devices": 1,
        "precision": job.precision,
        "max_epochs": job.epochs,
        "check_val_every_n_epoch": validation_interval(job.epochs),
        "callbacks": [stopwatch] if callback is None else [callback, stopwatch],
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(**{**options, **trainer_options})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filtered = None if callback is None else AutoAssistDataModule(data, budget=job.budget, **(data_options or {}))
        trainer.fit(module, datamodule=data if filtered is None else filtered)
    summary = {} if callback is None else callback.summary()
    return {
        **asdict(job),
        "settings": {} if callback is None else settings_of(callback),
        metric: stopwatch.curve[-1][1],
        "updates": trainer.global_step,
        "seconds": round(stopwatch.train_seconds, 2),
        "cpu_seconds": round(stopwatch.cpu_seconds, 2),
        "validation_seconds": round(stopwatch.validation_seconds, 2),
        "keep_rate": round(summary["keep_rate"], 4) if summary else None,
        "overhead_ms": round(summary["overhead_ms"], 4) if summary else None,
        "curve": stopwatch.curve,
        "curve_seconds": stopwatch.curve_seconds,
        "curve_cpu_seconds": stopwatch.curve_cpu_seconds,
        "warnings": filter_warnings(caught),
    }


def filter_warnings(caught: Iterable[warnings.WarningMessage]) -> list[str]:
    """Those that are about filtering."""
    return sorted({str(one.message) for one in caught if re.search("AutoAssist|filter", str(one.message))})


def validation_interval(epochs: int) -> int:
    """Epochs between two points of the curve, the last of them at the end of training."""
    return next(n for n in range(max(1, epochs // NUM_CURVE_POINTS), 0, -1) if epochs % n == 0)


def settings_of(callback: AutoAssistCallback) -> dict[str, Any]:
    """What the method was, in full."""
    policy = {key: value for key, value in vars(callback.policy).items() if isinstance(value, (int, float, str))}
    return {
        "policy": {key: value for key, value in policy.items() if not key.startswith("_")},
        "assistant": type(callback.assistant).__name__,
        "score": callback.score,
        "weights": callback.weights,
        "tail": callback.tail,
    }


@dataclass(frozen=True)
class Plan:
    """What to run.

    Args:
        stages: Data sets and budgets, in their order.
        methods: See :class:`Method`.
        seeds: Of the final runs.
        grid: Peak learning rates to choose from.
        rates_from: Data set whose chosen rates are used; None: each data set's own.
        template: A job with everything that is the same in all.
        metric: What is better the higher it is, and chooses the rates: a column of the rows.
    """

    stages: tuple[tuple[str, float], ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    grid: tuple[float, ...]
    rates_from: str | None
    template: Job
    metric: str = "accuracy"
    choices = ("budget", "learning_rate")  # of a job, for the lines that tell of it

    def jobs(self, rows: dict[Job, Row]) -> Iterator[Job | None]:
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

    def _tuning(self, rows: dict[Job, Row], dataset: str, method: str, budget: float) -> Iterator[Job | None]:
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

    def _best_rate(self, rows: dict[Job, Row], dataset: str, method: str, budget: float) -> float | None:
        jobs = list(self._tuning(rows, dataset, method, budget))
        if any(job is None or job not in rows for job in jobs):
            return None
        at_budget = [job for job in jobs if job is not None and (job.budget == budget or Method(method).is_full)]
        return max(at_budget, key=lambda job: rows[job][self.metric]).learning_rate


def finished(table: str, folder: Path, kind: type[Any]) -> dict[Any, Row]:
    """The rows of a table that there are, by their jobs.

    Args:
        table: Name of the rows' file, without its ending.
        folder: Of the file.
        kind: The jobs' class: frozen dataclasses, as :class:`Job`.
    """
    names = [field.name for field in fields(kind)]
    return {kind(**{name: row[name] for name in names}): row for row in rows_of(table, folder)}


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


def add_arguments(parser: argparse.ArgumentParser, template: Job, methods: tuple[str, ...], **defaults: Any) -> None:
    """The options that all benchmarks of policies have.

    Args:
        parser: Gets them.
        template: A job with the values that hold where nothing else is asked for.
        methods: That run where none is named.
        defaults: ``grid``, ``seeds``, ``data_dir``.
    """
    add = parser.add_argument
    add("--budget", action="append", type=float, help="again for more; default: 0.6 and 0.4")
    add("--policy", action="append", help=f"NAME or NAME:KEY=VALUE,...; again for more; default: {' '.join(methods)}")
    add("--seeds", type=int, default=defaults["seeds"], help="final runs of each method")
    add("--grid", type=float, nargs="+", default=defaults["grid"], help="peak learning rates to choose from")
    if hasattr(template, "batch_size"):
        add("--batch-size", type=int, default=template.batch_size)
    add("--epochs", type=int, default=template.epochs)
    add("--data-dir", type=Path, default=defaults["data_dir"], help="where data are, or are downloaded to")
    add("--device", choices=("cpu", "cuda"), default=template.device)
    add("--precision", default=template.precision, help="of the Trainer, as in bf16-mixed")
    add("--workers", type=int, default=0, help="processes that load instances")
    add("--threads", type=int, default=1, help="of torch on the CPU")


def planned(
    args: argparse.Namespace,
    stages: tuple[tuple[str, float], ...],
    methods: tuple[str, ...],
    template: Job,
    **options: Any,
) -> Plan:
    """What a command line asks for.

    Args:
        args: With the options of :func:`add_arguments`, and others named as what they set in a job.
        stages: Data sets and budgets.
        methods: That run where none is named.
        template: A job with the values of what the command line does not set.
        options: ``rates_from``, ``metric``.
    """
    names = {field.name for field in fields(template)} & vars(args).keys() - {"dataset", "budget"}  # stages have these
    template = replace(template, **{name: getattr(args, name) for name in names})
    options = {"rates_from": None, **options}
    chosen = tuple(args.policy or methods)
    return Plan(stages, chosen, tuple(range(args.seeds)), tuple(args.grid), template=template, **options)


def be_quiet(num_threads: int) -> None:
    """Leave the terminal to the runs' own lines, and a core or more to this process."""
    warnings.filterwarnings("ignore")
    for flavour in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(flavour).setLevel(logging.ERROR)
    torch.set_num_threads(num_threads)


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
