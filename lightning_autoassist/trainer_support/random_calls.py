"""Which of torch's functions draw random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Beside those whose names begin with "rand" or "dropout"; an underscore at the end says only where the numbers go.
_DRAWING = frozenset(
    {
        "_sample_dirichlet",
        "_standard_gamma",
        "alpha_dropout",
        "bernoulli",
        "binomial",
        "cauchy",
        "exponential",
        "feature_alpha_dropout",
        "feature_dropout",
        "geometric",
        "gumbel_softmax",
        "log_normal",
        "multinomial",
        "normal",
        "poisson",
        "rrelu",
        "rrelu_with_noise",
        "uniform",
    }
)
# What they drop is an argument of theirs, and mostly nothing.
_WITH_DROPOUT = frozenset(
    {"gru", "lstm", "multi_head_attention_forward", "rnn_relu", "rnn_tanh", "scaled_dot_product_attention"}
)


def draws(function: Callable[..., Any]) -> bool:
    """Whether each call of a function gives something else.

    Example:
        >>> import torch
        >>> draws(torch.nn.functional.dropout2d), draws(torch.Tensor.normal_), draws(torch.relu)
        (True, True, False)
    """
    name = getattr(function, "__name__", "")
    return name.startswith(("dropout", "rand")) or name.rstrip("_") in _DRAWING


def may_draw(function: Callable[..., Any]) -> bool:
    """Whether a call of a function may give something else each time, as attention that may drop something.

    Example:
        >>> import torch
        >>> may_draw(torch.nn.functional.scaled_dot_product_attention), may_draw(torch.relu)
        (True, False)
    """
    return draws(function) or getattr(function, "__name__", "") in _WITH_DROPOUT
