"""Processes that Ray and SLURM start train as those of Lightning's own do; see scaled_out.py for what they run."""

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec

import pytest
import torch

from tests.helpers.paths import ROOT
from tests.helpers.processes import run_with_children
from tests.helpers.two_processes import N

TIME_LIMIT = 400  # seconds; Ray's start takes most of a minute on two busy cores
pytestmark = pytest.mark.timeout(2 * TIME_LIMIT + 60)
HAS_RAY = find_spec("ray") is not None and find_spec("lightning") is not None
SCRIPT = "tests.helpers.scaled_out"


def seen_in(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def environment(**own):
    return {**os.environ, "PYTHONPATH": str(ROOT), **own}


@pytest.fixture(scope="module")
def own_processes(tmp_path_factory):
    """What two processes saw that Lightning started."""
    folder = tmp_path_factory.mktemp("ddp")
    done = run_with_children([sys.executable, "-m", SCRIPT, str(folder), "ddp"], TIME_LIMIT, env=environment())
    assert done.returncode == 0, done.output
    return seen_in(folder)


@pytest.fixture(scope="module")
def tasks_of_slurm(tmp_path_factory):
    """What two processes saw that were started as ``srun`` starts tasks: it sets these variables for each."""
    folder = tmp_path_factory.mktemp("slurm")
    job = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    job |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", SCRIPT, str(folder), "ddp"],
            env=environment(**job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [task.communicate(timeout=TIME_LIMIT)[0] for task in tasks]
    finally:
        for task in tasks:
            task.kill()
    assert [task.returncode for task in tasks] == [0, 0], "\n".join(outputs)
    return seen_in(folder)


@pytest.fixture(scope="module")
def workers_of_ray(tmp_path_factory):
    """What two workers of Ray saw, in which the documentation's block ran."""
    if not HAS_RAY:
        pytest.skip("needs Ray and lightning: pip install 'lightning-autoassist[ray]'")
    folder = tmp_path_factory.mktemp("ray")
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as sockets:  # whose paths must be short
        own = {"HOME": str(folder), "RAY_TMPDIR": sockets, "RAY_USAGE_STATS_ENABLED": "0"}
        command = [sys.executable, "-m", SCRIPT, str(folder), "ray"]
        done = run_with_children(command, TIME_LIMIT, env=environment(**own))
    assert done.returncode == 0, done.output
    return seen_in(folder)


@pytest.fixture(params=["slurm", "ray"])
def processes(request):
    return request.getfixturevalue({"slurm": "tasks_of_slurm", "ray": "workers_of_ray"}[request.param])


def test_each_starts_its_own_processes(processes, request):
    kinds = {"slurm": ("DDPStrategy", "SLURMEnvironment"), "ray": ("RayDDPStrategy", "RayLightningEnvironment")}
    for each in processes:
        assert (each["strategy"], each["environment"]) == kinds[request.node.callspec.params["processes"]]
        assert each["world_size"] == 2


def test_two_processes_filter_and_share_the_data(processes):
    first, second = processes
    mine, yours = ({index for batch in each["seen"] for index in batch} for each in processes)
    assert not mine & yours
    assert mine | yours == set(range(N))  # the first pass keeps everything
    assert len(first["seen"]) == len(second["seen"]) == 12 * 7  # of 11 batches at budget 0.6
    for each in processes:
        assert 0.3 < each["summary"]["keep_rate"] < 0.9
        assert each["summary"]["saved_ratio"] > 0.3


def test_they_do_what_lightnings_own_processes_do(processes, own_processes):
    for ours, lightnings in zip(processes, own_processes, strict=True):
        assert ours["seen"] == lightnings["seen"]
        torch.testing.assert_close(ours["weights"], lightnings["weights"], rtol=0, atol=0)
        torch.testing.assert_close(ours["scores"], lightnings["scores"], rtol=0, atol=0, equal_nan=True)
