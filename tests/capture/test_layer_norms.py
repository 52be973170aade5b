"""Norms of instances' gradients at layers equal those of one backward pass for each instance."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_autoassist.capture import layer_norms
from lightning_autoassist.capture.interceptor import TrainingStep
from lightning_autoassist.capture.layer_norms import has_norms, squared_norms
from lightning_autoassist.capture.layers import LayerCapture

B, CLASSES = 5, 3

CONVOLUTIONS = {
    "strided and padded": nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "groups": nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, groups=4, bias=False),
    "one by one": nn.Conv2d(4, 32, 1),
    "dilated, same": nn.Conv2d(4, 5, 3, dilation=2, padding="same"),
    "reflected": nn.Conv2d(4, 5, (3, 1), padding=(1, 0), padding_mode="reflect"),
    "one axis": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 6, 5, stride=3)),
    "three axes": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3), stride=(1, 2, 1))),
    "few positions": nn.Conv2d(4, 40, 5, stride=3),
}


def norms_of(net, batch, step):
    """By capture: the squared norm of each instance's gradient at all layers."""
    calls = []
    layers = {name: layer for name, layer in net.named_modules() if has_norms(layer)}
    capture = LayerCapture(layers, calls.append)
    capture.observe(TrainingStep((batch,), {}, step)).backward()
    capture.close()
    by_weight = {}
    for call in calls:
        by_weight.setdefault(call.layer.weight, []).append(call)
    return sum(squared_norms(group) for group in by_weight.values())


def by_autograd(net, loss_of_instance):
    """The same, by a backward pass for each instance."""
    parameters = [p for part in net.modules() if has_norms(part) for p in part.parameters() if p.requires_grad]
    parameters = list(dict.fromkeys(parameters))
    rows = [torch.autograd.grad(loss_of_instance(i), parameters, allow_unused=True) for i in range(B)]
    return torch.stack([sum(g.square().sum() for g in row if g is not None) for row in rows])


def assert_exact(net, values, target, reduction="mean"):
    found = norms_of(net, (values, target), lambda: F.cross_entropy(net(values), target, reduction=reduction))
    expected = by_autograd(net, lambda i: F.cross_entropy(net(values[i : i + 1]), target[i : i + 1]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture
def target():
    torch.manual_seed(0)
    return torch.arange(B) % CLASSES


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_linear_layers(target, reduction):
    net = nn.Sequential(nn.Linear(4, 7), nn.ReLU(inplace=True), nn.Linear(7, 7, bias=False), nn.Linear(7, CLASSES))
    assert_exact(net.double(), torch.randn(B, 4).double(), target, reduction)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(target, kind):
    values = torch.randn(B, 4, 9, 9).double()
    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), CONVOLUTIONS[kind], nn.Flatten()).double()
    net = nn.Sequential(body, nn.Linear(body(values).shape[1], CLASSES)).double()
    assert_exact(net, values, target)


class Sequences(nn.Module):
    """Layers over positions, one of which is called twice and one shares its weight with another."""

    def __init__(self, num_features=6, num_hidden=6):
        super().__init__()
        self.first = nn.Linear(num_features, num_hidden)
        self.twice = nn.Linear(num_hidden, num_hidden)
        self.tied = nn.Linear(num_hidden, num_hidden, bias=False)
        self.tied.weight = self.twice.weight
        self.head = nn.Linear(num_hidden, CLASSES)

    def forward(self, values):
        hidden = self.tied(torch.tanh(self.twice(torch.tanh(self.twice(self.first(values))))))
        return self.head(hidden).mean(1)


@pytest.mark.parametrize("num_positions", [2, 40])
def test_positions_and_weights_that_are_used_several_times(target, num_positions):
    assert_exact(Sequences().double(), torch.randn(B, num_positions, 6).double(), target)


def test_both_ways_are_taken_and_agree(target, monkeypatch):
    net, values = Sequences(40, 30).double(), torch.randn(B, 6, 40).double()
    assert layer_norms._prefers_gram(6, 40, 30)
    assert not layer_norms._prefers_gram(40, 6, 6)
    assert_exact(net, values, target)
    monkeypatch.setattr(layer_norms, "_prefers_gram", lambda *sizes: False)
    assert_exact(net, values, target)


def test_numbers_are_formed_in_pieces(target, monkeypatch):
    monkeypatch.setattr(layer_norms, "_MAX_NUMBERS", 1)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, CLASSES)).double()
    assert_exact(net, torch.randn(B, 2, 4, 4).double(), target)


def test_frozen_parameters_do_not_count(target):
    net = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, CLASSES)).double()
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    assert_exact(net, torch.randn(B, 4).double(), target)


def test_rows_of_an_instance_are_its_positions(target):
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    values, labels = torch.randn(B, 6, 4).double(), target[:, None].expand(B, 6)

    def step():
        return F.cross_entropy(net[2](net[:2](values).flatten(0, 1)), labels.flatten())

    found = norms_of(net, (values, labels), step)
    expected = by_autograd(net, lambda i: F.cross_entropy(net(values[i]), labels[i], reduction="sum"))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks(target, use_reentrant):
    net = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, CLASSES)).double()
    values = torch.randn(B, 4).double()

    def step():
        hidden = checkpoint(net[1], net[0](values), use_reentrant=use_reentrant)
        return F.cross_entropy(net[2](hidden), target)

    expected = by_autograd(net, lambda i: F.cross_entropy(net(values[i : i + 1]), target[i : i + 1]))
    torch.testing.assert_close(norms_of(net, (values, target), step), expected)


class Scaled(nn.Linear):
    def forward(self, values):
        return 2 * super().forward(values)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Linear(2, 2), True),
        (nn.Conv3d(1, 1, 1), True),
        (nn.LazyLinear(2), True),
        (Scaled(2, 2), False),
        (nn.ConvTranspose1d(1, 1, 1), False),
        (nn.BatchNorm1d(2), False),
        (nn.MultiheadAttention(2, 1).out_proj, False),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_layers_that_compute_as_torchs_own_do_have_norms(layer, expected):
    assert has_norms(layer) is expected
