"""What the parts of the benchmark have in common: each is a process of its own with a time limit, and writes rows."""

from __future__ import annotations

import argparse
import inspect
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.common.command_line import be_quiet
from benchmarks.gpu.places import add_arguments, keep_row
from lightning_autoassist import AutoAssistCallback


@dataclass(frozen=True)
class Part:
    """How a part is run.

    Args:
        name: Of the part, in its rows.
        device: ``"cpu"`` or ``"cuda"``.
        out: Folder of the rows.
        data_dir: Folder of the data.
        deadline: When it has to have ended, by ``time.monotonic()``.
        is_quick: Whether it only has to show that it runs.
    """

    name: str
    device: str
    out: Path
    data_dir: Path
    deadline: float
    is_quick: bool

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    def keep(self, **row: Any) -> None:
        """Write a row, at once."""
        keep_row(self.out, self.name, self.device, self.is_quick, row)

    def trainer(self, **options: Any) -> pl.Trainer:
        """A quiet Trainer on the device, without validation."""
        quiet = {
            "logger": False,
            "limit_val_batches": 0,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        accelerator = "gpu" if self.device == "cuda" else "cpu"
        return pl.Trainer(**{**quiet, "accelerator": accelerator, "devices": 1, **options})


def part_of(name: str) -> Part:
    """The part that this process is, by its command line."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.gpu.{name}")
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, required=True, help="until it has to have ended")
    args = parser.parse_args()
    be_quiet(1 if args.device == "cpu" else torch.get_num_threads())
    return Part(name, args.device, args.out, args.data_dir, started + args.seconds, args.quick)


def default_policy() -> str:
    """The policy of a callback that is told nothing."""
    return str(inspect.signature(AutoAssistCallback.__init__).parameters["policy"].default)
