"""How many runs the tables are of, and how long they took."""

from __future__ import annotations

from benchmarks.common.rows import RESULTS, rows_of


def hours_table() -> str:
    """A line for each file of rows that say what a run took."""
    lines = ["| rows | runs | of them to choose learning rates | hours |", "|---|---|---|---|"]
    total = 0.0
    for path in sorted(RESULTS.glob("*.jsonl")):
        rows = [row for row in rows_of(path.stem, RESULTS) if "seconds" in row]
        if rows:
            hours = sum(row["seconds"] + row.get("validation_seconds", 0) for row in rows) / 3600
            choosing = sum(row.get("phase") == "tune" for row in rows)
            lines.append(f"| `{path.name}` | {len(rows)} | {choosing} | {hours:.1f} |")
            total += hours
    about = "Hours of training and validation, on one core each but for the GPU's; others used the machine's cores too."
    return "\n".join([*lines, f"| all | | | {total:.1f} |", "", about])
