"""Instances that were never seen are kept, and do not enter the comparisons of those that were."""

from __future__ import annotations

import pytest
import torch

from lightning_autoassist import AutoAssistCallback
from lightning_autoassist.filtering.policies.registry import POLICIES


def learner_that_saw(policy, num_seen, num_instances):
    learner = AutoAssistCallback(policy, "memory", unfiltered_tail=0.0)._learner
    learner.begin(num_instances)
    learner.store.put_scores(torch.arange(num_seen), torch.linspace(0.1, 1.0, num_seen))
    return learner


@pytest.mark.parametrize("name", ["proportional", "infobatch", "selective_backprop"])
def test_a_policy_compares_the_scores_of_seen_instances_alone(name):
    mixed, seen_alone = (learner_that_saw(POLICIES[name](), 40, size) for size in (200, 40))
    probs = mixed.keep_probability(torch.arange(200).numpy(), pass_index=1)
    assert (probs[40:] == 1).all()
    assert probs[:40].tolist() == seen_alone.keep_probability(torch.arange(40).numpy(), pass_index=1).tolist()
    assert probs[:40].mean() < 0.9
