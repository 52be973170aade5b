"""Classes that are used together: a setting that is given to the wrong one of them is told where it goes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from typing_extensions import override


class SharesSettings:
    """Base of classes that users write side by side, each of which takes some of the settings.

    A class that takes part says so where it is defined: ``class Mine(SharesSettings, takes_settings=True)``. Its
    constructor raises TypeError for a keyword that only another of these classes takes, and names that class.

    Example:
        >>> class Oven(SharesSettings, takes_settings=True):
        ...     def __init__(self, *, heat: int) -> None: ...
        >>> class Cake(SharesSettings, takes_settings=True):
        ...     def __init__(self, *, layers: int) -> None: ...
        >>> Cake(heat=180)
        Traceback (most recent call last):
        TypeError: Cake does not take heat=, which is a setting of Oven; write Oven(..., heat=...)
    """

    _classes: ClassVar[list[type]] = []

    @override
    def __init_subclass__(cls, *, takes_settings: bool = False, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if takes_settings:
            SharesSettings._classes.append(cls)
            cls.__init__ = _checked(cls, cls.__dict__["__init__"])  # type: ignore[method-assign]


def _checked(kind: type, constructor: Callable[..., None]) -> Callable[..., None]:
    """The constructor, with another class's settings refused before it runs."""
    own = inspect.signature(constructor).parameters

    @functools.wraps(constructor)
    def checked(self: Any, *values: Any, **settings: Any) -> None:
        for name in settings:
            if name not in own:
                _refuse_elsewhere(kind, name)
        constructor(self, *values, **settings)

    return checked


def _refuse_elsewhere(kind: type, name: str) -> None:
    """Raise TypeError where another class takes the setting that ``kind`` does not take."""
    for other in SharesSettings._classes:
        if name in inspect.signature(other).parameters:
            raise TypeError(
                f"{kind.__name__} does not take {name}=, which is a setting of {other.__name__}; "
                f"write {other.__name__}(..., {name}=...)"
            )
