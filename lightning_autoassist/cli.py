"""The command line: parses, dispatches, and puts what goes wrong into one line."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from lightning_fabric.utilities.exceptions import MisconfigurationException

from lightning_autoassist import __version__
from lightning_autoassist.compare import CompareError, as_text, compare, printable
from lightning_autoassist.compare_page import as_json, draw, write_page
from lightning_autoassist.demo_data import DEFAULT_DATA_DIR, DEFAULT_OUT, DEMO_DATA
from lightning_autoassist.diagnosis import diagnose
from lightning_autoassist.flavours import quiet
from lightning_autoassist.run_readers import LoggedRun, RunError, read_runs

EXIT_UNFILTERED = 1
EXIT_ERROR = 2
CHECK_EXAMPLES = """\
NAME is a class or a function that is called without arguments, or an object.

examples:
  autoassist check train.py:MyModule --data train.py:MyDataModule
  autoassist check my_project.models:build    # a module with loaders of its own

exits with 0 where filtering is on, 1 where it is off, 2 where the module cannot be had or fails
"""
DEMO_EXAMPLES = """\
examples:
  autoassist demo                             # 8x8 digits, nothing to download
  autoassist demo --budget 0.4 --epochs 24    # fewer Boss updates an epoch, more epochs
  autoassist demo --data fashion-mnist --wandb off

exits with 0, or with 2 where data, packages or W&B are not to be had
"""
COMPARE_EXAMPLES = """\
RUN is a W&B offline folder, a folder of CSVLogger or TensorBoardLogger, a folder with several of these, or a W&B
project (entity/project). NAME=RUN names it; runs of one name count as seeds of one another.

examples:
  autoassist compare autoassist-demo/wandb --baseline "digits, full"
  autoassist compare full=logs/version_0 filtered=logs/version_1 --metric val_acc --baseline full --target 0.95
  autoassist compare me/my-project --group-by autoassist.policy.name --baseline UniformPolicy

exits with 0, or with 2 where a run cannot be read or compared
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``autoassist``; None: those of the process.

    Returns:
        The exit code: 0, or 2 after an error, which is one line on stderr; ``check`` ends with 1 for filtering off.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, UsageError, RunError, CompareError, MisconfigurationException) as error:
        return _fail(str(error))
    return 0


class UsageError(Exception):
    """What the user asked for cannot be had; the message says what to do."""


