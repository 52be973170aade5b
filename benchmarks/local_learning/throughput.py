"""Updates a second of layers in parallel on several processes, against one process. On idle cores only."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

SECONDS = 3.0


def busy_cores(seconds: float = SECONDS) -> float:
    """How many cores are busy with other things, measured over some seconds; NaN where that cannot be told."""
    before, start = _busy_ticks(), time.perf_counter()
    if before is None:
        return float("nan")
    time.sleep(seconds)
    after = _busy_ticks()
    assert after is not None
    return (after - before) / 100 / (time.perf_counter() - start)


def _busy_ticks() -> float | None:
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4]  # without idle and waiting for disks


def measured_throughput() -> dict[str, Any]:
    """Milliseconds of an update, of each way of training."""
    raise NotImplementedError
