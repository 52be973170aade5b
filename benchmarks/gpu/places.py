"""Where things lie, and how a row is kept: all that is needed before anything else is known to be installed."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.rows import append_row
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

ROOT = Path(__file__).parents[2]
PACK = ROOT / "build" / "gpu"
TABLE = "gpu"
# Of the environment: when the whole command was started. Rounds of one command are compared, not of several.
STARTED = "AUTOASSIST_GPU_STARTED"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the whole and each part of it are told."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.jsonl and what the parts say")
    data_dir = PACK / "data" if PACK.is_dir() else DEFAULT_DATA_DIR
    parser.add_argument("--data-dir", type=Path, default=data_dir, help="folder of the data")
    parser.add_argument("--quick", action="store_true", help="about a minute: shows that it runs, and no more")


def keep_row(out: Path, part: str, device: str, is_quick: bool, row: dict[str, Any]) -> None:
    """Write a row of a part, at once."""
    started = {"started": os.environ[STARTED]} if STARTED in os.environ else {}
    append_row(TABLE, {"part": part, "device": device, "is_quick": is_quick, **started, **row}, out)


def machine() -> dict[str, Any]:
    """What the machine is, beside what every row says."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "system": platform.platform()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
