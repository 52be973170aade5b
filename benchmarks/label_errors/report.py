"""The table of the benchmark of wrong labels, from its rows."""

from __future__ import annotations

from benchmarks.common.accuracy_report import Row, grouped, measured_on, with_error
from benchmarks.common.rows import rows_of

CLEANLAB = "cleanlab"
NAMES = {
    "confidence": "mean confidence",
    "loss_mean": "mean loss",
    "area_under_margin": "area under the margin",
    "self_confidence": "self-confidence",
    "normalized_margin": "normalized margin",
    "confidence_weighted_entropy": "confidence-weighted entropy",
}
SETTING = ("dataset", "model", "epochs", "batch_size", "learning_rate")


def label_error_table() -> str:
    """AUROC of each ranking; ours is the column that was best on the seed that chooses."""
    rows = rows_of("label_errors")
    if not any(row["phase"] == "final" for row in rows):
        return "Not measured yet: `python -m benchmarks.label_errors`."
    return "\n\n".join(_table(group) for group in grouped(rows, SETTING))


def chosen_statistic(rows: list[Row]) -> str:
    """The column with the best AUROC on the seed of its own."""
    (tune,) = (row for row in rows if row["phase"] == "tune")
    aurocs: dict[str, float] = tune["auroc"]
    return max(aurocs, key=lambda name: aurocs[name])


def _table(rows: list[Row]) -> str:
    final = [row for row in rows if row["phase"] == "final"]
    best = chosen_statistic(rows)
    lines = [
        f"**{final[0]['train_instances']:,} images of Fashion-MNIST, {final[0]['wrong_labels']:,} with a wrong label; "
        f"small residual network, {final[0]['epochs']} epochs**",
        "",
        "| ranking by | training runs | optimizer steps in all | AUROC, % | seeds |",
        "|---|---|---|---|---|",
    ]
    for of_method in grouped(final, ("method", "budget")):
        is_ours = of_method[0]["method"] != CLEANLAB
        names = [best, *(name for name in NAMES if name in of_method[0]["auroc"] and name != best)]
        for name in names if is_ours else of_method[0]["auroc"]:
            what = f"dynamics of one filtered run ({of_method[0]['method']}, budget {of_method[0]['budget']:g})"
            what = f"{what}: {NAMES.get(name, name)}" if is_ours else f"cleanlab, out of sample: {NAMES[name]}"
            lines.append(f"| {what} | {_cells(of_method, name)} |")
    note = (
        f"\n{measured_on(final)} Means ± standard errors over the seeds. Each other class is as likely to be the wrong "
        f"one. Of our columns `{best}` was the best on a seed of its own. cleanlab scores the probabilities that the "
        f"same network predicts in {_folds(final)}-fold cross-validation."
    )
    return "\n".join([*lines, note + _suggested(final)])


def _cells(rows: list[Row], name: str) -> str:
    steps = sum(row["updates"] for row in rows) / len(rows)
    aurocs = [100 * row["auroc"][name] for row in rows]
    return f"{rows[0]['runs']} | {steps:,.0f} | {with_error(aurocs)} | {len(rows)}"


def _suggested(rows: list[Row]) -> str:
    """How often the suggested label is the true one; rows of before say nothing."""
    shares = [100 * row["suggested_right"] for row in rows if "suggested_right" in row]
    if not shares:
        return ""
    return f" Of the wrong labels, the suggested one was the true one in {with_error(shares)} %."


def _folds(rows: list[Row]) -> str:
    return str(max(row["folds"] for row in rows))
