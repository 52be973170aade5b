"""Tables and curves of the linear SVM's benchmark, from its rows."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from benchmarks.common.accuracy_report import grouped, measured_on
from benchmarks.common.pictures import Picture, is_stale
from benchmarks.common.rows import RESULTS, rows_of

Row = dict[str, Any]
# Columns of a row's curve.
UPDATES, EVALUATIONS, MARGINS, SECONDS, AVERAGE, LAST = range(6)
# The slope is fitted to the updates after this share of a run: the first steps, of 1 / lambda, are far from any rate.
FITTED_FROM = 0.2
BOUNDS = (1e-2, 1e-3)
PAPER_GAMMA = 0.3
NAMES = {
    "sgd": "SGD",
    "importance-loss": "importance sampling, last loss",
    "importance-gradient": "importance sampling, last gradient norm",
    "current-loss": "importance sampling, current loss",
    "current-gradient": "importance sampling, current gradient norm",
    "autoassist": "AutoAssist",
}
TITLES = {
    "shirts": "Fashion-MNIST's T-shirts and shirts",
    "covtype": "covtype.binary",
}


def point_below(row: Row, bound: float, column: int = AVERAGE) -> list[float] | None:
    """The first point of a row's curve at or below ``bound``; None where there is none."""
    return next((point for point in row["curve"] if point[column] <= bound), None)


def evaluations_to(row: Row, bound: float, column: int = AVERAGE) -> int | None:
    """Gradient evaluations to come within ``bound`` of the minimum; None where the run does not."""
    point = point_below(row, bound, column)
    return None if point is None else int(point[EVALUATIONS])


def slope(row: Row, column: int = AVERAGE) -> float:
    """Slope of log suboptimality against log updates, by least squares over the last four fifths of the updates."""
    points = [point for point in row["curve"] if point[UPDATES] >= FITTED_FROM * row["updates"] and point[column] > 0]
    updates, values = (np.log([point[which] for point in points]) for which in (UPDATES, column))
    return float(np.polyfit(updates, values, 1)[0])


def svm_tables() -> str:
    """One table for each data set."""
    rows = _final_rows()
    if not rows:
        return "Not measured yet: `python -m benchmarks.linear_svm`."
    tables = [_table(group) for group in grouped(rows, ("dataset", "l2", "epochs"))]
    if not any(row["dataset"] == "covtype" for row in rows):
        tables.append(
            "covtype.binary was not run yet. The command: `python -m benchmarks.linear_svm --dataset covtype`."
        )
    return "\n\n".join(tables)


def write_svm_curves() -> None:
    """Draw suboptimality against gradient evaluations, one PNG for each data set."""
    for group in grouped(_final_rows(), ("dataset", "l2", "epochs")):
        picture = Picture(title=_title(group[0]), panel_size=(7, 4))
        (panel,) = picture.panels
        panel.set(xlabel="gradient evaluations", ylabel="objective less its minimum", xscale="log", yscale="log")
        for rows in _methods(group):
            # Runs share their updates, so that their points do; SGD's last batch of a pass may be smaller.
            logs = np.log([[[point[EVALUATIONS], point[AVERAGE]] for point in row["curve"]] for row in rows])
            evaluations, values = np.exp(logs.mean(0)).T
            picture.plot(panel, _name(rows[0]), evaluations, values, marker="")
            if len(rows) > 1:
                spread = np.exp(logs[:, :, 1].std(0, ddof=1) / len(rows) ** 0.5)
                picture.fill(panel, _name(rows[0]), evaluations, values / spread, values * spread)
        panel.set_xlim(left=0.01 * group[0]["gradient_evaluations"])
        panel.set_ylim(top=10 * max(_at_share(row, 0.1) for row in group))
        picture.save(_path(group), group)


def stale_svm_curves() -> list[str]:
    """The PNGs that are missing, or were drawn from other rows."""
    groups = grouped(_final_rows(), ("dataset", "l2", "epochs"))
    return [_path(group).name for group in groups if is_stale(_path(group), group)]


