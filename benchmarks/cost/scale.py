"""Memory, start-up and cost of a step against the number of instances, from ten thousand to ten million.

Each row is a real run in a process of its own: a first pass that sees every instance, filtered steps after it, then one
more pass of the batch generator alone. Its data set makes instances when they are asked for and holds none, so that
what memory grows by is the plug-in's. One thread: several wait for each other wherever the machine is shared.

    python -m benchmarks.cost.scale            # appends rows to benchmarks/results/scale.jsonl
    python -m benchmarks.cost.scale --quick    # up to 100,000 instances, writes no rows
"""

from __future__ import annotations

import argparse
import gc
import logging
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from benchmarks.common.rows import append_row
from lightning_autoassist import AutoAssistCallback, AutoAssistDataModule
from lightning_autoassist.trainer_support.batch_parts import tensors_in

BATCH_SIZE = 1024
NUM_FEATURES = 64
NUM_CLASSES = 10
MAX_BYTES = 160  # of memory an instance
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
# The generator's chunks are its batches; small ones cost more.
GENERATOR_BATCHES = (128, 1024)

CASES: dict[str, Callable[[], AutoAssistCallback]] = {
    "memory score": lambda: AutoAssistCallback(policy="proportional", unfiltered_tail=0.0),
    f"logistic, F={NUM_FEATURES}": AutoAssistCallback,
}


class Synthetic(Dataset[Any]):
    """N instances, each a row of one small table."""

    table = torch.randn(4096, NUM_FEATURES, generator=torch.Generator().manual_seed(0))

    def __init__(self, num_instances: int) -> None:
        self.num_instances = num_instances

    def __len__(self) -> int:
        return self.num_instances

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.table[index % len(self.table)], index % NUM_CLASSES

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch: what the data set costs is not measured here."""
        rows = torch.tensor(indices)
        return self.table[rows % len(self.table)], rows % NUM_CLASSES


class LinearClassifier(pl.LightningModule):
    """A linear classifier: its step costs next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        features, labels = batch
        return F.cross_entropy(self.net(features), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Meter(pl.Callback):
    """Seconds until the first batch; milliseconds of each step, and of the plug-in's part (draw, capture, update).

    Args:
        callback: The plug-in's; comes before this one.
        data: The plug-in's data module.
    """

    def __init__(self, callback: AutoAssistCallback, data: AutoAssistDataModule) -> None:
        self.callback, self.data = callback, data
        self.started = time.perf_counter()
        self.startup_seconds: float | None = None
        self.step_ms: list[float] = []
        self.added_ms: list[float] = []
        self._last: tuple[float, float] | None = None

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        if self.startup_seconds is None:
            self.startup_seconds = time.perf_counter() - self.started

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        stream = self.data.candidate_stream
        assert stream is not None
        now = time.perf_counter(), self.callback.report.seconds + stream.seconds
        if self._last is not None:
            self.step_ms.append(1e3 * (now[0] - self._last[0]))
            self.added_ms.append(1e3 * (now[1] - self._last[1]))
        self._last = now

    def on_train_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self._last = None


def train(case: str, num_instances: int, steps: int, folder: str) -> tuple[pl.Trainer, Meter]:
    """A first pass and ``steps`` filtered steps after it."""
    loader = DataLoader(Synthetic(num_instances), batch_size=BATCH_SIZE, shuffle=True, collate_fn=_as_it_is)
    callback, data = CASES[case](), AutoAssistDataModule(loader, budget=1.0)
    meter = Meter(callback, data)
    trainer = pl.Trainer(
        max_epochs=-1,
        max_steps=math.ceil(num_instances / BATCH_SIZE) + steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback, meter],
    )
    meter.started = time.perf_counter()
    trainer.fit(LinearClassifier(), datamodule=data)
    return trainer, meter


