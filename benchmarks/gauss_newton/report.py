"""Tables and a picture of the benchmark of Gauss-Newton, from its rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.accuracy_report import grouped, measured_on
from benchmarks.common.pictures import Picture, is_stale
from benchmarks.common.rows import RESULTS, rows_of
from benchmarks.gauss_newton.runs import seconds_to

Row = dict[str, Any]
NAMES = {
    "dense": "explicit Jacobian",
    "gram": "Gram matrix",
    "cg": "conjugate gradients",
    "sketch": "sketch, conjugate gradients",
}
TITLES = {
    "digits": "digits, odd against even, 64-256-1",
    "fashion": "Fashion-MNIST, 64 principal components, 64-256-1",
    "covtype": "covtype, class 2 against the rest, 54-256-1",
}
NOT_YET = "Not measured yet: `python -m benchmarks.gauss_newton`."


def steps_table() -> str:
    """CPU seconds of one step by width and by instances, with exponents and iterations."""
    rows = _rows("step")
    if not rows:
        return NOT_YET
    tables = [
        _growth(rows, "m", lambda row: row["n"] == 256 and row["d"] == 16, "n = 256, d = 16, growing width m"),
        _growth(rows, "n", lambda row: row["m"] == 4_096 and row["d"] == 16, "m = 4,096, d = 16, growing n"),
        _growth(rows, "n", lambda row: row["m"] == 16 * row["n"] and row["d"] == 8, "m = 16 n, d = 8, growing n"),
        _growth(rows, "m", lambda row: row["n"] == 4_096, "n = 4,096, d = 8, growing width m"),
    ]
    picture = f"![CG iterations and seconds of a step](benchmarks/results/{_path().name})"
    return "\n\n".join([*tables, picture, f"{measured_on(rows)} CPU seconds; iterations in brackets."])


def losses_table() -> str:
    """What the loss is multiplied by in an iteration, at most."""
    rows = _rows("loss")
    if not rows:
        return NOT_YET
    lines = ["| m / n | solver | largest ratio of losses after and before an iteration | CG iterations | seeds |"]
    lines.append("|---|---|---|---|---|")
    for group in grouped(rows, ("n", "m", "method")):
        counts = [count for row in group for count in row["cg_iterations"]]
        ratio = max(row["largest_ratio"] for row in group)
        used = "-" if not max(counts) else f"{min(counts)} to {max(counts)}"
        first = group[0]
        lines.append(f"| {first['m'] // first['n']} | {NAMES[first['method']]} | {ratio:.2f} | {used} | {len(group)} |")
    return "\n".join([*lines, "", f"Fashion-MNIST, n = 256, d = 64, no damping, float64. {measured_on(rows)}"])


def training_table() -> str:
    """Gauss-Newton against AdamW by CPU seconds."""
    rows = _rows("final")
    if not rows:
        return NOT_YET
    lines = [
        "| data | method | updates | training error at the end | CPU s to AdamW's error | against AdamW's CPU s "
        "| test accuracy, % | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group in grouped(rows, ("dataset",)):
        adams = {row["seed"]: row for row in group if row["method"] == "adamw"}
        lines += [_training_line(methods, adams) for methods in grouped(group, ("method", "setting", "n"))]
    return "\n".join(
        [
            *lines,
            "",
            f"{measured_on(rows)} Means over the seeds; times and ratios are paired by seed and are of training, "
            "without the measurement of its error.",
        ]
    )


def assistant_table() -> str:
    """The MLP Assistant's trainers by AUROC, after a third of the steps and after all of them."""
    rows = _rows("assistant_final")
    if not rows:
        return "Not measured yet: `python -m benchmarks.gauss_newton --only assistant`."
    lines = [
        "| data | trainer | AUROC after a third of the updates | after all | an update, CPU ms | seeds |",
        "|---|---|---|---|---|---|",
    ]
    times = {row["dataset"]: row for row in _rows("assistant_time")}
    for group in grouped(rows, ("dataset", "method", "setting")):
        first = group[0]
        is_adam = first["method"] == "adam"
        ratio = first["method"].partition(":")[2]
        name = (
            f"Adam, lr {first['setting']:g}"
            if is_adam
            else f"Gauss-Newton, damping {first['setting']:g}, {ratio} of a step"
        )
        of_update = times.get(first["dataset"], {}).get("adam_ms" if is_adam else "newton_ms")
        cells = [
            f"{first['dataset']}, {first['updates']} updates of {first['n']}",
            name,
            *(_mean_and_spread([row[value] for row in group]) for value in ("auroc_third", "auroc")),
            "-" if of_update is None else f"{of_update:.2f}",
            str(len(group)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{measured_on(rows)} Means and standard deviations over the seeds."])


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def write_newton_picture() -> None:
    """Draw iterations and seconds of a step, one PNG."""
    rows = _rows("step")
    if not rows:
        return
    picture = Picture(3, names=list(NAMES.values()), panel_size=(3.6, 3.8))
    by_n = [row for row in rows if row["m"] == 4_096 and row["d"] == 16 and row["iterations"]]
    by_m = [row for row in rows if row["n"] == 256 and row["d"] == 16]
    by_both = [row for row in rows if row["d"] == 8 and row["m"] == 16 * row["n"]]
    _draw(picture, 0, by_n, "n", "iterations", "CG iterations, m = 4,096, d = 16")
    _draw(picture, 1, by_m, "m", "seconds", "CPU s, n = 256, d = 16")
    _draw(picture, 2, by_both, "n", "seconds", "CPU s, m = 16 n, d = 8")
    picture.save(_path(), rows)


def stale_newton_picture() -> list[str]:
    """The PNG, if it is missing or was drawn from other rows."""
    rows = _rows("step")
    return [_path().name] if rows and is_stale(_path(), rows) else []


def exponent(rows: list[Row], axis: str) -> float:
    """Slope of log seconds against log size, by least squares."""
    sizes, seconds = np.log([row[axis] for row in rows]), np.log([row["seconds"] for row in rows])
    return float(np.polyfit(sizes, seconds, 1)[0])


def _draw(picture: Picture, number: int, rows: list[Row], axis: str, value: str, title: str) -> None:
    panel = picture.panels[number]
    for group in grouped(rows, ("method",)):
        group = sorted(group, key=lambda row: row[axis])
        name = NAMES[group[0]["method"]]
        picture.plot(panel, name, [row[axis] for row in group], [row[value] for row in group])
    panel.set(xscale="log", yscale="log", xlabel=axis)
    panel.set_title(title, fontsize="medium")
    sizes = sorted({row[axis] for row in rows})
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes], minor=False)
    panel.set_xticks([], minor=True)


