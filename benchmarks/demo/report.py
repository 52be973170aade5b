"""The table of the demo's seeds, from its rows."""

from __future__ import annotations

from benchmarks.common.accuracy_report import Row, differences, grouped, mean_of, measured_on, rates_of, with_error
from benchmarks.common.jobs import FULL
from benchmarks.common.rows import rows_of
from benchmarks.demo.runs import METRIC, PLAN, TABLE
from lightning_autoassist.demo.settings import CONTROL, DEFAULT_POLICY, PAPERS_POLICY, UNIFORM

NAMES = {
    FULL: "full run",
    UNIFORM: "`uniform`: the shortened schedule",
    DEFAULT_POLICY: f"`{DEFAULT_POLICY}`, the default",
    PAPERS_POLICY: f"`{PAPERS_POLICY}`, the paper's",
    CONTROL: f"`{CONTROL}`: by class alone, a control",
}


def final_rows() -> dict[str, list[Row]]:
    """The rows of the final runs, by method: those of the plan in its order, then what was tried beside them."""
    final = [row for row in rows_of(TABLE) if row["phase"] == "final"]
    found = {rows[0]["method"]: rows for rows in grouped(final, ("method",))}
    return {method: found[method] for method in dict.fromkeys([*PLAN.methods, *found]) if method in found}


def above_uniform(rows: list[Row], uniform: list[Row]) -> list[float]:
    """Points of accuracy that rows are above the shortened schedule's of their own seeds."""
    return [100 * value for value in differences(rows, {row["seed"]: row for row in uniform}, METRIC)]


def demo_table() -> str:
    """The methods' accuracies on the demo's digits, and what they were measured on."""
    groups = final_rows()
    if UNIFORM not in groups:
        return "Not measured yet: `python -m benchmarks.demo`."
    lines = [
        "| method | budget | optimizer steps | test accuracy, % | above `uniform` | CPU seconds | seeds | peak rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, rows in groups.items():
        cells = [
            NAMES.get(method, f"`{method}`"),
            f"{rows[0]['budget']:g}",
            f"{rows[0]['updates']}",
            with_error([100 * row[METRIC] for row in rows]),
            "-" if method == UNIFORM else with_error(above_uniform(rows, groups[UNIFORM]), "+"),
            f"{mean_of(rows, 'cpu_seconds'):.1f}",
            str(len(rows)),
            rates_of(rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    every_row = [row for rows in groups.values() for row in rows]
    notes = (
        f"{measured_on(every_row)} {every_row[0]['train_instances']} digits to train on, 112 zeros to 5 nines; "
        f"{every_row[0]['held_out_instances']} others, 40 of each, to test on. Means ± standard errors over the seeds; "
        "differences are paired by seed; CPU seconds are of one core, validation included."
    )
    return "\n".join([*lines, "", notes])
