"""Table and curves of the translation benchmark, from its rows."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.common.accuracy_report import (
    differences,
    full_runs,
    grouped,
    mean_of,
    measured_on,
    name_of,
    rates_of,
    with_error,
)
from benchmarks.common.pictures import Picture, is_stale
from benchmarks.common.rows import RESULTS, rows_of

Row = dict[str, Any]
# What rows have to share to stand in one table.
SETTING = ("dataset", "size", "vocabulary", "max_words", "max_tokens", "epochs", "device", "precision")


def translation_tables() -> str:
    """One table for each setting."""
    tables = [_table(group) for group in grouped(_final_rows(), SETTING)]
    return "\n\n".join(tables) or "Not measured yet: `python -m benchmarks.translation`."


def write_translation_curves() -> None:
    """Draw BLEU against optimizer steps and against seconds, one PNG for each setting."""
    for group in grouped(_final_rows(), SETTING):
        picture = Picture(2, _title(group[0]), names=["full run"], sharey=True)
        by_update, by_second = picture.panels
        by_update.set(xlabel="optimizer steps", ylabel="greedy BLEU of 500 test pairs")
        by_second.set(xlabel="seconds of training, on the CPU's clock" if _is_on_cpu(group) else "seconds of training")
        seconds = "curve_cpu_seconds" if _is_on_cpu(group) else "curve_seconds"
        for rows in sorted(grouped(group, ("method", "budget")), key=lambda rows: -rows[0]["budget"]):
            bleu = [[value for _, value in row["curve"]] for row in rows]
            picture.plot_runs(by_update, name_of(rows[0]), [update for update, _ in rows[0]["curve"]], bleu)
            picture.plot_runs(by_second, name_of(rows[0]), _means([row[seconds] for row in rows]), bleu)
        picture.save(_path(group), group)


def stale_translation_curves() -> list[str]:
    """The PNGs that are missing, or were drawn from other rows."""
    groups = grouped(_final_rows(), SETTING)
    return [_path(group).name for group in groups if is_stale(_path(group), group)]


def _final_rows() -> list[Row]:
    return [row for row in rows_of("translation") if row["phase"] == "final"]


def _table(group: list[Row]) -> str:
    full = full_runs(group)
    lines = [
        f"**{_title(group[0])}**",
        "",
        "| method | optimizer steps | of the full run's seconds | BLEU, beam 5 | against the full run | BLEU, greedy "
        "| chrF, beam 5 | seconds | seeds | peak rate |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    methods = grouped(group, ("method", "budget"))
    methods.sort(key=lambda rows: (-rows[0]["budget"], -mean_of(rows, "beam_bleu")))
    lines += [f"| {' | '.join(_cells(rows, full))} |" for rows in methods]
    row = group[0]
    return "\n".join(
        [
            *lines,
            "",
            f"![BLEU against optimizer steps and seconds](benchmarks/results/{_path(group).name})",
            "",
            f"{measured_on(group)} {row['held_out_instances']:,} test pairs, {row['parameters']:,} parameters; "
            f"`{'`, `'.join(row['signatures'])}`. Means ± standard errors over the seeds; differences are paired by "
            f"seed; seconds are of training without validation, {_clock(group)}.",
        ]
    )


def _cells(rows: list[Row], full: dict[int, Row]) -> list[str]:
    row, seconds = rows[0], _seconds(rows)
    pairs = differences(rows, full, "beam_bleu")
    paired = [one[seconds] / full[one["seed"]][seconds] for one in rows if one["seed"] in full]
    is_full = row["method"] == "full"
    return [
        name_of(row),
        f"{row['updates']:,}",
        f"{statistics.mean(paired):.0%}" if paired and not is_full else "-",
        with_error([one["beam_bleu"] for one in rows]),
        with_error(pairs, "+") if pairs and not is_full else "-",
        f"{mean_of(rows, 'greedy_bleu'):.2f}",
        f"{mean_of(rows, 'beam_chrf'):.2f}",
        f"{mean_of(rows, seconds):,.0f}",
        str(len(rows)),
        rates_of(rows),
    ]


def _is_on_cpu(rows: list[Row]) -> bool:
    return bool(rows[0]["device"] == "cpu")


def _seconds(rows: list[Row]) -> str:
    return "cpu_seconds" if _is_on_cpu(rows) else "seconds"


def _clock(rows: list[Row]) -> str:
    if _is_on_cpu(rows):
        return "of the process on its one core: the machine was used by others too, whose share is not in them"
    return "on the wall clock"


def _title(row: Row) -> str:
    parts = [
        f"English to German, {row['train_instances']:,} pairs of at most {row['max_words']} words",
        f"{row['size']} Transformer",
        f"{row['max_tokens']:,} tokens a batch",
        f"{row['epochs']} epochs",
        row["precision"] if row["precision"] != "32-true" else "",
    ]
    return ", ".join(part for part in parts if part)


def _means(curves: list[list[float]]) -> list[float]:
    return [statistics.mean(values) for values in zip(*curves, strict=True)]


def _path(group: list[Row]) -> Path:
    row = group[0]
    parts = [
        "translation",
        row["dataset"],
        row["size"],
        row["max_words"],
        row["max_tokens"],
        row["epochs"],
        row["device"],
    ]
    return RESULTS / f"{'-'.join(str(part) for part in parts)}.png"
