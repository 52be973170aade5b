"""Programs as builtins and tensors, for checkpoints that are loaded with ``weights_only``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_autoassist.local_learning.program import Instruction, Program, Slot

_PLACES = {"tensor": torch.Tensor, "torch": torch, "functional": F, "special": torch.special, "linalg": torch.linalg}
_PLAIN = (bool, int, float, str, type(None))


class _UnwritableError(Exception):
    """Something has no name that it could be found by."""


def state_of_program(program: Program, module: nn.Module) -> dict[str, Any] | None:
    """A program as builtins and tensors; None where something in it cannot be written so.

    Args:
        program: The program.
        module: The LightningModule, whose parameters and buffers are named.
    """
    named = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    try:
        return {
            "instructions": [
                [_name_of(function), *(_written(part, named) for part in (args, kwargs, changed))]
                for function, args, kwargs, changed in program.instructions
            ],
            "end": _written(program.end, named),
            "output_shapes": [list(shape) for shape in program.output_shapes],
        }
    except _UnwritableError:
        return None


def program_from_state(state: dict[str, Any], module: nn.Module, device: torch.device) -> Program:
    """The program that :func:`state_of_program` wrote.

    Args:
        state: What it wrote.
        module: The LightningModule.
        device: Where tensors go that are not the module's.
    """
    named = dict([*module.named_parameters(), *module.named_buffers()])

    def read(value: Any) -> Any:
        return _read(value, named, device)

    instructions = [
        Instruction(_function(name), read(args), read(kwargs), read(changed))
        for name, args, kwargs, changed in state["instructions"]
    ]
    return Program(instructions, read(state["end"]), [torch.Size(shape) for shape in state["output_shapes"]])


def _name_of(function: Any) -> str:
    owner = getattr(function, "__self__", None)
    attribute = getattr(owner, "__name__", "")
    if getattr(function, "__name__", "") == "__get__" and getattr(torch.Tensor, attribute, None) is owner:
        return f"attribute.{attribute}"
    name = getattr(function, "__name__", "")
    for place, holder in _PLACES.items():
        if getattr(holder, name, None) == function:
            return f"{place}.{name}"
    raise _UnwritableError


def _function(name: str) -> Any:
    place, _, name = name.partition(".")
    return getattr(torch.Tensor, name).__get__ if place == "attribute" else getattr(_PLACES[place], name)


def _written(value: Any, named: dict[int, str]) -> Any:
    if isinstance(value, Slot):
        tensor = value.tensor
        if tensor is None:
            return ["slot", *value[:3]]
        if value.kind != "fixed":
            raise _UnwritableError
        name = named.get(id(tensor))
        return ["tensor", tensor.detach().cpu()] if name is None else ["named", name]
    if type(value) in _PLAIN:
        return value
    if isinstance(value, (tuple, list)):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_written(each, named) for each in value]]
    if isinstance(value, dict):
        return ["dict", {name: _written(each, named) for name, each in value.items()}]
    if isinstance(value, slice):
        return ["slice", [_written(each, named) for each in (value.start, value.stop, value.step)]]
    if value is Ellipsis:
        return ["ellipsis"]
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return ["torch", str(value).partition(".")[2]]
    if isinstance(value, torch.device):
        return ["device"]  # the one that training goes on with
    raise _UnwritableError


def _read(value: Any, named: dict[str, Tensor], device: torch.device) -> Any:
    if not isinstance(value, list):
        return value
    kind, *rest = value

    def read(each: Any) -> Any:
        return _read(each, named, device)

    readers: dict[str, Callable[[], Any]] = {
        "slot": lambda: Slot(*rest),
        "tensor": lambda: Slot("fixed", tensor=rest[0].to(device)),
        "named": lambda: Slot("fixed", tensor=named[rest[0]]),
        "list": lambda: [read(each) for each in rest[0]],
        "tuple": lambda: tuple(read(each) for each in rest[0]),
        "dict": lambda: {name: read(each) for name, each in rest[0].items()},
        "slice": lambda: slice(*(read(each) for each in rest[0])),
        "ellipsis": lambda: Ellipsis,
        "torch": lambda: getattr(torch, rest[0]),
        "device": lambda: device,
    }
    return readers[kind]()
