"""Another policy's rule, with a least keep rate for every class."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.classes import MAX_CLASSES, ClassMeans
from lightning_autoassist.filtering.names import GivenPolicyName
from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.wrapper import WrapperPolicy
from lightning_autoassist.trainer_support.arguments import check_number


class ClassQuotaPolicy(WrapperPolicy):
    r"""Another policy's rule, with a least mean keep rate for every class.

    Where the mean m of a class's chances over recent candidates lies below the quota q, each of them is raised to
    :math:`p + (1 - p)(q - m) / (1 - m)`: then their mean is q, their order is the rule's, and none falls. Weights 1/p
    stay right, because they are of the raised chances. Without class labels nothing changes.

    **What shifts.** What shifts with the other policy; with weights 1/p nothing.

    Source: none; a guard for data where a rule would starve a class.

    Args:
        policy: The rule: a name in ``POLICIES`` or a policy.
        min_rate: q, in (0, 1).
        decay: What a call's chances count less than the next call's, in [0, 1).

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> import torch
        >>> policy = ClassQuotaPolicy(min_rate=0.5)
        >>> policy.balance(torch.tensor([0.2, 0.4, 0.9]), labels=torch.tensor([0, 0, 1]))
        tensor([0.4286, 0.5714, 0.9000])
    """

    reads_labels = True
    needs_labels = True

    def __init__(
        self, policy: GivenPolicyName | Policy = "proportional", min_rate: float = 0.4, decay: float = 0.99
    ) -> None:
        self.min_rate = check_number("min_rate", min_rate, "(0, 1)", "below the policy's keep rate, try 0.4")
        self.decay = check_number("decay", decay, "[0, 1)", "try 0.99")
        super().__init__(policy)
        self._means = ClassMeans(self.decay)  # of the chances

    @override
    def balance(self, probs: Tensor, labels: Tensor) -> Tensor:
        has_class = labels >= 0
        own, classes = probs[has_class], labels[has_class].long() % MAX_CLASSES
        if not len(classes):
            return probs
        self._means.update(classes, own)
        means = self._means.of(classes)
        raised = ((self.min_rate - means) / (1 - means).clamp(min=1e-6)).clamp(0, 1)
        balanced = probs.clone()
        balanced[has_class] = own + (1 - own) * raised
        return balanced

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._means.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._means.load_state_dict(state)
