"""How a process of layer-parallel training leaves the user's step behind its own blocks."""

from __future__ import annotations


class LeftForward(BaseException):
    """The step is left: what comes next is of other processes. No error, and not for ``except Exception``."""
