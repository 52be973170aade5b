from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, replace

import pytest
import torch

from lightning_autoassist import POLICIES
from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
MODULES = ("rows", "runs", "image_data", "image_runs", "images", "accuracy_report", "image_report")


@pytest.fixture
def benchmark(monkeypatch):
    """The benchmark's modules, which find each other as scripts in one folder do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


def finish_all(plan, accuracy):
    """Go through a plan's jobs as a runner does, with accuracies made up."""
    rows, order = {}, []
    while True:
        job = next((job for job in plan.jobs(rows) if job is not None and job not in rows), None)
        if job is None:
            return order
        rows[job] = {"accuracy": accuracy(job)}
        order.append(job)


def plan_of(images, **changes):
    settings = {
        "stages": (("digits", 0.6), ("digits", 0.4)),
        "methods": ("full", "uniform"),
        "seeds": (0, 1),
        "grid": (0.1, 0.2, 0.4),
        "rates_from": None,
        "template": images.TEMPLATE,
    }
    return images.Plan(**{**settings, **changes})


def test_final_runs_use_the_rate_that_was_best_on_the_held_out_images(benchmark):
    best = {("full", 1.0): 0.4, ("uniform", 0.6): 0.2, ("uniform", 0.4): 0.4}
    order = finish_all(plan_of(benchmark["images"]), lambda job: -abs(job.learning_rate - best[job.method, job.budget]))
    finals = [job for job in order if job.phase == "final"]
    assert {(job.method, job.budget): job.learning_rate for job in finals} == best
    assert len(finals) == 2 + 2 + 2
    tuned = [(job.method, job.budget, job.learning_rate) for job in order if job.phase == "tune"]
    assert sorted(tuned) == sorted(
        [("full", 1.0, rate) for rate in (0.1, 0.2, 0.4)]
        + [("uniform", 0.6, rate) for rate in (0.1, 0.2, 0.4)]
        + [("uniform", 0.4, rate) for rate in (0.1, 0.2, 0.4)]  # half, same and double of what was best at 0.6
    )


def test_rates_may_come_from_another_data_set(benchmark):
    plan = plan_of(benchmark["images"], stages=(("label-noise", 0.6),), rates_from="digits")
    order = finish_all(plan, lambda job: job.learning_rate)
    assert {job.dataset for job in order if job.phase == "tune"} == {"digits"}
    assert {(job.dataset, job.learning_rate) for job in order if job.phase == "final"} == {("label-noise", 0.4)}


def test_a_job_is_claimed_once_and_again_when_its_claim_ended(benchmark, tmp_path):
    claimed, job = benchmark["runs"].claimed, benchmark["images"].TEMPLATE
    with claimed(job, tmp_path) as mine, claimed(job, tmp_path) as again:
        assert mine
        assert not again
    with claimed(job, tmp_path) as mine, claimed(replace(job, seed=7), tmp_path) as other:
        assert mine
        assert other


def test_what_has_its_row_is_not_run_again(benchmark, tmp_path):
    images, rows = benchmark["images"], benchmark["rows"]
    job = replace(images.TEMPLATE, seed=3)
    rows.append_row("images", {**asdict(job), "accuracy": 0.5}, tmp_path)
    assert benchmark["runs"].finished("images", tmp_path, type(job))[job]["accuracy"] == 0.5


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_a_method_with_options(benchmark, name):
    callback = benchmark["runs"].Method(f"{name}:weights=mean,tail=0.25,assistant=hybrid").callback()
    assert isinstance(callback.policy, POLICIES[name])
    assert (callback.weights, callback.tail, type(callback.assistant).__name__) == ("mean", 0.25, "HybridAssistant")


def test_options_of_a_policy_reach_it(benchmark):
    method = benchmark["runs"].Method
    assert method("proportional:cap_quantile=0.9").callback().policy.cap_quantile == 0.9
    assert method("full").callback() is None
    with pytest.raises(ValueError, match="a method is one of full, autoassist"):
        method("best")


