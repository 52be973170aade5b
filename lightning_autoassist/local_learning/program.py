"""The loss as a function of the network's outputs and the batch, so that heads are trained by the user's own loss.

A program holds the operations that lead from the network's outputs to the returned loss: the user's loss function with
its options, its target followed back to the batch, slices and casts, coefficients, means. What the network's outputs
are is read off the trace: the last results of operations that read parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_autoassist.local_learning.step_trace import Link, Operation, StepTrace
from lightning_autoassist.trainer_support.call_arguments import with_replaced

# The network's outputs are few operations away from the loss; a program of more is some other thing.
MAX_OPERATIONS = 512


class Slot(NamedTuple):
    """What an operation of a program reads.

    Attributes:
        kind: "value": the result of an earlier operation; "output": a network's output; "leaf": a tensor of the batch;
            "fixed": always the same tensor; "live": a tensor of this step alone.
        number: Of the operation, output or leaf.
        item: Which result of the operation; -1: its only one.
        tensor: Of the last two kinds.
    """

    kind: str
    number: int = 0
    item: int = -1
    tensor: Tensor | None = None


class Instruction(NamedTuple):
    """One operation of a program; see :class:`Operation`."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    changed: Slot | None


class NoProgramError(Exception):
    """The returned loss could not be followed back to the network's outputs; the message says why."""


class _LiveError(Exception):
    """A tensor cannot be computed from the batch."""


