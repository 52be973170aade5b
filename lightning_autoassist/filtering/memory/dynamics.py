r"""How each instance's loss went over a run: mean and spread, times learnt and forgotten, times seen, kept and dropped.

Visits are not random under filtering: an instance that was kept with p counts 1/p in means and spreads, so that they
estimate those of a run that visits every instance in every pass.

Sources: confidence and variability, Swayamdipta et al., EMNLP 2020, arXiv:2009.10795; learnt and forgotten, Toneva et
al., ICLR 2019, arXiv:1812.05159; means and spreads over weighted visits, West, CACM 22(9), 1979.

Shapes: N data set, n instances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_autoassist.trainer_support.arrays import FloatArray, IndexArray

# An instance counts as learnt while its loss is below: a cross-entropy's label is then more likely than all others.
LEARNT_BELOW = math.log(2)

ROW = np.dtype(
    [
        ("weight", "f4"),  # sum of 1/p
        ("loss", "f4"),  # mean
        ("loss_variance", "f4"),
        ("confidence", "u2"),  # mean, in steps of 1/65535
        ("variability", "u2"),  # standard deviation, in steps of 1/131070
        ("seen", "u2"),
        ("kept", "u2"),
        ("dropped", "u2"),
        ("turns", "u1"),  # from not learnt to learnt and back: odd while the instance is learnt
        ("first_pass", "u1"),  # in which it was learnt, from 1; 0: never
    ]
)
COLUMNS = ROW.names or ()
_WORDS = ROW.itemsize // 8  # a row is gathered and written as so many numbers of 8 bytes, which is fastest
_SHORT_MAX, _BYTE_MAX = 65535, 255
_STEP, _SPREAD_STEP = np.float32(1 / _SHORT_MAX), np.float32(0.5 / _SHORT_MAX)

WRITTEN_TOGETHER = 8192  # visits, or candidates
# A row as so many numbers of 2 bytes, and where the counts of candidates stand among them.
_SHORTS = ROW.itemsize // 2
_OFFSETS: Any = ROW.fields
_KEPT, _DROPPED = (_OFFSETS[name][1] // 2 for name in ("kept", "dropped"))

_Words = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.floating[Any]]


class Visits(NamedTuple):
    """What one batch showed of its instances.

    Attributes:
        rows: Of the store, shape ``(n,)``, int64.
        losses: Shape ``(n,)``, float32, finite.
        probs: What they were kept with, shape ``(n,)``, float32; None: certain to be kept.
        pass_index: Number of the pass, from 0.
    """

    rows: IndexArray
    losses: FloatArray
    probs: FloatArray | None
    pass_index: int


class InstanceDynamics:
    """Training dynamics of N instances, 24 bytes each, on the CPU.

    Confidence is the exponential of minus the loss: the label's probability where the loss is a cross-entropy. It is
    kept to 16 bits, and so to about 1e-4 after a hundred visits. Counts end at 65535, times forgotten at 127, and the
    first pass in which an instance was learnt at 254, which then mean "so many or more".

    Args:
        num_rows: N.

    Attributes:
        loss_source: The call that the losses are from, as ``"cross_entropy at train.py:31"``.
        unlearnt: Gives the visits that are still to be observed, for who looks before.

    Example:
        >>> dynamics = InstanceDynamics(3)
        >>> for loss in (0.9, 0.5, 0.7):
        ...     dynamics.observe(Visits(np.array([1]), np.array([loss], np.float32), None, pass_index=0))
        >>> columns = dynamics.columns()
        >>> f"{columns['loss_mean'][1]:.2f}", columns["times_learnt"].tolist(), columns["times_forgotten"].tolist()
        ('0.70', [0, 1, 0], [0, 1, 0])
    """

    def __init__(self, num_rows: int) -> None:
        self._words: _Words = np.zeros((num_rows, _WORDS), np.int64)
        self.loss_source = ""
        self.unlearnt: Callable[[], Iterable[Visits]] | None = None
        # What was told and is not in the rows yet: many batches at once cost little more than one.
        self._visits: list[Visits] = []
        self._candidates: list[tuple[IndexArray, npt.NDArray[np.bool_]]] = []
        self._num_visits = self._num_candidates = 0

    def __len__(self) -> int:
        return len(self._words)

    @property
    def _table(self) -> npt.NDArray[Any]:
        """The rows, shape ``(N,)``, of type ``ROW``; what is written there is kept."""
        return self._words.view(ROW)[:, 0]

    def grow(self, num_rows: int) -> None:
        """Have so many rows."""
        self._words = np.concatenate([self._words, np.zeros((num_rows - len(self), _WORDS), np.int64)])

    def forget(self) -> None:
        """Begin anew."""
        self._write()
        self._words[:] = 0

    # ---- a run tells

    def observe(self, visits: Visits) -> None:
        """The model was trained on some instances, of which one may be there several times."""
        self._visits.append(visits)
        self._num_visits += len(visits.rows)
        if self._num_visits >= WRITTEN_TOGETHER:
            self._write_visits()

    def count(self, rows: IndexArray, kept: npt.NDArray[np.bool_]) -> None:
        """Instances were candidates, and were kept or not; each of shape ``(n,)``."""
        self._candidates.append((rows, kept))
        self._num_candidates += len(rows)
        if self._num_candidates >= WRITTEN_TOGETHER:
            self._write_candidates()

    def _write(self) -> None:
        self._write_visits()
        self._write_candidates()

    def _write_visits(self) -> None:
        visits, self._visits, self._num_visits = self._visits, [], 0
        if not visits:
            return
        rows, losses = (np.concatenate([one[place] for one in visits]) for place in (0, 1))
        probs = np.concatenate([_probs(one) for one in visits])
        passes = np.repeat([one.pass_index for one in visits], [len(one.rows) for one in visits])
        for part in _distinct(rows):
            words = self._words.take(rows[part], 0)
            with np.errstate(over="ignore", invalid="ignore"):  # squares of losses of a run that diverges
                _add_visits(words.view(ROW)[:, 0], losses[part], probs[part], passes[part])
            self._words[rows[part]] = words

    def _write_candidates(self) -> None:
        candidates, self._candidates, self._num_candidates = self._candidates, [], 0
        if not candidates:
            return
        rows, kept = (np.concatenate(column) for column in zip(*candidates, strict=True))
        # The two numbers alone, and not the rows that hold them: there may be ten candidates for one that is kept.
        shorts, places = self._words.view(np.uint16).reshape(-1), rows * _SHORTS + np.where(kept, _KEPT, _DROPPED)
        if int(shorts.take(places).max(initial=0)) + len(places) <= _SHORT_MAX:
            np.add.at(shorts, places, np.uint16(1))
            return
        for part in _distinct(places):
            shorts[places[part]] += shorts[places[part]] < _SHORT_MAX

    # ---- somebody looks

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """What is known now, by the names of ``frame.COLUMNS``, each of shape ``(N,)``."""
        table = self._settled()._table
        seen, turns = table["seen"].astype(np.int32), table["turns"].astype(np.int32)

        def known(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
            return np.where(seen > 0, values, np.nan).astype(np.float32)

        return {
            "times_seen": seen,
            # Where nothing is ever dropped, nobody counts what is kept.
            "times_kept": np.maximum(table["kept"], seen).astype(np.int32),
            "times_dropped": table["dropped"].astype(np.int32),
            "loss_mean": known(table["loss"]),
            "loss_spread": known(np.sqrt(table["loss_variance"])),
            "confidence": known(table["confidence"] * _STEP),
            "variability": known(table["variability"] * _SPREAD_STEP),
            "times_learnt": (turns + 1) // 2,
            "times_forgotten": turns // 2,
            "first_pass_learnt": table["first_pass"].astype(np.int32) - 1,
        }

    def _settled(self) -> InstanceDynamics:
        """These with the visits that are still to be observed."""
        self._write()
        visits = [] if self.unlearnt is None else list(self.unlearnt())
        if not visits:
            return self
        settled = InstanceDynamics(0)
        settled._words = self._words.copy()
        for one in visits:
            settled.observe(one)
        settled._write()
        return settled

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """The columns, as tensors, and what losses they are of."""
        self._write()
        return {"loss_source": self.loss_source, "columns": {name: _tensor(self._table[name]) for name in COLUMNS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.loss_source = state["loss_source"]
        columns = {name: column.numpy() for name, column in state["columns"].items() if name in COLUMNS}
        self._visits, self._candidates = [], []
        self._num_visits = self._num_candidates = 0
        self._words = np.zeros((len(columns["seen"]), _WORDS), np.int64)
        for name, column in columns.items():
            self._table[name] = column.view(ROW[name])


def _tensor(column: npt.NDArray[Any]) -> Tensor:
    # Not all that torch can do works on unsigned numbers of 16 bits.
    column = np.ascontiguousarray(column)
    return torch.from_numpy((column.view(np.int16) if column.dtype == np.uint16 else column).copy())


def _distinct(rows: IndexArray) -> list[slice | IndexArray]:
    """Places in ``rows`` in groups with no row twice, whose order is that of each row's visits."""
    ordered = np.sort(rows)
    if not (ordered[1:] == ordered[:-1]).any():
        return [slice(None)]
    places = np.arange(len(rows))
    groups: list[slice | IndexArray] = []
    while len(places):
        _, first = np.unique(rows[places], return_index=True)
        groups.append(places[np.sort(first)])
        places = np.delete(places, first)
    return groups


