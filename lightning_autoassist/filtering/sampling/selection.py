"""What a candidate stream asks of whoever selects: how likely a candidate is kept, and what it weighs then.

Shapes: N data set, n candidates, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.filtering.memory.store import LabelSource
from lightning_autoassist.filtering.names import ReweightingName
from lightning_autoassist.trainer_support.arguments import check_choice
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.executors import InlineExecutor


class Rows(NamedTuple):
    """Instances of a stream, which no index tells.

    Attributes:
        batch: The user's batch that holds them.
        size: n.
        features: Shape ``(n, F)``, or rows of tokens, shape ``(n, W)``, or None.
        integers: What may be their labels: the batch's integer tensors of shape ``(n,)``, by their place in it.
    """

    batch: Any
    size: int
    features: Tensor | None
    integers: dict[str, Tensor]


Probabilities: TypeAlias = "npt.NDArray[np.floating[Any]]"
KeepProbability = Callable[[IndexArray, int], Probabilities]
KeepRows = Callable[[Rows, int], Probabilities]
RowFeatures = Callable[[Any, int], "Tensor | None"]


class Selector:
    """Keeps everything, and weights nothing; the base of whatever selects.

    Args:
        reweighting: ``"none"``, ``"inverse_probability"`` or ``"normalized"``, see
            :class:`~lightning_autoassist.ShrinkingBatchSampler`.

    Attributes:
        reweighting: See above; may change in the middle of training.
        keeps_everything: Whether p is always 1, so that nobody needs to ask.
        correction: The exponent of the weights in force, in [0, 1].

    Raises:
        ValueError: If ``reweighting`` names no mode.
    """

    keeps_everything = True
    correction: float = 1.0

    def __init__(self, reweighting: ReweightingName = "none") -> None:
        check_choice("reweighting", reweighting, get_args(ReweightingName))
        self.reweighting: ReweightingName = reweighting

    @property
    def jobs(self) -> InlineExecutor:
        """Where batches of indices are drawn; streams are drawn from in the training loop."""
        return InlineExecutor()

    def begin(self, num_instances: int | None, labels: LabelSource | None = None) -> None:
        """Be ready for the first candidates of a data set, or refuse them.

        Args:
            num_instances: N; None for a stream, of whose instances nothing can be remembered.
            labels: Tells those of instances that the model has not seen.

        Raises:
            MisconfigurationException: If streams cannot be filtered so.
        """

    def keep_probability(self, candidates: IndexArray | Rows, pass_index: int) -> Probabilities:
        """Chances of candidates, in (0, 1], shape ``(n,)``.

        Args:
            candidates: Positions in the data set, shape ``(n,)``, or rows of a stream.
            pass_index: Number of the pass, from 0.
        """
        return np.ones(candidates.size)

    def row_features(self, batch: Any, num_rows: int) -> Tensor | None:
        """Features of a stream's batch of n rows, shape ``(n, F)``; None where nobody reads them."""
        return None

    def lacks_features(self, indices: IndexArray) -> bool:
        """Whether features of some kept instances, shape ``(n,)``, are still to be had."""
        return False

    def note_considered(self, indices: IndexArray, probs: Probabilities, kept: npt.NDArray[np.bool_]) -> None:
        """Candidates were considered with these p, and kept or not; all of shape ``(n,)``. Not called for streams."""


class GivenProbabilities(Selector):
    """Keeps each candidate with the p that a function gives.

    Args:
        keep_probability: Gets candidates and the number of the pass, returns p; None keeps everything.
        reweighting: See :class:`Selector`.
        features: Gets a stream's batch and n, returns its rows' features, or None.
        correction: See :class:`Selector`.
    """

    def __init__(
        self,
        keep_probability: KeepProbability | KeepRows | None = None,
        reweighting: ReweightingName = "none",
        features: RowFeatures | None = None,
        *,
        correction: float = 1.0,
    ) -> None:
        super().__init__(reweighting)
        self.correction = correction
        self.keeps_everything = keep_probability is None
        self._keep_probability: Any = keep_probability
        self._features = features

    @override
    def keep_probability(self, candidates: IndexArray | Rows, pass_index: int) -> Probabilities:
        probs: Probabilities = self._keep_probability(candidates, pass_index)
        return probs

    @override
    def row_features(self, batch: Any, num_rows: int) -> Tensor | None:
        return None if self._features is None else self._features(batch, num_rows)
