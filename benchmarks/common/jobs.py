"""What is run: jobs, the methods that choose their instances, and plans of jobs that choose learning rates."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lightning_autoassist import AutoAssistCallback
from lightning_autoassist.filtering.policies.registry import POLICIES

FULL = "full"
# What practitioners do about imbalance, without any Assistant: plain Lightning with another sampler; see controls.py.
BALANCED, UNDERSAMPLED = "class_balanced_sampler", "undersampled"
CONTROLS = (BALANCED, UNDERSAMPLED)
# The paper's rule and Assistant for translation.
PAPER = "autoassist:assistant=text,gamma=0.5,confidence_gate=True"
CALLBACK_OPTIONS = ("assistant", "score", "reweighting", "unfiltered_tail", "max_features", "dynamics")
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
        budget: Share of the full run's optimizer steps.
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
    """What chooses the instances: ``full`` (plain Lightning), a control, or a policy; with options after a colon.

    Args:
        spec: ``"NAME"`` or ``"NAME:KEY=VALUE,..."``, as in ``"proportional:cap_quantile=0.95,weights=mean"``.

    Raises:
        ValueError: If the name is neither in ``POLICIES`` nor in ``CONTROLS``.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.name, _, options = spec.partition(":")
        known = [FULL, *POLICIES, *CONTROLS]
        if self.name not in known:
            raise ValueError(f"a method is one of {', '.join(known)}, with options after a colon; got {spec!r}")
        self.options = dict(_option(text) for text in options.split(",") if text)

    @property
    def is_full(self) -> bool:
        """Whether it is plain Lightning."""
        return self.name == FULL

    @property
    def is_control(self) -> bool:
        """Whether it is plain Lightning with another sampler."""
        return self.name in CONTROLS

    def callback(self) -> AutoAssistCallback | None:
        """The callback of a run, None where it is plain Lightning."""
        if self.is_full or self.is_control:
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
        whole_grid: Whether every budget's rates come from the whole grid, and not from around what was best at 0.6.
            Where the best is the grid's lowest or highest, the grid goes on by one rate there, for that method alone.
        fixed_rate: Peak learning rate of all final runs, chosen by other means: nothing is tuned. None: tuned.
    """

    stages: tuple[tuple[str, float], ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    grid: tuple[float, ...]
    rates_from: str | None
    template: Job
    metric: str = "accuracy"
    whole_grid: bool = False
    fixed_rate: float | None = None
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
        if self.fixed_rate is not None:
            return
        if self.whole_grid:
            yield from self._tuning_on_whole_grid(rows, dataset, method, budget)
            return
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

    def _tuning_on_whole_grid(
        self, rows: dict[Job, Row], dataset: str, method: str, budget: float
    ) -> Iterator[Job | None]:
        jobs = [self._job("tune", dataset, method, budget, rate, TUNE_SEED) for rate in sorted(self.grid)]
        yield from jobs
        if len(jobs) < 3:
            return
        if any(job not in rows for job in jobs):
            yield None
            return
        best = max(jobs, key=lambda job: rows[job][self.metric])
        for edge, inner in ((jobs[0], jobs[1]), (jobs[-1], jobs[-2])):
            if edge == best:
                yield replace(edge, learning_rate=float(f"{edge.learning_rate**2 / inner.learning_rate:.2g}"))

    def _best_rate(self, rows: dict[Job, Row], dataset: str, method: str, budget: float) -> float | None:
        if self.fixed_rate is not None:
            return self.fixed_rate
        jobs = list(self._tuning(rows, dataset, method, budget))
        if any(job is None or job not in rows for job in jobs):
            return None
        at_budget = [job for job in jobs if job is not None and (job.budget == budget or Method(method).is_full)]
        return max(at_budget, key=lambda job: rows[job][self.metric]).learning_rate


@dataclass(frozen=True)
class PlanChain:
    """Plans one after the other, in the order of their worth: what several ask for is run once.

    Args:
        parts: At least one; all of one kind of job and one metric.
    """

    parts: tuple[Plan, ...]

    @property
    def template(self) -> Job:
        """A job of the kind that is run."""
        return self.parts[0].template

    @property
    def metric(self) -> str:
        """What chooses the rates."""
        return self.parts[0].metric

    @property
    def choices(self) -> tuple[str, ...]:
        """Of a job, for the lines that tell of it."""
        return self.parts[0].choices

    def jobs(self, rows: dict[Job, Row]) -> Iterator[Job | None]:
        """As :meth:`Plan.jobs`, over all parts."""
        for part in self.parts:
            yield from part.jobs(rows)
