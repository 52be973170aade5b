r"""Margins of classification losses: the label's logit less the largest other one, and whose that is.

Log-probabilities have the margins of their logits.

Source: Pleiss et al., Identifying Mislabeled Data using the Area Under the Margin Ranking, NeurIPS 2020,
arXiv:2001.10528.

Shapes: R rows, C classes, d further dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.losses.functional import Arguments, answers_at_once, class_axis
from lightning_autoassist.losses.pieces import PIECE_NUMBERS

# A copy of some rows' logits is made, with nothing at the labels: as many as a processor's cache holds.
_CACHED_NUMBERS = 2**17


class RowMargins(NamedTuple):
    """Margins of a loss's rows, detached.

    Attributes:
        values: Shape ``(R, *d)``, float32; NaN where a target does not count (``ignore_index``).
        others: The class with the largest other logit, same shape, int64, -1 where a target does not count; None where
            nobody asks.
    """

    values: Tensor
    others: Tensor | None


def row_margins(
    function: Callable[..., Any], arguments: Arguments, mask: Tensor | None, *, with_others: bool
) -> RowMargins | None:
    """The margins of a call's rows; nothing waits for the device.

    Args:
        function: Of ``torch.nn.functional``.
        arguments: All of them, by name.
        mask: Which targets count, shape ``(R, *d)``, bool; None for all of them.
        with_others: Whether it is asked which class is the strongest other one.

    Returns:
        None where the loss has no margins: it is no classification, its targets are probabilities, or there is one
        class alone.

    Example:
        >>> arguments = {"input": torch.tensor([[2.0, 0.5, -1.0], [0.0, 3.0, 1.0]]), "target": torch.tensor([0, 2])}
        >>> row_margins(F.cross_entropy, arguments, None, with_others=True)
        RowMargins(values=tensor([ 1.5000, -2.0000]), others=tensor([1, 1]))
    """
    if function not in (F.cross_entropy, F.nll_loss) or arguments["target"].is_floating_point():
        return None
    logits, target = arguments["input"].detach(), arguments["target"].detach().long()
    axis = class_axis(logits)
    if logits.shape[axis] < 2 or not target.numel():
        return None
    with torch.no_grad():
        labels = (target if mask is None else target * mask).unsqueeze(axis)
        pieces = [_margins(*piece, axis, with_others) for piece in _pieces(logits, labels, axis)]
        values, others = (torch.cat(column) if len(column) > 1 else column[0] for column in zip(*pieces, strict=True))
        if mask is not None:
            values = values.masked_fill(~mask, math.nan)
            others = others.masked_fill(~mask, -1)
    return RowMargins(values, others if with_others else None)


def _pieces(logits: Tensor, labels: Tensor, axis: int) -> list[tuple[Tensor, Tensor]]:
    """Some rows at a time, where there are many logits."""
    most = _CACHED_NUMBERS if answers_at_once(logits) else PIECE_NUMBERS
    if axis == 0 or logits.numel() <= most:
        return [(logits, labels)]
    num_rows = max(1, most // logits[:1].numel())
    return list(zip(logits.split(num_rows), labels.split(num_rows), strict=True))


def _margins(logits: Tensor, labels: Tensor, axis: int, with_others: bool) -> tuple[Tensor, Tensor]:
    """Margins and strongest other classes; the labels, where nobody asks for these, which take three times as long."""
    of_label = logits.gather(axis, labels).squeeze(axis)
    if logits.shape[axis] == 2:  # there is one other class
        others = 1 - labels
        return of_label.float() - logits.gather(axis, others).squeeze(axis).float(), others.squeeze(axis)
    rest = logits.scatter(axis, labels, -math.inf)
    if with_others:
        strongest, others = rest.max(axis)
    else:
        strongest, others = rest.amax(axis), labels.squeeze(axis)
    return of_label.float() - strongest.float(), others
