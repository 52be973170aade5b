from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.label_errors import __main__ as command
from benchmarks.label_errors import report
from benchmarks.label_errors.runs import STATISTICS, auroc, run_job
from lightning_autoassist.demo.data import DEFAULT_DATA_DIR

pytest.importorskip("sklearn")


def test_a_filtered_run_of_a_few_steps_ranks_wrong_labels_first():
    images, true_labels = command.wrong_labels(DEFAULT_DATA_DIR, "digits")
    is_wrong = images.labels.numpy() != true_labels
    assert is_wrong.mean() == pytest.approx(0.2, abs=0.03)
    job = replace(command.TEMPLATE, dataset="digits", epochs=5, batch_size=64)
    row = run_job(job, images, true_labels)
    assert row["auroc"].keys() == STATISTICS.keys()
    assert min(row["auroc"][name] for name in ("confidence", "area_under_margin")) > 0.9
    assert row["suggested_right"] > 0.6
    assert row["wrong_labels"] == is_wrong.sum()
    assert (row["runs"], row["warnings"]) == (1, [])


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    scores, is_wrong = rng.normal(size=50).round(1), rng.random(50) < 0.3
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[is_wrong] for b in scores[~is_wrong]]
    assert auroc(scores, is_wrong) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_the_statistic_is_chosen_on_the_seed_that_is_for_that():
    tune = {"phase": "tune", "auroc": {"loss_mean": 0.8, "confidence": 0.9}}
    final = {"phase": "final", "auroc": {"loss_mean": 0.99, "confidence": 0.9}}
    assert report.chosen_statistic([tune, final]) == "confidence"


def test_the_committed_rows_hold_what_the_page_says():
    rows = [row for row in report.rows_of("label_errors") if row["phase"] == "final"]
    ours = [row["auroc"]["confidence"] for row in rows if row["method"] == "prioritized"]
    assert len(ours) == 3
    assert min(ours) >= 0.97
