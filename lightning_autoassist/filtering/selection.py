"""What the callback tells the data module: how candidates are to be selected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning_autoassist.filtering.memory.store import LabelSource
from lightning_autoassist.filtering.sampling.index_batches import KeepProbability, ShrinkingBatchSampler
from lightning_autoassist.filtering.sampling.row_stream import KeepRows, RowFeatures, RowStream
from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.executors import InlineExecutor


@dataclass(frozen=True)
class Selection:
    """How the callback wants candidates to be selected.

    Attributes:
        keep_probability: Gets candidates and the number of the pass, returns p; see ``ShrinkingBatchSampler``.
        keeps_everything: Whether p is always 1.
        reweighting: ``"none"``, ``"inverse_probability"`` or ``"normalized"``.
        correction: Tells the exponent of the weights that is in force.
        on_data: Called before the first batch of a data set is drawn, with its size and what tells its labels.
        on_stream: Called before a stream's first row is judged; raises where streams cannot be filtered so.
        keep_rows: Gets rows of a stream and the number of the pass, returns p; see ``RowStream``.
        row_features: Gets a batch of a stream and n, returns its rows' features, or None where nobody reads them.
        on_considered: Called with candidates, their p and whether each was kept; not for streams.
        lacks_features: Gets kept instances, says whether features of some are still to be had; not for streams.
        jobs: Where batches are drawn; streams are drawn from in the training loop.
    """

    keep_probability: KeepProbability
    keeps_everything: bool
    reweighting: str
    correction: Callable[[], float]
    on_data: Callable[[int, LabelSource], None]
    on_stream: Callable[[], None]
    keep_rows: KeepRows
    row_features: RowFeatures
    on_considered: Callable[[Any, Any, Any], None]
    lacks_features: Callable[[IndexArray], bool]
    jobs: InlineExecutor

    def apply_to(self, stream: ShrinkingBatchSampler | RowStream, *, pass_whole: bool = False) -> None:
        """Let ``stream`` select so.

        Args:
            stream: The candidates.
            pass_whole: Pass a stream's own batches on as they are.
        """
        stream.reweighting = "none" if pass_whole else self.reweighting
        stream.correction = self.correction
        if isinstance(stream, RowStream):
            stream.pass_whole = pass_whole
            stream.features = self.row_features
            stream.keep_probability = None if self.keeps_everything else self.keep_rows
        else:
            stream.keep_probability = None if self.keeps_everything else self.keep_probability
            stream.on_considered = self.on_considered
            stream.lacks_features = self.lacks_features
            stream.jobs = self.jobs
