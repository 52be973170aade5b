"""The losses of ``torch.nn.functional``: per-row values, and the norms of their gradients in closed form.

A norm is that of one row's loss at its *canonical* input, so that it falls as the instance is fitted: at the logits
for everything that is a softmax or a sigmoid inside; the loss itself where the slope is constant (l1, hinges).

Shapes: R rows, C classes, d further dimensions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.losses.pieces import pieces_of, whole
from lightning_autoassist.trainer_support.arrays import on_device

Arguments = dict[str, Any]
Norms = Callable[[Arguments, Tensor], Tensor]

_CACHED_NUMBERS = 2**17


class ElementwiseLoss(NamedTuple):
    """What one call of a loss says about its rows, all detached.

    Attributes:
        losses: Unreduced losses, shape ``(R, *d)``, float32.
        norms: Gradient norms of the elements of ``losses``, same shape; None: the losses stand for them.
        mask: False where ``ignore_index`` makes an element count for nothing, so that its loss and norm are 0, same
            shape; None where all are known to count.
    """

    losses: Tensor
    norms: Tensor | None
    mask: Tensor | None


class NamedLoss:
    """One loss function: which inputs carry gradients, and its gradient norms.

    Args:
        function: The function of ``torch.nn.functional``.
        norms: Gets the call's arguments (tensors detached, floats as float32; with an ``ignore_index`` also
            "counts", the mask of :class:`ElementwiseLoss`) and the unreduced losses, returns the norms in the
            losses' shape.
        inputs: Names of the differentiable inputs, which have one row for each row of the loss.
        rows_axis: Where the inputs hold the rows.
        num_axes: How many axes an input needs to hold several rows; with fewer it is one row.
        tokens: Whether an instance's norms are averaged, as those of tokens and pixels, or are coordinates of
            one gradient, as those of a regression's outputs.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        norms: Norms,
        inputs: tuple[str, ...] = ("input",),
        *,
        rows_axis: int = 0,
        num_axes: int = 1,
        tokens: bool = False,
    ) -> None:
        self.function = function
        self.norms = norms
        self.inputs = inputs
        self.rows_axis = rows_axis
        self.num_axes = num_axes
        self.tokens = tokens
        self.name: str = function.__name__
        parameters = inspect.signature(function).parameters
        self.parameters = tuple(parameters)
        self.defaults = {name: parameter.default for name, parameter in parameters.items()}

    def bind(self, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
        """All arguments of a call by name, with the deprecated ``size_average`` and ``reduce`` resolved."""
        arguments = {**self.defaults, **dict(zip(self.parameters, args, strict=False)), **kwargs}
        size_average, reduce = arguments.pop("size_average", None), arguments.pop("reduce", None)
        if reduce is False:
            arguments["reduction"] = "none"
        elif size_average is not None or reduce is not None:
            arguments["reduction"] = "sum" if size_average is False else "mean"
        return arguments

    def num_rows(self, arguments: Arguments) -> int:
        """R, over which inputs with a single row are broadcast."""
        inputs = [arguments[name] for name in self.inputs]
        return max((each.shape[self.rows_axis] for each in inputs if _ndim(each) >= self.num_axes), default=1)

    def elements(
        self, arguments: Arguments, unreduced: Tensor | None = None, *, with_norms: bool = True
    ) -> ElementwiseLoss:
        """Losses and norms of a call's rows.

        Args:
            arguments: From :meth:`bind`.
            unreduced: The rows, where they are known; else the call is repeated with reduction "none".
            with_norms: Else the losses stand for them.
        """
        with torch.no_grad():
            detached = {name: _detached(value) for name, value in arguments.items()}
            mask = _mask(detached)
            pieces = [self._rows(*rows, with_norms) for rows in pieces_of(self.function, detached, unreduced, mask)]
            losses, norms = whole(pieces)
            if self.function is F.ctc_loss and arguments["reduction"] == "mean":
                # Its mean, alone among torch's, is of the losses by the lengths of their targets.
                lengths = on_device(torch.as_tensor(detached["target_lengths"]), losses.device).clamp(min=1)
                losses, norms = losses / lengths, None if norms is None else norms / lengths
            return ElementwiseLoss(losses, norms, mask)

    def _rows(
        self, arguments: Arguments, unreduced: Tensor | None, mask: Tensor | None, with_norms: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Losses and norms of some rows, see :meth:`elements`."""
        unreduced = self.function(**{**arguments, "reduction": "none"}) if unreduced is None else unreduced
        # A copy of what users were given: they write `loss *= mask` into it.
        losses = unreduced.detach().to(torch.float32, copy=arguments["reduction"] == "none")
        if self.function is F.kl_div and losses.ndim:
            losses = losses.sum(distribution_axis(losses))
        if not with_norms:
            return losses, None
        wide = {name: _wide(value) for name, value in arguments.items()}
        if "ignore_index" in wide:
            wide["counts"] = mask
        return losses, self.norms(wide, losses)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _ndim(value: Any) -> int:
    return value.ndim if isinstance(value, Tensor) else 0


def _wide(value: Any) -> Any:
    is_number = isinstance(value, Tensor) and (value.is_floating_point() or value.dtype == torch.bool)
    return value.float() if is_number else value


def _mask(arguments: Arguments) -> Tensor | None:
    target = arguments.get("target")
    if "ignore_index" not in arguments or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    mask = counted(arguments)
    return None if answers_at_once(mask) and bool(mask.all()) else mask


def counted(arguments: Arguments) -> Tensor:
    """Which class indices are not ``ignore_index``; as int64, for in uint8 156 and -100 are one."""
    mask: Tensor = arguments["target"].long().ne(arguments["ignore_index"])
    return mask


def answers_at_once(values: Tensor) -> bool:
    """Whether values can be looked at without waiting for a device, and outside of compiled code."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _hot(arguments: Arguments, axis: int) -> tuple[Tensor, Tensor | None]:
    """Target classes, with the axis of the classes, and what :func:`_mask` says; 0 where a target does not count."""
    target: Tensor = arguments["target"].long()
    counts: Tensor | None = arguments["counts"] if "counts" in arguments else _mask(arguments)
    return (target if counts is None else target * counts).unsqueeze(axis), counts


def class_axis(logits: Tensor) -> int:
    """Where class losses hold the classes: ``(C,)``, ``(R, C)``, ``(R, C, *d)``."""
    return min(1, logits.ndim - 1)


def distribution_axis(values: Tensor) -> int:
    """Where ``kl_div``, which does not say, holds its distributions: axis 1 of images, else the last."""
    return 1 if values.ndim >= 4 else values.ndim - 1


def has_class_indices(arguments: Arguments) -> bool:
    """Whether a ``cross_entropy`` is ``nll_loss`` of ``log_softmax``: no smoothing, no class probabilities."""
    return not (arguments["target"].is_floating_point() or arguments["label_smoothing"])


def is_split_alike(arguments: Arguments) -> bool:
    """Whether log_softmax and nll_loss, called outside of ``cross_entropy``, compute what it does, bit for bit."""
    logits = arguments["input"]
    # Autocast treats the one call otherwise than the two.
    is_cast = logits.dtype != torch.float32 and torch.is_autocast_enabled(logits.device.type)
    return has_class_indices(arguments) and not is_cast


# ---- norms


def loss_itself(arguments: Arguments, losses: Tensor) -> Tensor:
    """For slopes that do not fall as the instance is fitted."""
    return losses


def nll_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    r""":math:`w_t \| \exp(\text{lp}) - e_t \|`, the gradient at the logits behind the log-probabilities."""
    log_probs, weight = arguments["input"], arguments["weight"]
    axis = class_axis(log_probs)
    hot, counts = _hot(arguments, axis)
    norms = _norms(torch.exp, log_probs, hot, axis)
    norms = norms if counts is None else norms.where(counts, 0.0)
    return norms if weight is None else norms * weight[hot.squeeze(axis)]


def nll_norms_in_backward(arguments: Arguments, gradient: Tensor, upstream: Tensor) -> Tensor:
    """What :func:`nll_norms` gives, from the gradient at the logits and the one at the log-probabilities.

    Row i of the gradient is :math:`g_i w_t (p - e_t)`, where the one upstream holds :math:`-g_i w_t` at the target: the
    quotient knows nothing of reduction, loss scaling, accumulation and instance weights.
    """
    target, weight = arguments["target"], arguments["weight"]
    axis = class_axis(gradient)
    counts = counted(arguments)
    hot = target.long().where(counts, 0).unsqueeze(axis)
    scale = upstream.gather(axis, hot).squeeze(axis).abs().float()
    norms = torch.linalg.vector_norm(gradient, dim=axis, dtype=torch.float32)
    norms = torch.where(counts & (scale > 0), norms / scale, 0.0)
    return norms if weight is None else norms * weight[hot.squeeze(axis)]


def _norms(to_probs: Callable[..., Tensor], values: Tensor, hot: Tensor, axis: int, smoothing: float = 0.0) -> Tensor:
    r"""Norms of probabilities less one-hot targets, of which a part may be spread evenly over the C classes.

    With :math:`q = p - (1 - \epsilon) e_t` and targets :math:`(1 - \epsilon) e_t + \epsilon / C` the norm is
    :math:`\sqrt{\| q \|^2 - \epsilon^2 / C}`, as q adds up to :math:`\epsilon`.
    """
    if axis and values.numel() > _CACHED_NUMBERS and answers_at_once(values):
        # Piece by piece within the processor's cache, in one buffer: 3 times as fast as whole at 2048 x 8000.
        num_rows = max(1, _CACHED_NUMBERS // max(1, values[:1].numel()))
        buffer = torch.empty_like(values[:num_rows])
        pieces = zip(values.split(num_rows), hot.split(num_rows), strict=True)
        norms = torch.cat(
            [_less_hot(to_probs(piece, out=buffer[: len(piece)]), hot, axis, 1 - smoothing) for piece, hot in pieces]
        )
    else:
        norms = _less_hot(to_probs(values), hot, axis, 1 - smoothing)
    if smoothing:
        norms = norms.square().sub(smoothing**2 / values.shape[axis]).clamp(min=0).sqrt()
    return norms


def _less_hot(probs: Tensor, hot: Tensor, axis: int, height: float) -> Tensor:
    """Norms of probabilities less ``height`` at the targets; overwrites the probabilities."""
    probs.scatter_add_(axis, hot, torch.full_like(hot, -height, dtype=probs.dtype))
    norms: Tensor = torch.linalg.vector_norm(probs, dim=axis)
    return norms


def cross_entropy_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    r""":math:`\| p \sum_c s_c - s \|` with smoothed, class-weighted targets s."""
    logits, target, weight = arguments["input"], arguments["target"], arguments["weight"]
    axis = class_axis(logits)
    if has_class_indices(arguments):
        return nll_norms({**arguments, "input": logits.log_softmax(axis)}, losses)
    counts = torch.ones_like(losses, dtype=torch.bool)
    if not target.is_floating_point():
        counts = counted(arguments)
        hot, _ = _hot(arguments, axis)
        if weight is None:
            softmax = functools.partial(torch.softmax, dim=axis)
            smoothed: Tensor = _norms(softmax, logits, hot, axis, arguments["label_smoothing"]).where(counts, 0.0)
            return smoothed
        target = torch.zeros_like(logits).scatter_(axis, hot, 1.0)
    smoothing = arguments["label_smoothing"]
    target = target * (1 - smoothing) + smoothing / logits.shape[axis]
    if weight is not None:
        target = target * weight.reshape(-1, *[1] * (logits.ndim - 1 - axis))
    gradient = logits.softmax(axis).mul_(target.sum(axis, keepdim=True)).sub_(target)
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=axis).where(counts, 0.0)
    return norms


def kl_div_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    r""":math:`\| \exp(\text{lp}) \sum_c t_c - t \|`, the gradient at the logits behind log-probabilities."""
    log_probs, target = arguments["input"], arguments["target"]
    if arguments["log_target"]:
        target = target.exp()
    axis = distribution_axis(log_probs)
    gradient = log_probs.exp().mul_(target.sum(axis, keepdim=True)).sub_(target)
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=axis)
    return norms


def bce_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """|p - y|, the gradient at the logits; that at the probabilities grows to 1e12."""
    return _scaled(_distance(arguments), arguments["weight"])


def bce_with_logits_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """|sigmoid(x) - y|, with the two classes weighted."""
    logits, target, positive = arguments["input"], arguments["target"], arguments["pos_weight"]
    probs = logits.sigmoid()
    positive = 1.0 if positive is None else positive
    gradient = (1 - target) * probs - positive * target * (1 - probs)
    return _scaled(gradient.abs(), arguments["weight"])


def mse_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """2 |x - y|."""
    return _scaled(2 * _distance(arguments), arguments.get("weight"))


def smooth_l1_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """|x - y| / beta, at most 1; at beta = 0 the slope is constant."""
    if arguments["beta"] == 0:
        return losses
    return (_distance(arguments) / float(arguments["beta"])).clamp(max=1)


def huber_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """|x - y|, at most delta."""
    return _scaled(_distance(arguments).clamp(max=arguments["delta"]), arguments.get("weight"))


def gaussian_nll_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """|x - y| / sigma, the gradient at the mean in units of the deviation: as it stands it is unbounded."""
    variance = on_device(torch.as_tensor(arguments["var"], dtype=torch.float32), losses.device)
    distance = _distance(arguments)
    if variance.ndim == distance.ndim - 1 and variance.shape == distance.shape[:-1]:
        variance = variance.unsqueeze(-1)
    norms: Tensor = distance / variance.clamp(min=arguments["eps"]).sqrt()
    return norms


def poisson_nll_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """|rate - y|, the gradient at the logarithm of the rate, in both parametrisations."""
    rate = arguments["input"].exp() if arguments["log_input"] else arguments["input"]
    return _distance({**arguments, "input": rate})


def soft_margin_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """sigmoid(-y x)."""
    logits: Tensor = arguments["input"]
    target: Tensor = arguments["target"]
    return (-target * logits).sigmoid() * target.abs()


def multilabel_soft_margin_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """The norm over the classes of sigmoid(x) - y, averaged like their losses."""
    gradient = _scaled(arguments["input"].sigmoid() - arguments["target"], arguments["weight"])
    axis = class_axis(gradient)
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=axis) / gradient.shape[axis]
    return norms


