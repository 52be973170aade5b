"""Layer inputs and output gradients of training steps, by instance: for each step, layer and call.

The interface: :func:`layers_of` chooses layers, :class:`LayerCapture` watches them, each :class:`LayerCall` goes to a
function of yours during backward. ``LayerCapture.observe`` is an observer of the training step::

    capture = LayerCapture(layers_of(module, (nn.Linear,)), on_call)
    remove = observe_training_steps(trainer.strategy, capture.observe)
    ...                     # on_call(call) for each layer and call, in each step's backward
    remove(), capture.close()

What a call holds is the same however the loss is reduced: an instance's loss is the *sum* of its elements' losses, so
that a mean, a sum, a coefficient, gradient accumulation, a loss scale and instances' weights are undone. A call counts
when backward has accumulated the gradient of one of its layer's parameters: validation, branches that do not reach
the loss, the first pass of a checkpointed block and ``torch.autograd.grad`` give none. Outputs are hooked as tensors,
not by backward hooks of modules, so that in-place operations may follow a layer.

Shapes: B batch, R rows of a layer (B, or k·B with k rows an instance), ``*`` positions, F and O features.
"""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lightning_autoassist.capture.instance_layout import order_before_flattening
from lightning_autoassist.capture.interceptor import TrainingStep
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.capture.loss_scale import LossSampler, ScaledStep
from lightning_autoassist.trainer_support.batch_parts import tensors_in


class LayerCall(NamedTuple):
    """One call of a layer in a training step, complete with its gradients.

    Attributes:
        name: Of the layer, as given to :class:`LayerCapture`.
        layer: The layer.
        inputs: What it was given, detached: ``(R, *, F)`` of a Linear, ``(R, F, *)`` of a convolution, ``(R, *)``
            indices of an Embedding. Rows of one instance are adjacent where ``rows_per_instance`` is known.
        gradients: Of the *instances' own losses* at the output, ``(R, *, O)`` or ``(R, O, *)``, float32 (float64 where
            the model is): row r belongs to the unweighted loss of its instance, summed over the loss's elements.
        weights: Of the rows in the training loss, shape ``(R,)``, already divided out of ``gradients``; None: all 1, or
            still in ``gradients``, where ``rows_per_instance`` is None.
        batch_size: B.
        num_terms: How many terms the step's loss consists of: B, or the tokens or pixels that count. A tensor of one
            number where that depends on values; of a thinned call the instances' share of them.
        rows_per_instance: k = R / B; None where it is not known whose the rows are.
        number: How many calls of this layer came before in the step's backward.
        num_seen: How many calls of this layer the step has made so far, of which a checkpointed block makes each twice.
    """

    name: str
    layer: nn.Module
    inputs: Tensor
    gradients: Tensor
    weights: Tensor | None
    batch_size: int
    num_terms: float | Tensor
    rows_per_instance: int | None
    number: int
    num_seen: int = 1

    def thinned(self, every: int) -> LayerCall:
        """This call of each ``every``-th instance alone; as it is where it is not known whose the rows are."""
        if every == 1 or self.rows_per_instance is None:
            return self
        num_instances = len(range(0, self.batch_size, every))

        def thin(rows: Tensor) -> Tensor:
            thinned: Tensor = rows.unflatten(0, (self.batch_size, -1))[::every].flatten(0, 1)
            return thinned

        return self._replace(
            inputs=thin(self.inputs),
            gradients=thin(self.gradients),
            weights=None if self.weights is None else thin(self.weights),
            batch_size=num_instances,
            num_terms=self.num_terms * (num_instances / self.batch_size),
        )


