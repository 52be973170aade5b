"""Tables of what was measured on a GPU, from the rows of ``gpu.jsonl``; a line that says how, where there are none."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from benchmarks.common.accuracy_report import grouped, mean_of, measured_on, points_above, rates_of, with_error
from benchmarks.common.jobs import FULL
from benchmarks.common.rows import rows_of
from benchmarks.gpu.part import default_policy
from benchmarks.gpu.places import TABLE

Row = dict[str, Any]
COMMAND = "python -m benchmarks.gpu --minutes 11 --out DIR"
NONE = f"No GPU was at hand yet. On a machine with one, `{COMMAND}` measures all of it."
# The default policy, and the one that was it when the first rows were measured.
DEFAULTS = (default_policy(), "proportional")
# What filtering may add: to a step of ResNet-18 with B = 512, and to any other.
LARGEST_RATIO, LARGEST_MS = 1.02, 0.3


def gpu_rows(part: str, rows: list[Row] | None = None) -> list[Row]:
    """The rows of a part, measured on a GPU.

    Args:
        part: Its name.
        rows: All; None: those of the results.
    """
    rows = rows_of(TABLE) if rows is None else rows
    return [row for row in rows if row["part"] == part and row["device"] == "cuda" and not row["is_quick"]]


def gpu_line() -> str:
    """One line for the README."""
    every_cost = cost_of(gpu_rows("cost"))
    default = next((name for name in DEFAULTS if any(each["method"] == name for each in every_cost)), "")
    cost = [each for each in every_cost if each["method"] == default]
    large = [each for each in cost if each["batch_size"] == 512 and not each["is_compiled"]]
    if not large:
        return f"{NONE} The tests of what has to hold there run on the CPU meanwhile."
    least, most = (bound(each["added_ms"] for each in cost) for bound in (min, max))
    where = "; ".join(sorted({row["hardware"] for row in gpu_rows("cost")}))
    return (
        f"On {where} every test of `tests/gpu` passes. `{default}` adds {least:.1f} to {most:.1f} ms to a "
        f"step, all on the host, for which steps waited there: {large[0]['ratio'] - 1:.0%} of a step of ResNet-18 "
        f"with batches of 512, where {LARGEST_RATIO - 1:.0%} was the goal.{_accuracy_line()}"
    )


def _accuracy_line() -> str:
    """Accuracies of the large network at the higher budget, in a sentence."""
    final = [row for row in gpu_rows("accuracy") if row["case"] == "run" and row["phase"] == "final"]
    runs = [each for each in grouped(final, ("method", "budget")) if each[0]["budget"] in (1.0, 0.6)]
    if not runs:
        return ""
    reached = ", ".join(f"{each[0]['method']} {100 * mean_of(each, 'accuracy'):.1f} %" for each in runs)
    return f" ResNet-18 on Fashion-MNIST, {final[0]['epochs']} epochs, budget 0.6, {len(runs[0])} seeds: {reached}."


def gpu_tables() -> str:
    """All parts that there are rows of."""
    made = (table_of_tests(), cost_table(), accuracy_table(), translation_table())
    return "\n\n".join(table for table in made if table) or NONE


def table_of_tests(rows: list[Row] | None = None) -> str:
    """How the tests came out, the last time that each ran."""
    found = list({row["case"]: row for row in gpu_rows("tests", rows)}.values())
    if not found:
        return ""
    counts = Counter(row["outcome"] for row in found)
    total = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    failed = [f"- failed: `{row['case']}`" for row in found if row["outcome"] == "failed"]
    return "\n".join([f"**Tests of `tests/gpu`**: {total}.", *failed, "", measured_on(found)])


def cost_of(rows: list[Row]) -> list[Row]:
    """Medians over the rounds of each case and method, against plain runs of the same round."""
    found = []
    for group in grouped(rows, ("case", "batch_size", "is_compiled")):
        steps = [row for row in group if row.get("step_ms") is not None]
        work = {row["method"]: row for row in group if row.get("device_ms")}
        plain = {_round_of(row): row for row in steps if row["method"] == "plain"}
        for method in dict.fromkeys(row["method"] for row in steps):
            pairs = [
                (row, plain[_round_of(row)]) for row in steps if row["method"] == method and _round_of(row) in plain
            ]
            if pairs:
                found.append(_cost(pairs, work.get(method)))
    return found


def _round_of(row: Row) -> tuple[str, int]:
    return row["started"], row["round"]


def _cost(pairs: list[tuple[Row, Row]], work: Row | None) -> Row:
    first = pairs[0][0]
    step_ms = statistics.median(row["step_ms"] for row, _ in pairs)
    return {
        **{name: first[name] for name in ("case", "batch_size", "is_compiled", "method", "keep_rate")},
        "step_ms": step_ms,
        "added_ms": statistics.median(row["step_ms"] - plain["step_ms"] for row, plain in pairs),
        "ratio": statistics.median(row["step_ms"] / plain["step_ms"] for row, plain in pairs),
        "idle": None if work is None else max(0.0, 1 - work["device_ms"] / step_ms),
        "added_bytes": statistics.median((row["peak_bytes"] or 0) - (plain["peak_bytes"] or 0) for row, plain in pairs),
        "rounds": len(pairs),
    }


def cost_table(rows: list[Row] | None = None) -> str:
    """Milliseconds of a step and what filtering adds, with the goal."""
    found = gpu_rows("cost", rows)
    cost = cost_of(found)
    if not cost:
        return ""
    lines = [
        "| step | method | ms | added, ms | ratio | device idle | added MiB | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in cost:
        compiled = ", compiled" if each["is_compiled"] else ""
        is_plain = each["method"] == "plain"
        idle = "-" if each["idle"] is None else f"{each['idle']:.0%}"
        added = "- | -" if is_plain else f"{each['added_ms']:+.3f} | {each['ratio']:.3f}"
        memory = "-" if is_plain else f"{each['added_bytes'] / 2**20:+.1f}"
        name = f"{each['case']}, B={each['batch_size']}{compiled}"
        reached = "-" if is_plain else _goal(each)
        lines.append(f"| {name} | {each['method']} | {each['step_ms']:.3f} | {added} | {idle} | {memory} | {reached} |")
    rounds = min(each["rounds"] for each in cost)
    goal = (
        f"The goal: at most {LARGEST_RATIO - 1:.0%} of a step of ResNet-18 with B=512, at most {LARGEST_MS} ms else. "
        f"Medians of {rounds} rounds or more in turns with plain runs."
    )
    return "\n".join([*lines, "", f"{measured_on(found)} {goal}"])


def _goal(each: Row) -> str:
    if each["case"].startswith("ResNet") and each["batch_size"] == 512:
        return "reached" if each["ratio"] <= LARGEST_RATIO else "missed"
    return "reached" if each["added_ms"] <= LARGEST_MS else "missed"


def accuracy_table(rows: list[Row] | None = None) -> str:
    """Accuracy and seconds of each method and budget; one table for each number of training images."""
    final = [row for row in gpu_rows("accuracy", rows) if row["case"] == "run" and row["phase"] == "final"]
    tables = [_accuracy(group) for group in grouped(final, ("instances", "epochs", "batch_size"))]
    return "\n\n".join(tables)


def _accuracy(group: list[Row]) -> str:
    full = {row["seed"]: row for row in group if row["method"] == FULL}
    row = group[0]
    lines = [
        f"**Fashion-MNIST at {row['image_size']}x{row['image_size']}, {row['train_instances']:,} images, ResNet-18, "
        f"{row['precision']}, batch {row['batch_size']}, {row['epochs']} epochs, flips and shifts**",
        "",
        "| method | optimizer steps | test accuracy, % | against the full run | seconds | share | seeds | rate |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for runs in grouped(sorted(group, key=lambda row: -row["budget"]), ("method", "budget")):
        first, is_full = runs[0], runs[0]["method"] == FULL
        name = "full run" if is_full else f"{first['method']}, budget {first['budget']:g}"
        against = points_above(runs, full)
        shares = [one["seconds"] / full[one["seed"]]["seconds"] for one in runs if one["seed"] in full]
        share = f"{statistics.mean(shares):.2f}" if shares and not is_full else "-"
        accuracy = with_error([100 * one["accuracy"] for one in runs])
        cells = [name, f"{first['updates']:,}", accuracy, against, f"{mean_of(runs, 'seconds'):.1f}", share]
        lines.append(f"| {' | '.join(cells)} | {len(runs)} | {rates_of(runs)} |")
    processes = max(one.get("processes", 1) for one in group)
    shared = f" {processes} runs shared the device at a time." if processes > 1 else ""
    return "\n".join([*lines, "", measured_on(group) + shared])


def translation_table(rows: list[Row] | None = None) -> str:
    """BLEU and seconds of the runs."""
    found = [row for row in gpu_rows("translation", rows) if row["case"] == "run"]
    if not found:
        return ""
    row = found[0]
    lines = [
        f"**English to German, {row['train_instances']:,} pairs, Transformer of {row['parameters'] / 1e6:.0f} million "
        f"parameters, {row['max_tokens']:,} tokens a batch**",
        "",
        "| method | epochs | optimizer steps | BLEU, greedy | BLEU, beam 5 | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        name = "full run" if row["method"] == FULL else f"{row['method']}, budget {row['budget']:g}"
        quality = f"{row['greedy_bleu']:.1f} | {row['beam_bleu']:.1f}"
        lines.append(f"| {name} | {row['epochs']} | {row['updates']:,} | {quality} | {row['seconds']:.1f} |")
    return "\n".join([*lines, "", f"{measured_on(found)} One seed."])
