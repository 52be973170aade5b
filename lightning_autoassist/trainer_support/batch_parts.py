"""The parts of a batch or of an instance, also where it is of a class of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor


def parts_of(whole: Any) -> list[Any]:
    """The entries of a collection; of any other object, its attributes that are tensors, arrays or numbers."""
    try:
        return _parts_of(whole)
    except Exception:  # of the user's own class
        return []


def _parts_of(whole: Any) -> list[Any]:
    if type(whole) in (list, tuple):  # at once: this is asked of each batch, and what follows takes longer
        return list(whole)
    if isinstance(whole, Mapping):
        return list(whole.values())
    if isinstance(whole, (Tensor, np.ndarray, np.generic, Number, str, bytes, type)) or whole is None:
        return []
    if isinstance(whole, Sequence):
        return list(whole)
    if is_dataclass(whole):
        return [getattr(whole, field.name) for field in fields(whole)]
    if hasattr(whole, "to_dict") and type(whole).__module__.startswith("torch_geometric."):
        return list(whole.to_dict().values())
    return [each for each in vars(whole).values() if isinstance(each, (Tensor, np.ndarray, Number))]


def leaves_of(batch: Any, depth: int = 8) -> Iterator[Tensor]:
    """The tensors in a batch, and its lists of numbers as tensors, in their order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, np.ndarray):
        if batch.dtype.kind in "biuf":
            yield torch.from_numpy(batch.copy())
    elif isinstance(batch, (list, tuple)) and batch and all(isinstance(each, (int, float)) for each in batch):
        yield torch.tensor(batch)
    elif depth:
        for part in parts_of(batch):
            yield from leaves_of(part, depth - 1)


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch of tuples, lists, mappings and dataclasses, in their order."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for value in batch:
            yield from tensors_in(value)
    elif is_dataclass(batch) and not isinstance(batch, type):
        for field in fields(batch):
            yield from tensors_in(getattr(batch, field.name))
