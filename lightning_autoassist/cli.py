"""The command line: parses, dispatches, and puts what goes wrong into one line.

Whatever needs torch or numpy is imported by the command that needs it: help and errors in the words come at once.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from lightning_autoassist._version import __version__
from lightning_autoassist.demo import command as demo_command
from lightning_autoassist.filtering.named_objects import NamingError, candidates_in, module_and_data, place_of_error
from lightning_autoassist.instances import command as instances_command
from lightning_autoassist.instances.places import InstancesError
from lightning_autoassist.pages.terminal import printable, shortened

EXIT_UNFILTERED = 1
EXIT_ERROR = 2
MAX_MESSAGE = 1_000
CHECK_EXAMPLES = """\
NAME is a class or a function that is called without arguments, or an object. Without :NAME, the command lists what a
file holds. Without --data, the module trains on its own train_dataloader.

examples:
  autoassist check train.py:MyModule --data train.py:MyDataModule
  autoassist check train.py                   # which modules and data modules are in it?
  autoassist check my_project.models:build    # a module with loaders of its own
  autoassist check train.py:MyModule --kfac   # which layers K-FAC preconditions, and what it holds and sends

exits with 0 where training can be filtered, 1 where it cannot, 2 where the module cannot be had or fails
"""
COMPARE_EXAMPLES = """\
RUN is a W&B offline folder, a folder of CSVLogger or TensorBoardLogger, a folder with several of these, or a W&B
project (entity/project). NAME=RUN names it; runs of one name count as seeds of one another, unless their policy or
budget differs. Links inside a folder are not followed; a run that is named twice is counted once.

examples:
  autoassist compare autoassist-demo/wandb --baseline "digits, uniform, 25%"
  autoassist compare full=logs/version_0 filtered=logs/version_1 --metric val_acc --baseline full --target 0.95
  autoassist compare me/my-project --group-by autoassist.policy.name --baseline UniformPolicy
  autoassist compare logs --group-by autoassist.policy.name,autoassist.budget --baseline "UniformPolicy, 1.0"

exits with 0, or with 2 where a run cannot be read or compared
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after ``autoassist``; None: those of the process.

    Returns:
        The exit code: 0, or 2 after an error, which is one line on stderr; ``check`` ends with 1 where training cannot
        be filtered.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the character must not cost the table
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (OSError, UsageError, NamingError) as error:
        return _fail(str(error))
    return 0


class UsageError(Exception):
    """What the user asked for cannot be had; the message says what to do."""


