"""The private attributes of torch's autograd graph that AutoAssist reads.

They stand apart from ``internals.py`` because capture reads them, and capture imports nothing of Lightning. Every
function has a test in ``tests/trainer_support/test_internals.py`` that says what breaks where a new version of torch
lacks the attribute.
"""

from __future__ import annotations

from typing import Any

from torch.autograd.graph import Node


def saved_argument(node: Node | None, name: str, default: Any = None) -> Any:
    """What a node saved of an argument of its function; ``default`` where it saved nothing of it.

    Args:
        node: The node; None has saved nothing.
        name: The argument's name in torch's own definition of the function, such as ``"self"`` for the first one.
        default: Returned where there is no such argument.

    Example:
        >>> import torch
        >>> saved_argument(torch.ones(2, 3, requires_grad=True).view(6).grad_fn, "self_sym_sizes")
        (2, 3)
    """
    return getattr(node, f"_saved_{name}", default)


def knows_result_shapes(node: Node | None) -> bool:
    """Whether this torch tells the shapes of its nodes' results; 2.4 does not."""
    return hasattr(node, "_input_metadata")


def is_scalar(node: Any) -> bool:
    """Whether the result of a node is a single number; asked only where :func:`knows_result_shapes`."""
    return tuple(node._input_metadata[0].shape) == ()
