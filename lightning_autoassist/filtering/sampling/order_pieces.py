"""The order of candidates, read in pieces where an iteration of the sampler is very long or has no end."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state

# Indices that are read at once: so few that the first batch comes at once, whatever an index costs.
PIECE_SIZE = 4096
# A resumed run reads an iteration again up to where it was. More indices than these would take minutes.
MAX_READ_AGAIN = 5_000_000


class OrderInPieces:
    """The indices of a sampler's iterations, one iteration after the other, read as they are needed.

    A resumed run makes the iteration anew with the random states that it began with, and reads as many indices again
    as the interrupted run had read. This is exact for samplers that draw from a generator of their own, or from the
    global generators once for an iteration or once for an index.

    Args:
        sampler: Whose iterations are read.

    Example:
        >>> order = OrderInPieces(range(5))
        >>> order.read(3).tolist(), order.read(3).tolist(), order.read(3).tolist(), order.read(3).tolist()
        ([0, 1, 2], [3, 4], [], [0, 1, 2])
    """

    def __init__(self, sampler: Iterable[int]) -> None:
        self.sampler = sampler
        self.num_iterations = 0
        self._num_read = 0
        self._iterator: Iterator[int] | None = None
        self._start: dict[str, Any] | None = None  # random states at the start of the iteration
        self._restored: dict[str, Any] | None = None

    def read(self, most: int) -> IndexArray:
        """The next indices of this iteration, at most ``most``; none where it ends. The next call begins another.

        Raises:
            TypeError: If the sampler's indices are not integers.
        """
        if self._iterator is None:
            self._iterator = self._begun()
        piece = index_array(islice(self._iterator, min(most, PIECE_SIZE)))
        self._num_read += len(piece)
        if not len(piece):
            self._iterator = None
        return piece

    def read_from(self, sampler: Iterable[int]) -> None:
        """Read another sampler from now on; its first iteration begins with the next call."""
        self.sampler, self._iterator, self._restored = sampler, None, None

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration is, and the random states that it began with: tensors and builtins."""
        if self._restored is not None:
            return self._restored
        is_on = self._iterator is not None
        return {
            "num_iterations": self.num_iterations,
            "num_read": self._num_read if is_on else None,
            "start": self._start if is_on else None,
            "own_generators": own_generator_states(self.sampler),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; the iteration is made again with the next :meth:`read`."""
        self.num_iterations = state["num_iterations"]
        self._iterator, self._restored = None, state

    def _begun(self) -> Iterator[int]:
        """The iteration of a resumed run, or a new one."""
        restored, self._restored = self._restored, None
        if restored is None or restored["num_read"] is None:
            return self._new()
        if restored["num_read"] > MAX_READ_AGAIN:
            rank_zero_warn(
                f"the interrupted run had read {restored['num_read']:,} indices of {type(self.sampler).__name__}. "
                f"Reading more than {MAX_READ_AGAIN:,} of them again takes too long, so the sampler's iteration begins "
                "anew and this run is not the interrupted run's exact continuation"
            )
            return self._new()
        return self._again(restored)

    def _new(self) -> Iterator[int]:
        self._start = {"global": rng_state(), "own": own_generator_states(self.sampler)}
        announce_epoch(self.sampler, self.num_iterations)
        self.num_iterations += 1
        self._num_read = 0
        return iter(self.sampler)

    def _again(self, restored: dict[str, Any]) -> Iterator[int]:
        now = rng_state()
        self._start, self._num_read = restored["start"], restored["num_read"]
        assert self._start is not None
        try:
            restore_rng_state(self._start["global"])
            restore_own_generators(self.sampler, self._start["own"])
            announce_epoch(self.sampler, self.num_iterations - 1)
            iterator = iter(self.sampler)
            for _ in islice(iterator, self._num_read):
                pass
        finally:
            restore_rng_state(now)
            restore_own_generators(self.sampler, restored["own_generators"])
        return iterator


def index_array(indices: Iterable[int]) -> IndexArray:
    """Indices as an array of int64.

    Raises:
        TypeError: If they are not integers.
    """
    try:
        return np.fromiter(indices.numpy(force=True) if isinstance(indices, torch.Tensor) else indices, np.int64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"filtering needs a sampler that yields integer indices: {error}") from error


def announce_epoch(sampler: object, epoch: int) -> None:
    """Call ``set_epoch`` where a sampler has it: some shuffle anew only then."""
    set_epoch = getattr(sampler, "set_epoch", None)
    if callable(set_epoch):
        set_epoch(epoch)


def own_generator_states(owner: object) -> dict[str, Any]:
    """States of the random generators among an object's attributes, by attribute, as builtins and tensors."""
    return {
        name: state
        for name, value in getattr(_innermost(owner), "__dict__", {}).items()
        if (state := _state_of(value)) is not None
    }


def restore_own_generators(owner: object, states: dict[str, Any]) -> None:
    """Set an object's own random generators to :func:`own_generator_states`."""
    for name, state in states.items():
        generator = getattr(_innermost(owner), name, None)
        if isinstance(generator, torch.Generator):
            generator.set_state(state)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, random.Random):
            version, internal, gauss = state
            generator.setstate((version, tuple(internal), gauss))


def _innermost(owner: object) -> object:
    """The user's sampler, within ours."""
    given = getattr(owner, "given", None)
    return owner if given is None else _innermost(given)


def _state_of(generator: object) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    # Of numpy's generators only those whose state is made of integers, as a checkpoint holds no arrays.
    if isinstance(generator, np.random.Generator) and isinstance(generator.bit_generator, np.random.PCG64):
        return generator.bit_generator.state
    return None
