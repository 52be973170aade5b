"""Which loggers a Trainer has; their packages need not be installed."""

from __future__ import annotations

from typing import Any


def is_a(logger: Any, name: str) -> bool:
    """Whether a logger is of a class of that name, in any flavour.

    Args:
        logger: Any logger of a Trainer.
        name: ``"WandbLogger"`` or ``"TensorBoardLogger"``.
    """
    return any(base.__name__ == name for base in type(logger).__mro__)