def _add_visits(table: npt.NDArray[Any], losses: FloatArray, probs: FloatArray, passes: IndexArray) -> None:
    """Add a visit to each of some rows, shape ``(n,)``."""
    weights = 1 / probs
    table["weight"] += weights
    share = weights / table["weight"]
    mean, variance = _moved(table["loss"], table["loss_variance"], losses, share)
    table["loss"], table["loss_variance"] = mean, variance
    confidence = np.exp(-np.maximum(losses, 0))
    spread = table["variability"] * _SPREAD_STEP
    mean, variance = _moved(table["confidence"] * _STEP, spread * spread, confidence, share)
    table["confidence"] = mean * _SHORT_MAX + np.float32(0.5)
    table["variability"] = np.sqrt(variance) * (2 * _SHORT_MAX) + np.float32(0.5)
    table["seen"] += table["seen"] < _SHORT_MAX
    _add_turns(table, losses < LEARNT_BELOW, passes)


def _moved(mean: _Floats, variance: _Floats, values: _Floats, share: _Floats) -> tuple[_Floats, _Floats]:
    """Weighted mean and variance with one more value, which has this share of all weight."""
    step = values - mean
    moved = mean + share * step
    return moved, variance + share * (step * (values - moved) - variance)


def _add_turns(table: npt.NDArray[Any], is_learnt: npt.NDArray[np.bool_], passes: IndexArray) -> None:
    turns = table["turns"]
    turned = (turns & 1) != is_learnt
    is_first = turned & (turns == 0)
    table["first_pass"][is_first] = np.minimum(passes[is_first] + 1, _BYTE_MAX)
    turns = turns + turned
    turns[turned & (turns == 0)] = _BYTE_MAX - 1  # one more than a byte holds; even, as 256 is
    table["turns"] = turns


def _probs(visits: Visits) -> FloatArray:
    return np.ones(len(visits.rows), np.float32) if visits.probs is None else visits.probs
