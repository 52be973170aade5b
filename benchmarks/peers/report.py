"""The table of the peers' benchmark, from its rows."""

from __future__ import annotations

from benchmarks.common.accuracy_report import (
    Row,
    full_runs,
    grouped,
    mean_of,
    measured_on,
    points_above,
    rates_of,
    with_error,
)
from benchmarks.common.jobs import FULL
from benchmarks.common.rows import RESULTS, rows_of
from benchmarks.peers.runs import INFOBATCH, RCAP

NAMES = {
    FULL: "full run",
    INFOBATCH: "InfoBatch, its authors' code",
    RCAP: "RCAP, the package datacull",
    "infobatch": "`infobatch`, ours",
    "uniform": "`uniform`: the shortened schedule",
}


def peers_table() -> str:
    """All methods, the best first."""
    rows = [row for row in rows_of("peers", RESULTS) if row["phase"] == "final"]
    if not rows:
        return "Not measured yet: `python -m benchmarks.peers`."
    lines = [
        "| | optimizer steps | test accuracy, % | against the full run | CPU seconds | lines changed | seeds "
        "| peak rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = full_runs(rows)
    methods = sorted(grouped(rows, ("method",)), key=lambda of: -mean_of(of, "accuracy"))
    lines += [_line(of_method, full) for of_method in methods]
    about = (
        f"Fashion-MNIST with flips and shifts, {rows[0]['train_instances']:,} training images, small residual network, "
        f"{rows[0]['epochs']} epochs. InfoBatch's own code decides by itself how many steps it makes; the others make "
        f"as many or fewer. Means ± standard errors over the seeds; differences are paired by seed. {measured_on(rows)}"
    )
    return "\n".join([*lines, "", about])


def _line(rows: list[Row], full: dict[int, Row]) -> str:
    row = rows[0]
    cells = [
        NAMES.get(row["method"], f"`{row['method']}`"),
        f"{mean_of(rows, 'updates'):,.0f}",
        with_error([100 * one["accuracy"] for one in rows]),
        points_above(rows, full),
        f"{mean_of(rows, 'cpu_seconds'):.0f}",
        str(row["lines_changed"]),
        str(len(rows)),
        rates_of(rows),
    ]
    return f"| {' | '.join(cells)} |"
