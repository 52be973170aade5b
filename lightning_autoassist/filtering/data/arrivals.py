"""Whether a batch's rows are still in the loader's order when the training step gets them.

Hooks stand between the two: ``on_before_batch_transfer``, ``transfer_batch_to_device``, ``on_after_batch_transfer``
and ``on_train_batch_start``. In a run's first steps, and in every hundredth, the batch is compared with what left the
loader: a hook may begin to reorder late.

Shapes: B batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from lightning_autoassist.capture.row_matching import Match, columns_of, match
from lightning_autoassist.capture.row_order import INTERVAL
from lightning_autoassist.filtering.data.collation import ENOUGH_BITS
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.trainer_support.batch_parts import leaves_of
from lightning_autoassist.trainer_support.internals import num_changes
from lightning_autoassist.trainer_support.variants import overrides

HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer", "on_train_batch_start")
# So many batches are noted at first, as a hook may change their order now and then.
_MOST_STEPS = 16
# Where each of so many told an order, it was no chance.
_FEWEST_STEPS = 3
# Larger tensors are not copied; one that was changed in place says nothing then.
_MOST_COPIED = 2**18


class Leaf(NamedTuple):
    """One tensor of a batch, as it left the loader.

    Attributes:
        tensor: The tensor itself.
        version: How often it had been changed in place when it left the loader.
        values: A copy of its values; the tensor itself where it is large.
    """

    tensor: Tensor
    version: int
    values: Tensor

    @property
    def is_as_it_was(self) -> bool:
        """Whether nobody has changed the tensor in place since."""
        return num_changes(self.tensor) == self.version


class Arrivals:
    """Takes note of the batches that leave a loader: of the first ones, then of few."""

    def __init__(self) -> None:
        self._num_batches = 0

    def noted(self, batch: Any, draw: SelectedBatch) -> SelectedBatch:
        """The draw, with its batch in a run's first steps, and now and then later."""
        self._num_batches += 1
        if self._num_batches > _MOST_STEPS and self._num_batches % INTERVAL:
            return draw
        arrived = [_leaf(tensor) for tensor in leaves_of(batch) if not tensor.is_inference()]
        return draw._replace(arrived=arrived, drawn=draw.drawn or draw)


def _leaf(tensor: Tensor) -> Leaf:
    copy = tensor.detach().clone() if tensor.numel() <= _MOST_COPIED else tensor
    return Leaf(tensor, num_changes(tensor), copy)


class TransferOrder:
    """Compares batches before and after the hooks, where they were noted.

    Args:
        hooks: Names of the hooks that the user wrote, for the message.
    """

    def __init__(self, hooks: list[str]) -> None:
        self.hooks = hooks
        self._steps = self._told = 0
        self._is_refused = False

    def refusal(self, draw: SelectedBatch, batch: Any) -> str | None:
        """Why a batch's rows cannot be assigned to instances; None where their order was not seen to change.

        Args:
            draw: Of the batch.
            batch: As the training step gets it.
        """
        if draw.arrived is None or self._is_refused:
            return None
        found = _compare(draw.arrived, batch, len(draw.indices))
        self._steps += 1
        self._told += found is not None
        # A few labels may have been drawn anew, and agree now and then.
        is_certain = found is not None and (found.is_certain or self._told == self._steps >= _FEWEST_STEPS)
        if found is None or found.is_identity or not is_certain:
            return None
        self._is_refused = True
        hooks = f" ({', '.join(self.hooks)})" if self.hooks else ""
        return (
            f"The rows of the batch that training_step gets are in another order than those that the loader gave: a "
            f"hook between the two{hooks} reorders them, so that a loss cannot be assigned to its instance. Reorder "
            "instances in the loader's collate_fn, which is followed, or leave the rows of the batch in their order."
        )


def _compare(arrived: list[Leaf], batch: Any, num_rows: int) -> Match | None:
    unchanged = {id(leaf.tensor) for leaf in arrived if leaf.is_as_it_was}
    if all(id(tensor) in unchanged for tensor in leaves_of(batch)):
        return Match(None, True, ENOUGH_BITS, True)
    told = [leaf.values for leaf in arrived if leaf.is_as_it_was or leaf.values is not leaf.tensor]
    return match(columns_of(batch, num_rows), columns_of(told, num_rows))


def hooks_of(*owners: Any) -> list[str]:
    """Names of the hooks that a module or data module overrides."""
    return [hook for hook in HOOKS if any(hasattr(owner, hook) and overrides(owner, hook) for owner in owners)]