def ctc_norms(arguments: Arguments, losses: Tensor) -> Tensor:
    """By autograd: torch's own backward of this loss already is the gradient at the logits."""
    with torch.enable_grad():
        log_probs = arguments["log_probs"].clone().requires_grad_()
        rows = F.ctc_loss(**{**arguments, "log_probs": log_probs, "reduction": "none"})
        (gradient,) = torch.autograd.grad(rows.sum(), log_probs)
    norms: Tensor = torch.linalg.vector_norm(gradient, dim=(0, 2) if gradient.ndim == 3 else (0, 1))
    return norms


def _distance(arguments: Arguments) -> Tensor:
    difference: Tensor = arguments["input"] - arguments["target"]
    return difference.abs()


def _scaled(norms: Tensor, weight: Tensor | None) -> Tensor:
    return norms if weight is None else norms * weight


_TRIPLET = ("anchor", "positive", "negative")

LOSSES: dict[Callable[..., Any], NamedLoss] = {
    loss.function: loss
    for loss in (
        NamedLoss(F.cross_entropy, cross_entropy_norms, ("input", "target"), num_axes=2, tokens=True),
        NamedLoss(F.nll_loss, nll_norms, num_axes=2, tokens=True),
        NamedLoss(F.kl_div, kl_div_norms, ("input", "target"), num_axes=2, tokens=True),
        NamedLoss(F.binary_cross_entropy, bce_norms, ("input", "target")),
        NamedLoss(F.binary_cross_entropy_with_logits, bce_with_logits_norms, ("input", "target")),
        NamedLoss(F.mse_loss, mse_norms, ("input", "target")),
        NamedLoss(F.l1_loss, loss_itself, ("input", "target"), tokens=True),
        NamedLoss(F.smooth_l1_loss, smooth_l1_norms, ("input", "target")),
        NamedLoss(F.huber_loss, huber_norms, ("input", "target")),
        NamedLoss(F.gaussian_nll_loss, gaussian_nll_norms, ("input", "target", "var")),
        NamedLoss(F.poisson_nll_loss, poisson_nll_norms, ("input", "target")),
        NamedLoss(F.ctc_loss, ctc_norms, ("log_probs",), rows_axis=1, num_axes=3),
        NamedLoss(F.hinge_embedding_loss, loss_itself, tokens=True),
        NamedLoss(F.margin_ranking_loss, loss_itself, ("input1", "input2"), tokens=True),
        NamedLoss(F.multi_margin_loss, loss_itself, num_axes=2, tokens=True),
        NamedLoss(F.multilabel_margin_loss, loss_itself, num_axes=2, tokens=True),
        NamedLoss(F.multilabel_soft_margin_loss, multilabel_soft_margin_norms, num_axes=2),
        NamedLoss(F.soft_margin_loss, soft_margin_norms),
        NamedLoss(F.triplet_margin_loss, loss_itself, _TRIPLET, num_axes=2, tokens=True),
        NamedLoss(F.triplet_margin_with_distance_loss, loss_itself, _TRIPLET, num_axes=2, tokens=True),
        NamedLoss(F.cosine_embedding_loss, loss_itself, ("input1", "input2"), num_axes=2, tokens=True),
    )
}
