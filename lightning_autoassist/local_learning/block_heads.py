"""The heads of all blocks but the last."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_autoassist.local_learning.first_step import Plan
from lightning_autoassist.local_learning.head_training import TrainedHead
from lightning_autoassist.local_learning.heads import HeadFunction, make_head, seeded


class BlockHeads:
    """Makes, keeps and updates the heads of a run.

    Args:
        kind: See :func:`make_head`.
    """

    def __init__(self, kind: str | HeadFunction) -> None:
        self.kind = kind
        self._heads: list[TrainedHead] = []
        self._restored: list[dict[str, Any] | None] = []

    def __getitem__(self, block: int) -> TrainedHead:
        return self._heads[block]

    def __len__(self) -> int:
        return len(self._heads)

    def make(self, plan: Plan, module: nn.Module, optimizer: Optimizer, seed: int) -> None:
        """Make the heads of a plan, or those of the checkpoint that was loaded.

        Args:
            plan: Of the blocks.
            module: The LightningModule, on its device.
            optimizer: The user's, which the heads' are made like.
            seed: Of the heads' first weights; torch's generators stay as they are.
        """
        states = [head.state_dict() for head in self._heads] or self._restored
        self._heads = [self._made(plan, block, module, optimizer, seed) for block in range(plan.num_blocks - 1)]
        for head, state in zip(self._heads, states, strict=False):
            if state is not None:
                head.load_state_dict(state)
        self._restored = []

    def _made(self, plan: Plan, block: int, module: nn.Module, optimizer: Optimizer, seed: int) -> TrainedHead:
        cut, is_channels_last = plan.blocks.cuts[block], plan.features_last[block]
        heads = seeded(
            lambda: nn.ModuleList(
                make_head(self.kind, cut.shape, shape, is_channels_last=is_channels_last)
                for shape in plan.output_shapes
            ),
            seed + block,
        )
        own = [name for name, owner in plan.blocks.owners.items() if owner == block]
        parameter = dict(module.named_parameters())[own[-1]]
        return TrainedHead(heads.to(parameter.device, parameter.dtype), optimizer, parameter)  # type: ignore[arg-type]

    def parameters(self) -> list[nn.Parameter]:
        """Of all heads."""
        return [parameter for head in self._heads for parameter in head.parameters()]

    def step(self, *, scaler: Any, clip: float | None, clip_algorithm: str | None) -> None:
        """Update all heads that have gradients; see :meth:`TrainedHead.step`."""
        for head in self._heads:
            head.step(scaler=scaler, clip=clip, clip_algorithm=clip_algorithm)

    def states(self) -> list[dict[str, Any] | None]:
        """Of each block's heads and optimizer."""
        return [head.state_dict() for head in self._heads] or self._restored

    def restore(self, states: list[dict[str, Any] | None]) -> None:
        """Restore :meth:`states`, now or when the heads are made."""
        self._restored = list(states)
        for head, state in zip(self._heads, states, strict=False):
            if state is not None:
                head.load_state_dict(state)
