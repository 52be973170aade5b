"""The weights that filtering gives to instances, in the losses of blocks: so that all blocks learn of one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import Tensor

from lightning_autoassist.capture.active_step import overlooked
from lightning_autoassist.capture.loss_capture import InstanceLossCapture
from lightning_autoassist.capture.loss_weights import weights_in_force


class WeightedLosses:
    """Computes losses of blocks with the weights of the step that is captured, if any."""

    def __init__(self) -> None:
        self._capture = InstanceLossCapture(score="loss")
        self._is_warned = False

    def loss(self, compute: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Tensor:
        """A loss, whose gradients by instance are weighted as those of the step's own loss.

        Args:
            compute: Computes it.
            leaves: The batch's tensors.
        """
        weights = weights_in_force()
        with overlooked():
            if weights is None:
                return compute()
            with self._capture.step(list(leaves), len(weights), weights=weights) as step:
                loss = compute()
            if step.observe(loss) is None and not self._is_warned:
                self._is_warned = True
                warnings.warn(
                    "The losses of blocks are not weighted by instance, and the network's own is: "
                    f"{step.reason} Pass reweighting='none' to AutoAssistCallback to train all blocks alike.",
                    stacklevel=2,
                )
            return loss
