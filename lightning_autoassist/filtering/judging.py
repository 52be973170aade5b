"""What Assistant and policy make of instances together, whether these are remembered or rows of a stream.

Shapes: B batch, n candidates, F features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_autoassist.filtering.assistants.base import Assistant, BatchReader, UpdateResult
from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.base import Policy


def chances(assistant: Assistant, policy: Policy, instances: Instances, labels: Tensor | None = None) -> Tensor:
    """Keep probabilities of instances, shape ``(n,)``.

    Args:
        assistant: Predicts their scores.
        policy: Turns these into keep probabilities.
        instances: n of them.
        labels: Shape ``(n,)``, for a policy that balances classes.
    """
    probs = policy.keep_probability(assistant.predict(instances))
    if policy.reads_labels and labels is not None:
        probs = policy.balance(probs, labels)
    # A prediction that is not a number says nothing against the instance.
    return probs.where(~probs.isnan(), 1.0)


def learn(assistant: Assistant, policy: Policy, instances: Instances, scores: Tensor) -> UpdateResult:
    """Let Assistant and policy learn from instances whose scores, shape ``(B,)``, are known."""
    outcome = assistant.update(instances, scores)
    policy.observe(outcome.predictions, outcome.targets)
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
