"""What steps and draws tell the training dynamics: visits of instances, and candidates that other processes had.

Shapes: B batch, n candidates.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.dynamics import Visits
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.waiting_steps import PendingUpdate
from lightning_autoassist.trainer_support.arrays import IndexArray


def visits_in(observed: PendingUpdate, rows: Tensor, finite: Tensor | None) -> Visits:
    """What a step showed of its instances, of which those with a loss that is no finite number are left out.

    Args:
        observed: On the CPU.
        rows: Of the store, shape ``(B,)``.
        finite: Which losses and scores are finite, shape ``(B,)``; None for all of them.
    """
    columns = (rows, observed.losses, observed.probs, observed.margins, observed.others)
    if finite is not None:
        columns = tuple(None if column is None else column[finite] for column in columns)  # type: ignore[assignment]
    places, losses, probs, margins, others = (None if column is None else column.numpy() for column in columns)
    assert places is not None
    assert losses is not None
    return Visits(places, losses, probs, observed.pass_index, margins, others)


def visits_of(store: InstanceStore, steps: Iterable[PendingUpdate]) -> list[Visits]:
    """What steps showed that are still to be learnt from, of instances of a store.

    Args:
        store: Grows where it has no row of an instance.
        steps: On the CPU.
    """
    visits = []
    for observed in steps:
        finite = observed.losses.isfinite() & observed.scores.isfinite()
        visits.append(visits_in(observed, store.places(observed.indices), finite))
    return visits


class Candidates:
    """Candidates of this process that the others have not been told of."""

    def __init__(self) -> None:
        self._rows: list[IndexArray] = []
        self._kept: list[npt.NDArray[np.bool_]] = []

    def add(self, rows: IndexArray, kept: npt.NDArray[np.bool_]) -> None:
        """Some more, kept or not; each of shape ``(n,)``."""
        self._rows.append(rows)
        self._kept.append(kept)

    def packed(self) -> dict[str, Tensor]:
        """All of them, in two tensors of shape ``(n,)``."""
        rows = np.concatenate([np.empty(0, np.int64), *self._rows])
        kept = np.concatenate([np.empty(0, np.bool_), *self._kept])
        return {"rows": torch.from_numpy(rows), "kept": torch.from_numpy(kept)}
