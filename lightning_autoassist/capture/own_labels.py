"""Which labels are the instances' own: those that the batch brought, not those that a step made.

CLIP's targets are positions in the batch, a rotation is drawn in the step, a pseudo-label is the model's own: none of
them says anything of the instance when it comes up again.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# In so many steps with different values a loss's target must have been a column of the batch.
_STEPS, _MOST_STEPS = 3, 16
_MOST_COLUMNS = 64
# From so many rows on, a target of 0, 1, 2, ... is no chance: it is the position in the batch.
_POSITIONS = 4

Place = tuple[int, int]


class OwnLabels:
    """Finds the column of the batch that the classes in a loss's target are, and gives the labels in it.

    In the first steps the target is compared with the batch's columns, by value. From then on the labels are taken
    from the column that it was each time, whatever the step makes of it.

    Attributes:
        is_refused: Whether some target was no column of the batch: then there are no labels, nor were any.
    """

    def __init__(self) -> None:
        self.is_refused = False
        self._place: Place | None = None
        self._candidates: list[Place] | None = None
        self._num_told = self._num_steps = 0

    def of(self, targets: Sequence[Tensor], leaves: Sequence[Tensor], batch_size: int) -> Tensor | None:
        """A step's labels, shape ``(B,)``, int64; None where it has none. Waits for the device in the first steps.

        Args:
            targets: Classes in the targets of the step's losses, each of shape ``(B,)``, int64.
            leaves: The batch's tensors.
            batch_size: B.
        """
        if self.is_refused or not targets:
            return None
        if self._place is None:
            try:
                return self._compared(targets, leaves, batch_size)
            except Exception:  # the instances' losses are known all the same
                return None
        leaf, column = self._place
        return _column(leaves[leaf], column, batch_size) if leaf < len(leaves) else None

    def state_dict(self) -> dict[str, Any]:
        """What was found so far, as builtins."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        vars(self).update(state)

    def _compared(self, targets: Sequence[Tensor], leaves: Sequence[Tensor], batch_size: int) -> Tensor | None:
        targets = [target for target in targets if not _is_position(target)]
        if not targets:  # positions in every step, as in contrastive losses: asked again, they would be waited for
            self._num_steps += 1
            self.is_refused = self._num_steps >= _MOST_STEPS
        if not targets or not leaves:  # of a batch that cannot be looked into, a target may well be its own
            return targets[0] if targets else None
        self._num_steps += 1
        found = [_places(target, leaves, batch_size) for target in targets]
        if self._candidates is not None:
            found = [[place for place in places if place in self._candidates] for places in found]
        matching = ((places, target) for places, target in zip(found, targets, strict=True) if places)
        places, target = next(matching, ([], None))
        self._candidates = places
        self._num_told += target is not None and bool((target != target[0]).any())
        # Labels that never differ, as where one class is rare, tell little; but they are what the batch brought.
        if self._num_told >= _STEPS or self._num_steps >= _MOST_STEPS:
            self._place = places[0] if places else None
        self.is_refused = not places
        return None if self.is_refused else target


def _is_position(target: Tensor) -> bool:
    return len(target) >= _POSITIONS and torch.equal(target, torch.arange(len(target), device=target.device))


def _places(target: Tensor, leaves: Sequence[Tensor], batch_size: int) -> list[Place]:
    """Where the batch holds exactly these values: its tensors' columns."""
    places = []
    for place, leaf in enumerate(leaves):
        columns = _columns(leaf, batch_size)
        if columns is not None:
            equal = (columns == target[:, None]).all(0).tolist()
            places += [(place, column) for column, is_equal in enumerate(equal) if is_equal]
    return sorted(places, key=lambda place: leaves[place[0]].is_floating_point())  # a feature may be 0 throughout


def _column(leaf: Tensor, column: int, batch_size: int) -> Tensor | None:
    """Whole numbers of one column, shape ``(B,)``, int64; None where there is no such column."""
    if leaf.ndim == 1 and not column and _has_rows(leaf, batch_size):
        return leaf.detach().long()  # as nearly always, and with half of the operations
    columns = _columns(leaf, batch_size)
    return None if columns is None or column >= columns.shape[1] else columns[:, column].long()


def _has_rows(leaf: Tensor, batch_size: int) -> bool:
    return leaf.layout is torch.strided and not leaf.is_complex() and leaf.shape[:1] == (batch_size,)


def _columns(leaf: Tensor, batch_size: int) -> Tensor | None:
    """Shape ``(B, k)``; None where the tensor has no numbers of instances, or too many."""
    if not _has_rows(leaf, batch_size):
        return None
    columns = leaf.detach().reshape(batch_size, -1)
    return columns if 1 <= columns.shape[1] <= _MOST_COLUMNS else None
