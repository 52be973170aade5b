"""Accuracy of a ResNet-18 on Fashion-MNIST at 32x32 against seconds, with and without filtering.

The data lie on the device and are flipped and shifted there. Every method's peak learning rate is the better of two by
accuracy on held-out training images, in runs of a third of the epochs at budget 0.6; it is used at 0.4 as well. There
are as many training images as the time allows: a first measurement of a step says how many that are. Runs follow in the
order of their worth; further seeds fill what time is left. Where there are cores enough, several processes share the
device, as one alone leaves it idle half of the time; seconds are then to be compared with each other only.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from benchmarks.common.command_line import be_quiet
from benchmarks.common.jobs import FULL, TUNE_SEED, Method
from benchmarks.common.training import fit
from benchmarks.gpu.cost import Clock
from benchmarks.gpu.data import DeviceData, OnDevice
from benchmarks.gpu.part import Part, default_policy, part_of
from benchmarks.images.data import Images, load_images
from benchmarks.images.runs import MODELS, ImageJob, ImageModule

SIZES = (60_000, 50_000, 40_000, 30_000, 24_000, 18_000, 12_000)
GRID = (0.03, 0.1, 0.3)
BUDGETS = (0.6, 0.4)
SEEDS, MOST_SEEDS = 2, 6
HELD_OUT_SHARE = 1 / 6
PROBE_STEPS = 40
# That share the device, each with as many cores at least; and how much longer a step of each then takes.
MOST_PROCESSES, CORES_A_PROCESS, CONTENTION = 3, 4, 1.4
# Of the seconds left, what the runs may be planned to take; and what a run takes beside its steps.
PLANNED_SHARE, SECONDS_A_RUN = 0.85, 1.5


@dataclass(frozen=True)
class Plan:
    """What is run, in its order.

    Args:
        template: A job with what is the same in all.
        methods: Beside the full run.
        budgets: The first is the one that rates are chosen at.
        grid: Learning rates to choose from.
        tuning_epochs: Of the runs that choose them.
        seeds: In the order of their worth.
    """

    template: ImageJob
    methods: tuple[str, ...]
    budgets: tuple[float, ...]
    grid: tuple[float, ...]
    tuning_epochs: int
    seeds: tuple[int, ...]

    def tuning(self) -> Iterator[ImageJob]:
        """The runs that choose learning rates."""
        for method in (FULL, *self.methods):
            for rate in self.grid:
                job = self._job(method, self.budgets[0], rate, TUNE_SEED)
                yield replace(job, phase="tune", epochs=self.tuning_epochs)

    def final(self, rates: dict[str, float]) -> Iterator[ImageJob]:
        """The runs that are measured, with each method's rate."""
        required, more = self.seeds[:SEEDS], self.seeds[SEEDS:]
        for budget in self.budgets:
            for seed in required:
                yield from self._of_seed(rates, seed, budget)
        for seed in more:
            for budget in self.budgets:
                yield from self._of_seed(rates, seed, budget)

    def _of_seed(self, rates: dict[str, float], seed: int, budget: float) -> Iterator[ImageJob]:
        if budget == self.budgets[0]:
            yield self._job(FULL, 1.0, rates[FULL], seed)
        for method in self.methods:
            yield self._job(method, budget, rates[method], seed)

    def _job(self, method: str, budget: float, rate: float, seed: int) -> ImageJob:
        budget = 1.0 if Method(method).is_full else budget
        return replace(self.template, method=method, budget=budget, learning_rate=rate, seed=seed)

    def seconds(self, step_seconds: float) -> float:
        """What the runs of the required seeds take, by the seconds of a step."""
        rates = dict.fromkeys((FULL, *self.methods), 0.0)
        required = replace(self, seeds=self.seeds[:SEEDS])
        return sum(seconds_of(job, step_seconds) for job in [*self.tuning(), *required.final(rates)])


