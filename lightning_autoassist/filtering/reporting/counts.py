"""What became of each instance, and what one looks like: the figures and pictures that loggers get.

Shapes: N data set, M instances that are counted, n candidates, C classes, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_autoassist.trainer_support.arrays import IndexArray
from lightning_autoassist.trainer_support.batch_parts import tensors_in
from lightning_autoassist.trainer_support.rng import restore_rng_state, rng_state

MAX_COUNTED = 1_000_000
MIN_PIXELS = 32  # smaller pictures are enlarged to be seen
_CHANNELS = (1, 3, 4)
_BYTE_MAX = 255

Picture = npt.NDArray[np.uint8]


class InstanceCounts:
    """How often each instance was kept and dropped, and its last keep probability.

    Of more than a million instances every k-th is counted, for the smallest odd k with which they are no more: at most
    20 MB in memory, and 6 MB in a checkpoint (12 once an instance was considered more than 255 times), however large N.

    Args:
        num_instances: N.

    Example:
        >>> counts = InstanceCounts(3)
        >>> counts.add(np.array([0, 2]), np.array([1.0, 0.5]), np.array([True, False]))
        >>> counts.kept.tolist(), counts.dropped.tolist()
        ([1, 0, 0], [0, 0, 1])
    """

    def __init__(self, num_instances: int) -> None:
        self.num_instances = num_instances
        # Odd: data that are sorted in pairs or in rows of a power of two are still counted evenly.
        self.stride = -(-num_instances // MAX_COUNTED) | 1
        num_counted = -(-num_instances // self.stride)
        self.kept = np.zeros(num_counted, np.int32)
        self.dropped = np.zeros(num_counted, np.int32)
        self.probs = np.full(num_counted, np.nan, np.float32)
        self._before = self.kept.copy(), self.dropped.copy()

    @property
    def indices(self) -> IndexArray:
        """Positions in the data set of the instances that are counted, shape ``(M,)``."""
        return np.arange(len(self.kept), dtype=np.int64) * self.stride

    def add(self, candidates: IndexArray, probs: npt.NDArray[Any], kept: npt.NDArray[np.bool_]) -> None:
        """Candidates were considered, each of shape ``(n,)``: their keep probabilities, and whether they were kept."""
        if candidates.min(initial=0) < 0 or candidates.max(initial=0) >= self.num_instances:
            # Negative indices count from the end; instances that the data set got since are not counted.
            candidates = np.where(candidates < 0, candidates + self.num_instances, candidates)
            counted = (candidates >= 0) & (candidates < self.num_instances)
            candidates, probs, kept = candidates[counted], probs[counted], kept[counted]
        if self.stride > 1:
            counted = candidates % self.stride == 0
            candidates, probs, kept = candidates[counted] // self.stride, probs[counted], kept[counted]
        # Not kept[candidates] += 1, which would count a candidate once that a sampler with replacement drew twice.
        np.add.at(self.kept, candidates[kept], 1)
        np.add.at(self.dropped, candidates[~kept], 1)
        self.probs[candidates] = probs

    def start_epoch(self) -> None:
        """Count what follows as a new epoch."""
        self._before = self.kept.copy(), self.dropped.copy()

    def state_dict(self) -> dict[str, Any]:
        """The counts, as tensors of the smallest type that holds them, and builtins."""
        return {
            "num_instances": self.num_instances,
            "kept": _packed(self.kept),
            "dropped": _packed(self.dropped),
            "probs": torch.from_numpy(self.probs.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, of as many instances; the epoch begins anew."""
        assert state["num_instances"] == self.num_instances
        self.kept, self.dropped = (state[name].numpy().astype(np.int32) for name in ("kept", "dropped"))
        self.probs = state["probs"].numpy().copy()
        self.start_epoch()

    def by_class(self, labels: npt.NDArray[Any]) -> dict[int, tuple[int, int]]:
        """How many candidates of each class were kept and dropped in this epoch.

        Args:
            labels: Of the instances that are counted, shape ``(M,)``, integer.
        """
        kept, dropped = self.kept - self._before[0], self.dropped - self._before[1]
        classes, places = np.unique(labels, return_inverse=True)
        sums = (np.bincount(places, counts, len(classes)) for counts in (kept, dropped))
        return {
            int(label): (int(num_kept), int(num_dropped))
            for label, num_kept, num_dropped in zip(classes, *sums, strict=True)
            if num_kept + num_dropped
        }

    def extremes(self, most: int) -> tuple[IndexArray, IndexArray]:
        """Places (among those counted) of the instances kept least and most of the times they were candidates."""
        places = np.flatnonzero(self.kept + self.dropped)
        ratio = self.kept[places] / (self.kept[places] + self.dropped[places])
        # Of equal shares the ones more often decided come first, then the lower and higher probability.
        decided, probs = -(self.kept[places] + self.dropped[places]), self.probs[places]
        least = places[np.lexsort((probs, decided, ratio))[:most]]
        return least, places[np.lexsort((-probs, decided, -ratio))[:most]]


def _packed(counts: npt.NDArray[np.int32]) -> Tensor:
    fits_a_byte = counts.max(initial=0) <= _BYTE_MAX
    return torch.from_numpy(counts.astype(np.uint8) if fits_a_byte else counts.copy())


class Reliability(NamedTuple):
    """Predicted against realised: bins of predictions, and the share of informative instances in each.

    Attributes:
        predicted: Mean prediction of each bin.
        realised: Share of its instances that turned out informative.
        counts: Its instances.
        calibration_error: Mean distance of the two over the instances; None where predictions are no probabilities.
    """

    predicted: npt.NDArray[np.float64]
    realised: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    calibration_error: float | None


def reliability(predictions: Tensor, targets: Tensor, num_bins: int = 10) -> Reliability:
    """Compare an Assistant's predictions with what turned out.

    Args:
        predictions: Shape ``(n,)``; probabilities are binned evenly, other scores by their quantiles.
        targets: Whether each was informative, shape ``(n,)``, bool.
        num_bins: At most so many bins.

    Example:
        >>> reliability(torch.tensor([0.11, 0.13, 0.9]), torch.tensor([False, True, True])).realised
        array([0.5, 1. ])
    """
    values, informative = predictions.double().numpy(), targets.numpy()
    are_probs = bool((values >= 0).all() and (values <= 1).all())
    inner = np.linspace(0, 1, num_bins + 1)[1:-1]
    bins = np.digitize(values, inner if are_probs else np.unique(np.quantile(values, inner)))
    counts = np.bincount(bins)
    used = np.flatnonzero(counts)
    predicted = np.bincount(bins, values)[used] / counts[used]
    realised = np.bincount(bins, informative)[used] / counts[used]
    error = float(np.average(np.abs(predicted - realised), weights=counts[used])) if are_probs else None
    return Reliability(predicted, realised, counts[used], error)


# ---- what an instance looks like


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