class _Parser(argparse.ArgumentParser):
    """Ends with one line, without the usage before it."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_ERROR, f"{self.prog}: error: {printable(message)} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="autoassist", description="Instance filtering for PyTorch Lightning.")
    parser.add_argument("--version", action="version", version=f"autoassist {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_check(commands)
    _add_compare(commands)
    _add_instances(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train a small network in full, on a shortened schedule, and filtered by policies",
        description=demo_command.DESCRIPTION,
        epilog=demo_command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo_command.add_arguments(demo, _whole_number)
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
        "--data",
        metavar="DATA",
        help="FILE.py:NAME or PACKAGE.MODULE:NAME of a data module or train loader; default: the module's own loader",
    )
    check.add_argument(
        "--kfac",
        action="store_true",
        help="train nothing: show which layers KFACCallback preconditions, and the bytes of each mode",
    )
    check.add_argument(
        "--processes", type=_whole_number(1), default=4, metavar="W", help="of --kfac's modes; default: %(default)s"
    )
    check.add_argument(
        "--local",
        type=_whole_number(2),
        metavar="K",
        help="show instead where local learning would cut the network into K blocks, what they keep, and what leaks",
    )
    check.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> None:
    try:
        if options.module.endswith(".py"):
            raise NamingError(candidates_in(options.module))
        if options.kfac:
            _show_kfac(options.module, options.data, options.processes)
            return
        if options.local is not None:
            _show_blocks(options.module, options.data, options.local)
            return
        is_filtered = _diagnosed(options.module, options.data)
    except (UsageError, NamingError):
        raise
    except Exception as error:  # of the user's own code: it must not look like losses that are not found
        if type(error).__name__ == "MisconfigurationException":
            raise UsageError(str(error)) from error
        raise UsageError(f"{options.module}: {type(error).__name__}: {error} ({place_of_error(error)})") from error
    if not is_filtered:
        raise SystemExit(EXIT_UNFILTERED)


def _show_kfac(module_path: str, data_path: str | None, num_processes: int) -> None:
    module, _ = module_and_data(module_path, data_path)
    from torch import nn

    from lightning_autoassist.kfac.summary import kfac_summary

    if not isinstance(module, nn.Module):
        raise UsageError(f"{module_path} must be a module, got {type(module).__name__}")
    print(kfac_summary(module, num_processes))


def _diagnosed(module_path: str, data_path: str | None) -> bool:
    """Whether the module at a path can be filtered; what was found is printed."""
    module, data = module_and_data(module_path, data_path)
    from lightning_autoassist.filtering.diagnosis import diagnose, has_train_data
    from lightning_autoassist.trainer_support.variants import MODULE_TYPES, quiet

    if data is None and isinstance(module, MODULE_TYPES):
        if not has_train_data(module):
            raise UsageError(
                f"{module_path} has no train_dataloader of its own, so --data must name what it is trained on: "
                "FILE.py:NAME or PACKAGE.MODULE:NAME of a data module or train loader"
            )
        print(f"No --data was given: {module_path} is checked on its own train_dataloader.")
    with quiet():
        return diagnose(module, data).is_filtered


def _show_blocks(module_path: str, data_path: str | None, num_blocks: int) -> None:
    """Print where local learning would cut the module at a path."""
    module, data = module_and_data(module_path, data_path)
    from lightning_autoassist.local_learning.cuts import CutError
    from lightning_autoassist.local_learning.report import local_report
    from lightning_autoassist.trainer_support.variants import quiet

    try:
        with quiet():
            print(local_report(module, data, num_blocks))
    except CutError as error:
        raise UsageError(str(error)) from error


def _add_compare(commands: argparse._SubParsersAction[_Parser]) -> None:
    compare = commands.add_parser(
        "compare",
        help="show finished runs side by side: what each reached and cost, and how that differs from a baseline",
        description="Reads finished runs and prints what each reached and cost, what that saves against a baseline, "
        "how the metric differs from the baseline's, paired by seed, and the settings that differ. Writes the curves "
        "as pictures and as a page that needs no network.",
        epilog=COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="where runs are, or NAME=RUN")
    compare.add_argument("--metric", help="one that all runs logged; default: validation accuracy, or the likeliest")
    compare.add_argument("--mode", choices=("max", "min"), help="which is better; default: min for losses and errors")
    compare.add_argument("--baseline", metavar="NAME", help="what the others are compared with")
    compare.add_argument(
        "--target", type=_number, metavar="VALUE", help="when was it reached? default: the baseline's end"
    )
    compare.add_argument(
        "--group-by",
        action="append",
        metavar="KEY[,KEY]",
        help="runs alike in it are seeds of one another: name, group, job_type or a setting, or several; default: name",
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
    keys = [key.strip() for word in options.group_by or ["name"] for key in word.split(",")]
    if not all(keys):
        raise UsageError("--group-by must name settings, parted by commas, such as autoassist.budget")
    from lightning_autoassist.compare.groups import CompareError
    from lightning_autoassist.compare.logged_runs import RunError

    try:
        _write_comparison(options, keys)
    except (RunError, CompareError) as error:
        raise UsageError(str(error)) from error


def _write_comparison(options: argparse.Namespace, keys: Sequence[str]) -> None:
    from lightning_autoassist.compare.run_places import read_all

    runs = read_all(options.runs)
    from lightning_autoassist.compare.comparison import compare
    from lightning_autoassist.compare.page import write_page
    from lightning_autoassist.compare.picture import draw
    from lightning_autoassist.compare.tables import as_text
    from lightning_autoassist.pages.html import as_json

    comparison = compare(
        runs,
        metric=options.metric,
        mode=options.mode,
        target=options.target,
        baseline=options.baseline,
        group_by=keys,
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
    where = printable(str(options.out))
    print(f"Written to {where}: {written}", file=sys.stderr if options.json else sys.stdout)


def _add_instances(commands: argparse._SubParsersAction[_Parser]) -> None:
    instances = commands.add_parser(
        "instances",
        help="write what a run taught about its data: a table and a page of its instances",
        description="Reads a run's checkpoint and writes how each instance's loss went: a table, and a page with the "
        "map of confidence against variability, the hardest instances, suspected wrong labels and what was learnt at "
        "once.",
        epilog=instances_command.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    instances_command.add_arguments(instances)
    instances.set_defaults(run=_instances)


def _instances(options: argparse.Namespace) -> None:
    try:
        print("\n".join(instances_command.write_instances(options)))
    except (InstancesError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from error


def _demo(options: argparse.Namespace) -> None:
    try:
        demo_command.run(options)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error}; the demo needs more packages than the plug-in: pip install 'lightning-autoassist[demo]'"
        ) from error


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
    print(f"autoassist: error: {shortened(' '.join(message.split()), MAX_MESSAGE)}", file=sys.stderr)
    return EXIT_ERROR
