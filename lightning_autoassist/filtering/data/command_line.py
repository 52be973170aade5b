"""What LightningCLI makes of YAML that names a data module within :class:`AutoAssistDataModule`.

LightningCLI hands the settings under its key ``data`` to every data module that it makes for that key, as their
hyperparameters. Ours is the outer one, so that the user's module inside would get settings of ours for its own.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Union

from torch.utils.data import DataLoader

from lightning_autoassist.trainer_support.internals import given_hyperparameters, giving_hyperparameters
from lightning_autoassist.trainer_support.variants import DATA_MODULE_TYPES, FLAVOURS, MODULE_TYPES

_LIGHTNING_TYPES = (*DATA_MODULE_TYPES, *MODULE_TYPES)

if TYPE_CHECKING:
    TrainData = Any
else:
    # What can be trained on; LightningCLI builds from YAML what a signature names. The functions stand first: a data
    # module that YAML names then comes as a function that makes it, before anything of it has run.
    TrainData = Union[(*(Callable[[], kind] for kind in _LIGHTNING_TYPES), *_LIGHTNING_TYPES, DataLoader)]


def made(data: Any) -> Any:
    """``data``; where it is a function without arguments, what it returns, with hyperparameters of its own.

    Args:
        data: What the user, or LightningCLI, gave as data.
    """
    if not _is_maker(data):
        return data
    settings = _settings_in_yaml()
    kind = _class_of(data)
    if kind is None:
        return _with_own_hyperparameters(data(), settings)
    with _hyperparameters(kind, settings):
        return kind(**data.keywords)


def _is_maker(data: Any) -> bool:
    return inspect.isfunction(data) or isinstance(data, functools.partial)


def _class_of(maker: Any) -> type | None:
    """The class that jsonargparse's function makes an object of; None where it does not say."""
    if not isinstance(maker, functools.partial):
        return None
    classes = (each for each in maker.args if inspect.isclass(each) and issubclass(each, _LIGHTNING_TYPES))
    return next(classes, None)


def _settings_in_yaml() -> dict[str, Any] | None:
    """What LightningCLI would have given the user's module, had it stood there alone; None outside of LightningCLI."""
    for flavour in FLAVOURS:
        given = given_hyperparameters(flavour.__name__) or {}
        named = given.get("data")
        if isinstance(named, Mapping) and "class_path" in named:
            own = {**(named.get("init_args") or {}), **(named.get("dict_kwargs") or {})}
            return {"_class_path": named["class_path"], **own, "_instantiator": given["_instantiator"]}
    return None


def _hyperparameters(kind: type, settings: dict[str, Any] | None) -> AbstractContextManager[None]:
    """The context in which ``save_hyperparameters`` of an object of ``kind`` saves ``settings``."""
    flavour = next((flavour for flavour in FLAVOURS if issubclass(kind, _types_of(flavour))), None)
    if settings is None or flavour is None:
        return nullcontext()
    return giving_hyperparameters(flavour.__name__, settings)


def _with_own_hyperparameters(module: Any, settings: dict[str, Any] | None) -> Any:
    """Older jsonargparse makes the module itself; what it then saved of ours is replaced."""
    saved = getattr(module, "hparams", None)
    if settings is not None and saved and saved.get("_class_path") != settings["_class_path"]:
        saved.clear()
        module.save_hyperparameters(settings)
    return module


def _types_of(flavour: Any) -> tuple[type, type]:
    return flavour.LightningDataModule, flavour.LightningModule
