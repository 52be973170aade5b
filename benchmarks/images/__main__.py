r"""Accuracy of a small image classifier against the optimizer steps it got: policies side by side.

Every method's peak learning rate is chosen from one grid, on a part of the training images (rows of phase "tune", one
seed); it then trains with several seeds and is measured on the test images (rows of phase "final"). At other budgets
than 0.6 the chosen rate is checked against its half and its double. Rows are appended one at a time to
benchmarks/results/images.jsonl; a run that has its row is not run again, so the same command continues after an
interruption, and a second process beside the first takes other runs.

    python -m benchmarks.images --channels-last     # all required rows; about 5 hours on one core
    python -m benchmarks.images --quick             # half a minute, digits, checks itself, leaves no rows
    python -m benchmarks.images --policy full --policy uniform --policy "proportional:weights=mean" --budget 0.25
    python -m benchmarks.images --dataset cifar10 --data-dir DIR --model resnet18 --augment \
        --device cuda --precision bf16-mixed --channels-last --epochs 30 --workers 8
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common.command_line import add_arguments, parser_of, planned, run_command
from benchmarks.common.jobs import BALANCED, FULL, TUNED_BUDGET, Plan, PlanChain, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check_quickly
from benchmarks.images.data import IMAGE_SETS, Images, load_images
from benchmarks.images.runs import MODELS, ImageJob, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR
from lightning_autoassist.filtering.policies.registry import POLICIES

TABLE = "images"
METHODS = (FULL, "uniform", "proportional", "prioritized", "infobatch", "autoassist")
# Where classes are not equally frequent: what draws by class alone.
CONTROLS_OF = {"long-tail": (BALANCED,)}
GRID = (0.2, 0.4, 0.8, 1.6)
# In the order of their worth, should time run out. At 0.4 label noise is not asked for.
STAGES = (
    ("fashion-mnist", 0.6),
    ("long-tail", 0.6),
    ("fashion-mnist", 0.4),
    ("label-noise", 0.6),
    ("long-tail", 0.4),
    ("fashion-mnist", 0.25),
    ("long-tail", 0.25),
)
TEMPLATE = ImageJob()


def runner_of(plan: Plan | PlanChain, folder: Path, data_dir: Path, **run_options: Any) -> Runner:
    """What runs a plan.

    Args:
        plan: What to run.
        folder: Of the rows.
        data_dir: Folder for downloads.
        run_options: Of :func:`~benchmarks.images.runs.run_job`.
    """
    images = functools.lru_cache(maxsize=2)(functools.partial(_images_of, data_dir))

    def run(job: ImageJob) -> Row:
        return run_job(job, *images(job.dataset, job.phase == "tune", job.instances, job.image_size), **run_options)

    return Runner(plan, TABLE, folder, run)


def _images_of(
    data_dir: Path, dataset: str, choosing: bool, instances: int | None, image_size: int | None
) -> tuple[Images, Images]:
    return load_images(dataset, data_dir, choosing=choosing, num_instances=instances, size=image_size)


def quick() -> None:
    """Every policy of the registry, on digits."""
    template = replace(TEMPLATE, batch_size=64, epochs=5)
    plan = Plan((("digits", TUNED_BUDGET),), (FULL, *POLICIES), (0,), (0.1, 0.2), None, template)
    check_quickly(plan, lambda folder: runner_of(plan, folder, DEFAULT_DATA_DIR), least=0.6)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("images", __doc__, "half a minute, on digits")
    add = parser.add_argument
    add("--dataset", action="append", choices=IMAGE_SETS, help="again for more; default: the required ones")
    add_arguments(parser, TEMPLATE, METHODS, grid=GRID, seeds=5, data_dir=DEFAULT_DATA_DIR)
    add("--rates-from", choices=IMAGE_SETS, help="use the rates chosen on this data set")
    add("--instances", type=int, help="training images, 0 for all; default: the data set's own number")
    add("--image-size", type=int, help="scale images to this height and width")
    add("--model", choices=MODELS, default=TEMPLATE.model)
    add("--augment", action="store_true", help="flip and shift training images")
    add("--channels-last", action="store_true", help="lay images out as a GPU's convolutions want them")
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> Plan | PlanChain:
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
    if args.policy:
        return planned(args, stages, METHODS, TEMPLATE, rates_from=args.rates_from)
    parts = [
        planned(args, (stage,), (*METHODS, *CONTROLS_OF.get(stage[0], ())), TEMPLATE, rates_from=args.rates_from)
        for stage in stages
    ]
    return PlanChain(tuple(parts))


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()
    options = {"channels_last": args.channels_last, "num_workers": args.workers}
    run_command(args, quick, lambda: runner_of(plan_of(args), RESULTS, args.data_dir, **options))


if __name__ == "__main__":
    main()
