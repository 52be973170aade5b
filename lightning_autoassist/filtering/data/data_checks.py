"""Checks of the data that AutoAssistDataModule is given: each error says in one line what to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_autoassist.filtering.data.stream_loader import is_stream
from lightning_autoassist.filtering.sampling.indexed_data import IndexedData, UnfilterableError
from lightning_autoassist.trainer_support.arguments import check_function, received
from lightning_autoassist.trainer_support.variants import DATA_MODULE_TYPES, MODULE_TYPES, Trainer

WANTED = "data must be a LightningDataModule, a train DataLoader or a LightningModule with a train_dataloader"


def check_data(data: Any) -> None:
    """Raise TypeError unless ``data`` can be trained on."""
    if isinstance(data, (*DATA_MODULE_TYPES, *MODULE_TYPES, DataLoader)):
        return
    if isinstance(data, type):
        raise TypeError(f"{WANTED}, got {received(data)}; write AutoAssistDataModule({data.__name__}(...))")
    if isinstance(data, Dataset):
        raise TypeError(
            f"{WANTED}, got {received(data)}, which is a data set; write "
            "AutoAssistDataModule(DataLoader(dataset, batch_size=32, shuffle=True))"
        )
    if isinstance(data, (Tensor, np.ndarray)):
        raise TypeError(
            f"{WANTED}, got {received(data)}; write "
            "AutoAssistDataModule(DataLoader(TensorDataset(inputs, targets), batch_size=32, shuffle=True))"
        )
    if isinstance(data, (list, tuple, Mapping)):
        raise TypeError(
            f"{WANTED}, got {received(data)}; several train loaders cannot be filtered, so pass one of them"
        )
    if not is_stream(data):
        raise TypeError(f"{WANTED}, got {received(data)}; write AutoAssistDataModule(MyDataModule(), budget=0.6)")


def check_is_no_wrapper(data: Any, wrapper: type) -> None:
    """Raise TypeError where the data are wrapped already."""
    if isinstance(data, wrapper):
        raise TypeError(
            f"data is an {wrapper.__name__} already; give it to the Trainer as it is: "
            "trainer.fit(model, datamodule=data)"
        )


def check_loaders(stage: str, loaders: Any) -> None:
    """Raise TypeError where the loaders of a stage are none."""
    name = f"{stage}_dataloaders"
    if isinstance(loaders, DATA_MODULE_TYPES):
        raise TypeError(f"{name} must be loaders, got {received(loaders)}; write {name}=data.{stage}_dataloader()")
    if isinstance(loaders, (str, type, bool, int, float)):
        raise TypeError(
            f"{name} must be loaders, got {received(loaders)}; write {name}=DataLoader(dataset, batch_size=32)"
        )


def check_lengths(lengths: Any) -> None:
    """Raise TypeError unless ``lengths`` are numbers, or a function that gives them."""
    if isinstance(lengths, (str, bool, int, float, Mapping)):
        raise TypeError(
            "lengths must be a number for each instance, or a function that gets an instance and returns its length, "
            f"got {received(lengths)}; write lengths=lambda instance: len(instance[0])"
        )
    if isinstance(lengths, type):
        check_function("lengths", lengths, "lambda instance: len(instance[0])")


def check_pad_values(values: Any) -> None:
    """Raise TypeError unless ``values`` are a number, or numbers by the names of columns."""
    for value in values.values() if isinstance(values, Mapping) else (values,):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number, type(None))):
            raise TypeError(
                f"pad_values must be a number, or numbers by the names of columns, got {received(value)}; write "
                'pad_values=0, or pad_values={"ids": 0}'
            )


def check_steps(data: IndexedData, steps_per_epoch: int | None, *, by_tokens: bool) -> None:
    """Check that ``steps_per_epoch`` is given where it is needed, and nowhere else.

    Args:
        data: What the train loader tells of its instances.
        steps_per_epoch: As the user gave it.
        by_tokens: Whether batches are put together by tokens.

    Raises:
        MisconfigurationException: If it is given for data with a length.
        UnfilterableError: If it is missing, or batches by tokens have no length.
    """
    if data.num_candidates is not None:
        if steps_per_epoch is not None:
            raise MisconfigurationException(
                f"steps_per_epoch={steps_per_epoch} is for streams, and this data set has a length; leave it out, and "
                "say with budget= which share of its batches to train on"
            )
        return
    name = type(data.candidates).__name__
    if by_tokens:
        raise UnfilterableError(f"max_tokens= needs a sampler with a length; define {name}.__len__")
    if steps_per_epoch is None:
        raise UnfilterableError(
            f"the train loader's sampler ({name}) has no length, so the number of batches in an epoch is not known; "
            f"define {name}.__len__, or write AutoAssistDataModule(data, steps_per_epoch=...)"
        )


def check_validation_interval(trainer: Trainer | None, num_batches: int, budget: float) -> None:
    """Refuse an interval of validation that is longer than an epoch.

    Args:
        trainer: The Trainer, or None.
        num_batches: K.
        budget: Of the data module, for the message.

    Raises:
        MisconfigurationException: If an epoch ends before the Trainer would validate in it.
    """
    if trainer is None or trainer.check_val_every_n_epoch is None or not trainer.limit_val_batches:
        return
    if isinstance(trainer.val_check_interval, int) and trainer.val_check_interval > num_batches:
        raise MisconfigurationException(
            f"val_check_interval={trainer.val_check_interval} is more than the {num_batches} batches an epoch has "
            f"at budget={budget}; use val_check_interval={num_batches} or less, or 1.0 for the epoch's end"
        )


def check_label_count(labels: Any, num_instances: int) -> None:
    """Raise MisconfigurationException unless ``labels`` are None or one for each of N instances."""
    if labels is not None and len(labels) != num_instances:
        raise MisconfigurationException(
            f"labels= holds {len(labels)} labels, and the train data set has {num_instances} instances; give one label "
            "for each instance"
        )


def check_labels_have_indices(labels: Any) -> None:
    """Raise MisconfigurationException where ``labels`` are given for a stream."""
    if labels is not None:
        raise MisconfigurationException(
            f"labels= holds {len(labels)} labels, and the instances of a stream have no indices to find them by; leave "
            "labels= out, as a stream's classes are taken from its batches"
        )
