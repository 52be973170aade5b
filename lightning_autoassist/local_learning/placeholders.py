"""Leaves submodules out of a forward pass: they give shapes without values.

What follows them is computed on shapes, too, which costs nearly nothing. Where a value would be needed, as by a
connection round a cut, torch raises an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_autoassist.trainer_support.call_arguments import tensors_of, with_replaced

Forward = Callable[..., Any]


class LeftOut:
    """A submodule whose calls give tensors without values.

    Args:
        module: The submodule.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._known: dict[Any, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the submodule's forward would give, as shapes."""
        key = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_of((args, kwargs)))
        if key not in self._known:
            self._known[key] = self._shapes(args, kwargs)
        return self._known[key]

    def _shapes(self, args: Any, kwargs: Any) -> Any:
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        without = {name: _without_values(tensor) for name, tensor in named}
        args, kwargs = with_replaced((args, kwargs), Tensor, _without_values)
        # Its own forward, and not this stand-in for it.
        with torch.no_grad(), replaced([(self.module, None)]):
            return torch.func.functional_call(self.module, without, args, kwargs)


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta", requires_grad=False)


@contextmanager
def replaced(forwards: Sequence[tuple[nn.Module, Forward | None]]) -> Iterator[None]:
    """The context in which submodules have another forward; None: that of their class."""
    before = [(module, vars(module).get("forward")) for module, _ in forwards]
    for module, forward in forwards:
        _set(module, forward)
    try:
        yield
    finally:
        for module, forward in before:
            _set(module, forward)


def _set(module: nn.Module, forward: Forward | None) -> None:
    vars(module).pop("forward", None)
    if forward is not None:
        vars(module)["forward"] = forward


def left_out(modules: Sequence[tuple[str, int, int]], first: int, end: str) -> list[str]:
    """Names of the submodules that are called before a process's own blocks, without those within them.

    Args:
        modules: Names, with the blocks in which their calls begin and end.
        first: The process's first block.
        end: The submodule whose output is received; it is none of them.
    """
    before = {name for name, _, last in modules if last < first}
    inside = (f"{name}." for name in before)
    prefixes = tuple(inside)
    return [name for name in before if name != end and not name.startswith(prefixes)]