def seconds_of(job: ImageJob, step_seconds: float) -> float:
    """What a run takes, by the seconds of a step."""
    instances = (job.instances or 0) * (1 - HELD_OUT_SHARE if job.phase == "tune" else 1)
    return SECONDS_A_RUN + job.epochs * job.budget * instances / job.batch_size * step_seconds


class Runs:
    """Trains what a plan says, on data that lie on the device.

    Args:
        part: Of the benchmark.
        processes: That share the device.
        step_seconds: Of a step of each, where it is known.
    """

    def __init__(self, part: Part, processes: int = 1, step_seconds: float = 0.0) -> None:
        self.part = part
        self.processes = processes
        self.step_seconds = step_seconds
        self._sets: dict[tuple[bool, int | None], tuple[OnDevice, OnDevice]] = {}

    def data(self, job: ImageJob) -> tuple[OnDevice, OnDevice]:
        """What a job trains on, and what it is measured on."""
        key = job.phase == "tune", job.instances
        if key not in self._sets:
            options: dict[str, Any] = {"choosing": key[0], "num_instances": job.instances, "size": job.image_size}
            train, held_out = load_images(job.dataset, self.part.data_dir, **options)
            self._sets[key] = self._on_device(train, augments=job.augment), self._on_device(held_out)
        return self._sets[key]

    def _on_device(self, images: Images, augments: bool = False) -> OnDevice:
        return OnDevice(*(column.to(self.part.device) for column in images), augments=augments)

    def module(self, job: ImageJob) -> ImageModule:
        """The network of a job."""
        torch.manual_seed(job.seed)
        shape = self.data(job)[0].columns[0].shape[1:]
        return ImageModule(MODELS[job.model](shape), job.learning_rate, channels_last=True)

    def probe(self, job: ImageJob) -> None:
        """Measure a step, alone on the device."""
        train, _ = self.data(job)
        steps = min(PROBE_STEPS, len(train) // job.batch_size)
        clock = Clock(steps // 3, steps - 1)
        trainer = self.part.trainer(max_steps=steps, max_epochs=1, precision=job.precision, callbacks=[clock])
        trainer.fit(self.module(job), datamodule=DeviceData(train, None, job.batch_size))
        self.step_seconds = clock.step_ms / 1e3 * (CONTENTION if self.processes > 1 else 1)
        self.part.keep(case="probe", batch_size=job.batch_size, step_ms=round(clock.step_ms, 4))

    def accuracy(self, job: ImageJob) -> float | None:
        """Train once; NaN where that fails, which costs no other run; None where no time is left."""
        if not self.has_time_for(job):
            print(f"no time is left for {job.method} {job.budget:g} seed {job.seed}", flush=True)
            return None
        try:
            return float(self.run(job)["accuracy"])
        except Exception as error:
            traceback.print_exc()
            self.part.keep(case="failed", **asdict(job), outcome=f"{type(error).__name__}: {error}"[:2000])
            return math.nan

    def run(self, job: ImageJob) -> dict[str, Any]:
        """Train once; the row is kept."""
        train, held_out = self.data(job)
        train.num_loaded = 0
        started = time.monotonic()
        row = fit(job, self.module(job), DeviceData(train, held_out, job.batch_size))
        row |= {
            "train_instances": len(train),
            "held_out_instances": len(held_out),
            "instances_loaded": train.num_loaded,
            "processes": self.processes,
            "whole_seconds": round(time.monotonic() - started, 2),
        }
        self.part.keep(case="run", **row)
        what = f"{job.phase:5s} {job.method:14s} {job.budget:g} rate {job.learning_rate:g} seed {job.seed}"
        print(f"{what}: {100 * row['accuracy']:.2f} % in {row['seconds']:.1f} s", flush=True)
        return row

    def has_time_for(self, job: ImageJob) -> bool:
        """Whether a run ends before the deadline."""
        return self.part.seconds_left > seconds_of(job, self.step_seconds) * 1.1 + 2


def plan_of(part: Part, epochs: int = 15) -> Plan:
    """All that is wanted, of all training images."""
    methods = ("uniform", default_policy(), "infobatch", "proportional")
    if part.is_quick:
        template = ImageJob(dataset="digits", instances=200, model="tiny", batch_size=20, epochs=3, augment=True)
        return Plan(template, methods, BUDGETS[:1], GRID, 1, (0,))
    template = ImageJob(
        dataset="fashion-mnist",
        instances=SIZES[0],
        image_size=32,
        model="resnet18",
        batch_size=256,
        epochs=epochs,
        augment=True,
        device=part.device,
        precision="bf16-mixed",
    )
    return Plan(template, methods, BUDGETS, GRID, max(1, epochs // 3), tuple(range(MOST_SEEDS)))


def fitted(plan: Plan, seconds: float, step_seconds: float) -> Plan:
    """The plan with as many training images as fit into so many seconds."""
    for size in SIZES:
        smaller = replace(plan, template=replace(plan.template, instances=size))
        if smaller.seconds(step_seconds) <= seconds:
            break
    return smaller


def num_processes(part: Part) -> int:
    """How many processes share the device."""
    if part.device == "cpu":
        return 2 if part.is_quick else 1
    return max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // CORES_A_PROCESS))


class SharedDevice:
    """Processes that take a job after the other, each as soon as it is free.

    Args:
        runs: As it is set up here.
    """

    def __init__(self, runs: Runs) -> None:
        setting = (runs.part, runs.processes, runs.step_seconds)
        context = multiprocessing.get_context("spawn")  # a process that is forked cannot use CUDA
        self._pool = ProcessPoolExecutor(runs.processes, context, _begin, setting)
        self.failed: list[str] = []

    def accuracies(self, jobs: Iterable[ImageJob]) -> dict[ImageJob, float]:
        """What each job reached, NaN where it failed; jobs that there was no time for are missing."""
        jobs = list(jobs)
        found = {
            job: reached
            for job, reached in zip(jobs, self._pool.map(_accuracy, jobs), strict=True)
            if reached is not None
        }
        self.failed += [job.method for job, reached in found.items() if math.isnan(reached)]
        return found

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown()


_here: list[Runs] = []  # of a process of the pool: its own, with the data that it has on the device


def _begin(part: Part, processes: int, step_seconds: float) -> None:
    be_quiet(1)
    _here.append(Runs(part, processes, step_seconds))


def _accuracy(job: ImageJob) -> float | None:
    return _here[0].accuracy(job)


def main() -> None:
    """Run what there is time for."""
    part = part_of("accuracy")
    runs, plan = Runs(part, num_processes(part)), plan_of(part)
    runs.probe(plan.template)
    seconds = part.seconds_left * runs.processes
    if not part.is_quick:
        plan = fitted(plan, PLANNED_SHARE * seconds, runs.step_seconds)
    planned = plan.seconds(runs.step_seconds)
    print(f"{plan.template.instances:,} images, {planned:.0f} s planned of {seconds:.0f}", flush=True)
    shared = SharedDevice(runs)
    tuned = shared.accuracies(plan.tuning())
    reached = {(job.method, job.learning_rate): accuracy for job, accuracy in tuned.items()}
    shared.accuracies(plan.final(best_rates(plan, reached)))
    shared.close()
    if shared.failed:
        raise SystemExit(f"failed: {', '.join(shared.failed)}")


def best_rates(plan: Plan, reached: dict[tuple[str, float], float]) -> dict[str, float]:
    """The learning rate of each method that came out best; a run that failed, or was not made, is the worst."""

    def accuracy(method: str, rate: float) -> float:
        found = reached.get((method, rate), math.nan)
        return -1.0 if math.isnan(found) else found

    return {name: max(plan.grid, key=lambda rate: accuracy(name, rate)) for name in (FULL, *plan.methods)}


if __name__ == "__main__":
    main()
