"""Policies: from an Assistant's predicted scores to the probability that a candidate is kept.

A policy is a pure rule over the scores of the candidates plus, where the rule says so, a little state that
:meth:`Policy.observe` updates. Adding one takes a class here and a line in :data:`POLICIES`.

Shapes: n candidates, B batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.filtering.names import GivenPolicyName, ScoreName, WeightsName
from lightning_autoassist.filtering.policies.recent_scores import MAX_RECENT, RecentScores, proportional_scale
from lightning_autoassist.trainer_support.arguments import check_flag, check_named, check_number

MAX_CLASSES = 65_536
NO_FLOOR = "with no floor an instance can vanish for good"


class Policy:
    """Base class: keeps every candidate.

    Attributes:
        needs_scores: Whether the rule reads predicted scores. Where it does not, no Assistant is trained, and losses
            are captured only for weights to enter there.
        keeps_everything: Whether p is 1 for every candidate, always.
        reads_labels: Whether :meth:`balance` wants the candidates' labels.
        default_assistant: What predicts the scores when the user does not say: a name in ``ASSISTANTS``.
        default_score: What the Assistant learns to predict when the user does not say:
            ``"loss"`` or ``"gradient_norm"``.
        default_weights: ``"none"``, ``"sum"`` or ``"mean"``, see :class:`~lightning_autoassist.ShrinkingBatchSampler`.
        default_tail: Share of training at whose end everything is kept.
    """

    needs_scores: bool = True
    keeps_everything: bool = False
    reads_labels: bool = False
    default_assistant: str = "memory"
    default_score: ScoreName = "gradient_norm"
    default_weights: WeightsName = "none"
    default_tail: float = 0.0

    def prepare(self, num_candidates: int) -> None:
        """Learn how many candidates make a pass, before the first one is judged; streams do not tell.

        Args:
            num_candidates: N, of this process.
        """

    def keep_probability(self, scores: Tensor) -> Tensor:
        """Chance that each candidate enters a batch.

        Args:
            scores: The Assistant's predictions, shape ``(n,)``, float32.

        Returns:
            Probabilities in (0, 1], shape ``(n,)``, float32.
        """
        raise NotImplementedError

    def balance(self, probs: Tensor, labels: Tensor) -> Tensor:
        """The chances, balanced over classes; called where ``reads_labels`` says so and there are labels.

        Args:
            probs: What :meth:`keep_probability` gave, shape ``(n,)``.
            labels: Class labels, shape ``(n,)``, integer; negative where an instance has no class, or none is known.
        """
        return probs

    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        """Learn from what the Boss's batch turned out to be.

        Args:
            predictions: What the Assistant had predicted for the batch, shape ``(B,)``.
            targets: Whether each instance was informative, bool, shape ``(B,)``.
        """

    def state_dict(self) -> dict[str, Any]:
        """State as tensors and builtins."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""


class AutoAssistPolicy(Policy):
    r"""The paper's rule, :math:`p_i = \gamma + (1 - \gamma)\,a_i`.

    With ``confidence_gate`` the floor is :math:`\max(\gamma, 1 - \text{EMA of the Assistant's accuracy})`, as in the
    paper's translation experiments: an Assistant that is often wrong filters little.

    Source: Zhang, Yu & Dhillon, AutoAssist, NeurIPS 2019, arXiv:1905.03381.

    Args:
        gamma: Floor on the keep probability, in (0, 1].
        confidence_gate: Raise the floor while the Assistant errs.
        accuracy_decay: Decay of the running mean of the accuracy, per batch, in [0, 1).

    Raises:
        ValueError: If ``gamma`` or ``accuracy_decay`` lies outside its range.

    Example:
        >>> AutoAssistPolicy(gamma=0.3).keep_probability(torch.tensor([0.0, 1.0]))
        tensor([0.3000, 1.0000])
    """

    default_assistant = "logistic"
    default_score = "loss"

    def __init__(self, gamma: float = 0.3, confidence_gate: bool = False, accuracy_decay: float = 0.95) -> None:
        self.gamma = check_number("gamma", gamma, "(0, 1]", f"{NO_FLOOR}, try 0.3")
        self.keeps_everything = self.gamma == 1
        self.confidence_gate = check_flag("confidence_gate", confidence_gate)
        self.accuracy_decay = check_number("accuracy_decay", accuracy_decay, "[0, 1)", "the paper uses 0.95")
        self.accuracy = 0.0  # nothing predicted yet: the gate starts fully open

    @property
    def floor(self) -> float:
        """The floor in force, in (0, 1]."""
        return max(self.gamma, 1 - self.accuracy) if self.confidence_gate else self.gamma

    def keep_probability(self, scores: Tensor) -> Tensor:
        return self.floor + (1 - self.floor) * scores.clamp(0, 1)

    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        correct = ((predictions > 0.5) == targets).float().mean().item()
        self.accuracy = self.accuracy_decay * self.accuracy + (1 - self.accuracy_decay) * correct

    def state_dict(self) -> dict[str, Any]:
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.accuracy = float(state["accuracy"])