class LayerCapture:
    """Collects layers' inputs and output gradients. One object a run; forward hooks stay until :meth:`close`.

    Args:
        layers: Which layers, by any names. Weights that two of them share are seen as both's.
        on_call: Gets each call during backward, without gradients being recorded. Its errors are the caller's own.
        loss_factor: What backward multiplies the returned loss with, asked during backward: 1 / accumulated batches,
            and the loss scale. Not asked where the step itself runs backward and its losses are known.
        early_factor: The same for gradients that are taken while the step runs, and given to backward later: the loss
            scale alone.
        row_order: As in :class:`~lightning_autoassist.InstanceLossCapture`, for layers with several rows an instance.
        sampler: Gets a loss function and the arguments of its call, returns an input of it and the gradient there that
            is to be used instead of the true one, or None where it has none. Costs a backward pass that accumulates
            nothing. Where any loss of the step has none, the true gradients are given.

    Attributes:
        is_on: Whether steps are watched; where it is False a step costs nothing.
        unknown_scale: Why the loss's reduction is not known in the latest step, where a mean over B is assumed; None
            where it is known.
        unsampled: The losses that the ``sampler`` had no gradient for in the latest step; None: it had.

    Example:
        >>> net, calls = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), []
        >>> capture = LayerCapture(layers_of(net, (nn.Linear,)), calls.append)
        >>> def step(batch):
        ...     return nn.functional.mse_loss(net(batch), torch.zeros(5, 2))
        >>> batch = torch.randn(5, 3)
        >>> capture.observe(TrainingStep((batch,), {}, lambda: step(batch))).backward()
        >>> [(call.name, tuple(call.inputs.shape), tuple(call.gradients.shape)) for call in calls]
        [('2', (5, 4), (5, 2)), ('0', (5, 3), (5, 4))]
        >>> capture.close()
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        on_call: Callable[[LayerCall], None],
        *,
        loss_factor: Callable[[], float | Tensor] = lambda: 1.0,
        early_factor: Callable[[], float | Tensor] = lambda: 1.0,
        row_order: str = "auto",
        sampler: LossSampler | None = None,
    ) -> None:
        self.is_on = True
        self.unknown_scale: str | None = None
        self.unsampled: str | None = None
        self._sampler = sampler
        self._on_call = on_call
        self._loss_factor, self._early_factor = loss_factor, early_factor
        self._row_order = row_order
        self._losses = InstanceLossCapture(score="loss", row_order=row_order)
        self._step: ScaledStep | None = None
        self._held: dict[str, dict[object, _HeldCall]] = {}
        self._names_by_parameter: dict[Tensor, list[str]] = {}
        self._num_seen: Counter[str] = Counter()
        see = self._see
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import takes a second
            see = torch.compiler.disable(see)
        self._handles: list[Any] = [
            layer.register_forward_hook(functools.partial(see, name), with_kwargs=True)
            for name, layer in layers.items()
        ]

    def observe(self, step: TrainingStep, batch_size: int | None = None) -> Any:
        """Run a training step and watch it, if ``is_on``; its calls come during its backward.

        Args:
            step: The step.
            batch_size: B; None: the length of the batch's first tensor.
        """
        self.stop()
        if batch_size is None or not self.is_on:
            batch_size = batch_size_of(step.batch) if self.is_on else 0
        if not batch_size:
            return step.run()
        watched = self._step = ScaledStep(self._losses, step.batch, batch_size, self._sampler)
        with watched:
            output = step.run()
        watched.find(output)
        self.unknown_scale, self.unsampled = watched.why_unknown, watched.unsampled
        return output

    def stop(self) -> None:
        """The latest step's backward is over: nothing more is collected of it."""
        self._step = None
        self._held.clear()
        self._num_seen.clear()

    def close(self) -> None:
        """Remove all hooks."""
        self.stop()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._names_by_parameter = {}

    def _see(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """The forward hook of a layer."""
        inputs = args[0] if args else next(iter(kwargs.values()), None)
        parameter = next((each for each in layer.parameters() if each.requires_grad), None)
        if self._step is None or parameter is None or not (isinstance(inputs, Tensor) and _needs_gradient(output)):
            return
        self._await(parameter, name)
        self._num_seen[name] += 1
        key, call = object(), _HeldCall(self._step, layer, inputs, output, self._row_order)

        def hold(gradient: Tensor) -> None:
            call.take(gradient)  # of the latest pass: that of torch.autograd.grad is replaced
            self._held.setdefault(name, {})[key] = call

        output.register_hook(hold)

    def _await(self, parameter: Tensor, name: str) -> None:
        """Let calls of a layer count once backward has accumulated a gradient in its parameter."""
        names = self._names_by_parameter.setdefault(parameter, [])
        if not names:
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._complete))
        if name not in names:
            names.append(name)

    @torch.no_grad()
    def _complete(self, parameter: Tensor) -> None:
        for name in self._names_by_parameter.get(parameter, ()):
            for call in self._held.pop(name, {}).values():
                factor = self._early_factor if call.is_early else self._loss_factor
                self._on_call(call.completed(name, factor)._replace(num_seen=self._num_seen[name]))


