"""Class labels of a data set's instances, where they can be had without loading an instance.

Shapes: N data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lightning_autoassist.filtering.memory.store import KnownLabels
from lightning_autoassist.filtering.sampling.indexed_data import length_of
from lightning_autoassist.trainer_support.arguments import received

Labels = Sequence[int] | npt.NDArray[Any] | Tensor
LabelArray = npt.NDArray[np.int32]
# Where data sets keep them, torchvision's for one.
_ATTRIBUTES = ("targets", "labels")
_BOUNDS = np.iinfo(np.int32)


def known_labels(dataset: Any, given: LabelArray | None, *, reads_data: bool) -> KnownLabels | None:
    """What is known of the instances' classes before the model has seen one; None where nothing is.

    Args:
        dataset: The user's.
        given: ``labels=`` of the data module, shape ``(N,)``.
        reads_data: Whether to look into the data set where nothing was given.
    """
    if given is not None:
        return KnownLabels(given, are_given=True)
    labels = labels_in(dataset) if reads_data else None
    return None if labels is None else KnownLabels(labels, are_given=False)


def labels_in(dataset: Any) -> LabelArray | None:
    """Labels of all instances of a data set, shape ``(N,)``; -1 where one is not known, None where none is.

    They are taken from an attribute ``targets`` or ``labels``, or from the last tensor of a ``TensorDataset`` that is
    one whole number an instance, or, where there is none, that is 0 or 1 in floating point, as binary losses want it;
    ``Subset`` and ``ConcatDataset`` are looked through. Numbers of which most stand for one instance only are names of
    instances, and no classes.

    Example:
        >>> import torch
        >>> labels_in(Subset(TensorDataset(torch.rand(6, 2), torch.tensor([0, 1, 2, 0, 1, 2])), [5, 0, 2, 3]))
        array([2, 0, 2, 0], dtype=int32)
    """
    try:
        labels = _labels_in(dataset)
    except Exception:  # it is the user's data set, and does without
        return None
    if labels is None or len(labels) != length_of(dataset):
        return None
    return labels if 2 * len(np.unique(labels)) <= max(len(labels), 2) else None


def _labels_in(dataset: Any) -> LabelArray | None:
    if isinstance(dataset, Subset):
        whole = _labels_in(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices, np.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [(_labels_in(part), length_of(part) or 0) for part in dataset.datasets]
        if all(labels is None for labels, _ in parts):
            return None
        return np.concatenate([np.full(size, -1, np.int32) if own is None else own for own, size in parts])
    columns = dataset.tensors[::-1] if isinstance(dataset, TensorDataset) else ()
    stored = [getattr(dataset, name, None) for name in _ATTRIBUTES]
    given = [column for column in (*columns, *stored) if column is not None]
    found = (read(column) for read in (as_labels, _as_binary) for column in given)
    return next((labels for labels in found if labels is not None), None)


def _as_binary(values: Any) -> LabelArray | None:
    """Values in floating point as labels, shape ``(N,)``; None where they are not both 0 and 1, one an instance."""
    array = _array_of(values)
    if array is None or array.dtype.kind != "f" or array.shape[:1] != (array.size,):
        return None
    array = array.reshape(-1)
    labels = np.asarray(array == 1)
    is_binary = labels.any() and not labels.all() and not array[~labels].any()
    return labels.astype(np.int32) if is_binary else None


def as_labels(values: Any) -> LabelArray | None:
    """Values as labels, shape ``(N,)``; None where they are not one whole number an instance."""
    array = _array_of(values)
    if array is None or array.ndim != 1 or array.dtype.kind not in "iub" or not len(array):
        return None
    fits = array.dtype.kind == "b" or (array.min() >= _BOUNDS.min and array.max() <= _BOUNDS.max)
    return array.astype(np.int32) if fits else None


def _array_of(values: Any) -> npt.NDArray[Any] | None:
    if isinstance(values, Tensor):
        return values.numpy(force=True)
    return np.asarray(values) if isinstance(values, (np.ndarray, list, tuple)) else None


def check_labels(labels: Any) -> LabelArray | None:
    """``labels=`` of the data module, shape ``(N,)``.

    Raises:
        TypeError: If they are not one whole number an instance.
    """
    if labels is None:
        return None
    found = as_labels(labels)
    if found is None:
        raise TypeError(
            f"labels must be one whole number for each instance, of shape (N,), got {received(labels)}; write "
            "labels=[0, 1, ...], with -1 for an instance whose class is not known"
        )
    return found
