"""One training step under watch: which losses it calls, and whose they are once it has returned one number.

Loss functions are seen at their call, by a torch function mode that is active while the step runs: early-bound
imports and the modules of ``torch.nn`` included. The user's call stays as it is; what is learnt of it is detached.

Shapes: B batch, R rows of a loss (B, or a multiple of it), d further dimensions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import Self, override

from lightning_autoassist.capture.attribution import MINOR_SHARE, Missed
from lightning_autoassist.capture.autograd_graph import losses_in_graph
from lightning_autoassist.capture.captured_loss import (
    CapturedLoss,
    SoftmaxNorms,
    WeightedLoss,
    class_target,
    combine,
    contributions,
    explained,
    inside_of,
    margins_in,
    margins_of,
    norms_in_backward,
    scored_in_backward,
    scripted,
    weigh_at,
)
from lightning_autoassist.capture.instance_layout import InstanceLayout
from lightning_autoassist.capture.loss_weights import IN_FORCE, weigh_given, weighted_call, why_not_instance_losses
from lightning_autoassist.capture.messages import (
    WAYS_OUT,
    because_of,
    out_of_order,
    several_backwards,
    sources,
    why_changed,
    why_no_layout,
    why_no_weights,
    why_nothing,
    why_too_little,
)
from lightning_autoassist.capture.observation import InstanceLosses
from lightning_autoassist.capture.place import caller, place_of_call
from lightning_autoassist.capture.reductions import Reduction, own_node
from lightning_autoassist.losses.functional import LOSSES, Arguments, NamedLoss, class_axis, is_split_alike
from lightning_autoassist.trainer_support.batch_parts import leaves_of

if TYPE_CHECKING:
    from lightning_autoassist.capture.loss_capture import InstanceLossCapture

# By these a hand-written loss ends in one number.
_REDUCTIONS = frozenset({torch.mean, torch.sum, Tensor.mean, Tensor.sum})


class CapturedStep(TorchFunctionMode):
    """One watched training step: enter it, run the step, leave it, then :meth:`observe` what the step returned.

    Attributes:
        reason: Why :meth:`observe` found nothing, in words for the user; None where it found something.
        is_final: Whether no later step will find anything either.
        is_paused: Whether it overlooks the calls that are made now.
    """

    def __init__(
        self,
        capture: InstanceLossCapture,
        batch: Any,
        batch_size: int,
        weights: Tensor | None,
        module: nn.Module | None,
        with_margins: bool = False,
    ) -> None:
        super().__init__()
        self.reason: str | None = None
        self.is_final = False
        self.is_paused = False
        self._capture = capture
        self._batch = batch
        self._batch_size = batch_size
        self._weights = weights
        self._module = module
        self._with_margins = with_margins
        self._named, self._reduced = list[CapturedLoss](), list[Reduction]()
        self._backwards: list[list[WeightedLoss]] = []
        # Now: the step may take them out of the batch.
        self._leaves = [] if capture.own_labels.is_refused else list(leaves_of(batch))
        self._rows = capture._row_checks.tracker(batch, batch_size)
        self._is_watched = self._rows is not None or capture.explain is not None or not capture._direct.is_known
        self._missed, self._unshown = list[Missed](), list[Reduction]()

    @override
    def __enter__(self) -> Self:
        if self._is_watched:
            super().__enter__()  # type: ignore[no-untyped-call]
        self._outer_weights = IN_FORCE.set(self._weights)
        return self

    @override
    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_watched:
            super().__exit__(exc_type, exc_value, traceback)  # type: ignore[no-untyped-call]
        IN_FORCE.reset(self._outer_weights)
        if exc_type is not None:
            self._release()

    def observe(self, output: Any) -> InstanceLosses | None:
        """The instances' losses and scores. To be called once, after the step and before backward.

        Args:
            output: What the step returned: the loss, a mapping with it under "loss", or None.

        Returns:
            The observation, or None with :attr:`reason` set. Its values are complete when backward has run.
        """
        try:
            observation = self._observe(output)
        except Exception as error:  # whatever it is, it must not cost the user the run
            observation = None
            self._capture._direct.refuse()
            self.reason = f"{type(error).__name__} while the losses were looked at: {error}. {WAYS_OUT}"
        self._release()
        return None if observation is None else observation.plain()

    # ---- while the step runs

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Arguments | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # All functions of the user's step come by here, so that those which are no losses are let through at once.
        is_loss = func in LOSSES or func in _REDUCTIONS or func is Tensor.backward
        if self.is_paused or (self._rows is None and not is_loss):
            return func(*args, **kwargs)
        result = self._call(func, args, kwargs)
        if self._rows is not None and not torch.compiler.is_compiling():
            self._rows.note(func, args, kwargs, result)
        return result

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Arguments) -> Any:
        if func in LOSSES:
            return self._watch(LOSSES[func], args, kwargs)
        if func is Tensor.backward:
            self._note_backward(args[0])
        result = func(*args, **kwargs)
        if func in _REDUCTIONS:
            self._note_reduction(args[0] if args else kwargs.get("input"), result)
        return result

    def _watch(self, named: NamedLoss, args: tuple[Any, ...], kwargs: Arguments) -> Any:
        arguments = named.bind(args, kwargs)
        inputs = [arguments[name] for name in named.inputs]
        if not torch.is_grad_enabled() or not any(_requires_grad(value) for value in inputs):
            return named.function(*args, **kwargs)  # a metric
        source = f"{named.name} {caller()}"
        layout = self._layout(named, arguments, source)
        if isinstance(layout, str):
            return self._miss(layout, named.function(*args, **kwargs))
        self._check_rows(source, inputs, [arguments.get("target")], layout)
        softmax = None
        if named.function is F.cross_entropy and is_split_alike(arguments):
            # What torch does inside, so that the log-probabilities serve the score as well.
            named = LOSSES[F.nll_loss]
            logits, _ = arguments["input"], arguments.pop("label_smoothing")
            arguments["input"] = F.log_softmax(logits, class_axis(logits))
            args, kwargs = (), arguments
            softmax = norms_in_backward(arguments) if self._capture.score == "gradient_norm" else None
        unreduced = None
        # Of unreduced rows it is not known yet whether the weights are to enter there, or where the user reduces them.
        if self._weights is None or (arguments["reduction"] == "none" and not torch.compiler.is_compiling()):
            result = named.function(*args, **kwargs)
        else:
            try:
                result, unreduced = weighted_call(named, arguments, layout, self._weights)
            except Exception as error:  # the user's own error comes again, ours must not cost the step
                return self._miss(because_of(source, error), named.function(*args, **kwargs))
        if unreduced is None and arguments["reduction"] == "none":
            unreduced = result
        named, arguments = inside_of(named, arguments, result)
        self._note(named, arguments, source, layout, result, unreduced, softmax)
        return result

    def _note(
        self,
        named: NamedLoss,
        arguments: Arguments,
        source: str,
        layout: InstanceLayout,
        result: Tensor,
        unreduced: Tensor | None,
        softmax: SoftmaxNorms | None,
    ) -> None:
        with_norms = self._capture.score == "gradient_norm" and softmax is None
        try:
            elements = named.elements(arguments, unreduced, with_norms=with_norms)
            # Compiled code cannot be asked for the edge.
            edge = result if torch.compiler.is_compiling() else get_gradient_edge(result)
            is_open = arguments["reduction"] == "none" and isinstance(edge, GradientEdge)
            weigh = weigh_at(result, layout) if is_open and self._weights is not None else None
            labels = class_target(named, arguments, self._batch_size)
        except Exception as error:  # the step itself went well: it must go on
            self._miss(because_of(source, error), result)
            return
        margins = margins_in(named, arguments, elements, layout) if self._with_margins else None
        whole = source, arguments["reduction"], edge, elements, layout, named.tokens, labels, weigh, False
        self._named.append(CapturedLoss(*whole, softmax, margins))

    def _note_backward(self, root: Tensor) -> None:
        """Look at the loss of manual optimization before its backward, which frees the graph."""
        try:
            parts = self._attribute(root)
        except Exception as error:  # the step must go on
            parts = []
            self._miss(because_of("backward", error))
        self._backwards.append(parts)

    def _note_reduction(self, values: Any, result: Any) -> None:
        """A mean or sum of everything in a tensor may be the end of a loss by hand, or of a loss's rows."""
        if torch.compiler.is_compiling() or not (_requires_grad(values) and _requires_grad(result)):
            return
        if not (result.ndim == 0 < values.ndim and result.grad_fn is not None):
            return
        reduction = Reduction(values, own_node(result.grad_fn), place_of_call())
        self._reduced.append(reduction)
        if values.shape[0] == self._batch_size and self._rows is not None:
            self._check_rows(reduction.source, [values], [], InstanceLayout((self._batch_size,), 0, 1))

    def _check_rows(self, source: str, inputs: list[Any], others: list[Any], layout: InstanceLayout) -> None:
        if not torch.compiler.is_compiling() and self._rows is not None:
            self._rows.check(source, [value for value in inputs if _requires_grad(value)], others, layout)

    def _layout(self, named: NamedLoss, arguments: Arguments, source: str) -> InstanceLayout | str:
        """The instances that the loss's rows belong to, or a message that says why they are unknown."""
        orders, given = self._capture._row_orders, (self._batch, self._batch_size)
        try:
            layout = orders.layout(named, arguments, source, *given, is_seen=self._is_watched)
        except Exception as error:  # the step must go on
            return because_of(source, error)
        return why_no_layout(source, named.num_rows(arguments), self._batch_size) if layout is None else layout

    def _miss(self, note: str, result: Any = None) -> Any:
        node = result.grad_fn if isinstance(result, Tensor) and not torch.compiler.is_compiling() else None
        self._missed.append(Missed(note, node))
        return result

    # ---- after the step

    def _observe(self, output: Any) -> InstanceLosses | None:
        root = output.get("loss") if isinstance(output, Mapping) else output
        if isinstance(output, Mapping) and output.get("instance_loss") is not None:
            return self._given(output["instance_loss"], root, "training_step")
        method = getattr(type(self._module), "instance_loss", None)
        if inspect.isfunction(method):  # and not some attribute that happens to have this name
            return self._given(method(self._module, self._batch, output), root, "instance_loss")
        if len(self._backwards) > 1:
            self.reason = several_backwards(self._where(), len(self._backwards))
            return None
        parts = self._backwards[0] if self._backwards else self._attribute(root)
        if not parts:
            self._capture._direct.refuse()
            nothing = self._missed, self._unshown, self._named
            self.reason = why_nothing(self._where(), *nothing) if self._is_watched else why_changed(self._where())
            return None
        if self._capture.share.ratio < MINOR_SHARE:
            self.reason = why_too_little(self._where(), self._capture.share, parts)
            return None
        if self._is_out_of_order([part.found.source for part in parts]):
            return None
        if self._is_watched and self._capture._direct.is_wanted:
            self._compare(root, parts)
        if self._capture.explain is not None:
            self._capture.explain([explained(part) for part in parts])
        is_left_to_backward = len(parts) == 1 and parts[0].found.softmax is not None and not self._backwards
        losses, scores = scored_in_backward(parts[0]) if is_left_to_backward else combine(parts)
        targets = [part.found.labels for part in parts if part.found.labels is not None]
        labels = self._capture.own_labels.of(targets, self._leaves, self._batch_size)
        scores = losses.clone() if self._capture.score == "loss" else scores
        margins, others = margins_of(parts) or (None, None)
        # Where targets are no property of the instances, their classes are none either.
        return InstanceLosses(losses, scores, labels, sources(parts), margins, None if labels is None else others)

    def _attribute(self, root: Any) -> list[WeightedLoss]:
        """The losses behind ``root``; weights enter where they have not yet."""
        if not _requires_grad(root):
            return []
        if not self._is_watched:
            return self._unwatched(root)
        capture, attribution = self._capture, self._capture._attribution
        parts, self._unshown = attribution.parts(root, self._named, self._reduced, self._batch_size)
        if not parts and not self._missed:  # else the graph holds just what was missed
            parts = contributions(root, self._scripted(root))
        if not parts:
            return []
        capture.warn_of_hand_written(parts)
        capture.share = attribution.share(root, parts, self._missed, self._unshown)
        if capture.share.ratio >= MINOR_SHARE:
            capture.has_other_terms |= capture.share.has_other_terms
            self._weigh(parts)
        return parts

    def _weigh(self, parts: list[WeightedLoss]) -> None:
        for part in parts:
            if part.found.weigh is not None and self._weights is not None:
                part.found.weigh(self._weights)

    def _scripted(self, root: Tensor) -> list[CapturedLoss]:
        """The losses whose calls were not seen, such as those in scripted code; the graph has them."""
        found = []
        for loss in losses_in_graph(root):
            layout = self._layout(loss.named, loss.arguments, loss.source)
            if isinstance(layout, str):
                self._miss(layout)
            else:
                found.append(scripted(loss, layout, with_margins=self._with_margins))
        return found

    def _unwatched(self, root: Tensor) -> list[WeightedLoss]:
        """The losses behind what an unwatched step returned; none where anything else is in it."""
        found, capture = self._read(root), self._capture
        parts = [] if found is None else [WeightedLoss(found, None)]
        if found is None:
            capture._direct.refuse()
            parts = contributions(root, self._scripted(root))
            if parts and capture._attribution.share(root, parts, self._missed, []).has_other_terms:
                return []
        self._weigh(parts)
        return parts

    def _read(self, root: Tensor) -> CapturedLoss | None:
        capture = self._capture
        return capture._direct.read(root, self._layout, capture.score, with_margins=self._with_margins)

    def _compare(self, root: Any, parts: list[WeightedLoss]) -> None:
        capture, is_only = self._capture, len(self._named) == 1 and not self._missed and not self._backwards
        is_plain = is_only and capture._row_orders.are_all_told
        capture._direct.compare(root, parts, self._read if is_plain else None)

    def _given(self, losses: Any, root: Any, giver: str) -> InstanceLosses | None:
        """What the user says the instances' losses are."""
        source = f"instance_loss of {self._where(giver)}"
        self.reason = why_not_instance_losses(source, losses, self._batch_size)
        if self.reason is not None:
            return None
        if self._weights is not None and not self._is_weighted(losses, root):
            self.reason = why_no_weights(source)
            return None
        self._check_rows(source, [losses], [], InstanceLayout((self._batch_size,), 0, 1))
        if self._is_out_of_order([source]):
            return None
        values = losses.detach().float().clone()
        return InstanceLosses(values, values.clone(), None, source)

    def _is_weighted(self, losses: Tensor, root: Any) -> bool:
        """Let the weights enter at named losses, or else at the user's own."""
        assert self._weights is not None
        if self._backwards:
            return all(self._backwards)
        if not _requires_grad(root):
            return False
        parts = contributions(root, self._named)
        if parts:
            self._weigh(parts)
            return True
        return weigh_given(losses, root, self._weights)

    def _is_out_of_order(self, sources: list[str]) -> bool:
        """Whether the rows of losses were seen in another order than the batch's, in this step or an earlier one."""
        problem = self._capture._row_checks.end(self._rows, sources)
        if problem is not None:
            self.is_final = True
            self.reason = out_of_order(problem)
        return problem is not None

    def _where(self, method: str = "training_step") -> str:
        return method if self._module is None else f"{type(self._module).__name__}.{method}"

    def _release(self) -> None:
        """Release the step's graph and batch."""
        self._named, self._reduced, self._backwards, self._batch = [], [], [], None
        self._leaves, self._rows = [], None
        self._missed, self._unshown = [], []


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
