"""Strategies that Trainers know by name, before anything is imported that they need."""

from __future__ import annotations

import sys
from typing import Any

NAME = "layer_parallel"
_FLAVOURS = ("pytorch_lightning", "lightning.pytorch")


def register() -> None:
    """Tell those packages of Lightning that are imported already of the name."""
    for flavour in _FLAVOURS:
        registry = getattr(sys.modules.get(f"{flavour}.strategies"), "StrategyRegistry", None)
        if registry is not None and NAME not in registry:
            description = "Layers trained in parallel, by losses of blocks: see LocalLearningCallback"
            registry.register(NAME, _made, description=description, flavour=flavour)


def _made(flavour: str, **options: Any) -> Any:
    from importlib import import_module

    strategy = import_module("lightning_autoassist.local_learning.strategy")
    return strategy.strategy_of(sys.modules[flavour])(**options)
