"""Which process inverts which factor, and which preconditions which layer: KAISA's grid.

W processes stand in a grid of W / g columns and g rows, where g = W · ``grad_worker_fraction``. A layer belongs to one
column, whose g processes hold its inverses and precondition its gradient. Each other process gets the preconditioned
gradient from the one of them in its own row. With g = W ("comm_opt") everybody holds everything and no gradient is
sent; with g = 1 ("mem_opt") one process holds a layer's inverses and sends its gradient to all others at every step.

Source: Pauloski et al., KAISA, SC 2021, arXiv:2107.01739, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lightning_autoassist.kfac.options import ModeName, StrategyName


class FactorSizes(NamedTuple):
    """How large a layer's factors are.

    Attributes:
        num_blocks: K.
        num_inputs: n.
        num_outputs: m.
        is_diagonal: Whether the inputs' and the outputs' factor is a diagonal.
    """

    num_blocks: int
    num_inputs: int
    num_outputs: int
    is_diagonal: tuple[bool, bool] = (False, False)

    def cost(self, side: int, strategy: StrategyName) -> float:
        """Of inverting a side: its operations, or the numbers that are kept of it."""
        size = (self.num_inputs, self.num_outputs)[side]
        power = 1 if self.is_diagonal[side] else 3 if strategy == "compute" else 2
        return float(self.num_blocks * size**power)

    def num_factor_numbers(self, *, is_packed: bool) -> int:
        """Numbers of both factors, of symmetric ones the upper triangles alone where they are packed."""
        return sum(self.num_blocks * self._side(side, is_packed=is_packed) for side in (0, 1))

    def num_inverse_numbers(self, side: int, *, is_eigen: bool) -> int:
        """Numbers that are kept of an inverted side: eigenvectors and eigenvalues, or the inverse."""
        size = (self.num_inputs, self.num_outputs)[side]
        values = size if is_eigen and not self.is_diagonal[side] else 0
        return self.num_blocks * (self._side(side, is_packed=False) + values)

    @property
    def num_gradient_numbers(self) -> int:
        """Numbers of the layer's gradient."""
        return self.num_blocks * self.num_inputs * self.num_outputs

    def _side(self, side: int, *, is_packed: bool) -> int:
        size = (self.num_inputs, self.num_outputs)[side]
        if self.is_diagonal[side]:
            return size
        return size * (size + 1) // 2 if is_packed else size * size


class Assignment:
    """Who does what, the same in every process.

    Layers go to columns, and sides of layers to processes in them, from the costliest on, each to where least is to be
    done (longest processing time first).

    Args:
        sizes: Of each layer's factors, by its name.
        world_size: W.
        num_grad_workers: g, a divisor of W.
        strategy: Which cost is balanced.
        colocate_factors: Whether one process inverts both sides of a layer.

    Attributes:
        column_of: Of each layer, its column.
        inverter_of: Of each layer, the processes that invert its inputs' and its outputs' factor.

    Example:
        >>> sizes = {name: FactorSizes(1, n, n) for name, n in (("a", 8), ("b", 4), ("c", 4))}
        >>> Assignment(sizes, 2, 1).inverter_of
        {'a': (0, 0), 'b': (1, 1), 'c': (1, 1)}
    """

    def __init__(
        self,
        sizes: Mapping[str, FactorSizes],
        world_size: int,
        num_grad_workers: int,
        strategy: StrategyName = "compute",
        *,
        colocate_factors: bool = True,
    ) -> None:
        self.world_size = world_size
        self.num_columns = world_size // num_grad_workers
        self.column_of: dict[str, int] = {}
        self.inverter_of: dict[str, tuple[int, int]] = {}
        column_loads = [0.0] * self.num_columns
        loads = [0.0] * world_size
        costs = {name: (size.cost(0, strategy), size.cost(1, strategy)) for name, size in sizes.items()}
        for name in sorted(costs, key=lambda name: (-sum(costs[name]), name)):
            column = column_loads.index(min(column_loads))
            column_loads[column] += sum(costs[name])
            self.column_of[name] = column
            parts = [sum(costs[name])] if colocate_factors else list(costs[name])
            ranks = [_give(part, self.ranks_of_column(column), loads) for part in parts]
            self.inverter_of[name] = (ranks[0], ranks[-1])
        # In the order of the layers, whatever they cost.
        self.column_of = {name: self.column_of[name] for name in sizes}
        self.inverter_of = {name: self.inverter_of[name] for name in sizes}

    def ranks_of_column(self, column: int) -> list[int]:
        """The gradient workers of a column's layers."""
        return list(range(column, self.world_size, self.num_columns))

    def ranks_of_row(self, rank: int) -> list[int]:
        """A process and those that it sends gradients to, or gets them from."""
        first = rank - rank % self.num_columns
        return list(range(first, first + self.num_columns))

    def is_grad_worker(self, rank: int, name: str) -> bool:
        """Whether a process preconditions a layer."""
        return rank % self.num_columns == self.column_of[name]

    def sender_to(self, rank: int, name: str) -> int:
        """The process from which another one gets a layer's preconditioned gradient."""
        return rank - rank % self.num_columns + self.column_of[name]


