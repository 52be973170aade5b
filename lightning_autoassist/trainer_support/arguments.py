"""Checks of what constructors are given: each error is one line that says what was received and what to write."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from numbers import Real
from typing import Any, TypeVar

import numpy as np

_Base = TypeVar("_Base")
_Name = TypeVar("_Name", bound=str)


def check_number(name: str, value: Any, interval: str, hint: str) -> float:
    """``value`` as a number of Python's.

    Args:
        name: Of the argument.
        value: What was given: a number of Python's or numpy's.
        interval: What is allowed, as ``"(0, 1]"``.
        hint: What to write.

    Raises:
        TypeError: If it is no number.
        ValueError: If it lies outside the interval.

    Example:
        >>> check_number("budget", np.float32(0.6), "(0, 1]", "try 0.6")
        0.6
        >>> check_number("budget", "0.6", "(0, 1]", "try 0.6")
        Traceback (most recent call last):
        TypeError: budget must be a number in (0, 1], got the string '0.6'; write budget=0.6
    """
    if not _is_number(value):
        raise TypeError(f"{name} must be a number in {interval}, got {received(value)}; {_written(name, value, hint)}")
    number: float = value if isinstance(value, (int, float)) else float(value)
    if isinstance(value, np.floating):  # the shortest text is what was meant: 0.6, and not 0.60000002
        number = float(str(value))
    _check_within(name, number, value, interval, hint)
    return number


def check_whole(name: str, value: Any, interval: str, hint: str) -> int:
    """``value`` as an int; numbers such as 1e9 are whole, too.

    Args:
        name: Of the argument.
        value: What was given.
        interval: What is allowed, as ``"[1, inf)"``.
        hint: What to write.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is no whole one, or lies outside the interval.

    Example:
        >>> check_whole("feature_memory", 1e9, "[0, inf)", "0 keeps features in a file")
        1000000000
    """
    if not _is_number(value):
        raise TypeError(f"{name} must be a whole number, got {received(value)}; {_written(name, value, hint)}")
    if not math.isfinite(value) or value != math.floor(value):
        raise ValueError(f"{name} must be a whole number, got {value}; {hint}")
    number = int(value)
    _check_within(name, number, value, interval, hint)
    return number


def check_flag(name: str, value: Any) -> bool:
    """``value`` as a bool.

    Raises:
        TypeError: If it is neither True nor False.
    """
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {received(value)}; write {name}=True or {name}=False")


def check_choice(name: str, value: Any, allowed: Collection[_Name]) -> _Name:
    """``value``, one of some names.

    Raises:
        TypeError: If it is no string.
        ValueError: If it is another string.
    """
    for choice in allowed:
        if isinstance(value, str) and choice == value:
            return choice
    kind = ValueError if isinstance(value, str) else TypeError
    given = repr(value) if isinstance(value, str) else received(value)
    raise kind(f"{name} must be one of {', '.join(allowed)}, got {given}{_nearest(name, value, allowed)}")


def check_function(name: str, value: Any, example: str) -> Any:
    """``value``, something that can be called.

    Args:
        name: Of the argument.
        value: What was given.
        example: What to write, as ``"lambda batch: batch[0]"``.

    Raises:
        TypeError: If it cannot be called, or is a class whose objects can be.
    """
    if isinstance(value, type) and any("__call__" in vars(base) for base in value.__mro__):
        raise TypeError(f"{name} must be a function, got {received(value)}; write {name}={value.__name__}(...)")
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {received(value)}; write {name}={example}")
    return value


def check_named(
    name: str, value: Any, base: type[_Base], registry: Mapping[str, Any], others: Mapping[str, tuple[Any, type]]
) -> _Base:
    """The object that ``value`` is, or that it names in a registry.

    Args:
        name: Of the argument.
        value: What was given.
        base: Class of the object.
        registry: What makes the objects, by name.
        others: Registries and classes of other arguments, by their names, which may be meant.

    Raises:
        TypeError: If it is neither a string nor such an object.
        ValueError: If it is no name in the registry.
    """
    if isinstance(value, base):
        return value
    allowed = f"{name} must be one of {', '.join(registry)} or an object"
    for other, (names, kind) in others.items():
        if isinstance(value, kind) or (isinstance(value, str) and value in names and value not in registry):
            raise TypeError(
                f"{allowed}, got {received(value)}, which is {_article(other)}; write {other}={_again(value)}"
            )
    if isinstance(value, str):
        if value not in registry:
            raise ValueError(f"{allowed}, got {value!r}{_nearest(name, value, registry)}")
        return _made(name, value, base, registry[value])
    if isinstance(value, type) and issubclass(value, base):
        raise TypeError(f"{allowed}, got {received(value)}; write {name}={value.__name__}()")
    raise TypeError(f"{allowed}, got {received(value)}; leave it out, or write {name}={next(iter(registry))!r}")


def received(value: Any) -> str:
    """What was given, in words of one line.

    Example:
        >>> received("0.6"), received(int), received([1, 2]), received(None)
        ("the string '0.6'", 'the class int', 'a list', 'None')
    """
    if value is None or isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, str):
        return f"the string {value[:60]!r}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Real):
        return f"the number {value}"
    return _article(type(value).__name__)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _made(name: str, value: str, base: type[_Base], maker: Any) -> _Base:
    made = maker() if callable(maker) else maker
    if isinstance(made, base) and made is not maker:
        return made
    raise TypeError(
        f"{name}={value!r} must be registered as a class, or a function, that gives a {base.__name__}, got "
        f"{received(maker)}; write a class that inherits from {base.__name__}"
    )


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'AEIOUaeiou' else 'a'} {noun}"


def _again(value: Any) -> str:
    return repr(value) if isinstance(value, str) else f"{type(value).__name__}(...)"


def _nearest(name: str, value: Any, allowed: Collection[str]) -> str:
    """What may have been meant; nothing where nothing is near."""
    plain = value.lower().replace("-", "_").replace(" ", "_") if isinstance(value, str) else ""
    near = difflib.get_close_matches(plain, allowed, n=1)
    if not near and isinstance(value, str):
        return ""
    return f"; write {name}={(near or list(allowed))[0]!r}"


def _written(name: str, value: Any, hint: str) -> str:
    """What to write instead of something that is no number."""
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        number = math.nan
    if math.isnan(number):
        return hint
    return f"write {name}={value.strip()}"


def _check_within(name: str, number: float, value: Any, interval: str, hint: str) -> None:
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number in {interval}, got {value}; {hint}")
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    is_above = number > low if interval[0] == "(" else number >= low
    is_below = number < high if interval[-1] == ")" else number <= high
    if is_above and is_below:
        return
    raise ValueError(f"{name} must {_range(low, high, interval)}, got {value}; {hint}")


def _range(low: float, high: float, interval: str) -> str:
    if high < math.inf:
        return f"be in {interval}"
    if low == 0:
        return "be positive" if interval[0] == "(" else "not be negative"
    return f"be at least {low:g}"
