"""All classes as often: a control."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.class_counts import ClassSums
from lightning_autoassist.trainer_support.arguments import check_number


class ClassBalancedPolicy(Policy):
    r"""Keep every class as often as the rarest, and inside a class all alike: a control where classes are unbalanced.

    :math:`p_c = \max(\min_k n_k / n_c, \gamma)` with :math:`n_c` the candidates of class c so far. Whoever claims that
    scores help on rare classes has to beat this. Classes of instances that the model has not seen are looked for in the
    data set; an instance whose class is not known is kept.

    **What shifts.** With nothing corrected the model learns that all classes are as frequent: recall of rare ones
    rises, accuracy and calibration on data as they are fall, and thresholds move. With ``reweighting`` on, weights are
    1/p.

    Args:
        floor: :math:`\gamma`, the least chance, in (0, 1].

    Raises:
        ValueError: If ``floor`` lies outside its range.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
        >>> ClassBalancedPolicy().judge(torch.zeros(7), Instances(labels=labels))
        tensor([0.2500, 0.2500, 0.2500, 0.2500, 0.5000, 0.5000, 1.0000])
    """

    required_columns = ("labels",)
    needs_labels = True
    scores_unseen = True

    def __init__(self, floor: float = 0.002) -> None:
        self.floor = check_number("floor", floor, "(0, 1]", "try 0.002")
        self.classes = ClassSums(0, decay=1.0)

    @override
    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores)  # of no class

    @override
    def unseen_scores(self, instances: Instances) -> Tensor:
        assert instances.labels is not None
        return torch.where(instances.labels >= 0, 0.0, torch.nan)

    @override
    def judge(self, scores: Tensor, instances: Instances) -> Tensor:
        if instances.labels is None:
            return self.keep_probability(scores)
        (counts,) = self.classes.add(instances.labels)
        known = self.classes.sums[0, 1:]
        rarest = known[known > 0].min(initial=float("inf"))
        probs = torch.from_numpy((rarest / counts).astype("float32")).clamp(self.floor, 1)
        return torch.where(instances.labels >= 0, probs, 1.0)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.classes.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classes.load_state_dict(state)
