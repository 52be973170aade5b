"""The user's own batches, with their place in the order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler
from typing_extensions import override

from lightning_autoassist.filtering.data.fetching import DrawSource
from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.filtering.sampling.order_pieces import announce_epoch, index_array
from lightning_autoassist.trainer_support.rng import RunRng


class PlainBatches(DrawSource):
    """The user's own batches, unfiltered, a short last one included; every epoch starts anew.

    A resumed run goes through the epoch's order again, up to where it was: the generators' states at the epoch's start
    are part of the state.

    Args:
        batch_sampler: The user's batch sampler.
        rng: The generators that it may draw from; None: the global ones.
        epoch: Gives the number of the epoch that begins.
    """

    def __init__(
        self, batch_sampler: BatchSampler, rng: RunRng | None = None, epoch: Callable[[], int] | None = None
    ) -> None:
        self.batch_sampler = batch_sampler
        self.num_epochs = 0
        self._rng = RunRng() if rng is None else rng
        self._epoch = epoch
        self._at_start: dict[str, Any] | None = None  # of the epoch
        self._limit: int | None = None
        self._num_confirmed = 0
        self._in_flight: deque[SelectedBatch] = deque()
        self._restored: dict[str, Any] | None = None

    @override
    def draws(self, limit: int | None = None) -> Iterator[SelectedBatch]:
        # Lightning would have called set_epoch on the user's loader; it does not see that one.
        announce_epoch(
            getattr(self.batch_sampler, "sampler", None), self.num_epochs if self._epoch is None else self._epoch()
        )
        self.num_epochs += 1
        restored, self._restored = self._restored, None
        again: list[SelectedBatch] = []
        if restored is not None and _is_rest(restored, limit):
            batches, again = self._continued(restored)
        else:
            self._at_start, self._limit, self._num_confirmed = self._rng.state_dict(), limit, 0
            batches = iter(self.batch_sampler)
        self._in_flight = deque(again)
        yield from again
        for batch in islice(batches, None if limit is None else max(0, limit - len(again))):
            draw = SelectedBatch(index_array(batch), None, lacks_features=True)
            self._in_flight.append(draw)
            yield draw

    @override
    def mark_consumed(self, draw: SelectedBatch) -> None:
        self._in_flight.popleft()
        self._num_confirmed += 1

    def state_dict(self) -> dict[str, Any]:
        """Place in the epoch, and its start; tensors and builtins."""
        return {
            "at_start": self._at_start,
            "limit": self._limit,
            "num_confirmed": self._num_confirmed,
            "in_flight": [torch.from_numpy(draw.indices) for draw in self._in_flight],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`: the next epoch is the rest of the interrupted one, if that has a rest."""
        self._restored = state

    def _continued(self, state: dict[str, Any]) -> tuple[Iterator[Any], list[SelectedBatch]]:
        """The rest of an interrupted epoch: its batches, and before them those that had been asked for."""
        self._at_start, self._limit = state["at_start"], state["limit"]
        self._num_confirmed = state["num_confirmed"]
        again = [SelectedBatch(indices.numpy(), None, lacks_features=True) for indices in state["in_flight"]]
        now = self._rng.state_dict()
        self._rng.load_state_dict(state["at_start"])
        batches = iter(self.batch_sampler)
        for _ in islice(batches, self._num_confirmed + len(again)):
            pass
        self._rng.load_state_dict(now)
        return batches, again


def _is_rest(state: dict[str, Any], limit: int | None) -> bool:
    """Whether an epoch of ``limit`` batches is the rest of the one that the state of plain batches is of."""
    if state["at_start"] is None or state["limit"] is None or limit is None:
        return False
    return bool(0 < limit == state["limit"] - state["num_confirmed"])
