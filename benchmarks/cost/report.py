"""Tables of what filtering costs, from the rows of overhead, scale and wall clock."""

from __future__ import annotations

from typing import Any

from benchmarks.common.accuracy_report import measured_on
from benchmarks.common.rows import rows_of


def last_rows(name: str) -> list[dict[str, Any]]:
    """The newest row of each case in ``results/NAME.jsonl``."""
    return list({row["case"]: row for row in rows_of(name)}.values())


def overhead_table() -> str:
    """Milliseconds with and without the plug-in, and candidates a second."""
    rows = last_rows("overhead")
    lines = ["| | plain, ms | with AutoAssist, ms | added, ms | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        if "plain_ms" in row:
            name = f"training step, {row['case']}, batch {row['batch_size']}" if "batch_size" in row else row["case"]
            added = row.get("filtered_ms", row.get("captured_ms"))
            figures = f"{row['plain_ms']:.2f} | {added:.2f} | {row['added_ms']:+.2f} | {row['ratio']:.3f}"
            lines.append(f"| {name} | {figures} |")
    lines += ["", "| scoring, 256 features in half precision, one core | candidates a second |", "|---|---|"]
    for row in rows:
        lines += [f"| {name} | {row[name]:,} |" for name in row if name.startswith(("logistic", "remembered"))]
    assistants = [row for row in rows if "update_ms" in row]
    if assistants:
        lines += ["", "| one core, fastest of 200 | an update, ms | a candidate, us |", "|---|---|---|"]
        lines += [f"| {row['case']} | {row['update_ms']:.2f} | {row['predict_us']:.2f} |" for row in assistants]
    dynamics = [row for row in rows if "dynamics_us" in row]
    if dynamics:
        lines += ["", "| one core | CPU time a batch, us | bytes an instance |", "|---|---|---|"]
        lines += [f"| {row['case']} | {row['dynamics_us']:.0f} | {row.get('dynamics_bytes', '')} |" for row in dynamics]
    measured = sorted({f"{row['hardware']}; torch {row['versions']['torch']}" for row in rows})
    return "\n".join([*lines, "", f"Measured on {', '.join(measured)}. Medians of runs in turns with plain ones."])


def scale_table() -> str:
    """Memory, start-up, steps and the batch generator against the number of instances."""
    rows = last_rows("scale")
    lines = [
        "| | bytes an instance | resident | start-up, s | added to a step, ms "
        "| candidates a second, batches of 128 | of 1024 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        resident = row["resident_bytes_per_instance"] if row["case"].endswith("N=10000000") else None
        figures = [
            f"{row['bytes_per_instance']:.0f}",
            "" if resident is None else f"{resident:.0f}",
            f"{row['startup_s']:.2f}",
            f"{row['added_ms']:.2f}",
            f"{row['candidates_per_s_128']:,}",
            f"{row['candidates_per_s_1024']:,}",
        ]
        lines.append(f"| {row['case']} | {' | '.join(figures)} |")
    measured = sorted({f"{row['hardware']}; torch {row['versions']['torch']}" for row in rows})
    return "\n".join([*lines, "", f"Measured on {', '.join(measured)}."])


def wall_clock_table() -> str:
    """Seconds against those of the full run."""
    rows = last_rows("wall_clock")
    if not rows:
        return "Not measured yet: `python -m benchmarks.cost.wall_clock`."
    lines = [
        "| case, policy | full run, s | at the budget, s | share of seconds | of updates | of instances loaded |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        loaded = row["budget_instances_loaded"] / row["full_instances_loaded"]
        case = f"{row['case']} ({row['full_step_ms']:.0f} ms a step), budget {row['budget']}"
        seconds = f"{row['full_seconds']:.1f} | {row['budget_seconds']:.1f} | {row['seconds_ratio']:.3f}"
        lines.append(f"| {case} | {seconds} | {row['updates_ratio']:.3f} | {loaded:.3f} |")
    return "\n".join([*lines, "", f"{measured_on(rows)} Fastest of {rows[0]['rounds']} runs of each kind, in turns."])
