r"""How each instance's loss went over a run: mean and spread, times learnt and forgotten, times seen, kept and dropped.

Visits are not random under filtering: an instance that was kept with p counts 1/p in means and spreads, so that they
estimate those of a run that visits every instance in every pass.

Sources: confidence and variability, Swayamdipta et al., EMNLP 2020, arXiv:2009.10795; area under the margin, Pleiss et
al., NeurIPS 2020, arXiv:2001.10528; learnt and forgotten, Toneva et al., ICLR 2019, arXiv:1812.05159; means and spreads
over weighted visits, West, CACM 22(9), 1979; the majority of votes, Boyer & Moore, Automated Reasoning, 1991.

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
        ("loss", "f4"),  # mean
        ("loss_spread", "f2"),
        ("excess", "f2"),  # mean of 1/p - 1 over the visits: 0 where nothing is filtered, so that nothing is rounded
        ("margin", "f2"),  # mean; NaN where it was not known at some visit
        ("confidence", "u2"),  # mean, in steps of 1/65535
        ("variability", "u2"),  # standard deviation, in steps of 1/131070
        ("seen", "u2"),
        ("dropped", "u2"),
        ("candidate", "u2"),  # for the majority of votes, and one more than the class; 0: none
        ("lead", "u1"),  # votes for the candidate less others, since it became that
        ("unseen", "i1"),  # times kept less times seen
        ("turns", "u1"),  # from not learnt to learnt and back: odd while the instance is learnt
        ("first_pass", "u1"),  # in which it was learnt, from 1; 0: never
    ]
)
COLUMNS = ROW.names or ()
_WORDS = ROW.itemsize // 8  # a row is gathered and written as so many numbers of 8 bytes, which is fastest
_SHORT_MAX, _BYTE_MAX = 65535, 255
_HALF_MAX = np.float32(np.finfo(np.float16).max)
_CUT_OFF = np.uint32(2**13 - 1)  # the bits that single precision has and half precision has not
_UNSEEN = np.iinfo(np.int8)
_NO_ROWS = np.empty(0, np.int64)
_STEP, _SPREAD_STEP = np.float32(1 / _SHORT_MAX), np.float32(0.5 / _SHORT_MAX)

WRITTEN_TOGETHER = 32768  # visits, or candidates
# A row as so many numbers of 2 bytes, and where the count of dropped candidates stands among them.
_SHORTS = ROW.itemsize // 2
_OFFSETS: Any = ROW.fields
_DROPPED = _OFFSETS["dropped"][1] // 2

_Words = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.floating[Any]]


class Visits(NamedTuple):
    """What one batch showed of its instances.

    Attributes:
        rows: Of the store, shape ``(n,)``, int64.
        losses: Shape ``(n,)``, float32, finite.
        probs: What they were kept with, shape ``(n,)``, float32; None: certain to be kept.
        pass_index: Number of the pass, from 0.
        margins: The label's logit less the largest other one, shape ``(n,)``, float32; None, or no finite number, where
            it is not known.
        others: The class with the largest other logit, shape ``(n,)``, integer; None, or negative, where that is not
            known.
    """

    rows: IndexArray
    losses: FloatArray
    probs: FloatArray | None
    pass_index: int
    margins: FloatArray | None = None
    others: npt.NDArray[np.integer[Any]] | None = None


class InstanceDynamics:
    """Training dynamics of N instances, 24 bytes each, on the CPU.

    Confidence is the exponential of minus the loss: the label's probability where the loss is a cross-entropy. It is
    kept to 16 bits, and so to about 1e-4 after a hundred visits; margin and spread of the loss in half precision, and
    so to about a thousandth of themselves. Counts end at 65535, times forgotten at 127, and the first pass in which an
    instance was learnt at 254, which then mean "so many or more"; times kept are at most 127 more than times seen.

    Each visit is a vote for the class with the largest other logit, and the majority of them is suggested, or, without
    a majority, a class that had many. Votes count alike, whatever p was: a label that was learnt by heart is visited
    rarely, and votes of that time tell least. Classes from 65535 on are never suggested.

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
            self._write()

    def count(self, rows: IndexArray, kept: npt.NDArray[np.bool_]) -> None:
        """Instances were candidates, and were kept or not; each of shape ``(n,)``."""
        self._candidates.append((rows, kept))
        self._num_candidates += len(rows)
        if self._num_candidates >= WRITTEN_TOGETHER:
            self._write()

    def _write(self) -> None:
        visits, self._visits, self._num_visits = self._visits, [], 0
        candidates, self._candidates, self._num_candidates = self._candidates, [], 0
        seen = self._write_visits(_Together.of(visits)) if visits else _NO_ROWS
        kept = self._write_candidates(*map(np.concatenate, zip(*candidates, strict=True))) if candidates else _NO_ROWS
        self._write_unseen(kept, seen)

    def _write_unseen(self, kept: IndexArray, seen: IndexArray) -> None:
        """Rows were kept and seen, some of them several times; of the two, neither alone might fit a byte."""
        changes = np.zeros(len(self), np.int16)  # of these pages only those are ever in memory that are touched
        np.add.at(changes, kept, np.int16(1))
        np.subtract.at(changes, seen, np.int16(1))
        rows = np.concatenate([kept, seen])
        rows = rows[changes[rows] != 0]
        unseen = self._table["unseen"]
        unseen[rows] = np.clip(unseen[rows] + changes[rows], _UNSEEN.min, _UNSEEN.max)

    def _write_visits(self, together: _Together) -> IndexArray:
        for part in _distinct(together.rows):
            some = _Together._make(column[part] for column in together)
            words = self._words.take(some.rows, 0)
            with np.errstate(over="ignore", invalid="ignore"):  # squares of losses of a run that diverges
                _add_visits(words.view(ROW)[:, 0], some)
            self._words[some.rows] = words
        return together.rows

    def _write_candidates(self, rows: IndexArray, kept: npt.NDArray[np.bool_]) -> IndexArray:
        # The one number alone, and not the rows that hold it: there may be ten candidates for one that is kept.
        shorts, places = self._words.view(np.uint16).reshape(-1), rows[~kept] * _SHORTS + _DROPPED
        if int(shorts.take(places).max(initial=0)) + len(places) <= _SHORT_MAX:
            np.add.at(shorts, places, np.uint16(1))
        else:
            for part in _distinct(places):
                shorts[places[part]] += shorts[places[part]] < _SHORT_MAX
        return rows[kept]

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
            "times_kept": seen + np.maximum(table["unseen"], 0).astype(np.int32),
            "times_dropped": table["dropped"].astype(np.int32),
            "loss_mean": known(table["loss"]),
            "loss_spread": known(table["loss_spread"]),
            "confidence": known(table["confidence"] * _STEP),
            "variability": known(table["variability"] * _SPREAD_STEP),
            "area_under_margin": known(table["margin"]),
            "suggested_label": table["candidate"].astype(np.int32) - 1,
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
        columns = _of_this_layout({name: column.numpy() for name, column in state["columns"].items()})
        self._visits, self._candidates = [], []
        self._num_visits = self._num_candidates = 0
        self._words = np.zeros((len(columns["seen"]), _WORDS), np.int64)
        for name, column in columns.items():
            self._table[name] = column.view(ROW[name])


