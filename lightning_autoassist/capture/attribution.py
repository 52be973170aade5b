"""Which losses a returned one is made of, how much of it they are, and what was missed.

Shapes: B batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_autoassist.capture.autograd_graph import (
    LossPart,
    has_other_leaves,
    joined_by_scalars,
    knows_shapes,
    loss_part,
)
from lightning_autoassist.capture.captured_loss import CapturedLoss, WeightedLoss, contributions
from lightning_autoassist.capture.reductions import Reduction, ShownReductions

# A part of less than the first share does not decide for the whole; below the second a warning names what was missed.
MINOR_SHARE, WHOLE_SHARE = 0.5, 0.9
# In so many steps of each kind the graph is searched for parts that were not captured, for so many kinds at most.
_CHECKED_STEPS, _MAX_KINDS = 3, 32


class Missed(NamedTuple):
    """A loss that was seen, and whose instances are not known.

    Attributes:
        note: Which, and why, for the user.
        node: Of its value; None where it is not known.
    """

    note: str
    node: Node | None


class Share(NamedTuple):
    """How much of a returned loss was captured.

    Attributes:
        ratio: Of the gradients at the network's last layers, in [0, 1].
        missed: What was missed beside regularizers, for the user to read.
        has_other_terms: Whether there is anything else in the loss, regularizers included.
    """

    ratio: float = 1.0
    missed: tuple[str, ...] = ()
    has_other_terms: bool = False


class Attribution:
    """Finds the instances' losses behind a returned loss. Each run has one, which remembers its first steps."""

    def __init__(self) -> None:
        self._shown = ShownReductions()
        self._shares: dict[tuple[str, ...], list[Share]] = {}

    def parts(
        self, root: Tensor, named: Sequence[CapturedLoss], reductions: Sequence[Reduction], batch_size: int
    ) -> tuple[list[WeightedLoss], list[Reduction]]:
        """The losses that reach ``root``, and reductions, perhaps in it, that were not shown to be instances' losses.

        A reduction to which named losses lead as the only way stands for the user's factors on their rows. One
        to which other ways lead as well, as in a focal loss, replaces them, if it has one value an instance.

        Args:
            root: The returned loss.
            named: Losses that were called.
            reductions: What was reduced to one number.
            batch_size: B.
        """
        if len(named) == 1 and named[0].is_root(root):
            return [WeightedLoss(named[0], None)], []
        by_rows = {found.node: found for found in named if found.reduction == "none" and found.node is not None}
        if not by_rows and not any(self._shown.may_be(reduction, batch_size) for reduction in reductions):
            parts = contributions(root, named)
            if parts:  # whether the reductions reach the root is of no interest, as a rule
                return parts, list(reductions)
        ends = _ends(root, reductions)
        if not ends:
            return contributions(root, named), []
        return self._through(ends, root, named, by_rows, batch_size)

    def _through(
        self,
        ends: Sequence[Reduction],
        root: Tensor,
        named: Sequence[CapturedLoss],
        by_rows: Mapping[Node, CapturedLoss],
        batch_size: int,
    ) -> tuple[list[WeightedLoss], list[Reduction]]:
        """Do what :meth:`parts` does where losses reach ``root`` through reductions."""
        behind = [loss_part(end.values, by_rows) for end in ends]
        is_shown = [self._shown.is_shown(end, batch_size) for end in ends]
        replaced = _replaced(behind, is_shown)
        losses = list(named) if not replaced else [found for found in named if found.node not in replaced]
        unshown, factors = [], dict[Node, list[int]]()
        for number, (end, part) in enumerate(zip(ends, behind, strict=True)):
            if part.stopped and not part.stopped & replaced:
                for node in part.stopped:
                    factors.setdefault(node, []).append(number)
                if not _goes_elsewhere(part):
                    continue
            elif is_shown[number]:
                inside = [by_rows[node] for node in part.stopped]
                labels = next((found.labels for found in inside if found.labels is not None), None)
                found = end.found(batch_size, labels)
                losses.append(found._replace(margins=inside[0].margins) if _are_instances(inside) else found)
                continue
            unshown.append(end)
        return _with_units(root, losses, ends, is_shown, factors), unshown

    def share(
        self, root: Tensor, parts: Sequence[WeightedLoss], missed: Sequence[Missed], unshown: Sequence[Reduction]
    ) -> Share:
        """How much of ``root`` the parts are, as it was in the first steps like this one. Waits for the device then."""
        if len(parts) == 1 and parts[0].coefficient is None:
            return Share()
        kind = tuple(part.found.source for part in parts)
        shares = self._shares.setdefault(kind, []) if len(self._shares) < _MAX_KINDS else self._shares.get(kind, [])
        if len(shares) < _CHECKED_STEPS:
            shares.append(share_of(root, {part.found.node for part in parts}, missed, unshown))
        return _mean(shares)

    def state_dict(self) -> dict[str, Any]:
        """The shares that were found in the first steps, on which it hangs whether later ones are filtered."""
        return {"shares": [[list(kind), [list(each) for each in shares]] for kind, shares in self._shares.items()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self._shares = {
            tuple(kind): [Share(ratio, tuple(missed), others) for ratio, missed, others in shares]
            for kind, shares in state["shares"]
        }


def _ends(root: Tensor, reductions: Sequence[Reduction]) -> list[Reduction]:
    """Reductions from which only arithmetic on single numbers leads to ``root``: others are not its losses."""
    if not reductions or not knows_shapes(root):
        return []
    joined = joined_by_scalars(root, {reduction.node for reduction in reductions})
    return [reduction for reduction in reductions if reduction.node in joined]


def _goes_elsewhere(part: LossPart) -> bool:
    """Whether another way than by the named losses leads into the network or to parameters."""
    return bool(part.layers) or part.has_parameters


def _are_instances(inside: Sequence[CapturedLoss]) -> bool:
    """Whether a loss by hand, as a focal loss, is made of one named loss with a class for each instance."""
    return len(inside) == 1 and inside[0].margins is not None and inside[0].margins.others is not None


def _replaced(behind: Sequence[LossPart], is_shown: Sequence[bool]) -> set[Node]:
    """The named losses that are one of several ways to a reduction's values; the weights enter at the reduction."""
    replaced = set[Node]()
    for part, shown in zip(behind, is_shown, strict=True):
        if shown and part.stopped and _goes_elsewhere(part):
            replaced |= part.stopped
    while True:
        more = {node for part in behind if part.stopped & replaced for node in part.stopped} - replaced
        if not more:
            return replaced
        replaced |= more


def _with_units(
    root: Tensor,
    parts: Sequence[CapturedLoss],
    ends: Sequence[Reduction],
    is_shown: Sequence[bool],
    factors: dict[Node, list[int]],
) -> list[WeightedLoss]:
    """The contributions, each with the reduction that its rows go through, where that is one."""
    numbers = sorted({number for each in factors.values() for number in each})
    edges: list[Any] = [found.edge for found in parts] + [ends[number].edge for number in numbers]
    if not edges:
        return []
    gradients = torch.autograd.grad(root, edges, retain_graph=True, allow_unused=True)
    at_ends = dict(zip(numbers, gradients[len(parts) :], strict=True))
    contributing, is_taken = [], set[int]()
    sharing = {number: [node for node, each in factors.items() if number in each] for number in numbers}
    for found, coefficient in zip(parts, gradients[: len(parts)], strict=True):
        if coefficient is None:
            continue
        part = WeightedLoss(found, coefficient)
        own = [] if found.node is None else factors.get(found.node, [])
        at_end = at_ends[own[0]] if len(own) == 1 else None
        if at_end is not None:
            end = ends[own[0]]
            part = part._replace(unit=at_end if end.is_sum else at_end / end.values.numel(), is_sum=end.is_sum)
            if is_shown[own[0]] and end.values.ndim == 1:
                # Of several losses in one reduction, the first stands for all.
                reduced = end.values.detach()
                part = part._replace(reduced=torch.zeros_like(reduced) if own[0] in is_taken else reduced)
                is_taken.add(own[0])
            elif len(sharing[own[0]]) == 1 and end.values.shape == found.elements.losses.shape:
                part = part._replace(by_element=end.values.detach())
        contributing.append(part)
    return contributing


def share_of(
    root: Tensor, captured: Collection[Node | None], missed: Sequence[Missed], unshown: Sequence[Reduction]
) -> Share:
    """Compares the gradients at the network's last layers with those that come by no captured loss."""
    if not has_other_leaves(root, captured):
        return Share()
    stops = {node for node in captured if node is not None}
    terms: list[tuple[str, Node]] = [(each.note, each.node) for each in missed if each.node is not None]
    terms += [
        (f"{end.source}, whose values were not shown to be one an instance", end.node)
        for end in unshown
        if loss_part(end.values).layers
    ]
    uncaptured = loss_part(root, stops | {node for _, node in terms})
    notes = tuple(dict.fromkeys(note for note, node in terms if node in uncaptured.stopped))
    regularizers = {end.node for end in unshown} - {node for _, node in terms}
    rest = loss_part(root, stops | {node for _, node in terms} | regularizers)
    if rest.layers:
        notes += ("a term that is neither a loss of torch nor the mean or sum of one value an instance",)
    if not notes:
        return Share(has_other_terms=True)
    return Share(_gradient_share(root, stops), notes, True)


def _gradient_share(root: Tensor, captured: Collection[Node]) -> float:
    """Norms of the captured parts' gradients at the last layers' results, over those and the norms of all others'."""
    layers = loss_part(root).layers
    try:
        whole = torch.autograd.grad(root, layers, retain_graph=True, allow_unused=True)
        handles = [node.register_prehook(_nothing) for node in captured]
        try:
            missed = torch.autograd.grad(root, layers, retain_graph=True, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()
    except RuntimeError:  # reentrant checkpoints allow no such gradients
        return 1.0
    mine = others = 0.0
    for edge, both, other in zip(layers, whole, missed, strict=True):
        if both is None:
            continue
        other = torch.zeros_like(both) if other is None or edge.node in captured else other
        mine += float((both - other).float().norm())
        others += float(other.float().norm())
    # Where nothing has a gradient, nothing is missed.
    return mine / (mine + others) if mine + others > 0 else 1.0


def _nothing(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if gradient is None else torch.zeros_like(gradient) for gradient in gradients)


def _mean(shares: Sequence[Share]) -> Share:
    """What several steps say together."""
    missed = tuple(dict.fromkeys(note for share in shares for note in share.missed))
    ratio = sum(share.ratio for share in shares) / len(shares) if shares else 1.0
    return Share(ratio, missed, any(share.has_other_terms for share in shares))
