"""The random generators that a run draws from, the global ones and those of its loader: their states and seeds."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

# Sampler in sampler in batch sampler in loader, and some to spare.
MAX_DEPTH = 6
# A list of more entries holds data, and no generators.
MAX_ENTRIES = 64

OwnGenerator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def rng_state() -> dict[str, Any]:
    """States of torch's, numpy's, Python's and the CUDA devices' generators, as tensors and builtins."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002, the global one is what users draw from
    numpy_state["state"]["key"] = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "torch": torch.get_rng_state(),
        "numpy": numpy_state,
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state_all() if has_cuda else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Set the global generators to :func:`rng_state`.

    Example:
        >>> state = rng_state()
        >>> first = torch.rand(3)
        >>> restore_rng_state(state)
        >>> torch.equal(torch.rand(3), first)
        True
    """
    torch.set_rng_state(state["torch"])
    numpy_state = {**state["numpy"], "state": dict(state["numpy"]["state"])}
    numpy_state["state"]["key"] = numpy_state["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy_state)  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def forked_generators(device: torch.device) -> AbstractContextManager[None]:
    """A context behind which the generators of the CPU and of a device are as they were before it."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def generator_state(device: torch.device) -> torch.Tensor:
    """State of the global generator of a device, or of the CPU."""
    return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)


def set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    """Set the global generator of a device to :func:`generator_state`."""
    if device.type == "cpu":
        torch.set_rng_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, device)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a model on a device draws from: the CPU's and the device's.

    ``torch.manual_seed`` would seed those of all other devices too. Where CUDA is there and not in use it remembers the
    seed with the text of the whole stack, which takes 3 ms within a Trainer.

    Example:
        >>> with forked_generators(torch.device("cpu")):
        ...     seed_generators(3, torch.device("cpu"))
        ...     first = torch.rand(2)
        >>> torch.equal(first, torch.rand(2, generator=torch.Generator().manual_seed(3)))
        True
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class RunRng:
    """All generators that a run draws from in the main process: the global ones and those of its train loader.

    Attributes:
        loader: The user's train loader; its generators are found on it, on its samplers and on its data set.

    Example:
        >>> rng = RunRng(DataLoader(range(6), shuffle=True, generator=torch.Generator().manual_seed(1)))
        >>> state = rng.state_dict()
        >>> first = list(rng.loader)
        >>> rng.load_state_dict(state)
        >>> list(rng.loader) == first
        True
    """

    def __init__(self, loader: Any = None) -> None:
        self.loader = loader

    def state_dict(self) -> dict[str, Any]:
        """All states, as tensors and builtins."""
        own = {name: _state_of(generator) for name, generator in own_generators(self.loader)}
        return {**rng_state(), "own": own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the generators to :meth:`state_dict`; those of a loader that has other ones stay as they are."""
        restore_rng_state(state)
        own = state.get("own", {})
        for name, generator in own_generators(self.loader):
            if name in own and own[name][0] == type(generator).__name__:
                _set_state(generator, own[name][1])


def own_generators(loader: Any) -> Iterator[tuple[str, OwnGenerator]]:
    """The generators that a loader, its samplers and its data set hold, each once, by where they are."""
    yield from _generators_in(loader, "loader", {}, MAX_DEPTH)


def _generators_in(owner: Any, place: str, known: dict[int, Any], depth: int) -> Iterator[tuple[str, OwnGenerator]]:
    if id(owner) in known:
        return
    if isinstance(owner, OwnGenerator) and not isinstance(owner, random.SystemRandom):
        known[id(owner)] = owner
        yield place, owner
    elif depth and _may_hold_generators(owner):
        known[id(owner)] = owner
        for name, value in _parts_of(owner):
            yield from _generators_in(value, f"{place}.{name}", known, depth - 1)


def _may_hold_generators(owner: Any) -> bool:
    if isinstance(owner, (list, tuple, Mapping)):
        return len(owner) <= MAX_ENTRIES
    if isinstance(owner, (DataLoader, Sampler, Dataset)):
        return True
    # A sampler or a loader of a class of the user's own.
    is_data = isinstance(owner, (str, bytes, torch.Tensor, np.ndarray, torch.nn.Module, type))
    return isinstance(owner, Iterable) and hasattr(owner, "__dict__") and not is_data


def _parts_of(owner: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(owner, Mapping):
        return ((str(name), value) for name, value in owner.items())
    if isinstance(owner, (list, tuple)):
        return ((str(place), value) for place, value in enumerate(owner))
    return list(vars(owner).items())


def _state_of(generator: OwnGenerator) -> list[Any]:
    """Which kind of generator it is, and its state."""
    kind = type(generator).__name__
    if isinstance(generator, torch.Generator):
        return [kind, generator.get_state()]
    if isinstance(generator, random.Random):
        return [kind, generator.getstate()]
    if isinstance(generator, np.random.Generator):
        return [kind, _without_arrays(generator.bit_generator.state)]
    return [kind, _without_arrays(generator.get_state(legacy=False))]


def _set_state(generator: OwnGenerator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, internal, gauss = state
        generator.setstate((version, tuple(internal), gauss))
    elif isinstance(generator, np.random.Generator):
        now = generator.bit_generator.state
        if now["bit_generator"] == state["bit_generator"]:
            generator.bit_generator.state = _like(now, state)
    else:
        now = generator.get_state(legacy=False)
        if now["bit_generator"] == state["bit_generator"]:
            generator.set_state(_like(now, state))


def _without_arrays(state: Any) -> Any:
    """A generator's state in builtins: numpy's arrays are not for checkpoints that hold tensors and builtins only."""
    if isinstance(state, Mapping):
        return {name: _without_arrays(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state


def _like(now: Any, state: Any) -> Any:
    """``state`` with arrays where ``now`` has them."""
    if isinstance(now, Mapping):
        return {name: _like(now[name], value) for name, value in state.items()}
    return np.array(state, now.dtype) if isinstance(now, np.ndarray) else state
