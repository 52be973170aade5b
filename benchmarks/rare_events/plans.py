"""What the benchmark of rare events runs, in the order of its worth, should time run out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.common.jobs import BALANCED, FULL, UNDERSAMPLED, Job, Plan, PlanChain, Row
from benchmarks.rare_events.runs import METRIC, RareJob

GRID = (0.2, 0.6, 1.8)
SEEDS = (0, 1, 2, 3, 4)
BUDGETS = (0.25, 0.1, 0.4, 0.6)
# A tenth of the candidates, as events are rare; what else it does is the policy's own.
PRIORITIZED = "prioritized:keep_rate=0.1,floor=0.02"
# For ranking alone: nothing is weighted back. Chosen at a tenth of the updates on held-out rows of class 5, one seed.
UNCORRECTED = "prioritized:keep_rate=0.05,floor=0.01,correction=0.0,class_mix=0.0"
CORE = (FULL, "uniform", BALANCED, "proportional", PRIORITIZED)
OTHERS = ("autoassist", "infobatch", "selective_backprop", UNDERSAMPLED)
METHODS = (*CORE, UNCORRECTED, *OTHERS)
NEWCOMERS = ("threshold", "seta", "ies", "class_budget", "class_balanced")
TEMPLATE = RareJob(batch_size=512)
TEXT_BATCH_SIZE, TEXT_GRID = 64, (0.06, 0.2, 0.6)
# So long that twice as long gains less than half a point; the second says whether that holds.
LONG_EPOCHS = (48, 96)
# Nothing is remembered of how each instance's loss went.
WITHOUT_DYNAMICS = f"{PRIORITIZED},dynamics=False"
COSTED = (FULL, "uniform", BALANCED, PRIORITIZED, WITHOUT_DYNAMICS, UNCORRECTED)
COST_WIDTHS = (128, 640)


def plan_of(dataset: str, budget: float, methods: tuple[str, ...], num_seeds: int, epochs: int = 12) -> Plan:
    """Rates from the whole grid, then seeds.

    Args:
        dataset: In ``RARE_SETS``.
        budget: Share of the full run's optimizer steps.
        methods: See :class:`~benchmarks.common.jobs.Method`.
        num_seeds: Of the final runs.
        epochs: Of the full run.
    """
    template = replace(TEMPLATE, epochs=epochs)
    return Plan(((dataset, budget),), methods, SEEDS[:num_seeds], GRID, None, template, METRIC, whole_grid=True)


def text_plan() -> PlanChain:
    """A rare section of package descriptions: fewer rows, and so smaller batches."""
    plans = [plan_of("debian-sound", budget, (*CORE, UNCORRECTED), 5) for budget in (0.25, 0.1)]
    template = replace(TEMPLATE, dataset="debian-sound", batch_size=TEXT_BATCH_SIZE)
    return PlanChain(tuple(replace(plan, template=template, grid=TEXT_GRID) for plan in plans))


def core_plan() -> PlanChain:
    """A quarter and a tenth of the updates on the two rarest classes; what a class-balanced sampler does with more."""
    rare = ("covtype-5", "covtype-4")
    parts = [plan_of(dataset, budget, CORE, 3) for budget in (0.25, 0.1) for dataset in rare]
    parts += [plan_of(dataset, 0.25, CORE, 5) for dataset in rare]
    parts += [plan_of(dataset, 0.4, (BALANCED,), 5) for dataset in rare]
    parts += [plan_of(dataset, 0.1, CORE, 5) for dataset in rare]
    parts += [plan_of(dataset, budget, (UNCORRECTED,), 5) for budget in (0.1, 0.25) for dataset in rare]
    parts += [plan_of(dataset, 0.25, OTHERS, 3) for dataset in rare]
    return PlanChain((*parts, plan_of("covtype-7", 0.25, CORE, 3)))


def long_plan() -> PlanChain:
    """Full runs of four times the epochs and of eight times, and a quarter of the former's updates by the methods."""
    first, second = LONG_EPOCHS
    methods = (*CORE, UNCORRECTED)
    return PlanChain((plan_of("covtype-5", 0.25, methods, 3, first), plan_of("covtype-5", 1.0, (FULL,), 3, second)))


def whole_plan() -> PlanChain:
    """All classes, budgets and methods with five seeds, and long runs."""
    datasets = ("covtype-5", "covtype-4", "covtype-7")
    methods = (*METHODS, *NEWCOMERS)
    parts = [plan_of(dataset, budget, methods, 5) for budget in BUDGETS for dataset in datasets]
    parts += [plan_of("covtype-5", 0.25, methods, 5, epochs) for epochs in LONG_EPOCHS]
    return PlanChain((*core_plan().parts, *parts))


@dataclass(frozen=True)
class CostPlan:
    """What a step costs, of a small network and of one with twenty times the work: as many steps of each method.

    Args:
        seeds: Repetitions.
    """

    seeds: tuple[int, ...] = (0, 1)
    template = TEMPLATE
    metric = METRIC
    choices = ("width", "budget")

    def jobs(self, rows: dict[Job, Row]) -> Iterator[Job]:
        """All jobs in their order: methods in turns, so that what else the machine does falls on all."""
        for seed in self.seeds:
            for width in COST_WIDTHS:
                for method in COSTED:
                    budget, epochs = (1.0, 1) if method == FULL else (0.25, 4)
                    job = replace(TEMPLATE, phase="cost", width=width, epochs=epochs, learning_rate=0.2)
                    yield replace(job, method=method, budget=budget, seed=seed)


PLANS: dict[str, Callable[[], PlanChain | CostPlan]] = {
    "core": core_plan,
    "cost": CostPlan,
    "long": long_plan,
    "text": text_plan,
    "whole": whole_plan,
}
