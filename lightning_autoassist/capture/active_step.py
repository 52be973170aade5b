"""The captured step that sees the calls that are made now: for others that compute losses of the same instances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_autoassist.capture.captured_step import CapturedStep


def active_step() -> CapturedStep | None:
    """The innermost captured step that is entered; None where there is none."""
    modes = torch.overrides._get_current_function_mode_stack()
    return next((mode for mode in reversed(modes) if isinstance(mode, CapturedStep)), None)


def weights_of(step: CapturedStep | None) -> Tensor | None:
    """The weights of the step's instances, shape ``(B,)``; None where they have none."""
    return None if step is None else step._weights


@contextmanager
def overlooked(step: CapturedStep | None) -> Iterator[None]:
    """The context in which a captured step looks at no calls."""
    if step is None:
        yield
        return
    step.is_paused = True
    try:
        yield
    finally:
        step.is_paused = False
