r"""The demo's learning rates, and what its methods reach with ten seeds.

Trains what ``autoassist demo`` trains, on 377 digits of which some are rare. Every method's peak learning rate is the
one of a grid that is best on 240 held-out digits, in the mean over four seeds (phase "tune"); with it ten other seeds
are measured on the 400 test digits (phase "final"). Rows are appended one at a time to benchmarks/results/demo.jsonl; a
run that has its row is not run again, so the same command continues after an interruption. The rates are copied into
lightning_autoassist/demo/settings.py by hand; a test compares them.

    python -m benchmarks.demo            # about five minutes of one core
    python -m benchmarks.demo --quick    # some seconds, checks itself, leaves no rows
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.common.command_line import parser_of, run_command
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check
from benchmarks.demo.runs import PLAN, TABLE, run_job


def quick() -> None:
    """One rate, one seed and ten epochs of each method.

    Raises:
        RuntimeError: If rows are missing, or a run warned.
    """
    plan = replace(PLAN, grid=(0.1,), tune_seeds=(1000,), seeds=(0,), template=replace(PLAN.template, epochs=10))
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(plan, TABLE, Path(name), run_job)
        num_run, again = runner.run(), runner.run()
        warnings = [warning for row in runner.rows().values() for warning in row["warnings"]]
    check(num_run == 2 * len(plan.methods), f"{num_run} runs were made")
    check(again == 0, f"{again} finished runs were run again")
    check(not warnings, f"runs warned: {warnings}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("demo", __doc__, "some seconds")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU")
    return parser.parse_args()


def main() -> None:
    """Run what is left of the rows."""
    run_command(parse(), quick, lambda: Runner(PLAN, TABLE, RESULTS, run_job))


if __name__ == "__main__":
    main()
