from __future__ import annotations

import pytest
import torch

from lightning_autoassist.policies import POLICIES, AutoAssistPolicy, RandomPolicy


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_gives_probabilities_that_do_not_fall_with_the_score(name):
    probs = POLICIES[name]().keep_probability(torch.linspace(0, 1, 50))
    assert probs.shape == (50,)
    assert probs.dtype == torch.float32
    assert ((probs > 0) & (probs <= 1)).all()
    assert (probs.diff() >= 0).all()


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_restores_its_state(name):
    policy, restored = POLICIES[name](), POLICIES[name]()
    policy.observe(torch.tensor([0.9, 0.2]), torch.tensor([True, True]))
    restored.load_state_dict(policy.state_dict())
    assert restored.state_dict() == policy.state_dict()


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


def test_other_arguments_outside_their_range_are_refused():
    with pytest.raises(ValueError, match="accuracy_decay must be in"):
        AutoAssistPolicy(accuracy_decay=1.0)
    with pytest.raises(ValueError, match="keep_rate must be in"):
        RandomPolicy(keep_rate=0)
