"""The captured steps that see the calls that are made now: for others that compute losses of the same instances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_autoassist.capture.captured_step import CapturedStep


def active_steps() -> list[CapturedStep]:
    """The captured steps that are entered, the innermost last."""
    modes = torch.overrides._get_current_function_mode_stack()
    return [mode for mode in modes if isinstance(mode, CapturedStep)]


@contextmanager
def overlooked() -> Iterator[None]:
    """The context in which no captured step looks at calls."""
    paused = [step for step in active_steps() if not step.is_paused]
    for step in paused:
        step.is_paused = True
    try:
        yield
    finally:
        for step in paused:
            step.is_paused = False
