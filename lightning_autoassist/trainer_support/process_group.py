"""The processes of a run, and what they tell each other."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


class Ranks:
    """The processes of a run, and this one's place among them.

    What they exchange goes over the CPU, in a group of its own: no device waits for it, and it cannot get between the
    collectives of the model's gradients.

    Args:
        rank: Of this process.
        world_size: W; a process alone exchanges with nobody.

    Example:
        >>> Ranks().gather("alone")
        ['alone']
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size
        self._group: Any = distributed.new_group(backend="gloo") if world_size > 1 else None

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank. All processes must call this at the same step.

        Args:
            value: Tensors on the CPU and builtins, of any sizes; they arrive as they are, bit for bit.
        """
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def broadcast_object(self, value: T) -> T:
        """The first process's value. All processes must call this at the same step."""
        return self.gather(value)[0]
