"""The user's own factors on rows: an instance's loss is its share of the returned one, and weights enter it whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist.capture.autograd_graph import knows_shapes
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from tests.capture.test_loss_capture import _seeded  # noqa: F401, the fixture

B, C, T = 8, 5, 4
CLASS_WEIGHTS = torch.tensor([10.0, 1.0, 0.1, 3.0, 0.5])

pytestmark = [
    pytest.mark.skipif(
        not knows_shapes(torch.zeros(1, requires_grad=True).sum()), reason="this torch's graph tells no shapes"
    ),
    pytest.mark.filterwarnings("ignore:.*is taken for the mean of one loss an instance"),
]


class Net(nn.Module):
    """Layers, and parameters that losses read themselves."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, C))
        self.log_variance = nn.Parameter(torch.tensor(0.3))

    def forward(self, features):
        return self.layers(features)


def ce(net, x, y):
    return F.cross_entropy(net(x), y, reduction="none")


def focal_factor(net, x, y):
    return (1 - net(x).softmax(1).gather(1, y[:, None])[:, 0]) ** 2


# Each returns the rows that the user reduces, shape (B, *d), of which an instance's mean is its loss.


def class_weights(net, x, y):
    return ce(net, x, y) * CLASS_WEIGHTS[y]


def sample_weights(net, x, y):
    return x[:, 0].abs() * F.mse_loss(net(x)[:, 0], x[:, 1], reduction="none")


def focal(net, x, y):
    rows = ce(net, x, y)
    return (1 - torch.exp(-rows)) ** 2 * rows


def focal_by_probabilities(net, x, y):
    return focal_factor(net, x, y) * ce(net, x, y)


def torchvision_focal(net, x, y):
    ops = pytest.importorskip("torchvision.ops")
    return ops.sigmoid_focal_loss(net(x), F.one_hot(y, C).float(), reduction="none")


def min_snr(net, x, y):
    rows = F.mse_loss(net(x), x.repeat(1, 2)[:, :C], reduction="none").mean(1)
    return rows * (x[:, 2].abs() + 0.1).clamp(max=0.5)


def label_smoothing(net, x, y):
    log_probs = net(x).log_softmax(1)
    return 0.9 * F.nll_loss(log_probs, y, reduction="none") - 0.1 * log_probs.mean(1)


def learned_variance(net, x, y):
    """A factor and a term that are parameters."""
    return ce(net, x, y) * torch.exp(-net.log_variance) + net.log_variance


def two_losses_in_one(net, x, y):
    return CLASS_WEIGHTS[y] * (
        ce(net, x, y) + 0.3 * F.mse_loss(net(x), x.repeat(1, 2)[:, :C], reduction="none").mean(1)
    )


def mixed_up_labels(net, x, y):
    """Mixup's two targets."""
    share = x[:, 0].sigmoid()
    return share * ce(net, x, y) + (1 - share) * ce(net, x, y.roll(1))


def weighted_pixels(net, x, y):
    """Class weights on pixels, (B, T)."""
    logits = torch.stack([net(x + shift) for shift in range(T)], 2)
    target = torch.stack([(y + shift) % C for shift in range(T)], 1)
    return F.cross_entropy(logits, target, reduction="none") * CLASS_WEIGHTS[target]


ROWS = [
    class_weights,
    sample_weights,
    focal,
    focal_by_probabilities,
    torchvision_focal,
    min_snr,
    label_smoothing,
    learned_variance,
    two_losses_in_one,
    mixed_up_labels,
    weighted_pixels,
]
REDUCTIONS = {
    "mean": lambda rows: rows.mean(),
    "sum": lambda rows: rows.sum(),
    "scaled": lambda rows: 128 * rows.mean() / 4,
    "by hand": lambda rows: rows.sum() / rows.numel(),
}


def data(size=B):
    return torch.randn(size, 3), torch.arange(size) % C


