"""Tables and the picture of the rare events' benchmark, from its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from benchmarks.common.jobs import BALANCED, FULL, UNDERSAMPLED
from benchmarks.common.pictures import Picture, is_stale
from benchmarks.common.rows import RESULTS, rows_of
from benchmarks.rare_events.data import COVTYPE_SETS, SECTION_SETS
from benchmarks.rare_events.plans import CORE, PRIORITIZED, TEMPLATE, TEXT_BATCH_SIZE, UNCORRECTED, WITHOUT_DYNAMICS
from benchmarks.rare_events.runs import METRIC

SETTING = ("dataset", "width", "batch_size", "epochs", "device", "precision")
NAMES = {
    FULL: "full run",
    "uniform": "`uniform`: the shortened schedule",
    BALANCED: "class-balanced sampler",
    UNDERSAMPLED: "majority undersampled 10:1, corrected logits",
    "proportional": "`proportional`",
    "autoassist": "`autoassist`, the paper's",
    "infobatch": "`infobatch`",
    "selective_backprop": "`selective_backprop`",
}
PICTURE = "rare_events.svg"
# All but the last are waited for.
PICTURED = (FULL, "uniform", BALANCED, PRIORITIZED, UNCORRECTED)
SHOWN_BUDGET, SHOWN_EPOCHS = 0.25, 12
NOT_MEASURED = "Not measured yet: `python -m benchmarks.rare_events`."


def rare_tables() -> str:
    """One table for each setting."""
    return "\n\n".join([*(_table(group) for group in settings()), *_cost_tables()]) or NOT_MEASURED


def headline_table() -> str:
    """Average precision on covtype at a quarter of the updates and a tenth: a line for each class and budget."""
    methods = (*CORE, UNCORRECTED)
    lines = [
        f"| | budget | {' | '.join(_plain_name(method) for method in methods)} |",
        f"|---|---|{'---|' * len(methods)}",
    ]
    for group in settings():
        if group[0]["epochs"] != SHOWN_EPOCHS or group[0]["dataset"] not in COVTYPE_SETS:
            continue
        found = {(rows[0]["method"], rows[0]["budget"]): rows for rows in grouped(group, ("method", "budget"))}
        for budget in sorted({budget for method, budget in found if method == PRIORITIZED}, reverse=True):
            runs = [found.get((method, 1.0 if method == FULL else budget), []) for method in methods]
            cells = [with_error(_percent(rows, METRIC)) if rows else "-" for rows in runs]
            lines.append(f"| {case_of(group[0])}{_other_batch(group[0])} | {budget:g} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else NOT_MEASURED


def long_table() -> str:
    """Full runs of several lengths, and each method's shortest run that is as precise as the longest of them."""
    rows = [row for group in settings() for row in group if _is_of_long_runs(row)]
    lengths = grouped((row for row in rows if row["method"] == FULL), ("epochs",))
    full = sorted(lengths, key=lambda runs: runs[0]["epochs"])
    if len(full) < 2:
        return "Not measured yet: `python -m benchmarks.rare_events --plan long`."
    goal = mean_of(full[-1], METRIC)
    lines = ["| | epochs of the full run | budget | optimizer steps | average precision, % | CPU seconds | seeds |"]
    lines += ["|---|---|---|---|---|---|---|", *(_long_line("full run", runs) for runs in full)]
    others = grouped((row for row in rows if row["method"] != FULL), ("method",))
    lines += [_shortest_line(of_method, goal) for of_method in others]
    return "\n".join(
        [
            *lines,
            "",
            f"Of {case_of(rows[0])}: full runs of all lengths; then the shortest run of each method that comes "
            f"to the {100 * goal:.2f} % of the longest, or its best where none does. {measured_on(rows)}",
        ]
    )


def _is_of_long_runs(row: Row) -> bool:
    is_of_plan = row["width"] == TEMPLATE.width and not _other_batch(row)
    return row["dataset"] == "covtype-5" and row["method"] in (*CORE, UNCORRECTED) and is_of_plan


