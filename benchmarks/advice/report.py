"""What was predicted of filtering, and what came of it."""

from __future__ import annotations

from benchmarks.advice.cases import Case, cases, observed
from benchmarks.common.accuracy_report import Row, differences, full_runs, measured_on, with_error
from lightning_autoassist.filtering.reporting.advice import PAYS, PAYS_MUCH

# Points that "little more than of a shorter schedule" may be.
LITTLE = 1.0


def advice_table() -> str:
    """A line for each setting and budget, those with the highest concentration first."""
    known = [(row, case) for case in cases() if (row := observed(case)) is not None]
    if not known:
        return "Not measured yet: `python -m benchmarks.advice`."
    known.sort(key=lambda pair: -pair[0]["concentration"])
    lines = [
        "| | concentration | variance ratio | said | budget | shortened schedule | filtering above it | comes true |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, case in known:
        lines += _lines(row, case)
    notes = (
        f"{measured_on([row for row, _ in known])} One observing full run a setting, its last epoch. Points of "
        "accuracy, of average precision for covtype: of the shortened schedule (`uniform`) against the full run, and "
        "of the rule that filters against that, paired by seed; from the tables of these benchmarks. What is said "
        f"comes true where filtering gains more than {LITTLE:g} point exactly if it was said to be able to. A "
        "shortened schedule that loses less leaves little to be gained, so that it tells nothing of a high "
        "concentration."
    )
    return "\n".join([*lines, "", notes])


def _lines(row: Row, case: Case) -> list[str]:
    spread = f"{row['concentration']:.1f} | {row['variance_ratio']:.2f} | {_said(row['concentration'])}"
    return [f"| {case.title} | {spread} | {outcome(row, case, *pair)} |" for pair in case.compared()]


def outcome(row: Row, case: Case, shortened: list[Row], filtered: list[Row]) -> str:
    """What came of it at a budget, as cells of the table.

    Args:
        row: Of the observing run.
        case: Its setting.
        shortened: Rows of the shortened schedule.
        filtered: Rows of a rule that filters, at the same budget.
    """
    metric = case.source.metric
    lost = [100 * value for value in differences(shortened, full_runs(case.rows), metric)]
    gained = [100 * value for value in differences(filtered, {one["seed"]: one for one in shortened}, metric)]
    mean_lost, mean_gained = sum(lost) / len(lost), sum(gained) / len(gained)
    came_true = "yes" if (mean_gained > LITTLE) == (row["concentration"] >= PAYS) else "no"
    if mean_lost > -LITTLE and row["concentration"] >= PAYS:
        came_true = "-"
    budget, name = shortened[0]["budget"], filtered[0]["method"]
    return f"{budget:g} | {with_error(lost, '+')} | {with_error(gained, '+')} (`{name}`) | {came_true}"


def _said(concentration: float) -> str:
    if concentration >= PAYS_MUCH:
        return "can pay, down to 0.25"
    return "can pay" if concentration >= PAYS else "little"
