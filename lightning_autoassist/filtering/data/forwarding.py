"""A data module that stands before the user's data, and passes on what is not its own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MethodType
from typing import Any

from typing_extensions import override

from lightning_autoassist.filtering.data.data_checks import check_data, check_loaders
from lightning_autoassist.trainer_support.internals import LOGS_HYPERPARAMETERS
from lightning_autoassist.trainer_support.shared_settings import SharesSettings
from lightning_autoassist.trainer_support.variants import (
    DATA_MODULE_TYPES,
    MODULE_TYPES,
    DataModuleBase,
    Trainer,
    data_module_type,
    overrides,
)

# Hooks that Lightning runs only where they are overridden: forwarded only where the user wrote them.
_LOADERS = ("val_dataloader", "test_dataloader", "predict_dataloader")
_HOOKS = (
    *_LOADERS,
    "prepare_data",
    "setup",
    "teardown",
    "on_exception",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
_SETTINGS = (
    "prepare_data_per_node",
    "allow_zero_length_dataloader_with_multiple_devices",
    LOGS_HYPERPARAMETERS,
)


class ForwardingDataModule(SharesSettings, DataModuleBase):
    """Answers for the user's data: hooks, attributes, hyperparameters and state are theirs.

    A subclass sets attributes of its own before it calls this initialiser. Once that has run, setting a name that only
    the user's data module has sets it there.

    Args:
        wrapped: The user's data module, module with loaders, or train loader.
        loaders: Loaders beside a train loader, by ``"val"``, ``"test"`` and ``"predict"``; None: there is none.

    Raises:
        TypeError: If ``wrapped`` is something else, or loaders are given beside a module.
    """

    def __init__(self, wrapped: Any, loaders: Mapping[str, Any]) -> None:
        # Set first: the attributes below are looked up on it while Lightning's own initialisers run.
        self.__dict__.update(wrapped=wrapped, _trainer=None, _users_hooks=set())
        super().__init__()
        given = {stage: loader for stage, loader in loaders.items() if loader is not None}
        if isinstance(wrapped, DATA_MODULE_TYPES):
            self._forward(_HOOKS)
            for setting in _SETTINGS:
                setattr(self, setting, getattr(wrapped, setting))
        elif isinstance(wrapped, MODULE_TYPES):
            self._forward(_LOADERS)
        else:
            check_data(wrapped)
        if given and self._brings_loaders():
            raise TypeError(
                f"{'_dataloaders=, '.join(given)}_dataloaders= can be given beside a train DataLoader only; "
                f"{type(wrapped).__name__} brings its own loaders"
            )
        for stage, loader in given.items():
            check_loaders(stage, loader)
            self._use_hook(f"{stage}_dataloader", functools.partial(_given, loader))
        self._passes_on = isinstance(wrapped, DATA_MODULE_TYPES)

    # Modules ask their data module for num_classes, tuners set its batch_size: ours passes both on to the user's.
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self.__dict__.get("_passes_on"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.wrapped, name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        is_ours = name in self.__dict__ or hasattr(type(self), name) or not self.__dict__.get("_passes_on")
        if not is_ours and hasattr(self.wrapped, name):
            setattr(self.wrapped, name, value)
        else:
            super().__setattr__(name, value)

    @property  # type: ignore[explicit-override] # an attribute in the base class, which mypy sees no override of
    def trainer(self) -> Trainer | None:
        """The Trainer that uses the data; None outside of one."""
        trainer: Trainer | None = self.__dict__["_trainer"]
        return trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self.__dict__["_trainer"] = trainer
        if isinstance(self.wrapped, DATA_MODULE_TYPES):
            self.wrapped.trainer = trainer
        if trainer is not None:
            self._complete_hooks(trainer)
        self._on_trainer(trainer)

    def _on_trainer(self, trainer: Trainer | None) -> None:
        """A Trainer has taken this data module, or None has taken its place."""

    # Lightning logs and saves the hyperparameters that it finds under these names.
    @property
    @override
    def hparams(self) -> Any:
        return self._hparams_owner().hparams

    @property
    @override
    def hparams_initial(self) -> Any:
        return self._hparams_owner().hparams_initial

    @override
    def train_dataloader(self) -> Any:
        """The user's train loader."""
        return self.wrapped.train_dataloader() if self._brings_loaders() else self.wrapped

    @override
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """What Lightning would have called, had this class not overridden the hook."""
        if isinstance(self.wrapped, DATA_MODULE_TYPES) and overrides(self.wrapped, "on_before_batch_transfer"):
            return self.wrapped.on_before_batch_transfer(batch, dataloader_idx)
        module = None if self.trainer is None else self.trainer.lightning_module
        return batch if module is None else module.on_before_batch_transfer(batch, dataloader_idx)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"data": self.wrapped.state_dict()} if isinstance(self.wrapped, DATA_MODULE_TYPES) else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "data" in state_dict and isinstance(self.wrapped, DATA_MODULE_TYPES):
            self.wrapped.load_state_dict(state_dict["data"])

    def load_plain_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the user's data module from a checkpoint that was written without this one around it."""
        name = type(self.wrapped).__qualname__
        if isinstance(self.wrapped, DATA_MODULE_TYPES) and name in checkpoint:
            self.wrapped.load_state_dict(checkpoint[name])

    def _brings_loaders(self) -> bool:
        return isinstance(self.wrapped, (*DATA_MODULE_TYPES, *MODULE_TYPES))

    def _forward(self, hooks: tuple[str, ...]) -> None:
        for hook in hooks:
            if overrides(self.wrapped, hook):
                self._use_hook(hook, getattr(self.wrapped, hook))

    def _use_hook(self, hook: str, function: Any) -> None:
        setattr(self, hook, function)
        self._users_hooks.add(hook)

    def _complete_hooks(self, trainer: Trainer) -> None:
        """Let every hook that the user's data do not have be what plain Lightning would use in its place."""
        base = data_module_type(trainer)  # it takes the hooks of another flavour's base class for overridden ones
        # Beside a train loader, plain Lightning asks the module for the other loaders.
        module = None if self._brings_loaders() else trainer.lightning_module
        for hook in _HOOKS:
            if hook in self._users_hooks:
                continue
            if hook in _LOADERS and module is not None and overrides(module, hook):
                setattr(self, hook, getattr(module, hook))
            else:
                setattr(self, hook, MethodType(getattr(base, hook), self))

    def _hparams_owner(self) -> Any:
        return self.wrapped if isinstance(self.wrapped, DATA_MODULE_TYPES) else super()


def _given(value: Any) -> Any:
    return value
