"""Hand-written reductions count as losses of instances where that was shown, whatever the size of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist.capture import reductions
from lightning_autoassist.capture.autograd_graph import knows_shapes
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from tests.capture.test_loss_capture import _seeded  # noqa: F401, the fixture

WIDTH = 4  # features, classes, proxies, time steps

pytestmark = [
    pytest.mark.skipif(
        not knows_shapes(torch.zeros(1, requires_grad=True).sum()), reason="this torch's graph tells no shapes"
    ),
    pytest.mark.filterwarnings("ignore:.*is taken for the mean of one loss an instance"),
]


class Net(nn.Module):
    """What is trained: layers with and without normalization over the batch."""

    def __init__(self, *last):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, WIDTH), *last)
        self.proxies = nn.Parameter(torch.randn(WIDTH, WIDTH))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, features):
        return self.layers(features)


def plain():
    return Net()


def normalized():
    return Net(nn.BatchNorm1d(WIDTH, affine=False))


def hot(target):
    return F.one_hot(target, WIDTH).float()


def picked(log_probs, target):
    return -log_probs.gather(1, target[:, None])[:, 0]


# ---- one value an instance


def cross_entropy(net, x, y):
    return picked(net(x).log_softmax(1), y)


def column(net, x, y):
    return -net(x).log_softmax(1).gather(1, y[:, None])


def squares(net, x, y):
    return (net(x) - hot(y)).square()


def by_proxies(net, x, y):
    z, proxies = F.normalize(net(x), dim=1), F.normalize(net.proxies, dim=1)
    return picked((z @ proxies.t() * net.temperature).log_softmax(1), y)


def by_proxies_first(net, x, y):
    z, proxies = F.normalize(net(x), dim=1), F.normalize(net.proxies, dim=1)
    return picked((proxies @ z.t() * net.temperature).t().log_softmax(1), y)


def of_two_views(net, x, y):
    one, other = net(x), net(x + 0.1)
    return -F.cosine_similarity(one, other.detach())


def own_dice(net, x, y):
    probs = net(x).sigmoid()
    return 1 - 2 * (probs * hot(y)).sum(1) / (probs.sum(1) + 1)


def divergence(net, x, y):
    mean, log_variance = net(x).chunk(2, dim=1)
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)


def listed(net, x, y):
    return torch.stack([-row.log_softmax(0)[label] for row, label in zip(net(x), y, strict=True)])


def hinge(net, x, y):
    return F.relu(1 - picked(net(x), y).neg())


def of_tokens(net, x, y):
    """Flattened for the network, (B, T) for the loss."""
    tokens = x[:, None, :].expand(-1, 5, -1) + torch.arange(5.0)[:, None]
    logits = net(tokens.reshape(-1, 3)).reshape(len(x), 5, WIDTH)
    return logits.logsumexp(2)


def time_first(net, x, y):
    """The network sees (T, B, F); the loss takes the batch to the front again."""
    steps = x + torch.arange(5.0)[:, None, None]
    return net(steps.reshape(-1, 3)).reshape(5, len(x), WIDTH).logsumexp(2).mean(0)


OF_INSTANCES = [
    cross_entropy,
    column,
    squares,
    by_proxies,
    by_proxies_first,
    of_two_views,
    own_dice,
    divergence,
    listed,
    hinge,
    of_tokens,
    time_first,
]


# ---- one value of something else


def dice(net, x, y):
    probs = net(x).softmax(1)
    return 1 - 2 * (probs * hot(y)).sum(0) / (probs.sum(0) + hot(y).sum(0) + 1)


def dice_of_labels(net, x, y):
    probs = net(x).sigmoid()
    return 1 - 2 * (probs * hot(y)).sum(0) / (probs.sum(0) + hot(y).sum(0) + 1)


def dice_of_tokens(net, x, y):
    tokens = x[:, None, :].expand(-1, 5, -1) + torch.arange(5.0)[:, None]
    probs = net(tokens.reshape(-1, 3)).softmax(1)
    return 1 - 2 * probs.sum(0) / (probs.square().sum(0) + 1)


def correlation(net, x, y):
    """Barlow Twins, without its weights."""
    one, other = ((z - z.mean(0)) / z.std(0).clamp(min=1e-3) for z in (net(x), net(x + torch.randn_like(x))))
    return (one.t() @ other / len(x) - torch.eye(WIDTH)).square()


def variance(net, x, y):
    """VICReg's."""
    return F.relu(2 - (net(x).var(dim=0) + 1e-4).sqrt())


