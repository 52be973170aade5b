"""Heads with their optimizers: of the user's optimizer's class, and with its settings at each step."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer


class TrainedHead:
    """The heads of one block, one for each output of the network, and what trains them.

    Args:
        heads: One for each output.
        optimizer: The user's.
        parameter: The block's last parameter; the heads follow the settings of its group. None: of the first group.

    Attributes:
        heads: See above.
    """

    def __init__(self, heads: nn.ModuleList, optimizer: Optimizer, parameter: nn.Parameter | None) -> None:
        self.heads = heads
        self._followed = _group_of(optimizer, parameter)
        parameters = list(heads.parameters())
        self._optimizer = made_like(optimizer, parameters, self._followed) if parameters else None

    def __call__(self, values: Tensor) -> list[Tensor]:
        """What stands for the network's outputs.

        Args:
            values: The block's output.
        """
        # Of one instance, batch normalization has no variance.
        self.heads.train(values.shape[0] > 1)
        return [head(values) for head in self.heads]

    def parameters(self) -> list[nn.Parameter]:
        """Of the heads."""
        return list(self.heads.parameters())

    def step(self, *, scaler: Any, clip: float | None, clip_algorithm: str | None) -> None:
        """Update the heads by their gradients, which are dropped.

        Args:
            scaler: GradScaler of mixed precision, or None.
            clip: See ``Trainer(gradient_clip_val=...)``; the norm is that of this block's heads.
            clip_algorithm: "norm" or "value".
        """
        optimizer = self._optimizer
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        if optimizer is None or not parameters:
            return
        self._follow(optimizer)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip:
            clip_all = nn.utils.clip_grad_value_ if str(clip_algorithm).endswith("value") else nn.utils.clip_grad_norm_
            clip_all(parameters, clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)

    def _follow(self, optimizer: Optimizer) -> None:
        for name, value in self._followed.items():
            if name != "params" and name in optimizer.param_groups[0]:
                optimizer.param_groups[0][name] = value

    def state_dict(self) -> dict[str, Any]:
        """Of heads and optimizer."""
        optimizer = None if self._optimizer is None else self._optimizer.state_dict()
        return {"heads": self.heads.state_dict(), "optimizer": optimizer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.heads.load_state_dict(state["heads"])
        if self._optimizer is not None and state["optimizer"] is not None:
            self._optimizer.load_state_dict(state["optimizer"])


def made_like(optimizer: Optimizer, parameters: Sequence[nn.Parameter], group: dict[str, Any]) -> Optimizer:
    """An optimizer of the same class and settings for other parameters; SGD where the class cannot be made so."""
    kind = type(optimizer)
    known = inspect.signature(kind).parameters
    settings = {name: value for name, value in group.items() if name in known and name != "params"}
    try:
        if "closure" in known or kind is torch.optim.LBFGS:
            raise TypeError("it needs a closure")
        return kind(parameters, **settings)
    except Exception as error:
        warnings.warn(
            f"The heads of local learning are trained by SGD, as no {kind.__name__} could be made for them "
            f"({type(error).__name__}: {error}).",
            stacklevel=2,
        )
        return SGD(parameters, lr=float(group.get("lr", 0.01)), momentum=0.9)


def _group_of(optimizer: Optimizer, parameter: nn.Parameter | None) -> dict[str, Any]:
    for group in optimizer.param_groups:
        if any(each is parameter for each in group["params"]):
            return group
    return optimizer.param_groups[0]
