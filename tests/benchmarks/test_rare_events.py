from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from benchmarks.common import rows
from benchmarks.common.jobs import CONTROLS, Method
from benchmarks.rare_events import __main__ as command
from benchmarks.rare_events import plans, report
from benchmarks.rare_events.data import load_events
from benchmarks.rare_events.runs import RareEventModule, RareJob, run_job
from lightning_autoassist.demo.rare_events import event_net

JOB = replace(plans.TEMPLATE, dataset="made", epochs=6, batch_size=64, width=16, learning_rate=0.1)


def write_wheel(folder, num_rows):
    rng = np.random.default_rng(0)
    lines = [f"{rng.integers(9)},{rng.integers(9)},{rng.integers(1, 8)}" for _ in range(num_rows)]
    with zipfile.ZipFile(folder / "scikit_multiflow-0.4.1-cp37-cp37m-any.whl", "w") as wheel:
        wheel.writestr("skmultiflow/data/datasets/covtype.csv", "\n".join(["a,b,Cover_Type", *lines]) + "\n")


def test_the_training_rows_are_the_same_in_both_phases_and_apart_from_what_is_measured_on(tmp_path):
    write_wheel(tmp_path, 5810)
    chosen, final = (load_events("covtype-5", tmp_path, choosing=choosing) for choosing in (True, False))
    assert torch.equal(chosen.train.features, final.train.features)
    assert [len(split.labels) for split in (final.train, chosen.held_out, final.held_out)] == [4000, 400, 1410]
    torch.testing.assert_close(final.train.features.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(final.train.features.std(0, correction=0), torch.ones(2))
    share = torch.cat([final.train.labels, chosen.held_out.labels, final.held_out.labels]).float().mean()
    classes = np.load(tmp_path / "covtype.npy")[:, -1]
    assert share.item() == pytest.approx((classes == 5).mean())


@pytest.mark.parametrize("method", ["full", *CONTROLS, "proportional", plans.PRIORITIZED])
def test_a_run_says_what_it_was_and_learns(method, tmp_path):
    job = replace(JOB, method=method, budget=1.0 if method == "full" else 0.6)
    split = load_events("made", tmp_path, choosing=False)
    row = json.loads(json.dumps(run_job(job, split)))
    assert RareJob(**{name: row[name] for name in asdict(job)}) == job
    assert row["warnings"] == []
    assert row["average_precision"] > 0.6
    assert row["roc_auc"] > 0.9
    assert row["instances_loaded"] == pytest.approx(row["updates"] * 64, rel=0.1)
    assert row["updates"] == 6 * (26 if method == "full" else 16)


def test_average_precision_is_sklearns(tmp_path):
    torch.manual_seed(0)
    held_out = load_events("made", tmp_path, choosing=False).held_out
    module = RareEventModule(event_net(10, 8), 0.1).eval()
    module.validation_step(tuple(held_out), 0)
    measured = float(module.metrics.compute()["average_precision"])
    logits = module(held_out.features).detach()
    scores = (logits[:, 1] - logits[:, 0]).numpy()
    assert measured == pytest.approx(average_precision_score(held_out.labels.numpy(), scores), abs=1e-6)


@pytest.mark.parametrize("name", ["core", "long", "text", "whole"])
def test_every_method_of_a_plan_can_be_made(name):
    for plan in plans.PLANS[name]().parts:
        assert len({Method(method).spec for method in plan.methods}) == len(plan.methods)


def test_costs_are_of_as_many_steps_of_each_method():
    jobs = list(plans.CostPlan().jobs({}))
    assert {job.method for job in jobs} == set(plans.COSTED)
    assert {job.epochs * job.budget for job in jobs} == {1.0}
    assert len(jobs) == len(set(jobs)) == 2 * 2 * 6


def test_without_the_data_the_command_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("sys.argv", ["benchmarks.rare_events", "--data-dir", str(tmp_path / "data")])
    with pytest.raises(SystemExit, match=r"no covtype-5: covtype is read from the wheel of scikit-multiflow==0.4.1"):
        command.main()


def test_tables_and_the_picture_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.rare_tables() == report.headline_table() == report.NOT_MEASURED
    for method, budget, value in (("full", 1.0, 0.8), ("uniform", 0.25, 0.7), (plans.PRIORITIZED, 0.25, 0.9)):
        write_row(tmp_path, method, budget, value)
    assert report.stale_rare_picture() == []  # there is none before all that it shows was measured
    write_row(tmp_path, "class_balanced_sampler", 0.25, 0.85)
    table = report.rare_tables()
    assert (
        "| class-balanced sampler | 0.25 | 25 | 85.00 | +5.00 | 99.00 | 98.00 | 1.00 | 10 | 0.25 | 1 | 0.1 |" in table
    )
    assert "1.6% positives | 0.25 | 80.00 | 70.00 | 85.00 | - | 90.00 | - |" in report.headline_table()
    assert report.stale_rare_picture() == ["rare_events.svg"]
    report.write_rare_picture()
    assert report.stale_rare_picture() == []
    for method, epochs in (("full", 1), ("uniform", 4)):
        write_row(tmp_path, method, 1 / epochs, 0.5, phase="cost", epochs=epochs, cpu_seconds=epochs)
    assert "| 128 | uniform | 160.00 | 1.00 |" in report.rare_tables()
    drawn = (tmp_path / "rare_events.svg").read_bytes()
    report.write_rare_picture()
    assert (tmp_path / "rare_events.svg").read_bytes() == drawn


def test_long_runs_stand_beside_the_shortest_run_that_comes_to_the_longest(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    write_row(tmp_path, "full", 1.0, 0.80)
    assert report.long_table() == "Not measured yet: `python -m benchmarks.rare_events --plan long`."
    write_row(tmp_path, "full", 1.0, 0.90, epochs=48, updates=400)
    for budget, epochs, value, updates in ((0.1, 12, 0.89, 10), (0.25, 12, 0.91, 25), (0.25, 48, 0.95, 100)):
        write_row(tmp_path, plans.PRIORITIZED, budget, value, epochs=epochs, updates=updates)
    for epochs, value in ((12, 0.7), (48, 0.85)):
        write_row(tmp_path, "uniform", 0.25, value, epochs=epochs)
    lines = report.long_table().splitlines()
    assert lines[2:4] == [
        "| full run | 12 | 1 | 100 | 80.00 | 40 | 1 |",
        "| full run | 48 | 1 | 400 | 90.00 | 40 | 1 |",
    ]
    assert "| prioritized, keep rate 0.1 | 12 | 0.25 | 25 | 91.00 | 10 | 1 |" in lines
    assert "| uniform: not reached | 48 | 0.25 | 25 | 85.00 | 10 | 1 |" in lines


def write_row(folder, method, budget, value, phase="final", epochs=12, **figures):
    job = replace(plans.TEMPLATE, phase=phase, method=method, budget=budget, epochs=epochs, learning_rate=0.1)
    out = {
        "average_precision": value,
        "roc_auc": 0.99,
        "accuracy": 0.98,
        "calibration_error": 0.01,
        "updates": round(100 * budget),
        "cpu_seconds": 40 * budget,
        "curve": [[round(50 * budget), value - 0.1], [round(100 * budget), value]],
        "train_instances": 1000,
        "train_positives": 16,
        "held_out_instances": 100,
        "held_out_positives": 2,
    }
    rows.append_row("rare_events", {**asdict(job), **out, **figures}, folder)
