"""Tables of K-FAC's benchmark, from its rows."""

from __future__ import annotations

import statistics

from benchmarks.common.accuracy_report import Row, grouped, mean_of, measured_on, with_error
from benchmarks.common.rows import rows_of
from benchmarks.kfac.runs import CASES, CLIPPED, EIGHTH, KL_CLIP, Case, score_of

NAMES = {
    "sgd": "SGD, momentum 0.9",
    "adamw": "AdamW",
    "kfac": "`KFACCallback()` over SGD",
    EIGHTH: "`KFACCallback(factor_share=0.125)` over SGD",
    CLIPPED: f'`KFACCallback(step="kl_clip", kl_clip={KL_CLIP})` over SGD',
    "kaisa": "`KFACCallback.kaisa()` over SGD",
}
NOT_MEASURED = "Not measured yet: `python -m benchmarks.kfac`."


def kfac_tables() -> str:
    """One table for each case: of final rows where there are any, else of what was best while settings are chosen."""
    rows = rows_of("kfac")
    tables = []
    for name, case in CASES.items():
        tuning = [row for row in rows if row["dataset"] == name and row["phase"] == "tune"]
        final = [row for row in rows if row["dataset"] == name and row["phase"] == "final" and _is_chosen(row, tuning)]
        has_reference = any(row["method"] == case.reference for row in final)
        if has_reference or tuning:
            tables.append(_table(case, final) if has_reference else _tuning_table(case, tuning))
    return "\n\n".join(tables) or NOT_MEASURED


def _is_chosen(row: Row, tuning: list[Row]) -> bool:
    """Whether a final run has its method's best settings: others were the best of a smaller grid."""
    best = max((one for one in tuning if one["method"] == row["method"]), key=score_of)
    return all(row[name] == best[name] for name in ("learning_rate", "damping"))


def _tuning_table(case: Case, rows: list[Row]) -> str:
    measure = _measure(case).replace("test ", "")
    lines = [
        f"**{case.title}**, {case.num_updates} updates of {case.batch_size} images: settings were chosen, with one "
        "seed on held-out training images, and final runs are not complete",
        "",
        f"| method | best rate | best damping | {measure} | settings run | a step, CPU ms |",
        "|---|---|---|---|---|---|",
    ]
    by_method = {group[0]["method"]: group for group in grouped(rows, ("method",))}
    for method in (name for name in NAMES if name in by_method):
        own = by_method[method]
        best = max(own, key=score_of)
        damping = f"{best['damping']:g}" if best["damping"] else "-"
        cells = [NAMES[method], f"{best['learning_rate']:g}", damping, with_error([_unit(case) * best["score"]])]
        lines.append(f"| {' | '.join([*cells, str(len(own)), _step(own)])} |")
    return "\n".join([*lines, "", measured_on(rows)])


def _table(case: Case, group: list[Row]) -> str:
    reference = {row["seed"]: row for row in group if row["method"] == case.reference}
    end = f"{NAMES[case.reference]}'s end"
    lines = [
        f"**{case.title}**, {case.num_updates} updates of {case.batch_size} images",
        "",
        f"| method | rate | damping | {_measure(case)} | updates to {end} | CPU seconds to {end} | a step, CPU ms |",
        "|---|---|---|---|---|---|---|",
    ]
    by_method = {rows[0]["method"]: rows for rows in grouped(group, ("method",))}
    lines.extend(_line(case, by_method[method], reference) for method in NAMES if method in by_method)
    shown = "factors and inverses every {} and {} updates, and at 1, 2, 4, ... under the default rule".format(
        *case.intervals
    )
    return "\n".join([*lines, "", f"{shown}; {case.bar:g} of the updates was the aim. {measured_on(group)}"])


def _measure(case: Case) -> str:
    return "squared error of an image" if case.is_autoencoder else "test accuracy, %"


def _line(case: Case, rows: list[Row], reference: dict[int, Row]) -> str:
    row = rows[0]
    shares = [share_of_reference(one, reference[one["seed"]]) for one in rows if one["seed"] in reference]
    cells = [
        NAMES[row["method"]],
        f"{row['learning_rate']:g}",
        f"{row['damping']:g}" if row["damping"] else "-",
        with_error([_unit(case) * one["score"] for one in rows]),
        _ratio([share and share[0] for share in shares]),
        _ratio([share and share[1] for share in shares]),
        _step(rows),
    ]
    return f"| {' | '.join(cells)} |"


def share_of_reference(row: Row, reference: Row) -> tuple[float, float] | None:
    """Updates and seconds to what the reference has at its end, in shares of its own; None where that is not reached.

    Args:
        row: Of a run with a curve.
        reference: Of the reference, with the same seed.
    """
    for (update, score), seconds in zip(row["curve"], row["curve_cpu_seconds"], strict=True):
        if score >= reference["score"]:
            return update / reference["updates"], seconds / reference["cpu_seconds"]
    return None


def _unit(case: Case) -> int:
    return -1 if case.is_autoencoder else 100


def _step(rows: list[Row]) -> str:
    return f"{mean_of(rows, 'cpu_seconds') / mean_of(rows, 'updates') * 1000:.1f}"


def _ratio(shares: list[float | None]) -> str:
    """Mean share, and how many of the runs got there."""
    reached = [share for share in shares if share is not None]
    if not reached:
        return "not reached"
    missed = "" if len(reached) == len(shares) else f" ({len(reached)} of {len(shares)} runs)"
    return f"{statistics.mean(reached):.2f}{missed}"
