"""The first step: plain backpropagation, watched, to learn where to cut and how the loss is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_autoassist.local_learning.attached_gradients import root_of
from lightning_autoassist.local_learning.cuts import Blocks, Cut, CutError, blocks_of
from lightning_autoassist.local_learning.heads import has_features_last
from lightning_autoassist.local_learning.program import NoProgramError, Program, program_of
from lightning_autoassist.local_learning.step_trace import StepTrace
from lightning_autoassist.local_learning.watched_calls import Call, SavedBytes, WatchedCalls

WAYS_OUT = (
    "Compute the loss in training_step with functions or modules of torch, outside of compiled and scripted code, from "
    "the output of the network."
)


class Plan(NamedTuple):
    """What the first step told.

    Attributes:
        blocks: Where the network is cut.
        output_shapes: Of the network's outputs, without the batch's axis.
        features_last: For each cut, whether the features of its output are the last axis.
        modules: Names of the submodules, in the order of their calls' ends, with the block in which each was called:
            its first and its last.
    """

    blocks: Blocks
    output_shapes: tuple[tuple[int, ...], ...]
    features_last: tuple[bool, ...]
    modules: tuple[tuple[str, int, int], ...]

    @property
    def num_blocks(self) -> int:
        """K, the last one included."""
        return len(self.blocks.cuts) + 1

    def state_dict(self) -> dict[str, Any]:
        """As builtins."""
        cuts, *rest = self.blocks
        return {
            "cuts": [[cut.name, list(cut.shape), cut.saved_bytes, cut.num_parameters] for cut in cuts],
            "blocks": [*rest[:3], list(self.blocks.shared)],
            "output_shapes": [list(shape) for shape in self.output_shapes],
            "features_last": list(self.features_last),
            "modules": [list(each) for each in self.modules],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Plan:
        """Of :meth:`state_dict`."""
        cuts = tuple(Cut(name, tuple(shape), *rest) for name, shape, *rest in state["cuts"])
        last_bytes, last_parameters, owners, shared = state["blocks"]
        blocks = Blocks(cuts, last_bytes, last_parameters, dict(owners), tuple(shared))
        shapes = tuple(tuple(shape) for shape in state["output_shapes"])
        modules = tuple((name, first, last) for name, first, last in state["modules"])
        return cls(blocks, shapes, tuple(state["features_last"]), modules)


class WatchedStep(NamedTuple):
    """A step that was made under watch.

    Attributes:
        output: What it returned.
        trace: Its operations.
        calls: Of the submodules.
        saved_bytes: Bytes that it saved for backward.
    """

    output: Any
    trace: StepTrace
    calls: WatchedCalls
    saved_bytes: int

    def program(self) -> Program:
        """How the loss is computed from the network's outputs.

        Raises:
            CutError: If that cannot be told.
        """
        root = root_of(self.output)
        assert root is not None
        return traced_program(self.trace, root, self.calls.is_output_of_layer)


def traced_program(trace: StepTrace, root: Tensor, is_output_of_layer: Callable[[Tensor], bool]) -> Program:
    """The program of a returned loss.

    Raises:
        CutError: If the operations that computed it were not seen.
    """
    try:
        return program_of(trace, root, is_output_of_layer)
    except NoProgramError as error:
        raise CutError(f"No loss was captured that blocks could be trained by: {error}. {WAYS_OUT}") from None


def watched(module: nn.Module, leaves: Sequence[Tensor], run: Callable[[], Any]) -> WatchedStep:
    """Make a training step under watch.

    Args:
        module: The LightningModule.
        leaves: The batch's tensors.
        run: Makes the step.
    """
    # The network may not fit the device with all that backpropagation saves: the first batch's is kept by the host.
    saved = SavedBytes(module.parameters(), offload=any(leaf.is_cuda for leaf in leaves))
    calls, trace = WatchedCalls(module, saved), StepTrace(leaves)
    with ExitStack() as stack:
        for context in (saved.counted(), calls, trace):
            stack.enter_context(context)
        output = run()
    return WatchedStep(output, trace, calls, saved.total)


def plan_of(
    module: nn.Module, step: WatchedStep, program: Program, batch_size: int, wanted: int | Sequence[str] | None
) -> Plan:
    """Where the network is to be cut, and what the heads have to be like.

    Args:
        module: The LightningModule.
        step: Its step.
        program: How the step computed the loss.
        batch_size: B.
        wanted: How many blocks, or which submodules end them; None: as many as there can be.

    Raises:
        CutError: If the network cannot be cut so, or no head can give what the loss takes.
    """
    root = root_of(step.output)
    assert root is not None
    calls = list(step.calls.calls.values())
    blocks = blocks_of(module, root, calls, step.saved_bytes, wanted, step.trace.is_number_of_parameters)
    by_name = step.calls.calls
    for cut in blocks.cuts:
        _check_rows(cut.name, by_name[cut.name].shape, program.output_shapes, batch_size)
    features_last = tuple(has_features_last(_last_layer(calls, by_name[cut.name]), cut.shape) for cut in blocks.cuts)
    ends = [by_name[cut.name].ended for cut in blocks.cuts]
    modules = tuple(
        (call.name, sum(end < call.started for end in ends), sum(end < call.ended for end in ends))
        for call in sorted(calls, key=lambda call: call.ended)
    )
    shapes = tuple(tuple(shape[1:]) for shape in program.output_shapes)
    return Plan(blocks, shapes, features_last, modules)


def _last_layer(calls: Sequence[Call], end: Call) -> nn.Module | None:
    layers = [
        call
        for call in calls
        if call.ended <= end.ended and next(call.module.parameters(recurse=False), None) is not None
    ]
    return max(layers, key=lambda call: call.ended).module if layers else None


def _check_rows(name: str, shape: torch.Size | None, outputs: Sequence[torch.Size], batch_size: int) -> None:
    assert shape is not None
    for output in outputs:
        if output[0] != shape[0]:
            raise CutError(
                f"The network's output has shape {tuple(output)}, and that of {name!r} has shape {tuple(shape)}: a "
                f"head for {batch_size} instances must have as many rows as the block. Cut where the rows are "
                "the same, or flatten positions after the last layer instead of before it."
            )
