"""What a checkpoint remembers of the instances of its run."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_autoassist.filtering.checkpoint import is_readable
from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.observed_visits import visits_of
from lightning_autoassist.filtering.waiting_steps import PendingUpdate
from lightning_autoassist.instances.places import InstancesError


def instances_in(checkpoint: Path, *, trusts: bool = False) -> InstanceStore:
    """What a checkpoint remembers of the instances, with what the run had not learnt from yet.

    Args:
        checkpoint: A file of Lightning's.
        trusts: Whether objects of any class may be made of what is in it, which can run any code.

    Raises:
        InstancesError: If it cannot be read so, or has no training dynamics.
    """
    selector = _selector_state(_loaded(checkpoint, trusts), checkpoint)
    state = selector["store"]
    if state is None or state.get("dynamics") is None:
        raise InstancesError(
            f"{checkpoint.name} has no training dynamics: the run has no data set with indices, or kept none. Write "
            "AutoAssistCallback(..., dynamics=True)"
        )
    store = InstanceStore(state["num_instances"], dynamics=True)
    # Features may lie in a file that is not here, and nobody asks for them.
    store.load_state_dict({**state, "features": None, "feature_file": None, "tokens": None})
    assert store.dynamics is not None
    waiting = [parts for rank in selector["ranks"] for parts in (*rank["ready"], *rank["pending"])]
    for visits in visits_of(store, [PendingUpdate(**parts) for parts in waiting]):
        store.dynamics.observe(visits)
    return store


def _loaded(checkpoint: Path, trusts: bool) -> dict[str, Any]:
    try:
        # Mapped: of a large model's weights nothing is read.
        loaded: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=not trusts, mmap=True)
    except pickle.UnpicklingError as error:
        raise InstancesError(
            f"{checkpoint} holds more than tensors and numbers, or is no checkpoint ({str(error).splitlines()[0]}). "
            "Only if you know where it comes from: --trust, which lets it run code"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise InstancesError(f"{checkpoint} is no checkpoint: {str(error).splitlines()[0]}") from error
    return loaded


def _selector_state(loaded: Any, checkpoint: Path) -> dict[str, Any]:
    callbacks = loaded.get("callbacks", {}) if isinstance(loaded, dict) else {}
    for state in callbacks.values():
        if isinstance(state, dict) and {"layout", "selector", "is_on_stream"} <= state.keys():
            if not is_readable(state, warns=False):
                raise InstancesError(
                    f"{checkpoint.name} was written by another version of AutoAssist: read it with that"
                )
            selector: dict[str, Any] = state["selector"]
            return selector
    raise InstancesError(f"{checkpoint.name} was written without AutoAssistCallback, which keeps training dynamics")
