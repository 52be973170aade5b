"""Per-instance losses and scores out of a training step that returns one number.

Loss functions are seen at their call, by a torch function mode that is active while the step runs: early-bound
imports and the modules of ``torch.nn`` included. The user's call stays as it is; what is learnt of it is detached.

Shapes: B batch, R rows of a loss (B, or a multiple of it), d further dimensions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lightning_autoassist.features import tensors_in
from lightning_autoassist.loss_layout import (
    ROW_ORDERS,
    Layout,
    fold,
    order_before_flattening,
    order_by_target,
    row_layout,
)
from lightning_autoassist.loss_weights import ScaleGradient, nll_by_rows
from lightning_autoassist.losses import LOSSES, Arguments, Elements, NamedLoss, class_axis, has_class_indices

SCORES = ("gradient_norm", "loss")
WAYS_OUT = (
    "Ways out: return {'loss': loss, 'instance_loss': losses} from training_step, one loss an instance, shape (B,); "
    "or give the module a method instance_loss(batch, outputs) that returns them; "
    "or use the loss functions of torch.nn.functional."
)

_TORCH = str(Path(torch.__file__).parent)


class Observation(NamedTuple):
    """What one step said about its instances; on a device the values may still be in the making.

    Attributes:
        losses: Unweighted losses, shape ``(B,)``, float32, detached, on the Boss's device.
        scores: Scores, shape ``(B,)``, float32, detached.
        labels: The captured loss's target where it is integer and has shape ``(B,)``, int64, else None.
        source: Which call they come from, as "cross_entropy at train.py:31".
    """

    losses: Tensor
    scores: Tensor
    labels: Tensor | None
    source: str


class InstanceLossCapture:
    """Finds the per-instance losses of training steps. One object a run, one :meth:`step` a training step.

    The score of an instance is the norm of its loss's gradient at the loss's input (for cross-entropy
    ‖softmax - target‖), which bounds the norm of its whole gradient up to a constant. It is computed in the forward
    pass: it depends neither on the reduction nor on B, gradient accumulation, loss scaling or weights.

    Source: Katharopoulos & Fleuret, Not All Samples Are Created Equal, ICML 2018, arXiv:1803.00942.

    Args:
        score: ``"gradient_norm"`` or ``"loss"``.
        row_order: Which rows of a loss over R = B·T rows are whose: ``"batch_major"``: the T rows of one instance
            are adjacent; ``"time_major"``: row j is of instance j mod B, as after ``torch.cat`` of two views;
            ``"auto"``: told by the shape before flattening or by the batch's own targets, else not guessed.

    Raises:
        ValueError: If ``score`` or ``row_order`` is not one of these.

    Example:
        >>> logits, target = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3])
        >>> capture = InstanceLossCapture(score="loss")
        >>> with capture.step((logits, target), batch_size=2) as step:
        ...     loss = torch.nn.functional.cross_entropy(logits, target)
        >>> step.observe(loss).losses
        tensor([1.3863, 1.3863])
    """

    def __init__(self, score: str = "gradient_norm", row_order: str = "auto") -> None:
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        if row_order not in ROW_ORDERS:
            raise ValueError(f"row_order must be one of {', '.join(ROW_ORDERS)}, got {row_order!r}")
        self.score = score
        self.row_order = row_order
        # Asked of the device once for each loss: what was found holds for the run.
        self._orders: dict[tuple[str, int], str] = {}

    def step(
        self, batch: Any, batch_size: int, *, weights: Tensor | None = None, module: nn.Module | None = None
    ) -> CapturedStep:
        """Watch one training step.

        Args:
            batch: What the step is given.
            batch_size: B.
            weights: Shape ``(B,)``, on the Boss's device: instance i's gradient is multiplied by ``weights[i]``;
                the loss keeps its value. None leaves everything as it is, bit for bit.
            module: The module whose step it is, for its ``instance_loss`` method and for messages.

        Returns:
            A context manager for the step.
        """
        return CapturedStep(self, batch, batch_size, weights, module)


class _Captured(NamedTuple):
    """One call of a named loss that may be (part of) what the step returns."""

    named: NamedLoss
    source: str
    reduction: str
    edge: GradientEdge
    elements: Elements
    labels: Tensor | None
    layout: Layout


class CapturedStep(TorchFunctionMode):
    """One watched training step: enter it, run the step, leave it, then :meth:`observe` what the step returned.

    Attributes:
        reason: Why :meth:`observe` found nothing, in words for the user; None where it found something.
    """

    def __init__(
        self,
        capture: InstanceLossCapture,
        batch: Any,
        batch_size: int,
        weights: Tensor | None,
        module: nn.Module | None,
    ) -> None:
        super().__init__()
        self.reason: str | None = None
        self._capture = capture
        self._batch = batch
        self._batch_size = batch_size
        self._weights = weights
        self._module = module
        self._captured: list[_Captured] = []
        self._backwards: list[list[tuple[_Captured, Tensor | None]]] = []
        self._missed: list[str] = []

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_value, traceback)  # type: ignore[no-untyped-call]
        if exc_type is not None:
            self._release()

    def observe(self, output: Any) -> Observation | None:
        """The instances' losses and scores. To be called once, after the step and before backward.

        Args:
            output: What the step returned: the loss, a mapping with it under "loss", or None.

        Returns:
            The observation, or None with :attr:`reason` set. Its values may be read at any later time.
        """
        try:
            observation = self._observe(output)
        except Exception as error:  # whatever it is, it must not cost the user the run
            observation = None
            self.reason = f"{type(error).__name__} while the losses were looked at: {error}. {WAYS_OUT}"
        self._release()
        return observation

    # ---- while the step runs

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Arguments | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in LOSSES:
            return self._watch(LOSSES[func], args, kwargs)
        if func is Tensor.backward:  # manual optimization: afterwards the graph is gone
            self._backwards.append(self._contributions(args[0]))
        return func(*args, **kwargs)

    def _watch(self, named: NamedLoss, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        arguments = named.bind(args, kwargs)
        inputs = [arguments[name] for name in named.inputs]
        if not torch.is_grad_enabled() or not any(_requires_grad(value) for value in inputs):
            return named.function(*args, **kwargs)  # a metric
        source = f"{named.name} at {_caller()}"
        layout = self._layout(named, arguments, source)
        if layout is None:
            return named.function(*args, **kwargs)
        if named.function is F.cross_entropy and _is_split_alike(arguments):
            # What torch does inside, so that the log-probabilities serve the score as well.
            named = LOSSES[F.nll_loss]
            logits, _ = arguments["input"], arguments.pop("label_smoothing")
            arguments["input"] = F.log_softmax(logits, class_axis(logits))
            args, kwargs = (), arguments
        unreduced = None
        if self._weights is None:
            result = named.function(*args, **kwargs)
        else:
            result, unreduced = self._weighted(named, arguments, layout, self._weights)
        if arguments["reduction"] == "none":
            unreduced = result
        self._note(named, arguments, source, layout, result, unreduced)
        return result

    def _note(
        self,
        named: NamedLoss,
        arguments: Arguments,
        source: str,
        layout: Layout,
        result: Tensor,
        unreduced: Tensor | None,
    ) -> None:
        try:
            target = arguments.get("target")
            is_label = (
                isinstance(target, Tensor)
                and not (target.is_floating_point() or target.is_complex())
                and target.shape == (self._batch_size,)
            )
            self._captured.append(
                _Captured(
                    named,
                    source,
                    arguments["reduction"],
                    get_gradient_edge(result),
                    named.elements(arguments, unreduced),
                    arguments["target"].detach().long() if is_label else None,
                    layout,
                )
            )
        except Exception as error:  # the step itself went well: it must go on
            self._missed.append(
                f"{source} could not be repeated row by row ({type(error).__name__}: {error})"
            )

    def _weighted(
        self, named: NamedLoss, arguments: Arguments, layout: Layout, weights: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The call with weights in its backward, and its unreduced rows where they come along."""
        if arguments["reduction"] == "none":
            rows = named.function(**arguments)
            return ScaleGradient.apply(rows, layout.spread(weights, rows)), None
        if named.function is F.nll_loss and arguments["weight"] is None:
            return nll_by_rows(arguments, layout.spread(weights, arguments["target"]))
        weighted = dict(arguments)
        for name in named.inputs:
            if _requires_grad(arguments[name]):
                by_rows = arguments[name].movedim(named.rows_axis, 0) if named.rows_axis else arguments[name]
                factor = layout.spread(weights, by_rows)
                factor = factor.movedim(0, named.rows_axis) if named.rows_axis else factor
                weighted[name] = ScaleGradient.apply(arguments[name], factor)
        return named.function(**weighted), None

    def _layout(self, named: NamedLoss, arguments: Arguments, source: str) -> Layout | None:
        """Whose the loss's rows are; None, and a note why, where that is not known."""
        first = arguments[named.inputs[0]]
        num_rows = first.shape[named.rows_axis] if first.ndim > named.rows_axis else 1
        layout = row_layout(num_rows, self._batch_size, None)
        if layout is None and num_rows and num_rows % self._batch_size == 0:
            order = self._row_order(first, arguments, source, num_rows)
            layout = row_layout(num_rows, self._batch_size, order)
        if layout is None:
            self._missed.append(
                f"{source} has {num_rows} rows for {self._batch_size} instances, and nothing tells which are "
                "whose (row_order= does, where all instances have equally many)"
            )
        return layout

    def _row_order(self, first: Tensor, arguments: Arguments, source: str, num_rows: int) -> str | None:
        if self._capture.row_order != "auto":
            return self._capture.row_order
        order = order_before_flattening(first, num_rows, self._batch_size)
        if order is not None:
            return order
        key = source, num_rows // self._batch_size
        if key not in self._capture._orders:
            target = arguments.get("target")
            if not isinstance(target, Tensor) or target.shape != (num_rows,):
                return None
            found = order_by_target(
                target, arguments.get("ignore_index"), tensors_in(self._batch), self._batch_size
            )
            if found is None:
                return None
            self._capture._orders[key] = found
        return self._capture._orders[key]

    # ---- after the step

    def _observe(self, output: Any) -> Observation | None:
        if isinstance(output, Mapping) and output.get("instance_loss") is not None:
            return self._given(output["instance_loss"], output.get("loss"))
        root = output.get("loss") if isinstance(output, Mapping) else output
        if len(self._backwards) > 1:
            self.reason = (
                f"{self._where()} runs backward {len(self._backwards)} times, so that no single loss is an "
                f"instance's. {WAYS_OUT}"
            )
            return None
        if self._backwards:
            contributions = self._backwards[0]
        elif isinstance(root, Tensor) and root.requires_grad:
            contributions = self._contributions(root)
        else:
            contributions = []
        if not contributions:
            missed = "".join(f" {note}." for note in dict.fromkeys(self._missed))
            self.reason = (
                f"No per-instance loss was found behind what {self._where()} returned.{missed} {WAYS_OUT}"
            )
            return None
        return self._combine(contributions)

    def _contributions(self, root: Tensor) -> list[tuple[_Captured, Tensor | None]]:
        """The captured losses behind ``root``, with their coefficients: root's gradient there, None for root itself."""
        if not root.requires_grad or not self._captured:
            return []
        if len(self._captured) == 1 and get_gradient_edge(root) == self._captured[0].edge:
            return [(self._captured[0], None)]
        coefficients = torch.autograd.grad(
            root, [captured.edge for captured in self._captured], retain_graph=True, allow_unused=True
        )
        return [
            (captured, coefficient)
            for captured, coefficient in zip(self._captured, coefficients, strict=True)
            if coefficient is not None
        ]

    def _combine(self, contributions: list[tuple[_Captured, Tensor | None]]) -> Observation:
        folded = [self._fold(captured, coefficient) for captured, coefficient in contributions]
        if len(folded) == 1:
            losses, scores, _ = folded[0]
        else:
            # Relative to the largest: independent of the scale of the whole.
            shares = torch.stack([share for _, _, share in folded])
            shares = shares / shares.abs().max().clamp(min=torch.finfo(shares.dtype).tiny)
            losses = sum(share * losses for share, (losses, _, _) in zip(shares, folded, strict=True))
            scores = torch.linalg.vector_norm(
                torch.stack([share * scores for share, (_, scores, _) in zip(shares, folded, strict=True)]),
                dim=0,
            )
        labels = next((each.labels for each, _ in contributions if each.labels is not None), None)
        source = " + ".join(dict.fromkeys(each.source for each, _ in contributions))
        return Observation(
            losses, losses.clone() if self._capture.score == "loss" else scores, labels, source
        )

    def _fold(self, captured: _Captured, coefficient: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses and scores of the instances, and the loss's share: the sum of the coefficients of its rows."""
        losses, norms, mask = captured.elements
        counts = torch.ones_like(losses) if mask is None else mask.to(losses.dtype)
        share = losses.new_ones(()) if coefficient is None else coefficient.detach().float()
        if share.ndim:
            # The user's own reduction says how much each row counts: its mask, for one.
            rows = share.reshape(*losses.shape, -1).sum(-1) if share.numel() != losses.numel() else share
            counts = counts * rows.reshape(losses.shape).abs()
            share = share.sum()
        elif captured.reduction == "sum":
            share = share * counts.sum()
        elif captured.reduction == "batchmean":
            share = share * (counts.numel() / captured.layout.num_rows)
        losses, scores = fold(losses, norms, counts, captured.layout, captured.named.tokens)
        return losses, scores, share

    def _given(self, losses: Any, root: Any) -> Observation | None:
        """What the user says the instances' losses are."""
        if not isinstance(losses, Tensor) or losses.shape != (self._batch_size,):
            shape = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            self.reason = (
                f"The instance_loss of {self._where()} must be a tensor of shape ({self._batch_size},), one loss for "
                f"each instance of the batch, got {shape}."
            )
            return None
        if self._weights is not None and not self._is_weighted(losses, root):
            self.reason = (
                f"The instance_loss of {self._where()} is not part of the returned loss's graph, so that the "
                "instances' weights cannot enter: return it undetached, or pass weights='none'."
            )
            return None
        values = losses.detach().float().clone()
        return Observation(values, values.clone(), None, f"instance_loss of {self._where()}")

    def _is_weighted(self, losses: Tensor, root: Any) -> bool:
        """Let the weights enter at the user's own losses, unless they entered at named losses before."""
        assert self._weights is not None
        if not isinstance(root, Tensor) or not root.requires_grad:
            return bool(self._backwards and self._backwards[0])
        if self._contributions(root):
            return True
        if not losses.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(root, losses, retain_graph=True, allow_unused=True)
        if gradient is None:
            return False
        weights = self._weights.to(losses.dtype)
        losses.register_hook(lambda gradient: gradient * weights)  # type: ignore[no-untyped-call]
        return True

    def _where(self) -> str:
        return "training_step" if self._module is None else f"{type(self._module).__name__}.training_step"

    def _release(self) -> None:
        """Hold nothing of the step: neither its graph nor its batch."""
        self._captured, self._backwards, self._batch = [], [], None


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _is_split_alike(arguments: Arguments) -> bool:
    """Whether log_softmax and nll_loss, called here, compute what cross_entropy does, bit for bit."""
    logits = arguments["input"]
    # Autocast treats the one call otherwise than the two.
    is_cast = torch.is_autocast_enabled(logits.device.type) and logits.dtype != torch.float32
    return has_class_indices(arguments) and not is_cast


def _caller() -> str:
    """File and line of the call, outside torch and this module."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_code.co_filename == __file__ or frame.f_code.co_filename.startswith(_TORCH)
    ):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
