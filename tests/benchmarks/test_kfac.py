"""The plan of K-FAC's benchmark, and its table."""

from __future__ import annotations

from benchmarks.kfac.__main__ import KFACPlan
from benchmarks.kfac.report import share_of_reference


def test_final_runs_wait_for_their_methods_grid_and_take_its_best():
    plan = KFACPlan(("digits",), (0, 1))
    jobs = list(plan.jobs({}))
    tuning, final = jobs[:4], jobs[4:]
    assert [job.phase for job in tuning] == ["tune"] * 4
    assert final == [None] * 8
    rows = {job: {"score": 0.5} for job in tuning}
    final = list(plan.jobs(rows))[4:]
    assert [(job.method, job.seed) for job in final] == [
        (method, seed) for seed in (0, 1) for method in ("sgd", "adamw", "kfac", "kaisa")
    ]


def test_a_run_that_diverged_is_not_chosen():
    plan = KFACPlan(("mlp",), (0,))
    tuning = [job for job in plan.jobs({}) if job is not None]
    rows = {job: {"score": float("nan")} for job in tuning}
    best = next(job for job in tuning if job.method == "kfac" and job.damping == 0.1)
    rows[best] = {"score": 0.2}
    chosen = next(job for job in plan.jobs(rows) if job is not None and job.phase == "final" and job.method == "kfac")
    assert (chosen.learning_rate, chosen.damping) == (best.learning_rate, best.damping)


def test_shares_are_those_of_the_first_point_that_is_as_good():
    reference = {"score": 0.8, "updates": 100, "cpu_seconds": 10.0}
    row = {"curve": [(20, 0.5), (40, 0.8), (60, 0.9)], "curve_cpu_seconds": [4.0, 8.0, 12.0]}
    assert share_of_reference(row, reference) == (0.4, 0.8)
    assert share_of_reference({"curve": [(20, 0.5)], "curve_cpu_seconds": [4.0]}, reference) is None
