"""Galleries: the instances kept least and most, and the epochs whose galleries and tables loggers get."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from lightning_autoassist.filtering.memory.store import InstanceStore
from lightning_autoassist.filtering.names import ScoreName
from lightning_autoassist.filtering.reporting.counts import InstanceCounts
from lightning_autoassist.filtering.reporting.epoch_figures import Gallery
from lightning_autoassist.filtering.reporting.metric_names import PREFIX
from lightning_autoassist.filtering.reporting.pictures import Picture, load_instances, picture_of
from lightning_autoassist.trainer_support.arrays import IndexArray

GALLERY_SIZE = 12  # instances at either end

Decode = Callable[[Any], Any]


class GalleryOptions(Protocol):
    """The callback, as galleries read it."""

    score: ScoreName
    decode: Decode | None
    gallery: bool
    gallery_every_n_epochs: int | None

    @property
    def instances(self) -> InstanceStore | None:
        """What is remembered of each instance."""


def is_due(every_n_epochs: int | None, counts: InstanceCounts, epoch: int, num_epochs: float) -> bool:
    """Whether the loggers get galleries and tables at the end of an epoch.

    Args:
        every_n_epochs: Epochs between two galleries; None: the first epoch in which anything was dropped, the middle
            one and the last one.
        counts: Of the run and of the epoch.
        epoch: Number of the epoch, from 0 on.
        num_epochs: Of the run; infinite where it is not known.
    """
    if every_n_epochs is not None:
        return (epoch + 1) % every_n_epochs == 0
    return counts.begins_to_drop or epoch + 1 >= num_epochs or epoch == num_epochs // 2


def gallery_of(options: GalleryOptions, trainer: Any, counts: InstanceCounts) -> Gallery:
    """Rows of the instances kept least and most; none before anything was dropped, and where no gallery is wanted.

    Args:
        options: The callback.
        trainer: Has the train loader.
        counts: Of the run.
    """
    if not options.gallery or not counts.dropped.any():
        return {}
    ends = zip(("least_kept", "most_kept"), counts.extremes(GALLERY_SIZE), strict=True)
    return {PREFIX + name: _rows(options, trainer, counts, places) for name, places in ends}


def labels_of(store: InstanceStore | None, counts: InstanceCounts) -> Any:
    """Labels of the counted instances where they were seen, -1 elsewhere; None without labels.

    Args:
        store: What is remembered of each instance.
        counts: Of the run.
    """
    if store is None or store.labels is None:
        return None
    rows = torch.from_numpy(counts.indices)
    return store.labels[rows].where(store.seen[rows], -1).numpy()


def _rows(options: GalleryOptions, trainer: Any, counts: InstanceCounts, places: IndexArray) -> list[dict[str, Any]]:
    store = options.instances
    labels = labels_of(store, counts)
    indices = counts.indices[places].tolist()
    instances = load_instances(trainer.train_dataloader.plain, indices)
    rows = []
    for place, index, instance in zip(places, indices, instances, strict=True):
        row = {"index": index, "shown": _shown(options.decode, instance)}
        if labels is not None:
            row["label"] = int(labels[place])
        if store is not None:
            row[options.score] = float(store.scores[index])
        row["kept"], row["dropped"] = int(counts.kept[place]), int(counts.dropped[place])
        row["keep_prob"] = float(counts.probs[place])
        rows.append(row)
    return rows


def _shown(decode: Decode | None, instance: Any) -> str | Picture | None:
    if decode is not None:
        decoded = decode(instance)
        return decoded if isinstance(decoded, str) else picture_of(decoded)
    return picture_of(instance)
