"""Where a network is cut into blocks: so that the bytes saved for backward are level, or where the user says.

Shapes: B batch.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from lightning_autoassist.local_learning.separators import (
    IsPenalty,
    has_reentrant_checkpoint,
    leaks_round,
    no_penalty,
    separators,
)
from lightning_autoassist.local_learning.watched_calls import Call

MAX_NAMED = 3
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class CutError(ValueError):
    """A network cannot be cut where it was asked to be; the message says why, and where it can be."""


class Cut(NamedTuple):
    """The end of a block.

    Attributes:
        name: Of the submodule whose output it is.
        shape: Of the output, without the batch's axis.
        saved_bytes: Bytes saved for backward by the block that ends here.
        num_parameters: Numbers in the block's parameters.
    """

    name: str
    shape: tuple[int, ...]
    saved_bytes: int
    num_parameters: int


class Blocks(NamedTuple):
    """A network in blocks.

    Attributes:
        cuts: The ends of all blocks but the last.
        last_bytes: Bytes saved for backward by the last block.
        last_parameters: Numbers in the last block's parameters.
        owners: The block of each parameter that the loss depends on, by its name.
        shared: Names of the parameters that several blocks use.
    """

    cuts: tuple[Cut, ...]
    last_bytes: int
    last_parameters: int
    owners: dict[str, int]
    shared: tuple[str, ...]


class Candidate(NamedTuple):
    """A place where the network may be cut.

    Attributes:
        call: Of the submodule whose output it is.
        before: Parameters of what lies between the candidate before it and it.
    """

    call: Call
    before: list[nn.Parameter]


def candidates(
    root: Tensor, calls: Sequence[Call], is_penalty: IsPenalty = no_penalty
) -> tuple[list[Candidate], list[nn.Parameter]]:
    """All places where the network may be cut, in order, and the parameters after the last of them.

    Args:
        root: The returned loss.
        calls: Of the network's submodules.
        is_penalty: See :func:`separators`.
    """
    found, first = separators(root, is_penalty)
    by_node = {separator.node: place for place, separator in enumerate(found)}
    at: dict[int, Call] = {}
    for call in sorted(calls, key=lambda call: len(call.name)):
        place = by_node.get(call.node)
        is_whole = place is not None and found[place].output_nr == call.output_nr
        if place is not None and is_whole and why_no_cut(call) is None:
            at.setdefault(place, call)
    parameters, result = list(first), []
    for place in range(len(found) - 1, -1, -1):
        if place in at:
            result.append(Candidate(at[place], parameters))
            parameters = []
        parameters = parameters + found[place].later
    return result, parameters


def last_of_each_layer(
    places: Sequence[Candidate], after: Sequence[nn.Parameter], of_norms: frozenset[int] = frozenset()
) -> list[int]:
    """The last candidate of each layer: behind its normalization, activation and pooling.

    Args:
        places: All candidates.
        after: Parameters after the last of them.
        of_norms: Ids of the parameters of normalization layers, which belong to the layer before.
    """

    def begins_layer(parameters: Sequence[nn.Parameter]) -> bool:
        return any(id(parameter) not in of_norms for parameter in parameters)

    is_followed = [*(begins_layer(place.before) for place in places[1:]), begins_layer(after)]
    learns = False
    chosen = []
    for number, place in enumerate(places):
        learns = learns or bool(place.before)
        if learns and is_followed[number]:
            chosen.append(number)
            learns = False
    return chosen


def why_no_cut(call: Call) -> str | None:
    """Why a module's output is no place for a cut, whatever the rest of the network is like."""
    if call.count > 1:
        return "is called more than once in a step"
    if call.is_repeated:
        return "is repeated by activation checkpointing; name the module that contains the checkpoint"
    if call.node is None or call.shape is None:
        return "does not give one tensor that needs a gradient"
    return "gives a tensor without features" if len(call.shape) < 2 else None


