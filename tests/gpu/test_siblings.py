"""The sibling callbacks on every device: what a run in single precision learns is what one in double precision does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_autoassist import GaussNewtonCallback, KFACCallback, LocalLearningCallback
from tests.helpers.device_runs import Convolutional, clusters, fit, images
from tests.helpers.ordinary import NUM_CLASSES, Classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:.*LocalLearningCallback trains"),
]


class TwoLayers(Classifier):
    """Linear layers and a function between them, without dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, NUM_CLASSES))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class SmallImages(Convolutional):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


SIBLINGS = {
    "K-FAC, linear": (TwoLayers, clusters, lambda: KFACCallback(factor_update_steps=2, inv_update_steps=4)),
    "K-FAC, convolutions": (SmallImages, images, lambda: KFACCallback(factor_update_steps=2, inv_update_steps=4)),
    "K-FAC, inverses": (TwoLayers, clusters, lambda: KFACCallback(compute_method="inverse", inv_update_steps=4)),
    "Gauss-Newton": (TwoLayers, clusters, lambda: GaussNewtonCallback()),
    "Gauss-Newton, sketch": (TwoLayers, clusters, lambda: GaussNewtonCallback(solver="sketch")),
    "local learning": (SmallImages, images, lambda: LocalLearningCallback(["net.2", "net.4"], "linear")),
}


def moved(module, start):
    """How far each parameter went, as one vector."""
    pairs = zip(module.parameters(), start.parameters(), strict=True)
    return torch.cat([(now.detach().cpu().double() - then.detach().double()).flatten() for now, then in pairs])


@pytest.mark.parametrize("name", SIBLINGS)
def test_single_precision_follows_double_precision_on_the_cpu(device, name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    make_module, make_data, make_callback = SIBLINGS[name]
    start, *_ = fit("cpu", (make_module, make_data), max_steps=0)
    plain, *_ = fit(device, (make_module, make_data), max_epochs=2)
    found, *_ = fit(device, (make_module, make_data), make_callback(), max_epochs=2)
    exact, *_ = fit("cpu", (make_module, make_data), make_callback(), max_epochs=2, precision="64-true")
    expected = moved(exact, start)
    assert (moved(found, start) - expected).norm() < 0.1 * expected.norm()
    assert (moved(plain, start) - expected).norm() > 0.2 * expected.norm()  # the callback does something


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", ["K-FAC, convolutions", "local learning"])
def test_mixed_precision_trains_beside_filtering(device, name, precision):
    if device == "cpu" and precision == "16-mixed":
        pytest.skip("16-mixed needs a GPU: Lightning takes bf16-mixed on the CPU")
    make_module, make_data, make_callback = SIBLINGS[name]
    filtering = {"policy": "proportional"}
    module, callback, _ = fit(
        device, (make_module, make_data), make_callback(), filtering=filtering, max_epochs=4, precision=precision
    )
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert callback.summary()["keep_rate"] < 1
