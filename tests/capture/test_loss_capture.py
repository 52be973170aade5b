from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy as early_bound

from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from tests.helpers.versions import finds_losses_by_hand
from tests.losses.test_losses import B, C, cases_and_reductions

pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    if case.function is F.ctc_loss and reduction == "mean":  # alone among torch's means, it is by lengths
        expected = expected / torch.as_tensor(fixed["target_lengths"])

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


@pytest.mark.parametrize(
    "loss_function", [F.cross_entropy, early_bound, nn.CrossEntropyLoss()], ids=["function", "bound early", "module"]
)
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


# ---- shapes

T = 4


def tokens_and_logits(time_major, padding=None):
    tokens = torch.randint(1, C, (B, T + 1))
    if padding is not None:
        tokens[::2, -2:] = padding
        tokens[1, 1:] = padding
    logits = torch.randn(B, T, C, requires_grad=True)
    target = tokens[:, 1:]
    if time_major:
        return tokens, logits, logits.transpose(0, 1).reshape(-1, C), target.t().reshape(-1)
    return tokens, logits, logits.reshape(-1, C), target.reshape(-1)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("told_by", ["shape", "targets", "option"])
def test_flattened_tokens_are_folded_to_instances(time_major, padding, told_by):
    tokens, logits, flat, target = tokens_and_logits(time_major, padding)
    options, batch = {}, (tokens,)
    if told_by != "shape":
        flat = flat * 1.0  # no trace of the view is left
    if told_by == "option":
        options, batch = {"row_order": "time_major" if time_major else "batch_major"}, ()
    ignored = -100 if padding is None else padding
    weights = torch.rand(B)

    loss, observation, _ = observed(
        lambda: F.cross_entropy(flat, target, ignore_index=ignored), batch, weights=weights, **options
    )

    rows = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], ignore_index=ignored, reduction="none")
    counts = (tokens[:, 1:] != ignored).float()
    torch.testing.assert_close(observation.losses, (rows * counts).sum(1).detach() / counts.sum(1).clamp(min=1))
    norms = (logits.softmax(2) - F.one_hot(tokens[:, 1:], C)).norm(dim=2) * counts
    torch.testing.assert_close(observation.scores, norms.sum(1).detach() / counts.sum(1).clamp(min=1))
    assert observation.losses[1] == (0 if padding is not None else rows[1].mean())
    assert observation.labels is None
    weighted = (rows * counts * weights[:, None]).sum() / counts.sum()
    found, expected = (torch.autograd.grad(each, logits)[0] for each in (loss, weighted))
    torch.testing.assert_close(found, expected)


def test_masked_targets_of_transformers_are_found_in_the_batch():
    """labels shifted by one, padded with -100: only the unmasked ones are those of the batch."""
    tokens = torch.randint(1, C, (B, T))
    labels = tokens.clone()
    labels[:3, -1] = -100
    target = F.pad(labels, (0, 1), value=-100)[:, 1:].reshape(-1)
    flat = torch.randn(B * T, C, requires_grad=True)
    _, observation, _ = observed(lambda: F.cross_entropy(flat, target), {"input_ids": tokens, "labels": labels})
    rows = F.cross_entropy(flat, target, reduction="none").reshape(B, T).detach()
    torch.testing.assert_close(observation.losses, rows.sum(1) / (target.reshape(B, T) != -100).sum(1))


def test_row_order_is_asked_of_the_targets_once():
    tokens, _, flat, target = tokens_and_logits(time_major=True)
    flat, capture, found = flat * 1.0, InstanceLossCapture(), []
    for batch in ((tokens,), ()):
        with capture.step(batch, B) as step:
            loss = F.cross_entropy(flat, target)
        found.append(step.observe(loss))
    assert torch.equal(found[0].losses, found[1].losses)


@pytest.mark.parametrize("rows", [2 * B, B + 1])
def test_rows_of_unknown_instances_are_not_guessed(rows):
    logits, target = torch.randn(rows, C, requires_grad=True), torch.randint(0, C, (rows,))
    for weights in (None, torch.rand(B)):
        loss, observation, reason = observed(lambda: F.cross_entropy(logits, target), weights=weights)
        assert observation is None
        assert f"has {rows} rows for {B} instances" in reason
        assert torch.equal(loss, F.cross_entropy(logits, target))


