"""What a policy or an Assistant remembers of each instance by itself, in columns of its own.

Shapes: N data set, n instances, K numbers an instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_autoassist.filtering.memory.index_rows import padded

# Name of a column: the value, or the K values, that an instance has at first and when it was forgotten.
ColumnStarts = Mapping[str, "float | tuple[float, ...]"]


class OwnColumns:
    """Columns of one owner, float32, on the CPU.

    Args:
        num_rows: N.
        starts: Names, and what an instance has at first.
    """

    def __init__(self, num_rows: int, starts: ColumnStarts) -> None:
        self.starts = {name: torch.tensor(value, dtype=torch.float32) for name, value in starts.items()}
        self.columns = {name: start.repeat(num_rows, *[1] * start.ndim) for name, start in self.starts.items()}

    def grow(self, num_rows: int) -> None:
        """Have so many rows."""
        for name, start in self.starts.items():
            num_before = len(self.columns[name])
            self.columns[name] = padded(self.columns[name], num_rows)
            self.columns[name][num_before:] = start

    def forget(self, rows: Tensor | None = None) -> None:
        """Set rows, or all of them, to what they were at first."""
        for name, start in self.starts.items():
            self.columns[name][slice(None) if rows is None else rows] = start

    def state_dict(self) -> dict[str, Any]:
        """The columns, as tensors."""
        return dict(self.columns)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore those columns of :meth:`state_dict` that there are, and whose shapes fit."""
        for name, column in self.columns.items():
            if name in state and state[name].shape[1:] == column.shape[1:]:
                self.columns[name] = state[name].clone()


class InstanceMemory:
    """Some instances' rows of the own columns: ``memory[name]`` reads them, ``memory[name] = values`` writes them.

    Args:
        owned: The columns.
        rows: Shape ``(n,)``, int64.

    Example:
        >>> owned = OwnColumns(4, {"visits": 0.0, "losses": (1.0, 2.0)})
        >>> memory = InstanceMemory(owned, torch.tensor([1, 3]))
        >>> memory["visits"] = memory["visits"] + 1
        >>> owned.columns["visits"], memory["losses"].shape
        (tensor([0., 1., 0., 1.]), torch.Size([2, 2]))
    """

    def __init__(self, owned: OwnColumns, rows: Tensor) -> None:
        self._owned = owned
        self._rows = rows

    def __getitem__(self, name: str) -> Tensor:
        """Values of a column, shape ``(n,)`` or ``(n, K)``, float32."""
        return self._owned.columns[name].index_select(0, self._rows)

    def __setitem__(self, name: str, values: Tensor) -> None:
        """Set values of a column; of an instance that is there twice, the last."""
        self._owned.columns[name].numpy()[self._rows.numpy()] = values.numpy()
