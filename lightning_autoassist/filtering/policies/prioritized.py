"""Prioritized sampling: keep in proportion to a power of the score, and correct for a part of it.

Shapes: n candidates, B batch, m recent candidates.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.instances import Instances
from lightning_autoassist.filtering.policies.class_statistics import ClassMeanSquares
from lightning_autoassist.filtering.policies.proportional import ProportionalPolicy
from lightning_autoassist.filtering.policies.schedules import Schedule, check_schedule, value_at
from lightning_autoassist.trainer_support.arguments import check_choice, check_number, received

FirstPass = Literal["class_prior", "keep"]
# What keep_rate="auto" may come to.
LEAST_RATE, MOST_RATE = 0.1, 0.5
# Below it old scores decide much, and a first pass that is kept takes much of a short training.
LOW_RATE = 0.3
# With so much of the class's score in it, an instance's own may be old.
STEADYING_MIX = 0.05
# The share of a pass that is kept before instances are judged by their class alone.
WARM_UP = 0.1


class PrioritizedPolicy(ProportionalPolicy):
    r"""Keep in proportion to a power of the score, :math:`p_i = \mathrm{clip}(v_i^\alpha / \lambda, \gamma, 1)`.

    The priority is the score with a part of what its class scores, :math:`v_i = \sqrt{(1 - m) s_i^2 + m\, m_c^2}`,
    where :math:`m_c^2` is the running mean square of the class: so that a score of long ago does not keep an instance
    out. :math:`\lambda` is solved for a mean keep rate over the recent candidates. Kept instances are weighted by
    :math:`p^{-\beta}`, normalized to mean 1. An instance that the model has not seen is kept, or, with
    ``first_pass="class_prior"``, judged by :math:`m_c` alone, once a tenth of a pass and eight of its class were seen;
    where no class is known of it, it is kept.

    **What shifts.** With ``correction=1`` the expected gradient is that of the whole data, as with
    ``"proportional"``. With less, what scores high counts for more than its share: ranking gains (average precision,
    and accuracy where classes are rare), while predicted probabilities of rare classes come out too high and a
    threshold of 0.5 finds more of them. Choose thresholds on held-out data, or take ``correction=1`` where calibrated
    outputs are wanted. With ``correction=1`` and a low keep rate let ``class_mix`` be 0.2 or more: weights 1/p of
    scores that are old have so much variance that training ends below a shortened schedule.

    **Which keep rate.** Ordinary and long-tailed classes: 0.5, the default. Rare events (0.5 to 4 % positives): 0.1.
    Below 0.3, more passes over the data fit into as many steps, scores are older, and a first pass that is kept would
    take much of a short training; what else is not given then follows: see ``floor``, ``class_mix`` and ``first_pass``.

    Source: Schaul et al., Prioritized Experience Replay, ICLR 2016, arXiv:1511.05952, for the exponents; the class's
    share and prior are ours.

    Args:
        keep_rate: Mean of p, in [floor, 1): a number, a schedule, which gets the share of training that is done, or
            ``"auto"``: :math:`(\sum v)^2 / (n \sum v^2)` of recent priorities v, between 0.1 and 0.5, which is low
            where few instances have most of the gradient.
        floor: :math:`\gamma`, in (0, 1]; None: two fifths of the keep rate, below 0.3 a fifth of it, and 0.02 where
            it is no number.
        exponent: :math:`\alpha`, not negative: 0 keeps all alike, 1 is proportional.
        correction: :math:`\beta`, in [0, 1], a number or a schedule: 0 weighs nothing, 1 is unbiased.
        class_mix: m, in [0, 1]; None: 0 and, where the keep rate is below 0.3 or no number, 0.2. Without class labels
            it is 0.
        first_pass: What becomes of instances that the model has not seen: ``"keep"`` or ``"class_prior"``; None:
            ``"keep"`` and, where the keep rate is below 0.3 or no number, ``"class_prior"``.
        class_decay: What a batch counts less than the next in the mean squares of the classes, in [0, 1).
        cap_quantile: Priorities above this quantile count as the quantile, in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> policy = PrioritizedPolicy()  # keeps half of the candidates
        >>> policy.keep_probability(torch.tensor([0.0, 1.0, 2.0, 6.0]))
        tensor([0.2000, 0.2667, 0.5333, 1.0000])
    """

    default_reweighting = "normalized"
    default_unfiltered_tail = 0.0

    def __init__(
        self,
        keep_rate: float | Literal["auto"] | Schedule = 0.5,
        floor: float | None = None,
        *,
        exponent: float = 1.0,
        correction: float | Schedule = 0.5,
        class_mix: float | None = None,
        first_pass: FirstPass | None = None,
        class_decay: float = 0.99,
        cap_quantile: float = 1.0,
    ) -> None:
        rate = _rate_to_suit(keep_rate)
        keeps_few = rate < LOW_RATE
        if floor is None:
            floor = rate / 5 if keeps_few else 2 * rate / 5
        super().__init__(floor=floor, keep_rate=max(0.5, (1 + floor) / 2), cap_quantile=cap_quantile)
        self.keep_rate = _checked_rate(keep_rate, self.floor)
        self.exponent = check_number("exponent", exponent, "[0, inf)", "1 is proportional")
        self.correction = check_schedule("correction", correction, "[0, 1]", "1 is unbiased, try 0.5")
        if class_mix is None:
            class_mix = 0.2 if keeps_few else 0.0
        self.class_mix = check_number("class_mix", class_mix, "[0, 1]", "try 0.2")
        if first_pass is None:
            first_pass = "class_prior" if keeps_few else "keep"
        self.first_pass = check_choice("first_pass", first_pass, ("class_prior", "keep"))
        self.scores_unseen = self.first_pass == "class_prior"
        self.required_columns = ("labels",) if self.class_mix or self.scores_unseen else ()
        self.classes = ClassMeanSquares(check_number("class_decay", class_decay, "[0, 1)", "try 0.99"))
        self._num_learnt = 0
        self._warm_up = 0.0  # instances to learn from before any is judged by its class

    @property
    @override
    def expected_keep_rate(self) -> float | None:
        return LEAST_RATE if self.keep_rate == "auto" else value_at(self.keep_rate, self.progress)

    @property
    @override
    def steadies_scores(self) -> bool:
        return self.class_mix >= STEADYING_MIX

    @override
    def prepare(self, num_candidates: int) -> None:
        super().prepare(num_candidates)
        self._warm_up = WARM_UP * num_candidates * self.num_processes

    @override
    def update(self, instances: Instances, scores: Tensor) -> None:
        self._num_learnt += len(scores)
        if instances.labels is not None and instances.probs is not None:
            self.classes.update(instances.labels, scores, instances.probs)

    @override
    def unseen_scores(self, instances: Instances) -> Tensor:
        assert instances.labels is not None
        if self._num_learnt < self._warm_up:
            return torch.full((len(instances.labels),), torch.nan)
        return self.classes.of(instances.labels).sqrt()

    @override
    def judge(self, scores: Tensor, instances: Instances) -> Tensor:
        if self.class_mix and instances.labels is not None:
            scores = self._mixed(scores, self.classes.of(instances.labels))
        return self.keep_probability(scores)

    def _mixed(self, scores: Tensor, squares: Tensor) -> Tensor:
        own, of_class = np.maximum(scores.numpy(), 0), squares.numpy()
        mixed = np.sqrt((1 - self.class_mix) * own * own + self.class_mix * of_class)
        unknown = np.isnan(of_class)
        return torch.from_numpy(np.where(unknown, own, mixed) if unknown.any() else mixed)

    @override
    def priorities(self, above: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return above if self.exponent == 1 else above**self.exponent

    @override
    def rate(self, priorities: npt.NDArray[np.float32]) -> float:
        if self.keep_rate != "auto":
            return max(self.floor, value_at(self.keep_rate, self.progress))
        return max(self.floor, min(MOST_RATE, max(LEAST_RATE, participation(priorities))))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "num_learnt": self._num_learnt, "classes": self.classes.state_dict()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._num_learnt = int(state["num_learnt"])
        self.classes.load_state_dict(state["classes"])


def participation(values: npt.NDArray[np.float32]) -> float:
    r"""The share of values that make up their sum, :math:`(\sum v)^2 / (n \sum v^2)`: 1 where they are all alike.

    Example:
        >>> participation(np.array([1.0, 1.0, 0.0, 0.0], np.float32))
        0.5
    """
    squares = float(np.square(values, dtype=np.float64).sum())
    return float(values.sum(dtype=np.float64)) ** 2 / (len(values) * squares) if squares else 1.0


def _rate_to_suit(keep_rate: Any) -> float:
    """The keep rate that settings follow; a number out of range is refused later."""
    return float(keep_rate) if isinstance(keep_rate, int | float) and 0 < keep_rate < 1 else LEAST_RATE


def _checked_rate(keep_rate: Any, floor: float) -> Any:
    if isinstance(keep_rate, str):
        if keep_rate != "auto":
            raise ValueError(f"keep_rate must be a number, a schedule or 'auto', got {received(keep_rate)}")
        return keep_rate
    return check_schedule("keep_rate", keep_rate, f"[{floor}, 1)", "at least the floor; try 0.5")
