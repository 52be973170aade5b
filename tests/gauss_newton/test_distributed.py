"""Two real processes on gloo make the steps of one process on all their instances."""

import sys

import pytest
import torch

from lightning_autoassist import GaussNewtonCallback
from tests.gauss_newton.modules import Perceptron, fit, parameters_of, rows
from tests.gauss_newton.two_processes import N
from tests.helpers.processes import run_with_children


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gauss_newton")
    done = run_with_children([sys.executable, "-m", "tests.gauss_newton.two_processes", str(folder)], 200)
    assert done.returncode == 0, done.output
    return folder


@pytest.mark.parametrize("loss", ["half_sum", "cross_entropy_sum"])
def test_processes_make_the_steps_of_one(folder, loss):
    first, second = (torch.load(folder / f"{loss}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first["parameters"], second["parameters"])
    assert first["damping"] == second["damping"] != 0.1
    module, callback = Perceptron(loss), GaussNewtonCallback(0.1)
    fit(module, callback, data=rows(N), batch_size=N, max_epochs=4)
    torch.testing.assert_close(first["parameters"], parameters_of(module), rtol=1e-5, atol=1e-7)
    assert first["damping"] == pytest.approx(callback.damping_in_force)
