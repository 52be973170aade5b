"""What the autograd graph behind a returned loss says: losses of scripted code, and parts that were not captured.

The graph is only read: each node knows the nodes it comes from, and the tensors that it saved for its backward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F

from lightning_autoassist.losses import LOSSES, Arguments, NamedLoss

# Nodes of torch's losses, with the names under which they save what the functions call otherwise.
_LOSS_NODES: dict[str, Callable[..., Any]] = {
    "NllLossBackward0": F.nll_loss,
    "NllLoss2DBackward0": F.nll_loss,
    "MseLossBackward0": F.mse_loss,
    "BinaryCrossEntropyBackward0": F.binary_cross_entropy,
    "BinaryCrossEntropyWithLogitsBackward0": F.binary_cross_entropy_with_logits,
    "SmoothL1LossBackward0": F.smooth_l1_loss,
    "HuberLossBackward0": F.huber_loss,
    "SoftMarginLossBackward0": F.soft_margin_loss,
}
_REDUCTIONS = ("none", "mean", "sum")
# A loss is a few scalar operations behind what is returned; the network behind it need not be searched.
_NEAR = 64


class GraphLoss(NamedTuple):
    """A loss found in the graph, with the arguments it was called with."""

    node: Node
    named: NamedLoss
    arguments: Arguments


def losses_in_graph(root: Tensor) -> list[GraphLoss]:
    """The losses of torch near the end of the graph, those nearest to ``root`` first."""
    found = []
    for node in _walk(root, lambda node: node.name() in _LOSS_NODES):
        if node.name() in _LOSS_NODES:
            named = LOSSES[_LOSS_NODES[node.name()]]
            found.append(GraphLoss(node, named, _arguments(node, named)))
    return found


def _arguments(node: Any, named: NamedLoss) -> Arguments:
    def saved(name: str, default: Any) -> Any:
        return getattr(node, f"_saved_{'self' if name == 'input' else name}", default)

    arguments = named.bind((), {})
    arguments = {name: saved(name, default) for name, default in arguments.items()}
    arguments["reduction"] = _REDUCTIONS[arguments["reduction"]]
    if arguments.get("ignore_index", 0) >= 2**63:  # torch reports this signed number as an unsigned one
        arguments["ignore_index"] -= 2**64
    return arguments


def has_other_leaves(root: Tensor, captured: Collection[Node | None]) -> bool:
    """Whether parameters reach ``root`` on a way that passes none of the ``captured`` nodes: an L2 or KL term."""
    return any(
        node not in captured and hasattr(node, "variable")
        for node in _walk(root, lambda node: node in captured, limit=None)
    )


def joined_by_scalars(root: Tensor, nodes: Collection[Node]) -> set[Node]:
    """Those of ``nodes`` from which only operations on single numbers lead to ``root``."""
    ways = _walk(root, lambda node: node in nodes or not _is_scalar(node))
    return {node for node in ways if node in nodes}


def is_parameters_own(values: Tensor) -> bool:
    """Whether values are an elementwise function of one leaf, as in ``weight.pow(2).sum()``."""
    node = values.grad_fn
    while node is not None and not hasattr(node, "variable"):
        previous = {each for each, _ in node.next_functions if each is not None}
        if len(previous) != 1 or _shape(node) != tuple(values.shape):
            return False
        (node,) = previous
    return True


def knows_shapes(root: Tensor) -> bool:
    """Whether this torch tells the shapes of its nodes' results; 2.4 does not."""
    return hasattr(root.grad_fn, "_input_metadata")


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node._input_metadata[0].shape)


def _is_scalar(node: Any) -> bool:
    return _shape(node) == ()


def _walk(root: Tensor, stops: Callable[[Node], bool], limit: int | None = _NEAR) -> Iterator[Node]:
    """Nodes breadth first from ``root``; those that stop are yielded, those behind them are not."""
    queue, seen = deque([root.grad_fn]), {root.grad_fn}
    while queue and (limit is None or len(seen) <= limit):
        node = queue.popleft()
        if node is None:
            continue
        yield node
        if not stops(node):
            new = [each for each, _ in node.next_functions if each is not None and each not in seen]
            queue.extend(new)
            seen.update(new)