def covariance(net, x, y):
    z = net(x) - net(x).mean(0)
    return (z.t() @ z / len(x)).square()


def of_proxies(net, x, y):
    """Proxy anchor: for each proxy, over the instances of its class and of others."""
    similarity = F.normalize(net(x), dim=1) @ F.normalize(net.proxies, dim=1).t()
    return ((1 - hot(y)) * (similarity + 0.1).exp()).sum(0).log1p()


def of_proxies_first(net, x, y):
    similarity = F.normalize(net.proxies, dim=1) @ F.normalize(net(x), dim=1).t()
    return ((1 - hot(y).t()) * (similarity + 0.1).exp()).sum(1).log1p()


def contrast(net, x, y):
    """An instance's value, which depends on all others."""
    z = F.normalize(net(x), dim=1)
    return -(z @ F.normalize(net(x + 0.1), dim=1).t()).log_softmax(1).diagonal()


def centered(net, x, y):
    z = net(x)
    return (z - z.mean(0)).square()


def with_the_next(net, x, y):
    z = net(x)
    return (z - z.roll(1, 0)).square().sum(1)


def balance(net, x, y):
    """A mixture of experts': each expert's share of the batch."""
    return net(x).softmax(1).mean(0).square()


def of_scales(net, x, y):
    """As many losses as there are scales."""
    return torch.stack([(scale * net(x)).square().mean() for scale in range(1, WIDTH + 1)])


def of_heads(net, x, y):
    heads = [nn.Linear(3, 2) for _ in range(WIDTH)]
    tokens = x[:, None, :].expand(-1, 5, -1).reshape(-1, 3)
    return torch.stack([head(tokens).square().mean() for head in heads])


def weights_of_rows(net, x, y):
    return net.proxies.square().sum(1)


OF_OTHERS = [
    dice,
    dice_of_labels,
    dice_of_tokens,
    correlation,
    variance,
    covariance,
    of_proxies,
    of_proxies_first,
    contrast,
    centered,
    with_the_next,
    balance,
    of_scales,
    of_heads,
    weights_of_rows,
]


def captured(loss, net, batch_size, capture=None, weights=None, reduce=torch.mean):
    x, y = torch.randn(batch_size, 3), torch.arange(batch_size) % WIDTH
    rng = torch.get_rng_state()
    with (capture or InstanceLossCapture()).step((x, y), batch_size, weights=weights) as step:
        root = reduce(loss(net, x, y))
    observation = step.observe(root)
    torch.set_rng_state(rng)
    return root, observation, step.reason, loss(net, x, y)


SIZES = [2, WIDTH, WIDTH + 1, 9]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make_net", [plain, normalized])
@pytest.mark.parametrize("loss", OF_INSTANCES, ids=lambda loss: loss.__name__)
def test_one_value_an_instance_is_a_loss_at_every_batch_size(loss, make_net, size):
    net, weights = make_net(), torch.rand(size) + 0.5
    root, observation, reason, values = captured(loss, net, size, weights=weights)
    assert reason is None
    values = values.reshape(size, -1).mean(1)
    torch.testing.assert_close(observation.losses, values.detach(), rtol=1e-5, atol=1e-6)
    parameters = list(net.layers.parameters())
    found = torch.autograd.grad(root, parameters)
    expected = torch.autograd.grad((values * weights).mean(), parameters)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make_net", [plain, normalized])
@pytest.mark.parametrize("loss", OF_OTHERS, ids=lambda loss: loss.__name__)
def test_one_value_of_something_else_is_a_loss_at_no_batch_size(loss, make_net, size):
    _, observation, reason, _ = captured(loss, make_net(), size, weights=torch.ones(size))
    assert observation is None
    assert "hand-written loss at test_loss_by_hand.py" in reason


@pytest.mark.parametrize("linear", [nn.Linear(3, WIDTH), nn.Linear(3, WIDTH, bias=False)], ids=["bias", "no bias"])
def test_a_network_of_one_layer_is_no_exception(linear):
    net = Net()
    net.layers = linear
    for loss in OF_INSTANCES:
        assert captured(loss, net, WIDTH)[1] is not None, loss
    for loss in OF_OTHERS:
        assert captured(loss, net, WIDTH)[1] is None, loss


