"""SeTa's rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.policies.base import NO_FLOOR
from lightning_autoassist.filtering.policies.relative import RelativePolicy
from lightning_autoassist.trainer_support.arguments import check_number, check_whole


class SeTaPolicy(RelativePolicy):
    r"""SeTa's rule: a window over groups of instances, from easy to hard, moves on with each pass.

    Instances are grouped by their losses. In pass t the groups from :math:`t \bmod (G - w + 1)` on are kept, w of them,
    where :math:`w = \mathrm{round}(\alpha G)`; of what is kept a share is left out at random.

    The groups are quantiles of recent losses, and not the source's clusters: those are of very unequal size, so that
    the share that is kept jumps between a twentieth and all from one pass to the next. A floor lets the others come
    back, whose losses would else stay what they were.

    **What shifts.** Nothing is corrected: over several passes the middle groups are seen most, the easiest and the
    hardest least. Probabilities and thresholds shift little where the windows are wide.

    Source: SeTa, CVPR 2025, arXiv:2503.13385. Its unfiltered end begins after 0.875 of training.

    Args:
        num_groups: G, at least 1.
        width: :math:`\alpha`, in (0, 1]: the share of the groups in the window. The source uses 0.9 and 0.6.
        prune_ratio: The share that is left out at random, in [0, 1).
        floor: Chance of the groups outside, in (0, 1].

    Raises:
        ValueError: If an argument lies outside its range.

    Example:
        >>> policy = SeTaPolicy(num_groups=4, width=0.5, prune_ratio=0, floor=0.1)
        >>> policy.note_progress(0.5, pass_index=1)
        >>> policy.keep_probability(torch.tensor([0.1, 0.2, 0.3, 0.4]))
        tensor([0.1000, 1.0000, 1.0000, 0.1000])
    """

    default_score = "loss"
    default_unfiltered_tail = 0.125

    def __init__(self, num_groups: int = 5, width: float = 0.6, prune_ratio: float = 0.1, floor: float = 0.05) -> None:
        super().__init__()
        self.num_groups = check_whole("num_groups", num_groups, "[1, inf)", "the source uses 5")
        self.width = check_number("width", width, "(0, 1]", "the source uses 0.9 and 0.6")
        self.prune_ratio = check_number("prune_ratio", prune_ratio, "[0, 1)", "the source uses 0.1")
        self.floor = check_number("floor", floor, "(0, 1]", f"{NO_FLOOR}, try 0.05")
        self.edges = torch.zeros(0)  # between the groups, (G - 1,)

    @property
    def num_kept(self) -> int:
        """w, the groups in the window."""
        return max(1, round(self.width * self.num_groups))

    @override
    def compare(self, recent: Tensor) -> None:
        shares = np.arange(1, self.num_groups) / self.num_groups
        self.edges = torch.from_numpy(np.quantile(recent.numpy(), shares).astype(np.float32))

    @override
    def chances(self, scores: Tensor) -> Tensor:
        groups = torch.bucketize(scores, self.edges)
        first = self.pass_index % (self.num_groups - self.num_kept + 1)
        is_inside = (groups >= first) & (groups < first + self.num_kept)
        return torch.where(is_inside, max(float(self.floor), 1 - self.prune_ratio), float(self.floor))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "edges": self.edges.clone()}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.edges = state["edges"].clone()
