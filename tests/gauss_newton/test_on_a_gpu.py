"""On a GPU: the steps of the CPU, and none that waits for the device."""

import pytest
import torch

from lightning_autoassist import GaussNewtonCallback
from tests.gauss_newton.modules import Perceptron, fit, parameters_of
from tests.helpers.device_runs import NoWaiting

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


@pytest.mark.parametrize("solver", ["gram", "cg", "sketch", "nystrom"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_steps_are_those_of_the_cpu_and_none_waits(monkeypatch, solver, loss):
    found = []
    for device in ("cpu", "cuda"):
        module, newton = Perceptron(loss), GaussNewtonCallback(0.1, solver=solver, cg_tol=1e-10, max_cg_iter=100)
        watch = NoWaiting(device, monkeypatch, first_steps=2)
        fit(module, newton, *[watch] * (device == "cuda"), accelerator=device, max_epochs=4)
        found.append(parameters_of(module).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)
    assert watch.num_watched > 0
