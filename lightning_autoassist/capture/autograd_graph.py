"""What the autograd graph behind a returned loss says: losses of scripted code, and parts that were not captured.

The graph is only read: each node knows the nodes it comes from, and the tensors that it saved for its backward.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F

from lightning_autoassist.losses.functional import LOSSES, Arguments, NamedLoss
from lightning_autoassist.trainer_support.autograd_internals import is_scalar, knows_result_shapes, saved_argument

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
_PRODUCTS_OF_NUMBERS = ("Mul", "Div", "Pow", "Dot", "Atan2", "Hypot")
# A loss is a few scalar operations behind what is returned; the network behind it need not be searched.
_NEAR = 64
# Nodes of layers by parts of their names. In their results the first axis is still the one of their input: the axis of
# the loss's own making, if there is one, comes later. Batch normalization mixes instances, so nothing is asked behind.
_LAYERS = (
    "BackwardHookFunction",
    "BatchNorm",
    "Checkpoint",
    "CompiledFunction",
    "Convolution",
    "Embedding",
    "GroupNorm",
    "LayerNorm",
    "Rnn",
)
_PRODUCTS = ("AddmmBackward0", "MmBackward0")
# A weight is so few operations on parameters: cast, transposed, reparametrized.
_NEAR_PARAMETERS = 16


class GraphLoss(NamedTuple):
    """A loss found in the graph, with the arguments it was called with."""

    node: Node
    named: NamedLoss
    arguments: Arguments

    @property
    def source(self) -> str:
        """The loss's name, for messages."""
        return f"{self.named.name} in the autograd graph"


def losses_in_graph(root: Tensor) -> list[GraphLoss]:
    """The losses of torch near the end of the graph, those nearest to ``root`` first."""
    nodes = _walk(root, lambda node: node.name() in _LOSS_NODES)
    return [loss for node in nodes if (loss := _loss_of(node)) is not None]


def loss_at(result: Tensor) -> GraphLoss | None:
    """The loss of torch that a tensor is the very result of; None where it is another's."""
    return None if result.grad_fn is None else _loss_of(result.grad_fn)


def _loss_of(node: Node) -> GraphLoss | None:
    if node.name() not in _LOSS_NODES:
        return None
    named = LOSSES[_LOSS_NODES[node.name()]]
    return GraphLoss(node, named, _arguments(node, named))


def holds_compiled_code(root: Tensor) -> bool:
    """Whether compiled code has computed a part of what ``root`` comes from."""
    return any("CompiledFunction" in node.name() for node in _walk(root, lambda node: False, limit=None))


def _arguments(node: Any, named: NamedLoss) -> Arguments:
    def saved(name: str, default: Any) -> Any:
        return saved_argument(node, "self" if name == "input" else name, default)

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
    """Those of ``nodes`` that ``root`` is a weighted sum of, by operations on single numbers alone.

    Numbers that are multiplied or divided by each other, as in a correlation or an F-measure, are no sums of instances'
    losses.
    """

    def ends(node: Node) -> bool:
        return node in nodes or not is_scalar(node)

    ways = list(_walk_from(root.grad_fn, ends, limit=None))
    joined = {node for node in ways if node in nodes}
    for node in ways:
        if node in joined or not node.name().startswith(_PRODUCTS_OF_NUMBERS):
            continue
        factors = [joined.intersection(_walk_from(each, ends, limit=None)) for each, _ in node.next_functions]
        if sum(map(bool, factors)) > 1:
            joined = joined.difference(*factors)
    return joined


class LossPart(NamedTuple):
    """What a tensor is computed from, back to the last layers of the network.

    Attributes:
        stopped: Those nodes at which the search was told to stop.
        layers: Results of the last layers, and tensors that need a gradient and are no parameters.
        has_parameters: Whether it reads parameters itself, behind no layer.
        nodes: All nodes that were passed, with the ones it stopped at.
    """

    stopped: set[Node]
    layers: list[GradientEdge]
    has_parameters: bool
    nodes: set[Node]


def loss_part(values: Tensor, stops: Collection[Node | None] = ()) -> LossPart:
    """Search the part of the graph behind ``values`` that computes the loss; the network is not searched."""
    stopped, nodes, layers, first = set[Node](), set[Node](), list[tuple[Node, int]](), list[tuple[Node, int]]()
    start = get_gradient_edge(values)
    edges, has_parameters = deque([(start.node, start.output_nr)]), False
    seen = set(edges)
    while edges:
        edge = edges.popleft()
        node = edge[0]
        nodes.add(node)
        if node in stops:
            stopped.add(node)
        elif hasattr(node, "variable"):
            if _is_parameter(node):
                has_parameters = True
            else:
                layers.append(edge)
        elif _is_layer(node):
            layers.append(edge)
        else:
            if _is_first(node):
                first.append(edge)
            for behind, number in node.next_functions:
                if behind is not None and (behind, number) not in seen:
                    seen.add((behind, number))
                    edges.append((behind, number))
    return LossPart(stopped, [GradientEdge(*edge) for edge in layers or first], has_parameters, nodes)


def _is_layer(node: Node) -> bool:
    """Whether the node applies parameters to the rows of data; of a product, the parameters must be the right factor.

    The rows of ``parameters @ data.T`` are no instances'.
    """
    name = node.name()
    return _is_of_parameters(node.next_functions[-1][0]) if name in _PRODUCTS else _is_named_as_layer(name)


@functools.cache
def _is_named_as_layer(name: str) -> bool:
    return any(layer in name for layer in _LAYERS)


def _is_first(node: Node) -> bool:
    """Whether data meet parameters here without a layer, as in `batch * self.scale`."""
    needed = [each for each, _ in node.next_functions if each is not None]
    is_mixed = 0 < len(needed) < len(node.next_functions)
    return is_mixed and node.name() not in _PRODUCTS and all(map(_is_parameter, needed))


def _is_of_parameters(node: Node | None) -> bool:
    """Whether a tensor is computed from parameters alone, in a few operations."""
    nodes, seen = [node], 0
    while nodes:
        node = nodes.pop()
        seen += 1
        if node is None or seen > _NEAR_PARAMETERS:
            return False
        if hasattr(node, "variable"):
            if not _is_parameter(node):
                return False
        elif "Embedding" in node.name() or "Index" in node.name():
            return False
        else:
            nodes.extend(each for each, _ in node.next_functions)
    return True


def _is_parameter(node: Node) -> bool:
    return isinstance(getattr(node, "variable", None), nn.Parameter)


def knows_shapes(root: Tensor) -> bool:
    """Whether this torch tells the shapes of its nodes' results; 2.4 does not."""
    return knows_result_shapes(root.grad_fn)


def _walk(root: Tensor, stops: Callable[[Node], bool], limit: int | None = _NEAR) -> Iterator[Node]:
    """Nodes breadth first from ``root``; those that stop are yielded, those behind them are not."""
    return _walk_from(root.grad_fn, stops, limit)


def _walk_from(start: Node | None, stops: Callable[[Node], bool], limit: int | None = _NEAR) -> Iterator[Node]:
    queue, seen = deque([start]), {start}
    while queue and (limit is None or len(seen) <= limit):
        node = queue.popleft()
        if node is None:
            continue
        yield node
        if not stops(node):
            new = [each for each, _ in node.next_functions if each is not None and each not in seen]
            queue.extend(new)
            seen.update(new)