def level(places: Sequence[Candidate], total: int, num_blocks: int) -> list[int]:
    """Which candidates cut the network so that the block that saves the most bytes saves as few as can be.

    Args:
        places: The candidates.
        total: Bytes that all of the network saves.
        num_blocks: How many blocks there shall be; at most one more than there are candidates.
    """
    ends = [place.call.saved_bytes for place in places]
    best: list[dict[int, tuple[int, int, list[int]]]] = [{-1: (0, 0, [])}]
    for _ in range(num_blocks - 1):
        row: dict[int, tuple[int, int, list[int]]] = {}
        for end, saved in enumerate(ends):
            ways = [
                (max(largest, size), squares + size**2, [*way, end])
                for last, (largest, squares, way) in best[-1].items()
                if last < end
                for size in [saved - (ends[last] if last >= 0 else 0)]
            ]
            if ways:
                row[end] = min(ways)
        best.append(row)
    finished = [
        (max(largest, total - ends[last]), squares + (total - ends[last]) ** 2, way)
        for last, (largest, squares, way) in best[-1].items()
        if last >= 0
    ]
    return min(finished)[2]


def blocks_of(
    module: nn.Module,
    root: Tensor,
    calls: Sequence[Call],
    total: int,
    wanted: int | Sequence[str] | None,
    is_penalty: IsPenalty = no_penalty,
) -> Blocks:
    """Cut the network.

    Args:
        module: The LightningModule.
        root: The loss that its step returned.
        calls: Of its submodules, in that step.
        total: Bytes that the step saved for backward.
        wanted: How many blocks; or the submodules whose outputs end blocks; None: as many as there can be.
        is_penalty: See :func:`separators`.

    Raises:
        CutError: If it cannot be cut so.
    """
    _check_checkpoints(root)
    places, after = candidates(root, calls, is_penalty)
    own_after = _without_penalties(places, after)
    norms = (each for each in module.modules() if isinstance(each, _NORMS))
    layers = last_of_each_layer(places, own_after, frozenset(id(one) for norm in norms for one in norm.parameters()))
    if wanted is None:
        chosen = layers
    elif isinstance(wanted, int):
        _check_number([places[number] for number in layers], wanted)
        chosen = [layers[number] for number in level([places[number] for number in layers], total, wanted)]
    else:
        leaks = functools.partial(leaks_round, root, is_penalty=is_penalty)
        chosen = _named(module, leaks, calls, places, wanted)
    _check_parameters(places, own_after, chosen)
    return _cut(module, places, after, chosen, total)


def _check_checkpoints(root: Tensor) -> None:
    if has_reentrant_checkpoint(root):
        raise CutError(
            "Blocks that end by a loss of their own cannot hold activation checkpoints with use_reentrant=True, of "
            "which torch gives no gradients by themselves; write checkpoint(..., use_reentrant=False)."
        )


