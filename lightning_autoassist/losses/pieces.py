"""Losses over many classes, looked at some rows at a time.

Shapes: R rows, C classes, d further dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, cat
from torch.nn import functional as F

# Of the scores of classes, as many as are looked at at once: a few copies of them, beside all that the backward pass
# needs, must not be what a device has no room for.
PIECE_NUMBERS = 2**24


def pieces_of(
    function: Callable[..., Tensor], arguments: dict[str, Any], unreduced: Tensor | None, mask: Tensor | None
) -> Iterator[tuple[dict[str, Any], Tensor | None, Tensor | None]]:
    """The rows of a call over many classes, some at a time: their arguments, unreduced losses and mask."""
    values = arguments["input"] if function in (F.cross_entropy, F.nll_loss) else None
    if values is None or values.ndim < 2 or values.numel() <= PIECE_NUMBERS:
        yield arguments, unreduced, mask
        return
    num_rows = max(1, PIECE_NUMBERS // values[:1].numel())
    for start in range(0, len(values), num_rows):
        rows = slice(start, start + num_rows)
        piece = {**arguments, "input": values[rows], "target": arguments["target"][rows]}
        yield piece, None if unreduced is None else unreduced[rows], None if mask is None else mask[rows]


def whole(pieces: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Losses and norms of all rows, from those of the pieces."""
    if len(pieces) == 1:
        return pieces[0]
    norms = [norms for _, norms in pieces if norms is not None]
    return cat([losses for losses, _ in pieces]), cat(norms) if norms else None
