from __future__ import annotations

from dataclasses import asdict, replace

from benchmarks.common.rows import append_row
from benchmarks.common.runs import claimed, finished
from benchmarks.images.__main__ import TEMPLATE


def test_a_job_is_claimed_once_and_again_when_its_claim_ended(tmp_path):
    job = TEMPLATE
    with claimed(job, tmp_path) as mine, claimed(job, tmp_path) as again:
        assert mine
        assert not again
    with claimed(job, tmp_path) as mine, claimed(replace(job, seed=7), tmp_path) as other:
        assert mine
        assert other


def test_what_has_its_row_is_not_run_again(tmp_path):
    job = replace(TEMPLATE, seed=3)
    append_row("images", {**asdict(job), "accuracy": 0.5}, tmp_path)
    assert finished("images", tmp_path, type(job))[job]["accuracy"] == 0.5