def _without_penalties(places: Sequence[Candidate], after: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters after the last candidate that no layer before it has: a penalty on those of layers is no layer."""
    before = {id(parameter) for place in places for parameter in place.before}
    return [parameter for parameter in after if id(parameter) not in before]


def _cut(
    module: nn.Module, places: Sequence[Candidate], after: list[nn.Parameter], chosen: Sequence[int], total: int
) -> Blocks:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    owners: dict[str, int] = {}
    shared: dict[str, None] = {}
    cuts, start, saved = [], 0, 0

    def own(parameters: list[nn.Parameter], block: int) -> int:
        unique = {id(parameter): parameter for parameter in parameters if id(parameter) in names}
        for each in unique:
            if owners.setdefault(names[each], block) != block:
                shared[names[each]] = None
        return sum(parameter.numel() for parameter in unique.values())

    for block, end in enumerate(chosen):
        call = places[end].call
        assert call.shape is not None
        own_parameters = [parameter for place in places[start : end + 1] for parameter in place.before]
        size = own(own_parameters, block)
        cuts.append(Cut(call.name, tuple(call.shape[1:]), call.saved_bytes - saved, size))
        start, saved = end + 1, call.saved_bytes
    size = own([*(parameter for place in places[start:] for parameter in place.before), *after], len(cuts))
    return Blocks(tuple(cuts), total - saved, size, owners, tuple(shared))


def _check_parameters(places: Sequence[Candidate], after: Sequence[nn.Parameter], chosen: Sequence[int]) -> None:
    """Each block needs something to learn."""
    starts = [0, *(end + 1 for end in chosen)]
    for start, end in zip(starts, [*chosen, len(places)], strict=True):
        parts = [*(place.before for place in places[start : end + 1]), *([after] if end == len(places) else [])]
        if not any(parts):
            where = f"before the cut after {places[end].call.name!r}" if end < len(places) else "after the last cut"
            raise CutError(f"The block {where} has no parameters that are trained; leave out one of its cuts.")


def _check_number(places: Sequence[Candidate], wanted: int) -> None:
    if len(places) + 1 >= wanted:
        return
    names = ", ".join(place.call.name for place in places)
    where = f"It can be cut after {names}" if places else "No submodule's output is a tensor that all of its loss needs"
    raise CutError(
        f"blocks={wanted} asks for {wanted} blocks with parameters, and the network can be cut into "
        f"{len(places) + 1}. {where}; a connection that skips a submodule, and a module that is called twice, allow no "
        "cut between."
    )


def _named(
    module: nn.Module,
    leaks: Callable[[Any], list[nn.Parameter]],
    calls: Sequence[Call],
    places: Sequence[Candidate],
    wanted: Sequence[str],
) -> list[int]:
    by_name = {call.name: call for call in calls}
    by_node = {place.call.node: number for number, place in enumerate(places)}
    chosen = []
    for name in wanted:
        call = by_name.get(name)
        if call is None:
            raise CutError(_on_unknown(name, module, [place.call.name for place in places]))
        reason = why_no_cut(call)
        if reason is not None:
            raise CutError(f"The network cannot be cut after {name!r}: it {reason}.")
        if call.node not in by_node:
            raise CutError(_on_leak(module, leaks(call.node), call))
        chosen.append(by_node[call.node])
    return sorted(set(chosen))


def _on_unknown(name: str, module: nn.Module, places: Sequence[str]) -> str:
    known = [each for each, _ in module.named_modules() if each]
    if name in known:
        return f"The network cannot be cut after {name!r}: it was not called in the first step, or in compiled code."
    near = difflib.get_close_matches(name, known, n=MAX_NAMED, cutoff=0.4) or list(places[:MAX_NAMED])
    return f"blocks names {name!r}, and the module has no submodule of this name; the nearest are {', '.join(near)}."


def _on_leak(module: nn.Module, parameters: Sequence[nn.Parameter], call: Call) -> str:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    leaks = [names.get(id(one), "a parameter that is not the module's") for one in parameters]
    if not leaks:
        return (
            f"The network cannot be cut after {call.name!r}: there are no parameters before it or after it, or not all "
            "of the loss goes through its output."
        )
    listed = ", ".join(leaks[:MAX_NAMED]) + (", ..." if len(leaks) > MAX_NAMED else "")
    return (
        f"The network cannot be cut after {call.name!r}: parameters before it ({listed}) reach the loss on another way "
        "than through its output, as over a skip connection. Cut where the connection begins or ends."
    )


def described(blocks: Blocks) -> list[dict[str, Any]]:
    """A row for each block: the submodule that ends it, its bytes and its parameters."""
    rows = [
        {"block": number, "ends_after": cut.name, "saved_bytes": cut.saved_bytes, "parameters": cut.num_parameters}
        for number, cut in enumerate(blocks.cuts, 1)
    ]
    last = {"ends_after": "the loss", "saved_bytes": blocks.last_bytes, "parameters": blocks.last_parameters}
    return [*rows, {"block": len(rows) + 1, **last}]
