r"""How the MLP Assistant's weights are trained: one step of Adam, or of Gauss-Newton, on a batch's mean squared error.

The network is :math:`f = v \cdot \mathrm{relu}(W z + E_y + c)`.

Shapes: B batch, F features, H hidden units, C classes.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

Weights = dict[str, Tensor]  # W (F, H), E (C, H), c (H,), v (H,)

# Most rows of a Gauss-Newton system; a batch with more takes several steps.
_MAX_ROWS = 256


def outputs_of(weights: Weights, scaled: Tensor, classes: Tensor) -> Tensor:
    """The network's outputs, shape ``(B,)``.

    Args:
        weights: Of the network.
        scaled: z, shape ``(B, F)``.
        classes: y, shape ``(B,)``.
    """
    hidden = torch.relu(scaled @ weights["W"] + F.embedding(classes, weights["E"]) + weights["c"])
    return hidden @ weights["v"]


class WeightTrainer(Protocol):
    """Changes a network's weights in place."""

    def step(self, scaled: Tensor, classes: Tensor, targets: Tensor) -> None:
        """Learn from a batch: ``(B, F)``, ``(B,)`` and what the outputs should be, ``(B,)``."""

    def state_dict(self) -> dict[Any, Any]:
        """State beside the weights, as tensors and builtins."""

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Restore :meth:`state_dict`."""


class AdamTrainer(WeightTrainer):
    """Adam (Kingma & Ba, ICLR 2015, arXiv:1412.6980).

    Args:
        weights: Of the network.
        lr: Step size.
    """

    def __init__(self, weights: Weights, lr: float) -> None:
        self._weights = weights
        self._optimizer = torch.optim.Adam([each.requires_grad_() for each in weights.values()], lr, fused=True)

    @override
    @torch.enable_grad()
    def step(self, scaled: Tensor, classes: Tensor, targets: Tensor) -> None:
        self._optimizer.zero_grad()
        F.mse_loss(outputs_of(self._weights, scaled, classes), targets).backward()
        self._optimizer.step()

    @override
    def state_dict(self) -> dict[Any, Any]:
        state: dict[Any, Any] = copy.deepcopy(self._optimizer.state_dict()["state"])
        return state

    @override
    def load_state_dict(self, state: dict[Any, Any]) -> None:
        # This run's settings, not those of the interrupted one.
        settings = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": copy.deepcopy(state), "param_groups": settings})


class GaussNewtonTrainer(WeightTrainer):
    r"""A part of a damped Gauss-Newton step, :math:`J^T (J J^T + \lambda I)^{-1} (f - t)`, by the B x B Gram matrix.

    A whole step would fit the batch, noise and all.

    Source: Cai et al., Gram-Gauss-Newton Method, arXiv:1905.11675.

    Args:
        weights: Of the network.
        damping: :math:`\lambda`, relative to the mean of the Gram matrix's diagonal.
        step_ratio: How much of the step is made, in (0, 1].
    """

    def __init__(self, weights: Weights, damping: float, step_ratio: float) -> None:
        self._weights = weights
        self._damping = damping
        self._step_ratio = step_ratio

    @override
    @torch.no_grad()
    def step(self, scaled: Tensor, classes: Tensor, targets: Tensor) -> None:
        for piece in zip(scaled.split(_MAX_ROWS), classes.split(_MAX_ROWS), targets.split(_MAX_ROWS), strict=True):
            self._step(*piece)

    @override
    def state_dict(self) -> dict[Any, Any]:
        return {}  # the weights are all

    @override
    def load_state_dict(self, state: dict[Any, Any]) -> None:
        pass

    def _step(self, scaled: Tensor, classes: Tensor, targets: Tensor) -> None:
        # Imported here: a run without it imports nothing of it.
        from lightning_autoassist.gauss_newton.solvers import solve_gram

        weights = self._weights
        hidden = scaled @ weights["W"] + weights["E"][classes] + weights["c"]
        active = torch.relu(hidden)
        into_hidden = (hidden > 0) * weights["v"]  # gradients of the outputs at the hidden units
        # c and a class's row of E are weights of inputs that are 1, for all and for the class.
        of_inputs = scaled @ scaled.T + 1 + (classes.unsqueeze(1) == classes)
        gram = of_inputs * (into_hidden @ into_hidden.T) + active @ active.T
        residual = active @ weights["v"] - targets
        solution = self._step_ratio * solve_gram(gram, residual, self._damping * gram.diagonal().mean())
        if not bool(torch.isfinite(solution).all()):
            return
        by_hidden = solution.unsqueeze(1) * into_hidden
        weights["W"] -= scaled.T @ by_hidden
        weights["c"] -= by_hidden.sum(0)
        weights["E"].index_add_(0, classes, -by_hidden)
        weights["v"] -= active.T @ solution