def test_two_views_are_folded_when_told():
    logits, target = torch.randn(2 * B, C, requires_grad=True), torch.randint(0, C, (2 * B,))
    _, observation, _ = observed(lambda: F.cross_entropy(logits, target), row_order="time_major")
    rows = F.cross_entropy(logits, target, reduction="none").detach()
    torch.testing.assert_close(observation.losses, (rows[:B] + rows[B:]) / 2)


def test_pixels_are_averaged():
    logits = torch.randn(B, C, 3, 4, requires_grad=True)
    target = torch.randint(0, C, (B, 3, 4))
    _, observation, _ = observed(lambda: F.cross_entropy(logits, target))
    norms = (logits.softmax(1) - F.one_hot(target, C).movedim(-1, 1)).norm(dim=1)
    torch.testing.assert_close(observation.scores, norms.mean((1, 2)).detach())


def test_score_of_a_regression_is_the_norm_of_the_whole_gradient():
    output, target = torch.randn(B, 3, 4, requires_grad=True), torch.randn(B, 3, 4)
    _, observation, _ = observed(lambda: F.mse_loss(output, target))
    (gradient,) = torch.autograd.grad((output - target).square().mean((1, 2)).sum(), output)
    torch.testing.assert_close(observation.scores, gradient.flatten(1).norm(dim=1))


def test_a_regression_over_time_has_its_batch_on_the_second_axis():
    output, target, weights = torch.randn(T, B, 3, requires_grad=True), torch.randn(T, B, 3), torch.rand(B)
    loss, observation, _ = observed(lambda: F.mse_loss(output, target), weights=weights)
    rows = (output - target).square().mean((0, 2))
    torch.testing.assert_close(observation.losses, rows.detach())
    torch.testing.assert_close(torch.autograd.grad(loss, output), torch.autograd.grad((rows * weights).mean(), output))


def test_a_batch_of_one_needs_no_axis_for_it():
    logits = torch.randn(C, requires_grad=True)
    loss, observation, _ = observed(
        lambda: F.cross_entropy(logits, torch.tensor(2)), batch_size=1, weights=torch.tensor([3.0])
    )
    assert torch.equal(observation.losses, loss.detach().reshape(1))
    plain = F.cross_entropy(logits, torch.tensor(2))
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], 3 * torch.autograd.grad(plain, logits)[0])


@pytest.mark.parametrize("instances", [B, C])
def test_a_loss_called_for_each_instance_is_not_guessed(instances):
    logits = torch.randn(instances, C, requires_grad=True)
    target = torch.zeros((), dtype=torch.long)
    for weights in (None, torch.ones(instances)):
        _, observation, reason = observed(
            lambda: sum(F.cross_entropy(row, target) for row in logits), batch_size=instances, weights=weights
        )
        assert observation is None
        assert "has 1 rows" in reason


