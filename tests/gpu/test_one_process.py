"""DDP and FSDP with one process, each in a process of its own: NCCL on GPUs, gloo on the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_of_many(device, strategy):
    if (device, strategy) == ("cpu", "fsdp"):
        pytest.skip("Lightning's FSDP needs a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.one_process", device, strategy],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "as plain Lightning; filtered" in done.stdout
