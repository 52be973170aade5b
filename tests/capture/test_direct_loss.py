"""Steps that return one loss of torch run unwatched once the graph was seen to tell the same; nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_autoassist.capture.active_step import active_steps
from lightning_autoassist.capture.direct_loss import _STEPS
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from tests.helpers.versions import finds_losses_by_hand

B, C, F_IN, T = 6, 5, 3, 4
TARGETS = {"classes": lambda: torch.randint(0, C, (B,)), "values": lambda: torch.rand(B, C)}


def tokens(logits, target, reduction):
    rows = logits.unsqueeze(1).expand(B, T, C).reshape(-1, C)
    return F.cross_entropy(rows, target.repeat_interleave(T), reduction=reduction)


def ignoring(logits, target, reduction):
    return F.cross_entropy(logits, target.where(target != 1, -100), torch.arange(1.0, C + 1), reduction=reduction)


LOSSES = {
    "cross_entropy": (F.cross_entropy, "classes"),
    "ignored classes, weighted": (ignoring, "classes"),
    "tokens": (tokens, "classes"),
    "nll_loss": (lambda x, y, reduction: F.nll_loss(x.log_softmax(1), y, reduction=reduction), "classes"),
    "mse_loss": (F.mse_loss, "values"),
    "smooth_l1_loss": (F.smooth_l1_loss, "values"),
    "huber_loss": (F.huber_loss, "values"),
    "binary_cross_entropy": (
        lambda x, y, reduction: F.binary_cross_entropy(x.sigmoid(), y, reduction=reduction),
        "values",
    ),
    "binary_cross_entropy_with_logits": (
        lambda x, y, reduction: F.binary_cross_entropy_with_logits(
            x, y, pos_weight=torch.arange(1.0, C + 1), reduction=reduction
        ),
        "values",
    ),
}


class Run:
    """Steps of one network, with their observations and gradients."""

    def __init__(self, *, score="gradient_norm", is_always_watched=False):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(F_IN, 8), nn.ReLU(), nn.Linear(8, C))
        self.capture = InstanceLossCapture(score)
        if is_always_watched:
            self.capture._direct.refuse()
        self.num_unwatched = 0

    def step(self, loss_of, target, weights, dtype=None, num_rows=B):
        features = torch.randn(num_rows, F_IN)
        with self.capture.step((features, target), B, weights=weights, margins=True) as step:
            self.num_unwatched += not active_steps()
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                loss = loss_of(self.net(features), target)
        observation = step.observe(loss)
        self.net.zero_grad()
        loss.backward()
        return observation, step.reason, [parameter.grad.clone() for parameter in self.net.parameters()]


def same(left, right):
    return left is right if left is None or right is None else bool(torch.isclose(left, right, 0, 0, True).all())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("is_weighted", [True, False], ids=["weighted", "unweighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_an_unwatched_step_tells_what_a_watched_one_tells_bit_for_bit(name, reduction, is_weighted, dtype):
    if name == "binary_cross_entropy" and dtype is not None:
        pytest.skip("torch refuses it under autocast")
    loss_of, target_kind = LOSSES[name]
    score = "loss" if name == "mse_loss" and reduction == "sum" else "gradient_norm"
    free, watched = Run(score=score), Run(score=score, is_always_watched=True)
    for number in range(_STEPS + 4):
        seen = []
        for run in (free, watched):
            torch.manual_seed(number)
            target, weights = TARGETS[target_kind](), torch.rand(B) + 0.5
            weights = weights if is_weighted else None
            seen.append(run.step(lambda x, y: loss_of(x, y, reduction=reduction), target, weights, dtype))
        (left, reason, left_gradients), (right, _, right_gradients) = seen
        assert reason is None
        assert left.source == right.source
        assert all(same(*pair) for pair in zip((*left[:3], *left[4:]), (*right[:3], *right[4:]), strict=True))
        assert (left.margins is not None) == (target_kind == "classes")
        assert all(map(torch.equal, left_gradients, right_gradients))
    is_cast_in_call = dtype is not None and name not in ("cross_entropy", "ignored classes, weighted", "tokens")
    assert free.num_unwatched == (0 if is_cast_in_call else 4)
    assert watched.num_unwatched == 0


def settled(loss_of=F.cross_entropy):
    run = Run()
    for _ in range(_STEPS + 1):
        assert run.step(loss_of, torch.randint(0, C, (B,)), torch.ones(B))[0] is not None
    assert run.num_unwatched == 1
    return run


def by_hand(logits, target):
    return (logits - F.one_hot(target, C)).square().sum(1).mean()


@finds_losses_by_hand
def test_a_step_that_returns_another_loss_says_so_and_all_later_ones_are_watched():
    run, target, weights = settled(), torch.randint(0, C, (B,)), torch.rand(B)
    observation, reason, _ = run.step(by_hand, target, weights)
    assert observation is None
    assert "returned another loss than in the steps before" in reason
    assert not run.capture.has_other_terms
    with pytest.warns(UserWarning, match="is taken for the mean of one loss an instance"):
        observation, reason, _ = run.step(by_hand, target, weights)
    assert reason is None
    for _ in range(2 * _STEPS):
        assert run.step(F.cross_entropy, target, weights)[0] is not None
    assert run.num_unwatched == 2


def test_a_sum_of_losses_of_torch_is_read_off_the_graph_with_its_weights():
    def loss_of(logits, target):
        return F.cross_entropy(logits, target) + 0.5 * F.mse_loss(logits, F.one_hot(target, C).float())

    target, weights, seen = torch.randint(0, C, (B,)), torch.rand(B), []
    for run in (settled(), Run(is_always_watched=True)):
        run.net.load_state_dict(Run().net.state_dict())
        torch.manual_seed(1)
        seen.append(run.step(loss_of, target, weights))
    (left, reason, left_gradients), (right, _, right_gradients) = seen
    assert reason is None
    torch.testing.assert_close(left[:2], right[:2])
    torch.testing.assert_close(left_gradients, right_gradients)


@finds_losses_by_hand
def test_what_is_only_now_and_then_another_loss_is_watched():
    run = Run()
    for number in range(3 * _STEPS):
        loss_of = by_hand if number % 10 == 9 else F.cross_entropy
        if number == 9:
            with pytest.warns(UserWarning, match="is taken for"):
                run.step(loss_of, torch.randint(0, C, (B,)), None)
        else:
            assert run.step(loss_of, torch.randint(0, C, (B,)), None)[0] is not None
    assert run.num_unwatched == 0


def test_losses_at_two_places_are_watched():
    run = Run()
    for number in range(2 * _STEPS):
        target = torch.randint(0, C, (B,))
        if number % 2:
            run.step(lambda logits, target: F.cross_entropy(logits, target), target, None)
        else:
            run.step(
                lambda logits, target: F.cross_entropy(logits, target),
                target,
                None,
            )
    assert run.num_unwatched == 0


def test_rows_that_are_as_many_as_the_instances_by_chance_stay_untold_after_an_unwatched_step():
    run = settled()
    assert run.step(F.cross_entropy, torch.randint(0, C, (7,)), None, num_rows=7)[0] is None
    observation, reason, _ = run.step(lambda x, y: F.cross_entropy(x, (y + 1) % C), torch.arange(B) % C, None)
    assert observation is None
    assert "need not be the instances'" in reason


def test_an_error_of_the_step_comes_through_unwatched():
    run = settled()

    def failing(logits, target):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run.step(failing, torch.randint(0, C, (B,)), torch.ones(B))
    assert run.step(F.cross_entropy, torch.randint(0, C, (B,)), torch.ones(B))[0] is not None


def test_compiled_networks_are_watched_as_before():
    run = Run()
    run.net.compile(backend="aot_eager")
    for _ in range(_STEPS + 2):
        assert run.step(F.cross_entropy, torch.randint(0, C, (B,)), torch.ones(B))[0] is not None
    assert run.num_unwatched == 0
