"""Which tensors all of the returned loss goes through: only there can a network be cut.

A node of the autograd graph was made after those it depends on. So the graph is walked from its end in the order in
which it was made, backwards: where no other node waits, all paths from earlier parts of the network go through one.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_autoassist.trainer_support.internals import creation_number

# Operations on parameters alone, as casts that autocast makes once for several uses: they carry no activations.
_OF_PARAMETERS = frozenset(
    {
        "AliasBackward0",
        "CloneBackward0",
        "ExpandBackward0",
        "PermuteBackward0",
        "TBackward0",
        "ToCopyBackward0",
        "TransposeBackward0",
        "UnsafeViewBackward0",
        "ViewBackward0",
        "WeightNormInterfaceBackward0",
    }
)


IsPenalty = Callable[[Any], bool]


def no_penalty(node: Any) -> bool:
    """Where no node is one."""
    return False


class Separator(NamedTuple):
    """A node through which all of the loss goes.

    Attributes:
        node: The node.
        output_nr: Which of its results.
        later: Parameters that were met between the separator after this one and this one.
    """

    node: Any
    output_nr: int
    later: list[nn.Parameter]


def separators(root: Tensor, is_penalty: IsPenalty = no_penalty) -> tuple[list[Separator], list[nn.Parameter]]:
    """All separators behind a loss, those nearest to its end first, and the parameters before the first of them.

    Args:
        root: The loss.
        is_penalty: Whether a node gives a number that depends on parameters alone.
    """
    found: list[Separator] = []
    met: list[nn.Parameter] = []
    start = root.grad_fn
    entries: dict[Any, set[int]] = {start: {root.output_nr}}
    heap: list[tuple[int, int, Any]] = [(-creation_number(start), 0, start)]
    while heap:
        _, _, node = heapq.heappop(heap)
        if not heap and len(entries[node]) == 1:
            found.append(Separator(node, next(iter(entries[node])), met))
            met = []
        for behind, output_nr in node.next_functions:
            if behind is None:
                continue
            parameters = parameters_of(behind, is_penalty)
            if parameters is not None:
                met.extend(parameters)
                continue
            if behind not in entries:
                entries[behind] = set()
                heapq.heappush(heap, (-creation_number(behind), len(entries), behind))
            entries[behind].add(output_nr)
    return found, met


def has_reentrant_checkpoint(root: Tensor) -> bool:
    """Whether activation checkpoints of torch's older kind are behind a loss."""
    return any(node.name() == "CheckpointFunctionBackward" for node, _ in _walk_round(root.grad_fn, None, 0))


def parameters_of(node: Any, is_penalty: IsPenalty = no_penalty) -> list[nn.Parameter] | None:
    """The parameters that a node gives, alone and not of the batch; None where it is an activation."""
    if is_penalty(node):
        leaves = (getattr(each, "variable", None) for each, _ in _walk_round(node, None, 0, through_parameters=True))
        return [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)]
    found: list[nn.Parameter] = []
    nodes = [node]
    for _ in range(16):
        if not nodes:
            return found
        node = nodes.pop()
        if hasattr(node, "variable"):
            if not isinstance(node.variable, nn.Parameter):
                return None
            found.append(node.variable)
        elif node.name() in _OF_PARAMETERS and all(each is not None for each, _ in node.next_functions):
            nodes.extend(each for each, _ in node.next_functions)
        else:
            return None
    return None


def leaks_round(root: Tensor, node: Any, is_penalty: IsPenalty = no_penalty) -> list[nn.Parameter]:
    """Parameters that reach the loss on a way round a node, over an activation that is older than it.

    Args:
        root: The loss.
        node: Of a cut's output.
        is_penalty: See :func:`separators`.
    """
    number = creation_number(node)
    found: dict[int, nn.Parameter] = {}
    for each, is_behind in _walk_round(root.grad_fn, node, number, is_penalty):
        if is_behind:
            for behind, _ in each.next_functions:
                for parameter in (behind is not None and parameters_of(behind, is_penalty)) or []:
                    found[id(parameter)] = parameter
    return list(found.values())


def _walk_round(
    start: Any, stop: Any, number: int, is_penalty: IsPenalty = no_penalty, *, through_parameters: bool = False
) -> Iterator[tuple[Any, bool]]:
    """Nodes reached from ``start`` without passing ``stop``, and whether each is older than it."""
    stack, seen = [(start, False)], {start, stop}
    while stack:
        node, is_behind = stack.pop()
        is_behind = is_behind or creation_number(node) < number
        yield node, is_behind
        for each, _ in node.next_functions:
            if each is None or each in seen:
                continue
            if through_parameters or parameters_of(each, is_penalty) is None:
                seen.add(each)
                stack.append((each, is_behind))
