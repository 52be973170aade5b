"""Another policy's rule, at a keep rate that changes with training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.names import GivenPolicyName
from lightning_autoassist.filtering.policies.base import NO_FLOOR, Policy
from lightning_autoassist.filtering.policies.recent_scores import RecentScores, proportional_scale
from lightning_autoassist.filtering.policies.schedules import LinearSchedule, Schedule, check_schedule, value_at
from lightning_autoassist.filtering.policies.wrapper import WrapperPolicy
from lightning_autoassist.trainer_support.arguments import check_number


class ScheduledPolicy(WrapperPolicy):
    r"""Another policy's rule, with its chances scaled so that their mean follows a schedule.

    :math:`p' = \mathrm{clip}(p / \lambda, \gamma, 1)`, with :math:`\lambda` solved over recent chances. Weights 1/p are
    of the scaled chances. Around ``"uniform"`` it is random dropping with a schedule, the control that tells what the
    schedule does by itself.

    **What shifts.** What shifts with the other policy; a rate that falls makes late training harder, one that rises
    ends on data as they are.

    Source: with a :class:`~lightning_autoassist.filtering.policies.schedules.GeometricSchedule` around ``"uniform"``
    the random variant of Progressive Data Dropout (arXiv:2505.22342); with an ``OscillatingSchedule`` after PODS
    (arXiv:2605.14773).

    Args:
        policy: The rule: a name in ``POLICIES`` or a policy.
        keep_rate: Mean of p, in [floor, 1]: a schedule, which gets the share of training that is done, or a number.
        floor: :math:`\gamma`, in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> policy = ScheduledPolicy("uniform", LinearSchedule(0.8, 0.4))
        >>> policy.note_progress(0.5, pass_index=3)
        >>> policy.keep_probability(torch.zeros(3))
        tensor([0.6000, 0.6000, 0.6000])
    """

    def __init__(
        self,
        policy: GivenPolicyName | Policy = "proportional",
        keep_rate: float | Schedule = LinearSchedule(0.7, 0.3),  # noqa: B008 -- frozen
        floor: float = 0.02,
    ) -> None:
        super().__init__(policy)
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.02")
        self.keep_rate = check_schedule("keep_rate", keep_rate, f"[{self.floor}, 1]", "try LinearSchedule(0.7, 0.3)")
        self.keeps_everything = False
        self.needs_scores = self.policy.needs_scores
        self.recent = RecentScores()

    @property
    @override
    def expected_keep_rate(self) -> float | None:
        return value_at(self.keep_rate, self.progress)

    @override
    def prepare(self, num_candidates: int) -> None:
        super().prepare(num_candidates)
        self.recent.size = max(1, min(self.recent.size, num_candidates))

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return self._scaled(self.policy.keep_probability(scores))

    @override
    def judge(self, scores: Tensor, instances: Instances) -> Tensor:
        return self._scaled(self.policy.judge(scores, instances))

    def _scaled(self, probs: Tensor) -> Tensor:
        self.recent.add(probs)
        rate = value_at(self.keep_rate, self.progress)
        if rate >= 1 or not len(self.recent):
            return torch.ones_like(probs)
        return (probs / proportional_scale(self.recent.array, max(rate, self.floor), self.floor)).clamp(self.floor, 1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "recent": self.recent.values.clone()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.recent.values = state["recent"].clone()