class _Parser(argparse.ArgumentParser):
    """Ends with one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="autoassist", description="Instance filtering for PyTorch Lightning.")
    parser.add_argument("--version", action="version", version=f"autoassist {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_check(commands)
    _add_compare(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a small ResNet three times: full, uniform and AutoAssist at a budget",
        description="Train a small ResNet three times from one seed: in full, with uniformly drawn instances at the "
        "budget, and with AutoAssist at the budget. Prints a table and draws accuracy against Boss updates.",
        epilog=DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    epochs = ", ".join(f"{settings.num_epochs} for {name}" for name, settings in DEMO_DATA.items())
    demo.add_argument("--data", choices=DEMO_DATA, default="digits", help="default: %(default)s")
    demo.add_argument(
        "--budget", type=_budget, default=0.6, help="share of the full run's Boss updates, in (0, 1]; default: 0.6"
    )
    demo.add_argument("--epochs", type=_whole_number(1), metavar="N", help=f"epochs of each run; default: {epochs}")
    demo.add_argument(
        "--seed", type=_whole_number(0), default=0, help="of parameters and instance order; default: %(default)s"
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
    demo.set_defaults(run=_demo)


def _add_check(commands: argparse._SubParsersAction[_Parser]) -> None:
    check = commands.add_parser(
        "check",
        help="show which losses of a module's training step are captured, and at what cost",
        description="Trains a few steps and prints what was captured, from which call, how its rows are folded to "
        "instances, its coefficient in the returned loss, and the cost; or why training would be unfiltered.",
        epilog=CHECK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("module", metavar="MODULE", help="FILE.py:NAME or PACKAGE.MODULE:NAME of a LightningModule")
    check.add_argument(
        "--data", metavar="DATA", help="likewise of a data module or train loader; default: the module's"
    )
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> None:
    try:
        data = None if options.data is None else _named(options.data)
        module = _named(options.module)
        with quiet():
            diagnosis = diagnose(module, data)
    except (UsageError, MisconfigurationException):
        raise
    except Exception as error:  # of the user's own code: it must not look like filtering that is off
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{options.module}: {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
        ) from error
    if not diagnosis.is_filtered:
        raise SystemExit(EXIT_UNFILTERED)


def _named(path: str) -> Any:
    """The object at ``FILE.py:NAME`` or ``PACKAGE.MODULE:NAME``; called where it is a class or a function."""
    place, colon, name = path.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"{path} must be FILE.py:NAME or PACKAGE.MODULE:NAME")
    file = Path(place)
    if file.suffix == ".py" and not file.is_file():
        raise UsageError(f"{place} is not there")
    # As `python FILE.py` and `python -m MODULE` do, for the imports of the user's own.
    sys.path.insert(0, str(file.parent if file.suffix == ".py" else Path()))
    try:
        found = getattr(importlib.import_module(file.stem if file.suffix == ".py" else place), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{path}: {error}") from error
    return found() if inspect.isclass(found) or inspect.isfunction(found) else found


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="show finished runs side by side: what each reached, what it cost, what that saves",
        description="Reads finished runs and prints, for each name, the metric at the end and at its best, Boss "
        "updates, instances and seconds, and what that saves against a baseline. Writes the curves as pictures and as "
        "a page that needs no network.",
        epilog=COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="where runs are, or NAME=RUN")
    compare.add_argument("--metric", help="one that all runs logged; default: validation accuracy, or what is likest")
    compare.add_argument("--mode", choices=("max", "min"), help="which is better; default: min for losses and errors")
    compare.add_argument("--baseline", metavar="NAME", help="what savings are counted against")
    compare.add_argument(
        "--target", type=_number, metavar="VALUE", help="when is it reached? default: the baseline's end"
    )
    compare.add_argument(
        "--group-by",
        default="name",
        metavar="KEY",
        help="runs alike in it are seeds of one another: name, group, job_type or a setting; default: name",
    )
    compare.add_argument(
        "--batch-size", type=_whole_number(1), metavar="B", help="of runs that did not log the instances they saw"
    )
    compare.add_argument(
        "--out",
        type=Path,
        default=Path("autoassist-compare"),
        metavar="DIR",
        help="for compare.html, .png and .svg; default: %(default)s",
    )
    compare.add_argument("--json", action="store_true", help="print every figure as JSON instead of the table")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    runs: list[LoggedRun] = []
    for word in options.runs:
        name, equals, place = word.partition("=")
        is_named = equals and name and not Path(word).exists()
        found = read_runs(place if is_named else word)
        runs += [replace(run, name=name) for run in found] if is_named else found
    comparison = compare(
        runs,
        metric=options.metric,
        mode=options.mode,
        target=options.target,
        baseline=options.baseline,
        group_by=options.group_by,
        batch_size=options.batch_size,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    page = options.out / "compare.html"
    write_page(page, comparison, runs)
    print(as_json(comparison.as_dict()) if options.json else as_text(comparison))
    try:
        for picture in ("compare.png", "compare.svg"):
            draw(options.out / picture, comparison, runs)
        written = "compare.html, compare.png, compare.svg"
    except ModuleNotFoundError as error:
        written = f"compare.html; no pictures: {error}, pip install 'lightning-autoassist[compare]'"
    print(f"Written to {options.out}: {written}", file=sys.stderr if options.json else sys.stdout)


def _demo(options: argparse.Namespace) -> None:
    try:
        from lightning_autoassist.demo import run_demo  # needs the packages of the demo extra

        run_demo(
            options.data,
            budget=options.budget,
            num_epochs=options.epochs,
            seed=options.seed,
            wandb_mode=options.wandb,
            data_dir=options.data_dir,
            out=options.out,
        )
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error}; the demo needs more packages than the plug-in: pip install 'lightning-autoassist[demo]'"
        ) from error


def _budget(text: str) -> float:
    try:
        budget = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number in (0, 1], got {text}") from None
    if not 0 < budget <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return budget


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text}")
    return number


def _whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number, got {text}") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, got {text}")
        return number

    return parse


def _fail(message: str) -> int:
    print(f"autoassist: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return EXIT_ERROR
