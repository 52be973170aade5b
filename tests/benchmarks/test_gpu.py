"""The benchmark for GPUs: its plan ends in time whatever its parts do; its tables say what rows say."""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.common.rows import provenance, rows_of
from benchmarks.gpu import report
from benchmarks.gpu.__main__ import Run, Share
from benchmarks.gpu.accuracy import SIZES, best_rates, fitted, plan_of
from benchmarks.gpu.data import DeviceData, OnDevice, augmented
from benchmarks.gpu.pack import check_size
from benchmarks.gpu.part import Part
from tests.helpers.processes import has_ended

HANGING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


def test_a_part_that_fails_or_hangs_costs_the_others_nothing(tmp_path):
    """What a part has started ends with it."""
    pid_file = tmp_path / "pid"
    codes = {
        "crashes": "import os; os.kill(os.getpid(), 11)",
        "hangs": HANGING,
        "fails": "raise SystemExit('no')",
        "is well": "print('here')",
    }

    def command(name, *args):
        return [sys.executable, "-c", codes[name], str(pid_file)]

    args = argparse.Namespace(device="cpu", out=tmp_path, data_dir=tmp_path, quick=False, minutes=0.5)
    run = Run(args, None, command)
    started = time.monotonic()
    run.run([Share(name, 0.1, 0) for name in codes])
    assert time.monotonic() - started < 30
    rows = {row["case"]: row for row in rows_of("gpu", tmp_path)}
    assert rows["crashes"]["outcome"] == "failed with -11"
    assert rows["hangs"]["outcome"] == "stopped at its limit"
    assert rows["fails"]["outcome"] == "failed with 1"
    assert rows["is well"]["outcome"] == "ended"
    assert run.failed == ["crashes", "hangs", "fails"]
    assert has_ended(int(pid_file.read_text()))
    assert (tmp_path / "is well.txt").read_text() == "here\n"


def test_parts_are_not_begun_without_time(tmp_path):
    args = argparse.Namespace(device="cpu", out=tmp_path, data_dir=tmp_path, quick=False, minutes=0.2)
    Run(args, None, lambda *args: pytest.fail("begun")).run([Share("cost", 1.0, 30)])
    assert rows_of("gpu", tmp_path)[-1]["outcome"] == "no time"


def part(tmp_path, is_quick=False):
    return Part("accuracy", "cuda", tmp_path, tmp_path, time.monotonic() + 100, is_quick)


def test_accuracy_is_measured_on_as_many_images_as_fit(tmp_path):
    plan = plan_of(part(tmp_path))
    needed = plan.seconds(0.01)
    assert fitted(plan, needed + 1, 0.01).template.instances == SIZES[0]
    smaller = fitted(plan, needed / 2, 0.01)
    assert SIZES[-1] < smaller.template.instances < SIZES[0]
    assert smaller.seconds(0.01) <= needed / 2
    assert fitted(plan, 1, 0.01).template.instances == SIZES[-1]  # and what does not fit is left out at the end


def test_the_first_seeds_of_all_methods_come_before_further_seeds(tmp_path):
    plan = plan_of(part(tmp_path))
    jobs = list(plan.final(dict.fromkeys(("full", *plan.methods), 0.1)))
    assert len(set(jobs)) == len(jobs)
    seeds = [job.seed for job in jobs]
    assert seeds.index(2) == max(place for place, seed in enumerate(seeds) if seed < 2) + 1
    first = [(job.method, job.budget) for job in jobs if job.seed == 0]
    assert first == [("full", 1.0), *((name, budget) for budget in (0.6, 0.4) for name in plan.methods)]


def test_a_rate_is_chosen_even_where_runs_failed(tmp_path):
    plan = replace(plan_of(part(tmp_path)), methods=("uniform",), grid=(0.1, 0.3))
    reached = {("full", 0.1): 0.5, ("full", 0.3): math.nan, ("uniform", 0.1): 0.5, ("uniform", 0.3): 0.6}
    assert best_rates(plan, reached) == {"full": 0.1, "uniform": 0.3}