def _growth(rows: list[Row], axis: str, belongs: Callable[[Row], bool], title: str) -> str:
    chosen = [row for row in rows if belongs(row)]
    sizes = sorted({row[axis] for row in chosen})
    lines = [
        f"**{title}**",
        "",
        f"| | {' | '.join(f'{size:,}' for size in sizes)} | exponent | exponent of the last two |",
        "|---|" + "---|" * (len(sizes) + 2),
    ]
    for method in NAMES:
        own = {row[axis]: row for row in chosen if row["method"] == method}
        if own:
            points = [own[size] for size in sizes if size in own]
            slopes = [f"{exponent(part, axis):.2f}" if len(part) > 1 else "-" for part in (points, points[-2:])]
            cells = [_cell(own.get(size)) for size in sizes]
            lines.append(f"| {NAMES[method]} | {' | '.join([*cells, *slopes])} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    count = f" ({row['iterations']})" if row["iterations"] else ""
    # Conjugate gradients that did not come to the tolerance of 1e-2.
    missed = ", not solved" if row["residual"] > 0.02 and row["iterations"] else ""
    return f"{row['seconds']:.3g}{count}{missed}"


def _training_line(rows: list[Row], adams: dict[int, Row]) -> str:
    first = rows[0]
    if first["method"] == "adamw":
        name, reached = f"AdamW, lr {first['setting']:g}, batch {first['n']}", [row["seconds"] for row in rows]
        ratios: list[float | None] = []
    else:
        kind = "adapted from" if first["method"] == "lm" else "constant"
        name = f"Gauss-Newton, damping {kind} {first['setting']:g}, batch {first['n']}"
        pairs = [(row, adams[row["seed"]]) for row in rows if row["seed"] in adams]
        times = [(seconds_to(row, adam["train_error"]), adam["seconds"]) for row, adam in pairs]
        reached = [seconds for seconds, _ in times if seconds is not None]
        ratios = [None if seconds is None else seconds / whole for seconds, whole in times]
    cells = [
        TITLES.get(first["dataset"], first["dataset"]),
        name,
        f"{first['updates']:,}",
        f"{statistics.mean(row['train_error'] for row in rows):.4f}",
        f"{statistics.mean(reached):.2f}" if reached else "not reached",
        _ratios(ratios),
        f"{100 * statistics.mean(row['test_accuracy'] for row in rows):.1f}",
        str(len(rows)),
    ]
    return f"| {' | '.join(cells)} |"


def _ratios(ratios: list[float | None]) -> str:
    known = [ratio for ratio in ratios if ratio is not None]
    if not ratios:
        return "1"
    missing = f", {len(ratios) - len(known)} not reached" if len(known) < len(ratios) else ""
    return f"{statistics.mean(known):.2f}{missing}" if known else "not reached"


def _rows(phase: str) -> list[Row]:
    return [row for row in rows_of("gauss_newton") if row["phase"] == phase]


def _path() -> Path:
    return RESULTS / "gauss-newton-steps.png"
