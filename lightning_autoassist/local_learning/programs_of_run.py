"""Which program computes the loss of which batches.

Numbers that a step makes of its batch's size are constants in a program. So a program counts for batches of the
shapes that it was seen with, in two steps, until two shapes gave the same program: then it counts for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_autoassist.local_learning.program import Program
from lightning_autoassist.local_learning.program_state import program_from_state, state_of_program

MAX_SHAPES = 32
Shapes = tuple[tuple[int, ...], ...]


class ProgramsOfRun:
    """The programs of a run.

    Attributes:
        why_of_one_step: Why each step's program must be taken from the step itself; None where it need not.
    """

    def __init__(self) -> None:
        self.why_of_one_step: str | None = None
        self._general: Program | None = None
        self._by_shapes: dict[Shapes, tuple[Program, bool]] = {}

    def get(self, leaves: Sequence[Tensor]) -> Program | None:
        """The program for a batch; None where the step has to be traced.

        Args:
            leaves: The batch's tensors.
        """
        if self.why_of_one_step is not None:
            return None
        program, is_confirmed = self._by_shapes.get(shapes_of(leaves), (None, False))
        return program if is_confirmed else self._general

    def knows(self, leaves: Sequence[Tensor], program: Program) -> bool:
        """Whether the program of a step that was traced again is the one that is known."""
        known = self.get(leaves)
        return known is not None and program.is_same_as(known, by_value=True)

    def note(self, leaves: Sequence[Tensor], program: Program) -> None:
        """Learn the program of a step that was traced."""
        shapes = shapes_of(leaves)
        if program.is_of_one_step:
            self.why_of_one_step = "the step draws or computes something that its loss needs and that the batch lacks"
            return
        if any(other.is_same_as(program) for key, (other, _) in self._by_shapes.items() if key != shapes):
            self._general = program
        elif shapes in self._by_shapes and not self._by_shapes[shapes][0].is_same_as(program):
            self.why_of_one_step = "the loss is computed from numbers or tensors that are others in each step"
        elif len(self._by_shapes) >= MAX_SHAPES:
            self.why_of_one_step = "the loss is computed in another way for each size of a batch"
        self._by_shapes[shapes] = (program, shapes in self._by_shapes)

    def state_dict(self, module: nn.Module) -> dict[str, Any]:
        """What is known, as builtins and tensors; programs that cannot be written so are traced again."""
        general = None if self._general is None else state_of_program(self._general, module)
        by_shapes = [
            [[list(shape) for shape in shapes], state_of_program(program, module), is_confirmed]
            for shapes, (program, is_confirmed) in self._by_shapes.items()
        ]
        return {"why": self.why_of_one_step, "general": general, "by_shapes": by_shapes}

    def load_state_dict(self, state: dict[str, Any], module: nn.Module, device: torch.device) -> None:
        """Restore :meth:`state_dict`."""
        self.why_of_one_step = state["why"]
        self._general = None if state["general"] is None else program_from_state(state["general"], module, device)
        for shapes, encoded, is_confirmed in state["by_shapes"]:
            program = None if encoded is None else program_from_state(encoded, module, device)
            if program is not None:
                self._by_shapes[tuple(tuple(shape) for shape in shapes)] = (program, is_confirmed)


def shapes_of(leaves: Sequence[Tensor]) -> Shapes:
    """The shapes of a batch's tensors."""
    return tuple(tuple(leaf.shape) for leaf in leaves)
