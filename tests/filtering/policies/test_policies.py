from __future__ import annotations

import pytest
import torch

from lightning_autoassist.filtering.policies.autoassist import AutoAssistPolicy
from lightning_autoassist.filtering.policies.class_balanced import ClassBalancedPolicy
from lightning_autoassist.filtering.policies.class_budget import ClassBudgetPolicy
from lightning_autoassist.filtering.policies.class_quota import ClassQuotaPolicy
from lightning_autoassist.filtering.policies.ies import IESPolicy
from lightning_autoassist.filtering.policies.infobatch import InfoBatchPolicy
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
from lightning_autoassist.filtering.policies.random_drop import RandomPolicy
from lightning_autoassist.filtering.policies.registry import POLICIES
from lightning_autoassist.filtering.policies.scheduled import ScheduledPolicy
from lightning_autoassist.filtering.policies.schedules import LinearSchedule
from lightning_autoassist.filtering.policies.selective_backprop import SelectiveBackpropPolicy
from lightning_autoassist.filtering.policies.seta import SeTaPolicy
from lightning_autoassist.filtering.policies.threshold import ThresholdPolicy


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_gives_probabilities_that_do_not_fall_with_the_score(name):
    policy = POLICIES[name](floor=1) if name == "seta" else POLICIES[name]()  # whose window is not at the hard end
    probs = policy.keep_probability(torch.linspace(0, 1, 50))
    assert probs.shape == (50,)
    assert probs.dtype == torch.float32
    assert ((probs > 0) & (probs <= 1)).all()
    assert (probs.diff() >= 0).all()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_restores_its_state(name):
    policy, restored = POLICIES[name](), POLICIES[name]()
    policy.observe(torch.tensor([0.9, 0.2]), torch.tensor([True, True]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        policy.keep_probability(torch.rand(300, generator=generator))
    restored.load_state_dict(policy.state_dict())
    for _ in range(5):
        scores = torch.rand(300, generator=generator)
        assert torch.equal(policy.keep_probability(scores), restored.keep_probability(scores))


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_balances_without_lowering_a_chance(name):
    policy, restored = POLICIES[name](), POLICIES[name]()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        probs = policy.keep_probability(torch.rand(300, generator=generator))
        labels = torch.randint(-1, 4, (300,), generator=generator)
        balanced = policy.balance(probs, labels)
        assert balanced.dtype == torch.float32
        assert ((balanced >= probs) & (balanced <= 1)).all()
        assert policy.reads_labels or torch.equal(balanced, probs)
    restored.load_state_dict(policy.state_dict())
    assert torch.equal(policy.balance(probs, labels), restored.balance(probs, labels))


class ReferenceQuota:
    """One candidate at a time."""

    def __init__(self, min_rate, decay):
        self.min_rate, self.decay, self.sums, self.counts = min_rate, decay, {}, {}

    def balance(self, probs, labels):
        for label in self.sums:
            self.sums[label] *= self.decay
            self.counts[label] *= self.decay
        for prob, label in zip(probs, labels, strict=True):
            self.sums[label] = self.sums.get(label, 0.0) + prob
            self.counts[label] = self.counts.get(label, 0.0) + 1
        balanced = []
        for prob, label in zip(probs, labels, strict=True):
            mean = self.sums[label] / self.counts[label]
            short = max(self.min_rate - mean, 0.0)
            balanced.append(prob + (1 - prob) * short / (1 - mean) if short else prob)
        return balanced


def test_class_quota_equals_the_per_candidate_reference():
    policy, reference = ClassQuotaPolicy(min_rate=0.5, decay=0.9), ReferenceQuota(0.5, 0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        labels = torch.randint(0, 5, (64,), generator=generator)
        probs = torch.rand(64, generator=generator) * (labels + 1) / 5
        expected = reference.balance(probs.tolist(), labels.tolist())
        assert policy.balance(probs, labels).tolist() == pytest.approx(expected, abs=1e-5)


def test_a_starved_class_gets_its_quota_and_the_others_stay():
    policy, generator = ClassQuotaPolicy(min_rate=0.4), torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    for _ in range(5):
        probs = torch.where(labels == 0, 0.2, 0.6) * (0.5 + torch.rand(2000, generator=generator))
        balanced = policy.balance(probs, labels)
    assert balanced[labels == 0].mean().item() == pytest.approx(0.4, abs=0.01)
    assert torch.equal(balanced[labels == 1], probs[labels == 1])


def test_class_quota_takes_after_its_policy():
    quota = ClassQuotaPolicy("infobatch", min_rate=0.3)
    assert quota.default_score == "loss"
    assert quota.default_reweighting == "inverse_probability"
    assert ClassQuotaPolicy(AutoAssistPolicy()).default_assistant == "logistic"


def test_autoassist_equals_the_papers_formula():
    scores = torch.rand(20)
    probs = AutoAssistPolicy(gamma=0.3).keep_probability(scores)
    assert probs.tolist() == pytest.approx([0.3 + 0.7 * float(score) for score in scores], rel=1e-6)


def test_confidence_gate_follows_the_assistants_accuracy():
    policy = AutoAssistPolicy(gamma=0.3, confidence_gate=True, accuracy_decay=0.95)
    assert policy.floor == 1.0
    accuracy = 0.0
    predictions, targets = torch.tensor([0.9, 0.8, 0.1, 0.6]), torch.tensor([True, True, False, False])
    for _ in range(10):
        policy.observe(predictions, targets)
        accuracy = 0.95 * accuracy + 0.05 * 0.75
        assert policy.floor == pytest.approx(max(0.3, 1 - accuracy))
    for _ in range(200):
        policy.observe(targets.float(), targets)
    assert policy.floor == 0.3


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1])
def test_gamma_outside_its_range_is_refused(gamma):
    with pytest.raises(ValueError, match=rf"gamma must be in \(0, 1\], got {gamma}"):
        AutoAssistPolicy(gamma=gamma)


@pytest.mark.parametrize(("keep_rate", "floor"), [(0.5, 0.2), (0.35, 0.1), (0.9, 0.3)])
def test_proportional_equals_its_formula_at_the_keep_rate_asked_for(keep_rate, floor):
    scores = torch.rand(2000, generator=torch.Generator().manual_seed(0)).pow(3)
    policy = ProportionalPolicy(keep_rate=keep_rate, floor=floor)
    probs = policy.keep_probability(scores)
    expected = [min(max(float(score) / policy.scale, floor), 1.0) for score in scores]
    assert probs.tolist() == pytest.approx(expected, rel=1e-5)
    assert probs.mean().item() == pytest.approx(keep_rate, abs=1e-3)


def test_proportional_keeps_its_rate_while_scores_fall():
    policy, generator = ProportionalPolicy(keep_rate=0.5, floor=0.2), torch.Generator().manual_seed(0)
    rates = [
        policy.keep_probability(torch.rand(128, generator=generator) * 0.9995**step).mean().item()
        for step in range(600)
    ]
    assert sum(rates[100:]) / len(rates[100:]) == pytest.approx(0.5, abs=0.05)


def test_proportional_with_nothing_to_tell_apart_keeps_its_rate():
    assert ProportionalPolicy(keep_rate=0.5).keep_probability(torch.full((10,), 2.0)).tolist() == pytest.approx(
        [0.5] * 10
    )


def test_a_capped_score_is_no_better_than_the_cap():
    scores = torch.cat([torch.linspace(0, 1, 95), torch.full((5,), 100.0)])
    plain = ProportionalPolicy(keep_rate=0.25, floor=0.1).keep_probability(scores)
    capped = ProportionalPolicy(keep_rate=0.25, floor=0.1, cap_quantile=0.9).keep_probability(scores)
    assert plain[95:].tolist() == [1.0] * 5
    assert capped[95:].tolist() == pytest.approx([capped[94].item()] * 5, abs=0.1)
    assert capped[95:].max() < 0.6


def test_infobatch_equals_the_per_instance_reference():
    scores = torch.rand(500, generator=torch.Generator().manual_seed(0))
    mean = sum(scores.tolist()) / 500
    expected = [0.7 if score < mean else 1.0 for score in scores.tolist()]
    assert InfoBatchPolicy(prune_ratio=0.3).keep_probability(scores).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_selective_backprop_equals_the_per_instance_reference(beta):
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0))
    values = scores.tolist()
    expected = [max((sum(other <= value for other in values) / 200) ** beta, 0.05) for value in values]
    assert SelectiveBackpropPolicy(beta=beta).keep_probability(scores).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoAssistPolicy(accuracy_decay=1.0), "accuracy_decay must be in"),
        (lambda: RandomPolicy(keep_rate=0), "keep_rate must be in"),
        (lambda: ProportionalPolicy(floor=0), r"floor must be in \(0, 1\], got 0"),
        (lambda: ProportionalPolicy(keep_rate=0.1), r"keep_rate must be in \[floor, 1\) = \[0.2, 1\), got 0.1"),
        (lambda: ProportionalPolicy(cap_quantile=0), "cap_quantile must be in"),
        (lambda: InfoBatchPolicy(prune_ratio=1), "prune_ratio must be in"),
        (lambda: ClassQuotaPolicy(min_rate=1), "min_rate must be in"),
        (lambda: ClassQuotaPolicy(decay=1), "decay must be in"),
        (lambda: ClassQuotaPolicy("best"), "policy must be one of"),
        (lambda: ThresholdPolicy(tau=1), "tau must be in"),
        (lambda: SeTaPolicy(width=0), "width must be in"),
        (lambda: IESPolicy(delta=0), "delta must be positive"),
        (lambda: ClassBudgetPolicy(temperature=0), "temperature must be positive"),
        (lambda: ClassBalancedPolicy(floor=0), "floor must be in"),
        (lambda: ScheduledPolicy(keep_rate=LinearSchedule(0.5, 1.2)), "keep_rate at 100% of training must be in"),
        (lambda: SelectiveBackpropPolicy(history=0), "history must be at least 1"),
        (lambda: SelectiveBackpropPolicy(beta=0), "beta must be positive"),
        (lambda: SelectiveBackpropPolicy(floor=0), "floor must be in"),
    ],
)
def test_other_arguments_outside_their_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_negative_scores_are_told_apart_like_positive_ones():
    """Negative similarities and other losses by hand; the norms of gradients are never negative."""
    scores = torch.linspace(-1, -0.2, 500)
    policy, shifted = ProportionalPolicy(), ProportionalPolicy()
    probs = policy.keep_probability(scores)
    torch.testing.assert_close(probs, shifted.keep_probability(scores + 1))
    assert float(probs.mean()) == pytest.approx(0.5, abs=0.01)
    resumed = ProportionalPolicy()
    resumed.load_state_dict(policy.state_dict())
    assert torch.equal(resumed.keep_probability(scores), policy.keep_probability(scores))
