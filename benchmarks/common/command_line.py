"""The command line that the benchmarks of policies have in common."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.jobs import Job, Plan
from benchmarks.common.runs import Runner


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
    add("--rate", type=float, help="one peak learning rate for all, chosen by other means: no tuning runs")
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
    options = {"rates_from": None, "fixed_rate": args.rate, **options}
    chosen = tuple(args.policy or methods)
    return Plan(stages, chosen, tuple(range(args.seeds)), tuple(args.grid), template=template, **options)


def parser_of(name: str, description: str | None, quick: str) -> argparse.ArgumentParser:
    """The parser of a benchmark's command, with ``--quick``.

    Args:
        name: The benchmark's folder.
        description: The docstring of its ``__main__``.
        quick: What ``--quick`` takes and runs on.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick}; leaves no rows")
    return parser


def run_command(args: argparse.Namespace, quick: Callable[[], None], make_runner: Callable[[], Runner]) -> None:
    """Run what is left of the rows that a command line asks for, or the quick check; ends the process.

    Args:
        args: Of :func:`parser_of`, with ``threads``.
        quick: The quick check.
        make_runner: Loads the data and makes what runs the plan.

    Raises:
        SystemExit: If data or a package are missing, a run failed, or all is done.
    """
    be_quiet(args.threads)
    if args.quick:
        quick()
        return
    try:
        runner = make_runner()
    except (FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        sys.exit(f"the data could not be loaded: {error}")
    runner.run()
    sys.exit(1 if runner.failed else 0)


def be_quiet(num_threads: int) -> None:
    """Leave the terminal to the runs' own lines, and a core or more to this process."""
    warnings.filterwarnings("ignore")
    for flavour in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(flavour).setLevel(logging.ERROR)
    torch.set_num_threads(num_threads)
