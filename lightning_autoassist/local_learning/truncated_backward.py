"""Backpropagation that ends at the cuts, or some blocks below: of one block's loss through one block or several.

Shapes: K blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_autoassist.local_learning.attached_gradients import PendingGradients


class TruncatedBackward:
    """The graphs of one step's blocks.

    Args:
        window: How many blocks a loss trains: its own, and those before it.
        pending: Gets the gradients.
        num_blocks: K.
    """

    def __init__(self, window: int, pending: PendingGradients, num_blocks: int) -> None:
        self._window = window
        self._pending = pending
        self._num_blocks = num_blocks
        # What each block gave, and what the next one got of it.
        self._joints: list[tuple[Tensor | None, Tensor]] = []

    def passed_on(self, values: Tensor, *, is_kept: bool) -> Tensor:
        """What the next block gets of a block's output.

        Args:
            values: The output.
            is_kept: Whether it must stay as it is: what comes next may change what it gets in place.
        """
        if self._window == 1:
            return values.detach().clone() if is_kept else values.detach()
        start = values.detach().requires_grad_()
        self._joints.append((values, start))
        return start.clone()

    def backward(self, block: int, loss: Tensor, own: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        """Collect the gradients of a block's loss.

        Args:
            block: Which it is.
            loss: The loss.
            own: Parameters of the block's heads.
            parameters: Of the network.
        """
        first = max(0, block - self._window + 1)
        is_needed_later = self._window > 1 and block < self._num_blocks - 1
        upstream = self._step(block, first, loss, None, [*own, *parameters], is_needed_later)
        for below in range(block - 1, first - 1, -1):
            if upstream is None:
                break
            values, start = self._joints[below]
            assert values is not None
            is_needed_later = below + self._window - 1 > block
            upstream = self._step(below, first, values, upstream, parameters, is_needed_later)
            if not is_needed_later:
                self._joints[below] = (None, start)  # its graph is done with

    def _step(
        self,
        block: int,
        first: int,
        end: Tensor,
        upstream: Tensor | None,
        parameters: Sequence[Tensor],
        is_needed_later: bool,
    ) -> Tensor | None:
        starts = [self._joints[block - 1][1]] if block > first else []
        gradients = torch.autograd.grad(
            end, [*parameters, *starts], upstream, retain_graph=is_needed_later, allow_unused=True
        )
        self._pending.add(parameters, gradients[: len(parameters)])
        return gradients[-1] if starts else None