def test_images_are_shifted_and_flipped_one_by_one():
    torch.manual_seed(0)
    image = torch.zeros(3, 16, 16)
    image[:, 8, 5] = torch.tensor([1.0, 2.0, 3.0])
    found = augmented(image.expand(500, 3, 16, 16))
    assert torch.equal(found.sum((2, 3)), torch.tensor([[1.0, 2.0, 3.0]]).expand(500, 3))
    places = {divmod(int(each[0].flatten().argmax()), 16) for each in found}
    columns = {*range(3, 8), *range(8, 13)}  # 5 and, flipped, 10, each shifted by up to 2
    assert places == {(row, column) for row in range(6, 11) for column in columns}


def test_batches_on_the_device_are_those_that_were_asked_for():
    data = DeviceData(OnDevice(torch.arange(10.0)[:, None], torch.arange(10)), None, 4)
    batches = list(data.train_dataloader())
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(10))
    assert all(torch.equal(values[:, 0].long(), labels) for values, labels in batches)
    assert data.train.num_loaded == 10


def test_what_is_too_large_to_travel_is_said(tmp_path):
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "large").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(RuntimeError, match=r"are more than 64 .*data 65.0 MiB"):
        check_size(tmp_path)


# ---- tables

COMMON = {
    "device": "cuda",
    "is_quick": False,
    **provenance(),
    "hardware": "NVIDIA H100",
    "date": "2026-12-01",
    "started": "2026-12-01 12:00",
}


def cost_rows():
    case = {"part": "cost", "case": "ResNet-18, 3x32x32", "batch_size": 512, "is_compiled": False, **COMMON}
    times = {"plain": (50.0, 52.0, 51.0), "proportional": (50.5, 52.5, 51.6), "autoassist": (52.0, 54.0, 53.5)}
    for method, steps in times.items():
        yield {**case, "method": method, "round": None, "device_ms": 45.9}
        for number, step in enumerate(steps):
            yield {**case, "method": method, "round": number, "step_ms": step, "keep_rate": 0.6, "peak_bytes": 2**30}


def test_the_cost_of_a_step_is_the_median_of_rounds_in_turns():
    plain, default, paper = report.cost_of(list(cost_rows()))
    assert plain["ratio"] == 1
    assert default["added_ms"] == pytest.approx(0.5)
    assert default["ratio"] == pytest.approx(50.5 / 50)
    assert plain["idle"] == pytest.approx(0.1)
    assert paper["added_ms"] == pytest.approx(2.0)
    table = report.cost_table(list(cost_rows())).splitlines()
    assert [line.split("|")[-2].strip() for line in table[2:5]] == ["-", "reached", "missed"]
    assert "NVIDIA H100" in table[-1]


def accuracy_rows():
    job = {"part": "accuracy", "case": "run", "phase": "final", "instances": 60000, "epochs": 15, "batch_size": 256}
    job |= {"train_instances": 60000, "image_size": 32, "precision": "bf16-mixed", "learning_rate": 0.1, **COMMON}
    for seed in (0, 1):
        yield {**job, "method": "full", "budget": 1.0, "seed": seed, "accuracy": 0.93, "seconds": 100, "updates": 3525}
        yield {
            **job,
            "method": "uniform",
            "budget": 0.6,
            "seed": seed,
            "accuracy": 0.92,
            "seconds": 60,
            "updates": 2115,
        }


def test_accuracies_are_compared_with_the_full_runs_of_their_seeds():
    table = report.accuracy_table(list(accuracy_rows()))
    assert "| full run | 3,525 | 93.00 ± 0.00 | - | 100.0 | - | 2 | 0.1 |" in table
    assert "| uniform, budget 0.6 | 2,115 | 92.00 ± 0.00 | -1.00 ± 0.00 | 60.0 | 0.60 | 2 | 0.1 |" in table


def test_failed_tests_are_named():
    rows = [{"part": "tests", "case": f"test_{name}", "outcome": name, **COMMON} for name in ("failed", "passed")]
    table = report.table_of_tests(rows)
    assert "1 failed, 1 passed" in table
    assert "failed: `test_failed`" in table


def test_what_was_only_tried_is_in_no_table():
    rows = [{**row, "is_quick": True} for row in [*cost_rows(), *accuracy_rows()]]
    assert not report.cost_table(rows)
    assert not report.accuracy_table(rows)
