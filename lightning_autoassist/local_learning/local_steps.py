"""The training steps of a run: the first one under watch, the others in blocks.

Shapes: B batch, K blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_autoassist.capture.interceptor import TrainingStep
from lightning_autoassist.local_learning.attached_gradients import PendingGradients, root_of
from lightning_autoassist.local_learning.block_heads import BlockHeads
from lightning_autoassist.local_learning.cuts import CutError
from lightning_autoassist.local_learning.first_step import Plan, plan_of, traced_program, watched
from lightning_autoassist.local_learning.head_training import TrainedHead
from lightning_autoassist.local_learning.heads import HeadFunction
from lightning_autoassist.local_learning.left_forward import LeftForward
from lightning_autoassist.local_learning.process_link import ProcessLink
from lightning_autoassist.local_learning.program import Program
from lightning_autoassist.local_learning.programs_of_run import ProgramsOfRun
from lightning_autoassist.local_learning.step_trace import StepTrace
from lightning_autoassist.local_learning.truncated_backward import TruncatedBackward
from lightning_autoassist.local_learning.watched_calls import SavedBytes
from lightning_autoassist.local_learning.weighted_losses import WeightedLosses
from lightning_autoassist.trainer_support.batch_parts import leaves_of
from lightning_autoassist.trainer_support.internals import is_in_backward
from lightning_autoassist.trainer_support.rng import forked_generators, seed_generators
from lightning_autoassist.trainer_support.variants import LightningModule

_SEEDS = 2**62
# Steps between two looks at whether the loss is still computed alike; a look at each epoch's first step comes on top.
_STEPS_BETWEEN_CHECKS = 16


class CurrentStep:
    """One step that is made in blocks.

    Args:
        leaves: The batch's tensors.
        program: How its loss is computed; None where that has to be traced.
        graphs: Of its blocks.
        is_traced: Whether the step is traced.

    Attributes:
        trace: Of the step; None where it is not traced.
        ends: The blocks' outputs, where the blocks are trained after the step.
        block: In which block it is.
        saved: Counts what is saved for backward, if not None.
        saved_by_block: What it counted in each block.
    """

    def __init__(
        self, leaves: list[Tensor], program: Program | None, graphs: TruncatedBackward, *, is_traced: bool
    ) -> None:
        self.leaves, self.program, self.graphs = leaves, program, graphs
        self.trace = StepTrace(leaves) if is_traced else None
        self.ends: list[tuple[int, Tensor]] = []
        self.block = 0
        self.saved: SavedBytes | None = None
        self.saved_by_block: list[int] = []


class LocalSteps:
    """Makes the steps of a run in blocks.

    Args:
        wanted: How many blocks, or which submodules end them; None: as many as there can be.
        head_kind: See :func:`make_head`.
        window: How many blocks each loss trains.

    Attributes:
        plan: What the first step told; None before it.
        window: See above.
        heads: Of all blocks but the last.
        losses: Of the latest step, by block: of those with heads.
        saved_bytes: Of each block with its heads, measured in the first step whose program was known before.
        programs: How the loss is computed.
        num_steps: Steps that were made in blocks.
        link: To the processes of the other blocks; None where this process has all.
        base_seed: Of what is drawn in blocks.
    """

    def __init__(self, wanted: int | Sequence[str] | None, head_kind: str | HeadFunction, window: int) -> None:
        self._wanted, self.window = wanted, window
        self.plan: Plan | None = None
        self.heads = BlockHeads(head_kind)
        self.losses: dict[int, Tensor] = {}
        self.saved_bytes: dict[int, int] = {}
        self.programs = ProgramsOfRun()
        self.num_steps = 0
        self.link: ProcessLink | None = None
        self.base_seed = 0
        self._pending = PendingGradients()
        self._weighted = WeightedLosses()
        self._current: CurrentStep | None = None
        self._last_graphs: TruncatedBackward | None = None
        self._epoch = -1  # of the latest step
        self._is_warned = False
        self._module: Any = None
        self._strategy: Any = None
        self._optimizer: Any = None
        self._restored_programs: dict[str, Any] | None = None
        self._handles = ExitStack()

    # ---- connecting

    def begin(self, strategy: Any, module: LightningModule, optimizer: Optimizer) -> None:
        """Be ready for the steps of a fit.

        Args:
            strategy: The Trainer's.
            module: The LightningModule, on its device.
            optimizer: The user's.
        """
        is_other_module = self._module is not None and self._module is not module
        if is_other_module and self._restored_programs is None:
            self._forget()  # what was learnt of a module that an earlier fit had
        self._strategy, self._module, self._optimizer = strategy, module, optimizer
        if self._restored_programs is not None:
            self.programs.load_state_dict(self._restored_programs, module, module.device)
            self._restored_programs = None
        if self.plan is not None:
            self._cut(self.plan)

    def _forget(self) -> None:
        self.plan, self.programs, self.heads = None, ProgramsOfRun(), BlockHeads(self.heads.kind)
        self.num_steps, self.losses, self.saved_bytes = 0, {}, {}

    def end(self) -> None:
        """Leave the module as it was."""
        self._handles.close()
        self._current = self._last_graphs = None
        self._pending.clear()

    def _cut(self, plan: Plan) -> None:
        if self.link is not None:
            self.link.join(plan, self._module)
        self.heads.make(plan, self._module, self._optimizer, self.base_seed)
        modules = dict(self._module.named_modules())
        for block, cut in enumerate(plan.blocks.cuts):
            if cut.name not in modules:
                raise CutError(f"The checkpoint has a cut after {cut.name!r}, and the module has no such submodule.")
            handle = modules[cut.name].register_forward_hook(
                lambda _, __, output, block=block: self._end_block(block, output)
            )
            self._handles.callback(handle.remove)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, as builtins and tensors; empty before the first step."""
        if self.plan is None:
            return {}
        module = self._module
        return {
            "plan": self.plan.state_dict(),
            "programs": self._restored_programs if module is None else self.programs.state_dict(module),
            "heads": self.heads.states() if self.link is None else self.link.by_owner(self.heads.states()),
            "num_steps": self.num_steps,
            "base_seed": self.base_seed,
            "saved_bytes": dict(self.saved_bytes),
        }

    def gather(self) -> None:
        """Have the heads of all processes here, for whoever goes on without the others."""
        if self.link is not None and self.plan is not None:
            self.heads.restore(self.link.by_owner(self.heads.states()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, before :meth:`begin`."""
        self.plan = Plan.from_state(state["plan"])
        self.num_steps, self.base_seed = state["num_steps"], state["base_seed"]
        self.saved_bytes = dict(state["saved_bytes"])
        self.heads = BlockHeads(self.heads.kind)  # those of an earlier fit may be of another module
        self.heads.restore(state["heads"])
        self._restored_programs = state["programs"]

    # ---- the steps

    def watch(self, step: TrainingStep) -> Any:
        """Make the first step, by backpropagation, and learn from it where to cut."""
        leaves = list(leaves_of(step.batch))
        seen = watched(self._module, leaves, step.run)
        root = root_of(seen.output)
        if root is None:
            return seen.output  # Lightning skips this batch
        if not root.requires_grad:
            raise CutError("The loss that training_step returned needs no gradient, so nothing can be learnt from it.")
        program = seen.program()
        batch_size = leaves[0].shape[0] if leaves and leaves[0].ndim else 1
        self.base_seed = torch.initial_seed() % _SEEDS
        self.programs.note(leaves, program)
        self.plan = plan_of(self._module, seen, program, batch_size, self._wanted)
        self._cut(self.plan)
        return seen.output

    def train(self, step: TrainingStep) -> Any:
        """Make a step in blocks."""
        leaves = list(leaves_of(step.batch))
        graphs = TruncatedBackward(self.window, self._pending, self._num_blocks)
        program, is_due = self.programs.get(leaves), self._is_check_due()
        current = CurrentStep(leaves, program, graphs, is_traced=program is None or is_due)
        if current.program is not None and not self.saved_bytes:
            current.saved = SavedBytes([*self._module.parameters(), *self.heads.parameters()])
        self.losses = {}
        self._pending.clear()
        with self._in_blocks(current):
            output = self._run(step, current)
            if current.trace is not None and root_of(output) is not None:
                learn = self._learn_afterwards if program is None else self._check_again
                learn(current, output)
        if self._has_last_block:
            self._note_saved(current, self._num_blocks - 1)
        self._last_graphs = current.graphs
        self.num_steps += 1
        return output if self._has_last_block or self.link is None else self.losses.get(self.link.last)

    def _run(self, step: TrainingStep, current: CurrentStep) -> Any:
        """The user's step, up to where this process leaves it."""
        self._current = current
        self._seed(0)
        try:
            with current.trace or nullcontext(), self._others(current):
                return step.run()
        except LeftForward:
            return None
        finally:
            self._current = None

    def _others(self, current: CurrentStep) -> AbstractContextManager[None]:
        """The context in which the blocks of other processes are not computed here."""
        if self.link is None:
            return nullcontext()
        current.block = self.link.first
        self._seed(self.link.first)
        note = (lambda _: None) if current.trace is None else current.trace.note_data
        return self.link.receiving(self.num_steps, current.leaves, note)

    @contextmanager
    def _in_blocks(self, current: CurrentStep) -> Iterator[None]:
        """Each block draws from a seed of its own, so that the run is the same on one device and on several."""
        counted = nullcontext() if current.saved is None else current.saved.counted()
        with forked_generators(self._module.device), counted:
            yield

    def _end_block(self, block: int, values: Any) -> Tensor | None:
        """The forward hook of a cut: trains the block that ends there, and cuts."""
        current, link = self._current, self.link
        if current is None or not torch.is_grad_enabled() or is_in_backward():
            return None
        if link is not None and not link.first <= block <= link.last:
            return None
        if not isinstance(values, Tensor) or block != current.block:
            raise CutError(self._on_another_order(block, values))
        current.block += 1
        is_left = link is not None and block == link.last
        if link is not None and is_left:
            link.send(self.num_steps, values, current.leaves)
        if values.requires_grad and current.program is not None:
            self._learn(block, values, current, current.program)
        elif values.requires_grad:
            current.ends.append((block, values))
        self._note_saved(current, block)
        if is_left and current.program is not None:
            raise LeftForward
        passed_on = self._passed_on(values, current)
        self._seed(block + 1)
        return passed_on

    def _passed_on(self, values: Tensor, current: CurrentStep) -> Tensor:
        if current.trace is None:
            return current.graphs.passed_on(values, is_kept=False)
        with current.trace.paused():
            passed_on = current.graphs.passed_on(values, is_kept=current.program is None)
        current.trace.note_same(passed_on, values)
        return passed_on

    def _note_saved(self, current: CurrentStep, block: int) -> None:
        """Measure what a block saved; where losses train several blocks, these are kept as long."""
        if current.saved is not None:
            current.saved_by_block.append(current.saved.start_anew())
            self.saved_bytes[block] = sum(current.saved_by_block[-self.window :])

    def _is_check_due(self) -> bool:
        """Whether this step looks at how the loss is computed, though that is known."""
        before, self._epoch = self._epoch, self._module.current_epoch
        is_new_epoch = self._epoch != before
        return self._has_last_block and (is_new_epoch or self.num_steps % _STEPS_BETWEEN_CHECKS == 0)

    def _check_again(self, current: CurrentStep, output: Any) -> None:
        """See whether the loss is still computed as in the first steps, and learn anew how where it is not."""
        root = root_of(output)
        assert current.trace is not None
        assert root is not None
        program = traced_program(current.trace, root, lambda _: True)
        if self.programs.knows(current.leaves, program):
            return
        if self.link is None:
            self.programs = ProgramsOfRun()
            self.programs.note(current.leaves, program)
        elif not self._is_warned:
            self._is_warned = True
            warnings.warn(
                f"The loss of step {self.num_steps + 1} is computed otherwise than in the first steps, as by another "
                "coefficient. With layers in parallel the heads of all blocks but the last go on with the loss of the "
                "first steps; train on one device to have them follow.",
                stacklevel=2,
            )

    def _learn_afterwards(self, current: CurrentStep, output: Any) -> None:
        """Train the blocks of a step whose program was not known before."""
        root = root_of(output)
        assert current.trace is not None
        assert root is not None
        program = traced_program(current.trace, root, lambda _: True)
        self.programs.note(current.leaves, program)
        if self.link is not None and self.programs.why_of_one_step is not None:
            raise CutError(
                f"Layers cannot be trained in parallel: {self.programs.why_of_one_step}. Make the loss's targets in "
                "the data set or the collate function, or train on one device."
            )
        with self._strategy.precision_plugin.train_step_context():
            for block, values in current.ends:
                self._learn(block, values, current, program)

    def _learn(self, block: int, values: Tensor, current: CurrentStep, program: Program) -> None:
        self._seed(self._num_blocks + block)
        head = self.heads[block]
        with nullcontext() if current.trace is None else current.trace.paused():
            self._learn_by(program, head, block, values, current)

    def _learn_by(self, program: Program, head: TrainedHead, block: int, values: Tensor, current: CurrentStep) -> None:
        loss = self._weighted.loss(lambda: program(head(values), current.leaves), current.leaves)
        self.losses[block] = loss.detach()
        with torch.autocast(values.device.type, enabled=False):
            current.graphs.backward(block, self._scaled(loss), head.parameters(), self._trained())

    def finish(self, output: Any) -> Any:
        """What a step returned, with the gradients of the blocks' losses attached."""
        root, graphs = root_of(output), self._last_graphs
        self._last_graphs = None
        if root is None:
            self._pending.clear()
            return output
        if graphs is not None and self.window > 1:
            # The returned loss trains blocks below its own, too.
            graphs.backward(self._num_blocks - 1, self._scaled(root), [], self._trained())
            output = root.detach() if isinstance(output, Tensor) else {**output, "loss": root.detach()}
        scaler = self.scaler
        return self._pending.attach(output, None if scaler is None else scaler.scale(torch.ones_like(root)))

    # ---- parts

    @property
    def scaler(self) -> Any:
        """The GradScaler of mixed precision; None where there is none."""
        return getattr(self._strategy.precision_plugin, "scaler", None)

    @property
    def _num_blocks(self) -> int:
        assert self.plan is not None
        return self.plan.num_blocks

    @property
    def _has_last_block(self) -> bool:
        return self.link is None or self.link.last == self._num_blocks - 1

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self._module.parameters() if parameter.requires_grad]

    def _scaled(self, loss: Tensor) -> Tensor:
        scaler = self.scaler
        return loss if scaler is None else scaler.scale(loss)

    def _seed(self, place: int) -> None:
        """Seed what is drawn from here on in this step: in a block, or behind it in its head."""
        seed = self.base_seed + 1_000_003 * (self.num_steps + 1) + 7_919 * place
        seed_generators(seed % _SEEDS, self._module.device)

    def _on_another_order(self, block: int, values: Any) -> str:
        assert self.plan is not None
        name = self.plan.blocks.cuts[block].name
        if not isinstance(values, Tensor):
            return f"The output of {name!r} is a {type(values).__name__} now, and was a tensor in the first step."
        return (
            f"The submodule {name!r} was called out of turn, or twice, in one step. Local learning needs a network "
            "whose blocks are called once each, in the order of the first step."
        )
