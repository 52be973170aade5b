"""What an object is, where the packages that define its class need not be installed, or come in two flavours."""

from __future__ import annotations


def class_names(value: object) -> frozenset[str]:
    """Names of an object's class and of all its bases.

    Example:
        >>> sorted(class_names(True))
        ['bool', 'int', 'object']
    """
    return frozenset(base.__name__ for base in type(value).__mro__)
