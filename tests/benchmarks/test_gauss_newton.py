"""The benchmark of Gauss-Newton: its plan, its runs and its tables."""

import pytest

from benchmarks.common import rows as result_rows
from benchmarks.common.runs import finished
from benchmarks.gauss_newton import __main__ as command
from benchmarks.gauss_newton import report
from benchmarks.gauss_newton.assistant import AssistantPlan, run_assistant
from benchmarks.gauss_newton.runs import NewtonJob, run_job, seconds_to
from tests.helpers.plans import finish_all


def test_settings_are_chosen_by_the_seconds_to_the_best_adams_error():
    def outcome(job):
        if job.method == "adamw":
            return {"train_error": abs(job.setting - 3e-3) + 0.1}
        seconds = 1.0 if (job.method, job.setting, job.n) == ("constant", 0.1, 350) else 2.0
        return {"train_error": 0.05, "curve": [(1, 0.5, 0.5), (2, seconds, 0.1)]}

    order = finish_all(command.NewtonPlan(("digits",), (0, 1), with_steps=False), outcome)
    finals = [(job.method, job.setting, job.n, job.seed) for job in order if job.phase == "final"]
    best = [("adamw", 3e-3, 70), ("constant", 0.1, 350)]
    assert finals == [(*one, seed) for seed in (0, 1) for one in best]


def test_an_error_that_is_not_reached_has_no_seconds():
    row = {"curve": [(1, 0.5, 0.5), (2, 1.0, 0.1), (3, 1.5, 0.2)]}
    assert seconds_to(row, 0.1) == 1.0
    assert seconds_to(row, 0.05) is None


def test_a_training_that_is_plain_and_one_by_gauss_newton(tmp_path):
    jobs = [NewtonJob("final", "clouds", *method, 256, 0, 0) for method in (("adamw", 1e-2, 30), ("lm", 1e-2, 100))]
    for job in jobs:
        row = run_job(job, tmp_path)
        assert row["warnings"] == []
        assert row["curve"][-1][2] < row["curve"][0][2]
        assert row["updates"] == row["curve"][-1][0] == 3 * 300 / job.n
        result_rows.append_row("gauss_newton", row, tmp_path)
    assert list(finished("gauss_newton", tmp_path, NewtonJob)) == jobs


def made_up(phase, method, n, m, d, **values):
    return {"phase": phase, "dataset": "points", "method": method, "setting": 0.0, "n": n, "m": m, "d": d, **values}


def test_tables_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "rows_of", lambda name: result_rows.rows_of(name, tmp_path))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert "Not measured yet" in report.steps_table() + report.losses_table() + report.training_table()
    assert report.stale_newton_picture() == []
    for m in (1_024, 4_096):
        values = {"seconds": m / 1e5, "iterations": 8, "residual": 0.009, "seed": 0}
        result_rows.append_row("gauss_newton", made_up("step", "sketch", 256, m, 16, **values), tmp_path)
    assert "| sketch, conjugate gradients | 0.0102 (8) | 0.041 (8) | 1.00 | 1.00 |" in report.steps_table()
    assert report.stale_newton_picture() == ["gauss-newton-steps.png"]
    report.write_newton_picture()
    assert report.stale_newton_picture() == []
    loss = made_up("loss", "sketch", 256, 4_096, 64, seed=0, cg_iterations=[7, 9], largest_ratio=0.21)
    result_rows.append_row("gauss_newton", loss, tmp_path)
    assert "| 16 | sketch, conjugate gradients | 0.21 | 7 to 9 | 1 |" in report.losses_table()
    for method, error, seconds in (("adamw", 0.1, 4.0), ("lm", 0.05, 1.0)):
        values = {"seed": 0, "train_error": error, "seconds": seconds, "updates": 10, "test_accuracy": 0.9}
        row = {**made_up("final", method, 350, 256, 0), **values, "curve": [(10, seconds, error)], "dataset": "digits"}
        result_rows.append_row("gauss_newton", row, tmp_path)
    table = report.training_table()
    assert "Gauss-Newton, damping adapted from 0, batch 350 | 10 | 0.0500 | 1.00 | 0.25 | 90.0 | 1 |" in table
    assert "AdamW, lr 0, batch 350 | 10 | 0.1000 | 4.00 | 1 | 90.0 | 1 |" in table


def test_the_assistants_trainers_are_chosen_where_each_is_judged():
    """Adam at the end of its run, Gauss-Newton after a third of it."""

    def outcome(job):
        if job.method == "adam":
            return {"auroc": 1 - abs(job.setting - 3e-3), "auroc_third": job.setting}
        is_best = (job.method, job.setting) == ("gauss_newton:0.3", 0.1)
        return {"auroc": 0.6 - 0.1 * is_best, "auroc_third": 0.5 + 0.1 * is_best}

    order = finish_all(AssistantPlan(("digits",), (0, 1)), outcome)
    finals = [(job.method, job.setting, job.seed) for job in order if job.phase == "assistant_final"]
    assert finals == [(*one, seed) for seed in (0, 1) for one in (("adam", 3e-3), ("gauss_newton:0.3", 0.1))]
    assert [(job.method, job.setting) for job in order if job.phase == "assistant_time"] == [("gauss_newton:0.3", 0.1)]


def test_an_assistant_that_learns_to_rank_and_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "rows_of", lambda name: result_rows.rows_of(name, tmp_path))
    assert "Not measured yet" in report.assistant_table()
    jobs = [
        NewtonJob(f"assistant_{phase}", "clouds", "gauss_newton:0.3", 1e-2, 30, 32, 0, 0) for phase in ("final", "time")
    ]
    rows = [run_assistant(job, tmp_path) for job in jobs]
    for row in rows:
        result_rows.append_row("gauss_newton", row, tmp_path)
    assert list(finished("gauss_newton", tmp_path, NewtonJob)) == jobs
    assert rows[0]["auroc"] > 0.6
    assert len(rows[0]["curve"]) == 30
    line = f"damping 0.01, 0.3 of a step | {rows[0]['auroc_third']:.3f} | {rows[0]['auroc']:.3f} | "
    assert f"{line}{rows[1]['newton_ms']:.2f} | 1 |" in report.assistant_table()


def test_exponents_are_slopes():
    rows = [{"n": n, "seconds": 3.0 * n**1.5} for n in (100, 200, 400)]
    assert report.exponent(rows, "n") == pytest.approx(1.5)
