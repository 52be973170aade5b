"""Scores that are known only after backward: norms of the instances' gradients over the model's layers.

Shapes: B batch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_autoassist.capture.interceptor import TrainingStep
from lightning_autoassist.capture.layer_norms import has_norms, squared_norms
from lightning_autoassist.capture.layers import LayerCall, LayerCapture
from lightning_autoassist.trainer_support.internals import early_factor, loss_factor

_MOST_NAMES = 3

NO_NORMS = (
    "No gradient of a Linear or convolution layer could be assigned to the instances in backward, which "
    "score='layer_gradient_norm' needs; pass score='gradient_norm', which needs the loss alone."
)


class LayerScores:
    """Computes in each step's backward the norm of each instance's gradient at the Linear and convolution layers.

    An instance's loss is the sum of its elements' losses. Reduction, coefficients, accumulation, loss scale and weights
    do not enter. Where a layer is called once in a step, nothing is kept of it but B numbers.

    Args:
        module: The model; hooks stay on its layers until :meth:`close`.
        guard: The context of what is done in backward, where errors of ours must not reach the run.
        timed: Makes the context that counts its seconds.
    """

    def __init__(
        self, module: Any, guard: AbstractContextManager[Any], timed: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._module = module
        self._guard, self._timed = guard, timed
        self._layers = {name: layer for name, layer in module.named_modules() if has_norms(layer)}
        self._capture = LayerCapture(
            self._layers,
            self._add,
            loss_factor=lambda: loss_factor(module.trainer, module),
            early_factor=lambda: early_factor(module.trainer),
        )
        self._held: dict[Tensor, list[LayerCall]] = defaultdict(list)  # by the weight, of those called several times
        self._squares: dict[Tensor, Tensor] = {}  # by the weight
        self._several = _shared_weights(self._layers)  # weights that are known to be used several times in a step
        self._unassigned: set[str] = set()
        self._is_incomplete = False
        self._weights: Tensor | None = None
        self._is_told = False

    @property
    def refusal(self) -> str | None:
        """Why the model has no such scores; None where it has."""
        if any(_is_trained(layer) for layer in self._layers.values()):
            return None
        return (
            "score='layer_gradient_norm' needs Linear or convolution layers that are trained, and "
            f"{type(self._module).__name__} has none; pass score='gradient_norm', which needs the loss alone."
        )

    def observe(self, step: TrainingStep, batch_size: int, weights: Tensor | None) -> Any:
        """Run a training step; its norms are collected in its backward.

        Args:
            step: The step.
            batch_size: B.
            weights: Of the instances, which enter its backward, shape ``(B,)``; None: all 1.

        Returns:
            What the step returned.
        """
        self._forget()
        self._weights = weights
        return self._capture.observe(step, batch_size)

    @torch.no_grad()
    def end_step(self) -> Tensor | None:
        """The norms of the step whose backward has run, shape ``(B,)``, float32; None where they are not known."""
        with _without_autocast(self._module.device):
            squares = [*self._squares.values(), *(squared_norms(calls) for calls in self._held.values())]
        is_known = bool(squares) and not self._is_incomplete
        self._forget()
        if not is_known:
            return None
        self._tell_left_out()
        return torch.stack([each.to(squares[0]) for each in squares]).sum(0).sqrt().float()

    def close(self) -> None:
        """Remove all hooks."""
        self._forget()
        self._capture.close()

    def _forget(self) -> None:
        self._capture.stop()
        self._held.clear()
        self._squares.clear()
        self._is_incomplete, self._weights = False, None

    def _add(self, call: LayerCall) -> None:
        """Take a call in during backward."""
        with self._timed(), self._guard, _without_autocast(call.gradients.device):
            if call.rows_per_instance is None:
                self._unassigned.add(call.name)
                return
            weight: Any = call.layer.weight
            call = self._unweighted(call)
            if weight in self._squares:  # the sum of two gradients' norms is not the norm of their sum
                self._several.add(weight)
                self._is_incomplete = True
            elif weight in self._several or call.num_seen > 1:
                self._held[weight].append(call)
            else:
                self._squares[weight] = squared_norms([call])

    def _unweighted(self, call: LayerCall) -> LayerCall:
        """Without weights that entered at losses of the user's own, which are not seen at a loss of torch's."""
        if call.weights is not None or self._weights is None:
            return call
        weights = self._weights.to(call.gradients).repeat_interleave(call.rows_per_instance or 1)
        shape = (-1, *[1] * (call.gradients.ndim - 1))
        return call._replace(gradients=call.gradients / weights.where(weights != 0, 1.0).reshape(shape))

    def _tell_left_out(self) -> None:
        """Say once which layers do not count."""
        if self._is_told:
            return
        self._is_told = True
        left_out = _left_out(self._module, self._layers)
        if self._unassigned:
            left_out["layers whose rows cannot be assigned to instances"] = sorted(self._unassigned)
        if left_out:
            rank_zero_warn(
                "score='layer_gradient_norm' counts the gradients of Linear and convolution layers. It leaves out "
                f"{', '.join(f'{kind} ({_listed(names)})' for kind, names in left_out.items())}"
            )


def _left_out(module: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Names of other modules with trained parameters of their own, by their classes."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, part in module.named_modules():
        if name not in layers and _is_trained(part):
            found[type(part).__name__].append(name or "itself")
    return found


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _shared_weights(layers: Mapping[str, nn.Module]) -> set[Tensor]:
    """Weights that several layers have."""
    counts: Counter[Any] = Counter(layer.weight for layer in layers.values())
    return {weight for weight, count in counts.items() if count > 1}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, enabled=False)
