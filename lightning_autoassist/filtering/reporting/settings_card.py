"""A run's settings in a few words, as loggers take them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any


def in_words(setting: Any) -> Any:
    """A setting as loggers take it: functions by their names."""
    if callable(setting):
        return getattr(setting, "__qualname__", type(setting).__qualname__)
    return dict(setting) if isinstance(setting, Mapping) else setting


def card(rule: Any) -> dict[str, Any]:
    """A policy or an Assistant in a few words: its class, its settings, and where it comes from.

    Args:
        rule: An object whose class keeps its arguments as attributes.

    Example:
        >>> from lightning_autoassist import RandomPolicy
        >>> card(RandomPolicy(keep_rate=0.4))
        {'name': 'RandomPolicy', 'keep_rate': 0.4}
    """
    words: dict[str, Any] = {"name": type(rule).__name__}
    for name in inspect.signature(type(rule).__init__).parameters:
        value = getattr(rule, name, None)
        if name != "self" and isinstance(value, (bool, int, float, str)):
            words[name] = value
    sources = [part for part in inspect.cleandoc(type(rule).__doc__ or "").split("\n\n") if part.startswith("Source: ")]
    if sources:
        words["source"] = " ".join(sources[0].removeprefix("Source: ").split())
    return words
