"""Seconds of a run at a budget against those of the full run, in turns in one process.

Updates that are saved should be seconds that are saved: at budget 0.6 a run may take 0.62 of the full run's seconds.
The first two cases are a small residual network on images in memory, whose step takes 20 ms or more, and four times as
much with larger images: what filtering adds to a step is the same in both. In the third each image takes 5 ms to
decode, in two workers, and a dropped one is never decoded. The fastest run of each kind counts; the median ratio of
the pairs is in the row too.

    python -m benchmarks.cost.wall_clock    # some ten minutes; appends rows to benchmarks/results/wall_clock.jsonl
    python -m benchmarks.cost.wall_clock --quick    # under a minute, writes no rows
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from benchmarks.common.rows import append_row
from benchmarks.common.training import Stopwatch
from benchmarks.images.data import CountedImages, ImageData, Images
from benchmarks.images.runs import ImageModule, residual_net
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule

BUDGET = 0.6
BATCH_SIZE = 128
NUM_CLASSES = 10


@dataclass(frozen=True)
class Case:
    """What is timed.

    Args:
        num_instances: N.
        epochs: Of each run.
        decode_seconds: What loading an image takes beside reading it from memory.
        num_workers: Processes that load.
        is_light: A linear model, whose own cost is next to none.
        image_size: Height and width.
    """

    num_instances: int
    epochs: int
    decode_seconds: float = 0.0
    num_workers: int = 0
    is_light: bool = False
    image_size: int = 28


CASES = {
    "small residual network, images in memory": Case(BATCH_SIZE * 80, 3),
    "small residual network, 56x56 images in memory": Case(BATCH_SIZE * 40, 3, image_size=56),
    "images that take 5 ms to decode, 2 workers": Case(BATCH_SIZE * 12, 6, 0.005, 2, is_light=True),
}


class SlowImages(CountedImages):
    """Images that take their time.

    Args:
        images: The data.
        seconds: Of sleep before each, as reading and decoding a file would take.
    """

    def __init__(self, images: Images, seconds: float) -> None:
        super().__init__(images)
        self.seconds = seconds

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.seconds:
            time.sleep(self.seconds)
        return super().__getitem__(index)


def random_images(count: int, size: int) -> Images:
    """Images with something to learn: a class's pixels are brighter in its own row."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_CLASSES, (count,), generator=generator)
    images = torch.rand(count, 1, size, size, generator=generator)
    images[torch.arange(count), 0, labels * 2 + 4] += 0.5
    return Images(images, labels)


def fit(case: Case, policy: str | None) -> dict[str, Any]:
    """One run; None: plain Lightning."""
    torch.manual_seed(0)
    images = random_images(case.num_instances, case.image_size)
    source = ImageData(images, Images(images.images[:8], images.labels[:8]), BATCH_SIZE, num_workers=case.num_workers)
    source.train = SlowImages(images, case.decode_seconds)
    callback = None if policy is None else AutoAssistCallback(policy=policy)
    data = source if callback is None else AutoAssistDataModule(source, budget=BUDGET)
    shape = images.images.shape[1:]
    if case.is_light:
        net: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(shape.numel(), NUM_CLASSES))
    else:
        net = residual_net(shape)
    stopwatch = Stopwatch()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=case.epochs,
        limit_val_batches=0,
        callbacks=[stopwatch] if callback is None else [callback, stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ImageModule(net, 0.1, channels_last=False), datamodule=data)
    return {
        "seconds": stopwatch.train_seconds,
        "updates": trainer.global_step,
        "instances_loaded": source.train.loads.total,
    }


def compare(name: str, case: Case, policy: str, rounds: int) -> dict[str, Any]:
    """Full runs and runs at the budget in turns."""
    pairs = [(fit(case, None), fit(case, policy)) for _ in range(rounds)]
    full, at_budget = (min(runs, key=_seconds) for runs in zip(*pairs, strict=True))
    ratio = at_budget["seconds"] / full["seconds"]
    updates_ratio = at_budget["updates"] / full["updates"]
    return {
        "case": f"{name}, {policy}",
        "policy": policy,
        "budget": BUDGET,
        "batch_size": BATCH_SIZE,
        "rounds": rounds,
        "epochs": case.epochs,
        "instances": case.num_instances,
        "workers": case.num_workers,
        "decode_ms": 1e3 * case.decode_seconds,
        "full_seconds": round(full["seconds"], 2),
        "budget_seconds": round(at_budget["seconds"], 2),
        "full_step_ms": round(1e3 * full["seconds"] / full["updates"], 2),
        "full_updates": full["updates"],
        "budget_updates": at_budget["updates"],
        "full_instances_loaded": full["instances_loaded"],
        "budget_instances_loaded": at_budget["instances_loaded"],
        "seconds_ratio": round(ratio, 4),
        "median_seconds_ratio": round(statistics.median(b["seconds"] / f["seconds"] for f, b in pairs), 4),
        "updates_ratio": round(updates_ratio, 4),
        "saved_of_updates_saved": round((1 - ratio) / (1 - updates_ratio), 4),
    }


def _seconds(run: dict[str, Any]) -> float:
    return float(run["seconds"])


def rows(policies: list[str], quick: bool) -> Iterator[dict[str, Any]]:
    """One row for each case and policy."""
    for name, case in CASES.items():
        short = replace(case, num_instances=case.num_instances // 4, epochs=3)
        for policy in policies:
            yield compare(name, short if quick else case, policy, 1 if quick else 5)


def main() -> None:
    """Measure, print, and append rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.wall_clock",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small and short, writes no rows")
    parser.add_argument("--policy", action="append", help="again for more; default: proportional and autoassist")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for flavour in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(flavour).setLevel(logging.ERROR)
    torch.set_num_threads(args.threads)
    for row in rows(args.policy or ["prioritized", "autoassist"], args.quick):
        print(
            f"{row['case']:60s} full {row['full_seconds']:7.2f} s ({row['full_step_ms']:.1f} ms a step), "
            f"at {BUDGET} {row['budget_seconds']:7.2f} s: {row['seconds_ratio']:.3f} of the seconds, "
            f"{row['updates_ratio']:.3f} of the updates, {row['saved_of_updates_saved']:.3f} of the saving",
            flush=True,
        )
        if not args.quick:
            append_row("wall_clock", row)


if __name__ == "__main__":
    main()
