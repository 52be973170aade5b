"""What K-FAC would do to a module, before anything is trained: layers, sizes, bytes, and what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from torch import nn

from lightning_autoassist.kfac.assignment import Assignment, FactorSizes, num_grad_workers, predicted_traffic
from lightning_autoassist.kfac.layer_choice import choose_layers
from lightning_autoassist.kfac.options import KFACOptions, ModeName
from lightning_autoassist.kfac.preconditioner import factor_sizes

MEGABYTE = 10**6


def kfac_summary(module: nn.Module, num_processes: int = 4, options: KFACOptions | None = None) -> str:
    """Tables for the terminal: the layers and their factors, bytes in each mode, and what is skipped and why.

    Args:
        module: Whose layers.
        num_processes: W, for the modes.
        options: Of the callback; None: its defaults.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        >>> print(kfac_summary(net, 2))  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        layer   class    blocks   inputs   outputs   factors
        0       Linear   1        5        3         0.00 MB
        ...
        Skipped: their gradients stay as they are.
          1: a BatchNorm1d is none of Linear, Conv1d, Conv2d, Conv3d, Embedding
    """
    options = options or KFACOptions()
    choice = choose_layers(module, options)
    sizes = {name: factor_sizes(kind, options.max_factor_size) for name, kind in choice.chosen.items()}
    if not sizes:
        return "\n".join(["K-FAC has no layer to precondition.", *_skipped(choice.skipped)])
    classes = {name: type(kind.layer).__name__ for name, kind in choice.chosen.items()}
    rows: list[tuple[str, ...]] = [("layer", "class", "blocks", "inputs", "outputs", "factors")]
    rows += [_layer_row(name, classes[name], size) for name, size in sizes.items()]
    return "\n".join([*_aligned(rows), "", *_modes(sizes, num_processes, options), *_skipped(choice.skipped)])


def _layer_row(name: str, kind: str, size: FactorSizes) -> tuple[str, ...]:
    widths = (size.num_inputs, size.num_outputs)
    sides = [
        f"{width}{' (diagonal)' if is_diagonal else ''}"
        for width, is_diagonal in zip(widths, size.is_diagonal, strict=True)
    ]
    return (
        name or "(module)",
        kind,
        str(size.num_blocks),
        *sides,
        _megabytes(4 * size.num_factor_numbers(is_packed=False)),
    )


def _modes(sizes: Mapping[str, FactorSizes], num_processes: int, options: KFACOptions) -> list[str]:
    factors = 4 * sum(size.num_factor_numbers(is_packed=False) for size in sizes.values())
    rows: list[tuple[str, ...]] = [
        ("mode", "processes", "inverses held (largest)", "sent: factors", "inverses", "gradients, each step")
    ]
    settings: list[tuple[ModeName, int]] = [("comm_opt", 1)]
    if num_processes > 1:
        settings += [(mode, num_processes) for mode in get_args(ModeName)]
    for mode, world in settings:
        assignment = Assignment(
            sizes,
            world,
            num_grad_workers(mode, world),
            options.assignment_strategy,
            colocate_factors=options.colocate_factors,
        )
        is_eigen, is_packed = options.compute_method == "eigen", options.symmetry_aware
        traffic = [
            predicted_traffic(sizes, assignment, rank, is_eigen=is_eigen, is_packed=is_packed) for rank in range(world)
        ]
        largest = [max(column) for column in zip(*traffic, strict=True)]
        rows.append((mode if world > 1 else "-", str(world), *(_megabytes(each) for each in largest)))
    return [f"Factors take {_megabytes(factors)} in float32 in every process.", *_aligned(rows)]


def _skipped(skipped: Mapping[str, str]) -> list[str]:
    if not skipped:
        return []
    return [
        "",
        "Skipped: their gradients stay as they are.",
        *(f"  {name or '(module)'}: {why}" for name, why in skipped.items()),
    ]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width + 1) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _megabytes(number: int) -> str:
    return f"{number / MEGABYTE:.2f} MB"