class UniformPolicy(Policy):
    """Keep every candidate: the same number of Boss updates as a filtered run, nothing selected.

    The strong baseline that every filter has to beat.

    Example:
        >>> UniformPolicy().keep_probability(torch.tensor([0.0, 1.0]))
        tensor([1., 1.])
    """

    needs_scores = False
    keeps_everything = True

    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores)


class RandomPolicy(Policy):
    """Keep every candidate with the same probability: filtering with nothing learnt, a control.

    Args:
        keep_rate: The probability, in (0, 1].

    Raises:
        ValueError: If ``keep_rate`` lies outside (0, 1].

    Example:
        >>> RandomPolicy(keep_rate=0.5).keep_probability(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.5000])
    """

    needs_scores = False

    def __init__(self, keep_rate: float = 0.5) -> None:
        self.keep_rate = check_number("keep_rate", keep_rate, "(0, 1]", "0.5 drops every second candidate")
        self.keeps_everything = self.keep_rate == 1

    def keep_probability(self, scores: Tensor) -> Tensor:
        return torch.full_like(scores, self.keep_rate)


class _RelativePolicy(Policy):
    """Base of rules that compare a score with those of other candidates: with the last pass's, at most 8,192.

    The comparison is renewed each time that an eighth as many candidates have come by.
    """

    def __init__(self) -> None:
        self.recent = RecentScores()
        self._num_new = 0

    @property
    def refresh(self) -> int:
        """How many candidates renew the comparison."""
        return max(1, self.recent.size // 8)

    def prepare(self, num_candidates: int) -> None:
        # A window of several passes would hold each instance's scores of long ago beside that of today.
        self.recent.size = max(1, min(MAX_RECENT, num_candidates))

    def keep_probability(self, scores: Tensor) -> Tensor:
        is_first = not len(self.recent)
        self.recent.add(scores)
        self._num_new += len(scores)
        if len(self.recent) and (is_first or self._num_new >= self.refresh):
            self._num_new = 0
            self.compare(self.recent.values)
        return self.chances(scores)

    def compare(self, recent: Tensor) -> None:
        """Learn from the scores of recent candidates, shape ``(m,)``."""
        raise NotImplementedError

    def chances(self, scores: Tensor) -> Tensor:
        """Keep probabilities, shape ``(n,)``."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"recent": self.recent.values.clone(), "num_new": self._num_new}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent.values = state["recent"].clone()
        self._num_new = int(state["num_new"])


class ProportionalPolicy(_RelativePolicy):
    r"""Keep in proportion to the score, :math:`p_i = \mathrm{clip}(s_i / \lambda, \gamma, 1)`.

    :math:`\lambda` is solved for a mean keep rate over the recent candidates. With the norm of the gradient for score
    and weights 1/p this is importance sampling with little variance (Katharopoulos & Fleuret, ICML 2018,
    arXiv:1803.00942). Scores that may be negative, as those of some losses by hand, count from the lowest of them.

    Args:
        keep_rate: Mean of p, in [floor, 1).
        floor: :math:`\gamma`, in (0, 1].
        cap_quantile: Scores above this quantile count as the quantile, in (0, 1]: wrong labels have the highest scores.

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> ProportionalPolicy(keep_rate=0.5, floor=0.2).keep_probability(torch.tensor([0.0, 1.0, 2.0, 6.0]))
        tensor([0.2000, 0.2667, 0.5333, 1.0000])
    """

    default_weights = "sum"
    default_tail = 0.125

    def __init__(self, keep_rate: float = 0.5, floor: float = 0.2, cap_quantile: float = 1.0) -> None:
        super().__init__()
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.2")
        self.keep_rate = check_number("keep_rate", keep_rate, "(0, 1)", "try 0.5")
        if self.keep_rate < self.floor:
            raise ValueError(f"keep_rate must be in [floor, 1) = [{floor}, 1), got {keep_rate}; try 0.5")
        self.cap_quantile = check_number("cap_quantile", cap_quantile, "(0, 1]", "0.95 caps the highest twentieth")
        self.scale = 1.0  # lambda
        self.cap = float("inf")
        self.origin = 0.0  # what scores are counted from

    def compare(self, recent: Tensor) -> None:
        if self.cap_quantile < 1:
            self.cap = float(torch.quantile(recent, self.cap_quantile))
        self.origin = min(0.0, float(recent.min()))
        above = (recent.clamp(max=self.cap) - self.origin).numpy()
        self.scale = proportional_scale(above, self.keep_rate, self.floor)

    def chances(self, scores: Tensor) -> Tensor:
        return ((scores.clamp(max=self.cap) - self.origin) / self.scale).clamp(self.floor, 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scale": self.scale, "cap": self.cap, "origin": self.origin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.scale, self.cap, self.origin = (float(state[name]) for name in ("scale", "cap", "origin"))


class InfoBatchPolicy(_RelativePolicy):
    """InfoBatch's rule: of the instances below the mean loss a fixed share is dropped; the others are kept.

    Goes with weights ``"sum"``, which scale those that stay up by 1 / (1 - prune_ratio), and an unfiltered tail of one
    eighth (delta = 0.875), as the source has it. The mean is of the last 8,192 candidates, or of the last pass where
    that is shorter, instead of the whole pass before.

    Source: Qin et al., InfoBatch, ICLR 2024, arXiv:2303.04947.

    Args:
        prune_ratio: Share dropped below the mean, in [0, 1).

    Raises:
        ValueError: If ``prune_ratio`` lies outside [0, 1).

    Example:
        >>> InfoBatchPolicy().keep_probability(torch.tensor([0.0, 1.0, 2.0]))
        tensor([0.5000, 1.0000, 1.0000])
    """

    default_score = "loss"
    default_weights = "sum"
    default_tail = 0.125

    def __init__(self, prune_ratio: float = 0.5) -> None:
        super().__init__()
        self.prune_ratio = check_number("prune_ratio", prune_ratio, "[0, 1)", "the source uses 0.5")
        self.mean = 0.0

    def compare(self, recent: Tensor) -> None:
        self.mean = float(recent.mean())

    def chances(self, scores: Tensor) -> Tensor:
        return torch.where(scores < self.mean, 1 - self.prune_ratio, 1.0)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.mean = float(state["mean"])


class SelectiveBackpropPolicy(_RelativePolicy):
    r"""Selective-Backprop's rule, :math:`p_i = \mathrm{CDF}(l_i)^\beta` over recent losses.

    The source runs a forward pass on every candidate; here the loss is the last one observed, and a floor keeps
    instances with low losses from vanishing.

    Source: Jiang et al., Accelerating Deep Learning by Focusing on the Biggest Losers, arXiv:1910.00762.

    Args:
        beta: Selectivity, positive: 1 keeps about one half, 2 about one third.
        floor: Least chance, in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> SelectiveBackpropPolicy(beta=1).keep_probability(torch.tensor([3.0, 1.0, 2.0, 4.0]))
        tensor([0.7500, 0.2500, 0.5000, 1.0000])
    """

    default_score = "loss"

    def __init__(self, beta: float = 1.0, floor: float = 0.05) -> None:
        super().__init__()
        self.beta = check_number("beta", beta, "(0, inf)", "1 keeps about one half")
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.05")
        self._sorted = torch.zeros(0)

    def compare(self, recent: Tensor) -> None:
        self._sorted = torch.from_numpy(np.sort(recent.numpy()))  # ten times as fast as torch's

    def chances(self, scores: Tensor) -> Tensor:
        ranks = torch.searchsorted(self._sorted, scores, right=True)
        return (ranks / len(self._sorted)).pow(self.beta).clamp(self.floor, 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "sorted": self._sorted.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._sorted = state["sorted"].clone()


class ClassQuotaPolicy(Policy):
    r"""Another policy's rule, with a least mean keep rate for every class.

    Where the mean m of a class's chances over recent candidates lies below the quota q, each of them is raised to
    :math:`p + (1 - p)(q - m) / (1 - m)`: then their mean is q, their order is the rule's, and none falls. Weights 1/p
    stay right, because they are of the raised chances. Without class labels nothing changes.

    Source: none; a guard for data where a rule would starve a class.

    Args:
        policy: The rule: a name in ``POLICIES`` or a policy.
        min_rate: q, in (0, 1).
        decay: What a call's chances count less than the next call's, in [0, 1).

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> policy = ClassQuotaPolicy(min_rate=0.5)
        >>> policy.balance(torch.tensor([0.2, 0.4, 0.9]), labels=torch.tensor([0, 0, 1]))
        tensor([0.4286, 0.5714, 0.9000])
    """

    reads_labels = True

    def __init__(
        self, policy: GivenPolicyName | Policy = "proportional", min_rate: float = 0.4, decay: float = 0.99
    ) -> None:
        self.min_rate = check_number("min_rate", min_rate, "(0, 1)", "below the policy's keep rate, try 0.4")
        self.decay = check_number("decay", decay, "[0, 1)", "try 0.99")
        self.policy = check_named("policy", policy, Policy, POLICIES, {})
        self._sums = torch.zeros(0)  # decayed, of the chances of each class, (C,)
        self._counts = torch.zeros(0)
        self.keeps_everything = self.policy.keeps_everything
        self.needs_scores = not self.keeps_everything  # the labels come with the losses
        for name in ("default_assistant", "default_score", "default_weights", "default_tail"):
            setattr(self, name, getattr(self.policy, name))

    def keep_probability(self, scores: Tensor) -> Tensor:
        return self.policy.keep_probability(scores)

    def prepare(self, num_candidates: int) -> None:
        self.policy.prepare(num_candidates)

    def balance(self, probs: Tensor, labels: Tensor) -> Tensor:
        probs = self.policy.balance(probs, labels) if self.policy.reads_labels else probs
        has_class = labels >= 0
        own, classes = probs[has_class], labels[has_class].long() % MAX_CLASSES
        if not len(classes):
            return probs
        missing = int(classes.max()) + 1 - len(self._counts)
        if missing > 0:
            self._sums, self._counts = F.pad(self._sums, (0, missing)), F.pad(self._counts, (0, missing))
        self._sums = (self._sums * self.decay).index_add_(0, classes, own)
        self._counts = (self._counts * self.decay).index_add_(0, classes, torch.ones_like(own))
        means = self._sums[classes] / self._counts[classes]
        raised = ((self.min_rate - means) / (1 - means).clamp(min=1e-6)).clamp(0, 1)
        balanced = probs.clone()
        balanced[has_class] = own + (1 - own) * raised
        return balanced

    def observe(self, predictions: Tensor, targets: Tensor) -> None:
        self.policy.observe(predictions, targets)

    def state_dict(self) -> dict[str, Any]:
        return {"policy": self.policy.state_dict(), "sums": self._sums.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()


POLICIES: dict[str, type[Policy]] = {
    "autoassist": AutoAssistPolicy,
    "proportional": ProportionalPolicy,
    "infobatch": InfoBatchPolicy,
    "selective_backprop": SelectiveBackpropPolicy,
    "class_quota": ClassQuotaPolicy,
    "uniform": UniformPolicy,
    "random": RandomPolicy,
}
