"""Writes the tables of README.md, docs/results.md, benchmarks/results/README.md and docs/compatibility.md, and curves.

python -m benchmarks.report            # rewrites them and the PNGs
python -m benchmarks.report --check    # exits with 1 where they are not what the rows say
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path

from benchmarks.advice.report import advice_table
from benchmarks.common.accuracy_report import stale_curves, summary_table, write_curves
from benchmarks.common.rows import RESULTS
from benchmarks.cost.report import overhead_table, scale_table, wall_clock_table
from benchmarks.demo.report import demo_table
from benchmarks.gauss_newton.report import (
    assistant_table,
    losses_table,
    stale_newton_picture,
    steps_table,
    training_table,
    write_newton_picture,
)
from benchmarks.gpu.report import gpu_line, gpu_tables
from benchmarks.hours import hours_table
from benchmarks.images.report import IMAGES, image_tables
from benchmarks.kfac.report import kfac_tables
from benchmarks.label_errors.report import label_error_table
from benchmarks.linear_svm.report import stale_svm_curves, svm_tables, write_svm_curves
from benchmarks.local_learning.report import local_tables, stale_local_picture, write_local_picture
from benchmarks.outside.report import PAGE, is_stale, write_page
from benchmarks.pays_box import pays_box
from benchmarks.peers.report import peers_table
from benchmarks.rare_events.report import (
    headline_table,
    long_table,
    rare_tables,
    stale_rare_picture,
    write_rare_picture,
)
from benchmarks.text.report import TEXTS, text_tables
from benchmarks.translation.report import stale_translation_curves, translation_tables, write_translation_curves

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    RESULTS / "README.md",
    *(
        DOCS / f"{name}.md"
        for name in ("results", "does-it-pay", "other-ways", "instances", "kfac", "gauss_newton", "local_learning")
    ),
)
ACCURACIES = (IMAGES, TEXTS)


def accuracies() -> str:
    """All accuracies in one table."""
    return summary_table(ACCURACIES)


def short_accuracies() -> str:
    """The accuracies of images at budget 0.6."""
    return summary_table((IMAGES,), only_budget=0.6)


TABLES = {
    "hours": hours_table,
    "accuracies": accuracies,
    "short_accuracies": short_accuracies,
    "advice": advice_table,
    "pays_box": pays_box,
    "rare_events_headline": headline_table,
    "rare_events_long": long_table,
    "rare_events": rare_tables,
    "images": image_tables,
    "text": text_tables,
    "translation": translation_tables,
    "peers": peers_table,
    "wall_clock": wall_clock_table,
    "label_errors": label_error_table,
    "linear_svm": svm_tables,
    "kfac": kfac_tables,
    "local_learning": local_tables,
    "demo": demo_table,
    "overhead": overhead_table,
    "scale": scale_table,
    "gpu": gpu_tables,
    "gpu_line": gpu_line,
    "gauss_newton_training": training_table,
    "gauss_newton_losses": losses_table,
    "gauss_newton_steps": steps_table,
    "gauss_newton_assistant": assistant_table,
}


def rewritten(page: Path, text: str) -> str:
    """The text of a page, every table between its markers made anew; links to pictures lead there from the page."""
    pictures = os.path.relpath(RESULTS, page.parent)
    for name, table in TABLES.items():
        block = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        body = table().replace("](benchmarks/results/", f"]({pictures}/")
        text = block.sub(lambda match, body=body: f"{match[1]}{body}\n{match[2]}", text)
    return text


def main() -> None:
    """Rewrite or check the pages and the curves."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    before = {page: page.read_text() for page in PAGES}
    after = {page: rewritten(page, text) for page, text in before.items()}
    if check:
        stale = [curve for benchmark in ACCURACIES for curve in stale_curves(benchmark)]
        stale += [*stale_svm_curves(), *stale_translation_curves(), *stale_rare_picture(), *stale_newton_picture()]
        stale += stale_local_picture()
        stale += [str(page.relative_to(ROOT)) for page in PAGES if after[page] != before[page]]
        stale += [str(PAGE.relative_to(ROOT))] if is_stale() else []
        sys.exit(f"{', '.join(stale)} differ from the rows: run python -m benchmarks.report" if stale else 0)
    for page, text in after.items():
        page.write_text(text)
    for benchmark in ACCURACIES:
        write_curves(benchmark)
    write_svm_curves()
    write_translation_curves()
    write_local_picture()
    write_rare_picture()
    write_newton_picture()
    write_page()


if __name__ == "__main__":
    main()
