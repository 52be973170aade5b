"""Updates a second of layers in parallel on several processes, against one process. On idle cores only."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.local_learning.networks import Stages

SECONDS, REPETITIONS, NUM_PROCESSES = 3.0, 3, 2
# Processes that the simulation is of.
SIMULATED = 4
WAYS = ("backprop", "local", "parallel")
ROOT = Path(__file__).parents[2]


def busy_cores(seconds: float = SECONDS) -> float:
    """How many cores are busy with other things, measured over some seconds; NaN where that cannot be told."""
    before, start = _busy_ticks(), time.perf_counter()
    if before is None:
        return float("nan")
    time.sleep(seconds)
    after = _busy_ticks()
    assert after is not None
    return (after - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - start)


def _busy_ticks() -> float | None:
    try:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except (OSError, ValueError):
        return None
    return sum(ticks[:8]) - ticks[3] - ticks[4]  # without idle and waiting for disks; guests are counted already


def measured_throughput() -> dict[str, Any]:
    """Milliseconds of an update, of each way of training in turns, and what four processes would give."""
    seen: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(REPETITIONS):
        for way in WAYS:
            seen[way].append(_timed(way, NUM_PROCESSES))
    medians = {way: statistics.median(values) for way, values in seen.items()}
    blocks = block_milliseconds(SIMULATED)
    # What a step costs beside its blocks is paid in each process: loader, optimizer, hooks.
    beside = max(0.0, medians["local"] - sum(block_milliseconds(NUM_PROCESSES)))
    pipelined = simulated([each + beside for each in blocks])
    return {
        "case": "two level blocks",
        "num_processes": NUM_PROCESSES,
        "ms": seen,
        "speedup": round(medians["backprop"] / medians["parallel"], 3),
        "speedup_to_local": round(medians["local"] / medians["parallel"], 3),
        "simulated_processes": SIMULATED,
        "block_ms": [round(each, 3) for each in blocks],
        "beside_ms": round(beside, 3),
        "simulated_speedup": round((sum(blocks) + beside) / pipelined, 3),
    }


def _timed(way: str, num_blocks: int) -> float:
    command = [sys.executable, "-m", "benchmarks.local_learning.parallel_run", way, str(num_blocks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["ms"])


def block_milliseconds(num_blocks: int, repetitions: int = 20) -> list[float]:
    """How long each block's forward and backward pass take, one thread, the fastest of several."""
    from benchmarks.local_learning.parallel_run import BATCH_SIZE, SIZE

    torch.set_num_threads(1)
    net = Stages(num_blocks)
    fastest = [float("inf")] * num_blocks
    for _ in range(repetitions):
        values = torch.randn(BATCH_SIZE, 1, SIZE, SIZE)
        for number, block in enumerate(net.blocks):
            start = time.perf_counter()
            result = block(values)
            net.last(net.pool(result)).logsumexp(1).mean().backward()
            fastest[number] = min(fastest[number], 1000 * (time.perf_counter() - start))
            values = result.detach()
    return fastest


def simulated(milliseconds: Sequence[float], num_steps: int = 200, max_in_flight: int = 2) -> float:
    """Milliseconds of an update of processes in a row, each of which may be some activations ahead of the next.

    Args:
        milliseconds: Of each process's own step.
        num_steps: Of the simulation.
        max_in_flight: Activations that the next process need not have taken.

    Example:
        >>> simulated([10.0, 20.0]) == 20.0
        True
    """
    ends = [[0.0] * num_steps for _ in milliseconds]
    starts = [[0.0] * num_steps for _ in milliseconds]
    for step in range(num_steps):
        for place, own in enumerate(milliseconds):
            ready = [ends[place][step - 1]] if step else [0.0]
            if place:
                ready.append(ends[place - 1][step])
            if place + 1 < len(milliseconds) and step > max_in_flight:
                ready.append(starts[place + 1][step - 1 - max_in_flight])
            starts[place][step] = max(ready)
            ends[place][step] = starts[place][step] + own
    half = num_steps // 2
    return (ends[-1][-1] - ends[-1][half - 1]) / (num_steps - half)
