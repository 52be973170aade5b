"""One step against the dense solve, fifty against a readable reference."""

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist import KFACCallback
from lightning_autoassist.capture.interceptor import TrainingStep
from lightning_autoassist.capture.layers import LayerCapture
from lightning_autoassist.kfac.layer_choice import choose_layers
from lightning_autoassist.kfac.options import KFACOptions
from lightning_autoassist.kfac.preconditioner import Preconditioner
from tests.kfac.modules import Net, convolutions, fit, images, mlp
from tests.kfac.reference import Reference

B = 7


class Everything(nn.Module):
    """Every kind of layer, in float64."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(5, 4, padding_idx=0)
        self.conv1 = nn.Conv1d(4, 6, 3, padding="same", dilation=2, groups=2, padding_mode="circular")
        self.conv2 = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False)
        self.conv3 = nn.Conv3d(1, 2, 2, padding=1, padding_mode="replicate")
        self.linear = nn.Linear(8, 3)
        self.double()

    def forward(self, tokens):
        hidden = torch.relu_(self.conv1(self.tokens(tokens).mT))  # (B, 6, 8)
        hidden = torch.tanh(self.conv2(hidden.reshape(B, 2, 6, 4)))  # (B, 4, 3, 3)
        hidden = self.conv3(hidden.reshape(B, 1, 4, 3, 3)).relu_()  # (B, 2, 5, 4, 4)
        return self.linear(hidden.reshape(B, -1, 8)).mean(1)


def stepped(net, values, target, **options):
    """A preconditioner after one step on one batch, and the gradients before it."""
    options = KFACOptions(**{"step": "none", "damping_mode": "absolute", "damping": 0.03, **options})
    part = Preconditioner(choose_layers(net, options).chosen, options)
    capture = LayerCapture(
        {name: layer.kind.layer for name, layer in part.layers.items()}, lambda call: part.add(call.name, call)
    )
    step = TrainingStep(((values, target),), {}, lambda: F.cross_entropy(net(values), target))
    capture.observe(step).backward()
    capture.close()
    before = {name: layer.kind.matrix().clone() for name, layer in part.layers.items()}
    part.step(dict.fromkeys(net.parameters(), 0.1))
    return part, before


def everything():
    torch.manual_seed(0)
    return Everything(), torch.randint(0, 5, (B, 8)), torch.arange(B) % 3


def dense(factor):
    return torch.diag_embed(factor.value()) if factor.is_diagonal else factor.value()


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("mode", ["absolute", "relative"])
@pytest.mark.parametrize("max_size", [4096, 9])
def test_one_step_is_the_dense_solve(sharing, mode, max_size):
    part, before = stepped(*everything(), weight_sharing=sharing, damping_mode=mode, max_factor_size=max_size)
    assert list(part.layers) == ["tokens", "conv1", "conv2", "conv3", "linear"]
    for name, layer in part.layers.items():
        after = layer.kind.matrix()
        a, g = (dense(factor) for factor in layer.factors)
        assert max_size == 4096 or layer.factors[0].is_diagonal == (a.shape[-1] > 9 or name == "tokens")
        for block in range(layer.sizes.num_blocks):
            product = torch.kron(g[block].contiguous(), a[block].contiguous())
            damping = 0.03 * (product.diagonal().mean() if mode == "relative" else 1.0)
            expected = torch.linalg.solve(
                product + damping * torch.eye(len(product)).double(), before[name][block].reshape(-1)
            )
            torch.testing.assert_close(after[block].reshape(-1), expected, rtol=1e-10, atol=1e-12)


def test_the_inverse_method_damps_the_factors():
    part, before = stepped(*everything(), compute_method="inverse")
    for name, layer in part.layers.items():
        a, g = (dense(factor) for factor in layer.factors)
        for block in range(layer.sizes.num_blocks):
            sides = a[block], g[block]
            pi = (sides[0].diagonal().mean() / sides[1].diagonal().mean()).sqrt()
            shifts = 0.03**0.5 * pi, 0.03**0.5 / pi
            left, right = (
                side + shift * torch.eye(len(side)).double()
                for side, shift in zip(sides[::-1], shifts[::-1], strict=True)
            )
            expected = torch.linalg.solve(left, torch.linalg.solve(right, before[name][block].mT).mT)
            torch.testing.assert_close(layer.kind.matrix()[block], expected, rtol=1e-9, atol=1e-12)


def instance_gradients(net, values, target, name):
    """Gradient of each instance's own loss at a layer's parameters as ``(B, K, m, n)``."""
    rows = []
    for index in range(len(target)):
        net.zero_grad()
        loss = F.cross_entropy(net(values)[index : index + 1], target[index : index + 1])
        loss.backward()
        kind = choose_layers(net, KFACOptions()).chosen[name]
        rows.append(kind.matrix())
    return torch.stack(rows)


def test_the_product_is_the_fisher_matrix_where_the_approximation_is_exact():
    """For one layer, one position, and inputs of one instance repeated, the mean of g gᵀ ⊗ a aᵀ is a product."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3).double()
    values, target = torch.randn(1, 4).double().expand(B, 4), torch.arange(B) % 3
    options = KFACOptions()
    part = Preconditioner(choose_layers(net, options).chosen, options)
    capture = LayerCapture({"": net}, lambda call: part.add("", call))
    capture.observe(TrainingStep(((values, target),), {}, lambda: F.cross_entropy(net(values), target))).backward()
    capture.close()
    gradients = instance_gradients(net, values, target, "").reshape(B, -1)
    part.step({})
    a, g = (factor.value()[0] for factor in part.layers[""].factors)
    torch.testing.assert_close(torch.kron(g, a), gradients.mT @ gradients / B, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("net", [mlp, convolutions])
def test_kaisa_is_the_readable_reference_over_fifty_steps(net):
    data = images(160)
    settings = {"damping": 0.01, "kl_clip": 0.01, "factor_update_steps": 2, "inv_update_steps": 5}
    data = torch.utils.data.TensorDataset(data.tensors[0].double(), data.tensors[1])
    module = Net(net).double()
    fit(module, KFACCallback.kaisa(**settings), data=data, epochs=5)

    own = Net(net).double()
    reference = Reference(own.net, damping=0.01, kl_clip=0.01, decay=0.95, factor_steps=2, inverse_steps=5)
    optimizer = own.configure_optimizers()
    for _ in range(5):
        for start in range(0, 160, 16):
            values, target = data[start : start + 16]
            reference.update(values, target, own.lr)
            optimizer.step()
    assert reference.step == 50
    for mine, expected in zip(module.net.parameters(), own.net.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-8)


def test_grafted_steps_are_as_long_as_the_gradients():
    net, values, target = everything()
    part, before = stepped(net, values, target, step="graft")
    for name, layer in part.layers.items():
        torch.testing.assert_close(layer.kind.matrix().norm(), before[name].norm())
    assert 0 < float(part.figures["cosine"]) < 1


def test_sampled_targets_give_the_fisher_matrix_in_the_mean():
    """Of a softmax layer, over many draws: G is the mean of diag(p) - p pᵀ."""
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    values, target = torch.randn(4000, 4), torch.zeros(4000, dtype=torch.long)
    module = Net(lambda: net, lr=0.0)
    callback = KFACCallback(fisher="monte_carlo", factor_update_steps=1, factor_decay=0.9)
    data = torch.utils.data.TensorDataset(values, target)
    fit(module, callback, data=data, batch_size=4000, epochs=20)
    [part] = callback.preconditioners
    probs = net(values).softmax(1).detach()
    expected = torch.diag_embed(probs).mean(0) - probs.mT @ probs / 4000
    found = part.layers["net"].factors[1].value()[0]
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.003)
    empirical = KFACCallback(factor_update_steps=1)
    fit(Net(lambda: net, lr=0.0), empirical, data=data, batch_size=4000)
    assert (empirical.preconditioners[0].layers["net"].factors[1].value()[0] - expected).abs().max() > 0.05


@pytest.mark.parametrize("loss", ["mse", "bce", "bce_logits", "smoothed"])
def test_other_likelihoods_can_be_sampled_and_parameters_get_the_true_gradient(loss):
    losses = {
        "mse": lambda logits, y: F.mse_loss(logits, F.one_hot(y, 3).float()),
        "bce": lambda logits, y: F.binary_cross_entropy(logits.sigmoid(), F.one_hot(y, 3).float()),
        "bce_logits": lambda logits, y: F.binary_cross_entropy_with_logits(logits, F.one_hot(y, 3).float()),
        "smoothed": lambda logits, y: F.cross_entropy(logits, y, label_smoothing=0.1),
    }

    class Other(Net):
        def loss(self, batch):
            return losses[loss](self.net(batch[0]), batch[1])

    class Gradients(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            self.found = [parameter.grad.clone() for parameter in pl_module.parameters()]

    found = []
    for callbacks in ([], [KFACCallback(fisher="monte_carlo")]):
        gradients = Gradients()
        fit(Other(), gradients, *callbacks, max_steps=1)
        found.append(gradients.found)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert callbacks[0].preconditioners[0].layers["net.5"].factors[1].value().diagonal(dim1=1, dim2=2).min() > 0
