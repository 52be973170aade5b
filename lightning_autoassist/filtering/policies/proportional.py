"""Keep in proportion to the score."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.filtering.policies.base import NO_FLOOR
from lightning_autoassist.filtering.policies.recent_scores import proportional_scale
from lightning_autoassist.filtering.policies.relative import RelativePolicy
from lightning_autoassist.trainer_support.arguments import check_number


class ProportionalPolicy(RelativePolicy):
    r"""Keep in proportion to the score, :math:`p_i = \mathrm{clip}(s_i / \lambda, \gamma, 1)`.

    :math:`\lambda` is solved for a mean keep rate over the recent candidates. With the norm of the gradient for score
    and weights 1/p this is importance sampling with little variance (Katharopoulos & Fleuret, ICML 2018,
    arXiv:1803.00942). Scores that may be negative, as those of some losses by hand, count from the lowest of them.

    **What shifts.** With weights 1/p, which are the default, nothing: the expected gradient is that of the whole data,
    and calibration and thresholds are those of plain training. With a keep rate below 0.3 the weights of old scores
    vary so much that training ends below a shortened schedule: take ``"prioritized"`` there.

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

    default_reweighting: ReweightingName = "inverse_probability"
    default_unfiltered_tail = 0.125

    def __init__(self, keep_rate: float = 0.5, floor: float = 0.2, cap_quantile: float = 1.0) -> None:
        super().__init__()
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.2")
        self.keep_rate: Any = check_number("keep_rate", keep_rate, "(0, 1)", "try 0.5")
        if self.keep_rate < self.floor:
            raise ValueError(f"keep_rate must be in [floor, 1) = [{floor}, 1), got {keep_rate}; try 0.5")
        self.cap_quantile = check_number("cap_quantile", cap_quantile, "(0, 1]", "0.95 caps the highest twentieth")
        self.scale = 1.0  # lambda
        self.cap = float("inf")
        self.origin = 0.0  # what scores are counted from

    @property
    @override
    def expected_keep_rate(self) -> float | None:
        return float(self.keep_rate)

    @override
    def compare(self, recent: Tensor) -> None:
        if self.cap_quantile < 1:
            self.cap = float(torch.quantile(recent, self.cap_quantile))
        self.origin = min(0.0, float(recent.min()))
        priorities = self.priorities((recent.clamp(max=self.cap) - self.origin).numpy())
        self.scale = proportional_scale(priorities, self.rate(priorities), self.floor)

    @override
    def chances(self, scores: Tensor) -> Tensor:
        above = (scores.clamp(max=self.cap) - self.origin).numpy()
        return torch.from_numpy(self.priorities(above) / np.float32(self.scale)).clamp(self.floor, 1)

    def priorities(self, above: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """What p is in proportion to, for scores that are counted from the lowest, shape ``(n,)``."""
        return above

    def rate(self, priorities: npt.NDArray[np.float32]) -> float:
        """The mean of p that is wanted over recent candidates with such priorities, in [floor, 1)."""
        return float(self.keep_rate)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scale": self.scale, "cap": self.cap, "origin": self.origin}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.scale, self.cap, self.origin = (float(state[name]) for name in ("scale", "cap", "origin"))