def test_held_out_images_are_not_trained_on_while_rates_are_chosen(benchmark, tmp_path):
    load_images = benchmark["image_data"].load_images
    train, held_out = load_images("digits", tmp_path, choosing=True)
    whole, test = load_images("digits", tmp_path, choosing=False)
    assert len(train.labels) + len(held_out.labels) == len(whole.labels)
    assert len(whole.labels) + len(test.labels) == 1797
    everything = torch.cat([train.images, held_out.images]).flatten(1)
    assert torch.equal(everything.sum(0), whole.images.flatten(1).sum(0))


def test_a_fifth_of_noisy_labels_is_wrong(benchmark):
    data = benchmark["image_data"]
    labels = data._with_noise(torch.arange(10_000).numpy() % 10, data.np.random.default_rng(0))
    assert (labels != torch.arange(10_000).numpy() % 10).mean() == pytest.approx(0.2, abs=0.01)


def test_tables_are_those_of_the_rows(benchmark, tmp_path, monkeypatch):
    report, rows, template = benchmark["accuracy_report"], benchmark["rows"], benchmark["images"].TEMPLATE
    images = benchmark["image_report"]
    figures = {
        ("full", 0): (0.80, 100),
        ("full", 1): (0.82, 100),
        ("uniform", 0): (0.79, 60),
        ("uniform", 1): (0.80, 60),
    }
    for (method, seed), (accuracy, updates) in figures.items():
        job = replace(template, dataset="digits", method=method, seed=seed, budget=1.0 if method == "full" else 0.6)
        curve = [[updates // 2, accuracy - 0.1], [updates, accuracy]]
        out = {"accuracy": accuracy, "updates": updates, "seconds": 3.0, "curve": curve, "train_instances": 1437}
        rows.append_row("images", {**asdict(job), **out}, tmp_path)
    monkeypatch.setattr(report, "rows_of", lambda name: rows.rows_of(name, tmp_path))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    table = images.image_tables()
    assert "| full run | 100 | - | 81.00 ± 1.00 | - | 3 | 2 | 0.1 |" in table
    assert "| uniform, budget 0.6 | 60 | 40% | 79.50 ± 0.50 | -1.50 ± 0.50 | 3 | 2 | 0.1 |" in table
    summary = report.summary_table([images.IMAGES])
    assert "| digits, small residual network | 0.6 | 81.00 ± 1.00 | - | - | - | -1.50 ± 0.50 |" in summary
    assert report.stale_curves(images.IMAGES) == ["images-digits-24-cpu.png"]
    report.write_curves(images.IMAGES)
    assert report.stale_curves(images.IMAGES) == []
    first = json.loads((tmp_path / "images.jsonl").read_text().splitlines()[0])
    rows.append_row("images", {**first, "seed": 2}, tmp_path)
    assert report.stale_curves(images.IMAGES) == ["images-digits-24-cpu.png"]


def test_a_table_names_commands_without_what_only_chooses_among_their_runs(benchmark):
    measured_on = benchmark["accuracy_report"].measured_on
    on = {"hardware": "a machine", "versions": {"torch": "2.9"}}
    commands = [
        "python benchmarks/images.py --augment --seeds 3 --policy full --policy proportional:floor=0.1 --threads 2",
        "python benchmarks/images.py --dataset digits --augment --threads 2 --budget 0.4",
    ]
    said = measured_on([{**on, "command": command} for command in commands])
    assert said == "Measured on a machine; torch 2.9, by `python benchmarks/images.py --augment --threads 2`."


def test_every_model_has_a_title(benchmark):
    assert benchmark["image_report"].MODEL_TITLES.keys() == benchmark["image_runs"].MODELS.keys()


def test_what_the_command_line_says_reaches_the_jobs(benchmark, monkeypatch):
    images = benchmark["images"]
    options = "--dataset digits --budget 0.25 --policy uniform --epochs 3 --augment --seeds 2 --grid 0.1 0.3"
    monkeypatch.setattr("sys.argv", ["images.py", *options.split()])
    plan = images.plan_of(images.parse())
    assert plan.stages == (("digits", 0.25),)
    assert (plan.methods, plan.seeds, plan.grid, plan.rates_from) == (("uniform",), (0, 1), (0.1, 0.3), None)
    assert plan.template == replace(images.TEMPLATE, epochs=3, augment=True)
