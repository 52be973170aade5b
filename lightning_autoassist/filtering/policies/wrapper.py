"""What policies that change another policy's chances have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.names import GivenPolicyName
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.trainer_support.arguments import check_named

_DEFAULTS = ("default_assistant", "default_score", "default_reweighting", "default_unfiltered_tail", "correction")
_READ = ("keeps_everything", "required_columns", "own_columns", "scores_unseen", "reads_losses")


class WrapperPolicy(Policy):
    """Base of policies around another one, which is asked first and learns as if it were alone.

    Args:
        policy: The other one: a name in ``POLICIES`` or a policy.
    """

    def __init__(self, policy: GivenPolicyName | Policy) -> None:
        from lightning_autoassist.filtering.policies.registry import POLICIES  # which names the wrappers, too

        self.policy = check_named("policy", policy, Policy, POLICIES, {})
        for name in (*_DEFAULTS, *_READ):
            setattr(self, name, getattr(self.policy, name))
        if self.policy.reads_labels:
            self.required_columns = tuple({*self.required_columns, "labels"})
        self.needs_labels = self.needs_labels or self.policy.needs_labels
        self.needs_scores = not self.keeps_everything  # labels come with the losses

    @property
    @override
    def expected_keep_rate(self) -> float | None:
        return self.policy.expected_keep_rate

    @property
    @override
    def steadies_scores(self) -> bool:
        return self.policy.steadies_scores

    @override
    def note_progress(self, progress: float, pass_index: int) -> None:
        super().note_progress(progress, pass_index)
        self.policy.note_progress(progress, pass_index)

    @override
    def prepare(self, num_candidates: int) -> None:
        self.policy.num_processes = self.num_processes
        self.policy.prepare(num_candidates)

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return self.policy.keep_probability(scores)

    @override
    def judge(self, scores: Tensor, instances: Instances) -> Tensor:
        probs = self.policy.judge(scores, instances)
        labels = torch.full((len(probs),), -1) if instances.labels is None else instances.labels
        return self.balance(probs, labels) if self.reads_labels else probs

    @override
    def unseen_scores(self, instances: Instances) -> Tensor:
        return self.policy.unseen_scores(instances)

    @override
    def update(self, instances: Instances, scores: Tensor) -> None:
        self.policy.update(instances, scores)

    @override
    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        self.policy.observe(predictions, targets)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