def layers_of(module: nn.Module, types: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """The layers of some types in a module, by their names in it.

    Example:
        >>> list(layers_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (nn.Linear,)))
        ['0']
    """
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, types)}


def batch_size_of(batch: Any) -> int:
    """B, by the first tensor of a batch; 0 where it has none."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.ndim), 0)


class _HeldCall:
    """A call whose gradient is known or still to come."""

    gradient: Tensor
    is_early = False  # whether that was taken while the step ran
    sampled: Tensor | None = None

    def __init__(self, step: ScaledStep, layer: nn.Module, inputs: Tensor, output: Tensor, row_order: str) -> None:
        self._step = step
        self._layer = layer
        self._inputs = inputs.detach()
        if step.sampler is not None:
            self.edge = get_gradient_edge(output)
            step.calls.append(self)
        self._is_single = output.ndim == _num_axes(layer, output) - 1  # without an axis of instances
        self._order, self._rows_per_instance = _order(layer, inputs, output, step.batch_size, row_order)

    def take(self, gradient: Tensor) -> None:
        self.gradient, self.is_early = gradient.detach(), self._step.is_running

    def completed(self, name: str, loss_factor: Callable[[], float | Tensor]) -> LayerCall:
        step = self._step
        weights = None
        if step.weights is not None and self._rows_per_instance is not None:
            weights = step.weights.to(_wide(self.gradient)).repeat_interleave(self._rows_per_instance)
        return LayerCall(
            name,
            self._layer,
            self._arranged(self._inputs),
            self._own_gradients(weights, loss_factor),
            weights,
            step.batch_size,
            step.scale.num_terms,
            self._rows_per_instance,
            next(step.numbers[name]),
        )

    def _own_gradients(self, weights: Tensor | None, loss_factor: Callable[[], float | Tensor]) -> Tensor:
        step = self._step
        if step.is_sampled:
            sampled = torch.zeros_like(self.gradient) if self.sampled is None else self.sampled
            return self._arranged(sampled).to(_wide(sampled))
        unit = step.scale.unit if step.is_factored else step.scale.unit * loss_factor()
        gradients = self._arranged(self.gradient)
        gradients = gradients.to(_wide(gradients)) / unit
        if weights is None:
            return gradients
        return gradients / torch.where(weights == 0, 1.0, weights).reshape(-1, *[1] * (gradients.ndim - 1))

    def _arranged(self, rows: Tensor) -> Tensor:
        if self._is_single:
            return rows.unsqueeze(0)
        if self._order == "second_axis":
            return rows.movedim(1, 0)
        if self._order == "time_major":
            rows = rows.reshape(-1, self._step.batch_size, *rows.shape[1:])
            return rows.transpose(0, 1).flatten(0, 1)
        return rows


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _num_axes(layer: nn.Module, output: Tensor) -> int:
    """How many axes the output of a layer has for a batch."""
    kernel = getattr(layer, "kernel_size", None)
    return max(2, output.ndim) if kernel is None else len(kernel) + 2


def _order(layer: nn.Module, inputs: Tensor, output: Tensor, batch_size: int, row_order: str) -> tuple[str, int | None]:
    """How a layer's rows are to be arranged, and how many an instance has then."""
    has_features_last = not hasattr(layer, "kernel_size")
    num_rows = output.shape[0] if output.ndim else 1
    if output.ndim < _num_axes(layer, output):
        return "", 1 if batch_size == 1 else None
    if num_rows == batch_size:
        return "", 1
    if has_features_last and output.ndim > 2 and output.shape[1] == batch_size:
        return "second_axis", 1
    if num_rows % batch_size:
        return "", None
    order = row_order if row_order != "auto" else order_before_flattening(inputs, num_rows, batch_size)
    if batch_size == 1:
        order = "batch_major"
    return order or "", None if order is None else num_rows // batch_size


def _needs_gradient(output: Any) -> bool:
    return isinstance(output, Tensor) and output.requires_grad
