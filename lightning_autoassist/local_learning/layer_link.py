"""What one process of layer-parallel training has, and what it tells the next.

Processes host neighbouring blocks; each runs the user's step with the blocks of others left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor, nn

from lightning_autoassist.local_learning.first_step import Plan


class LeftForward(BaseException):
    """The step is left: what comes next is of other processes. No error, and not for ``except Exception``."""


class LayerLink(Protocol):
    """The link of a process to those before and after it.

    Attributes:
        first: The first block that this process hosts.
        last: The last one.
    """

    first: int
    last: int

    def join(self, plan: Plan, module: nn.Module) -> None:
        """Learn which blocks this process hosts.

        Args:
            plan: Of the blocks.
            module: The LightningModule.
        """

    def receiving(self, step: int, leaves: Sequence[Tensor]) -> AbstractContextManager[None]:
        """The context in which blocks before this process's are not computed, but what they give is received.

        Args:
            step: Its number.
            leaves: The batch's tensors.
        """

    def send(self, step: int, values: Tensor, leaves: Sequence[Tensor]) -> None:
        """Send a block's output to the next process, without waiting.

        Args:
            step: Its number.
            values: The output.
            leaves: The batch's tensors.
        """
