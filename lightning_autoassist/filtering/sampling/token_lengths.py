"""Lengths of instances in tokens: given, stored in the data set, or read from it.

Shapes: N data set, C lengths of an instance (such as source and target).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Number
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import Subset

from lightning_autoassist.filtering.sampling.order_pieces import index_array
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state


def length_array(lengths: Any) -> npt.NDArray[np.int64]:
    """Lengths as an array of shape ``(N, C)``, each at least 1.

    Raises:
        ValueError: If they are no whole numbers, or of another shape.

    Example:
        >>> length_array([3, 0, 2]).tolist()
        [[3], [1], [2]]
    """
    array = np.asarray(lengths.numpy(force=True) if isinstance(lengths, Tensor) else lengths)
    if array.ndim not in (1, 2) or array.dtype.kind not in "iu" or not array.size:
        raise ValueError(
            f"lengths must be whole numbers, of shape (N,) or (N, C); got {array.dtype} of shape {array.shape}"
        )
    if (array < 0).any():
        raise ValueError(f"lengths must not be negative, got {int(array.min())}")
    return np.maximum(array.astype(np.int64), 1).reshape(len(array), -1)


def stored_lengths(dataset: Any) -> Any:
    """The data set's attribute ``lengths``, through ``Subset``s of one; None where there is none."""
    if type(dataset) is Subset:
        whole = stored_lengths(dataset.dataset)
        return None if whole is None else length_array(whole)[index_array(dataset.indices)]
    return getattr(dataset, "lengths", None)


def read_lengths(dataset: Any, length: Callable[[Any], Any]) -> list[Any]:
    """Read a whole data set for its lengths, leaving the global random generators as they are."""
    rank_zero_warn(
        f"all {len(dataset)} instances of the data set are read once for their lengths; lengths=[...], or an attribute "
        "`lengths` of the data set, saves this"
    )
    state = rng_state()
    try:
        return [length(dataset[index]) for index in range(len(dataset))]
    finally:
        restore_rng_state(state)


def longest_sequence(instance: Any) -> int:
    """Length of the longest sequence in an instance: of tensors and arrays along their first axis, of lists of numbers.

    Raises:
        ValueError: If there is none; text has a length only once it is tokenized.

    Example:
        >>> import torch
        >>> longest_sequence({"source": [5, 6, 7], "target": torch.tensor([8, 9]), "name": "a sentence"})
        3
    """
    longest = max(_sequence_lengths(instance), default=None)
    if longest is None:
        raise ValueError(
            f"an instance of type {type(instance).__name__} holds no tensor, array or list of numbers that tells its "
            "length; give lengths=, a number for each instance or a function of one"
        )
    return longest


def _sequence_lengths(part: Any) -> Iterable[int]:
    if isinstance(part, (Tensor, np.ndarray)):
        if part.ndim:
            yield len(part)
    elif isinstance(part, Mapping):
        for value in part.values():
            yield from _sequence_lengths(value)
    elif isinstance(part, (list, tuple)):
        if part and all(isinstance(item, Number) for item in part):
            yield len(part)
        else:
            for item in part:
                yield from _sequence_lengths(item)
