"""Which rows count, and for how much."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist.capture.interceptor import TrainingStep
from lightning_autoassist.capture.layers import LayerCapture
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.kfac.layer_choice import choose_layers
from lightning_autoassist.kfac.options import KFACOptions, UpdateClock
from lightning_autoassist.kfac.preconditioner import Preconditioner
from tests.kfac.modules import convolutions, images, mlp


class Watched:
    """A preconditioner of a net, which is shown batches; every step updates the factors."""

    def __init__(self, net, **options):
        self.net = net
        options = KFACOptions(factor_update_steps=1, **options)
        self.part = Preconditioner(choose_layers(net, options).chosen, options)

    def show(self, values, target, weights=None, loss=F.cross_entropy):
        """One micro-batch; with weights as filtering lets them enter."""
        layers = {name: layer.kind.layer for name, layer in self.part.layers.items()}
        capture = LayerCapture(layers, lambda call: self.part.add(call.name, call))
        step = TrainingStep(((values, target),), {}, lambda: loss(self.net(values), target))
        if weights is None:
            capture.observe(step).backward()
        else:
            outer = InstanceLossCapture().step((values, target), len(target), weights=weights)
            with outer:
                found = capture.observe(step)
            outer.observe(found)
            found.backward()
        capture.close()

    def factors(self):
        return [factor.value() for layer in self.part.layers.values() for factor in layer.factors]


def shown(net, *batches, **options):
    """Factors after one step of several micro-batches."""
    watched = Watched(net, **options)
    for batch in batches:
        watched.show(*batch)
    watched.part.step({})
    return watched.factors()


def data(num=12):
    values, target = images(num).tensors
    return values, target


def assert_close(left, right, **tolerance):
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other, **{"rtol": 1e-5, "atol": 1e-7, **tolerance})


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("net", [mlp, convolutions])
def test_micro_batches_count_as_one_batch(net, sharing):
    net, (values, target) = net(), data()
    parts = [(values[:4], target[:4]), (values[4:], target[4:])]
    assert_close(shown(net, *parts, weight_sharing=sharing), shown(net, (values, target), weight_sharing=sharing))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("net", [mlp, convolutions])
def test_a_row_of_weight_2_is_that_row_twice(net, sharing):
    net, (values, target) = net(), data()
    weights = torch.ones(12)
    weights[3] = 2
    twice = torch.cat([values, values[3:4]]), torch.cat([target, target[3:4]])
    assert_close(
        shown(net, (values, target, weights), weight_sharing=sharing), shown(net, twice, weight_sharing=sharing)
    )


def test_factors_of_weighted_draws_are_those_of_all_instances():
    torch.manual_seed(0)
    net = nn.Linear(4, 3)
    values, target = torch.randn(60, 4), torch.arange(60) % 3
    probs = torch.linspace(0.2, 1, 60)
    values *= 1 + (1 - probs).unsqueeze(1)  # a mean without weights would miss it
    watched = Watched(net, factor_decay=0.999)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        kept = torch.rand(60, generator=generator) < probs
        watched.show(values[kept], target[kept], 1 / probs[kept])
        watched.part.step({})
    expected = shown(net, (values, target))
    assert_close(watched.factors(), expected, rtol=0.05, atol=0.04)
    naive = values.mul(probs.unsqueeze(1)).mT @ values / probs.sum()  # the factor of unweighted draws, in the mean
    assert (naive - expected[0][0, :4, :4]).abs().max() > 0.15


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda *args: F.cross_entropy(*args, reduction="sum")])
@pytest.mark.parametrize(("share", "every"), [(1.0, 1), (0.5, 2), (0.3, 3), (0.01, 100)])
@pytest.mark.parametrize("make", [mlp, convolutions])
def test_factors_of_a_share_of_the_instances_are_those_of_every_nth(make, share, every, loss):
    net, (values, target) = make(), data(13)
    weights = torch.rand(13) + 0.5
    for given in (None, weights):
        thinned = None if given is None else given[::every]
        left = shown(net, (values, target, given, loss), factor_share=share)
        right = shown(net, (values[::every], target[::every], thinned, loss))
        assert_close(left, right)


def test_reductions_do_not_matter():
    net, (values, target) = convolutions(), data()
    expected = shown(net, (values, target))
    for loss in (
        lambda logits, y: F.cross_entropy(logits, y, reduction="sum"),
        lambda logits, y: 0.01 * F.cross_entropy(logits, y),
        lambda logits, y: F.cross_entropy(logits, y, reduction="none").sum(),
    ):
        assert_close(shown(net, (values, target, None, loss)), expected)


def test_a_step_that_is_not_finite_is_left_out():
    net, (values, target) = mlp(), data()
    watched = Watched(net)
    watched.show(values, target)
    watched.part.step({})
    before = [factor.clone() for factor in watched.factors()]
    for bad in (float("nan"), float("inf")):
        broken = values.clone()
        broken[0, 0, 0, 0] = bad
        watched.show(broken, target)
        watched.part.step({})
        assert_close(watched.factors(), before, rtol=0, atol=0)
    watched.show(2 * values, target)
    watched.part.step({})
    assert not torch.equal(watched.factors()[0], before[0])


def test_the_running_mean_needs_no_correction():
    net, (values, target) = mlp(), data()
    watched = Watched(net)
    for _ in range(3):
        watched.show(values, target)
        watched.part.step({})
    inputs = torch.cat([values.flatten(1), torch.ones(12, 1)], 1)
    torch.testing.assert_close(watched.factors()[0][0], inputs.mT @ inputs / 12, rtol=1e-5, atol=1e-6)


def test_a_layer_that_is_called_twice_adds_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, values):
            return self.layer(self.layer(values))

    torch.manual_seed(0)
    net, values, target = Twice(), torch.randn(6, 4), torch.arange(6) % 4
    hidden = net.layer(values)
    logits = net.layer(hidden)
    gradient = logits.softmax(1) - F.one_hot(target, 4)
    first = gradient @ net.layer.weight
    inputs, gradients = torch.cat([values, hidden]), torch.cat([first, gradient])
    found = shown(net, (values, target))
    assert_close([each[0] for each in found], [inputs.mT @ inputs / 12, gradients.mT @ gradients / 6])


def test_tokens_are_the_terms_of_a_loss_over_tokens():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3))
    tokens, target = torch.randint(0, 5, (6, 7)), torch.randint(0, 3, (6, 7))
    target[tokens == 0] = -100

    def loss(logits, labels):
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())

    counts, _, inputs, gradients = shown(net, (tokens, target, None, loss))
    own = (net(tokens).softmax(2) - F.one_hot(target.clamp(min=0), 3))[tokens != 0]
    torch.testing.assert_close(gradients[0], own.mT @ own / len(own), rtol=1e-5, atol=1e-7)
    expected = torch.bincount(tokens[tokens != 0], minlength=5) / len(own)
    torch.testing.assert_close(counts[0], expected)
    rows = F.pad(net[0](tokens).flatten(0, 1), (0, 1), value=1.0)
    torch.testing.assert_close(inputs[0], rows.mT @ rows / 42, rtol=1e-5, atol=1e-7)


def test_updates_are_due_early_and_then_at_the_interval():
    def due(clock, steps=40):
        return [step for step in range(1, steps) if clock.is_due(step) and clock.note(step)]

    assert due(UpdateClock(10)) == [1, 2, 4, 8, 18, 28, 38]
    assert due(UpdateClock(10, has_early=False)) == [1, 11, 21, 31]
    assert due(UpdateClock(1)) == list(range(1, 40))
    assert due(UpdateClock(lambda step: 5 if step < 20 else 10, has_early=False)) == [1, 6, 11, 16, 26, 36]


BAD = [
    ({"damping": 0}, "damping must be positive, got 0"),
    ({"factor_decay": 1.0}, r"factor_decay must be in \[0, 1\)"),
    ({"factor_update_steps": 0}, "factor_update_steps must be at least 1, got 0"),
    ({"inv_update_steps": 2.5}, "inv_update_steps must be a whole number, got 2.5"),
    ({"step": "clip"}, "step must be one of graft, kl_clip, none, got 'clip'"),
    ({"grad_worker_fraction": "mem"}, "grad_worker_fraction must be one of comm_opt"),
    ({"grad_worker_fraction": 2}, r"grad_worker_fraction must be in \(0, 1\], got 2"),
    ({"skip_layers": ("(",)}, r"skip_layers must hold regular expressions, got '\('"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        KFACOptions(**options)


def test_one_pattern_alone_is_no_list():
    with pytest.raises(TypeError, match="skip_layers must be a list of regular expressions, got the string 'head'"):
        KFACOptions(skip_layers="head")