def _shortest_line(of_method: list[Row], goal: float) -> str:
    """A method's shortest runs that come to an average precision, or its best runs."""
    name = _plain_name(of_method[0]["method"])
    lengths = sorted(grouped(of_method, ("epochs", "budget")), key=lambda runs: runs[0]["updates"])
    for runs in lengths:
        if mean_of(runs, METRIC) >= goal:
            return _long_line(name, runs)
    return _long_line(f"{name}: not reached", max(lengths, key=lambda runs: mean_of(runs, METRIC)))


def _long_line(name: str, rows: list[Row]) -> str:
    row = rows[0]
    precision = with_error(_percent(rows, METRIC))
    cells = [name, row["epochs"], f"{row['budget']:g}", f"{row['updates']:,}", precision]
    return f"| {' | '.join(map(str, cells))} | {mean_of(rows, 'cpu_seconds'):.0f} | {len(rows)} |"


def write_rare_picture() -> None:
    """Draw average precision against optimizer steps, a panel for each class."""
    groups = _pictured()
    if not groups:
        return
    # Methods look as in the pictures of accuracies, where the default is the second and uniform the sixth.
    names = (FULL, PRIORITIZED, UNCORRECTED, BALANCED, "autoassist", "uniform")
    picture = Picture(len(groups), names=[_series_name(method) for method in names], panel_size=(4.4, 3.6))
    for panel, group in zip(picture.panels, groups, strict=True):
        _draw(picture, panel, group)
    picture.panels[0].set_ylabel("average precision, %")
    picture.save(_path(), _rows_of(groups))


def stale_rare_picture() -> list[str]:
    """The picture, where it is missing or was drawn from other rows."""
    groups = _pictured()
    return [PICTURE] if groups and is_stale(_path(), _rows_of(groups)) else []


def _draw(picture: Picture, panel: Any, group: list[Row]) -> None:
    panel.set_title(case_of(group[0]), fontsize="medium")
    panel.set_xlabel("optimizer steps")
    for method in PICTURED:
        rows = [row for row in group if row["method"] == method]
        if rows:
            curves = [[100 * value for _, value in row["curve"]] for row in rows]
            picture.plot_runs(panel, _series_name(method), [step for step, _ in rows[0]["curve"]], curves)
    panel.set_ylim(max(0.0, panel.get_ylim()[0]), 100)


def _pictured() -> list[list[Row]]:
    """The rows of the picture, by their setting: the full run, and what was trained on a quarter of its updates."""
    groups = [
        [row for row in group if row["method"] in PICTURED and row["budget"] in (1.0, SHOWN_BUDGET)]
        for group in settings()
        if group[0]["epochs"] == SHOWN_EPOCHS and group[0]["dataset"] in COVTYPE_SETS and not _other_batch(group[0])
    ]
    return [group for group in groups if {row["method"] for row in group} >= set(PICTURED[:-1])][:2]


def _rows_of(groups: list[list[Row]]) -> list[Row]:
    return [row for group in groups for row in group]


def settings() -> list[list[Row]]:
    """The rows of final runs, by their setting; shorter runs and the plan's batches first, then class 5, 4 and 7."""
    order = ["covtype-5", "covtype-4", "covtype-7", *SECTION_SETS]
    final = (row for row in rows_of("rare_events", RESULTS) if row["phase"] == "final")
    return sorted(grouped(final, SETTING), key=lambda rows: (_rank(rows[0]), order.index(rows[0]["dataset"])))


def _rank(row: Row) -> tuple[int, int, int]:
    return row["width"], row["epochs"], -row["batch_size"]


