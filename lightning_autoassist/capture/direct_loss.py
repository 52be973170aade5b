"""When steps need no watching: where each returns the very result of one loss of torch, its graph tells all there is.

A step under watch hands every function of torch that it calls to Python, which takes 2 to 9 microseconds a call: most
of what the capture costs in a network of many layers. In a run's first steps what the watch found is compared with what
is read off the graph. Where both agreed each time, later steps run unwatched.

A cross-entropy under autocast casts its logits itself. Weights, norms and margins of it are those of the
log-probabilities in the graph, watched or not, so that both tell the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_autoassist.capture.autograd_graph import holds_compiled_code, loss_at
from lightning_autoassist.capture.captured_loss import MANY_LOGITS, CapturedLoss, WeightedLoss, scripted
from lightning_autoassist.capture.instance_layout import InstanceLayout
from lightning_autoassist.losses.functional import Arguments, NamedLoss

LayoutOf = Callable[[NamedLoss, Arguments, str], "InstanceLayout | str"]

_CAST = "ToCopyBackward0"
# So many steps are compared. What a step does every now and then, it has done by then.
_STEPS = 16


class DirectLoss:
    """Decides in which steps of a run the returned loss is read off the graph, without watching the step.

    Attributes:
        source: Of the loss in the steps that were compared.
    """

    def __init__(self) -> None:
        self.source = ""
        self._is_refused = False
        self._num_steps = 0

    @property
    def is_wanted(self) -> bool:
        """Whether steps are still to be compared."""
        return not self._is_refused and self._num_steps < _STEPS

    @property
    def is_known(self) -> bool:
        """Whether steps need no watching."""
        return not self._is_refused and self._num_steps >= _STEPS

    def refuse(self) -> None:
        """Have all steps watched from now on."""
        self._is_refused = True

    def read(self, root: Tensor, layout_of: LayoutOf, score: str, *, with_margins: bool) -> CapturedLoss | None:
        """The loss that ``root`` is the very result of, read off the graph; None where it is no such loss.

        Args:
            root: What a step returned.
            layout_of: Gets a loss, its arguments and its source; returns whose its rows are, or why that is unknown.
            score: ``"gradient_norm"``, or ``"loss"``, for which nobody wants norms.
            with_margins: Whether somebody wants margins.
        """
        loss = loss_at(root)
        if loss is None or loss.arguments["reduction"] == "none" or loss.arguments["input"].numel() >= MANY_LOGITS:
            return None  # of many logits, weights enter at the rows and norms come from backward, which takes a watch
        if any(node is not None and node.name() == _CAST for node, _ in loss.node.next_functions):
            return None  # autocast may have done it within the call: a watched step's weights enter before it
        layout = layout_of(loss.named, loss.arguments, self.source)
        if isinstance(layout, str):
            return None
        found = scripted(loss, layout, with_margins=with_margins, with_norms=score == "gradient_norm")
        return found._replace(source=self.source)

    def compare(
        self, root: Tensor, parts: Sequence[WeightedLoss], read: Callable[[Tensor], CapturedLoss | None] | None
    ) -> None:
        """Take note of a watched step. Waits for the device.

        Args:
            root: What it returned.
            parts: The losses in it.
            read: Gets ``root``, returns the loss that is read off the graph; None: the step is none of this kind.
        """
        found, agree = parts[0].found, False
        if read is not None and len(parts) == 1 and parts[0].coefficient is None:
            with contextlib.suppress(Exception):  # what cannot be compared, as on the device "meta", is watched
                agree = _agree(found, read(root))
        if not agree or self.source not in ("", found.source):
            self.refuse()
            return
        self.source = found.source
        self._num_steps += 1
        if self.is_known and holds_compiled_code(root):
            self.refuse()  # it would be compiled anew for being called unwatched, and is one call under watch


def _agree(found: CapturedLoss, read: CapturedLoss | None) -> bool:
    """Whether both tell the same of the instances, bit for bit."""
    if read is None or (found.layout, found.reduction, found.tokens) != (read.layout, read.reduction, read.tokens):
        return False
    if (found.margins is None) != (read.margins is None):
        return False
    left, right = ((*each.elements, each.labels, *(each.margins or ())) for each in (found, read))
    return all(_are_equal(*pair) for pair in zip(left, right, strict=True))


def _are_equal(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    is_same = (left == right) | ((left != left) & (right != right))  # margins are NaN where a target does not count
    return bool(is_same.all())
