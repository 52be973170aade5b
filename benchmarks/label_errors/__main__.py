"""Which labels are wrong? The ranking by one filtered run's training dynamics, beside cleanlab's label quality scores.

Fashion-MNIST with 20 % of the labels wrong, each other class as likely (the images benchmark's "label-noise": 30,000
images, one draw of wrong labels for all seeds). Our rankings are columns of instances.to_frame() after one run at
budget 0.6; cleanlab scores the probabilities that the same network gives to images it was not trained on, by
cross-validation. Rows of ours say as well how often suggested_label is the true class of an image with a wrong label.
Which column ranks is chosen on a seed of its own (the row of phase "tune"). Rows are appended one at a time to
benchmarks/results/label_errors.jsonl; a run that has its row is not run again.

    python -m benchmarks.label_errors              # all required rows; twenty minutes on one busy core
    python -m benchmarks.label_errors --quick      # digits with wrong labels; checks itself, leaves no rows

cleanlab is in no extra of this package: pip install cleanlab. Without it its rows are left out.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common.command_line import parser_of, run_command
from benchmarks.common.jobs import TUNE_SEED, Row
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import Runner, check, finished
from benchmarks.images.data import IMAGE_SETS, NUM_CLASSES, Images, load_images
from benchmarks.images.runs import MODELS
from benchmarks.label_errors.runs import CLEANLAB, FOLDS, LabelErrorJob, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

TABLE = "label_errors"
BUDGET = 0.6
NOISE_RATIO = 0.2
OURS = "prioritized"
TEMPLATE = LabelErrorJob(learning_rate=0.2, epochs=6, budget=BUDGET, method=OURS)


@dataclass(frozen=True)
class LabelErrorPlan:
    """What to run.

    Args:
        template: A job with everything that is the same in all.
        seeds: Of the final rows.
        methods: Policies and ``"cleanlab"``.
    """

    template: LabelErrorJob
    seeds: tuple[int, ...]
    methods: tuple[str, ...]

    metric = "best"
    choices = ("budget",)

    def jobs(self, rows: dict[LabelErrorJob, Row]) -> Iterator[LabelErrorJob]:
        """The row that chooses the statistic, then all others, seed by seed."""
        yield replace(self.template, phase="tune", seed=TUNE_SEED)
        for seed in self.seeds:
            for method in self.methods:
                job = replace(self.template, method=method, seed=seed)
                yield replace(job, budget=1.0, folds=FOLDS) if method == CLEANLAB else job


def runner_of(plan: LabelErrorPlan, folder: Path, data_dir: Path) -> Runner:
    """What runs a plan.

    Args:
        plan: What to run.
        folder: Of the rows.
        data_dir: Folder for downloads.
    """
    images = functools.lru_cache(maxsize=1)(functools.partial(wrong_labels, data_dir))

    def run(job: LabelErrorJob) -> Row:
        row = run_job(job, *images(job.dataset))
        return {**row, "best": max(row["auroc"].values())}

    return Runner(plan, TABLE, folder, run)


def wrong_labels(data_dir: Path, dataset: str) -> tuple[Images, npt.NDArray[np.int64]]:
    """Images of which a share has a wrong label, and the labels they should have, shape ``(N,)``."""
    if IMAGE_SETS[dataset].has_noise:
        noisy, _ = load_images(dataset, data_dir, choosing=False)
        clean, _ = load_images("fashion-mnist", data_dir, choosing=False)  # the same images
        return noisy, clean.labels.numpy()
    clean, _ = load_images(dataset, data_dir, choosing=False)
    rng = np.random.default_rng(0)
    is_wrong = rng.random(len(clean.labels)) < NOISE_RATIO
    shifts = torch.from_numpy(rng.integers(1, NUM_CLASSES, len(is_wrong)) * is_wrong)
    return clean._replace(labels=(clean.labels + shifts) % NUM_CLASSES), clean.labels.numpy()


def quick() -> None:
    """Digits with wrong labels, in a temporary folder.

    Raises:
        RuntimeError: If the rows are not what they should be.
    """
    methods = (OURS, CLEANLAB) if find_spec(CLEANLAB) else (OURS,)
    plan = LabelErrorPlan(replace(TEMPLATE, dataset="digits", batch_size=64, epochs=5), (0,), methods)
    with tempfile.TemporaryDirectory() as name:
        num_run = runner_of(plan, Path(name), DEFAULT_DATA_DIR).run()
        rows = list(finished(TABLE, Path(name), LabelErrorJob).values())
    check(num_run == len(rows) == 1 + len(methods), f"{num_run} runs gave {len(rows)} rows")
    ours = next(row for row in rows if row["method"] != CLEANLAB)
    check(ours["suggested_right"] > 0.6, f"{ours['suggested_right']:.0%} of the suggested labels are right")
    for row in rows:
        check(row["best"] > 0.85, f"the best ranking of {row['method']} has an AUROC of {row['best']}")
        check(not row["warnings"], f"{row['method']} warned: {row['warnings']}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = parser_of("label_errors", __doc__, "some seconds, on digits")
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="final rows of each method")
    add("--method", action="append", help=f"a policy or {CLEANLAB}; again for more; default: {OURS} {CLEANLAB}")
    add("--model", choices=MODELS, default=TEMPLATE.model)
    add("--epochs", type=int, default=TEMPLATE.epochs)
    add("--learning-rate", type=float, default=TEMPLATE.learning_rate)
    add("--data-dir", type=Path, default=DEFAULT_DATA_DIR, help="where data are, or are downloaded to")
    add("--threads", type=int, default=1, help="of torch on the CPU")
    return parser.parse_args()


def main() -> None:
    """Run what is left of the rows that the command line asks for."""
    args = parse()
    template = replace(TEMPLATE, model=args.model, epochs=args.epochs, learning_rate=args.learning_rate)
    plan = LabelErrorPlan(template, tuple(range(args.seeds)), tuple(args.method or (OURS, CLEANLAB)))
    run_command(args, quick, lambda: runner_of(plan, RESULTS, args.data_dir))


if __name__ == "__main__":
    main()