def observed(compute, size=B, weights=None, **options):
    with InstanceLossCapture(**options).step((), size, weights=weights) as step:
        loss = compute()
    observation = step.observe(loss)
    assert step.reason is None
    return loss, observation


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.__name__)
def test_losses_are_those_computed_alone_and_weights_enter_whole(rows, reduction):
    net, (x, y), weights = Net(), data(), torch.rand(B) + 0.5
    loss, observation = observed(lambda: REDUCTIONS[reduction](rows(net, x, y)), weights=weights)
    assert torch.equal(loss, REDUCTIONS[reduction](rows(net, x, y)))
    expected = rows(net, x, y).reshape(B, -1).mean(1)
    torch.testing.assert_close(observation.losses, expected.detach(), rtol=1e-5, atol=1e-6)
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    shaped = weights.reshape(-1, *[1] * (rows(net, x, y).ndim - 1))
    wanted = torch.autograd.grad(REDUCTIONS[reduction](rows(net, x, y) * shaped), parameters, allow_unused=True)
    for name, one, other in zip(dict(net.named_parameters()), found, wanted, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("rows", [class_weights, focal, min_snr, sample_weights], ids=lambda rows: rows.__name__)
def test_scores_are_the_norms_of_the_shares_gradients(rows):
    """Where the named loss is the only way to the network."""
    net, (x, y) = Net(), data()
    _, observation = observed(lambda: rows(net, x, y).mean())
    logits = net(x).detach().requires_grad_()

    class Fixed(nn.Module):
        def forward(self, features):
            return logits

    (gradient,) = torch.autograd.grad(rows(Fixed(), x, y).sum(), logits)
    torch.testing.assert_close(observation.scores, gradient.norm(dim=1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rows", ROWS, ids=lambda rows: rows.__name__)
def test_losses_and_scores_do_not_depend_on_batch_size_reduction_and_scale(rows):
    net, (x, y) = Net(), data()
    seen = [
        observed(lambda reduce=reduce, size=size: reduce(rows(net, x[:size], y[:size])), size)[1]
        for reduce in REDUCTIONS.values()
        for size in (B, 5)
    ]
    for each in seen[1:]:
        if rows is mixed_up_labels:  # its roll is another one there
            continue
        torch.testing.assert_close(each.losses, seen[0].losses[: len(each.losses)], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(each.scores, seen[0].scores[: len(each.scores)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [B, 5])
@pytest.mark.parametrize(
    "reduce",
    [
        lambda rows, factors: (rows * factors / len(rows)).sum(),
        lambda rows, factors: (rows / len(rows) * factors).sum(),
    ],
)
def test_a_batch_size_inside_of_equal_factors_is_taken_out(reduce, size):
    net, (x, y) = Net(), data(size)
    _, observation = observed(lambda: reduce(ce(net, x, y), 1.0), size)
    torch.testing.assert_close(observation.losses, ce(net, x, y).detach())


def test_normalized_weights_count_between_instances():
    net, (x, y) = Net(), data()
    for reduce in (
        lambda rows, w: (rows * w).sum() / w.sum(),
        lambda rows, w: (rows * (w / w.sum())).sum(),
        lambda rows, w: (rows * w) @ torch.ones(B),
    ):
        _, observation = observed(lambda reduce=reduce: reduce(ce(net, x, y), CLASS_WEIGHTS[y]))
        expected = (ce(net, x, y) * CLASS_WEIGHTS[y]).detach()
        torch.testing.assert_close(observation.losses / observation.losses.sum(), expected / expected.sum())


MASKS = {
    "sum over count": lambda rows, mask: (rows * mask).sum() / mask.sum(),
    "selected": lambda rows, mask: rows[mask > 0].mean(),
    "normalized": lambda rows, mask: (rows * (mask / mask.sum())).sum(),
    "multiplied": lambda rows, mask: (rows * mask).mean(),
    "in place": lambda rows, mask: rows.mul_(mask).sum() / mask.sum(),
}


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("is_token", [True, False])
def test_masks_leave_the_mean_over_what_they_leave(masked, is_token):
    values, target = torch.randn(B, T, requires_grad=True), torch.zeros(B, T)
    mask = (torch.arange(B * T).reshape(B, T) % 3 > 0).float()
    mask[2] = 0
    weights = torch.rand(B) + 0.5
    if not is_token:
        values, target, mask = values[:, 0], target[:, 0], mask[:, 1]
        values = values.detach().requires_grad_()
    loss, observation = observed(
        lambda: MASKS[masked](F.mse_loss(values, target, reduction="none"), mask), weights=weights
    )
    rows = (values.detach().square() * mask).reshape(B, -1)
    counts = mask.reshape(B, -1).sum(1).clamp(min=1)
    torch.testing.assert_close(observation.losses, rows.sum(1) / counts)
    assert observation.losses[2] == observation.scores[2] == 0
    (found,) = torch.autograd.grad(loss, values)
    shaped = weights.reshape(-1, *[1] * (values.ndim - 1))
    (expected,) = torch.autograd.grad(MASKS[masked](values.square() * shaped, mask), values)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_mean_within_instances_is_not_divided_again():
    net, (x, _) = Net(), data()
    mask = (torch.arange(B * C).reshape(B, C) % 3 > 0).float()

    def step():
        rows = F.mse_loss(net(x), torch.zeros(B, C), reduction="none")
        return ((rows * mask).sum(1) / mask.sum(1)).mean()

    _, observation = observed(step)
    output = net(x).detach()
    torch.testing.assert_close(observation.losses, (output.square() * mask).sum(1) / mask.sum(1))
    torch.testing.assert_close(observation.scores, (2 * output * mask).norm(dim=1) / mask.sum(1))


def test_rows_that_two_reductions_read_are_weighed_once():
    """A focal loss and the plain mean of the same rows."""
    net, (x, y), weights = Net(), data(), torch.rand(B) + 0.5

    def rows():
        each = ce(net, x, y)
        return focal_factor(net, x, y) * each, each

    def step():
        focal, plain = rows()
        return focal.mean() + 0.5 * plain.mean()

    loss, observation = observed(step, weights=weights)
    focal, plain = rows()
    torch.testing.assert_close(observation.losses, (focal + 0.5 * plain).detach())
    assert torch.equal(observation.labels, y)
    found = torch.autograd.grad(loss, list(net.layers.parameters()))
    expected = torch.autograd.grad(((focal + 0.5 * plain) * weights).mean(), list(net.layers.parameters()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_hard_mining_keeps_what_was_mined():
    net, (x, y) = Net(), data()
    _, observation = observed(lambda: ce(net, x, y).topk(3)[0].mean())
    rows = ce(net, x, y).detach()
    torch.testing.assert_close(observation.losses, rows.where(rows >= rows.topk(3)[0][-1], 0.0))


def test_positives_and_negatives_may_have_means_of_their_own():
    net, (x, y), weights = Net(), data(), torch.rand(B) + 0.5
    is_positive = y == 0

    def step(factors):
        rows = ce(net, x, y) * factors
        return rows[is_positive].mean() + 3 * rows[~is_positive].mean()

    loss, observation = observed(lambda: step(1.0), weights=weights)
    share = ce(net, x, y).detach() * torch.where(is_positive, 1 / is_positive.sum(), 3 / (~is_positive).sum())
    torch.testing.assert_close(observation.losses / observation.losses.sum(), share / share.sum())
    found = torch.autograd.grad(loss, list(net.layers.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(step(weights), list(net.layers.parameters())))
