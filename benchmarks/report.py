"""Writes the tables of README.md and benchmarks/results/README.md, docs/compatibility.md, and curves, from the rows.

python benchmarks/report.py            # rewrites them and the PNGs
python benchmarks/report.py --check    # exits with 1 where they are not what the rows say
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from accuracy_report import stale_curves, summary_table, write_curves
from compatibility_report import PAGE, is_stale, write_page
from image_report import IMAGES, gpu_note, image_tables, wall_clock_table
from rows import RESULTS, rows_of
from svm_report import stale_svm_curves, svm_tables, write_svm_curves
from text_report import TEXTS, text_tables
from translation_report import stale_translation_curves, translation_tables, write_translation_curves

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", RESULTS / "README.md")
ACCURACIES = (IMAGES, TEXTS)


def accuracies() -> str:
    """All accuracies in one table."""
    return "\n\n".join(part for part in (summary_table(ACCURACIES), gpu_note()) if part)


def last_rows(name: str) -> list[dict[str, Any]]:
    """The newest row of each case in ``results/NAME.jsonl``."""
    return list({row["case"]: row for row in rows_of(name)}.values())


def overhead_table() -> str:
    """Milliseconds with and without the plug-in, and candidates a second."""
    rows = last_rows("overhead")
    lines = ["| | plain, ms | with AutoAssist, ms | added, ms | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        if "plain_ms" in row:
            name = f"training step, {row['case']}, batch {row['batch_size']}" if "batch_size" in row else row["case"]
            added = row.get("filtered_ms", row.get("captured_ms"))
            figures = f"{row['plain_ms']:.2f} | {added:.2f} | {row['added_ms']:+.2f} | {row['ratio']:.3f}"
            lines.append(f"| {name} | {figures} |")
    lines += ["", "| scoring, 256 features in half precision, one core | candidates a second |", "|---|---|"]
    for row in rows:
        lines += [f"| {name} | {row[name]:,} |" for name in row if name.startswith(("logistic", "remembered"))]
    assistants = [row for row in rows if "update_ms" in row]
    if assistants:
        lines += ["", "| one core, fastest of 200 | an update, ms | a candidate, us |", "|---|---|---|"]
        lines += [f"| {row['case']} | {row['update_ms']:.2f} | {row['predict_us']:.2f} |" for row in assistants]
    measured = sorted({f"{row['hardware']}; torch {row['versions']['torch']}" for row in rows})
    return "\n".join([*lines, "", f"Measured on {', '.join(measured)}. Medians of runs in turns with plain ones."])


def scale_table() -> str:
    """Memory, start-up, steps and the batch generator against the number of instances."""
    rows = last_rows("scale")
    lines = [
        "| | bytes an instance | resident | start-up, s | added to a step, ms "
        "| candidates a second, batches of 128 | of 1024 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        resident = row["resident_bytes_per_instance"] if row["case"].endswith("N=10000000") else None
        figures = [
            f"{row['bytes_per_instance']:.0f}",
            "" if resident is None else f"{resident:.0f}",
            f"{row['startup_s']:.2f}",
            f"{row['added_ms']:.2f}",
            f"{row['candidates_per_s_128']:,}",
            f"{row['candidates_per_s_1024']:,}",
        ]
        lines.append(f"| {row['case']} | {' | '.join(figures)} |")
    measured = sorted({f"{row['hardware']}; torch {row['versions']['torch']}" for row in rows})
    return "\n".join([*lines, "", f"Measured on {', '.join(measured)}."])


TABLES = {
    "accuracies": accuracies,
    "images": image_tables,
    "text": text_tables,
    "translation": translation_tables,
    "wall_clock": wall_clock_table,
    "linear_svm": svm_tables,
    "overhead": overhead_table,
    "scale": scale_table,
}


def rewritten(text: str) -> str:
    """``text`` with every table between its markers made anew."""
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        body = table()
        text = block.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text


def main() -> None:
    """Rewrite or check the pages and the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    before = {page: page.read_text() for page in PAGES}
    after = {page: rewritten(text) for page, text in before.items()}
    if check:
        stale = [curve for benchmark in ACCURACIES for curve in stale_curves(benchmark)]
        stale += [*stale_svm_curves(), *stale_translation_curves()]
        stale += [str(page.relative_to(ROOT)) for page in PAGES if after[page] != before[page]]
        stale += [str(PAGE.relative_to(ROOT))] if is_stale() else []
        sys.exit(f"{', '.join(stale)} differ from the rows: run python benchmarks/report.py" if stale else 0)
    for page, text in after.items():
        page.write_text(text)
    for benchmark in ACCURACIES:
        write_curves(benchmark)
    write_svm_curves()
    write_translation_curves()
    write_page()


if __name__ == "__main__":
    main()
