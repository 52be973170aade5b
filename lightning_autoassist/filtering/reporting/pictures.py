"""What an instance looks like: instances loaded for a gallery, and their pictures.

Shapes: C channels, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from lightning_autoassist.trainer_support.batch_parts import tensors_in
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state

MIN_PIXELS = 32  # smaller pictures are enlarged to be seen
_CHANNELS = (1, 3, 4)
_BYTE_MAX = 255

Picture = npt.NDArray[np.uint8]


def load_instances(loader: DataLoader[Any], indices: Sequence[int]) -> list[Any]:
    """Instances as the data set gives them, without leaving a trace in the run.

    The global RNGs are set back, and where the user's loader has workers a worker loads them: files that a data set
    opens at its first instance stay closed in the main process.

    Args:
        loader: The user's train loader.
        indices: Positions in its data set.
    """
    if not indices:
        return []
    own_loader = DataLoader(
        loader.dataset,
        batch_sampler=[list(indices)],
        num_workers=min(loader.num_workers, 1),
        collate_fn=_as_they_are,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=torch.Generator(),
    )
    state = rng_state()
    try:
        instances: list[Any] = next(iter(own_loader))
    finally:
        restore_rng_state(state)
    return instances


def _as_they_are(instances: list[Any]) -> list[Any]:
    return instances


def picture_of(value: Any) -> Picture | None:
    """The largest picture in an instance, or what can be shown as one; None where there is none.

    Args:
        value: A PIL image, an array or a tensor of shape ``(H, W)``, ``(C, H, W)`` or ``(H, W, C)`` with C in 1, 3, 4,
            or a nested structure with one in it. Numbers outside of [0, 1] are scaled by their own range.

    Returns:
        Shape ``(H, W)`` or ``(H, W, 3 or 4)``; tiny ones enlarged by a whole factor.
    """
    found = [array for part in _parts(value) if (array := _as_rows(part)) is not None]
    if not found:
        return None
    array = max(found, key=lambda array: array.shape[0] * array.shape[1])
    if array.dtype != np.uint8:
        array = np.nan_to_num(array.astype(np.float32))
        low, high = float(array.min()), float(array.max())
        if low < 0 or high > 1:
            array = (array - low) / max(high - low, 1e-12)
        array = (array * _BYTE_MAX).round().astype(np.uint8)
    factor = -(-MIN_PIXELS // min(array.shape[:2]))
    enlarged: Picture = array.repeat(factor, 0).repeat(factor, 1)
    return enlarged


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _parts(part)
    elif isinstance(value, np.ndarray):
        yield value
    elif callable(getattr(value, "convert", None)):  # a PIL image
        yield np.asarray(value.convert("RGB"))
    else:
        yield from (
            tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
            for tensor in tensors_in(value)
        )


def _as_rows(array: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
    """Rows, columns, channels; None for what is no picture."""
    if array.dtype.kind not in "fiu":
        return None
    if array.ndim == 3 and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS)
    return array if is_picture and min(array.shape[:2]) > 1 else None


def grid(pictures: Sequence[Picture]) -> Picture:
    """Pictures side by side, shape ``(H, W, 3)``; smaller ones are filled up with white."""
    as_colours = [np.stack([picture] * 3, -1) if picture.ndim == 2 else picture[..., :3] for picture in pictures]
    height, width = (max(picture.shape[axis] for picture in as_colours) for axis in (0, 1))
    padded = [
        np.pad(
            picture,
            ((0, height - picture.shape[0]), (0, width - picture.shape[1] + 2), (0, 0)),
            constant_values=_BYTE_MAX,
        )
        for picture in as_colours
    ]
    return np.concatenate(padded, 1)
