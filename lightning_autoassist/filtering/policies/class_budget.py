"""RCAP's class budgets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.class_counts import ClassSums
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
from lightning_autoassist.trainer_support.arguments import check_number


class ClassBudgetPolicy(ProportionalPolicy):
    r"""RCAP's rule: a budget for each class, and hard instances first inside of it.

    Of what is kept, class c gets a share in proportion to :math:`\sqrt{L_c \pi_c}`, with :math:`L_c` the mean loss of
    its candidates and :math:`\pi_c` their share; inside of it an instance is kept in proportion to
    :math:`e^{\min(l_i, \ln C) / \beta}`. What a class cannot use, because all of it is kept, goes to the others. The
    source draws exact numbers without replacement, once an epoch; here each candidate is kept or not by itself.

    **What shifts.** Nothing is corrected by default: classes that are rare or hard count for more than their share, so
    that recall of rare classes rises and their probabilities come out too high. With ``reweighting`` on, weights are
    1/p.

    Source: RCAP, UAI 2025.

    Args:
        keep_rate: Mean of p, in [floor, 1).
        floor: Least chance, in (0, 1].
        temperature: :math:`\beta`, positive, in units of the loss.
        decay: What earlier candidates count less with each call, in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> policy = ClassBudgetPolicy(keep_rate=0.5, floor=0.1)
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
        >>> policy.judge(torch.ones(8), Instances(labels=labels))
        tensor([0.4226, 0.4226, 0.4226, 0.4226, 0.4226, 0.4226, 0.7321, 0.7321])
    """

    default_score = "loss"
    default_reweighting = "none"
    default_unfiltered_tail = 0.0
    required_columns = ("labels",)
    needs_labels = True

    def __init__(
        self, keep_rate: float = 0.3, floor: float = 0.05, temperature: float = 1.0, decay: float = 0.99
    ) -> None:
        super().__init__(keep_rate, floor)
        self.temperature = check_number("temperature", temperature, "(0, inf)", "try 1")
        self.classes = ClassSums(2, check_number("decay", decay, "(0, 1]", "try 0.99"))

    @override
    def judge(self, scores: Tensor, instances: Instances) -> Tensor:
        labels = torch.full((len(scores),), -1) if instances.labels is None else instances.labels
        losses = np.nan_to_num(np.maximum(scores.numpy().astype(np.float64), 0), posinf=0.0)
        bound = math.log(max(2, self.classes.num_classes))
        shares = np.exp(np.minimum(losses, bound) / self.temperature)
        _, loss_sums, share_sums = self.classes.add(labels, losses, shares)
        # sqrt(L / pi) / E with pi the class's share, up to what is the same in all classes.
        of_class = np.sqrt(loss_sums) / share_sums
        return self.keep_probability(torch.from_numpy((of_class * shares).astype(np.float32)))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "classes": self.classes.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.classes.load_state_dict(state["classes"])
