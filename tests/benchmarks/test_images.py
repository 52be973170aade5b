from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from benchmarks.common import accuracy_report, rows
from benchmarks.images import __main__ as command
from benchmarks.images import data as image_data
from benchmarks.images import report as image_report
from benchmarks.images import runs as image_runs


def test_held_out_images_are_not_trained_on_while_rates_are_chosen(tmp_path):
    train, held_out = image_data.load_images("digits", tmp_path, choosing=True)
    whole, test = image_data.load_images("digits", tmp_path, choosing=False)
    assert len(train.labels) + len(held_out.labels) == len(whole.labels)
    assert len(whole.labels) + len(test.labels) == 1797
    everything = torch.cat([train.images, held_out.images]).flatten(1)
    assert torch.equal(everything.sum(0), whole.images.flatten(1).sum(0))


def test_a_fifth_of_noisy_labels_is_wrong():
    labels = image_data._with_noise(torch.arange(10_000).numpy() % 10, np.random.default_rng(0))
    assert (labels != torch.arange(10_000).numpy() % 10).mean() == pytest.approx(0.2, abs=0.01)


def test_tables_are_those_of_the_rows(tmp_path, monkeypatch):
    figures = {
        ("full", 0): (0.80, 100),
        ("full", 1): (0.82, 100),
        ("uniform", 0): (0.79, 60),
        ("uniform", 1): (0.80, 60),
    }
    for (method, seed), (accuracy, updates) in figures.items():
        job = replace(
            command.TEMPLATE, dataset="digits", method=method, seed=seed, budget=1.0 if method == "full" else 0.6
        )
        curve = [[updates // 2, accuracy - 0.1], [updates, accuracy]]
        out = {"accuracy": accuracy, "updates": updates, "seconds": 3.0, "curve": curve, "train_instances": 1437}
        rows.append_row("images", {**asdict(job), **out}, tmp_path)
    monkeypatch.setattr(accuracy_report, "rows_of", lambda name: rows.rows_of(name, tmp_path))
    monkeypatch.setattr(accuracy_report, "RESULTS", tmp_path)
    table = image_report.image_tables()
    assert "| full run | 100 | - | 81.00 ± 1.00 | - | 3 | 2 | 0.1 |" in table
    assert "| uniform, budget 0.6 | 60 | 40% | 79.50 ± 0.50 | -1.50 ± 0.50 | 3 | 2 | 0.1 |" in table
    summary = accuracy_report.summary_table([image_report.IMAGES])
    assert "| digits, small residual network | 0.6 | 81.00 ± 1.00 | - | - | - | - | -1.50 ± 0.50 |" in summary
    assert accuracy_report.stale_curves(image_report.IMAGES) == ["images-digits-24-cpu.png"]
    accuracy_report.write_curves(image_report.IMAGES)
    assert accuracy_report.stale_curves(image_report.IMAGES) == []
    first = json.loads((tmp_path / "images.jsonl").read_text().splitlines()[0])
    rows.append_row("images", {**first, "seed": 2}, tmp_path)
    assert accuracy_report.stale_curves(image_report.IMAGES) == ["images-digits-24-cpu.png"]


def test_every_model_has_a_title():
    assert image_report.MODEL_TITLES.keys() == image_runs.MODELS.keys()


def test_what_the_command_line_says_reaches_the_jobs(monkeypatch):
    options = "--dataset digits --budget 0.25 --policy uniform --epochs 3 --augment --seeds 2 --grid 0.1 0.3"
    monkeypatch.setattr("sys.argv", ["images.py", *options.split()])
    plan = command.plan_of(command.parse())
    assert plan.stages == (("digits", 0.25),)
    assert (plan.methods, plan.seeds, plan.grid, plan.rates_from) == (("uniform",), (0, 1), (0.1, 0.3), None)
    assert plan.template == replace(command.TEMPLATE, epochs=3, augment=True)


def test_the_long_tail_has_a_sampler_by_class_beside_the_policies(monkeypatch):
    monkeypatch.setattr("sys.argv", ["images.py", "--epochs", "3"])
    chain = command.plan_of(command.parse())
    assert [part.stages[0] for part in chain.parts] == list(command.STAGES)
    methods = {part.stages[0][0]: part.methods for part in chain.parts}
    assert methods["fashion-mnist"] == methods["label-noise"] == command.METHODS
    assert methods["long-tail"] == (*command.METHODS, "class_balanced_sampler")


def test_the_sampler_by_class_trains_on_images(tmp_path):
    train, held_out = image_data.load_images("digits", tmp_path, choosing=True)
    job = replace(
        command.TEMPLATE, dataset="digits", method="class_balanced_sampler", budget=0.6, epochs=4, batch_size=64
    )
    row = image_runs.run_job(job, train, held_out)
    assert row["instances_loaded"] == row["updates"] * 64
    assert row["accuracy"] > 0.5
