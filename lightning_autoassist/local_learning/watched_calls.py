"""Which modules a step calls, in which order, what they give, and how many bytes are saved for backward meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from typing_extensions import Self

from lightning_autoassist.trainer_support.call_arguments import tensors_of
from lightning_autoassist.trainer_support.internals import is_in_backward


class Call:
    """What is known of a module's calls in one step.

    Attributes:
        name: Of the module.
        module: The module.
        count: How often it was called.
        is_repeated: Whether backward calls it again, as activation checkpointing does.
        started: When it began, in beginnings and ends of any module's calls.
        ended: When it ended.
        output: What it gave; None once the step has been looked at.
        node: Of its output in the autograd graph; None where the output is not one tensor that needs a gradient.
        output_nr: Which result of the node its output is.
        shape: Of its output.
        saved_bytes: Bytes that were saved for backward when it ended.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name, self.module = name, module
        self.count = self.started = self.ended = self.saved_bytes = 0
        self.is_repeated = False
        self.output: Any = None
        self.node: Any = None
        self.output_nr = 0
        self.shape: torch.Size | None = None


class SavedBytes:
    """Counts the bytes that are saved for backward while it is entered; parameters are not counted, storages once.

    Args:
        parameters: Which are not counted.
        offload: Whether what is saved on a device waits for backward in the host's memory.

    Attributes:
        total: Bytes so far.
    """

    def __init__(self, parameters: Iterable[Tensor], *, offload: bool = False) -> None:
        self.total = 0
        self._offload = offload
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._seen = set(self._parameters)

    def counted(self) -> AbstractContextManager[Any]:
        """The context in which bytes are counted."""
        return saved_tensors_hooks(self._pack, _unpack)

    def start_anew(self) -> int:
        """The bytes so far; from here on they are counted from none, and places may be those of freed tensors."""
        total, self.total = self.total, 0
        self._seen = set(self._parameters)
        return total

    def _pack(self, tensor: Tensor) -> Any:
        if tensor.layout is not torch.strided:
            return tensor
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
            if self._offload and tensor.device.type != "cpu":
                return (tensor.device, tensor.detach().to("cpu"))
        return tensor.detach()


def _unpack(packed: Any) -> Tensor:
    if isinstance(packed, tuple):
        device, tensor = packed
        return tensor.to(device)  # type: ignore[no-any-return]
    return packed  # type: ignore[no-any-return]


class WatchedCalls:
    """Watches the calls of a module's submodules while it is entered.

    Args:
        module: The LightningModule.
        saved: Counts what is saved.

    Attributes:
        calls: By the modules' names, of those that were called.
    """

    def __init__(self, module: nn.Module, saved: SavedBytes) -> None:
        self.calls: dict[str, Call] = {}
        self._saved = saved
        self._module = module
        self._clock = 0
        self._handles = ExitStack()

    def __enter__(self) -> Self:
        for name, module in visible_modules(self._module):
            call = Call(name, module)
            before = module.register_forward_pre_hook(lambda *_, call=call: self._start(call))
            after = module.register_forward_hook(lambda _, __, output, call=call: self._end(call, output))
            self._handles.callback(before.remove)
            self._handles.callback(after.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.close()

    def is_output_of_layer(self, tensor: Tensor) -> bool:
        """Whether a tensor is what a module with parameters gave."""
        return any(
            tensor is one
            for call in self.calls.values()
            for one in tensors_of(call.output)
            if next(call.module.parameters(), None) is not None
        )

    def _start(self, call: Call) -> None:
        if is_in_backward():
            call.is_repeated = True
            return
        call.is_repeated = call.is_repeated or _is_in_checkpoint()
        call.count += 1
        self._clock += 1
        call.started = self._clock
        self.calls[call.name] = call

    def _end(self, call: Call, output: Any) -> None:
        if is_in_backward():
            return
        self._clock += 1
        call.ended = self._clock
        call.saved_bytes = self._saved.total
        call.output, call.node = output, None
        if isinstance(output, Tensor) and output.grad_fn is not None:
            call.node, call.output_nr, call.shape = output.grad_fn, output.output_nr, output.shape


def _is_in_checkpoint() -> bool:
    """Whether this is called within a function that backward will call again."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
    return False


def visible_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The submodules whose calls can be seen: those within compiled ones cannot."""
    hidden: list[str] = []
    for name, each in module.named_modules():
        if name and not any(name.startswith(one) for one in hidden):
            is_compiled_in_place = getattr(each, "_compiled_call_impl", None) is not None
            if not is_compiled_in_place:
                yield name, each
            if is_compiled_in_place or hasattr(each, "_orig_mod"):
                hidden.append(f"{name}.")
