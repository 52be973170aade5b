"""What the benchmark of local learning plans, and what it expects of more processes than there are cores."""

from __future__ import annotations

import pytest

from benchmarks.local_learning.runs import BACKPROP, BLOCKS, LocalJob, LocalPlan
from benchmarks.local_learning.throughput import simulated


@pytest.mark.parametrize(
    ("milliseconds", "update"), [([10.0, 20.0], 20.0), ([20.0, 10.0, 10.0], 20.0), ([5.0], 5.0)], ids=str
)
def test_the_slowest_process_decides(milliseconds, update):
    assert simulated(milliseconds) == pytest.approx(update)


def test_local_methods_take_the_rate_that_was_chosen_for_blocks():
    plan = LocalPlan((BACKPROP, BLOCKS, "greedy"), (0,), (0.1, 0.2), LocalJob(method=BACKPROP, learning_rate=0.1))
    tuning = [job for job in plan.jobs({}) if job is not None]
    assert len(tuning) == 4
    rows = {job: {"accuracy": job.learning_rate * (1 if job.method == BLOCKS else -1)} for job in tuning}
    final = {job.method: job.learning_rate for job in plan.jobs(rows) if job.phase == "final"}
    assert final == {BACKPROP: 0.1, BLOCKS: 0.2, "greedy": 0.2}