def _table(group: list[Row]) -> str:
    full = full_runs(group)
    lines = [
        f"**{_title(group[0])}**",
        "",
        "| method | budget | optimizer steps | average precision, % | against the full run | ROC AUC, % | accuracy, % "
        "| calibration error, % | CPU seconds | of the full run's | seeds | peak rate |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    methods = grouped(group, ("method", "budget"))
    for rows in sorted(methods, key=lambda rows: (-rows[0]["budget"], -mean_of(rows, METRIC))):
        row = rows[0]
        seconds = mean_of(rows, "cpu_seconds")
        share = f"{seconds / mean_of(list(full.values()), 'cpu_seconds'):.2f}" if full else "-"
        cells = [
            NAMES.get(row["method"], f"`{row['method']}`"),
            f"{row['budget']:g}",
            f"{row['updates']:,}",
            with_error(_percent(rows, METRIC)),
            points_above(rows, full, METRIC),
            *(with_error(_percent(rows, name)) for name in ("roc_auc", "accuracy", "calibration_error")),
            f"{seconds:.0f}",
            share,
            str(len(rows)),
            rates_of(rows),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(
        [
            *lines,
            "",
            f"{measured_on(group)} Means ± standard errors over the seeds; differences are paired by seed; seconds are "
            "of training without validation, of the process, on cores that others used too. "
            f"{group[0]['held_out_instances']:,} test rows, {group[0]['held_out_positives']:,} of them positives.",
        ]
    )


def _cost_tables() -> list[str]:
    """CPU time of a step, where it was measured."""
    rows = [row for row in rows_of("rare_events", RESULTS) if row["phase"] == "cost"]
    if not rows:
        return []
    lines = ["| units of a layer | method | CPU ms a step | of the full run's CPU seconds, at a quarter of its steps |"]
    lines += ["|---|---|---|---|"]
    for of_width in grouped(rows, ("width",)):
        full = mean_of([row for row in of_width if row["method"] == FULL], "cpu_seconds")
        for of_method in grouped(of_width, ("method",)):
            method, updates = of_method[0]["method"], of_method[0]["updates"]
            milliseconds = with_error([1000 * row["cpu_seconds"] / row["updates"] for row in of_method])
            share = "1" if method == FULL else f"{SHOWN_BUDGET * mean_of(of_method, 'cpu_seconds') / full:.2f}"
            lines.append(f"| {of_method[0]['width']} | {_plain_name(method)} | {milliseconds} | {share} |")
    about = f"Steps of each run: about {updates:,}, {len(of_method)} runs of each. {measured_on(rows)}"
    return ["\n".join(["**CPU time of a step**", "", *lines, "", about])]


def _percent(rows: list[Row], name: str) -> list[float]:
    return [100 * row[name] for row in rows]


def _plain_name(method: str) -> str:
    names = {
        PRIORITIZED: "prioritized, keep rate 0.1",
        WITHOUT_DYNAMICS: "prioritized, keep rate 0.1, `dynamics=False`",
        UNCORRECTED: "0.05, uncorrected",
    }
    return {FULL: "full run", BALANCED: "class-balanced sampler", **names}.get(method, method)


def _series_name(method: str) -> str:
    """What a method is called in the picture, where no other name stands before it."""
    return "prioritized, keep rate 0.05, uncorrected" if method == UNCORRECTED else _plain_name(method)


def case_of(row: Row) -> str:
    """What a row's data set is, in few words."""
    share = row["train_positives"] / row["train_instances"]
    return f"{_rare_class(row['dataset'])} against the rest, {share:.1%} positives"


def _rare_class(dataset: str) -> str:
    if dataset in SECTION_SETS:
        return f"Debian's descriptions, section {SECTION_SETS[dataset]}"
    return f"covtype, class {COVTYPE_SETS[dataset]}"


def _other_batch(row: Row) -> str:
    """Says that a row's batches are not those of the plan."""
    planned = TEXT_BATCH_SIZE if row["dataset"] in SECTION_SETS else TEMPLATE.batch_size
    return "" if row["batch_size"] == planned else f", batch {row['batch_size']}"


def _title(row: Row) -> str:
    parts = [
        case_of(row),
        f"{row['train_instances']:,} training rows",
        f"MLP of two hidden layers of {row['width']}",
        f"batch {row['batch_size']}",
        f"{row['epochs']} epochs",
    ]
    return ", ".join(parts)


def _path() -> Path:
    return RESULTS / PICTURE
