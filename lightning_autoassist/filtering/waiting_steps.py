"""What steps showed, on its way from the model's device to the Assistant.

Shapes: B batch, F features.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_autoassist.capture.observation import InstanceLosses
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch


class PendingUpdate(NamedTuple):
    """One step's observation on its way from the model's device to the Assistant."""

    indices: Tensor
    losses: Tensor
    scores: Tensor
    labels: Tensor | None
    features: Tensor | None
    integers: dict[str, Tensor] | None  # of a stream's batch, whose indices name no instances
    arrived: torch.cuda.Event | None  # None: the tensors are on the CPU
    pass_index: int = 0
    probs: Tensor | None = None
    progress: float = 0.0
    source: str = ""  # the calls that the losses are from
    margins: Tensor | None = None
    others: Tensor | None = None  # the classes with the largest other logits


def to_host(
    draw: SelectedBatch, observation: InstanceLosses, features: Tensor | None, progress: float = 0.0
) -> PendingUpdate:
    """Start the copies to the CPU; on CUDA none of them is waited for."""
    on_cuda = observation.losses.is_cuda

    def started(tensor: Tensor) -> Tensor:
        return tensor if tensor.is_cpu else tensor.to("cpu", non_blocking=on_cuda)

    return PendingUpdate(
        indices=torch.from_numpy(draw.indices),
        losses=started(observation.losses),
        scores=started(observation.scores),
        labels=None if observation.labels is None else started(observation.labels),
        features=None if features is None else started(features),
        integers=None if draw.rows is None else draw.rows.integers,
        arrived=torch.cuda.current_stream(observation.losses.device).record_event() if on_cuda else None,
        pass_index=draw.pass_index,
        probs=None if draw.probs is None else torch.from_numpy(draw.probs),
        progress=progress,
        source=observation.source,
        margins=None if observation.margins is None else started(observation.margins),
        others=None if observation.others is None else started(observation.others),
    )


def on_host(observed: PendingUpdate) -> PendingUpdate:
    """The update once its copies have arrived on the CPU; this waits for them."""
    if observed.arrived is None:
        return observed
    observed.arrived.synchronize()
    return observed._replace(arrived=None)


class WaitingSteps:
    """Steps that the Assistant has not learnt from yet, in their order.

    Attributes:
        ready: Those that are older than the lag.
        of_all: At the end of a fit the waiting steps of all processes; else None.
        is_alone: Whether there is one process.
    """

    def __init__(self) -> None:
        self.ready: list[PendingUpdate] = []
        self.of_all: list[PendingUpdate] | None = None
        self.is_alone = True
        self._pending: deque[PendingUpdate] = deque()  # younger than the lag

    def add(self, observed: PendingUpdate, lag: int) -> None:
        """A step has ended; those that ended ``lag`` steps before it are ready."""
        self.of_all = None
        self._pending.append(observed)
        while len(self._pending) > lag:
            self.ready.append(self._pending.popleft())

    def all(self) -> list[PendingUpdate]:
        """The waiting steps of this process, in their order."""
        return [on_host(observed) for observed in (*self.ready, *self._pending)]

    def known(self) -> list[PendingUpdate]:
        """The waiting steps of all processes, as far as this one knows of those that the others know of."""
        if self.of_all is not None:
            return self.of_all
        return self.all() if self.is_alone else []

    def take_ready(self) -> list[PendingUpdate]:
        """The steps that are ready, to be learnt from now."""
        ready, self.ready = self.ready, []
        return ready

    def keep_features_of(self, num_features: int) -> None:
        """Drop the steps whose instances have another number of features."""
        for waiting in (self._pending, self.ready):
            fitting = [one for one in waiting if one.features is None or one.features.shape[1] == num_features]
            waiting.clear()
            waiting.extend(fitting)

    def clear(self) -> None:
        """Drop all waiting steps."""
        self._pending.clear()
        self.ready.clear()
        self.of_all = None

    def state_dict(self) -> dict[str, Any]:
        """The waiting steps, as tensors on the CPU and builtins."""
        return {
            "pending": [on_host(observed)._asdict() for observed in self._pending],
            "ready": [on_host(observed)._asdict() for observed in self.ready],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.clear()
        self._pending.extend(PendingUpdate(**parts) for parts in state["pending"])
        self.ready.extend(PendingUpdate(**parts) for parts in state["ready"])
