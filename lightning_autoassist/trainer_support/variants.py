"""Base classes and types that belong to every installed flavour of Lightning.

``lightning`` installs ``pytorch_lightning`` beside ``lightning.pytorch``, and each Trainer accepts only the
classes of its own. A class that inherits from both is accepted by both.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Union

FLAVOUR_NAMES = ("pytorch_lightning", "lightning.pytorch")


def installed_flavours() -> list[ModuleType]:
    """Lightning's importable flavours, ``pytorch_lightning`` first."""
    found = (_imported(name) for name in FLAVOUR_NAMES)
    return [flavour for flavour in found if flavour is not None]


def _imported(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only the flavour itself may be missing; a broken installation must not pass for an absent one.
        if error.name not in {name, name.partition(".")[0]}:
            raise
        return None


FLAVOURS = installed_flavours()
DATA_MODULE_TYPES = tuple(flavour.LightningDataModule for flavour in FLAVOURS)
MODULE_TYPES = tuple(flavour.LightningModule for flavour in FLAVOURS)
TRAINER_TYPES = tuple(flavour.Trainer for flavour in FLAVOURS)

# What hooks are given. Type checkers take both flavours for ``pytorch_lightning``, whose classes have the same members.
if TYPE_CHECKING:
    from typing import TypeAlias

    from pytorch_lightning import Callback, LightningDataModule
    from pytorch_lightning import LightningModule as LightningModule
    from pytorch_lightning import Trainer as Trainer
    from pytorch_lightning.utilities.types import STEP_OUTPUT as STEP_OUTPUT

    CallbackBase: TypeAlias = Callback
    DataModuleBase: TypeAlias = LightningDataModule
else:
    LightningModule, Trainer, STEP_OUTPUT = Union[MODULE_TYPES], Union[TRAINER_TYPES], Any  # noqa: UP007

    class CallbackBase(*(flavour.Callback for flavour in FLAVOURS)):
        """``Callback`` of every installed flavour."""

    class DataModuleBase(*DATA_MODULE_TYPES):
        """``LightningDataModule`` of every installed flavour."""


def overrides(owner: Any, method: str) -> bool:
    """Whether ``owner``'s class, or ``owner`` itself, replaces ``method`` of Lightning's own base class.

    Args:
        owner: A LightningModule or LightningDataModule of any flavour.
        method: Name of a hook, e.g. ``"val_dataloader"``.
    """
    own = getattr(owner, method, None)
    if own is None:
        return False
    function = getattr(own, "__func__", own)
    bases = [base for base in (*DATA_MODULE_TYPES, *MODULE_TYPES) if isinstance(owner, base)]
    return all(getattr(base, method, None) is not function for base in bases)


def data_module_type(trainer: Any) -> type:
    """``LightningDataModule`` of the flavour that ``trainer`` is of; of the first flavour where it is of none."""
    pairs: Iterable[tuple[type, type]] = zip(DATA_MODULE_TYPES, TRAINER_TYPES, strict=True)
    return next((data_type for data_type, trainer_type in pairs if isinstance(trainer, trainer_type)), DataModuleBase)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning logs for information only, such as devices, tips and what it loads."""
    # Where both flavours are installed, either may speak under the other's name.
    loggers = [logging.getLogger(name) for name in FLAVOUR_NAMES]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
