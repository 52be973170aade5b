"""The states of the global random generators, for checkpoints: shuffling, dropout and augmentation draw from them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


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