class _Together(NamedTuple):
    """Visits of several batches, each of shape ``(n,)``."""

    rows: IndexArray
    losses: FloatArray
    probs: FloatArray
    passes: IndexArray
    margins: FloatArray
    others: npt.NDArray[np.integer[Any]]

    @staticmethod
    def of(visits: list[Visits]) -> _Together:
        lengths = [len(one.rows) for one in visits]

        def column(parts: list[npt.NDArray[Any] | None], missing: float, kind: type[np.generic]) -> npt.NDArray[Any]:
            if all(part is None for part in parts):
                return np.full(sum(lengths), missing, kind)
            pairs = zip(parts, lengths, strict=True)
            return np.concatenate([np.full(num, missing, kind) if part is None else part for part, num in pairs])

        return _Together(
            np.concatenate([one.rows for one in visits]),
            np.concatenate([one.losses for one in visits]),
            column([one.probs for one in visits], 1, np.float32),
            np.repeat([one.pass_index for one in visits], lengths),
            column([one.margins for one in visits], math.nan, np.float32),
            column([one.others for one in visits], -1, np.int64),
        )


def _of_this_layout(columns: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The columns of a checkpoint, also of one without margins, whose visits stay without."""
    if "margin" in columns:
        return columns
    seen = columns["seen"].view(np.uint16).astype(np.int64)
    unseen = (columns["kept"].view(np.uint16) - seen).clip(_UNSEEN.min, _UNSEEN.max)
    excess = columns["weight"] / np.maximum(seen, 1) - (seen > 0)
    halves = {"loss_spread": np.sqrt(columns["loss_variance"]), "excess": excess, "margin": np.where(seen, np.nan, 0)}
    kept = {name: column for name, column in columns.items() if name in COLUMNS}
    rounded = {name: _half(column, seen) for name, column in halves.items()}
    return kept | rounded | {"unseen": unseen.astype(np.int8)}


def _half(values: _Floats, seen: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float16]:
    """Values as half precision holds them, rounded up or down by turns.

    Of many visits each moves a mean by less than half precision can tell; rounded to the nearest, it would stand still.
    What is added to the bits that are cut off begins at a half, and runs evenly through all of their values: in steps
    of the golden ratio.
    """
    bits = values.astype(np.float32, copy=False).clip(-_HALF_MAX, _HALF_MAX).view(np.uint32)
    turns = (seen * 5063 + 4096).astype(np.uint32) & _CUT_OFF
    return ((bits + turns) & ~_CUT_OFF).view(np.float32).astype(np.float16)


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


def _add_visits(table: npt.NDArray[Any], visits: _Together) -> None:
    """Add a visit to each of some rows, shape ``(n,)``."""
    seen, excess = table["seen"].astype(np.int32), table["excess"].astype(np.float32)
    weights, num = 1 / visits.probs, seen.astype(np.float32)
    share = weights / (num * (1 + excess) + weights)
    table["excess"] = _half(excess + (weights - 1 - excess) / (num + 1), seen)
    spread = table["loss_spread"].astype(np.float32)
    mean, variance = _moved(table["loss"], spread * spread, visits.losses, share)
    table["loss"], table["loss_spread"] = mean, _half(np.sqrt(variance), seen)
    confidence = np.exp(-np.maximum(visits.losses, 0))
    spread = table["variability"] * _SPREAD_STEP
    mean, variance = _moved(table["confidence"] * _STEP, spread * spread, confidence, share)
    table["confidence"] = mean * _SHORT_MAX + np.float32(0.5)
    table["variability"] = np.sqrt(variance) * (2 * _SHORT_MAX) + np.float32(0.5)
    margin = table["margin"].astype(np.float32)
    margins = np.where(np.isfinite(visits.margins), visits.margins, np.float32(np.nan))
    table["margin"] = _half(margin + share * (margins - margin), seen)
    table["seen"] += table["seen"] < _SHORT_MAX
    _add_votes(table, visits.others)
    _add_turns(table, visits.losses < LEARNT_BELOW, visits.passes)


def _add_votes(table: npt.NDArray[Any], others: npt.NDArray[np.integer[Any]]) -> None:
    """Add a vote for a class to each of some rows, shape ``(n,)``: a candidate stays while it has a lead."""
    is_vote = (others >= 0) & (others < _SHORT_MAX)
    votes = np.where(is_vote, others + 1, 0).astype(np.uint16)
    lead = table["lead"]
    is_new = is_vote & (lead == 0)
    is_same = is_vote & (votes == table["candidate"])
    gains = (is_new | is_same) & (lead < _BYTE_MAX)
    loses = is_vote & ~is_new & ~is_same
    table["candidate"] = np.where(is_new, votes, table["candidate"])
    table["lead"] = lead + gains - loses


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