def test_an_input_of_one_row_for_all_is_weighted_for_each():
    anchor, positive, negative = (torch.randn(rows, 3, requires_grad=True) for rows in (1, B, B))
    weights = torch.rand(B)
    inputs = (anchor, positive, negative)
    loss, observation, _ = observed(lambda: F.triplet_margin_loss(*inputs, margin=4.0), weights=weights)
    rows = F.triplet_margin_loss(*inputs, margin=4.0, reduction="none")
    torch.testing.assert_close(observation.losses, rows.detach())
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad((rows * weights).mean(), inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_observed_in_float32(dtype):
    logits, target = torch.randn(B, C, dtype=dtype, requires_grad=True), torch.randint(0, C, (B,))
    loss, observation, _ = observed(lambda: F.cross_entropy(logits, target), weights=torch.ones(B))
    plain = F.cross_entropy(logits, target)
    assert torch.equal(loss, plain)
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.autograd.grad(plain, logits)[0])
    assert observation.losses.dtype == observation.scores.dtype == torch.float32
    expected = (logits.detach().float().softmax(1) - F.one_hot(target, C)).norm(dim=1)
    torch.testing.assert_close(observation.scores, expected, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("masked", ["by the user's mean", "by index"])
def test_the_users_mask_is_respected(masked):
    values, target = torch.randn(B, T, requires_grad=True), torch.zeros(B, T)
    mask = (torch.arange(B * T).reshape(B, T) % 3 > 0).float()
    mask[2] = 0

    def step():
        rows = F.mse_loss(values, target, reduction="none")
        return (rows * mask).sum() / mask.sum() if masked == "by the user's mean" else rows[mask > 0].mean()

    _, observation, _ = observed(step)
    expected = (values.detach().square() * mask).sum(1) / mask.sum(1).clamp(min=1)
    torch.testing.assert_close(observation.losses, expected)
    assert observation.losses[2] == observation.scores[2] == 0


# ---- several losses


def test_losses_are_told_apart_by_their_coefficients():
    logits, values = torch.randn(B, C, requires_grad=True), torch.randn(B, requires_grad=True)
    target, weights = torch.randint(0, C, (B,)), torch.rand(B)

    def step():
        F.mse_loss(values, torch.ones(B))  # only logged
        with torch.no_grad():
            F.l1_loss(values, torch.ones(B))
        return F.cross_entropy(logits, target) + 0.3 * F.mse_loss(values, torch.zeros(B))

    main, aux = F.cross_entropy(logits, target, reduction="none"), values.square()
    _, ce, _ = observed(lambda: F.cross_entropy(logits, target))
    loss, observation, _ = observed(step, weights=weights)
    torch.testing.assert_close(observation.losses, (main + 0.3 * aux).detach())
    torch.testing.assert_close(observation.scores, (ce.scores**2 + (0.3 * 2 * values.detach()) ** 2).sqrt())
    assert torch.equal(observation.labels, target)
    assert observation.source.count(" at ") == 2
    found = torch.autograd.grad(loss, [logits, values])
    expected = torch.autograd.grad(((main + 0.3 * aux) * weights).mean(), [logits, values])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("reductions", ["mean sum", "sum none", "none mean", "sum sum"])
def test_coefficients_of_several_losses_do_not_depend_on_their_reductions(reductions):
    first, second = torch.randn(B, C, requires_grad=True), torch.randn(B, 3, requires_grad=True)
    one, other = reductions.split()

    def mean(values, target, reduction):
        loss = F.mse_loss(values, target, reduction=reduction)
        return loss if reduction == "mean" else loss.sum() / values.numel()

    _, observation, _ = observed(
        lambda: 7 * (0.5 * mean(first, torch.zeros(B, C), one) + mean(second, torch.zeros(B, 3), other))
    )
    expected = 0.5 * first.detach().square().mean(1) + second.detach().square().mean(1)
    torch.testing.assert_close(observation.losses, expected)


def test_a_loss_added_in_place_counts_as_well():
    first, second = torch.randn(B, requires_grad=True), torch.randn(B, requires_grad=True)

    def step():
        loss = F.mse_loss(first, torch.zeros(B))
        loss += 0.5 * F.mse_loss(second, torch.zeros(B))
        return loss

    _, observation, _ = observed(step)
    torch.testing.assert_close(observation.losses, first.detach() ** 2 + 0.5 * second.detach() ** 2)


def test_a_detached_call_is_a_metric():
    logits, target = torch.randn(B, C, requires_grad=True), torch.randint(0, C, (B,))
    _, observation, _ = observed(lambda: F.cross_entropy(logits, target) + 0 * F.nll_loss(logits.detach(), target))
    assert observation.source.startswith("cross_entropy")


@pytest.mark.parametrize(
    ("penalty", "has_other_terms"),
    [
        (lambda net, output: 0.0, False),
        (lambda net, output: 1e-2 * sum(weight.pow(2).sum() for weight in net.parameters()), True),
        # Shown to be one value an instance.
        pytest.param(lambda net, output: 1e-2 * output.exp().sum(1).mean(), False, marks=finds_losses_by_hand),
        (lambda net, output: 1e-2 * output.exp().sum(0).mean(), True),
        (lambda net, output: F.mse_loss(output, torch.zeros(B, C)), False),
        (lambda net, output: (1e-2 * output.exp().sum(1).mean()).detach(), False),
    ],
    ids=["nothing", "L2", "by hand", "of classes", "named", "detached"],
)
def test_terms_that_were_not_captured_are_noticed(penalty, has_other_terms):
    net, target = nn.Linear(3, C), torch.randint(0, C, (B,))
    capture = InstanceLossCapture()
    with capture.step((), B) as step:
        output = net(torch.randn(B, 3))
        loss = F.cross_entropy(output, target) + penalty(net, output)
    assert step.observe(loss).source.startswith("cross_entropy")
    assert capture.has_other_terms == has_other_terms
