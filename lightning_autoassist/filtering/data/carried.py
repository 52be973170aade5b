"""A batch on its way from the loader to the step, with what it was drawn with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_autoassist.filtering.sampling.candidates import SelectedBatch
from lightning_autoassist.trainer_support.batch_parts import tensors_in


class TrackedBatch:
    """A batch of the user's, with the indices and weights that it was drawn with.

    Only the Trainer's own fetching sees this type; the data module strips it before any hook of the user's runs. It is
    no collection, so that nothing that maps a function over a batch's tensors gets at the draw.

    Attributes:
        batch: The user's.
        draw: What it was drawn with; None where the user's loader gave a batch that nobody had asked for.
    """

    __slots__ = ("batch", "draw")

    def __init__(self, batch: Any, draw: SelectedBatch | None) -> None:
        self.batch = batch
        self.draw = draw


def convert_carried(plugin: Any) -> Callable[[], None]:
    """Let a precision plug-in convert the batch that is carried, as the user's loader gave it, and nothing else.

    Args:
        plugin: The Trainer's.

    Returns:
        A function that leaves the plug-in as it was.
    """
    convert, others = plugin.convert_input, plugin.__dict__.get("convert_input")

    def convert_input(data: Any) -> Any:
        return TrackedBatch(convert(data.batch), data.draw) if isinstance(data, TrackedBatch) else convert(data)

    def undo() -> None:
        if plugin.__dict__.get("convert_input") is convert_input:
            del plugin.convert_input
            if others is not None:
                plugin.convert_input = others

    plugin.convert_input = convert_input
    return undo


def batch_rows(batch: Any) -> int:
    """How many instances a batch holds that was not drawn here, by its first tensor; 0 where it has none.

    Example:
        >>> import torch
        >>> batch_rows({"text": ["a", "b"], "label": torch.zeros(2)})
        2
    """
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.ndim), 0)
