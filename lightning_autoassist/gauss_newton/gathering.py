"""The rows of all processes: each solves the whole system, so that all make the same step."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from lightning_autoassist.gauss_newton.instance_rows import InstanceRows
from lightning_autoassist.gauss_newton.jacobian import LayerRows
from lightning_autoassist.trainer_support.process_group import Ranks


def joined(parts: list[InstanceRows]) -> InstanceRows:
    """The rows of several micro-batches of the mean of whose losses a step is made.

    Args:
        parts: One an accumulated batch.
    """
    scale = len(parts) ** -0.5
    layers = []
    for rows in zip(*(part.layers for part in parts), strict=True):
        inputs = torch.cat([each.inputs for each in rows])
        layers.append(LayerRows(inputs, torch.cat([each.outputs for each in rows]) * scale))
    residual = torch.cat([part.residual for part in parts]) * scale
    has_curvature = torch.stack([part.has_curvature for part in parts]).any()
    return InstanceRows(layers, residual, torch.cat([part.shares for part in parts]), has_curvature)


def gathered(rows: InstanceRows, ranks: Ranks) -> InstanceRows:
    """The rows of all processes, the mean of whose losses a step is made of; those of a process alone are its own.

    Rows of zeros fill up what processes with fewer rows lack: they change nothing in the solution.

    Args:
        rows: Of this process.
        ranks: The processes.
    """
    if ranks.world_size == 1:
        return rows
    most = max(ranks.gather(len(rows.residual)))
    scale = ranks.world_size**-0.5
    layers = [
        LayerRows(_all(layer.inputs, most, ranks), _all(layer.outputs * scale, most, ranks)) for layer in rows.layers
    ]
    residual, shares = _all(rows.residual * scale, most, ranks), _all(rows.shares, most, ranks)
    return InstanceRows(layers, residual, shares, rows.has_curvature)


def mean_over(value: Tensor, ranks: Ranks) -> Tensor:
    """The processes' mean of a number."""
    if ranks.world_size == 1:
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / ranks.world_size


def _all(values: Tensor, most: int, ranks: Ranks) -> Tensor:
    padded = values.new_zeros(most, *values.shape[1:])
    padded[: len(values)] = values
    everyones = [torch.empty_like(padded) for _ in range(ranks.world_size)]
    distributed.all_gather(everyones, padded)
    return torch.cat(everyones)
