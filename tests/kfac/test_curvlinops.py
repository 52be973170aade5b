"""Factors are those of curvlinops, where it is installed; it knows Linear and Conv2d layers without groups."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist.capture.interceptor import TrainingStep
from lightning_autoassist.capture.layers import LayerCapture
from lightning_autoassist.kfac.layer_choice import choose_layers
from lightning_autoassist.kfac.options import KFACOptions
from lightning_autoassist.kfac.preconditioner import Preconditioner

curvlinops = pytest.importorskip("curvlinops", reason="it is in the extra named oracle")

B, CLASSES = 10, 3
NETS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, CLASSES)), (8,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 3, (2, 1), dilation=(1, 2), bias=False),
            nn.ReLU(),
            nn.Conv2d(3, 3, 3, padding="same"),
            nn.Flatten(),
            nn.LazyLinear(CLASSES),
        ),
        (2, 9, 9),
    ),
}


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore")
def test_products_with_vectors_are_those_of_curvlinops(name, sharing):
    torch.manual_seed(0)
    make, shape = NETS[name]
    net, values, target = make(), torch.randn(B, *shape), torch.arange(B) % CLASSES
    net(values)
    parameters = list(net.parameters())
    operator = curvlinops.KFACLinearOperator(
        net,
        nn.CrossEntropyLoss(),
        parameters,
        [(values, target)],
        fisher_type="empirical",
        kfac_approx=sharing,
        separate_weight_and_bias=False,
    )
    vectors = [torch.randn_like(parameter) for parameter in parameters]
    expected = dict(zip(parameters, operator @ vectors, strict=True))

    options = KFACOptions(weight_sharing=sharing)
    part = Preconditioner(choose_layers(net, options).chosen, options)
    layers = {name: layer.kind.layer for name, layer in part.layers.items()}
    capture = LayerCapture(layers, lambda call: part.add(call.name, call))
    capture.observe(TrainingStep(((values, target),), {}, lambda: F.cross_entropy(net(values), target))).backward()
    capture.close()
    part.step({})
    for parameter, vector in zip(parameters, vectors, strict=True):
        parameter.grad = vector.clone()
    for layer in part.layers.values():
        a, g = (factor.value() for factor in layer.factors)
        layer.kind.write(g @ layer.kind.matrix() @ a)
    for parameter in parameters:
        scale = expected[parameter].norm()
        torch.testing.assert_close(parameter.grad / scale, expected[parameter] / scale, rtol=2e-5, atol=2e-5)
