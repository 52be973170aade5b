"""What Assistant and policy make of instances together, whether these are remembered or rows of a stream.

Shapes: B batch, n candidates, F features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader, UpdateResult
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.base import Policy


def columns_read(policy: Policy) -> tuple[str, ...]:
    """What a policy reads of instances."""
    return (*policy.required_columns, "labels") if policy.reads_labels else policy.required_columns


def chances(policy: Policy, scores: Tensor, instances: Instances) -> Tensor:
    """Keep probabilities of instances, shape ``(n,)``.

    Args:
        policy: Turns scores into keep probabilities.
        scores: Of the instances, as predicted, shape ``(n,)``.
        instances: n of them, with what the policy reads of them.
    """
    probs = policy.judge(scores, instances)
    # A prediction that is not a number says nothing against the instance.
    return probs.where(~probs.isnan(), 1.0)


def learn(assistant: Assistant, policy: Policy, instances: tuple[Instances, Instances], scores: Tensor) -> UpdateResult:
    """Let Assistant and policy learn from instances whose scores are known.

    Args:
        assistant: Learns first.
        policy: Learns from what the Assistant was to predict: the score, or whether an instance was informative.
        instances: For the Assistant, and for the policy, each with what it reads of them.
        scores: Shape ``(B,)``.
    """
    outcome = assistant.update(instances[0], scores)
    policy.observe(outcome.predictions, outcome.targets)
    policy.update(instances[1], outcome.targets.float() if assistant.predicts_probability else scores)
    return outcome


def features_of(read: BatchReader, batch: Any, num_rows: int) -> Tensor:
    """Features of a batch's rows, shape ``(B, F)``, or rows of tokens.

    Raises:
        ValueError: If the batch has none.
    """
    features = read(batch, num_rows)
    if features is None:
        raise ValueError("the batch holds no tensor with one row an instance; pass features=")
    return features
