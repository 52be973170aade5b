"""Gradients that are known before backward, given to it: so that whatever Lightning does to gradients meets them, too.

Lightning deletes gradients after the training step and before backward, scales the loss, divides it for accumulation,
and lets DDP reduce what backward brings. Gradients that come out of backward itself need no care for any of this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override


class PendingGradients:
    """Gradients of losses that have had their backward, by parameter, until the step's own backward."""

    def __init__(self) -> None:
        self._gradients: dict[Tensor, Tensor] = {}

    def add(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Add gradients to those there are; None: no gradient."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                known = self._gradients.get(parameter)
                self._gradients[parameter] = gradient if known is None else known + gradient

    def clear(self) -> None:
        """Forget them, as those of a step that Lightning skips."""
        self._gradients.clear()

    def attach(self, output: Any, scale: Tensor | None) -> Any:
        """What a training step returned, with a loss whose backward gives these gradients beside its own.

        Args:
            output: A loss, or a mapping with it under "loss".
            scale: Which factor the gradients have and the loss has not, shape ``()``.
        """
        root = root_of(output)
        if not self._gradients or root is None:
            return output
        parameters, gradients = list(self._gradients), list(self._gradients.values())
        self._gradients = {}
        attached = _Attach.apply(root, gradients, scale, *parameters)
        return {**output, "loss": attached} if isinstance(output, Mapping) else attached


def root_of(output: Any) -> Tensor | None:
    """The loss in what a training step returned; None where there is none."""
    root = output.get("loss") if isinstance(output, Mapping) else output
    return root if isinstance(root, Tensor) else None


class _Attach(torch.autograd.Function):
    """The loss as it is, whose gradient reaches parameters as gradients that are known."""

    @staticmethod
    @override
    def forward(ctx: Any, root: Tensor, gradients: list[Tensor], scale: Tensor | None, *parameters: Tensor) -> Tensor:
        ctx.gradients, ctx.scale = gradients, scale
        return root.view_as(root)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradient if ctx.scale is None else gradient / ctx.scale
        known = (each * factor.to(each.dtype) for each in ctx.gradients)
        return gradient, None, None, *known
