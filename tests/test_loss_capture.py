from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy as early_bound

from lightning_autoassist.loss_capture import InstanceLossCapture
from tests.test_losses import B, C, cases_and_reductions

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def observed(compute, batch=(), batch_size=B, weights=None, module=None, **options):
    """The output of ``compute`` under capture, and what was observed."""
    with InstanceLossCapture(**options).step(batch, batch_size, weights=weights, module=module) as step:
        output = compute()
    return output, step.observe(output), step.reason


def by_instance(rows, function):
    """Unreduced losses, shape (B,): the sum over kl_div's classes, the mean over all else."""
    if function is F.kl_div:
        return rows.sum(1)
    return rows.reshape(B, -1).mean(1)


# ---- every loss


@pytest.mark.parametrize(("case", "reduction"), cases_and_reductions())
def test_nothing_of_the_users_changes(case, reduction):
    values, fixed = case.make()

    def plain():
        loss = case.function(**values, **fixed, reduction=reduction)
        return loss.mean() if reduction == "none" else loss

    expected = plain()
    expected_gradients = torch.autograd.grad(0.3 * expected, list(values.values()))
    for weights in (None, torch.ones(B)):
        loss, observation, reason = observed(plain, weights=weights)
        assert reason is None
        assert observation.source.startswith(case.function.__name__)
        assert torch.equal(loss, expected)
        gradients = torch.autograd.grad(0.3 * loss, list(values.values()))
        assert all(map(torch.equal, gradients, expected_gradients))


@pytest.mark.parametrize(("case", "reduction"), cases_and_reductions())
def test_losses_are_those_of_the_unreduced_call(case, reduction):
    values, fixed = case.make()
    rows = case.function(**values, **fixed, reduction="none").detach()
    if "ignore_index" in fixed:
        counts = (fixed["target"] != fixed["ignore_index"]).float().reshape(B, -1)
        expected = (rows.reshape(B, -1) * counts).sum(1) / counts.sum(1).clamp(min=1)
    else:
        expected = by_instance(rows, case.function)

    def step():
        loss = case.function(**values, **fixed, reduction=reduction)
        return loss.mean() if reduction == "none" else loss

    _, observation, _ = observed(step, score="loss")
    torch.testing.assert_close(observation.losses, expected)
    torch.testing.assert_close(observation.scores, expected)
    for tensor in observation[:2]:
        assert tensor.shape == (B,)
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


@pytest.mark.parametrize(("case", "reduction"), cases_and_reductions())
def test_gradients_are_those_of_the_hand_weighted_loss(case, reduction):
    values, fixed = case.make()
    weights = torch.rand(B) + 0.5

    def plain(reduction):
        loss = case.function(**values, **fixed, reduction=reduction)
        return loss.mean() if reduction == "none" else loss

    loss, _, _ = observed(lambda: plain(reduction), weights=weights)
    assert torch.equal(loss, plain(reduction))
    gradients = torch.autograd.grad(loss, list(values.values()))
    # Row i of the loss depends on row i of the inputs only: its weight is a factor of that row's gradient.
    for value, gradient, unweighted in zip(
        values.values(), gradients, torch.autograd.grad(plain(reduction), list(values.values())), strict=True
    ):
        shape = [1] * value.ndim
        shape[case.batch_axis] = B
        atol = 1e-6 * float(unweighted.abs().max())
        torch.testing.assert_close(gradient, unweighted * weights.view(shape), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_observation_depends_neither_on_reduction_scale_nor_weights(reduction):
    logits, target = torch.randn(B, C, requires_grad=True), torch.randint(0, C, (B,))
    _, expected, _ = observed(lambda: F.cross_entropy(logits, target))
    for weights in (None, torch.rand(B)):
        _, found, _ = observed(
            lambda: 128 * F.cross_entropy(logits, target, reduction=reduction).sum(), weights=weights
        )
        torch.testing.assert_close(found.losses, expected.losses)
        torch.testing.assert_close(found.scores, expected.scores)
        assert torch.equal(found.labels, target)


def test_score_of_cross_entropy_is_softmax_minus_target():
    logits, target = torch.randn(B, C, requires_grad=True), torch.randint(0, C, (B,))
    _, observation, _ = observed(lambda: F.cross_entropy(logits, target))
    torch.testing.assert_close(observation.scores, (logits.softmax(1) - F.one_hot(target, C)).norm(dim=1))


# ---- ways to call a loss


@pytest.mark.parametrize("loss_function", [F.cross_entropy, early_bound, nn.CrossEntropyLoss()], ids=str)
def test_source_names_the_users_line(loss_function):
    logits, target = torch.randn(B, C, requires_grad=True), torch.randint(0, C, (B,))
    _, observation, _ = observed(lambda: loss_function(logits, target))
    file, line = observation.source.removeprefix("cross_entropy at ").split(":")
    assert file == "test_loss_capture.py"
    assert "loss_function(logits, target)" in Path(__file__).read_text().splitlines()[int(line) - 1]


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: {"loss": loss, "log": 1}])
def test_output_may_be_the_loss_or_a_mapping(wrap):
    values = torch.randn(B, requires_grad=True)
    _, observation, _ = observed(lambda: wrap(F.mse_loss(values, torch.zeros(B))))
    torch.testing.assert_close(observation.losses, values.detach().square())
    assert observation.labels is None


