"""Whether the advice that a run gives of its own data comes true.

For each setting of the benchmarks of images, texts and rare events a full run only observes, at the full run's own
learning rate, and says how unevenly its gradient is spread over the instances. Their rows tell what filtering gained
there. Rows are appended one at a time to benchmarks/results/advice.jsonl; what has its row is not run again.

    python -m benchmarks.advice            # half an hour on one core
    python -m benchmarks.advice --quick    # some seconds: two settings for one epoch; leaves no rows
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.advice.cases import OBSERVING, SOURCES, TABLE, cases, observed
from benchmarks.common.accuracy_report import full_runs
from benchmarks.common.command_line import be_quiet, parser_of
from benchmarks.common.jobs import Job, Row
from benchmarks.common.rows import RESULTS, append_row
from benchmarks.common.runs import check
from benchmarks.images.__main__ import runner_of as images_runner
from benchmarks.rare_events.__main__ import runner_of as events_runner
from benchmarks.rare_events.data import MADE
from benchmarks.text.__main__ import runner_of as texts_runner
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR
from lightning_autoassist.filtering.reporting.advice import GRADIENT_SPREAD


def run(source: str, job: Job, data_dir: Path) -> Row:
    """Train once; the row says where its setting is from.

    Args:
        source: In ``SOURCES``.
        job: What to run.
        data_dir: Where data are kept.
    """
    runners: dict[str, Any] = {"images": images_runner, "text": texts_runner, "rare_events": events_runner}
    options = {"channels_last": True} if source == "images" else {}
    runner = runners[source](None, RESULTS, data_dir, **options)
    return {"source": source, **runner.run_job(job)}


def run_all(data_dir: Path) -> None:
    """What has no row yet, the shortest run first."""
    for case in sorted(cases(), key=lambda case: full_runs(case.rows)[0]["seconds"]):
        if observed(case) is None:
            row = run(case.source.table, case.job, data_dir)
            append_row(TABLE, row)
            print(f"{case.title}: concentration {row['concentration']:.2f}", flush=True)


def quick() -> None:
    """Digits and events made up.

    Raises:
        RuntimeError: If a run does not say how its gradient is spread, or trained on fewer steps than a full one.
    """
    for source, dataset in (("images", "digits"), ("rare_events", MADE)):
        job = replace(SOURCES[source].kind(dataset=dataset, learning_rate=0.1), method=OBSERVING, epochs=1)
        row = run(source, job, DEFAULT_DATA_DIR)
        check(all(row[name] > 0 for name in GRADIENT_SPREAD), f"{source} has no spread: {row}")
        steps = -(-row["train_instances"] // row["batch_size"])
        check(row["updates"] == steps, f"{source} took {row['updates']} steps of {steps}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("advice", __doc__, "some seconds")
    parser.add_argument("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    return parser.parse_args()


def main() -> None:
    """Run what is left."""
    args = parse()
    be_quiet(1)
    if args.quick:
        quick()
        return
    try:
        run_all(args.data_dir)
    except (FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        sys.exit(f"a run could not be made: {error}")


if __name__ == "__main__":
    main()
