"""Raw results: JSON lines that say on what and how they were measured."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("torch", "pytorch-lightning", "numpy", "torchmetrics", "lightning-autoassist")
# Benchmarks were scripts once, and rows of that time name these.
MODULE_OF_SCRIPT = {
    "benchmarks/compatibility.py": "benchmarks.outside",
    "benchmarks/images.py": "benchmarks.images",
    "benchmarks/linear_svm.py": "benchmarks.linear_svm",
    "benchmarks/overhead.py": "benchmarks.cost.overhead",
    "benchmarks/scale.py": "benchmarks.cost.scale",
    "benchmarks/text_classification.py": "benchmarks.text",
    "benchmarks/translation.py": "benchmarks.translation",
    "benchmarks/wall_clock.py": "benchmarks.cost.wall_clock",
}


def provenance() -> dict[str, Any]:
    """Versions, hardware and command of this process."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": command_of_process(),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": _hardware(),
    }


def command_of_process() -> str:
    """The command that began this process, for a shell in the root of the project."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = [Path(sys.argv[0]).name] if spec is None else ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join(["python", *program, *sys.argv[1:]])


def current_command(command: str) -> str:
    """A row's command as it is written today; rows themselves are never changed.

    Example:
        >>> current_command("python benchmarks/images.py --augment")
        'python -m benchmarks.images --augment'
        >>> current_command("python -m benchmarks.images --augment")
        'python -m benchmarks.images --augment'
    """
    python, program, *options = command.split(" ")
    module = MODULE_OF_SCRIPT.get(program)
    return command if module is None else " ".join([python, "-m", module, *options])


def append_row(name: str, row: dict[str, Any], folder: Path = RESULTS) -> None:
    """Append ``row`` with its provenance to ``NAME.jsonl`` in ``folder``."""
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**row, **provenance()}) + "\n")


def write_rows(name: str, rows: Iterable[dict[str, Any]], folder: Path = RESULTS) -> None:
    """Replace all rows of ``NAME.jsonl`` in ``folder``, at once."""
    folder.mkdir(exist_ok=True)
    new = folder / f"{name}.jsonl.new"
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(folder / f"{name}.jsonl")


def rows_of(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The rows of ``NAME.jsonl`` in ``folder``, oldest first."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "source tree"


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
