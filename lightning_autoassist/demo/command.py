"""The words of ``autoassist demo``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from lightning_autoassist.demo.data import DEFAULT_DATA_DIR, DEFAULT_OUT
from lightning_autoassist.demo.settings import CONTROL, DEMO_DATA, POLICIES_SHOWN, UNIFORM
from lightning_autoassist.filtering.names import PolicyName

DESCRIPTION = (
    "Train a small network in full, on a shortened schedule that selects nothing (uniform), and at the same budget "
    "filtered by policies, several seeds of each. Prints a table of means, standard errors and paired differences, and "
    "draws the test metric against optimizer steps."
)
EXAMPLES = """\
examples:
  autoassist demo                             # 8x8 digits with rare classes, nothing to download
  autoassist demo --seeds 10 --policy proportional --policy seta
  autoassist demo --data digits-balanced      # where there is nothing to gain
  autoassist demo --data covtype              # rare events, 400,000 rows; some minutes, downloads 16 MB
  autoassist demo --data fashion-mnist --wandb off

exits with 0, or with 2 where data, packages or W&B are not to be had
"""


def add_arguments(demo: argparse.ArgumentParser, whole_number: Callable[[int], Callable[[str], int]]) -> None:
    """The command's options.

    Args:
        demo: Gets them.
        whole_number: Gets the least number allowed; returns what reads one.
    """
    demo.add_argument("--data", choices=DEMO_DATA, default="digits", help="default: %(default)s")
    demo.add_argument(
        "--policy",
        action="append",
        choices=[name for name in get_args(PolicyName) if name != UNIFORM],
        metavar="NAME",
        help=f"again for more; default: {', '.join(POLICIES_SHOWN)}, and {CONTROL} for digits",
    )
    demo.add_argument(
        "--seeds", type=whole_number(1), metavar="N", help=f"runs of each method; default: {_by_data('num_seeds')}"
    )
    demo.add_argument("--seed", type=whole_number(0), default=0, help="the first of the seeds; default: %(default)s")
    budgets = f"share of the full run's optimizer steps, in (0, 1]; default: {_by_data('budget')}"
    demo.add_argument("--budget", type=_budget, help=budgets)
    demo.add_argument(
        "--epochs", type=whole_number(1), metavar="N", help=f"epochs of each run; default: {_by_data('num_epochs')}"
    )
    demo.add_argument(
        "--wandb",
        choices=("online", "offline", "off"),
        help="log the runs to Weights & Biases; default: offline where wandb is installed, else off",
    )
    demo.add_argument(
        "--data-dir", type=Path, default=DEFAULT_DATA_DIR, metavar="DIR", help="for downloads; default: %(default)s"
    )
    demo.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help="for plot and W&B runs; default: %(default)s"
    )


def run(options: argparse.Namespace) -> None:
    """Run the demo.

    Args:
        options: Of :func:`add_arguments`.

    Raises:
        OSError: If data, folder or W&B are not to be had.
        ModuleNotFoundError: If a package of the demo extra is missing.
    """
    from lightning_autoassist.demo.run import run_demo

    run_demo(
        options.data,
        policies=options.policy,
        num_seeds=options.seeds,
        budget=options.budget,
        num_epochs=options.epochs,
        seed=options.seed,
        wandb_mode=options.wandb,
        data_dir=options.data_dir,
        out=options.out,
    )


def _by_data(setting: str) -> str:
    """A setting of each of the demo's data sets, in words."""
    return ", ".join(f"{getattr(settings, setting)} for {name}" for name, settings in DEMO_DATA.items())


def _budget(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1], got {text}") from None
    if not 0 < budget <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return budget
