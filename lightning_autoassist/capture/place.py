"""Where in the user's code a call stands."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from typing_extensions import override

_NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


class Place(NamedTuple):
    """Where a call stands, and where the function that makes it was called: helpers reduce losses of many kinds."""

    file: str
    line: int
    from_file: str
    from_line: int

    @override
    def __str__(self) -> str:
        return f"at {_name_of(self.file)}:{self.line}"


@functools.cache
def _name_of(file: str) -> str:
    return Path(file).name


def caller() -> str:
    """The file and line of the user's call, such as "at train.py:31"."""
    return "in compiled code" if torch.compiler.is_compiling() else str(place_of_call())


def place_of_call() -> Place:
    """The innermost call outside of torch and of the capture."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    above = frame if frame.f_back is None else frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno, above.f_code.co_filename, above.f_lineno)
