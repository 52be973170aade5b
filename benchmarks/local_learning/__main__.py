"""Local learning against backpropagation: accuracy, bytes saved for backward, and layers in parallel.

A VGG-like network of eight convolutions is trained on Fashion-MNIST, scaled to 14 x 14 pixels. Learning rates are
chosen on a part of the training images, with a seed of its own (rows of phase "tune"). Rows are appended one at a time
to benchmarks/results/local_learning.jsonl; what has its row is not run again, so the same command continues after an
interruption. The throughput of several processes can be measured on idle cores only: the benchmark looks, and says so.

    python -m benchmarks.local_learning                      # accuracy and memory; half an hour on one core
    python -m benchmarks.local_learning --part throughput    # two processes against one, on idle cores; two minutes
    python -m benchmarks.local_learning --quick              # on data made here, checks itself, leaves no rows
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.common.command_line import be_quiet, parser_of
from benchmarks.common.rows import RESULTS, append_row, rows_of
from benchmarks.common.runs import Runner, check
from benchmarks.images.data import load_images
from benchmarks.local_learning.memory import DEPTHS, memory_row
from benchmarks.local_learning.runs import BACKPROP, BLOCKS, METHODS, LocalJob, LocalPlan, run_job, trained
from benchmarks.local_learning.throughput import busy_cores, measured_throughput
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

TABLE, MEMORY, THROUGHPUT = "local_learning", "local_learning_memory", "local_learning_throughput"
GRID = (0.05, 0.1, 0.2)
MOST_BUSY = 0.2


def accuracy(args: argparse.Namespace) -> None:
    """Runs that have no row yet."""
    template = LocalJob(method=BACKPROP, learning_rate=GRID[0], num_instances=args.instances, epochs=args.epochs)
    plan = LocalPlan(tuple(args.method or METHODS), tuple(range(args.seeds)), GRID, template)
    Runner(plan, TABLE, RESULTS, lambda job: run_job(job, args.data_dir)).run()


def memory(args: argparse.Namespace) -> None:
    """Depths that have no row yet."""
    known = {row["depth"] for row in rows_of(MEMORY)}
    for depth in DEPTHS:
        if depth not in known:
            append_row(MEMORY, memory_row(depth))


def throughput(args: argparse.Namespace) -> None:
    """Two processes and one, in turns, if the cores are idle."""
    busy = busy_cores()
    if busy > MOST_BUSY and not args.busy:
        print(f"{busy:.2f} cores are busy with other things, so nothing is measured; --busy measures all the same")
        return
    append_row(THROUGHPUT, {**measured_throughput(), "busy_cores": round(busy, 2)})


def quick() -> None:
    """Two methods on digits and one depth, in a temporary folder; checks the rows.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    train, held_out = load_images("digits", DEFAULT_DATA_DIR, choosing=False, size=14)
    template = LocalJob(method=BACKPROP, learning_rate=0.05, dataset="digits", num_instances=0, epochs=4)
    plan = LocalPlan((BACKPROP, BLOCKS), (0,), (0.05,), template)
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(plan, TABLE, Path(name), lambda job: trained(job, train, held_out))
        num_run = runner.run()
        again = runner.run()
        rows = {row["method"]: row for job, row in runner.rows().items() if job.phase == "final"}
    check(num_run == 4, f"{num_run} runs were made")
    check(again == 0, f"{again} finished runs were run again")
    for row in rows.values():
        check(not row["warnings"], f"{row['method']} warned: {row['warnings']}")
        check(row["accuracy"] > 0.4, f"{row['method']} reached an accuracy of {row['accuracy']:.3f}")
    check(rows[BLOCKS]["bytes_ratio"] < 0.6, f"4 blocks keep {rows[BLOCKS]['bytes_ratio']:.2f} of the bytes")
    shallow, deep = memory_row(8), memory_row(16)
    check(deep["backprop_bytes"] > 1.8 * shallow["backprop_bytes"], "backpropagation's bytes do not grow with depth")
    check(deep["local_bytes"] < 1.2 * shallow["local_bytes"], "local learning's bytes grow with depth")


PARTS = {"accuracy": accuracy, "memory": memory, "throughput": throughput}


def main() -> None:
    """Run what is asked for."""
    parser = parser_of("local_learning", __doc__, "a few seconds, on data made here")
    add = parser.add_argument
    add("--part", action="append", choices=PARTS, help="again for more; default: memory accuracy")
    add("--method", action="append", choices=METHODS, help="again for more; default: all")
    add("--seeds", type=int, default=3, help="final runs of each method")
    add("--instances", type=int, default=20_000, help="of training")
    add("--epochs", type=int, default=10)
    add("--busy", action="store_true", help="measure throughput on busy cores, too")
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    args = parser.parse_args()
    be_quiet(1)
    if args.quick:
        quick()
        return
    for part in args.part or ("memory", "accuracy"):
        PARTS[part](args)


if __name__ == "__main__":
    main()
