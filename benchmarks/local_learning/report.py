"""Tables and a picture of local learning, from its rows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from benchmarks.common.accuracy_report import measured_on
from benchmarks.common.pictures import Picture, is_stale
from benchmarks.common.rows import RESULTS, rows_of
from benchmarks.local_learning.runs import BACKPROP, METHODS

TABLE, MEMORY, THROUGHPUT = "local_learning", "local_learning_memory", "local_learning_throughput"
PICTURE = RESULTS / "local-learning-memory.png"


def local_tables() -> str:
    """Accuracy and bytes, bytes against depth, layers in parallel."""
    parts = [_accuracy_tables(), _memory_table(), _throughput_table()]
    return "\n\n".join(part for part in parts if part)


def _accuracy_tables() -> str:
    groups: dict[tuple[int, int], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows_of(TABLE):
        if row["phase"] == "final":
            groups[row["num_instances"], row["epochs"]][row["method"]].append(row)
    return "\n\n".join(_accuracy_table(*key, by_method) for key, by_method in sorted(groups.items()))


def _accuracy_table(num_instances: int, epochs: int, by_method: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        f"Fashion-MNIST, {num_instances:,} images of 14 x 14, {epochs} epochs, VGG-like network of 8 convolutions.",
        "",
        "| method | seeds | test accuracy, % | against backprop | saved for backward | CPU seconds | head numbers |",
        "|---|---|---|---|---|---|---|",
    ]
    full = by_method.get(BACKPROP, [])
    for method in METHODS:
        rows = by_method.get(method, [])
        if rows:
            lines.append(_accuracy_line(method, rows, full))
    rows = [row for each in by_method.values() for row in each]
    return "\n".join([*lines, "", measured_on(rows)])


def _accuracy_line(method: str, rows: list[dict[str, Any]], full: list[dict[str, Any]]) -> str:
    values = [100 * row["accuracy"] for row in rows]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    seconds = statistics.mean(row["cpu_seconds"] for row in rows)
    gap = ratio = ""
    if full:
        gap = f"{statistics.mean(values) - statistics.mean(100 * row['accuracy'] for row in full):+.2f}"
        ratio = f" ({seconds / statistics.mean(row['cpu_seconds'] for row in full):.2f}x)"
    return (
        f"| {method} | {len(rows)} | {statistics.mean(values):.2f}{spread} | {gap} "
        f"| {rows[0]['saved_bytes'] / 1e6:.2f} MB ({rows[0]['bytes_ratio']:.2f}x) | {seconds:.0f}{ratio} "
        f"| {rows[0]['head_parameters']:,} |"
    )


def _memory_table() -> str:
    rows = _memory_rows()
    if not rows:
        return ""
    lines = ["| layers | blocks | backprop, MB | local learning, MB |", "|---|---|---|---|"]
    lines += [
        f"| {row['depth']} | {row['num_blocks']} | {row['backprop_bytes'] / 1e6:.1f} | {row['local_bytes'] / 1e6:.1f} |"
        for row in rows
    ]
    title = "Bytes saved for backward, a block for each four convolutions, batches of 32:"
    picture = f"![Bytes saved for backward against depth](benchmarks/results/{PICTURE.name})"
    return "\n".join([title, "", *lines, "", picture, "", measured_on(rows)])


def _throughput_table() -> str:
    rows = rows_of(THROUGHPUT)
    if not rows:
        return ""
    row = rows[-1]
    middle = {way: statistics.median(values) for way, values in row["ms"].items()}
    return "\n".join(
        [
            f"| one thread a process, {row['busy_cores']:.2f} cores busy with other things | ms an update |",
            "|---|---|",
            f"| backpropagation, one process | {middle['backprop']:.1f} |",
            f"| two blocks, one process | {middle['local']:.1f} |",
            f"| two blocks, two processes | {middle['parallel']:.1f} ({row['speedup']:.2f} times backpropagation) |",
            "",
            f"Simulated from times of blocks: {row['simulated_processes']} blocks on as many processes make "
            f"{row['simulated_speedup']:.2f} times the updates of backpropagation in one.",
        ]
    )


def write_local_picture() -> None:
    """Bytes against depth."""
    rows = _memory_rows()
    if not rows:
        return
    picture = Picture(panel_size=(5, 2.8))
    (panel,) = picture.panels
    depths = [row["depth"] for row in rows]
    picture.plot(panel, "backpropagation", depths, [row["backprop_bytes"] / 1e6 for row in rows])
    picture.plot(panel, "local learning, 4 layers a block", depths, [row["local_bytes"] / 1e6 for row in rows])
    panel.set(xlabel="layers", ylabel="MB saved for backward", ylim=(0, None))
    picture.save(PICTURE, rows)


def stale_local_picture() -> list[str]:
    """The picture's name where it is not of the rows."""
    rows = _memory_rows()
    return [PICTURE.name] if rows and is_stale(PICTURE, rows) else []


def _memory_rows() -> list[dict[str, Any]]:
    return sorted(rows_of(MEMORY), key=lambda row: row["depth"])
