"""What the processes of a run send each other: factors to be averaged, inverses, preconditioned gradients.

Everything goes in flat, contiguous buffers, in one order in every process. Groups are made once, by all processes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from lightning_autoassist.kfac.assignment import Assignment
from lightning_autoassist.kfac.factors import Factor


class Reduction:
    """Sums of this step's factors over all processes, under way.

    Args:
        parts: What is summed, and where each sum goes.
        handles: To be waited for.
        buffers: As they were sent.
        buckets: Which parts are in which buffer.
    """

    def __init__(self, buckets: list[list[_Part]], buffers: list[Tensor], handles: list[Any]) -> None:
        self._buckets = buckets
        self._buffers = buffers
        self._handles = handles

    def finish(self) -> None:
        """Wait, and put the sums in their places."""
        for bucket, buffer, handle in zip(self._buckets, self._buffers, self._handles, strict=True):
            handle.wait()
            for part, piece in zip(bucket, buffer.split([part.numel for part in bucket]), strict=True):
                part.put(piece)


class Communicator:
    """This process's place among the others, and its groups.

    Args:
        rank: Of this process.
        assignment: Who does what.
        is_packed: Whether of symmetric factors the upper triangles alone are sent.
        bucket_bytes: Most bytes of a buffer of factors.

    Attributes:
        sent: Bytes of all collectives that this process took part in, by ``"factors"``, ``"inverses"`` and
            ``"gradients"``.
        seconds: That it has waited for them.
    """

    def __init__(self, rank: int, assignment: Assignment, *, is_packed: bool, bucket_bytes: float) -> None:
        self.rank = rank
        self.assignment = assignment
        self.sent = {"factors": 0, "inverses": 0, "gradients": 0}
        self.seconds = 0.0
        self._is_packed = is_packed
        self._bucket_bytes = bucket_bytes
        self._world: Any = None
        self._column: Any = None
        self._row: Any = None
        if assignment.world_size > 1:
            self._make_groups()

    def _make_groups(self) -> None:
        # A group of its own for the factors: their sums run beside the collectives of the gradients.
        self._world = distributed.new_group()
        for column in range(self.assignment.num_columns):
            ranks = self.assignment.ranks_of_column(column)
            group = distributed.new_group(ranks)
            self._column = group if self.rank in ranks else self._column
        for first in range(0, self.assignment.world_size, self.assignment.num_columns):
            ranks = self.assignment.ranks_of_row(first)
            group = distributed.new_group(ranks)
            self._row = group if self.rank in ranks else self._row

    def reduce(self, factors: Sequence[Factor]) -> Reduction | None:
        """Begin to sum this step's rows of all processes; None where there is one process."""
        if self._world is None:
            return None
        parts = [_Part(factor, is_packed=self._is_packed) for factor in factors]
        parts += [_Part(factor, is_mass=True) for factor in factors]
        buckets, buffers, handles = _buckets(parts, self._bucket_bytes), [], []
        for bucket in buckets:
            buffer = torch.cat([part.take() for part in bucket])
            self.sent["factors"] += _bytes(buffer)
            buffers.append(buffer)
            handles.append(distributed.all_reduce(buffer, group=self._world, async_op=True))
        return Reduction(buckets, buffers, handles)

    def finish(self, reduction: Reduction) -> None:
        """Wait for sums that are under way."""
        begun = time.perf_counter()
        reduction.finish()
        self.seconds += time.perf_counter() - begun

    def share_inverses(self, tensors: Sequence[tuple[int, Tensor]]) -> None:
        """Give tensors of the process of that rank to all of its column; all of a column give the same shapes."""
        if self._column is not None and len(self.assignment.ranks_of_column(0)) > 1:
            self._broadcast(tensors, self._column, "inverses")

    def share_gradients(self, tensors: Sequence[tuple[int, Tensor]]) -> None:
        """Give tensors of the process of that rank to all of its row."""
        if self._row is not None and self.assignment.num_columns > 1:
            self._broadcast(tensors, self._row, "gradients")

    def share_with_all(self, tensors: Sequence[tuple[int, Tensor]]) -> None:
        """Give tensors of the process of that rank to all; used for checkpoints."""
        if self._world is not None:
            self._broadcast(tensors, self._world, None)

    def _broadcast(self, tensors: Sequence[tuple[int, Tensor]], group: Any, kind: str | None) -> None:
        begun = time.perf_counter()
        by_sender: dict[tuple[int, torch.dtype], list[Tensor]] = {}
        for sender, tensor in tensors:
            by_sender.setdefault((sender, tensor.dtype), []).append(tensor)
        waiting: list[tuple[int, list[Tensor], Tensor, Any]] = []
        for (sender, _), owned in by_sender.items():
            buffer = torch.cat([tensor.reshape(-1) for tensor in owned])
            handle = distributed.broadcast(buffer, sender, group=group, async_op=True)
            waiting.append((sender, owned, buffer, handle))
            if kind is not None:
                self.sent[kind] += _bytes(buffer)
        for sender, owned, buffer, handle in waiting:
            handle.wait()
            if sender != self.rank:
                pieces = buffer.split([tensor.numel() for tensor in owned])
                for tensor, piece in zip(owned, pieces, strict=True):
                    tensor.copy_(piece.reshape(tensor.shape))
        self.seconds += time.perf_counter() - begun


class _Part:
    """A factor's sum of this step, or its mass, as a flat piece of a buffer."""

    def __init__(self, factor: Factor, *, is_packed: bool = False, is_mass: bool = False) -> None:
        self._target = factor.new_mass if is_mass else factor.new_total
        self._triangle: Tensor | None = None
        if is_packed and not is_mass and not factor.is_diagonal:
            self._triangle = torch.triu_indices(factor.size, factor.size, device=self._target.device)
        self.dtype = self._target.dtype
        pieces = self._target.shape[0] if self._triangle is not None else 1
        self.numel = self._target.numel() if self._triangle is None else pieces * self._triangle.shape[1]

    def take(self) -> Tensor:
        if self._triangle is None:
            return self._target.reshape(-1)
        return self._target[:, self._triangle[0], self._triangle[1]].reshape(-1)

    def put(self, piece: Tensor) -> None:
        if self._triangle is None:
            self._target.copy_(piece.reshape(self._target.shape))
            return
        rows, columns = self._triangle
        values = piece.reshape(len(self._target), -1)
        self._target[:, rows, columns] = values
        self._target[:, columns, rows] = values


def _buckets(parts: Sequence[_Part], most_bytes: float) -> list[list[_Part]]:
    """Parts of one type, in their order, in buckets of at most so many bytes, or of one part."""
    buckets: list[list[_Part]] = []
    room = 0.0
    for part in sorted(parts, key=lambda part: str(part.dtype)):
        size = part.numel * part.dtype.itemsize
        if not buckets or size > room or buckets[-1][0].dtype != part.dtype:
            buckets.append([])
            room = most_bytes
        buckets[-1].append(part)
        room -= size
    return buckets


def _bytes(buffer: Tensor) -> int:
    return buffer.numel() * buffer.element_size()