def measure(case: str, num_instances: int, steps: int) -> dict[str, Any]:
    """One row, in a fresh process."""
    warnings.filterwarnings("ignore")
    for flavour in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(flavour).setLevel(logging.ERROR)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        train(case, SIZES[0], 50, folder)  # imports, pools of memory
        gc.collect()
        before = _resident_bytes()
        trainer, meter = train(case, num_instances, steps, folder)
        gc.collect()
        grown = _resident_bytes() - before
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        speeds = {f"candidates_per_s_{size}": candidates_a_second(meter, size) for size in GENERATOR_BATCHES}
        started = time.perf_counter()
        checkpoint = Path(folder) / "scale.ckpt"
        trainer.save_checkpoint(checkpoint)
        checkpoint_seconds = time.perf_counter() - started
        in_tensors, in_files = _state_bytes(meter)
        return {
            "case": f"{case}, N={num_instances}",
            "batch_size": BATCH_SIZE,
            "steps": steps,
            "bytes_per_instance": round((in_tensors + in_files) / num_instances, 1),
            "of_these_in_a_file": round(in_files / num_instances, 1),
            "resident_bytes_per_instance": round(grown / num_instances, 1),
            "peak_resident_bytes_per_instance": round(peak / num_instances, 1),
            "startup_s": round(meter.startup_seconds or 0.0, 3),
            "step_ms": round(_faster_half(meter.step_ms[-steps:]), 3),
            "added_ms": round(_faster_half(meter.added_ms[-steps:]), 3),
            "keep_rate": round(meter.callback.summary()["keep_rate"], 3),
            **speeds,
            "checkpoint_s": round(checkpoint_seconds, 3),
            "checkpoint_bytes_per_instance": round(checkpoint.stat().st_size / num_instances, 1),
        }


def candidates_a_second(meter: Meter, batch_size: int) -> int:
    """Candidates scored and drawn in a second of one core, in a pass of the trained run's own generator.

    CPU seconds, as the generator waits for nothing: what other processes take is not counted.
    """
    stream = meter.data.candidate_stream
    assert stream is not None
    stream.batch_size = stream.chunk_size = batch_size
    end = stream.num_considered + max(stream.num_instances, 200_000)
    started, considered = time.process_time(), stream.num_considered
    while stream.num_considered < end:
        for draw in stream.draws(100):
            stream.mark_consumed(draw)
    seconds = time.process_time() - started
    return round((stream.num_considered - considered) / seconds)


def _faster_half(values: list[float]) -> float:
    """Mean of the faster half: steps in which another process had the core are in the slower one."""
    return statistics.mean(sorted(values)[: max(1, len(values) // 2)])


def _state_bytes(meter: Meter) -> tuple[int, int]:
    """Bytes of the tensors and of the file that make up the plug-in's state."""
    state = meter.callback.state_dict()
    file = state["selector"]["store"]["feature_file"]
    tensors = tensors_in([state, meter.data.state_dict()["ranks"]])
    return sum(tensor.nbytes for tensor in tensors), 0 if file is None else Path(file["path"]).stat().st_size


def _resident_bytes() -> int:
    """What the process holds of the machine's memory, pages of mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _as_it_is(batch: Any) -> Any:
    return batch


def main() -> None:
    """Measure, print, and append rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="up to 100,000 instances, writes no rows")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)  # for what the rows say
    too_large = []
    for case in CASES:
        added = []
        for num_instances in SIZES[:2] if quick else SIZES:
            # A process of its own: memory that an earlier run gave back is not counted.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                row = process.submit(measure, case, num_instances, 100 if quick else 1000).result()
            added.append(row["added_ms"])
            row["added_ratio"] = round(added[-1] / added[0], 3)
            speeds = ", ".join(f"{row[f'candidates_per_s_{size}'] / 1e6:.2f}" for size in GENERATOR_BATCHES)
            print(
                f"{row['case']:28s} {row['bytes_per_instance']:6.1f} B an instance "
                f"(resident {row['resident_bytes_per_instance']:.1f}, at most "
                f"{row['peak_resident_bytes_per_instance']:.1f}), start {row['startup_s']:.2f} s, "
                f"added {row['added_ms']:.2f} ms a step ({row['added_ratio']:.2f}x), "
                f"{speeds} million candidates/s, checkpoint {row['checkpoint_s']:.2f} s",
                flush=True,
            )
            if row["bytes_per_instance"] > MAX_BYTES:
                too_large.append(row["case"])
            if not quick:
                append_row("scale", row)
    sys.exit(f"more than {MAX_BYTES} bytes an instance: {'; '.join(too_large)}" if too_large else 0)


if __name__ == "__main__":
    main()
