"""The rules of the newer literature equal their definitions; ``tests/reference`` has them in whole runs."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.class_balanced import ClassBalancedPolicy
from lightning_autoassist.filtering.policies.class_budget import ClassBudgetPolicy
from lightning_autoassist.filtering.policies.ies import IESPolicy
from lightning_autoassist.filtering.policies.scheduled import ScheduledPolicy
from lightning_autoassist.filtering.policies.schedules import GeometricSchedule, LinearSchedule, OscillatingSchedule
from lightning_autoassist.filtering.policies.selective_backprop import SelectiveBackpropPolicy
from lightning_autoassist.filtering.policies.seta import SeTaPolicy
from lightning_autoassist.filtering.policies.threshold import ThresholdPolicy


def test_the_threshold_is_one_of_the_predicted_probability():
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0)) * 3
    expected = [1.0 if math.exp(-score) < 0.3 else 0.05 for score in scores.tolist()]
    assert ThresholdPolicy(tau=0.3).keep_probability(scores).tolist() == pytest.approx(expected)


def test_seta_moves_its_window_from_easy_to_hard_and_keeps_equal_shares():
    scores, means = torch.rand(1000, generator=torch.Generator().manual_seed(0)).exp(), []
    policy = SeTaPolicy(num_groups=5, width=0.4, prune_ratio=0, floor=0.01)
    for pass_index in range(4, 9):
        policy.note_progress(0.1, pass_index)
        kept = policy.keep_probability(scores) == 1
        assert kept.float().mean().item() == pytest.approx(0.4, abs=0.01)
        means.append(scores[kept].mean().item())
    assert means[0] == means[4] < means[1] < means[2] < means[3]


def test_ies_drops_what_no_longer_bends():
    losses = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5], [1.0, 0.8, 0.6, 0.4, 0.2], [1.0, 0.6, 0.9, 0.4, 0.4]])
    bends = [sum(abs(row[t] - 2 * row[t - 1] + row[t - 2]) for t in (2, 3, 4)) / 3 for row in losses.tolist()]
    expected = [0.1 if bend < 0.05 else 1.0 for bend in bends]
    assert expected == [0.1, 0.1, 1.0]
    assert IESPolicy(delta=0.05).chances(losses).tolist() == pytest.approx(expected)
    assert IESPolicy(delta=10).chances(torch.tensor([[torch.nan, 1.0, 1.0, 1.0, 1.0]])).item() == 1


def test_class_budgets_are_shares_of_what_is_kept():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, generator=generator) < 0.1).long()
    losses = torch.rand(4000, generator=generator) * 0.2 + labels * 0.2
    probs = ClassBudgetPolicy(keep_rate=0.2, floor=0.001).judge(losses, Instances(labels=labels))
    shares = [probs[labels == label].sum().item() for label in (0, 1)]
    wanted = [math.sqrt(losses[labels == label].mean() * (labels == label).float().mean()) for label in (0, 1)]
    assert shares[1] / shares[0] == pytest.approx(wanted[1] / wanted[0], rel=0.01)


def test_the_control_keeps_all_classes_as_often():
    generator, policy = torch.Generator().manual_seed(0), ClassBalancedPolicy()
    labels = torch.multinomial(torch.tensor([0.9, 0.09, 0.01]), 50_000, replacement=True, generator=generator)
    counts = torch.bincount(labels, policy.judge(torch.zeros(50_000), Instances(labels=labels)))
    assert (counts / counts[0]).tolist() == pytest.approx([1, 1, 1], rel=1e-3)
    assert policy.judge(torch.zeros(2), Instances(labels=torch.tensor([-1, 2]))).tolist() == [1, 1]


@pytest.mark.parametrize("inner", ["uniform", "proportional", "selective_backprop"])
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        (LinearSchedule(0.6, 0.2), (0.6, 0.4, 0.2)),
        (GeometricSchedule(0.8, 0.2), (0.8, 0.4, 0.2)),
        (OscillatingSchedule(0.3, 0.5, num_periods=1), (0.3, 0.5, 0.3)),
    ],
)
def test_any_policy_follows_a_schedule(schedule, rates, inner):
    scores, policy = torch.rand(4000, generator=torch.Generator().manual_seed(0)), ScheduledPolicy(inner, schedule)
    for progress, rate in zip((0, 0.5, 1), rates, strict=True):
        policy.note_progress(progress, 1)
        assert policy.keep_probability(scores).mean().item() == pytest.approx(rate, abs=0.01)


def test_selective_backprop_compares_with_a_history_of_its_own():
    policy, scores = SelectiveBackpropPolicy(history=1024), torch.rand(3000)
    policy.prepare(50)
    for part in scores.split(100):
        policy.keep_probability(part)
    assert torch.equal(policy.recent.values, scores[-1024:])