class Traffic(NamedTuple):
    """Bytes of a process.

    Attributes:
        held: Of the inverses that it holds.
        factors: Of an update of the factors: reduced over all processes.
        inverses: Of an update of the inverses: of broadcasts that it sends or gets.
        gradients: Of each step: of broadcasts that it sends or gets.
    """

    held: int
    factors: int
    inverses: int
    gradients: int


def predicted_traffic(
    sizes: Mapping[str, FactorSizes],
    assignment: Assignment,
    rank: int,
    *,
    is_eigen: bool,
    is_packed: bool,
    bytes_per_number: int = 4,
) -> Traffic:
    """What a process holds and sends.

    Args:
        sizes: Of each layer's factors.
        assignment: Who does what.
        rank: Of the process.
        is_eigen: Whether eigenvectors are kept, or inverses.
        is_packed: Whether triangles alone are reduced.
        bytes_per_number: 4 in float32.
    """
    held = factors = gradients = 0
    for name, size in sizes.items():
        factors += size.num_factor_numbers(is_packed=is_packed) + 2  # and two masses
        if assignment.is_grad_worker(rank, name):
            held += sum(size.num_inverse_numbers(side, is_eigen=is_eigen) for side in (0, 1))
        if assignment.num_columns > 1:
            gradients += size.num_gradient_numbers
    is_alone = len(assignment.ranks_of_column(0)) == 1
    factors = factors if assignment.world_size > 1 else 0
    numbers = (held, factors, 0 if is_alone else held, gradients)
    return Traffic(*(number * bytes_per_number for number in numbers))


def num_grad_workers(fraction: float | ModeName, world_size: int) -> int:
    """How many processes precondition a layer: g = W · ``grad_worker_fraction``.

    Raises:
        ValueError: If that is no whole number, or does not divide W.

    Example:
        >>> [num_grad_workers(mode, 4) for mode in ("comm_opt", "hybrid_opt", "mem_opt", 0.5)]
        [4, 2, 1, 2]
    """
    divisors = [number for number in range(1, world_size + 1) if world_size % number == 0]
    if fraction == "comm_opt" or world_size == 1:
        return world_size
    if fraction == "mem_opt":
        return 1
    if fraction == "hybrid_opt":
        return max(number for number in divisors if 2 * number <= world_size)
    workers = float(fraction) * world_size
    nearest = round(workers)
    if abs(workers - nearest) < 1e-6 and nearest in divisors:
        return nearest
    allowed = ", ".join(f"{number / world_size:.6g}" for number in divisors)
    raise ValueError(
        f"grad_worker_fraction={fraction} gives {workers:g} gradient workers for a layer in {world_size} processes. "
        f"Their number must be whole and divide the number of processes: write one of {allowed}, or "
        '"comm_opt", "hybrid_opt" or "mem_opt".'
    )


def _give(cost: float, ranks: Sequence[int], loads: list[float]) -> int:
    """Give work to the least loaded of some processes."""
    rank = min(ranks, key=lambda rank: (loads[rank], rank))
    loads[rank] += cost
    return rank