def test_autocast_stays_as_it_was():
    logits, target = torch.randn(B, C, requires_grad=True), torch.randint(0, C, (B,))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(logits @ torch.eye(C), target)

    expected = step()
    for weights in (None, torch.ones(B)):
        loss, observation, _ = observed(step, weights=weights)
        assert torch.equal(loss, expected)
        assert torch.equal(*(torch.autograd.grad(each, logits)[0] for each in (step(), loss)))
        assert observation.losses.dtype == torch.float32


# ---- ways out


def test_instance_loss_in_the_output_is_taken():
    values, weights = torch.randn(B, requires_grad=True), torch.rand(B)

    def step():
        losses = values.square() * 3
        return {"loss": losses.mean(), "instance_loss": losses}

    output, observation, _ = observed(step, weights=weights)
    assert torch.equal(observation.losses, 3 * values.detach().square())
    assert torch.equal(observation.scores, observation.losses)
    (gradient,) = torch.autograd.grad(output["loss"], values)
    torch.testing.assert_close(gradient, 6 * values.detach() * weights / B)


def test_instance_loss_behind_a_named_loss_is_weighted_once():
    values, weights = torch.randn(B, requires_grad=True), torch.rand(B)

    def step():
        losses = F.mse_loss(values, torch.zeros(B), reduction="none")
        return {"loss": losses.mean(), "instance_loss": losses}

    output, observation, _ = observed(step, weights=weights)
    torch.testing.assert_close(observation.losses, values.detach().square())
    (gradient,) = torch.autograd.grad(output["loss"], values)
    torch.testing.assert_close(gradient, 2 * values.detach() * weights / B)


@pytest.mark.parametrize("bad", [torch.zeros(B + 1), torch.zeros(()), 0.5])
def test_instance_loss_of_another_shape_is_refused(bad):
    values = torch.randn(B, requires_grad=True)
    _, observation, reason = observed(lambda: {"loss": values.sum(), "instance_loss": bad})
    assert observation is None
    assert rf"must be a tensor of shape ({B},)" in reason


def test_detached_instance_loss_takes_no_weights():
    values = torch.randn(B, requires_grad=True)

    def step():
        losses = values.square()
        return {"loss": losses.mean(), "instance_loss": losses.detach()}

    assert observed(step)[1].losses.shape == (B,)
    _, observation, reason = observed(step, weights=torch.ones(B))
    assert observation is None
    assert "weights='none'" in reason


@pytest.mark.parametrize("output", [None, torch.zeros(()), {"loss": None}, {}, 3.0])
def test_where_nothing_can_be_attributed_the_reason_names_the_ways_out(output):
    module = nn.Linear(1, 1)
    _, observation, reason = observed(lambda: output, module=module)
    assert observation is None
    assert "Linear.training_step" in reason
    assert "instance_loss" in reason


# ---- settings


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="score must be one of gradient_norm, loss, got 'norm'"):
        InstanceLossCapture("norm")
    with pytest.raises(ValueError, match="row_order must be one of"):
        InstanceLossCapture(row_order="major")
