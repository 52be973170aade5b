r"""Average precision of a small network on rare events against the optimizer steps it got: methods side by side.

A forest cover type against the other six: covtype, 581,012 rows, of which class 4 is 0.5 %, class 5 is 1.6 % and class
7 is 3.5 %. Every method's peak learning rate is chosen from the whole grid at every budget, on held-out rows (phase
"tune", one seed); it then trains with several seeds and is measured on the test rows (phase "final"). Rows are appended
one at a time to benchmarks/results/rare_events.jsonl; a run that has its row is not run again, so the same command
continues after an interruption, and a second process beside the first takes other runs.

    python -m benchmarks.rare_events                  # what the tables are of; about two hours on one core
    python -m benchmarks.rare_events --quick          # some seconds, data made up, checks itself, leaves no rows
    python -m benchmarks.rare_events --plan cost      # CPU time of a step: some minutes
    python -m benchmarks.rare_events --plan long      # four and eight times the epochs: about an hour
    python -m benchmarks.rare_events --plan text      # a rare section of Debian's package descriptions: some minutes
    python -m benchmarks.rare_events --plan whole     # all classes, budgets and methods, and the long runs: about a day
    python -m benchmarks.rare_events --dataset covtype-5 --budget 0.25 --policy full --policy uniform
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.common.command_line import add_arguments, be_quiet, parser_of, planned
from benchmarks.common.jobs import TUNED_BUDGET, Plan, PlanChain, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check_quickly
from benchmarks.rare_events.data import MADE, RARE_SETS, load_events
from benchmarks.rare_events.plans import CORE, GRID, METHODS, PLANS, SEEDS, TEMPLATE, CostPlan
from benchmarks.rare_events.runs import METRIC, RareJob, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR
from lightning_autoassist.demo.rare_events import EventSplit

TABLE = "rare_events"


def runner_of(plan: Plan | PlanChain | CostPlan, folder: Path, data_dir: Path) -> Runner:
    """What runs a plan.

    Args:
        plan: What to run.
        folder: Of the rows.
        data_dir: Where data are kept.
    """
    events = functools.lru_cache(maxsize=1)(functools.partial(_events_of, data_dir))

    def run(job: RareJob) -> Row:
        return run_job(job, events(job.dataset, job.phase == "tune"))

    return Runner(plan, TABLE, folder, run)


def _events_of(data_dir: Path, dataset: str, choosing: bool) -> EventSplit:
    return load_events(dataset, data_dir, choosing=choosing)


def quick() -> None:
    """Every method that the tables are of, on data made up; other benchmarks try all policies of the registry."""
    template = replace(TEMPLATE, dataset=MADE, batch_size=64, epochs=4, width=16)
    plan = Plan(((MADE, TUNED_BUDGET),), METHODS, (0,), (0.1,), None, template, METRIC, whole_grid=True)
    check_quickly(plan, lambda folder: runner_of(plan, folder, DEFAULT_DATA_DIR), least=0.6)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("rare_events", __doc__, "some seconds, on data made up")
    add = parser.add_argument
    add("--plan", choices=tuple(PLANS), default="core", help="what is run where no data set is named")
    add("--dataset", action="append", choices=RARE_SETS, help="again for more; then --budget, --policy and so on hold")
    add("--width", type=int, default=TEMPLATE.width, help="units of a hidden layer")
    add_arguments(parser, TEMPLATE, CORE, grid=GRID, seeds=len(SEEDS), data_dir=DEFAULT_DATA_DIR)
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> Plan | PlanChain | CostPlan:
    """What the command line asks for."""
    if not args.dataset:
        return PLANS[args.plan]()
    stages = tuple((dataset, budget) for budget in args.budget or (0.25,) for dataset in args.dataset)
    return planned(args, stages, CORE, TEMPLATE, metric=METRIC, whole_grid=True)


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()
    be_quiet(args.threads)
    if args.quick:
        quick()
        return
    plan = plan_of(args)
    try:
        load_events(plan.template.dataset, args.data_dir, choosing=True)
    except FileNotFoundError as error:
        sys.exit(f"no {plan.template.dataset}: {error}")
    runner = runner_of(plan, RESULTS, args.data_dir)
    runner.run()
    sys.exit(1 if runner.failed else 0)


if __name__ == "__main__":
    main()