def _final_rows() -> list[Row]:
    return [row for row in rows_of("linear_svm") if row["phase"] == "final"]


def _methods(group: list[Row]) -> list[list[Row]]:
    return sorted(grouped(group, ("method", "floor")), key=lambda rows: list(NAMES).index(rows[0]["method"]))


def _table(group: list[Row]) -> str:
    sgd = {row["seed"]: row for row in group if row["method"] == "sgd"}
    lines = [
        f"**{_title(group[0])}**",
        "",
        "| method | gradient evaluations to 1e-2 | to 1e-3 | against SGD, to 1e-3 | margins of candidates, to 1e-3 "
        "| slope | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows in _methods(group):
        reached = [point_below(row, BOUNDS[-1]) for row in rows]
        ratios = [
            point[EVALUATIONS] / own[EVALUATIONS] - 1
            for row, point in zip(rows, reached, strict=True)
            if point is not None and row["seed"] in sgd and (own := point_below(sgd[row["seed"]], BOUNDS[-1]))
        ]
        is_sgd = rows[0]["method"] == "sgd"
        cells = [
            _name(rows[0]),
            *(_counts([evaluations_to(row, bound) for row in rows]) for bound in BOUNDS),
            "-" if is_sgd or not ratios else f"{_with_error([100 * ratio for ratio in ratios], '+.0f')} %",
            _counts([None if point is None else int(point[MARGINS]) for point in reached]),
            _with_error([slope(row) for row in rows], ".2f"),
            str(len(rows)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    gap = max(row["minimum_gap"] for row in group)
    return "\n".join(
        [
            *lines,
            "",
            f"![Suboptimality against gradient evaluations](benchmarks/results/{_path(group).name})",
            "",
            f"{measured_on(group)} Means ± standard errors over the seeds, of the averaged weights; ratios are paired "
            "by seed. Points of a run are 4 % of its updates apart, and so are counts that look equal. "
            f"The minimum, {group[0]['minimum']:.10f}, is known to {max(gap, 1e-16):.0e} by its duality gap. "
            "The slope is of log suboptimality against log updates, over the last four fifths of a run. The machine "
            "was shared by many others, so that the rows' seconds compare nothing.",
        ]
    )


def _counts(values: list[int | None]) -> str:
    """Their mean, where there are any; how many runs have none."""
    known = [value for value in values if value is not None]
    if not known:
        return "not reached"
    missing = f", {len(values) - len(known)} not reached" if len(known) < len(values) else ""
    if max(known) == 0:
        return "0" + missing
    return _with_error(known, ",.0f") + missing


def _with_error(values: list[Any], form: str) -> str:
    mean = f"{statistics.mean(values):{form}}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:{form.removeprefix('+')}}"


def _name(row: Row) -> str:
    name = NAMES[row["method"]]
    if row["method"] == "autoassist":
        paper = ", the paper's" if row["floor"] == PAPER_GAMMA else ""
        return f"{name}, gamma = {row['floor']:g}{paper}"
    return name if row["method"] == "sgd" else f"{name}, floor {row['floor']:g}"


def _title(row: Row) -> str:
    passes = row["gradient_evaluations"] / row["train_instances"]
    name = TITLES.get(row["dataset"], row["dataset"])
    size = f"{row['train_instances']:,} x {row['features']}"
    return f"{name}, {size}, lambda {row['l2']:g}, batch {row['batch_size']}, {passes:.2g} passes' evaluations"


def _at_share(row: Row, share: float) -> float:
    """Suboptimality after a share of the updates."""
    return next(point[AVERAGE] for point in row["curve"] if point[UPDATES] >= share * row["updates"])


def _path(group: list[Row]) -> Any:
    return RESULTS / f"linear-svm-{group[0]['dataset']}.png"