class Program:
    """The loss, from outputs of the network and tensors of the batch.

    Args:
        instructions: In the order in which they were called.
        end: What is the loss.
        output_shapes: Of the network's outputs.
    """

    def __init__(self, instructions: Sequence[Instruction], end: Slot, output_shapes: Sequence[torch.Size]) -> None:
        self.instructions = instructions
        self.end = end
        self.output_shapes = output_shapes

    @property
    def is_of_one_step(self) -> bool:
        """Whether it reads something that is neither in the batch nor always the same."""
        return any(slot.kind == "live" for slot in self.slots())

    def slots(self) -> list[Slot]:
        """All that its instructions read."""
        found: list[Slot] = []
        for instruction in self.instructions:
            with_replaced((instruction.args, instruction.kwargs), Slot, found.append)
        return [*found, self.end]

    def __call__(self, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
        """The loss.

        Args:
            outputs: In the place of the network's.
            leaves: The batch's tensors.
        """
        values: list[Any] = []

        def value(slot: Slot) -> Any:
            if slot.kind == "value":
                return values[slot.number] if slot.item < 0 else values[slot.number][slot.item]
            if slot.kind == "output":
                return outputs[slot.number]
            if slot.kind == "leaf":
                return leaves[slot.number]
            assert slot.tensor is not None
            return slot.tensor.detach()

        for function, args, kwargs, changed in self.instructions:
            args, kwargs = with_replaced((args, kwargs), Slot, value)
            result = function(*args, **kwargs)
            values.append(result if changed is None else value(changed))
        loss: Tensor = value(self.end)
        return loss

    def is_same_as(self, other: Program, *, by_value: bool = False) -> bool:
        """Whether the two compute the same, whatever their step.

        Args:
            other: The other one.
            by_value: Whether tensors that they always read need not be the same object, but hold the same.
        """
        if self.is_of_one_step or len(self.instructions) != len(other.instructions):
            return False
        tensors = [[slot.tensor for slot in program.slots() if slot.tensor is not None] for program in (self, other)]
        return (
            _same(self, other)
            and len(tensors[0]) == len(tensors[1])
            and all(
                one is another or (by_value and _hold_the_same(one, another))
                for one, another in zip(*tensors, strict=True)
            )
        )


def _hold_the_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _same(one: Program, other: Program) -> bool:
    def comparable(program: Program) -> Any:
        return [_comparable((each.args, each.kwargs, each.changed)) for each in program.instructions]

    functions = [each.function for each in one.instructions] == [each.function for each in other.instructions]
    return functions and one.end[:3] == other.end[:3] and comparable(one) == comparable(other)


def _comparable(value: Any) -> Any:
    if isinstance(value, Slot):
        return value[:3]
    if isinstance(value, dict):
        return {name: _comparable(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [_comparable(each) for each in value]
    if isinstance(value, slice):
        return ["slice", *map(_comparable, (value.start, value.stop, value.step))]
    plain = value is None or isinstance(value, (int, float, str, torch.dtype, torch.device, torch.layout))
    return (type(value).__name__, value) if plain else id(value)


def program_of(trace: StepTrace, root: Tensor, module_outputs: Callable[[Tensor], bool]) -> Program:
    """The program behind a returned loss.

    Args:
        trace: Of the step that returned it.
        root: The loss.
        module_outputs: Whether a tensor that no operation was seen to make is what a module with parameters gave, as
            a compiled one.

    Raises:
        NoProgramError: If no operation was seen that made it, or none of them reads what comes from parameters.
    """
    return _Builder(trace, module_outputs).build(root)


class _Builder:
    def __init__(self, trace: StepTrace, module_outputs: Callable[[Tensor], bool]) -> None:
        self._operations = trace.operations
        self._trace = trace
        self._is_module_output = module_outputs
        self._needed: dict[int, Operation] = {}
        self._slots: dict[tuple[int, int, int], Slot] = {}
        self._outputs: list[torch.Size] = []
        self._output_ids: dict[int, Slot] = {}

    def build(self, root: Tensor) -> Program:
        link = self._trace.link_of_loss(root)
        if link.operation < 0:
            raise NoProgramError("no operation of torch was seen that computed it")
        try:
            end = self._slot(link)
        except _LiveError:
            raise NoProgramError("an operation between the network's output and it cannot be repeated") from None
        if end.kind != "value" or not self._outputs:
            raise NoProgramError("it was not computed from the network's output by operations of torch that were seen")
        numbers = {number: place for place, number in enumerate(sorted(self._needed))}

        def renumbered(slot: Slot) -> Slot:
            return slot._replace(number=numbers[slot.number]) if slot.kind == "value" else slot

        instructions = []
        for number in sorted(self._needed):
            operation = self._operations[number]
            args, kwargs = with_replaced(
                (operation.args, operation.kwargs), Link, lambda link: renumbered(self._slots[_key(link)])
            )
            changed = operation.links[operation.changed] if operation.changed >= 0 else None
            target = None if changed is None else renumbered(self._slots[_key(changed)])
            instructions.append(Instruction(operation.function, args, kwargs, target))
        return Program(instructions, renumbered(end), self._outputs)

    def _slot(self, link: Link) -> Slot:
        key = _key(link)
        if key not in self._slots:
            self._slots[key] = self._found(link)
        return self._slots[key]

    def _found(self, link: Link) -> Slot:
        if link.operation < 0:
            return self._outside(link)
        operation = self._operations[link.operation]
        shape = operation.shapes[max(link.item, 0)]
        is_output = operation.needs_grad and operation.is_of_data and operation.reads_parameters
        if is_output and len(shape) > 0:
            return self._output(shape)
        if operation.needs_grad:
            return self._expanded(link, operation)
        needed, slots = dict(self._needed), dict(self._slots)
        try:
            return self._expanded(link, operation)
        except _LiveError:
            self._needed, self._slots = needed, slots
            if link.tensor is None:
                raise
            return Slot("live", tensor=link.tensor)

    def _expanded(self, link: Link, operation: Operation) -> Slot:
        """The result of an operation that the program makes itself."""
        if len(self._needed) >= MAX_OPERATIONS:
            raise NoProgramError(f"it takes more than {MAX_OPERATIONS} operations from the network's output to it")
        if not operation.needs_grad and (operation.is_random or operation.reads_parameters):
            raise _LiveError
        self._needed[link.operation] = operation
        slots = [self._slot(each) for each in operation.links]
        if operation.changed >= 0 and slots[operation.changed].kind not in ("value", "output"):
            raise _LiveError  # to change the batch once more would change what it holds
        return Slot("value", link.operation, link.item)

    def _outside(self, link: Link) -> Slot:
        if link.leaf >= 0:
            return Slot("leaf", link.leaf)
        tensor = link.tensor
        assert tensor is not None
        if not tensor.requires_grad or tensor.is_leaf:
            return Slot("fixed", tensor=tensor)
        if not self._is_module_output(tensor):
            raise NoProgramError(
                "a part of it was computed where it cannot be followed, as in compiled or scripted code"
            )
        if id(tensor) not in self._output_ids:
            self._output_ids[id(tensor)] = self._output(tensor.shape)
        return self._output_ids[id(tensor)]

    def _output(self, shape: torch.Size) -> Slot:
        self._outputs.append(shape)
        return Slot("output", len(self._outputs) - 1)


def _key(link: Link) -> tuple[int, int, int]:
    outside = -1 if link.tensor is None or link.operation >= 0 or link.leaf >= 0 else id(link.tensor)
    return (link.operation, link.item, outside if link.leaf < 0 else -2 - link.leaf)
