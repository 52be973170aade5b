"""The link of one process to those that host the blocks before and after its own."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_autoassist.local_learning.cuts import CutError
from lightning_autoassist.local_learning.first_step import Plan
from lightning_autoassist.local_learning.placeholders import LeftOut, left_out, replaced
from lightning_autoassist.local_learning.transport import Groups, Inbox, Message, Outbox, check_can_be_sent, flat_groups

_WHOLE_BYTES = 1 << 16


class ProcessLink:
    """Receives what the process before gives, sends on, and shares what each process has learnt.

    The first process of Lightning's hosts the last blocks: it alone ends the user's step, so it has the user's metrics,
    the progress bar and the loggers.

    Args:
        groups: Of the run's processes.
        max_in_flight: See :class:`Outbox`.

    Attributes:
        first: The first block that this process hosts.
        last: The last one.
    """

    def __init__(self, groups: Groups, max_in_flight: int) -> None:
        self.groups = groups
        self.first = self.last = 0
        self._position = groups.size - 1 - groups.rank
        self._inbox = None if self._position == 0 else Inbox(groups.flow, groups.rank + 1)
        self._outbox = None if groups.rank == 0 else Outbox(groups.flow, groups.rank - 1, max_in_flight)
        self._plan: Plan | None = None
        self._module: nn.Module | None = None
        self._left_out: list[LeftOut] = []
        self._since, self._waited = time.perf_counter(), 0.0
        self._has_news = False

    # ---- which blocks are whose

    def join(self, plan: Plan, module: nn.Module) -> None:
        """Learn which blocks this process hosts.

        Raises:
            CutError: If there are fewer blocks than processes, or blocks share parameters.
        """
        size = self.groups.size
        if plan.num_blocks < size:
            raise CutError(
                f"{plan.num_blocks} blocks cannot be shared out to {size} processes; pass blocks={size} or more to "
                f"LocalLearningCallback, or devices={plan.num_blocks} to the Trainer."
            )
        if plan.blocks.shared:
            raise CutError(
                f"Layers cannot be trained in parallel: blocks share the parameters {', '.join(plan.blocks.shared)}, "
                "or the loss has a term of theirs. Cut so that they are in one block, or train on one device."
            )
        self._plan, self._module = plan, module
        own = [block for block in range(plan.num_blocks) if self._position_of(block) == self._position]
        self.first, self.last = own[0], own[-1]
        if self.first > 0:
            modules = dict(module.named_modules())
            names = left_out(plan.modules, self.first, plan.blocks.cuts[self.first - 1].name)
            self._left_out = [LeftOut(modules[name]) for name in names]

    def _position_of(self, block: int) -> int:
        assert self._plan is not None
        shares = np.array_split(np.arange(self._plan.num_blocks), self.groups.size)
        return next(position for position, share in enumerate(shares) if block in share)

    def rank_of(self, block: int) -> int:
        """The process that hosts a block."""
        return self.groups.size - 1 - self._position_of(block)

    # ---- a step

    @contextmanager
    def receiving(self, step: int, leaves: Sequence[Tensor], note: Callable[[Tensor], None]) -> Iterator[None]:
        """The context in which blocks before this process's are not computed, but what they give is received.

        Args:
            step: Its number.
            leaves: The batch's tensors.
            note: Gets what is received.

        Raises:
            CutError: If something else than the block's output passes the cut.
            RuntimeError: What the step itself raises.
        """
        self._has_news = True
        if self._inbox is None or self._plan is None or self._module is None:
            yield
            return
        end = self._plan.blocks.cuts[self.first - 1].name
        module = self._module.get_submodule(end)
        forwards: list[tuple[nn.Module, Any]] = [(each.module, each) for each in self._left_out]
        try:
            with replaced([*forwards, (module, lambda *_, **__: self._received(step, leaves, note))]):
                yield
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error):
                raise
            raise CutError(
                f"Layers cannot be trained in parallel with a cut after {end!r}: the step needs values of before it "
                f"that are not its output ({error}). Cut elsewhere, or train on one device."
            ) from error

    def _received(self, step: int, leaves: Sequence[Tensor], note: Callable[[Tensor], None]) -> Tensor:
        assert self._inbox is not None
        message = self._inbox.receive()
        if message.step != step or message.checksum != checksum(leaves):
            raise RuntimeError(
                f"The processes have different batches in step {step + 1}: that of blocks {self.first + 1} to "
                f"{self.last + 1} has another one than the process before it, in step {message.step + 1}. All "
                "processes must get the same instances in the same order: take random numbers of samplers, data sets "
                "and transforms from torch's generator or from one with a fixed seed, and none from the process's rank."
            )
        assert self._module is not None
        values = message.values.to(next(self._module.parameters()).device)
        note(values)
        return values

    def send(self, step: int, values: Tensor, leaves: Sequence[Tensor]) -> None:
        """Send a block's output to the next process, without waiting."""
        if self._outbox is not None:
            assert self._plan is not None
            check_can_be_sent(values, self._plan.blocks.cuts[self.last].name)
            self._outbox.send(Message(step, checksum(leaves), values.detach().cpu()))

    def finish(self) -> None:
        """End the flow of activations: nothing is sent or expected from here on."""
        if self._plan is None:
            return
        if self._outbox is not None:
            self._outbox.send(Message(-1, 0, torch.zeros(1)))
        if self._inbox is not None:
            self._inbox.finish()
        if self._outbox is not None:
            self._outbox.finish()
        self._plan = None

    def idle_share(self) -> float:
        """The share of time that this process waited for others, since it was last asked."""
        now, waited = time.perf_counter(), sum(box.seconds for box in (self._inbox, self._outbox) if box is not None)
        share = (waited - self._waited) / max(now - self._since, 1e-9)
        self._since, self._waited = now, waited
        return share

    # ---- what each process has learnt

    def share_module(self, module: nn.Module) -> None:
        """Give all processes each block's parameters and buffers, from the process that hosts it."""
        if not self._has_news or self._plan is None:
            return
        for rank in range(self.groups.size):
            self._share(self._owned(module, rank), rank)
        self._has_news = False

    def _owned(self, module: nn.Module, rank: int) -> list[Tensor]:
        assert self._plan is not None
        parameters = dict(module.named_parameters())
        owners = self._plan.blocks.owners
        owned: list[Tensor] = [parameters[name] for name, block in owners.items() if self.rank_of(block) == rank]
        modules = dict(module.named_modules())
        for name, first, last in self._plan.modules:
            if first == last and self.rank_of(last) == rank:
                owned.extend(modules[name].buffers(recurse=False))
        return owned

    def _share(self, tensors: Sequence[Tensor], rank: int) -> None:
        for group in flat_groups(tensors).values():
            flat = torch.cat([tensor.detach().reshape(-1).cpu() for tensor in group])
            self.groups.broadcast(flat, rank)
            if rank != self.groups.rank:
                parts = flat.split([tensor.numel() for tensor in group])
                for tensor, part in zip(group, parts, strict=True):
                    tensor.detach().copy_(part.view(tensor.shape))

    def whole_optimizer_state(self, module: nn.Module, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state with that of each parameter from the process that trains it."""
        if self._plan is None:
            return state
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        owners = [self._plan.blocks.owners.get(names.get(id(parameter), "")) for parameter in parameters]
        whole = dict(state["state"])
        for rank in range(self.groups.size):
            own = [n for n, block in enumerate(owners) if block is not None and self.rank_of(block) == rank]
            mine = {n: _on_cpu(state["state"][n]) for n in own if n in state["state"]}
            received = self.groups.broadcast_object(mine if rank == self.groups.rank else None, rank)
            if rank != self.groups.rank:
                whole.update(received)
        return {**state, "state": dict(sorted(whole.items()))}

    def by_owner(self, values: Sequence[Any]) -> list[Any]:
        """For each block but the last, the value that the process has that hosts it.

        Args:
            values: This process's, by block.
        """
        if self._plan is None:
            return list(values)
        everybody = self.groups.gather_object([_on_cpu(value) for value in values])
        return [everybody[self.rank_of(block)][block] for block in range(len(values))]


def checksum(leaves: Sequence[Tensor]) -> int:
    """A number that two different batches hardly share: of small tensors whole, of others the first and last instance.

    Args:
        leaves: The batch's tensors. Those on other devices are not looked at, which would make the device wait.
    """
    result = 0
    for leaf in leaves:
        if leaf.device.type != "cpu" or not leaf.numel():
            continue
        tensor = leaf.detach().contiguous()
        if tensor.numel() * tensor.element_size() > _WHOLE_BYTES:
            tensor = torch.stack([tensor[0], tensor[-1]])
        result = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), result)
    return result


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {name: _on_cpu(each) for name, each in value.items()}
    return [_on_cpu(each) for each in value] if isinstance(value, list) else value
