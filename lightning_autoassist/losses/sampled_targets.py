"""Gradients of losses with targets that are drawn from the model's own predictions, as the Fisher matrix has them.

Each loss is taken for the negative log-likelihood of a distribution over targets: cross-entropies for that of a
categorical one, binary ones for that of a Bernoulli one, the squared error for that of a Gaussian of variance 1/2.

Source: Kunstner, Balles & Hennig, Limitations of the Empirical Fisher Approximation for Natural Gradient Descent,
NeurIPS 2019, arXiv:1905.12558.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_autoassist.losses.functional import Arguments, class_axis, counted

Sampler = Callable[[Tensor, Arguments, torch.Generator], Tensor]


def sampled_gradient(
    function: Callable[..., Any], arguments: Arguments, generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """A loss's input, and the gradient there of the sum of the loss's elements for drawn targets.

    Args:
        function: Of ``torch.nn.functional``.
        arguments: Of the call, by name.
        generator: Draws, on the input's device.

    Returns:
        Input and gradient, of one shape; None for losses that are no such likelihood.

    Example:
        >>> probs = torch.tensor([[0.2, 0.8]])
        >>> arguments = {"input": probs.log(), "target": torch.tensor([0]), "ignore_index": -100}
        >>> sampled_gradient(F.nll_loss, arguments, torch.Generator().manual_seed(0))[1].abs()
        tensor([[0., 1.]])
    """
    sampler = _SAMPLERS.get(function)
    if sampler is None:
        return None
    with torch.no_grad():
        values = arguments["input"].detach()
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        return arguments["input"], sampler(wide, arguments, generator).to(values.dtype)


def _nll(log_probs: Tensor, arguments: Arguments, generator: torch.Generator) -> Tensor:
    return -_drawn_classes(log_probs.exp(), arguments, generator)


def _cross_entropy(logits: Tensor, arguments: Arguments, generator: torch.Generator) -> Tensor:
    probs = logits.softmax(class_axis(logits))
    hot = _drawn_classes(probs, arguments, generator)
    return probs * hot.sum(class_axis(logits), keepdim=True) - hot


def _drawn_classes(probs: Tensor, arguments: Arguments, generator: torch.Generator) -> Tensor:
    """One-hot classes in the shape of the probabilities; zero where the true target does not count."""
    axis = class_axis(probs)
    last = probs.movedim(axis, -1)
    drawn = torch.multinomial(last.reshape(-1, last.shape[-1]), 1, generator=generator)
    hot = torch.zeros_like(last).reshape(-1, last.shape[-1]).scatter_(1, drawn, 1.0)
    hot = hot.reshape(last.shape).movedim(-1, axis)
    target = arguments["target"]
    return hot if target.is_floating_point() else hot * counted(arguments).unsqueeze(axis)


def _bernoulli_logits(logits: Tensor, arguments: Arguments, generator: torch.Generator) -> Tensor:
    probs = logits.sigmoid()
    return probs - torch.bernoulli(probs, generator=generator)


def _bernoulli(probs: Tensor, arguments: Arguments, generator: torch.Generator) -> Tensor:
    drawn = torch.bernoulli(probs, generator=generator)
    return (probs - drawn) / (probs * (1 - probs)).clamp(min=1e-12)


def _gaussian(means: Tensor, arguments: Arguments, generator: torch.Generator) -> Tensor:
    noise = torch.empty_like(means).normal_(generator=generator)
    return 2**0.5 * noise  # 2 (mean - target), target = mean - sqrt(1/2) noise


_SAMPLERS: dict[Callable[..., Any], Sampler] = {
    F.nll_loss: _nll,
    F.cross_entropy: _cross_entropy,
    F.binary_cross_entropy_with_logits: _bernoulli_logits,
    F.binary_cross_entropy: _bernoulli,
    F.mse_loss: _gaussian,
}