def test_what_was_shown_is_remembered_and_asked_again_at_another_size(monkeypatch):
    asked, net, capture = [], plain(), InstanceLossCapture()
    original = reductions.has_one_value_an_instance
    monkeypatch.setattr(
        reductions, "has_one_value_an_instance", lambda values, part: asked.append(1) or original(values, part)
    )
    for size, expected in ((6, 1), (6, 1), (5, 2), (6, 2), (5, 2), (7, 3), (8, 3), (9, 3)):
        assert captured(cross_entropy, net, size, capture)[1] is not None
        assert len(asked) == expected


def test_one_line_that_reduces_losses_of_two_kinds_is_told_apart_by_its_callers():
    """As in a helper of the user's own."""
    net, x, y = plain(), torch.randn(WIDTH, 3), torch.arange(WIDTH)

    def reduced(values):
        return values.mean()

    def first():
        return reduced(cross_entropy(net, x, y))

    def second():
        return reduced(dice(net, x, y))

    capture = InstanceLossCapture()
    for compute, is_captured in ((first, True), (second, False), (first, True), (second, False)):
        with capture.step((x, y), WIDTH) as step:
            loss = compute()
        assert (step.observe(loss) is not None) == is_captured


def test_a_hinge_that_nothing_activates_shows_nothing_and_is_asked_again():
    net, capture, reach = plain(), InstanceLossCapture(), [-100.0]

    def margin(net, x, y):
        return F.relu(reach[0] - picked(net(x), y))

    assert captured(margin, net, 6, capture)[1] is None
    reach[0] = 100.0
    assert captured(margin, net, 6, capture)[1] is not None


def test_the_network_behind_its_last_layers_is_not_run_backward():
    """Its hooks would be called, and reentrant checkpoints would fail."""
    net, called = plain(), []
    net.layers[0].register_full_backward_hook(lambda *_: called.append(1))
    assert captured(cross_entropy, net, WIDTH)[1] is not None
    assert called == []


@pytest.mark.parametrize("is_reentrant", [True, False])
def test_checkpointed_layers_are_no_obstacle(is_reentrant):
    net = plain()

    def through_checkpoint(net, x, y):
        logits = torch.utils.checkpoint.checkpoint(net.layers, x.requires_grad_(), use_reentrant=is_reentrant)
        return picked(logits.log_softmax(1), y)

    assert captured(through_checkpoint, net, 6)[1] is not None


def matthews(net, x, y):
    probs, target = net(x).sigmoid(), hot(y)
    hits, misses = (probs * target).sum(), (probs * (1 - target)).sum()
    rejected, lost = ((1 - probs) * (1 - target)).sum(), ((1 - probs) * target).sum()
    product = (hits + misses) * (hits + lost) * (rejected + misses) * (rejected + lost)
    return 1 - (hits * rejected - misses * lost + 1) / (product.sqrt() + 1)


def f_measure(net, x, y):
    probs, target = net(x).softmax(1), hot(y)
    return 1 - 2 * (probs * target).sum() / (probs.sum() + target.sum())


def geometric(net, x, y):
    return cross_entropy(net, x, y).mean() * net(x).square().mean()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", [matthews, f_measure, geometric], ids=lambda loss: loss.__name__)
def test_sums_that_are_multiplied_by_each_other_are_no_sums_of_losses(loss, size):
    _, observation, reason, _ = captured(loss, plain(), size, reduce=lambda value: value)
    assert observation is None
    assert "No per-instance loss was found" in reason


def test_a_loss_may_be_weighed_by_a_parameter_of_its_own():
    net, uncertainty = plain(), nn.Parameter(torch.zeros(()))
    _, observation, reason, values = captured(
        cross_entropy, net, 4, reduce=lambda values: values.mean() * (-uncertainty).exp() + uncertainty
    )
    assert reason is None
    torch.testing.assert_close(observation.losses, values.detach(), rtol=1e-5, atol=1e-6)


class Subclass(torch.Tensor):
    """Of the kind that medical images come in."""


def test_a_mean_of_a_subclass_of_tensors_is_weighed():
    net, weights = plain(), torch.rand(4) + 0.5
    x, y = torch.randn(4, 3).as_subclass(Subclass), torch.arange(4) % WIDTH
    with InstanceLossCapture().step((x, y), 4, weights=weights) as step:
        root = cross_entropy(net, x, y).mul(2).mean()
    assert step.observe(root) is not None
    found = torch.autograd.grad(root, list(net.layers.parameters()))
    expected = torch.autograd.grad((2 * cross_entropy(net, x, y) * weights).mean(), list(net.layers.parameters()))
    torch.testing.assert_close(
        [each.as_subclass(torch.Tensor) for each in found], [each.as_subclass(torch.Tensor) for each in expected]
    )
