"""What a training step computed out of its parameters, so that it can be computed again with other parameters.

Levenberg-Marquardt damping compares the loss before a step with that after it, on the same batch. To call the user's
``training_step`` a second time would log twice and count twice. So the calls of torch that lead from the parameters to
the loss are noted while the step runs, and only they are made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_autoassist.trainer_support.call_arguments import tensors_of, with_replaced
from lightning_autoassist.trainer_support.random_calls import may_draw
from lightning_autoassist.trainer_support.rng import forked_generators, generator_state, set_generator_state


class _RngState(NamedTuple):
    device: torch.device
    state: Tensor


class LinearCall(NamedTuple):
    """A call of a linear layer whose weight or bias is trained.

    Attributes:
        inputs: Shape ``(*, F)``.
        weight: Shape ``(O, F)``.
        bias: Shape ``(O,)``, or None.
        output: Shape ``(*, O)``; what follows may have changed it in place.
        edge: The output's place in the graph, as the layer gave it.
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    edge: GradientEdge


class _Entry(NamedTuple):
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    rng_state: _RngState | None
    autocast: tuple[str, torch.dtype] | None


class StepTape(TorchFunctionMode):
    """Notes a step while it is entered. One object a step.

    Args:
        parameters: Those that are trained.
        keeps_calls: Whether :meth:`replay` will be wanted; else only linear layers are noted.

    Attributes:
        linear_calls: In their order.

    Example:
        >>> layer = torch.nn.Linear(2, 1)
        >>> with StepTape(list(layer.parameters())) as tape:
        ...     loss = layer(torch.ones(3, 2)).square().mean()
        >>> tape.replay(loss, {}) == loss
        tensor(True)
        >>> tape.replay(loss, {layer.weight: torch.zeros(1, 2), layer.bias: torch.tensor([3.0])})
        tensor(9.)
    """

    def __init__(self, parameters: Iterable[Tensor], *, keeps_calls: bool = True) -> None:
        super().__init__()
        self.linear_calls: list[LinearCall] = []
        self._keeps_calls = keeps_calls
        self._parameters = {id(parameter) for parameter in parameters}
        # Ids of what depends on the parameters; the entries keep the tensors, so that no id is used again.
        self._dependent = set(self._parameters)
        self._entries: list[_Entry] = []

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if not self._keeps_calls:
            result = func(*args, **kwargs)
        elif any(id(tensor) in self._dependent for tensor in tensors_of((args, kwargs))):
            result = self._noted(func, args, kwargs)
        else:
            return func(*args, **kwargs)
        if func is F.linear:
            self._note_linear(result, *args, **kwargs)
        return result

    def _noted(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        rng_state = _rng_state(args, kwargs) if may_draw(func) else None  # what it draws is drawn again
        kept = args
        name = getattr(func, "__name__", "")
        is_in_place = name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))
        if is_in_place and args and isinstance(args[0], Tensor) and id(args[0]) not in self._dependent:
            kept = (args[0].detach().clone(), *args[1:])  # what is changed now must be as it was
        result = func(*args, **kwargs)
        made = list(tensors_of(result))
        if made:
            self._dependent.update(map(id, made))
            self._entries.append(_Entry(func, kept, kwargs, result, rng_state, _autocast(made[0].device.type)))
        return result

    def _note_linear(self, result: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:  # noqa: A002
        if id(weight) in self._parameters or id(bias) in self._parameters:
            self.linear_calls.append(LinearCall(input.detach(), weight, bias, result, get_gradient_edge(result)))

    @torch.no_grad()
    def replay(self, loss: Tensor, parameters: Mapping[Tensor, Tensor]) -> Tensor:
        """What the loss would have been.

        Args:
            loss: What the step returned.
            parameters: Values in place of those of some parameters.

        Raises:
            LookupError: If the loss was not computed by calls that could be noted, as in an autograd function.
        """
        values = {id(parameter): value for parameter, value in parameters.items()}
        return _made_again(self._needed(loss, self._entries), loss, values)

    @torch.enable_grad()
    def replay_from(self, call: LinearCall, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The loss once more, as a function of a layer's outputs: what others let enter backward is not in it.

        Args:
            call: The layer's.
            loss: What the step returned.

        Returns:
            The outputs, a leaf of a new graph, and the loss in it.

        Raises:
            LookupError: As :meth:`replay`.
        """
        first = next(number for number, entry in enumerate(self._entries) if entry.result is call.output)
        # What follows may have changed it in place, and may do so again, which a leaf does not allow.
        is_changed = call.output.grad_fn is not call.edge.node
        leaf = (_made_again([self._entries[first]], call.output, {}) if is_changed else call.output).detach()
        values = {id(call.output): leaf.requires_grad_().clone()}
        return leaf, _made_again(self._needed(loss, self._entries[first + 1 :]), loss, values)

    @staticmethod
    def _needed(loss: Tensor, entries: list[_Entry]) -> list[_Entry]:
        """The entries that lead to the loss, in their order."""
        wanted, needed = {id(loss)}, []
        for entry in reversed(entries):
            if any(id(tensor) in wanted for tensor in tensors_of(entry.result)):
                needed.append(entry)
                wanted.update(map(id, tensors_of((entry.args, entry.kwargs))))
        if not needed:
            raise LookupError("the loss does not come from calls of torch's functions that could be noted")
        return needed[::-1]


def _made_again(entries: list[_Entry], loss: Tensor, values: dict[int, Tensor]) -> Tensor:

    def new(tensor: Tensor) -> Tensor:
        return values.get(id(tensor), tensor)

    for entry in entries:
        with nullcontext() if entry.autocast is None else torch.autocast(*entry.autocast):
            result = _with_rng(entry, with_replaced(entry.args, Tensor, new), with_replaced(entry.kwargs, Tensor, new))
        values.update(zip(map(id, tensors_of(entry.result)), tensors_of(result), strict=True))
    return values[id(loss)]


def _rng_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _RngState:
    """Of the device that a call's tensors are on."""
    device = next(tensor.device for tensor in tensors_of((args, kwargs)))
    return _RngState(device, generator_state(device))


def _with_rng(entry: _Entry, args: Any, kwargs: Any) -> Any:
    if entry.rng_state is None:
        return entry.function(*args, **kwargs)
    device, state = entry.rng_state
    with forked_generators(device):
        set_generator_state(device, state)
        return entry.function(*args, **kwargs)


def _autocast(device_type: str) -> tuple[str, torch.dtype] | None:
    """What makes the mixed precision of now again; None where there is none."""
    is_on = torch.is_autocast_enabled(device_type)
    return (device_type, torch.get_autocast_dtype(device_type)) if is_on else None
