"""How a training step reduces its loss: what one element of it counts, and how many terms there are.

Shapes: B batch.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from lightning_autoassist.capture.captured_loss import WeightedLoss, contributions
from lightning_autoassist.capture.captured_step import CapturedStep
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.capture.loss_weights import IN_FORCE, weights_in_force
from lightning_autoassist.losses.functional import Arguments, NamedLoss

if TYPE_CHECKING:
    from typing_extensions import Self

LossSampler = Callable[[Callable[..., Any], Arguments], "tuple[Tensor, Tensor] | None"]


class LossScale(NamedTuple):
    """How the elements of a step's losses enter the returned loss.

    Attributes:
        unit: The returned loss's gradient at the loss of one element: 1 / B for a mean over B.
        num_terms: Terms that the loss consists of: B, or the tokens or pixels that count.
    """

    unit: float | Tensor
    num_terms: int | Tensor


class ScaledStep(CapturedStep):
    """A step under watch for the scale of its loss alone.

    Attributes:
        scale: What was found, or the assumption of a mean over B.
        weights: Of the instances, which somebody else lets enter the backward pass, shape ``(B,)``; None: all 1.
        why_unknown: Why the scale is an assumption; None where it is known.
        numbers: Count each layer's calls.
        sampler: As in ``LayerCapture``.
        calls: Of layers, whose ``sampled`` is to be set to the gradient at their ``edge``; none without a sampler.
        is_sampled: Whether that was done.
        unsampled: The losses that the sampler had no gradient for.
        is_running: Whether the step has not returned yet.
        is_factored: Whether the loss that was looked at already holds what ``LayerCapture`` asks the
            ``loss_factor`` for.
    """

    def __init__(self, losses: InstanceLossCapture, batch: Any, batch_size: int, sampler: LossSampler | None) -> None:
        super().__init__(losses, batch, batch_size, None, None)
        self._rows = None  # whose the loss's rows are does not matter for its scale
        self.batch_size = batch_size
        self.scale = LossScale(1 / batch_size, batch_size)
        self.weights: Tensor | None = None
        self.why_unknown: str | None = "the step returned no loss"
        self.is_running = True
        self.is_factored = False
        self.numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)  # of each layer's calls
        self.is_sampled = False
        self.unsampled: str | None = None
        self.calls: list[Any] = []
        self.sampler = sampler
        self._calls_of_losses: dict[int, tuple[Callable[..., Any], Arguments]] = {}
        self._given_weights = weights_in_force()

    @override
    def __enter__(self) -> Self:
        super().__enter__()
        IN_FORCE.set(self._given_weights)  # until the exit: whoever watches the same step inside is to know them
        return self

    def find(self, output: Any) -> None:
        """Learn the scale from what the step returned, unless the step has run backward itself."""
        self.is_running = False
        if not self._backwards:
            self._find(output.get("loss") if isinstance(output, Mapping) else output)
        self._release()

    @override
    def _note_backward(self, root: Tensor) -> None:
        self._backwards.append([])
        self._find(root)
        self.is_factored = self.why_unknown is None

    def _find(self, root: Any) -> None:
        if not (isinstance(root, Tensor) and root.requires_grad):
            return
        try:
            parts = self._parts(root)
            if parts:
                self.scale = _scale_of(parts)
                self._sample(parts)
        except Exception as error:  # the user's step must go on
            parts, self.why_unknown = [], f"{type(error).__name__}: {error}"
        else:
            self.why_unknown = None if parts else "none of torch's losses was found behind it"
        # Weights enter at losses that are known. Where none is, there are none.
        self.weights = self._given_weights if parts else None

    @override
    def _note(self, named: NamedLoss, arguments: Arguments, *rest: Any) -> None:
        num_named = len(self._named)
        super()._note(named, arguments, *rest)
        if self.sampler is not None and len(self._named) > num_named:
            self._calls_of_losses[id(self._named[-1].edge)] = named.function, arguments

    def _sample(self, parts: Sequence[WeightedLoss]) -> None:
        """Give each call of a layer the gradient that the sampler's gradients at the losses lead to."""
        if self.sampler is None:
            return
        losses = [self._calls_of_losses.get(id(part.found.edge)) for part in parts]
        drawn = [None if loss is None else self.sampler(*loss) for loss in losses]
        missing = [part.found.source for part, draw in zip(parts, drawn, strict=True) if draw is None]
        self.unsampled = ", ".join(missing) or None
        self.is_sampled = not missing
        found = [draw for draw in drawn if draw is not None]
        if missing or not self.calls:
            return
        ends, gradients = zip(*found, strict=True)
        edges: Sequence[Any] = [call.edge for call in self.calls]
        sampled = torch.autograd.grad(ends, edges, gradients, retain_graph=True, allow_unused=True)
        for call, gradient in zip(self.calls, sampled, strict=True):
            call.sampled = gradient

    def _parts(self, root: Tensor) -> list[WeightedLoss]:
        found = self._capture._attribution.parts(root, self._named, self._reduced, self._batch_size)[0]
        return found or contributions(root, self._scripted(root))


def _scale_of(parts: Sequence[WeightedLoss]) -> LossScale:
    """The scale of the part that counts most."""
    scales = [_scale_of_part(part) for part in parts]
    if len(scales) == 1:
        return scales[0]
    units = torch.stack([torch.as_tensor(scale.unit) for scale in scales])
    counts = torch.stack([torch.as_tensor(scale.num_terms, device=units.device) for scale in scales])
    largest = (units * counts).argmax()
    return LossScale(units[largest], counts[largest])


def _scale_of_part(part: WeightedLoss) -> LossScale:
    found, coefficient = part.found, part.coefficient
    losses, _, mask = found.elements
    num_elements = losses.numel() if mask is None else mask.sum().clamp(min=1)
    num_terms = num_elements if found.tokens else found.layout.num_rows
    if coefficient is not None:
        coefficient = coefficient.detach().abs()
        coefficient = coefficient.to(torch.promote_types(coefficient.dtype, torch.float32))
    if coefficient is not None and coefficient.ndim:  # reduced by the user: his factors on rows are relative
        return LossScale(coefficient.sum() / (coefficient != 0).sum().clamp(min=1), num_terms)
    share = 1.0 if coefficient is None else coefficient
    divisors = {"sum": 1, "batchmean": found.layout.num_rows}
    return LossScale(share / divisors.get(found.reduction, num_elements), num_terms)
