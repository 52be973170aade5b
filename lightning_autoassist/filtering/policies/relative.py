"""What rules that compare scores with each other have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.base import Policy
from lightning_autoassist.filtering.policies.recent_scores import MAX_RECENT, RecentScores


class RelativePolicy(Policy):
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

    @override
    def prepare(self, num_candidates: int) -> None:
        # A window of several passes would hold each instance's scores of long ago beside that of today.
        self.recent.size = max(1, min(MAX_RECENT, num_candidates))

    @override
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

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"recent": self.recent.values.clone(), "num_new": self._num_new}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.recent.values = state["recent"].clone()
        self._num_new = int(state["num_new"])
