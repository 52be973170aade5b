"""The tensors among the arguments and results of torch's functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors_of(values: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists, mappings and slices, in their order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_of(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_of(value)
    elif isinstance(values, slice):
        yield from tensors_of((values.start, values.stop, values.step))


def with_replaced(values: Any, kind: type, replacement: Callable[[Any], Any]) -> Any:
    """A copy of nested containers in which all objects of a kind are replaced.

    Args:
        values: Tuples, lists, dictionaries and slices.
        kind: The objects' class.
        replacement: Gets an object, returns what stands for it.

    Example:
        >>> with_replaced({"dims": (torch.zeros(1), [2])}, Tensor, lambda tensor: "a tensor")
        {'dims': ('a tensor', [2])}
    """
    if isinstance(values, kind):
        return replacement(values)
    if isinstance(values, dict):
        return {name: with_replaced(value, kind, replacement) for name, value in values.items()}
    if isinstance(values, slice):
        return slice(*(with_replaced(value, kind, replacement) for value in (values.start, values.stop, values.step)))
    if isinstance(values, torch.Size):
        return tuple(values)
    if isinstance(values, (tuple, list)):
        parts = [with_replaced(value, kind, replacement) for value in values]
        return parts if isinstance(values, list) else tuple(parts)
    return values
