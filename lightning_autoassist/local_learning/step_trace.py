"""How the loss that a training step returned was computed: which operations, on which tensors.

The trace is taken by a torch function mode, that sees each call of torch's functions while the step runs. It holds no
activations: of what needs a gradient it remembers the order of operations alone.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_autoassist.trainer_support.call_arguments import tensors_of, with_replaced
from lightning_autoassist.trainer_support.internals import num_changes
from lightning_autoassist.trainer_support.random_calls import draws


class Link(NamedTuple):
    """Where a tensor comes from that an operation read.

    Attributes:
        operation: Number of the operation that made it; -1: none that was seen.
        item: Which of the operation's results; -1: its only one.
        leaf: Number of the batch's tensor that it is; -1: none of them.
        tensor: The tensor itself where it needs no gradient or comes from no operation that was seen.
    """

    operation: int = -1
    item: int = -1
    leaf: int = -1
    tensor: Tensor | None = None


class Operation(NamedTuple):
    """One call of a function of torch.

    Attributes:
        function: What was called.
        args: Its arguments, with a :class:`Link` for each tensor.
        kwargs: Its arguments by name.
        links: All links in both.
        changed: Which link is that of a tensor that the call changed in place; -1: none.
        needs_grad: Whether a result needs a gradient.
        is_of_data: Whether it reads something that comes from the batch, and not parameters alone.
        reads_parameters: Whether it reads parameters, or what was computed from parameters alone.
        shapes: Of the results.
    """

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    links: Sequence[Link]
    changed: int
    needs_grad: bool
    is_of_data: bool
    reads_parameters: bool
    shapes: Sequence[torch.Size]

    @property
    def is_random(self) -> bool:
        """Whether each call gives something else."""
        return draws(self.function)


class StepTrace(TorchFunctionMode):
    """Enter it, run the step, leave it; then :attr:`operations` has all that was called.

    Args:
        leaves: The batch's tensors.
    """

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self._is_paused = False
        self._leaves = {id(leaf): number for number, leaf in enumerate(leaves)}
        self._kept = list(leaves)  # an id is that of one tensor only as long as the tensor lives
        self._data: list[Tensor] = []
        self._numbers: dict[Any, Link] = {}  # by their nodes in the autograd graph
        self._known: dict[int, tuple[weakref.ref[Tensor], int, int, int, bool]] = {}

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or torch.compiler.is_compiling():
            return func(*args, **kwargs)
        read: list[Tensor] = []
        links: list[Link] = []

        def linked(tensor: Tensor) -> Link:
            read.append(tensor)
            links.append(self.link(tensor))
            return links[-1]

        arguments = with_replaced((args, kwargs), Tensor, linked)
        versions = [_version(tensor) for tensor in read]
        result = func(*args, **kwargs)
        changed = next((i for i, tensor in enumerate(read) if _version(tensor) != versions[i]), -1)
        self._note(func, arguments, read, links, changed, result)
        return result

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The context in which nothing is seen."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def note_same(self, tensor: Tensor, other: Tensor) -> None:
        """Take a tensor for another one that was seen."""
        known = self._known.get(id(other))
        if known is not None and known[0]() is other:
            self._known[id(tensor)] = (weakref.ref(tensor), *known[1:3], _version(tensor), tensor.requires_grad)

    def note_data(self, tensor: Tensor) -> None:
        """Take a tensor for one that comes from the batch, whatever made it."""
        self._data.append(tensor)
        self._known.pop(id(tensor), None)

    def link(self, tensor: Tensor) -> Link:
        """Where a tensor comes from."""
        leaf = self._leaves.get(id(tensor), -1)
        known = self._known.get(id(tensor))
        live = None if tensor.requires_grad else tensor
        # A tensor that was changed through another view of it is not what its operation gave; and what an operation
        # within an autograd function gave has a backward of its own.
        is_as_given = known is not None and known[0]() is tensor and known[3] == _version(tensor)
        if known is not None and is_as_given and known[4] == tensor.requires_grad:
            return Link(known[1], known[2], -1, live)
        return Link(-1, -1, leaf, tensor)

    def is_number_of_parameters(self, node: Any) -> bool:
        """Whether a node of the autograd graph gives a number that depends on parameters alone, as a penalty."""
        link = self._numbers.get(node)
        return link is not None and self._is_of_parameters(link)

    def link_of_loss(self, root: Tensor) -> Link:
        """Where a returned loss comes from; DDP may have passed it on in a tensor of its own."""
        link = self.link(root)
        if link.operation < 0 and root.grad_fn is not None and "DDPSink" in root.grad_fn.name():
            inside = (self._numbers.get(node) for node, _ in root.grad_fn.next_functions)
            return next((each for each in inside if each is not None), link)
        return link

    def _note(
        self,
        func: Callable[..., Any],
        arguments: Any,
        read: Sequence[Tensor],
        links: Sequence[Link],
        changed: int,
        result: Any,
    ) -> None:
        results = [read[changed]] if changed >= 0 else list(tensors_of(result))
        if not results or (changed < 0 and any(one is tensor for one in results for tensor in read)):
            return  # nothing new: as `.float()` of what is float32
        number, (args, kwargs) = len(self.operations), arguments
        self.operations.append(
            Operation(
                func,
                args,
                kwargs,
                links,
                changed,
                any(one.requires_grad for one in results),
                any(map(self._is_of_data, links)),
                any(map(self._is_of_parameters, links)),
                [one.shape for one in results],
            )
        )
        is_one = changed >= 0 or isinstance(result, Tensor)
        for item, one in enumerate(results):
            place = -1 if is_one else item
            self._known[id(one)] = (weakref.ref(one), number, place, _version(one), one.requires_grad)
            if one.ndim == 0 and one.grad_fn is not None:
                self._numbers[one.grad_fn] = Link(number, place)

    def _is_of_data(self, link: Link) -> bool:
        if link.operation >= 0:
            operation = self.operations[link.operation]
            return operation.is_of_data or operation.is_random
        if any(link.tensor is one for one in self._data):
            return True
        is_parameter = isinstance(link.tensor, torch.nn.Parameter)
        return link.leaf >= 0 or (link.tensor is not None and link.tensor.requires_grad and not is_parameter)

    def _is_of_parameters(self, link: Link) -> bool:
        if link.operation >= 0:
            operation = self.operations[link.operation]
            return operation.reads_parameters and not operation.is_of_data
        return link.tensor is not None and link.tensor.is_leaf and isinstance(link.tensor, torch.nn.Parameter)


def _version(tensor: Tensor) -> int:
    try:
        return num_changes(tensor)
    except RuntimeError:  # of inference mode
        return 0
