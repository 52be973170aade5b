"""Layers in parallel on real processes; see layer_processes.py for what they run."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from tests.helpers.paths import ROOT
from tests.helpers.processes import has_ended, run_with_children

EQUAL = ["sgd", "adamw", "dropout", "accumulated", "bf16", "fine_tune"]
ON_FOUR = ["sgd", "adamw", "dropout", "accumulated", "bf16"]
# Whose checkpoint, after how many steps, is gone on with by how many processes.
RESUMED = [("1.6", 1), ("4.6", 1), ("1.6", 2), ("2.6", 2), ("4.6", 2)]
REFUSED = {
    "clipped": "clips by the norm over all blocks",
    "bypassed": "the step needs values of before it that are not its output",
    "other batches": "The processes have different batches in step 4",
}


def command(folder, num_processes, *names):
    return [sys.executable, "-m", "tests.helpers.layer_processes", str(folder), str(num_processes), *names]


def run(folder, num_processes, *names):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = run_with_children(command(folder, num_processes, *names), 280, env=environment)
    assert done.returncode == 0, done.output


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each process has, by case, step of the checkpoint, number of processes and rank."""
    folder = tmp_path_factory.mktemp("layers")
    run(folder, 1, *EQUAL)
    run(folder, 2, *EQUAL, "monitored", "stops alone")
    run(folder, 2, "ddp")
    run(folder, 4, *ON_FOUR)
    for size in (1, 2):
        run(folder, size, *(f"dropout@{origin}" for origin, by in RESUMED if by == size))
    return {path.stem: torch.load(path, weights_only=False) for path in folder.glob("*.pt")}


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "size"), [*((name, 2) for name in EQUAL), *((name, 4) for name in ON_FOUR)], ids=str)
def test_processes_are_equal_to_one_bit_for_bit(runs, name, size):
    alone = runs[f"{name}@-1-0"]
    for rank in range(size):
        seen = runs[f"{name}@-{size}-{rank}"]
        assert seen["steps"] == alone["steps"]
        assert_same(seen["module"], alone["module"])
        assert_same(seen["optimizer"], alone["optimizer"])
        assert_same(seen["heads"], alone["heads"])
    assert runs[f"{name}@-{size}-0"]["losses"] == alone["losses"]
    own = {metric: value for metric, value in alone["metrics"].items() if not metric.startswith("local_learning")}
    assert_same({metric: runs[f"{name}@-{size}-0"]["metrics"][metric] for metric in own}, own)


@pytest.mark.parametrize(("origin", "size"), RESUMED)
def test_a_resumed_run_is_equal_also_on_another_number_of_processes(runs, origin, size):
    for rank in range(size):
        seen = runs[f"dropout@{origin}-{size}-{rank}"]
        for part in ("module", "optimizer", "heads"):
            assert_same(seen[part], runs["dropout@-1-0"][part])


def test_metrics_of_the_step_are_known_to_all(runs):
    first, second = (runs[f"monitored@-2-{rank}"] for rank in (0, 1))
    assert_same(first["metrics"]["train_loss"], second["metrics"]["train_loss"])
    assert 0 <= first["metrics"]["local_learning/idle_share/process_1"] <= 1


def test_processes_stop_together(runs):
    assert runs["stops alone@-2-0"]["steps"] == runs["stops alone@-2-1"]["steps"] == 6


def test_ddp_reduces_the_gradients_of_blocks_and_heads(runs):
    first, second = (runs[f"ddp@-2-{rank}"] for rank in (0, 1))
    parameters = [name for name in first["module"] if "running" not in name]  # each process has its own statistics
    assert_same([first["module"][name] for name in parameters], [second["module"][name] for name in parameters])
    for left, right in zip(first["heads"], second["heads"], strict=True):
        assert_same(left["heads"], right["heads"])
    assert first["losses"] != second["losses"]


def test_what_cannot_be_trained_so_is_refused(tmp_path):
    """Each ends the processes; so each has a run of its own, all at the same time."""
    started = {}
    for name in REFUSED:
        (tmp_path / name).mkdir()
        words = command(tmp_path / name, 2, name)
        started[name] = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=ROOT)
    for name, process in started.items():
        _, said = process.communicate(timeout=280)
        assert REFUSED[name] in " ".join(said.split())


@pytest.mark.parametrize("name", ["killed", "first killed"])
def test_a_killed_process_ends_the_job_and_leaves_no_other_behind(tmp_path, name):
    killed = subprocess.Popen(command(tmp_path, 2, name), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    _, said = killed.communicate(timeout=280)  # the other process has the pipe, too
    ended = time.time()
    assert len(list(tmp_path.glob("*.pt"))) == 1  # what the other process has
    assert "has ended, or has not answered" in said
    assert ended - (tmp_path / "killed").stat().st_mtime < 30
    for rank in (0, 1):
        assert has_ended(int((tmp_path / f"process {rank}").read_text()))
