"""The demo's rates are those that its rows choose, and its rows say what the demo claims."""

import json
import statistics
from dataclasses import asdict, replace

import pytest

from benchmarks.common.jobs import FULL, Job
from benchmarks.common.rows import RESULTS
from benchmarks.common.runs import finished
from benchmarks.demo.report import above_uniform, demo_table, final_rows
from benchmarks.demo.runs import PLAN, SETTINGS, TABLE, run_job
from lightning_autoassist.demo.settings import DEFAULT_POLICY, UNIFORM


@pytest.mark.parametrize("method", PLAN.methods)
def test_the_demos_rates_are_the_best_on_held_out_digits(method):
    assert SETTINGS.learning_rates[method] == PLAN.best_rate(finished(TABLE, RESULTS, Job), method)


def test_nothing_of_the_plan_is_left():
    rows = finished(TABLE, RESULTS, Job)
    assert all(job in rows for job in PLAN.jobs(rows))
    assert {row["warnings"] == [] for row in rows.values()} == {True}


def test_the_default_is_above_the_shortened_schedule_by_more_than_the_standard_error():
    groups = final_rows()
    above = above_uniform(groups[DEFAULT_POLICY], groups[UNIFORM])
    assert len(above) == 10
    assert statistics.mean(above) > statistics.stdev(above) / len(above) ** 0.5
    assert DEFAULT_POLICY in demo_table()


def test_rates_at_an_edge_of_the_grid_let_it_go_on():
    plan = replace(PLAN, methods=(UNIFORM,), grid=(0.1, 0.2, 0.4), tune_seeds=(0,), seeds=(5,))
    jobs = [job for job in plan.jobs({}) if job is not None]
    assert [job.learning_rate for job in jobs] == [0.1, 0.2, 0.4]
    rows = {job: {"accuracy": job.learning_rate} for job in jobs}
    (beyond,) = [job for job in plan.jobs(rows) if job is not None and job not in rows]
    assert (beyond.phase, beyond.learning_rate) == ("tune", 0.8)
    rows[beyond] = {"accuracy": 0.0}
    (final,) = [job for job in plan.jobs(rows) if job is not None and job not in rows]
    assert (final.phase, final.learning_rate, final.seed) == ("final", 0.4, 5)


def test_a_row_says_what_was_run():
    job = replace(PLAN.template, method=FULL, epochs=2)
    row = json.loads(json.dumps(run_job(job)))
    assert Job(**{name: row[name] for name in asdict(job)}) == job
    assert (row["updates"], row["train_instances"], row["held_out_instances"]) == (24, 377, 400)
    assert row["curve"][-1] == [24, row["accuracy"]]
